"""The yardsticks: one score told in the units people compare by (docs/yardstick.md)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from farthing.data.split import TokenSplit
from farthing.errors import UserError
from farthing.evals.forward import Precision
from farthing.evals.legacy import LegacyTitles, legacy_titles
from farthing.evals.scorer import Score, score
from farthing.recipe.running import Evaluate

YARDSTICK_VERSION = 1
"""Raised whenever the same model on the same text would read another number; readings of two versions never compare."""

_POSITIONS_AT_ONCE = {"cpu": 4096}
_POSITIONS_AT_ONCE_ELSEWHERE = 32768


def yardsticks(score: Score, split: TokenSplit, *, legacy: LegacyTitles | None = None) -> dict[str, Any]:
    """Tell `score` in every unit, JSON-ready: the `validation` object of events, results and `--json`.

    The numerator is always the whole cost, separators included: a model must pay for saying where a document ends.
    The denominators are those of the original text, in which separators are neither bytes nor characters. A reading
    that is not finite (a diverged model) is None.

    Raises:
        UserError: the split holds no text.
    """
    assert score.tokens == len(split.tokens_N), f"{score.tokens} scored of {len(split.tokens_N)} tokens"
    if split.bytes == 0:
        raise UserError(f"the {split.name} split has no text: all its {split.documents} documents are empty")
    per_token = score.nats / score.tokens
    readings: dict[str, Any] = {
        "bits_per_byte": _finite(score.nats / math.log(2) / split.bytes),
        "nats_per_token": _finite(per_token),
        "perplexity": _finite(math.exp(per_token) if per_token < 700 else math.inf),
        "nats_per_character": _finite(score.nats / split.characters),
        "tokens": score.tokens,
        "bytes": split.bytes,
        "characters": split.characters,
        "documents": split.documents,
        "separator_share": _finite(score.separator_nats / score.nats) if score.nats else 0.0,
        "split": split.name,
        "fingerprint": split.fingerprint,
        "context_length": score.context_length,
        "stride": score.stride,
        "precision": score.precision,
        "version": YARDSTICK_VERSION,
    }
    if legacy is not None:
        readings["legacy_titles"] = None if legacy.nats_per_character is None else _finite(legacy.nats_per_character)
        readings["legacy_coverage"] = legacy.coverage
    return readings


def evaluate(
    model: nn.Module,
    split: TokenSplit,
    section: Evaluate,
    *,
    context_length: int,
    train_batch_size: int,
    train_precision: Precision,
    device: torch.device | str,
    segments: bool = False,
) -> dict[str, Any]:
    """Score `split` as a recipe's [evaluate] asks and return its yardsticks, `legacy_titles` too where asked for.

    Args:
        model: a causal language model on `device`.
        split: the text.
        section: the recipe's [evaluate]; batch_size = "auto" takes a size that suits the device.
        context_length: the model's.
        train_batch_size: sequences per optimizer step, on which the legacy reading depends.
        train_precision: what precision = "train" means in this run.
        device: where the model is.
        segments: whether the model keeps attention within documents.
    """
    precision: Precision = "fp32" if section.precision == "fp32" else train_precision
    batch_size = section.batch_size
    if batch_size == "auto":
        batch_size = auto_batch_size(context_length, device=device)
    found = score(
        model,
        split,
        context_length=context_length,
        stride=context_length if section.stride == "context_length" else section.stride,
        batch_size=batch_size,
        device=device,
        precision=precision,
        segments=segments,
    )
    legacy = None
    if section.legacy == "titles":
        legacy = legacy_titles(
            model,
            split,
            context_length=context_length,
            train_batch_size=train_batch_size,
            batch_size=batch_size,
            device=device,
            precision=precision,
            segments=segments,
        )
    return yardsticks(found, split, legacy=legacy)


def auto_batch_size(context_length: int, *, device: torch.device | str) -> int:
    """Windows to score at once: enough to keep the device busy, few enough to fit beside a training run."""
    positions = _POSITIONS_AT_ONCE.get(torch.device(device).type, _POSITIONS_AT_ONCE_ELSEWHERE)
    return max(1, positions // context_length)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
