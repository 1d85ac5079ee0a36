"""Linear and Embedding without torch's own initialisation, and with copies of their weights for a lower precision.

torch fills new layers from the global random state. Here a new parameter is NaN until model/init.py or a checkpoint
has written it, so that nothing can be left uninitialised unseen and nobody's random state is touched.

Shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WeightGradient = Literal["strided", "copied"]
"""how a weight's gradient dy^T x is multiplied: dy read across its rows, or transposed into a copy first"""


class LowWeight:
    """A parameter's copy in the number format that autocast asks for, cast anew only when the parameter has changed.

    Autocast alone casts each weight in every micro-batch. Whether it has changed is told by torch's version counter,
    which every operation in place raises and OptimizerSet.step raises for the optimizers that forget to.
    """

    def __init__(self) -> None:
        self._of: tuple[Tensor, int, int] | None = None
        self._copy: Tensor | None = None

    def __deepcopy__(self, memo: object) -> LowWeight:
        # Of another parameter, whose counter starts anew.
        return LowWeight()

    def of(self, weight: Tensor) -> Tensor:
        """The weight in autocast's format; the weight itself where autocast is off. Without a gradient path."""
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        if dtype == weight.dtype:
            return weight
        copy = self._copy
        if copy is None or copy.dtype != dtype or copy.device != weight.device:
            # An inference tensor could not be saved for backward by the next training step.
            with torch.inference_mode(False), torch.no_grad():
                copy = self._copy = torch.empty_like(weight, dtype=dtype)
            self._of = None
        # The parameter, its version and its place together: a parameter that was put in its place has a counter of its
        # own, and one that was given other data keeps its counter.
        known, now = self._of, (weight._version, weight.data_ptr())
        if known is None or known[0] is not weight or known[1:] != now:
            with torch.no_grad():
                copy.copy_(weight)
            self._of = (weight, *now)
        return copy

    def update(self, weight: Tensor) -> None:
        """Bring the copy up to date before anything asks for it; nothing where there is none yet."""
        if self._copy is not None:
            self.of(weight)

    @property
    def place(self) -> int:
        """Where the copy is in memory; 0 where there is none."""
        return 0 if self._copy is None else self._copy.data_ptr()


class Linear(nn.Linear):
    """y = x W^T + b, with W [out, in].

    Args:
        weight_gradient: the faster of the two differs between processors; see runtime/probes.py.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool, weight_gradient: WeightGradient = "strided") -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.weight_gradient = weight_gradient
        self.low = LowWeight()

    def reset_parameters(self) -> None:
        """Mark as not yet initialised."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(torch.nan)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]; under autocast in its format, and so returned."""
        if not torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling():
            return F.linear(x, self.weight, self.bias)
        low_OI = self.low.of(self.weight)
        y: Tensor = _LowLinear.apply(x.to(low_OI.dtype), self.weight, self.bias, low_OI, self.weight_gradient)
        return y


class Embedding(nn.Embedding):
    """A row for each token or position."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.low = LowWeight()

    def reset_parameters(self) -> None:
        """Mark as not yet initialised."""
        with torch.no_grad():
            self.weight.fill_(torch.nan)


class _LowLinear(torch.autograd.Function):
    # The products of F.linear under autocast, on a copy of the weight that outlives the micro-batch.
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, low_OI: Tensor, layout: WeightGradient
    ) -> Tensor:
        ctx.save_for_backward(x, low_OI)
        ctx.layout, ctx.biased = layout, bias_O is not None
        return F.linear(x, low_OI, None if bias_O is None else bias_O.to(low_OI.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, low_OI = ctx.saved_tensors
        dy_NO = gradients[0].reshape(-1, low_OI.shape[0])
        dx = dweight_OI = dbias_O = None
        if ctx.needs_input_grad[0]:
            dx = (dy_NO @ low_OI).view(x.shape)
        if ctx.needs_input_grad[1]:
            dy_ON = dy_NO.t().contiguous() if ctx.layout == "copied" else dy_NO.t()
            # autograd widens it to the parameter's own format.
            dweight_OI = dy_ON @ x.reshape(-1, x.shape[-1])
        if ctx.biased and ctx.needs_input_grad[2]:
            dbias_O = dy_NO.sum(0)
        return dx, dweight_OI, dbias_O, None, None
