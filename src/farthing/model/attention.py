"""Causal self-attention: multi-head or grouped-query, through torch's fused kernel or explicit matrix products.

Shapes: B batch, T new positions, S positions attended to (S = T without a cache), D model width, H query heads,
G key/value heads, R = H / G query heads to a key/value head, K width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farthing.model.cache import KeyValueCache
from farthing.model.linear import Linear
from farthing.model.norm import Normalize
from farthing.model.position import rotate
from farthing.recipe.model import Model

AttentionPath = Literal["sdpa", "math"]


@dataclass(frozen=True)
class Surroundings:
    """What a forward pass works out once for all blocks."""

    rotations_2T1K: Tensor | None
    """RoPE's cosines and sines"""
    visible_B1TS: Tensor | None
    """which positions each position sees; None: every one up to itself"""
    cache: KeyValueCache | None


class Attention(nn.Module):
    """Causal self-attention (Vaswani et al. 2017) with the slots of recipe.model.Attention.

    Query, key and value are three matrices, not one: Muon orthogonalises a matrix as a whole, and a fused one would
    tie the three together (and with grouped-query heads, weigh them unevenly). Measured cost of not fusing, a whole
    forward and backward pass, d_model 384, 16 x 128 tokens, one core: none in bf16, 1 % in fp32.
    """

    def __init__(self, section: Model, *, layer: int, path: AttentionPath) -> None:
        super().__init__()
        self.layer, self.path = layer, path
        self.n_head, self.kv_heads, self.head_dim = section.n_head, section.kv_heads, section.head_dim
        self.dropout = section.dropout
        width, kv_width = section.d_model, section.kv_heads * section.head_dim
        self.query = Linear(width, width, bias=section.bias)
        self.key = Linear(width, kv_width, bias=section.bias)
        self.value = Linear(width, kv_width, bias=section.bias)
        self.gate = Linear(width, section.n_head, bias=section.bias) if section.attention.gate == "head" else None
        self.query_norm = self.key_norm = None
        if (kind := section.attention.qk_norm) != "none":
            self.query_norm = Normalize(kind, section.head_dim, eps=section.norm.eps, bias=section.bias)
            self.key_norm = Normalize(kind, section.head_dim, eps=section.norm.eps, bias=section.bias)
        self.output = Linear(width, width, bias=section.bias)

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
        attend = fused_attention if self.path == "sdpa" else explicit_attention
        dropout = self.dropout if self.training else 0.0
        y_BTHK = attend(q_BHTK, k_BGSK, v_BGSK, around.visible_B1TS, dropout=dropout).transpose(1, 2)

        if self.gate is not None:
            y_BTHK = y_BTHK * torch.sigmoid(self.gate(x_BTD)).unsqueeze(-1)
        projected: Tensor = self.output(y_BTHK.reshape(batch, length, width))
        return projected


def fused_attention(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, visible_B1TS: Tensor | None, *, dropout: float
) -> Tensor:
    """Attention through torch's fused kernels; returns [B, H, T, K].

    Without `visible`, the last of the S positions is the last of the T: each sees itself and all before.
    """
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
    """The same function as two matrix products with an fp32 softmax between; returns [B, H, T, K]."""
    (batch, heads, length, width), (groups, seen) = q_BHTK.shape, k_BGSK.shape[1:3]
    # The query heads of a group share its keys: side by side they are one product of R T rows.
    q_BGrK = (q_BHTK * width**-0.5).reshape(batch, groups, -1, width)
    scores_BHTS = (q_BGrK @ k_BGSK.transpose(2, 3)).view(batch, heads, length, seen)
    if visible_B1TS is None:
        visible_B1TS = _causal(length, seen, q_BHTK.device)
    scores_BHTS = torch.where(visible_B1TS, scores_BHTS.float(), -torch.inf)
    weights_BHTS = F.dropout(scores_BHTS.softmax(-1), dropout).to(v_BGSK.dtype)
    return (weights_BHTS.view(batch, groups, -1, seen) @ v_BGSK).view(batch, heads, length, width)


def visibility(segments_BT: Tensor, segments_BS: Tensor) -> Tensor:
    """Block-diagonal causal mask [B, 1, T, S]: position t sees s if s is not later and of the same document."""
    same_BTS = segments_BT.unsqueeze(2) == segments_BS.unsqueeze(1)
    return (same_BTS & _causal(segments_BT.shape[1], segments_BS.shape[1], segments_BT.device)).unsqueeze(1)


def _causal(length: int, seen: int, device: torch.device) -> Tensor:
    return torch.ones(length, seen, dtype=torch.bool, device=device).tril(seen - length)
