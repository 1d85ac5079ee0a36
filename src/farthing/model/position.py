"""How the model knows token order: a learned table, rotations of queries and keys, or nothing.

Shapes: T time, H heads, K width of a head.
"""

from __future__ import annotations

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
    cos_T1K, sin_T1K = rotations_2T1K.to(x_BTHK.dtype)
    first, second = x_BTHK.chunk(2, dim=-1)
    return torch.cat((first * cos_T1K - second * sin_T1K, second * cos_T1K + first * sin_T1K), dim=-1)
