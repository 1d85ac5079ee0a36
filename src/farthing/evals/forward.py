"""The cost of given targets, in nats, measured so that nothing but the model and the text can move the number.

Shapes: B rows, T positions, N targets that count (row by row), D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farthing.errors import ResourceError
from farthing.model.gpt import GPT
from farthing.model.inference import Inference
from farthing.runtime.device import is_out_of_memory

IGNORED = -100
"""Target of a position that does not count: padding, or context that an earlier window has scored."""

Precision = Literal["fp32", "bf16", "fp16"]
"""Number format of the forward pass; the loss itself is fp32 and its sum float64 always."""

_AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LOGITS = {"cpu": 1 << 24}
"""Logits that may exist at once (64 MiB in fp32), where the model lets its head be called apart."""
_LOGITS_ELSEWHERE = 1 << 26
_ROWS = {"cpu": 512}
"""Positions whose logits exist at once: with more they fall out of the CPU's cache, with under 200 products are slow."""
_FIRST_ROWS = 64

_BETWEEN_PASSES: ContextVar[Callable[[], None]] = ContextVar("between_passes", default=lambda: None)


@contextmanager
def interruptible(check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before every forward pass of the scoring inside; what it raises ends the scoring.

    A score may take minutes, in which a run must still be able to stop; the model and torch are left as they were.
    """
    token = _BETWEEN_PASSES.set(check)
    try:
        yield
    finally:
        _BETWEEN_PASSES.reset(token)


def between_passes() -> None:
    """What every loop over forward passes calls before each."""
    _BETWEEN_PASSES.get()()


class Reader:
    """Reads rows of tokens with a model and tells what their targets cost, as many rows at a time as memory allows.

    A GPT is read through Inference, from the weights it has when the reader is made; any other model is called.

    Args:
        model: model(tokens_BT, segments_BT or None) -> logits_BTV, causal, on `device`. If it has `hidden` and `head`,
            few logits exist at a time.
        device: where the model is.
        precision: number format of the forward pass.
        batch_size: rows in one forward pass; from the first one that does not fit, half as many.
        separator: count the documents of a row by this token and tell the model (segments_BT: how many stand at or
            before a position); None for models that attend to the whole row.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device | str,
        precision: Precision,
        batch_size: int,
        separator: int | None,
    ) -> None:
        self.batch_size = batch_size
        self._model, self._device, self._precision, self._separator = model, torch.device(device), precision, separator
        self._forward: nn.Module | Inference = model
        if isinstance(model, GPT):
            # Inference lowers by itself; autocast would only get in its way.
            self._precision = "fp32"
            with measuring(model, device=device, precision=self._precision):
                self._forward = Inference(model, precision=precision)

    def nats(self, inputs: Sequence[np.ndarray], targets: Sequence[np.ndarray], *, fill: int = 0) -> np.ndarray:
        """The cost of every target that is not IGNORED, in nats, row by row, as float64 of shape (N,).

        Rows may differ in length; `fill` is put behind the short ones. The model is in scoring state meanwhile and in
        its own again afterwards.

        Raises:
            ResourceError: not even one row fits into memory.
        """
        pieces, done = [], 0
        while done < len(inputs):
            between_passes()
            some = slice(done, done + self.batch_size)
            try:
                # Entered anew for each pass, so that the caller never runs in scoring state between two.
                with measuring(self._model, device=self._device, precision=self._precision):
                    pieces.append(
                        target_nats(
                            self._forward,
                            pad_rows(inputs[some], fill),
                            pad_rows(targets[some], IGNORED),
                            device=self._device,
                            separator=self._separator,
                        )
                    )
                done = some.stop
                continue
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            # Outside the handler, whose traceback would keep the activations alive.
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            if self.batch_size == 1:
                raise ResourceError(
                    f"scoring one window of {len(inputs[done])} tokens does not fit in memory: {reason}"
                )
            self.batch_size //= 2
        return np.concatenate(pieces) if pieces else np.zeros(0)


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
    model: nn.Module | Inference,
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
    hidden, head = getattr(model, "hidden", None), getattr(model, "head", None)
    if not (callable(hidden) and callable(head)):
        assert isinstance(model, nn.Module), model
        return _as_float64(_cross_entropy(_rows(model(tokens_BT, segments_BT), wanted_BT), targets_N))
    x_ND = _rows(hidden(tokens_BT, segments_BT), wanted_BT)
    pieces = [_cross_entropy(logits_NV, targets_N[some]) for some, logits_NV in chunked_logits(head, x_ND)]
    return _as_float64(torch.cat([targets_N.new_empty(0, dtype=torch.float32), *pieces]))


def chunked_logits(head: Callable[[Tensor], Tensor], x_ND: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield (which of the N, their logits [., V]), few enough at a time; use up each before asking for the next."""
    kind = x_ND.device.type
    most, most_rows = _LOGITS.get(kind, _LOGITS_ELSEWHERE), _ROWS.get(kind, len(x_ND))
    done, chunk = 0, _FIRST_ROWS
    while done < len(x_ND):
        some = slice(done, done + chunk)
        logits_NV = head(x_ND[some])
        yield some, logits_NV
        done, chunk = done + chunk, max(_FIRST_ROWS, min(most_rows, most // logits_NV.shape[-1]))


def _rows(x_BTD: Tensor, wanted_BT: np.ndarray) -> Tensor:
    """The wanted positions, [N, D]; without a copy where that is all of them."""
    if wanted_BT.all():
        return x_BTD.flatten(0, 1)
    return x_BTD[torch.from_numpy(wanted_BT).to(x_BTD.device)]


def _cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="none")


def _as_float64(nats_N: Tensor) -> np.ndarray:
    # Widened on the CPU: not every accelerator has float64.
    return nats_N.cpu().double().numpy()
