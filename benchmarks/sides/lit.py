"""Worker: litgpt's own pretraining (litgpt.pretrain.setup), in an environment of its own (.venv-litgpt; make bench makes it).

Everything is litgpt's: model, Fabric, torch.compile (it always compiles), AdamW, its loop with its logging of every
step. The shape is given as a Config: sequential GPT blocks with biases, layer norm, exact GELU and a tied head; litgpt
has no learned positions, so it has its default rotary ones. One micro-batch is the whole batch. The data module is ours,
since its iterator is where the loop can be held between two steps.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litgpt import Config
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.pretrain import setup
from shapes import Shape
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from sides.turnstile import Turnstile, asked, peak_memory


class Windows(IterableDataset[Tensor]):
    """Random windows [B, T + 1] of a token stream, for ever; with a turnstile, each only when it is our turn."""

    def __init__(self, path: str, shape: Shape, turnstile: Turnstile | None) -> None:
        self._tokens_N, self._shape, self._turnstile = np.load(path, mmap_mode="r"), shape, turnstile

    def __iter__(self) -> Iterator[Tensor]:
        random, length = np.random.default_rng(1337), self._shape.context + 1
        while self._turnstile is None or self._turnstile.next():
            starts_B = random.integers(len(self._tokens_N) - length, size=self._shape.batch)
            yield torch.from_numpy(np.stack([self._tokens_N[at : at + length] for at in starts_B]).astype(np.int64))
        raise SystemExit


class Text(DataModule):
    """The windows as litgpt takes them."""

    def __init__(self, path: str, shape: Shape, turnstile: Turnstile) -> None:
        super().__init__()
        self._path, self._shape, self._turnstile = path, shape, turnstile

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None, **_: Any) -> None:
        """Nothing to connect: the windows are cut."""

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Batches, held between steps."""
        return DataLoader(Windows(self._path, self._shape, self._turnstile), batch_size=None)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """For litgpt's check before the first step."""
        return DataLoader(Windows(self._path, self._shape, None), batch_size=None)


def config(shape: Shape) -> Config:
    """litgpt's Config of a shape."""
    return Config(
        name=shape.name.replace("/", "-"),
        block_size=shape.context,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.d_model,
        parallel_residual=False,
        attn_bias=True,
        bias=True,
    )


def main() -> None:
    """Pretrain; litgpt owns the loop."""
    wanted = asked()
    shape = Shape(**wanted["shape"])
    turnstile = Turnstile({"peak_bytes_before": peak_memory(), "torch_compile": True})
    with contextlib.suppress(SystemExit):
        setup(
            model_name=shape.name,
            model_config=config(shape),
            out_dir=Path(tempfile.mkdtemp()),
            precision=wanted["precision"],
            data=Text(wanted["tokens"], shape, turnstile),
            train=TrainArgs(
                global_batch_size=shape.batch,
                micro_batch_size=shape.batch,
                max_tokens=1_000_000 * shape.tokens,
                max_norm=1.0,
                min_lr=4e-5,
                lr_warmup_steps=2000,
                tie_embeddings=True,
                save_interval=None,
                log_interval=1,
            ),
            eval=EvalArgs(interval=1_000_000, max_iters=1),
            logger_name="csv",
        )


if __name__ == "__main__":
    main()
