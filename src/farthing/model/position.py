"""How the model knows token order: a learned table, rotations of queries and keys, or nothing.

Shapes: T time, H heads, K width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotations(start: int, length: int, head_dim: int, *, base: float, device: torch.device) -> Tensor:
    """Cosines and sines for positions start .. start + length - 1, in fp32, as one tensor [2, T, 1, K/2].

    Rotary position embedding (Su et al. 2021): pair i of a head turns by position * base^(-2i/K).
    Computed anew for each forward pass, so that a model carries no state that a checkpoint or a change of device
    could spoil; it is a thousandth of the pass.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    positions = torch.arange(start, start + length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, 1.0 / base**exponents)
    return torch.stack((angles.cos(), angles.sin())).unsqueeze(2)


def rotate(x_BTHK: Tensor, rotations_2T1K: Tensor) -> Tensor:
    """Turn each head's vector by its position's angle.

    The pair of coordinate i is i + K/2 (the half-split layout of GPT-NeoX and Llama), not i + 1.
    """
    rotations_2T1K = rotations_2T1K.to(x_BTHK.dtype)
    if torch.compiler.is_compiling():
        return _turned(x_BTHK, rotations_2T1K)
    turned_BTHK: Tensor = _Rotate.apply(x_BTHK, rotations_2T1K)
    return turned_BTHK


def _turned(x_BTHK: Tensor, rotations_2T1K: Tensor) -> Tensor:
    cos_T1K, sin_T1K = rotations_2T1K
    first, second = x_BTHK.chunk(2, dim=-1)
    return torch.cat((first * cos_T1K - second * sin_T1K, second * cos_T1K + first * sin_T1K), dim=-1)


class _Rotate(torch.autograd.Function):
    # The same in half the time, over whole rows and with no sum of two gradients; backward turns the other way.
    @staticmethod
    def forward(ctx: Any, x_BTHK: Tensor, rotations_2T1K: Tensor) -> Tensor:
        ctx.save_for_backward(rotations_2T1K)
        return _turned_rows(x_BTHK, *rotations_2T1K)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (rotations_2T1K,) = ctx.saved_tensors
        cos_T1K, sin_T1K = rotations_2T1K
        return _turned_rows(gradients[0], cos_T1K, -sin_T1K), None


def _turned_rows(x_BTHK: Tensor, cos_T1K: Tensor, sin_T1K: Tensor) -> Tensor:
    batch, length, heads, width = x_BTHK.shape
    first, second = x_BTHK.chunk(2, dim=-1)
    swapped_BTHK = torch.cat((second, first), dim=-1)
    # Written out for all heads: long rows are several times as fast as one broadcast for each head.
    both = (torch.cat((cos_T1K, cos_T1K), -1), torch.cat((-sin_T1K, sin_T1K), -1))
    cos_TD, sin_TD = (x.expand(length, heads, width).reshape(length, heads * width) for x in both)
    turned_BTD = torch.mul(x_BTHK.reshape(batch, length, -1), cos_TD)
    return turned_BTD.addcmul_(swapped_BTHK.view(batch, length, -1), sin_TD).view(x_BTHK.shape)
