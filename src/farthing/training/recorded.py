"""A micro-batch's forward and backward pass as a CUDA graph: recorded once, then replayed without Python between.

A small model's kernels take less time than it takes to ask for them one by one. Nothing here is taken on trust: what a
recording computes is held against the plain pass before it is used, and where anything fails, training goes on plain.

Shapes: B windows of a micro-batch, T context length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from farthing.data.batches import Batch
from farthing.errors import first_line
from farthing.model.linear import Embedding, Linear
from farthing.recipe.model import Model
from farthing.recipe.optimization import NoSharpness, Objective, Sharpness

Run = Callable[[Tensor, Tensor, int], Tensor]
"""inputs [B, T], targets [B, T], tokens of the whole step -> nats; leaves gradients in the parameters"""
Upload = Callable[[Batch], tuple[Tensor, Tensor, Tensor | None]]
"""a micro-batch's inputs, targets and segments on the device"""

_WARM_UPS = 3
_TOLERANCE = 1e-3


def obstacle(
    model: Model, objective: Objective, sharpness: Sharpness, precision: str, device: torch.device
) -> str | None:
    """Why the passes of such a run cannot be replayed, or None."""
    if device.type != "cuda":
        return "only CUDA has graphs"
    if model.dropout > 0 or objective.r_drop > 0:
        return "dropout draws anew in each pass"
    if model.attention.scope == "document":
        return "the documents of a window are others in each pass"
    if not isinstance(sharpness, NoSharpness):
        return "the weights move between the passes of a step"
    if precision == "fp16":
        return "the loss's scale changes"
    return None


class Recorder:
    """Records the pass over full micro-batches after it has been taken plain once, and replays it from then on.

    A recording reads and writes fixed places: the parameters, their copies in a lower precision, gradients that stay
    from step to step. Should any of them have moved, it is made anew.

    Args:
        run: the pass.
        model: whose parameters get the gradients.
        autocast: the context of the forward passes.
        tell: takes one line if recording fails; it is not tried again.
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        *,
        autocast: Callable[[], AbstractContextManager[Any]],
        tell: Callable[[str], None],
    ) -> None:
        self._run, self._model, self._autocast, self._tell = run, model, autocast, tell
        self._seen = self._made = _Pass(0, 0, 0)
        self._recording: Recording | None = None
        self._failed = False

    def open(self, batch: Batch, micro_batch: int, upload: Upload) -> Recording | None:
        """What replays the full micro-batches of a step, its gradients at zero; None where they are to run plain."""
        wanted = _Pass(micro_batch, batch.inputs_BT.shape[1], batch.tokens)
        if self._failed or batch.windows < micro_batch:
            return None
        if self._recording is not None and self._made.windows != micro_batch:
            self._recording = None
        if self._recording is None and wanted != self._seen:
            # Plain first: that allocates, compiles and casts what a recording has to find done.
            self._seen = wanted
            return None
        if self._recording is not None and wanted != self._made:
            return None  # an epoch's last window is a short one: that step's mean is over fewer tokens
        # A recording reads the weights' copies in a lower precision, but does not know when to cast them anew.
        with self._autocast():
            for module in _cast(self._model):
                module.low.update(module.weight)
        if self._recording is None or self._recording.places != _places(self._model):
            self._recording, self._made = None, wanted
            inputs_BT, targets_BT, _ = upload(batch.rows(0, micro_batch))
            self._recording = self._recorded(inputs_BT, targets_BT, batch.tokens)
        if self._recording is not None:
            self._recording.begin()
        return self._recording

    def _recorded(self, inputs_BT: Tensor, targets_BT: Tensor, tokens: int) -> Recording | None:
        try:
            return Recording(self._run, self._model, inputs_BT, targets_BT, tokens)
        except Exception as error:
            # Whatever it was, the plain pass is the same training.
            reason = first_line(error)
        finally:
            for parameter in self._model.parameters():
                parameter.grad = None
        self._failed = True
        self._tell(f"a step's pass could not be recorded as a CUDA graph ({reason}); going on without")
        return None


class Recording:
    """One pass, recorded on the present CUDA device.

    Args:
        run: the pass.
        model: as of Recorder; its parameters have no gradients.
        inputs_BT, targets_BT: such as will be replayed.
        tokens: of the whole step.

    Raises:
        RuntimeError: it cannot be recorded, or a replay does not compute what the plain pass does.
    """

    def __init__(self, run: Run, model: nn.Module, inputs_BT: Tensor, targets_BT: Tensor, tokens: int) -> None:
        self._inputs_BT, self._targets_BT = inputs_BT.clone(), targets_BT.clone()
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        self.places = _places(model)
        # On a stream of its own, as https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs asks.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self.begin()
                nats = run(self._inputs_BT, self._targets_BT, tokens)
        torch.cuda.current_stream().wait_stream(aside)
        plain_nats, plain = nats.clone(), [gradient.clone() for gradient in self._gradients]
        self.begin()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on pinning memory meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._nats = run(self._inputs_BT, self._targets_BT, tokens)
        self.begin()
        nats = self.replay(inputs_BT, targets_BT)
        apart = _norm([one - other for one, other in zip(self._gradients, plain, strict=True)]) / _norm(plain)
        worse = max(float(apart), float((nats - plain_nats).abs() / plain_nats.abs()))
        if not worse < _TOLERANCE:
            raise RuntimeError(f"a replay is off by {worse:.2g}")

    @torch.no_grad()
    def begin(self) -> None:
        """Give the parameters this recording's gradients, at zero; replays, and plain passes, add to them."""
        torch._foreach_zero_(self._gradients)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def replay(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Take the pass on other tokens; what is returned is overwritten by the next replay."""
        self._inputs_BT.copy_(inputs_BT, non_blocking=True)
        self._targets_BT.copy_(targets_BT, non_blocking=True)
        self._graph.replay()
        return self._nats


class _Pass(NamedTuple):
    windows: int
    length: int
    tokens: int


def _places(model: nn.Module) -> tuple[int, ...]:
    """Where the tensors are that a recording reads besides its own."""
    copies = (module.low.place for module in _cast(model))
    return (*(parameter.data_ptr() for parameter in model.parameters()), *copies)


def _cast(model: nn.Module) -> Iterator[Linear | Embedding]:
    """The layers that keep copies of their weights."""
    return (module for module in model.modules() if isinstance(module, Linear | Embedding))


def _norm(tensors: list[Tensor]) -> Tensor:
    return nn.utils.get_total_norm([tensor.float() for tensor in tensors])
