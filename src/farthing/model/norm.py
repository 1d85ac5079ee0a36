"""Normalisation.

Shapes: B batch, T time, D width of what is normalised, N all rows together.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farthing.recipe.model import LayerNorm, RmsNorm


class Normalize(nn.Module):
    """Layer or root-mean-square normalisation over the last dimension, with a learned scale.

    Computed and returned in the scale's own precision (fp32 in training), whatever autocast says.
    (Ba et al. 2016; Zhang and Sennrich 2019.)
    """

    def __init__(self, kind: str, width: int, *, eps: float, bias: bool) -> None:
        super().__init__()
        self.kind, self.width, self.eps = kind, width, eps
        self.weight = nn.Parameter(torch.full((width,), torch.nan))
        self.bias = nn.Parameter(torch.full((width,), torch.nan)) if bias and kind == "layernorm" else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, of any shape [..., D]."""
        x = x.to(self.weight.dtype)
        if self.kind == "layernorm":
            return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)
        if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling():
            normed: Tensor = _CpuRmsNorm.apply(x, self.weight, self.eps)
            return normed
        return F.rms_norm(x, (self.width,), self.weight, self.eps)

    def extra_repr(self) -> str:
        """What `print(model)` shows of it."""
        return f"{self.kind}, {self.width}, eps={self.eps}, bias={self.bias is not None}"


class _CpuRmsNorm(torch.autograd.Function):
    # Why not F.rms_norm: on CPU it is a chain of elementwise operations that keeps two copies of its input and takes
    # 5.0 ms forward and backward where the fused layer norm takes 0.5 (torch 2.13, one core, [2048, 384]). This takes
    # 1.0 ms, keeps the input once, and equals F.rms_norm to rounding. A compiler fuses the chain, so it may have it.
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        reciprocal = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, reciprocal)
        return (x * reciprocal).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight_D, reciprocal = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        # Layer norm's backward with the mean given as zero is RMS norm's, but for the term that its mean brings:
        # dx = reciprocal * (g w - mean(g w) - x_hat mean(g w x_hat)). Add that term back.
        dx, dweight_D, _ = torch.ops.aten.native_layer_norm_backward(
            gradient,
            x,
            list(weight_D.shape),
            torch.zeros_like(reciprocal),
            reciprocal,
            weight_D,
            None,
            [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False],
        )
        if dx is not None:
            dx.addcmul_((gradient @ weight_D).unsqueeze(-1), reciprocal, value=1 / x.shape[-1])
        return dx, dweight_D, None


def build_norm(section: LayerNorm | RmsNorm, width: int, *, bias: bool) -> Normalize:
    """The normalisation that a recipe asks for."""
    return Normalize(section.kind, width, eps=section.eps, bias=bias)
