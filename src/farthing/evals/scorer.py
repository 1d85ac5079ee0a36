"""What a text costs a model, in nats: every token of its stream scored exactly once, separators and the tail included.

Shapes: N tokens of the stream, M documents, B windows, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import nn

from farthing.data.split import TokenSplit
from farthing.errors import UserError
from farthing.evals.forward import IGNORED, Precision, Reader


@dataclass(frozen=True)
class Window:
    """Positions start..end-1 are seen together, and the targets of scored..end-1 counted; start <= scored < end."""

    start: int
    scored: int
    end: int


@dataclass(frozen=True)
class Score:
    """The cost of a whole split.

    Args:
        nats: cross-entropy summed over all tokens, in float64.
        tokens: how many tokens that is, separators included.
        separator_nats: the part of `nats` spent on predicting where documents end.
        separators: how many separators were among the tokens.
        context_length: positions the model sees together at most.
        stride: targets counted per window.
        precision: number format of the forward pass.
        document_nats_M: the cost of each document with its separator, where asked for.
    """

    nats: float
    tokens: int
    separator_nats: float
    separators: int
    context_length: int
    stride: int
    precision: Precision
    document_nats_M: np.ndarray | None = field(default=None, compare=False, repr=False)


def windows(tokens: int, *, context_length: int, stride: int) -> Iterator[Window]:
    """Cut a stream of `tokens` targets into windows that count each target exactly once, in order.

    The first window counts all its targets. Each later one counts the next `stride`, after context_length - stride
    positions of context; the last may be short. With stride = context_length windows do not overlap.

    Raises:
        UserError: stride is not in 1..context_length.
    """
    if not 1 <= stride <= context_length:
        raise UserError(f"evaluate.stride={stride} must lie between 1 and the context length, {context_length}")
    context, scored = 0, 0
    while scored < tokens:
        start = scored - context
        end = min(start + context_length, tokens)
        yield Window(start, scored, end)
        context, scored = context_length - stride, end


def token_nats(
    model: nn.Module,
    tokens_N: np.ndarray,
    separator: int,
    *,
    context_length: int,
    stride: int,
    batch_size: int,
    device: torch.device | str,
    precision: Precision,
    segments: bool,
) -> Iterator[np.ndarray]:
    """Yield the cost of every token of a stream in order, in nats, in float64 pieces of one batch each.

    The first input is one separator, so that the first token too is predicted. See `score` for the arguments.
    """
    if batch_size < 1:
        raise UserError(f"evaluate.batch_size={batch_size} must be at least 1")
    remaining = windows(len(tokens_N), context_length=context_length, stride=stride)
    reader = Reader(
        model,
        device=device,
        precision=precision,
        batch_size=batch_size,
        separator=separator if segments else None,
    )
    while batch := list(islice(remaining, batch_size)):
        inputs, targets = [], []
        for window in batch:
            target_T = tokens_N[window.start : window.end].astype(np.int64)
            before = tokens_N[window.start - 1] if window.start else separator
            inputs.append(np.concatenate(([before], target_T[:-1])))
            target_T[: window.scored - window.start] = IGNORED
            targets.append(target_T)
        yield reader.nats(inputs, targets, fill=separator)


def score(
    model: nn.Module,
    split: TokenSplit,
    *,
    context_length: int,
    stride: int,
    batch_size: int,
    device: torch.device | str,
    precision: Precision = "fp32",
    segments: bool = False,
    documents: bool = False,
    report: Callable[[int, int], None] | None = None,
) -> Score:
    """Score every token of `split` once: model(tokens_BT, segments_BT or None) -> logits_BTV, causal.

    The model comes back in the modes it had, and no random state moves, so scoring never changes a training run.

    Args:
        model: a causal language model on `device`; with `hidden` and `head` the full logits never exist.
        split: the text.
        context_length: positions the model sees together at most.
        stride: targets counted per window; below context_length each target has more context, at a higher cost.
        batch_size: windows in one forward pass, fewer where memory runs out; changes the result by rounding alone
            (below 1e-6 of it).
        device: where the model is.
        precision: fp32 is the one to publish.
        segments: tell the model where documents begin (attention within a document).
        documents: also keep the cost of each document.
        report: called with (tokens scored, tokens in all) after every batch.

    Raises:
        UserError: an empty split, a stride outside 1..context_length, a batch_size below 1.
        ResourceError: not even one window fits into memory.
    """
    total = len(split.tokens_N)
    if total == 0:
        raise UserError(f"the {split.name} split has no tokens; there is nothing to score")
    nats = separator_nats = 0.0
    tokens = separators = 0
    document_nats_M = np.zeros(_documents(split)) if documents else None
    pieces = token_nats(
        model,
        split.tokens_N,
        split.separator,
        context_length=context_length,
        stride=stride,
        batch_size=batch_size,
        device=device,
        precision=precision,
        segments=segments,
    )
    for nats_N in pieces:
        ends_N = np.asarray(split.tokens_N[tokens : tokens + len(nats_N)]) == split.separator
        if document_nats_M is not None:
            documents_N = separators + np.cumsum(ends_N) - ends_N
            document_nats_M += np.bincount(documents_N, weights=nats_N, minlength=len(document_nats_M))
        nats += float(nats_N.sum())
        separator_nats += float(nats_N[ends_N].sum())
        tokens, separators = tokens + len(nats_N), separators + int(ends_N.sum())
        if report is not None:
            report(tokens, total)
    assert tokens == total, f"scored {tokens} of {total} tokens"
    return Score(
        nats=nats,
        tokens=tokens,
        separator_nats=separator_nats,
        separators=separators,
        context_length=context_length,
        stride=stride,
        precision=precision,
        document_nats_M=document_nats_M,
    )


def _documents(split: TokenSplit) -> int:
    # Counted in the stream itself: token files from elsewhere may end without a last separator.
    ends = int(np.count_nonzero(split.tokens_N == split.separator))
    return ends + int(split.tokens_N[-1] != split.separator)
