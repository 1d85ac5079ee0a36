"""A folder that transformers loads: a stock class where one computes the same, else one readable file of code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from farthing.export import Dtype, Exportable, Written
from farthing.export.gate import check
from farthing.export.stock import Match, activation, stock_class
from farthing.export.tokenizer_files import write_generation, write_tokenizer
from farthing.recipe.model import GeGlu, Model, Rope, SwiGlu
from farthing.storage import write_bytes, write_json

CODE = Path(__file__).with_name("modeling_farthing.py")
OWN_CLASS = "FarthingForCausalLM"
_TORCH: Mapping[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def write(folder: Path, made: Exportable, *, dtype: Dtype) -> Written:
    """Fill an empty folder with config.json, model.safetensors and the tokenizer's files; a Writer.

    Weights are written and compared in fp32 whatever is asked for, since rounding would hide a mistake; rounded ones
    are compared again.
    """
    match = stock_class(made.section)
    form = OWN_CLASS if match.stock is None else match.stock.name
    lay_out(folder, made, match)
    proof = check(folder, made, form=form)
    if dtype != "fp32":
        lay_out(folder, made, match, dtype=dtype)
        proof["rounded_difference"] = check(folder, made, form=form, rounded=True)["difference"]
    return Written(form=form, notes=_notes(match), proof=proof, remote_code=match.stock is None)


def lay_out(folder: Path, made: Exportable, match: Match, *, dtype: Dtype = "fp32") -> None:
    """Write the files for a class, or with no class for our own code; nothing is compared."""
    section = made.section
    if match.stock is None:
        config, weights = own_config(section), dict(made.weights)
        write_bytes(folder / CODE.name, CODE.read_bytes())
    else:
        config, weights = match.stock.config(section), match.stock.weights(section, made.weights)
    write_tokenizer(folder, made.tokenizer, context_length=section.context_length)
    write_generation(folder, made.sample, separator=made.separator, context_length=section.context_length)
    _write_model(folder, _complete(config, made, match), weights, dtype)


def _write_model(folder: Path, config: dict[str, Any], weights: Mapping[str, Tensor], dtype: Dtype) -> None:
    kind, file, settings = _TORCH[dtype], folder / "model.safetensors", folder / "config.json"
    write_json(settings, {**config, "dtype": str(kind).removeprefix("torch.")})
    save_file({name: tensor.to(kind).contiguous() for name, tensor in weights.items()}, file, {"format": "pt"})
    # safetensors writes for the owner alone.
    file.chmod(settings.stat().st_mode)


def _complete(config: Mapping[str, Any], made: Exportable, match: Match) -> dict[str, Any]:
    """config.json but for the number format: only what the class reads, and differs from what it would make up."""
    stock = match.stock
    head: dict[str, Any] = {"architectures": [OWN_CLASS if stock is None else stock.name]}
    if stock is None:
        code = CODE.stem
        head["auto_map"] = {"AutoConfig": f"{code}.FarthingConfig", "AutoModelForCausalLM": f"{code}.{OWN_CLASS}"}
    return {
        **head,
        "model_type": "farthing" if stock is None else stock.model_type,
        "vocab_size": made.vocab_size,
        **config,
        "bos_token_id": made.separator,
        "eos_token_id": made.separator,
        # A padding token that the class makes up would be one of ours, whose row torch gives no gradient.
        **dict.fromkeys(() if stock is None else stock.token_ids),
    }


def own_config(section: Model) -> dict[str, Any]:
    """What the section decides of FarthingConfig."""
    rope = {"rope_theta": section.position.base} if isinstance(section.position, Rope) else {}
    return {
        "hidden_size": section.d_model,
        "intermediate_size": section.hidden,
        "num_hidden_layers": section.n_layer,
        "num_attention_heads": section.n_head,
        "num_key_value_heads": section.kv_heads,
        "max_position_embeddings": section.context_length,
        "tie_word_embeddings": section.tie_embeddings,
        "hidden_act": activation(section),
        "gated_mlp": isinstance(section.mlp, SwiGlu | GeGlu),
        "bias": section.bias,
        "norm": section.norm.kind,
        "norm_placement": section.norm.placement,
        "norm_eps": section.norm.eps,
        "position": section.position.kind,
        **rope,
        "qk_norm": section.attention.qk_norm,
        "attention_gate": section.attention.gate == "head",
        "layer_scale": section.layer_scale is not None,
        "logit_softcap": section.logit_softcap,
    }


def _notes(match: Match) -> tuple[str, ...]:
    if match.stock is not None:
        return match.notes
    own = (
        f"no stock class of transformers computes this model ({match.reason}), so the folder brings its code in "
        f"{CODE.name}, and loading it needs trust_remote_code=True"
    )
    return (own, *match.notes)
