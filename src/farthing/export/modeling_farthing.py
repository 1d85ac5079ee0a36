"""A small GPT whose choices (norm, positions, feed-forward block, attention) are read from config.json.

For transformers 5; load it with AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True). This file was
written by Farthing, beside the weights, because no stock class of transformers computes what this model was trained
with; it needs nothing but torch and transformers.

Shapes: B texts, T new positions, S positions attended to, D model width, H query heads, G key/value heads, K width of
a head, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast


class FarthingConfig(PreTrainedConfig):
    """The choices. Names that other models have too mean what they mean there."""

    model_type = "farthing"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 257
    hidden_size: int = 64
    intermediate_size: int = 256
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    num_key_value_heads: int = 2
    max_position_embeddings: int = 128
    tie_word_embeddings: bool = True
    use_cache: bool = True
    hidden_act: str = "gelu"
    gated_mlp: bool = False
    """down(act(gate(x)) * up(x)) instead of down(act(up(x)))"""
    bias: bool = False
    """in linear layers and layer norms"""
    norm: str = "rmsnorm"
    """or layernorm"""
    norm_placement: str = "pre"
    """pre: before each branch, and once before the head; post: after each addition of a branch"""
    norm_eps: float = 1e-5
    position: str = "rope"
    """or learned, or none"""
    rope_theta: float = 10_000.0
    qk_norm: str = "none"
    """of each head's queries and keys, before RoPE: none, rmsnorm or layernorm"""
    attention_gate: bool = False
    """each head's output is multiplied by a sigmoid gate, one number a head"""
    layer_scale: bool = False
    """each branch's output is multiplied by a learned vector"""
    logit_softcap: float | None = None
    """logits are bounded by cap * tanh(logits / cap)"""
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None


def build_norm(config: FarthingConfig, kind: str, width: int) -> nn.Module:
    """Layer or root-mean-square normalisation over the last dimension."""
    if kind == "layernorm":
        return nn.LayerNorm(width, eps=config.norm_eps, bias=config.bias)
    return nn.RMSNorm(width, eps=config.norm_eps)


def rotations(config: FarthingConfig, position_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """RoPE's cosines and sines [B, 1, T, K/2], in fp32."""
    width = config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=position_ids_BT.device) / width
    angles = position_ids_BT.float()[:, None, :, None] / config.rope_theta**exponents
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head's vector by its position's angles; the pair of coordinate i is i + K/2."""
    first, second = x_BHTK.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_BHTK.dtype)


class FarthingAttention(nn.Module):
    """Causal self-attention, multi-head or grouped-query."""

    def __init__(self, config: FarthingConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.hidden_size // config.num_attention_heads
        width, kv_width = config.hidden_size, config.num_key_value_heads * self.head_dim
        self.query = nn.Linear(width, width, bias=config.bias)
        self.key = nn.Linear(width, kv_width, bias=config.bias)
        self.value = nn.Linear(width, kv_width, bias=config.bias)
        self.gate = nn.Linear(width, config.num_attention_heads, bias=config.bias) if config.attention_gate else None
        normed = config.qk_norm != "none"
        self.query_norm = build_norm(config, config.qk_norm, self.head_dim) if normed else nn.Identity()
        self.key_norm = build_norm(config, config.qk_norm, self.head_dim) if normed else nn.Identity()
        self.output = nn.Linear(width, width, bias=config.bias)

    def forward(
        self, x_BTD: Tensor, turns: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: DynamicCache | None
    ) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BHTK = self.query_norm(self.query(x_BTD).view(heads)).transpose(1, 2)
        k_BGSK = self.key_norm(self.key(x_BTD).view(heads)).transpose(1, 2)
        v_BGSK = self.value(x_BTD).view(heads).transpose(1, 2)
        if turns is not None:
            q_BHTK, k_BGSK = rotate(q_BHTK, *turns), rotate(k_BGSK, *turns)
        if cache is not None:
            k_BGSK, v_BGSK = cache.update(k_BGSK, v_BGSK, self.layer)
        # No mask: either every position sees all before it, or there is one new position, which sees everything.
        y_BHTK = F.scaled_dot_product_attention(
            q_BHTK,
            k_BGSK,
            v_BGSK,
            attn_mask=mask,
            is_causal=mask is None and q_BHTK.shape[2] > 1,
            enable_gqa=q_BHTK.shape[1] != k_BGSK.shape[1],
        )
        y_BTHK = y_BHTK.transpose(1, 2)
        if self.gate is not None:
            y_BTHK = y_BTHK * torch.sigmoid(self.gate(x_BTD)).unsqueeze(-1)
        return self.output(y_BTHK.reshape(x_BTD.shape))


class FarthingMlp(nn.Module):
    """The feed-forward block."""

    def __init__(self, config: FarthingConfig) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.intermediate_size
        self.activation = ACT2FN[config.hidden_act]
        self.gate = nn.Linear(width, hidden, bias=config.bias) if config.gated_mlp else None
        self.up = nn.Linear(width, hidden, bias=config.bias)
        self.down = nn.Linear(hidden, width, bias=config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        if self.gate is None:
            return self.down(self.activation(self.up(x_BTD)))
        return self.down(self.activation(self.gate(x_BTD)) * self.up(x_BTD))


class FarthingBlock(nn.Module):
    """Attention, then the feed-forward block, each a branch of the residual stream."""

    def __init__(self, config: FarthingConfig, layer: int) -> None:
        super().__init__()
        self.pre = config.norm_placement == "pre"
        self.attention_norm = build_norm(config, config.norm, config.hidden_size)
        self.attention = FarthingAttention(config, layer)
        self.mlp_norm = build_norm(config, config.norm, config.hidden_size)
        self.mlp = FarthingMlp(config)
        self.attention_scale = nn.Parameter(torch.ones(config.hidden_size)) if config.layer_scale else None
        self.mlp_scale = nn.Parameter(torch.ones(config.hidden_size)) if config.layer_scale else None

    def forward(self, x_BTD: Tensor, *around: Any) -> Tensor:
        """[B, T, D] to [B, T, D]; `around` is what attention needs besides."""
        if self.pre:
            x_BTD = x_BTD + scaled(self.attention(self.attention_norm(x_BTD), *around), self.attention_scale)
            return x_BTD + scaled(self.mlp(self.mlp_norm(x_BTD)), self.mlp_scale)
        x_BTD = self.attention_norm(x_BTD + scaled(self.attention(x_BTD, *around), self.attention_scale))
        return self.mlp_norm(x_BTD + scaled(self.mlp(x_BTD), self.mlp_scale))


def scaled(branch_BTD: Tensor, scale_D: Tensor | None) -> Tensor:
    """A branch's output, times its vector where there is one."""
    return branch_BTD if scale_D is None else branch_BTD * scale_D


class FarthingForCausalLM(PreTrainedModel, GenerationMixin):
    """The model, with its head."""

    config: FarthingConfig
    config_class = FarthingConfig
    base_model_prefix = ""
    _no_split_modules = ["FarthingBlock"]
    _supports_sdpa = True
    _tied_weights_keys = {"unembed.weight": "embed.weight"}

    def __init__(self, config: FarthingConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embed: nn.Module = nn.Embedding(config.vocab_size, width)
        self.position = nn.Embedding(config.max_position_embeddings, width) if config.position == "learned" else None
        self.blocks = nn.ModuleList(FarthingBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = build_norm(config, config.norm, width) if config.norm_placement == "pre" else nn.Identity()
        self.unembed: nn.Module = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another token embedding in its place."""
        self.embed = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.unembed

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another head in its place."""
        self.unembed = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] of each position's next token; the arguments are those of every causal model.

        `logits_to_keep`: only the last so many positions, 0 for all.
        """
        x_BTD = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            before = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(before, before + x_BTD.shape[1], device=x_BTD.device).unsqueeze(0)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x_BTD,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if self.position is not None:
            x_BTD = x_BTD + self.position(position_ids)
        turns = rotations(self.config, position_ids) if self.config.position == "rope" else None
        for block in self.blocks:
            x_BTD = block(x_BTD, turns, mask, past_key_values)
        logits_BTV = self.unembed(self.norm(x_BTD)[:, -logits_to_keep:])
        if (cap := self.config.logit_softcap) is not None:
            logits_BTV = cap * torch.tanh(logits_BTV.float() / cap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits_BTV, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits_BTV, past_key_values=past_key_values)
