"""The titles benchmark's published reading, reproduced with its flaw so that old numbers can be compared by.

It walks windows of batch * context + 1 tokens, drops the tail that does not fill one, and divides by all characters:
the larger the training batch, the less is scored and the lower the reading (docs/yardstick.md). Never compare by it.

Shapes: B rows of T positions in a window of the published reading, N tokens of the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import nn

from farthing.data.split import TokenSplit
from farthing.evals.forward import Precision, Reader

SEPARATOR_CHARACTERS = len("<eos>")
"""What the benchmark counts for each separator, whatever ours is called."""


@dataclass(frozen=True)
class LegacyTitles:
    """The published reading of one split.

    Args:
        nats_per_character: the reading; None where not even one window fills.
        coverage: the share of the split's tokens that was scored for it.
        tokens: how many tokens that is.
        characters: what it was divided by: the text's, and five for each separator.
    """

    nats_per_character: float | None
    coverage: float
    tokens: int
    characters: int


def legacy_tokens(tokens: int, *, context_length: int, batch_size: int) -> int:
    """How many of `tokens` the published reading scores at a training batch of batch_size x context_length."""
    window = batch_size * context_length
    return tokens // (window + 1) * window


def legacy_titles(
    model: nn.Module,
    split: TokenSplit,
    *,
    context_length: int,
    train_batch_size: int,
    batch_size: int,
    device: torch.device | str,
    precision: Precision = "fp32",
    segments: bool = False,
) -> LegacyTitles:
    """Take the published reading at the training batch of train_batch_size x context_length.

    `batch_size` is how many rows go through the model at once here and does not change the reading.
    """
    assert batch_size >= 1 and train_batch_size >= 1, (batch_size, train_batch_size)
    nats, tokens = 0.0, 0
    rows = _rows(split.tokens_N, context_length=context_length, batch_size=train_batch_size)
    reader = Reader(
        model,
        device=device,
        precision=precision,
        batch_size=batch_size,
        separator=split.separator if segments else None,
    )
    while some := list(islice(rows, batch_size)):
        nats_N = reader.nats([inputs_T for inputs_T, _ in some], [targets_T for _, targets_T in some])
        nats, tokens = nats + float(nats_N.sum()), tokens + len(nats_N)
    assert tokens == legacy_tokens(len(split.tokens_N), context_length=context_length, batch_size=train_batch_size)
    characters = split.characters + SEPARATOR_CHARACTERS * split.documents
    return LegacyTitles(
        nats_per_character=nats / characters if tokens else None,
        coverage=tokens / len(split.tokens_N),
        tokens=tokens,
        characters=characters,
    )


def _rows(tokens_N: np.ndarray, *, context_length: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    span = batch_size * context_length + 1
    for start in range(0, len(tokens_N) - span + 1, span):
        window = tokens_N[start : start + span].astype(np.int64)
        yield from zip(
            window[:-1].reshape(batch_size, context_length),
            window[1:].reshape(batch_size, context_length),
            strict=True,
        )
