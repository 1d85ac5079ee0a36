"""Feed-forward block: plain (GELU, squared ReLU) or gated (SwiGLU, GeGLU)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farthing.model.linear import Linear, WeightGradient
from farthing.recipe.model import GeGlu, Gelu, Model, Relu2, SwiGlu


class Mlp(nn.Module):
    """down(activation(up(x))), or with a gate down(activation(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, section: Model, *, weight_gradient: WeightGradient = "strided") -> None:
        super().__init__()
        self.section = section.mlp
        gated = isinstance(section.mlp, SwiGlu | GeGlu)
        linear = partial(Linear, bias=section.bias, weight_gradient=weight_gradient)
        self.gate = linear(section.d_model, section.hidden) if gated else None
        self.up = linear(section.d_model, section.hidden)
        self.down = linear(section.hidden, section.d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        if self.gate is None:
            hidden: Tensor = self.down(_activate(self.up(x_BTD), self.section))
            return hidden
        gated: Tensor = self.down(_activate(self.gate(x_BTD), self.section) * self.up(x_BTD))
        return gated


def _activate(x: Tensor, section: Gelu | Relu2 | SwiGlu | GeGlu) -> Tensor:
    match section:
        case Gelu() | GeGlu():
            return F.gelu(x, approximate=section.approximate)
        case Relu2():
            return F.relu(x).square() if torch.compiler.is_compiling() else _squared_relu(x)
        case SwiGlu():
            return F.silu(x)


def _squared_relu(x: Tensor) -> Tensor:
    y: Tensor = _SquaredRelu.apply(x)
    return y


class _SquaredRelu(torch.autograd.Function):
    # Two passes backward instead of four, and one tensor kept instead of two.
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rectified = F.relu(x)
        ctx.save_for_backward(rectified)
        return rectified * rectified

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (rectified,) = ctx.saved_tensors
        return (rectified * gradients[0]).mul_(2)
