"""Attention within documents on a GPU, where blocks of positions that cannot see each other are left out.

torch's fused kernels take any mask, but compute what it hides; FlexAttention (Dong et al. 2024) compiles a kernel that
passes over such blocks and keeps no scores. It has no backward on a CPU.

Shapes: B batch, T positions, H query heads, G key/value heads, K width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from farthing.errors import first_line
from farthing.recipe.model import Model

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

LEAST_LENGTH = 256
"""positions of a window from which it may pay: a block of the mask has 128"""
LEAST_WIDTH = 16
"""of a head; the kernel's products take no less"""
_TOLERANCE = 0.02


def suits(section: Model, device: torch.device) -> bool:
    """Whether documents of such a model are better kept apart block by block, if FlexAttention works here."""
    return (
        device.type == "cuda"
        and section.attention.scope == "document"
        and section.dropout == 0  # it has none
        and section.context_length >= LEAST_LENGTH
        and section.head_dim >= LEAST_WIDTH
    )


@cache
def trouble(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why FlexAttention cannot be used on a device, from compiling and trying it; None if it can."""
    generator = torch.Generator().manual_seed(0)
    q_BHTK, k_BGTK, v_BGTK, dy_BHTK = (
        torch.randn(2, heads, LEAST_LENGTH, LEAST_WIDTH, generator=generator).to(device, dtype)
        for heads in (4, 2, 2, 4)
    )
    segments_BT = torch.arange(LEAST_LENGTH, device=device).div(100, rounding_mode="floor").repeat(2, 1)
    try:
        found = _with_gradients(lambda q, k, v: attend(q, k, v, blocks(segments_BT)), (q_BHTK, k_BGTK, v_BGTK), dy_BHTK)
        visible_B1TT = (segments_BT.unsqueeze(2) == segments_BT.unsqueeze(1)).tril().unsqueeze(1)
        expected = _with_gradients(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, visible_B1TT, enable_gqa=True),
            (q_BHTK, k_BGTK, v_BGTK),
            dy_BHTK,
        )
    except Exception as error:
        # Whatever the compiler trips over, masked attention is the same function.
        return first_line(error)
    for one, other in zip(found, expected, strict=True):
        if not float((one - other).float().norm() / other.float().norm()) < _TOLERANCE:
            return "what it computes is not what masked attention does"
    return None


def blocks(segments_BT: Tensor) -> BlockMask:
    """The mask of attention.visibility, as what each block of 128 positions has to look at."""
    from torch.nn.attention.flex_attention import create_block_mask

    make: Any = create_block_mask if torch.compiler.is_compiling() or segments_BT.is_cpu else _compiled_mask()
    batch, length = segments_BT.shape
    made: BlockMask = make(
        _sees(segments_BT), B=batch, H=None, Q_LEN=length, KV_LEN=length, device=str(segments_BT.device)
    )
    return made


def attend(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask: BlockMask) -> Tensor:
    """Attention through FlexAttention; returns [B, H, T, K]. Slow and without a gradient on a CPU."""
    from torch.nn.attention.flex_attention import flex_attention

    call: Any = flex_attention if torch.compiler.is_compiling() or q_BHTK.is_cpu else _compiled_attention()
    y_BHTK: Tensor = call(q_BHTK, k_BGTK, v_BGTK, block_mask=mask, enable_gqa=q_BHTK.shape[1] != k_BGTK.shape[1])
    return y_BHTK


def _sees(segments_BT: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def sees(b: Tensor, _: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Whether position t sees position s of window b: it is not later and of the same document."""
        return (t >= s) & (segments_BT[b, t] == segments_BT[b, s])

    return sees


@cache
def _compiled_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@cache
def _compiled_mask() -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask, dynamic=False)


def _with_gradients(
    function: Callable[[Tensor, Tensor, Tensor], Tensor], qkv: tuple[Tensor, ...], dy_BHTK: Tensor
) -> list[Tensor]:
    q, k, v = (x.detach().clone().requires_grad_() for x in qkv)
    y_BHTK = function(q, k, v)
    return [y_BHTK.detach(), *torch.autograd.grad(y_BHTK, (q, k, v), dy_BHTK)]
