"""Batches gathered before the step that wants them, in memory that a GPU reads by itself."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from farthing.data.batches import Batch, Batches


class _Wanted(NamedTuple):
    step: int
    last_window: int | None


class Feeder:
    """Batches of which the next is gathered on a thread of its own while the device is busy with this one.

    What is returned never depends on that: batch i is the same pure function of i, and one that was gathered for a
    step which nobody asks for is thrown away. For CUDA they are in pinned memory, so that the copy to the device waits
    for nobody; they are to be kept until it is done, as a whole step's batch is.

    A thread pays where the processor has nothing else to do: gathering takes 0.4 ms for 64 windows of 1,024 tokens,
    0.05 ms for 16 of 256.

    Args:
        batches: to be asked by nobody else at the same time.
        device: where the batches will go.
    """

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self._batches = batches
        self._device = device
        self._process = os.getpid()
        self._ahead: tuple[_Wanted, Future[Batch]] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="farthing-feeder", initializer=_use, initargs=(device,))

    @property
    def tokens_per_epoch(self) -> int:
        """As of the batches."""
        return self._batches.tokens_per_epoch

    def batch(self, step: int, *, last_window: int | None = None) -> Batch:
        """As Batches.batch; what goes wrong in gathering a batch is raised when it is asked for, not before."""
        if self._is_forked:
            return self._batches.batch(step, last_window=last_window)
        wanted = _Wanted(step, last_window)
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == wanted:
            gathered = ahead[1].result()
        else:
            if ahead is not None:
                ahead[1].cancel()
            gathered = self._pool.submit(self._gather, wanted).result()
        if self._batches.windows(step + 1, last_window=last_window) > 0:
            coming = _Wanted(step + 1, last_window)
            self._ahead = (coming, self._pool.submit(self._gather, coming))
        return gathered

    def documents(self, step: int, *, last_window: int | None = None) -> np.ndarray:
        """As Batches.documents."""
        if self._is_forked:
            return self._batches.documents(step, last_window=last_window)
        return self._pool.submit(self._batches.documents, step, last_window=last_window).result()

    def close(self) -> None:
        """End the thread; nothing can be asked for afterwards. (It also ends with its feeder or with the process.)"""
        self._ahead = None
        self._pool.shutdown(cancel_futures=True)

    @property
    def _is_forked(self) -> bool:
        # Threads do not survive a fork: the child gathers for itself.
        return os.getpid() != self._process

    def _gather(self, wanted: _Wanted) -> Batch:
        batch = self._batches.batch(wanted.step, last_window=wanted.last_window)
        if self._device.type != "cuda":
            return batch
        segments_BT = None if batch.segments_BT is None else _pinned(batch.segments_BT)
        return Batch(_pinned(batch.inputs_BT), _pinned(batch.targets_BT), segments_BT, batch.tokens, batch.windows)


Fed = Batches | Feeder
"""what a training loop asks for its batches"""


def fed(batches: Batches, device: torch.device) -> Fed:
    """Batches as a device is best fed with them: ahead for a GPU, as they are wanted where a CPU computes."""
    return Feeder(batches, device) if device.type == "cuda" else batches


def _pinned(array: np.ndarray) -> np.ndarray:
    view: np.ndarray = torch.from_numpy(array).pin_memory().numpy()
    return view


def _use(device: torch.device) -> None:
    if device.type == "cuda":
        # Each thread has a current GPU of its own, and memory is pinned through it.
        torch.cuda.set_device(device)
