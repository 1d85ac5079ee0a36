"""Which stock class of transformers computes what a [model] section computes, and the weights as that class names them.

Shapes: V vocabulary, D model width, H query heads, K width of a head, P positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farthing.export.renaming import Weights, fused, with_biases, with_positions, without_layer_scale
from farthing.recipe.model import GeGlu, Gelu, Model, Relu2, Rope, SwiGlu

ONE_DOCUMENT = (
    "attention.scope is document: the model has learned from one document at a time, so give it one at a time; "
    "transformers does not look for the separator"
)


def activation(section: Model) -> str:
    """The feed-forward block's activation, as transformers names it."""
    match section.mlp:
        case Gelu() | GeGlu():
            return "gelu" if section.mlp.approximate == "none" else "gelu_pytorch_tanh"
        case Relu2():
            return "relu2"
        case SwiGlu():
            return "silu"


def slots(section: Model) -> dict[str, str]:
    """What a class must be able to do, slot by slot, in words."""
    return {
        "norm": f"{section.norm.kind} {'before' if section.norm.placement == 'pre' else 'after'} each branch",
        "position": {"learned": "learned positions", "rope": "rotary positions", "none": "no positions"}[
            section.position.kind
        ],
        "mlp": "a gated block" if isinstance(section.mlp, SwiGlu | GeGlu) else "a plain block",
        "qk_norm": f"{section.attention.qk_norm} of queries and keys".replace("none", "no norm"),
        "bias": "biases" if section.bias else "no biases",
        "heads": "one key head a query head" if section.kv_heads == section.n_head else "grouped heads",
        "softcap": "no soft-cap" if section.logit_softcap is None else "a soft-cap on logits",
        "gate": "no output gate" if section.attention.gate == "none" else "an output gate in attention",
        "eps": "eps 1e-5" if section.norm.eps == 1e-5 else "an eps of its own",
    }


_EVERYWHERE = {
    "qk_norm": {"no norm of queries and keys"},
    "bias": {"biases", "no biases"},
    "heads": {"one key head a query head", "grouped heads"},
    "softcap": {"no soft-cap"},
    "gate": {"no output gate"},
    "eps": {"eps 1e-5", "an eps of its own"},
}


@dataclass(frozen=True)
class Stock:
    """A class of transformers.

    Args:
        name: the class.
        model_type: its name in config.json.
        takes: the words of `slots` that it can do; a slot that is not named takes what nearly all classes do.
        names: our modules by theirs; `blocks` is how theirs begin, with the number of the block for `{}`.
        config: its values for a section, without vocabulary and special tokens.
        adapt: changes weights that bear their names already, where a name is not enough.
        biased: our modules that always have a bias there; it is zero where we have none.
        token_ids: special tokens that this class would make up, and must be told that there is none.
    """

    name: str
    model_type: str
    takes: Mapping[str, set[str]]
    names: Mapping[str, str]
    config: Callable[[Model], dict[str, Any]]
    adapt: Callable[[Model, Weights], Weights] = lambda section, weights: weights
    biased: tuple[str, ...] = ()
    token_ids: tuple[str, ...] = ()

    def lacks(self, section: Model) -> list[str]:
        """What of the section this class cannot do, in words."""
        takes = {**_EVERYWHERE, **self.takes}
        return [words for slot, words in slots(section).items() if words not in takes[slot]]

    def weights(self, section: Model, ours: Mapping[str, Tensor]) -> Weights:
        """The state dictionary of this class for a model whose state dictionary is `ours`; ours is not changed."""
        plain = with_biases(without_layer_scale(ours), self.biased)
        return self.adapt(section, {self._name(name): tensor for name, tensor in plain.items()})

    def _name(self, name: str) -> str:
        module, _, leaf = name.rpartition(".")
        if not module.startswith("blocks."):
            return f"{self.names[module]}.{leaf}"
        _, number, inner = module.split(".", 2)
        return f"{self.names['blocks'].format(number)}.{self.names[inner]}.{leaf}"


@dataclass(frozen=True)
class Match:
    """The stock class for a section, or why there is none.

    Args:
        stock: the class, None if none computes the same.
        reason: why there is none, a clause; empty if there is one.
        notes: what a user of the class has to know, a sentence each.
    """

    stock: Stock | None
    reason: str = ""
    notes: tuple[str, ...] = ()


def stock_class(section: Model) -> Match:
    """The first class of STOCK whose arithmetic equals the model's."""
    notes = (ONE_DOCUMENT,) if section.attention.scope == "document" else ()
    for stock in STOCK:
        if not stock.lacks(section):
            return Match(stock, notes=notes)
    nearest = min(STOCK, key=lambda stock: len(stock.lacks(section)))
    return Match(None, f"the nearest, {nearest.name}, cannot do: {', '.join(nearest.lacks(section))}", notes)


def plan_warnings(section: Model) -> list[str]:
    """What to know before such a model is trained: whether others will need code of ours to load it."""
    match = stock_class(section)
    if match.stock is not None:
        return []
    return [
        f"no stock class of transformers computes this model ({match.reason}): its export will bring code of its own"
    ]


_PROJECTIONS = ("attention.query", "attention.key", "attention.value", "attention.output", "mlp.up", "mlp.down")
_NORMS = ("attention_norm", "mlp_norm", "norm")

_LLAMA = {
    "embed": "model.embed_tokens", "norm": "model.norm", "unembed": "lm_head", "blocks": "model.layers.{}",
    "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj", "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm",
    "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj",
}  # fmt: skip
_GPT2 = {
    "embed": "transformer.wte", "position": "transformer.wpe", "norm": "transformer.ln_f", "unembed": "lm_head",
    "blocks": "transformer.h.{}", "attention_norm": "ln_1", "mlp_norm": "ln_2",
    "attention.query": "attn.q", "attention.key": "attn.k", "attention.value": "attn.v",
    "attention.output": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
}  # fmt: skip
_OPT = {
    "embed": "model.decoder.embed_tokens", "position": "model.decoder.embed_positions", "unembed": "lm_head",
    "blocks": "model.decoder.layers.{}", "attention_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm",
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj", "attention.output": "self_attn.out_proj", "mlp.up": "fc1", "mlp.down": "fc2",
}  # fmt: skip
_PERSIMMON = {
    **_LLAMA, "norm": "model.final_layernorm", "attention.output": "self_attn.dense",
    "attention.query_norm": "self_attn.q_layernorm", "attention.key_norm": "self_attn.k_layernorm",
    "mlp.up": "mlp.dense_h_to_4h", "mlp.down": "mlp.dense_4h_to_h",
}  # fmt: skip


def _shape(section: Model) -> dict[str, Any]:
    """What most classes call the same."""
    return {
        "hidden_size": section.d_model,
        "intermediate_size": section.hidden,
        "num_hidden_layers": section.n_layer,
        "num_attention_heads": section.n_head,
        "max_position_embeddings": section.context_length,
        "tie_word_embeddings": section.tie_embeddings,
    }


def _rope(section: Model, **values: Any) -> dict[str, Any]:
    assert isinstance(section.position, Rope)
    return {"rope_parameters": {"rope_type": "default", "rope_theta": section.position.base, **values}}


def _rms(section: Model) -> dict[str, Any]:
    """Of the classes that are built as Llama is."""
    return {
        **_shape(section),
        "num_key_value_heads": section.kv_heads,
        "hidden_act": activation(section),
        "rms_norm_eps": section.norm.eps,
    }


def _llama_config(section: Model) -> dict[str, Any]:
    return {**_rms(section), **_rope(section), "attention_bias": section.bias, "mlp_bias": section.bias}


def _apertus_config(section: Model) -> dict[str, Any]:
    return {**_rms(section), **_rope(section)}


def _qwen3_config(section: Model) -> dict[str, Any]:
    return {**_rms(section), **_rope(section), "head_dim": section.head_dim}


def _smollm3_config(section: Model) -> dict[str, Any]:
    biases = {"attention_bias": section.bias, "mlp_bias": section.bias}
    return {**_rms(section), **biases, "no_rope_layers": [0] * section.n_layer}


def _vaultgemma_config(section: Model) -> dict[str, Any]:
    values = {**_rms(section), **_rope(section), "head_dim": section.head_dim}
    return {
        **{name: value for name, value in values.items() if name != "hidden_act"},
        "hidden_activation": activation(section),
        "query_pre_attn_scalar": section.head_dim,
        "layer_types": ["full_attention"] * section.n_layer,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": section.logit_softcap,
    }


def _vaultgemma_weights(section: Model, weights: Weights) -> Weights:
    # Gemmas multiply embeddings by sqrt(D), so ours are divided by it; where the head has the same weights, the last
    # norm's scale makes up for it. Their norms multiply by 1 + weight.
    root = section.d_model**0.5
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] / root
    if section.tie_embeddings:
        weights["model.norm.weight"] = weights["model.norm.weight"] * root
    return {name: tensor - 1 if "norm." in name else tensor for name, tensor in weights.items()}


def _starcoder2_config(section: Model) -> dict[str, Any]:
    return {
        **_shape(section),
        **_rope(section),
        "num_key_value_heads": section.kv_heads,
        "hidden_act": activation(section),
        "norm_epsilon": section.norm.eps,
        "use_bias": section.bias,
    }


def _stablelm_config(section: Model) -> dict[str, Any]:
    return {
        **_shape(section),
        **_rope(section, partial_rotary_factor=1.0),
        "num_key_value_heads": section.kv_heads,
        "hidden_act": activation(section),
        "layer_norm_eps": section.norm.eps,
        "qk_layernorm": section.attention.qk_norm == "layernorm",
    }


def _stablelm_weights(section: Model, weights: Weights) -> Weights:
    # A scale for each head there; ours is shared.
    theirs = {}
    for name, tensor in weights.items():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            stem = name.removesuffix("_norm.weight")
            heads = section.n_head if stem.endswith("q") else section.kv_heads
            theirs.update({f"{stem}_layernorm.norms.{head}.weight": tensor.clone() for head in range(heads)})
        else:
            theirs[name] = tensor
    return theirs


def _persimmon_config(section: Model) -> dict[str, Any]:
    return {
        **_shape(section),
        **_rope(section, partial_rotary_factor=1.0),
        "hidden_act": activation(section),
        "layer_norm_eps": section.norm.eps,
        "qk_layernorm": section.attention.qk_norm == "layernorm",
    }


def _persimmon_weights(section: Model, weights: Weights) -> Weights:
    # Query, key and value of a head lie together: [H, 3, K, ...].
    def together(parts: list[Tensor]) -> Tensor:
        by_head = [part.view(section.n_head, section.head_dim, *part.shape[1:]) for part in parts]
        return torch.stack(by_head, dim=1).flatten(0, 2)

    return fused(weights, ("q_proj", "k_proj", "v_proj"), "query_key_value", together)


def _gpt2_config(section: Model) -> dict[str, Any]:
    return {
        "n_embd": section.d_model,
        "n_inner": section.hidden,
        "n_layer": section.n_layer,
        "n_head": section.n_head,
        "n_positions": section.context_length,
        "tie_word_embeddings": section.tie_embeddings,
        "activation_function": activation(section),
        "layer_norm_epsilon": section.norm.eps,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), section.dropout),
    }


def _gpt2_weights(section: Model, weights: Weights) -> Weights:
    # Linear layers are [in, out] there, and query, key and value are one.
    joined = fused(weights, ("q", "k", "v"), "c_attn", torch.cat)
    inner = tuple(f"{module}.weight" for module in ("c_attn", "c_proj", "c_fc"))
    theirs = {name: tensor.t().contiguous() if name.endswith(inner) else tensor for name, tensor in joined.items()}
    return with_positions(theirs, "transformer.wpe.weight", _table(section), unused=0)


def _opt_config(section: Model) -> dict[str, Any]:
    shape = {name: value for name, value in _shape(section).items() if name != "intermediate_size"}
    return {
        **shape,
        "ffn_dim": section.hidden,
        "activation_function": activation(section),
        "do_layer_norm_before": section.norm.placement == "pre",
        "enable_bias": section.bias,
        **dict.fromkeys(("dropout", "attention_dropout"), section.dropout),
    }


def _opt_weights(section: Model, weights: Weights) -> Weights:
    return with_positions(weights, "model.decoder.embed_positions.weight", _table(section), unused=2)


def _table(section: Model) -> tuple[int, int]:
    return section.context_length, section.d_model


def _does(norm: str, position: str, mlp: str, **others: set[str]) -> dict[str, set[str]]:
    return {"norm": {norm}, "position": {position}, "mlp": {mlp}, **others}


_RMS, _LAYER = "rmsnorm before each branch", "layernorm before each branch"
_ROTARY, _GATED, _PLAIN = "rotary positions", "a gated block", "a plain block"
_UNBIASED, _UNGROUPED = {"no biases"}, {"one key head a query head"}
_TABLE = {"learned positions", "no positions"}

STOCK: tuple[Stock, ...] = (
    Stock(
        "GPT2LMHeadModel", "gpt2",
        {"norm": {_LAYER}, "position": _TABLE, "mlp": {_PLAIN}, "heads": _UNGROUPED},
        _GPT2, _gpt2_config, _gpt2_weights, biased=(*_PROJECTIONS, *_NORMS),
    ),
    Stock("LlamaForCausalLM", "llama", _does(_RMS, _ROTARY, _GATED), _LLAMA, _llama_config),
    Stock(
        "Qwen3ForCausalLM", "qwen3",
        _does(_RMS, _ROTARY, _GATED, qk_norm={"rmsnorm of queries and keys"}, bias=_UNBIASED), _LLAMA, _qwen3_config,
    ),
    Stock("ArceeForCausalLM", "arcee", _does(_RMS, _ROTARY, _PLAIN), _LLAMA, _llama_config),
    Stock(
        "ApertusForCausalLM", "apertus",
        _does(_RMS, _ROTARY, _PLAIN, qk_norm={"rmsnorm of queries and keys"}, bias=_UNBIASED),
        {**_LLAMA, "attention_norm": "attention_layernorm", "mlp_norm": "feedforward_layernorm"},
        _apertus_config, token_ids=("pad_token_id",),
    ),
    Stock(
        "Starcoder2ForCausalLM", "starcoder2", _does(_LAYER, _ROTARY, _PLAIN),
        {**_LLAMA, "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}, _starcoder2_config, biased=_NORMS,
    ),
    Stock(
        "StableLmForCausalLM", "stablelm",
        _does(
            _LAYER, _ROTARY, _GATED,
            qk_norm={"no norm of queries and keys", "layernorm of queries and keys"}, bias=_UNBIASED,
        ),
        _LLAMA, _stablelm_config, _stablelm_weights, biased=_NORMS,
    ),
    Stock(
        "PersimmonForCausalLM", "persimmon",
        _does(_LAYER, _ROTARY, _PLAIN, qk_norm={"layernorm of queries and keys"}, heads=_UNGROUPED),
        _PERSIMMON, _persimmon_config, _persimmon_weights,
        biased=(*_PROJECTIONS, *_NORMS, "attention.query_norm", "attention.key_norm"),
    ),
    Stock(
        "SmolLM3ForCausalLM", "smollm3", _does(_RMS, "no positions", _GATED), _LLAMA, _smollm3_config,
        token_ids=("pad_token_id",),
    ),
    Stock(
        "VaultGemmaForCausalLM", "vaultgemma",
        _does(_RMS, _ROTARY, _GATED, bias=_UNBIASED, softcap={"a soft-cap on logits"}),
        {**_LLAMA, "mlp_norm": "pre_feedforward_layernorm"},
        _vaultgemma_config, _vaultgemma_weights, token_ids=("pad_token_id",),
    ),
    Stock(
        "OPTForCausalLM", "opt",
        {
            "norm": {"layernorm after each branch"}, "position": _TABLE, "mlp": {_PLAIN},
            "heads": _UNGROUPED, "eps": {"eps 1e-5"},
        },
        _OPT, _opt_config, _opt_weights, biased=_NORMS, token_ids=("pad_token_id",),
    ),
)  # fmt: skip
"""The classes, the ones that most programs know first."""
