"""Causal self-attention: multi-head or grouped-query, through torch's fused kernel or explicit matrix products.

Shapes: B batch, T new positions, S positions attended to (S = T without a cache), D model width, H query heads,
G key/value heads, R = H / G query heads to a key/value head, K width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farthing.model import documents, memory
from farthing.model.cache import KeyValueCache
from farthing.model.linear import Linear, WeightGradient
from farthing.model.norm import Normalize
from farthing.model.position import rotate
from farthing.recipe.model import Model

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

AttentionPath = Literal["sdpa", "math"]


@dataclass(frozen=True)
class Surroundings:
    """What a forward pass works out once for all blocks."""

    rotations_2T1K: Tensor | None
    """RoPE's cosines and sines"""
    visible_B1TS: Tensor | BlockMask | None
    """which positions each position sees; None: every one up to itself; by blocks for the fused path only"""
    cache: KeyValueCache | None


class Attention(nn.Module):
    """Causal self-attention (Vaswani et al. 2017) with the slots of recipe.model.Attention.

    Query, key and value are three matrices, not one: Muon orthogonalises a matrix as a whole, and a fused one would
    tie the three together (and with grouped-query heads, weigh them unevenly). Measured cost of not fusing, a whole
    forward and backward pass, d_model 384, 16 x 128 tokens, one core: none in bf16, 1 % in fp32.
    """

    def __init__(
        self, section: Model, *, layer: int, path: AttentionPath, weight_gradient: WeightGradient = "strided"
    ) -> None:
        super().__init__()
        self.layer, self.path = layer, path
        self.n_head, self.kv_heads, self.head_dim = section.n_head, section.kv_heads, section.head_dim
        self.dropout = section.dropout
        width, kv_width = section.d_model, section.kv_heads * section.head_dim
        linear = partial(Linear, bias=section.bias, weight_gradient=weight_gradient)
        self.query = linear(width, width)
        self.key = linear(width, kv_width)
        self.value = linear(width, kv_width)
        self.gate = linear(width, section.n_head) if section.attention.gate == "head" else None
        self.query_norm = self.key_norm = None
        if (kind := section.attention.qk_norm) != "none":
            self.query_norm = Normalize(kind, section.head_dim, eps=section.norm.eps, bias=section.bias)
            self.key_norm = Normalize(kind, section.head_dim, eps=section.norm.eps, bias=section.bias)
        self.output = linear(width, width)

    def forward(self, x_BTD: Tensor, around: Surroundings) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        batch, length, width = x_BTD.shape
        q_BTHK: Tensor = self.query(x_BTD).view(batch, length, self.n_head, self.head_dim)
        k_BTGK: Tensor = self.key(x_BTD).view(batch, length, self.kv_heads, self.head_dim)
        v_BTGK: Tensor = self.value(x_BTD).view(batch, length, self.kv_heads, self.head_dim)
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHK = self.query_norm(q_BTHK).to(v_BTGK.dtype)
            k_BTGK = self.key_norm(k_BTGK).to(v_BTGK.dtype)
        if around.rotations_2T1K is not None:
            q_BTHK, k_BTGK = rotate(q_BTHK, around.rotations_2T1K), rotate(k_BTGK, around.rotations_2T1K)

        q_BHTK, k_BGSK, v_BGSK = q_BTHK.transpose(1, 2), k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2)
        if around.cache is not None:
            k_BGSK, v_BGSK = around.cache.append(self.layer, k_BGSK, v_BGSK)
        attend: Any = fused_attention if self.path == "sdpa" else explicit_attention
        dropout = self.dropout if self.training else 0.0
        y_BTHK = attend(q_BHTK, k_BGSK, v_BGSK, around.visible_B1TS, dropout=dropout).transpose(1, 2)

        if self.gate is not None:
            y_BTHK = y_BTHK * torch.sigmoid(self.gate(x_BTD)).unsqueeze(-1)
        projected: Tensor = self.output(y_BTHK.reshape(batch, length, width))
        return projected


def fused_attention(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, visible_B1TS: Tensor | BlockMask | None, *, dropout: float
) -> Tensor:
    """Attention through torch's fused kernels; returns [B, H, T, K].

    Without `visible`, the last of the S positions is the last of the T: each sees itself and all before.
    """
    if not isinstance(visible_B1TS, Tensor | None):
        assert dropout == 0, "FlexAttention has no dropout"
        return documents.attend(q_BHTK, k_BGSK, v_BGSK, visible_B1TS)
    if dropout and q_BHTK.device.type == "cpu":
        # torch has no fused CPU kernel with dropout; its fallback does what ours does, in more time and memory.
        return explicit_attention(q_BHTK, k_BGSK, v_BGSK, visible_B1TS, dropout=dropout)
    length, seen = q_BHTK.shape[2], k_BGSK.shape[2]
    grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
    if visible_B1TS is None and length not in (1, seen):
        visible_B1TS = _causal(length, seen, q_BHTK.device)
    if grouped and visible_B1TS is not None and q_BHTK.is_cuda:
        # CUDA's only fused kernel that takes a mask does not take groups; the fallback would hold B H T S scores.
        repeats = q_BHTK.shape[1] // k_BGSK.shape[1]
        k_BGSK, v_BGSK = k_BGSK.repeat_interleave(repeats, 1), v_BGSK.repeat_interleave(repeats, 1)
        grouped = False
    return F.scaled_dot_product_attention(
        q_BHTK,
        k_BGSK,
        v_BGSK,
        attn_mask=visible_B1TS,
        dropout_p=dropout,
        is_causal=visible_B1TS is None and length == seen,
        enable_gqa=grouped,
    )


def explicit_attention(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, visible_B1TS: Tensor | None, *, dropout: float
) -> Tensor:
    """The same function as matrix products with a softmax between, whose sums are fp32; returns [B, H, T, K].

    Without `visible`, as in fused_attention. Queries go in blocks, and a block leaves out the keys that are later than
    all of it: of a long window, nearly half of the work.
    """
    with torch.autocast(q_BHTK.device.type, enabled=False):
        y: Tensor = _Explicit.apply(q_BHTK, k_BGSK, v_BGSK, visible_B1TS, dropout)
    return y


class _Explicit(torch.autograd.Function):
    # Written out because autograd's version of the same keeps the scores in fp32 and walks over them seven times more:
    # 5.7 ms against 3.8 at [16, 6, 128, 64] forward and backward in bf16, 19 against 10 at [4, 6, 512, 64],
    # on two cores of an AMD Zen 5.
    @staticmethod
    def forward(
        ctx: Any, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, visible_B1TS: Tensor | None, dropout: float
    ) -> Tensor:
        (batch, heads, length, width), (groups, seen) = q_BHTK.shape, k_BGSK.shape[1:3]
        # The query heads of a group share its keys: side by side they are one product of R T rows.
        q_NRTK = q_BHTK.reshape(batch * groups, heads // groups, length, width)
        k_NSK, v_NSK = (x.reshape(batch * groups, seen, width) for x in (k_BGSK, v_BGSK))
        y_BHTK, kept, masks = _by_position(q_BHTK), [], []
        for block in _blocks(length, seen):
            weights_NPS = _weights(q_NRTK[:, :, block.rows].flatten(1, 2), k_NSK[:, : block.seen], visible_B1TS, block)
            kept.append(weights_NPS)
            if dropout:
                weights_NPS, mask_NPS = torch.native_dropout(weights_NPS, dropout, True)
                masks.append(mask_NPS)
            y_NPK = torch.bmm(weights_NPS, v_NSK[:, : block.seen])
            y_BHTK[:, :, block.rows] = y_NPK.view(batch, heads, -1, width)
        ctx.save_for_backward(q_NRTK, k_NSK, v_NSK, *kept, *masks)
        ctx.dropout, ctx.shape = dropout, (q_BHTK.shape, k_BGSK.shape)
        return y_BHTK

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q_NRTK, k_NSK, v_NSK, *saved = ctx.saved_tensors
        q_shape, k_shape = ctx.shape
        blocks, scale = _blocks(q_NRTK.shape[2], k_NSK.shape[1]), q_shape[-1] ** -0.5
        dy_NRTK, dq_BHTK = gradients[0].reshape(q_NRTK.shape), _by_position(gradients[0])
        dk_NSK = dv_NSK = None
        # From the last block, which sees every key, backwards: what the others add are sums over its first keys.
        for number, block in reversed(list(enumerate(blocks))):
            weights_NPS, upto = saved[number], block.seen
            q_NPK, dy_NPK = (x[:, :, block.rows].flatten(1, 2) for x in (q_NRTK, dy_NRTK))
            dweights_NPS = torch.bmm(dy_NPK, v_NSK[:, :upto].transpose(1, 2))
            dropped_NPS = weights_NPS
            if ctx.dropout:
                dropped_NPS, dweights_NPS = (
                    torch.ops.aten.native_dropout_backward(x, saved[len(blocks) + number], 1 / (1 - ctx.dropout))
                    for x in (weights_NPS, dweights_NPS)
                )
            dv_NSK = _add(dv_NSK, torch.bmm(dropped_NPS.transpose(1, 2), dy_NPK))
            dscores_NPS = torch.ops.aten._softmax_backward_data(dweights_NPS, weights_NPS, -1, weights_NPS.dtype)
            dq_NPK = _scaled(dscores_NPS, k_NSK[:, :upto], scale)
            dq_BHTK[:, :, block.rows] = dq_NPK.view(dq_BHTK[:, :, block.rows].shape)
            dk_NSK = _add(dk_NSK, _scaled(dscores_NPS.transpose(1, 2), q_NPK, scale))
        assert dk_NSK is not None and dv_NSK is not None
        dk_BGSK, dv_BGSK = (_by_position(x.view(k_shape)).copy_(x.view(k_shape)) for x in (dk_NSK, dv_NSK))
        return dq_BHTK, dk_BGSK, dv_BGSK, None, None


@dataclass(frozen=True)
class _Block:
    rows: slice
    """which of the T new positions"""
    seen: int
    """how many of the S positions any of them sees"""


def _blocks(length: int, seen: int) -> list[_Block]:
    # At most four, so that the gradients of keys and values are sums of few terms in a low precision.
    size = memory.block_size(length)
    starts = range(0, length, size)
    return [_Block(slice(start, min(length, start + size)), seen - max(0, length - start - size)) for start in starts]


def _weights(q_NPK: Tensor, k_NSK: Tensor, visible_B1TS: Tensor | None, block: _Block) -> Tensor:
    """The softmax of a block's scores [N, P, S]; its P rows are the block's positions, once for each head of a group."""
    positions = block.rows.stop - block.rows.start
    seen, scale = k_NSK.shape[1], q_NPK.shape[-1] ** -0.5
    repeats = q_NPK.shape[1] // positions
    k_NKS = k_NSK.transpose(1, 2)
    if visible_B1TS is None:
        # The mask is what the product is added to, which costs nothing.
        hidden_TS = _hidden(positions, seen, q_NPK.device, q_NPK.dtype)
        return torch.baddbmm(hidden_TS.repeat(repeats, 1), q_NPK, k_NKS, alpha=scale).softmax(-1)
    scores_NPS = torch.baddbmm(q_NPK.new_zeros(()), q_NPK, k_NKS, beta=0, alpha=scale)
    hidden_B11TS = ~visible_B1TS[:, :, block.rows, :seen].unsqueeze(1)
    batch = hidden_B11TS.shape[0]
    scores_NPS.view(batch, -1, repeats, positions, seen).masked_fill_(hidden_B11TS, -torch.inf)
    return scores_NPS.softmax(-1)


def _by_position(like_BHTK: Tensor) -> Tensor:
    """An empty tensor of a shape [B, H, T, K], in memory by position: how linear layers write and read it."""
    batch, heads, length, width = like_BHTK.shape
    return like_BHTK.new_empty((batch, length, heads, width)).transpose(1, 2)


def _add(sum_NSK: Tensor | None, term_NSK: Tensor) -> Tensor:
    if sum_NSK is None:
        return term_NSK
    sum_NSK[:, : term_NSK.shape[1]] += term_NSK
    return sum_NSK


def _scaled(first_NPS: Tensor, second_NSK: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(second_NSK.new_zeros(()), first_NPS, second_NSK, beta=0, alpha=scale)


def _hidden(length: int, seen: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Minus infinity at every later position, 0 elsewhere, [T, S]; the last of the S is the last of the T."""
    return torch.full((length, seen), -torch.inf, device=device, dtype=dtype).triu(seen - length + 1)


def visibility(segments_BT: Tensor, segments_BS: Tensor) -> Tensor:
    """Block-diagonal causal mask [B, 1, T, S]: position t sees s if s is not later and of the same document."""
    same_BTS = segments_BT.unsqueeze(2) == segments_BS.unsqueeze(1)
    return (same_BTS & _causal(segments_BT.shape[1], segments_BS.shape[1], segments_BT.device)).unsqueeze(1)


def _causal(length: int, seen: int, device: torch.device) -> Tensor:
    return torch.ones(length, seen, dtype=torch.bool, device=device).tril(seen - length)
