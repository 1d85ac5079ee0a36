"""Worker: transformers' GPT2LMHeadModel trained by its Trainer, both with their defaults but for dropout (0)."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import tempfile
from typing import Any

import numpy as np
import torch
from shapes import Shape
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from sides.turnstile import Turnstile, asked, peak_memory


class Windows(Dataset[dict[str, Tensor]]):
    """Windows of a token stream, one after the other; the Trainer shuffles them."""

    def __init__(self, path: str, context: int) -> None:
        self._tokens_N, self._context = np.load(path, mmap_mode="r"), context

    def __len__(self) -> int:
        return len(self._tokens_N) // self._context

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        window_T = self._tokens_N[index * self._context : (index + 1) * self._context].astype(np.int64)
        tokens_T = torch.from_numpy(window_T)
        return {"input_ids": tokens_T, "labels": tokens_T}


class Turns(TrainerCallback):
    """Holds the Trainer at the start of each step until the driver wants it."""

    def __init__(self, turnstile: Turnstile) -> None:
        self._turnstile = turnstile

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """From one start to the next is a whole step: update, logging and the next batch included."""
        if not self._turnstile.next():
            raise SystemExit


def build(shape: Shape, **changes: Any) -> GPT2LMHeadModel:
    """GPT-2 of a shape, with its own initial weights."""
    torch.manual_seed(1337)
    return GPT2LMHeadModel(GPT2Config(**(shape.gpt2() | changes)))


def common_arguments(shape: Shape, wanted: dict[str, Any]) -> dict[str, Any]:
    """The Trainer's arguments that are the same whatever is measured."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": wanted.get("device", "cpu") == "cpu",
        "bf16": wanted["precision"] == "bf16",
        "per_device_train_batch_size": shape.batch,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def main() -> None:
    """Train; the Trainer owns the loop."""
    wanted = asked()
    shape = Shape(**wanted["shape"])
    before = peak_memory()
    model = build(shape, **wanted.get("config", {}))
    given = {"max_steps": 1_000_000, **wanted.get("arguments", {})}
    arguments = TrainingArguments(**common_arguments(shape, wanted), **given)
    facts = {"parameters": model.num_parameters(), "optimizer": str(arguments.optim), "peak_bytes_before": before}
    on_gpu = not arguments.use_cpu
    device_peak = {"device_peak_bytes": torch.cuda.max_memory_allocated}
    turns = Turns(Turnstile(facts, device_peak, settle=torch.cuda.synchronize if on_gpu else lambda: None))
    Trainer(model, arguments, train_dataset=Windows(wanted["tokens"], shape.context), callbacks=[turns]).train()


if __name__ == "__main__":
    main()
