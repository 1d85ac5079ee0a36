"""Feed-forward block: plain (GELU, squared ReLU) or gated (SwiGLU, GeGLU)."""

from __future__ import annotations

from functools import partial

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
            return F.relu(x).square()
        case SwiGlu():
            return F.silu(x)
