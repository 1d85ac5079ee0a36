"""The cost of given targets, in nats, measured so that nothing but the model and the text can move the number.

Shapes: B rows, T positions, N targets that count (row by row), D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100
"""Target of a position that does not count: padding, or context that an earlier window has scored."""

Precision = Literal["fp32", "bf16", "fp16"]
"""Number format of the forward pass; the loss itself is fp32 and its sum float64 always."""

_AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LOGITS = {"cpu": 1 << 22}
"""Logits that may exist at once (16 MiB in fp32, which caches like), where the model lets its head be called apart."""
_LOGITS_ELSEWHERE = 1 << 26
_FIRST_CHUNK = 64


@contextmanager
def measuring(model: nn.Module, *, device: torch.device | str, precision: Precision) -> Iterator[None]:
    """Put `model` and torch into the state for scoring, and everything back afterwards.

    Evaluation mode (each submodule gets its own mode back), inference mode, the random state of CPU and device kept
    as it was, and fp32 that is fp32: no autocast from the surroundings, no TF32 or bf16 inside matrix products.
    """
    device = torch.device(device)
    modes = [(module, module.training) for module in model.modules()]
    cuda = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    dtype = _AUTOCAST.get(precision)
    # Without the cache: a weight cast here must not be served, as an inference tensor, to a training step around us.
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False)
    model.eval()
    try:
        with torch.random.fork_rng(devices=cuda), torch.inference_mode(), autocast, _full_fp32():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _full_fp32() -> Iterator[None]:
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def pad_rows(rows: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """Rows of unequal length as one int64 array, `fill` behind the short ones (a causal model never looks there)."""
    padded_BT = np.full((len(rows), max(len(row) for row in rows)), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        padded_BT[index, : len(row)] = row
    return padded_BT


def target_nats(
    model: nn.Module,
    inputs_BT: np.ndarray,
    targets_BT: np.ndarray,
    *,
    device: torch.device | str,
    separator: int | None = None,
) -> np.ndarray:
    """Cross-entropy of every target that is not IGNORED, in nats, row by row, as float64 of shape (N,).

    With `separator` the model also gets segments_BT: how many separators stand at or before a position of its row.
    A model with `hidden` and `head` is asked for few logits at a time. Call inside `measuring`.
    """
    wanted_BT = targets_BT != IGNORED
    targets_N = torch.from_numpy(targets_BT[wanted_BT]).to(device)
    tokens_BT = torch.from_numpy(inputs_BT).to(device)
    segments_BT = None
    if separator is not None:
        segments_BT = torch.from_numpy(np.cumsum(inputs_BT == separator, axis=1, dtype=np.int64)).to(device)
    where_BT = torch.from_numpy(wanted_BT).to(device)
    hidden, head = getattr(model, "hidden", None), getattr(model, "head", None)
    if not (callable(hidden) and callable(head)):
        return _as_float64(_cross_entropy(model(tokens_BT, segments_BT)[where_BT], targets_N))
    x_ND = hidden(tokens_BT, segments_BT)[where_BT]
    most = _LOGITS.get(x_ND.device.type, _LOGITS_ELSEWHERE)
    pieces, done, chunk = [targets_N.new_empty(0, dtype=torch.float32)], 0, _FIRST_CHUNK
    while done < len(x_ND):
        logits_NV = head(x_ND[done : done + chunk])
        pieces.append(_cross_entropy(logits_NV, targets_N[done : done + chunk]))
        done, chunk = done + chunk, max(_FIRST_CHUNK, most // logits_NV.shape[-1])
    return _as_float64(torch.cat(pieces))


def _cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="none")


def _as_float64(nats_N: Tensor) -> np.ndarray:
    # Widened on the CPU: not every accelerator has float64.
    return nats_N.cpu().double().numpy()
