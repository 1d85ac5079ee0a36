"""A config.json of transformers read key by key: what each architecture says, as a recipe's [model]."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from farthing import config
from farthing.errors import UserError, nearest
from farthing.recipe.model import Model

Table = dict[str, Any]

_GELU = {
    "gelu": "none",
    "gelu_python": "none",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
"""transformers' names for GELU, as mlp.approximate; all that are "tanh" are one function"""
_FEATURES: dict[str, tuple[Any, ...]] = {
    "sliding_window": (None,),
    "attention_multiplier": (None, 1),
    "embedding_multiplier": (None, 1),
    "residual_multiplier": (None, 1),
    "logits_scaling": (None, 1),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "quantization_config": (None,),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "scale_attn_weights": (None, True),
    "scale_attn_by_inverse_layer_idx": (None, False),
}
"""what changes a model's arithmetic and has no slot here, with the values that leave it as it is"""


class Settings:
    """A config.json; what is of the wrong kind, or asks for what there is not, is told with its key.

    Args:
        where: the file, for messages.
        table: its plain values.
    """

    def __init__(self, where: Path, table: Mapping[str, Any]) -> None:
        self.where, self.table = where, table

    def whole(self, key: str, default: int | None = None, *, most: int = 1 << 30) -> int:
        """A whole number from 1 on."""
        value = self.table.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.wrong(key, f"must be a whole number from 1 to {most:,}")
        return value

    def number(self, key: str, default: float) -> float:
        """A number above 0."""
        value = self.table.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e12:
            raise self.wrong(key, "must be a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.table.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.wrong(key, "must be true or false")
        return value

    def choice(self, key: str, default: str, known: Collection[str]) -> str:
        """One of some words."""
        value = self.table.get(key, default)
        if not isinstance(value, str) or value not in known:
            raise self.wrong(key, f"must be one of {', '.join(known)}")
        return value

    def only(self, key: str, *values: Any, default: Any = None) -> None:
        """Refuse every value of a key but these; a key that is not there has the default."""
        value = self.table.get(key, default)
        # In Python true is 1; in a config it is not.
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values):
            raise self.wrong(key, "asks for something that this model does not have")

    def rope_base(self, *, partial: float = 1) -> float:
        """RoPE's base; both spellings of transformers, the one before its version 5 and the one since.

        Args:
            partial: the share of a head that turns where the file does not say; here it must be all of it.
        """
        base, share = self.number("rope_theta", 10_000.0), self.table.get("partial_rotary_factor", partial)
        for key in ("rope_scaling", "rope_parameters"):
            table = self.table.get(key)
            if table is None:
                continue
            if not isinstance(table, dict):
                raise self.wrong(key, "must be a table")
            inner = Settings(self.where, {f"{key}.{name}": value for name, value in table.items()})
            for kind in ("rope_type", "type"):
                inner.only(f"{key}.{kind}", None, "default")
            base = inner.number(f"{key}.rope_theta", base)
            share = table.get("partial_rotary_factor", share)
        Settings(self.where, {"partial_rotary_factor": share}).only("partial_rotary_factor", 1)
        return base

    def only_known_features(self, *, but: Collection[str] = ()) -> None:
        """Refuse whatever changes the arithmetic and has no slot.

        Args:
            but: keys that this architecture has a slot for, or does not look at.

        Raises:
            UserError: names the first such key.
        """
        unused = () if self.flag("use_sliding_window", True) else ("sliding_window",)
        for key, neutral in _FEATURES.items():
            if key not in {*unused, *but}:
                self.only(key, *neutral)
        kinds = self.table.get("layer_types")
        if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
            raise self.wrong("layer_types", "asks for attention that does not see the whole window")

    def wrong(self, key: str, why: str) -> UserError:
        """The error that names a key."""
        told = str(self.table[key])[:80] if key in self.table else "not given"
        return UserError(f"{self.where}: {key} = {told}: {why}")


def section_of(settings: Settings) -> Model:
    """The recipe's [model] of the architecture that a config.json describes.

    Raises:
        UserError: it is none that can be read, or asks for something that has no slot; names the key.
    """
    kind = kind_of(settings)
    return config.build(Model, KINDS[kind](settings), source=settings.where)


def kind_of(settings: Settings) -> str:
    """The architecture: model_type.

    Raises:
        UserError: it is none that can be read.
    """
    kind = settings.table.get("model_type")
    if isinstance(kind, str) and kind in KINDS:
        return kind
    told = str(kind)[:60]
    raise UserError(
        f"{settings.where}: model_type {told!r} cannot be read{nearest(told, KINDS)} (these can: {', '.join(KINDS)})"
    )


def _shape(settings: Settings, layers: str, heads: str, width: str, context: str) -> Table:
    d_model, n_head = settings.whole(width, most=1 << 20), settings.whole(heads, most=1 << 16)
    if d_model % n_head:
        raise settings.wrong(heads, f"does not divide {width} = {d_model}")
    return {
        "n_layer": settings.whole(layers, most=1000),
        "n_head": n_head,
        "d_model": d_model,
        "context_length": settings.whole(context),
    }


def _usual_shape(settings: Settings) -> Table:
    shape = _shape(settings, "num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings")
    key_value = settings.whole("num_key_value_heads", shape["n_head"])
    if shape["n_head"] % key_value:
        raise settings.wrong("num_key_value_heads", f"does not divide num_attention_heads = {shape['n_head']}")
    width = shape["d_model"] // shape["n_head"]
    if settings.whole("head_dim", width) != width:
        raise settings.wrong("head_dim", f"must be hidden_size / num_attention_heads, here {width}")
    return {**shape, "n_kv_head": "n_head" if key_value == shape["n_head"] else key_value}


def _mlp(settings: Settings, key: str, default: str, width: int, d_model: int, *, gated: bool) -> Table:
    """The feed-forward block; its width as a recipe says it, a multiple of d_model rounded to the nearest number."""
    plain: dict[str, Table] = {name: {"kind": "gelu", "approximate": form} for name, form in _GELU.items()}
    forms: dict[str, Table] = {"silu": {"kind": "swiglu"}} if gated else {"relu2": {"kind": "relu2"}}
    forms |= {name: {**table, "kind": "geglu"} for name, table in plain.items()} if gated else plain
    return {**forms[settings.choice(key, default, forms)], "ratio": width / d_model}


def _biases(settings: Settings) -> bool:
    """Whether linear layers have biases: all of them or none."""
    bias = settings.flag("attention_bias", False)
    if settings.flag("mlp_bias", False) != bias:
        raise settings.wrong("mlp_bias", f"must be as attention_bias, which is {str(bias).lower()}")
    return bias


def _gpt2(settings: Settings) -> Table:
    settings.only_known_features()
    shape = _shape(settings, "n_layer", "n_head", "n_embd", "n_positions")
    hidden = settings.whole("n_inner", 4 * shape["d_model"])
    return {
        **shape,
        "tie_embeddings": settings.flag("tie_word_embeddings", True),
        "bias": True,
        "norm": {"kind": "layernorm", "eps": settings.number("layer_norm_epsilon", 1e-5)},
        "position": {"kind": "learned"},
        "mlp": _mlp(settings, "activation_function", "gelu_new", hidden, shape["d_model"], gated=False),
    }


def _as_llama(settings: Settings, *, gated: bool = True, act: str = "hidden_act", but: Collection[str] = ()) -> Table:
    """Llama, and what is built as it is: RMS norms, RoPE, a gated or a plain block."""
    settings.only_known_features(but=but)
    shape = _usual_shape(settings)
    hidden = settings.whole("intermediate_size")
    return {
        **shape,
        "tie_embeddings": settings.flag("tie_word_embeddings", False),
        "bias": _biases(settings),
        "norm": {"kind": "rmsnorm", "eps": settings.number("rms_norm_eps", 1e-6)},
        "position": {"kind": "rope", "base": settings.rope_base()},
        "mlp": _mlp(settings, act, "silu" if gated else "relu2", hidden, shape["d_model"], gated=gated),
    }


def _qwen3(settings: Settings) -> Table:
    return {**_as_llama(settings), "attention": {"qk_norm": "rmsnorm"}}


def _arcee(settings: Settings) -> Table:
    return _as_llama(settings, gated=False)


def _apertus(settings: Settings) -> Table:
    settings.choice("hidden_act", "xielu", ("relu2", *_GELU))
    return {**_arcee(settings), "attention": {"qk_norm": "rmsnorm"}}


def _smollm3(settings: Settings) -> Table:
    table, turned = _as_llama(settings), settings.table.get("no_rope_layers")
    if turned != [0] * table["n_layer"]:
        raise settings.wrong("no_rope_layers", "must be a 0 for each layer: positions in all layers or in none")
    return {**table, "position": {"kind": "none"}}


def _vaultgemma(settings: Settings) -> Table:
    looked_at = ("final_logit_softcapping", "sliding_window")
    table = _as_llama(settings, act="hidden_activation", but=looked_at)
    if settings.table.get("layer_types") is None:
        raise settings.wrong("layer_types", "must be full_attention for each layer")
    settings.only("query_pre_attn_scalar", table["d_model"] // table["n_head"], default=256)
    cap = None
    if settings.table.get("final_logit_softcapping", 30.0) is not None:
        cap = settings.number("final_logit_softcapping", 30.0)
    return {**table, "logit_softcap": cap, "tie_embeddings": settings.flag("tie_word_embeddings", True)}


def _with_layer_norms(settings: Settings, eps: str, *, gated: bool, partial: float = 1) -> Table:
    """RoPE with layer norms."""
    settings.only_known_features()
    shape = _usual_shape(settings)
    hidden = settings.whole("intermediate_size")
    return {
        **shape,
        "norm": {"kind": "layernorm", "eps": settings.number(eps, 1e-5)},
        "position": {"kind": "rope", "base": settings.rope_base(partial=partial)},
        "mlp": _mlp(settings, "hidden_act", "silu" if gated else "gelu", hidden, shape["d_model"], gated=gated),
    }


def _starcoder2(settings: Settings) -> Table:
    return {
        **_with_layer_norms(settings, "norm_epsilon", gated=False),
        "tie_embeddings": settings.flag("tie_word_embeddings", True),
        "bias": settings.flag("use_bias", True),
    }


def _stablelm(settings: Settings) -> Table:
    settings.only("use_qkv_bias", False, default=False)
    settings.only("use_parallel_residual", False, default=False)
    normed = settings.flag("qk_layernorm", False)
    return {
        **_with_layer_norms(settings, "layer_norm_eps", gated=True, partial=0.25),
        "tie_embeddings": settings.flag("tie_word_embeddings", False),
        "bias": False,
        "attention": {"qk_norm": "layernorm" if normed else "none"},
    }


def _persimmon(settings: Settings) -> Table:
    settings.only("qk_layernorm", True, default=True)
    return {
        **_with_layer_norms(settings, "layer_norm_eps", gated=False, partial=0.5),
        "n_kv_head": "n_head",
        "tie_embeddings": settings.flag("tie_word_embeddings", False),
        "bias": True,
        "attention": {"qk_norm": "layernorm"},
    }


def _opt(settings: Settings) -> Table:
    settings.only_known_features()
    settings.only("do_layer_norm_before", False, default=True)
    settings.only("layer_norm_elementwise_affine", True, default=True)
    shape = _shape(settings, "num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings")
    settings.only("word_embed_proj_dim", shape["d_model"], default=shape["d_model"])
    return {
        **shape,
        "tie_embeddings": settings.flag("tie_word_embeddings", True),
        "bias": settings.flag("enable_bias", True),
        "norm": {"kind": "layernorm", "placement": "post", "eps": 1e-5},
        "position": {"kind": "learned"},
        "mlp": _mlp(settings, "activation_function", "relu", settings.whole("ffn_dim"), shape["d_model"], gated=False),
    }


def _farthing(settings: Settings) -> Table:
    """What export writes where there is no stock class; its code is not needed, this being what it computes."""
    settings.only_known_features()
    shape, gated = _usual_shape(settings), settings.flag("gated_mlp", False)
    position: Table = {"kind": settings.choice("position", "rope", ("learned", "rope", "none"))}
    if position["kind"] == "rope":
        position["base"] = settings.rope_base()
    cap = None if settings.table.get("logit_softcap") is None else settings.number("logit_softcap", 1.0)
    hidden = settings.whole("intermediate_size")
    return {
        **shape,
        "tie_embeddings": settings.flag("tie_word_embeddings", True),
        "bias": settings.flag("bias", False),
        # The value that the scale began at is not told, and no longer matters.
        "layer_scale": 1.0 if settings.flag("layer_scale", False) else None,
        "logit_softcap": cap,
        "norm": {
            "kind": settings.choice("norm", "rmsnorm", ("rmsnorm", "layernorm")),
            "placement": settings.choice("norm_placement", "pre", ("pre", "post")),
            "eps": settings.number("norm_eps", 1e-5),
        },
        "position": position,
        "attention": {
            "qk_norm": settings.choice("qk_norm", "none", ("none", "rmsnorm", "layernorm")),
            "gate": "head" if settings.flag("attention_gate", False) else "none",
        },
        "mlp": _mlp(settings, "hidden_act", "silu" if gated else "gelu", hidden, shape["d_model"], gated=gated),
    }


KINDS: dict[str, Callable[[Settings], Table]] = {
    "gpt2": _gpt2,
    "llama": _as_llama,
    "qwen3": _qwen3,
    "arcee": _arcee,
    "apertus": _apertus,
    "starcoder2": _starcoder2,
    "stablelm": _stablelm,
    "persimmon": _persimmon,
    "smollm3": _smollm3,
    "vaultgemma": _vaultgemma,
    "opt": _opt,
    "farthing": _farthing,
}
"""what can be read, by the model_type of config.json"""
