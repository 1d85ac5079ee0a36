"""GPT: one decoder-only transformer whose slots are chosen by a recipe's [model] section.

Shapes: B batch, T time, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from farthing.model import documents
from farthing.model.attention import Attention, AttentionPath, Surroundings, visibility
from farthing.model.cache import KeyValueCache
from farthing.model.cost import count_parameters
from farthing.model.init import initialize
from farthing.model.linear import Embedding, Linear, WeightGradient
from farthing.model.mlp import Mlp
from farthing.model.norm import build_norm
from farthing.model.position import rotations
from farthing.model.roles import Role, role_of
from farthing.recipe.model import LearnedPosition, Model, Rope

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class Block(nn.Module):
    """Attention, then the feed-forward block, each a branch of the residual stream."""

    def __init__(
        self, section: Model, *, layer: int, path: AttentionPath, weight_gradient: WeightGradient = "strided"
    ) -> None:
        super().__init__()
        self.pre, self.dropout = section.norm.placement == "pre", section.dropout
        self.attention_norm = build_norm(section.norm, section.d_model, bias=section.bias)
        self.attention = Attention(section, layer=layer, path=path, weight_gradient=weight_gradient)
        self.attention_scale = _layer_scale(section)
        self.mlp_norm = build_norm(section.norm, section.d_model, bias=section.bias)
        self.mlp = Mlp(section, weight_gradient=weight_gradient)
        self.mlp_scale = _layer_scale(section)

    def forward(self, x_BTD: Tensor, around: Surroundings) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        if self.pre:
            x_BTD = x_BTD + self._scaled(
                self.attention(_lowered(self.attention_norm(x_BTD)), around), self.attention_scale
            )
            return x_BTD + self._scaled(self.mlp(_lowered(self.mlp_norm(x_BTD))), self.mlp_scale)
        attended_BTD = self.attention(_lowered(x_BTD), around)
        x_BTD = self.attention_norm(x_BTD + self._scaled(attended_BTD, self.attention_scale))
        y_BTD: Tensor = self.mlp_norm(x_BTD + self._scaled(self.mlp(_lowered(x_BTD)), self.mlp_scale))
        return y_BTD

    def _scaled(self, branch_BTD: Tensor, scale_D: Tensor | None) -> Tensor:
        branch_BTD = F.dropout(branch_BTD, self.dropout, self.training)
        return branch_BTD if scale_D is None else branch_BTD * scale_D


class GPT(nn.Module):
    """A decoder-only transformer (Radford et al. 2019) with the slots of recipe.model.Model.

    Parameters are NaN until they are initialised (build_model) or loaded. The state dictionary holds each parameter
    once, under its plain name; a tied head has none of its own.

    Args:
        section: the recipe's [model].
        vocab_size: tokens in the vocabulary.
        attention: sdpa: torch's fused kernels; math: explicit matrix products. The same function.
        weight_gradient: how the gradients of weights are multiplied below fp32. The same function.
    """

    def __init__(
        self,
        section: Model,
        vocab_size: int,
        *,
        attention: AttentionPath = "sdpa",
        weight_gradient: WeightGradient = "strided",
    ) -> None:
        super().__init__()
        if vocab_size < 1:
            raise ValueError(f"vocab_size={vocab_size}: a model needs at least one token")
        self.section, self.vocab_size, self.attention_path = section, vocab_size, attention
        self.blockwise = False
        """whether training keeps documents apart block by block, with attention "sdpa"; see documents.py"""
        learned = isinstance(section.position, LearnedPosition)
        self.embed = Embedding(vocab_size, section.d_model)
        self.position = Embedding(section.context_length, section.d_model) if learned else None
        self.blocks = nn.ModuleList(
            Block(section, layer=layer, path=attention, weight_gradient=weight_gradient)
            for layer in range(section.n_layer)
        )
        pre = section.norm.placement == "pre"
        self.norm = build_norm(section.norm, section.d_model, bias=section.bias) if pre else None
        self.unembed = None if section.tie_embeddings else Linear(section.d_model, vocab_size, bias=False)

    def forward(
        self, tokens_BT: Tensor, segments_BT: Tensor | None = None, *, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Logits [B, T, V] of each position's next token; see hidden() for the arguments and errors."""
        return self.head(self.hidden(tokens_BT, segments_BT, cache=cache))

    def hidden(
        self, tokens_BT: Tensor, segments_BT: Tensor | None = None, *, cache: KeyValueCache | None = None
    ) -> Tensor:
        """The residual stream as the head sees it, [B, T, D]: head(hidden(tokens)) is forward(tokens).

        Args:
            tokens_BT: token numbers, int64.
            segments_BT: with attention.scope = "document", a number for each position, equal within a document;
                without it, the window is taken for one document.
            cache: holds the positions before these; they are added to it.

        Raises:
            ValueError: there are more positions than the context length.
        """
        section, (_, length) = self.section, tokens_BT.shape
        start = 0 if cache is None else cache.length
        assert cache is None or cache.gap is None, "rows of several lengths go on in Inference only"
        if start + length > section.context_length:
            raise ValueError(f"{start + length} positions do not fit into context_length={section.context_length}")
        x_BTD: Tensor = self.embed(tokens_BT)
        if self.position is not None:
            x_BTD = x_BTD + self.position.weight[start : start + length]
        x_BTD = F.dropout(x_BTD, section.dropout, self.training)
        around = self._surroundings(start, length, tokens_BT.device, segments_BT, cache)
        for block in self.blocks:
            x_BTD = block(x_BTD, around)
        if cache is not None:
            cache.advance(length)
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def head(self, x_BTD: Tensor) -> Tensor:
        """Logits [..., V] of the residual stream [..., D]; in fp32 where a soft-cap bounds them (Gemma 2, 2024)."""
        logits_BTV = F.linear(x_BTD, self.embed.weight if self.unembed is None else self.unembed.weight)
        if (cap := self.section.logit_softcap) is None:
            return logits_BTV
        return cap * torch.tanh(logits_BTV.float() / cap)

    def head_weights(self) -> tuple[Tensor, Tensor]:
        """The output head's parameter [V, D], and the same in the format in which autocast would compute."""
        head = self.embed if self.unembed is None else self.unembed
        return head.weight, head.low.of(head.weight)

    def roles(self) -> dict[str, Role]:
        """The role of every parameter by its name, each parameter once.

        Raises:
            ValueError: a parameter has no role.
        """
        return {name: role_of(name, parameter.ndim) for name, parameter in self.named_parameters()}

    def _surroundings(
        self, start: int, length: int, device: torch.device, segments_BT: Tensor | None, cache: KeyValueCache | None
    ) -> Surroundings:
        section = self.section
        turns = None
        if isinstance(section.position, Rope):
            turns = rotations(start, length, section.head_dim, base=section.position.base, device=device)
        visible: Tensor | BlockMask | None = None
        if segments_BT is not None:
            assert section.attention.scope == "document", "segments given to a model that attends to the whole window"
            if self.blockwise and self.training and cache is None:
                visible = documents.blocks(segments_BT)
            else:
                visible = visibility(segments_BT, segments_BT if cache is None else cache.append_segments(segments_BT))
        return Surroundings(rotations_2T1K=turns, visible_B1TS=visible, cache=cache)


def build_model(
    section: Model,
    vocab_size: int,
    *,
    seed: int,
    attention: AttentionPath = "sdpa",
    weight_gradient: WeightGradient = "strided",
) -> GPT:
    """A model with initial weights, the same for the same section, vocabulary and seed on every device.

    Neither reads nor changes torch's global random state.
    """
    model = GPT(section, vocab_size, attention=attention, weight_gradient=weight_gradient)
    initialize(dict(model.named_parameters()), section, seed=seed)
    return model


def model_with(
    weights: Mapping[str, Tensor],
    section: Model,
    vocab_size: int,
    *,
    attention: AttentionPath = "sdpa",
    weight_gradient: WeightGradient = "strided",
) -> GPT:
    """A model whose parameters are these very tensors, named as in its state dictionary; none is copied.

    Raises:
        RuntimeError: a name is missing or surplus, or a shape is another.
    """
    there, wanted = sum(values.numel() for values in weights.values()), count_parameters(section, vocab_size)
    if there != wanted:
        # Told before a model is built, which of a section that was made to do harm would take for ever.
        raise RuntimeError(f"{there:,} parameters where the model has {wanted:,}")
    with torch.device("meta"):
        model = GPT(section, vocab_size, attention=attention, weight_gradient=weight_gradient)
    model.load_state_dict(weights, strict=True, assign=True)
    return model


def _layer_scale(section: Model) -> nn.Parameter | None:
    return None if section.layer_scale is None else nn.Parameter(torch.full((section.d_model,), torch.nan))


def _lowered(x: Tensor) -> Tensor:
    # Autocast would cast a branch's input anew for each matrix that reads it, and keep every copy for backward.
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
