"""One process or many: rank, world and the few collectives that training needs.

The only module that touches torch.distributed. Processes are started by torchrun, which describes them in the
environment; without it there is one process and every collective returns its input.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from farthing.errors import UserError

Json = TypeVar("Json")


def rank() -> int:
    """This process's number, from 0."""
    return _from_environment("RANK", 0)


def local_rank() -> int:
    """This process's number on its own machine, from 0: which GPU is its own."""
    return _from_environment("LOCAL_RANK", 0)


def world_size() -> int:
    """How many processes there are."""
    return _from_environment("WORLD_SIZE", 1)


def is_main() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


@contextmanager
def world(device: str) -> Iterator[None]:
    """Join the other processes for the length of a block: gloo on the CPU, nccl on CUDA; nothing to do for one process.

    Raises:
        UserError: there is more than one process and the device is MPS.
    """
    start(device)
    try:
        yield
    finally:
        stop()


def start(device: str) -> None:
    """Join the other processes; see `world`."""
    if world_size() == 1 or dist.is_initialized():
        return
    if device == "mps":
        raise UserError(f"WORLD_SIZE={world_size()}: MPS runs in one process only; start farthing without torchrun")
    dist.init_process_group("nccl" if device == "cuda" else "gloo")


def stop() -> None:
    """Leave the other processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here."""
    if _many():
        dist.barrier()


def all_reduce_sum(value: torch.Tensor) -> torch.Tensor:
    """The sum of `value` over all processes, the same on each; `value` itself is left as it is."""
    if not _many():
        return value
    total = value.detach().clone()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def sum_number(value: float) -> float:
    """The sum of a number over all processes, in double precision (exact for counts below 2**53)."""
    return float(all_reduce_sum(torch.tensor(value, dtype=torch.float64, device=_place())).item()) if _many() else value


def any_true(value: bool) -> bool:
    """Whether it holds in at least one process: a signal caught by one rank stops them all."""
    return sum_number(float(value)) > 0


def broadcast(value: Json) -> Json:
    """The main process's `value`, a JSON-ready one, in every process. Objects travel as JSON, never as pickles."""
    if not _many():
        return value
    content = json.dumps(value).encode() if is_main() else b""
    length = torch.tensor([len(content)], dtype=torch.int64, device=_place())
    dist.broadcast(length, src=0)
    words = torch.zeros(int(length.item()), dtype=torch.uint8, device=_place())
    if is_main():
        words.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    dist.broadcast(words, src=0)
    received: Json = json.loads(bytes(words.tolist()))
    return received


def _many() -> bool:
    return dist.is_available() and dist.is_initialized()


def _place() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _from_environment(name: str, otherwise: int) -> int:
    text = os.environ.get(name, str(otherwise))
    if not text.isdecimal():
        raise UserError(f"{name}={text!r} in the environment: torchrun sets it to a whole number")
    return int(text)
