"""One set of weights in two libraries: from Farthing's GPT with GPT-2's architecture to transformers' GPT2LMHeadModel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from shapes import Shape
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

_VECTORS = {
    "attention_norm.weight": "ln_1.weight",
    "attention_norm.bias": "ln_1.bias",
    "mlp_norm.weight": "ln_2.weight",
    "mlp_norm.bias": "ln_2.bias",
    "attention.output.bias": "attn.c_proj.bias",
    "mlp.up.bias": "mlp.c_fc.bias",
    "mlp.down.bias": "mlp.c_proj.bias",
}
# GPT-2's Conv1D holds a matrix the other way round.
_MATRICES = {
    "attention.output.weight": "attn.c_proj.weight",
    "mlp.up.weight": "mlp.c_fc.weight",
    "mlp.down.weight": "mlp.c_proj.weight",
}
_OUTSIDE = {
    "embed.weight": "wte.weight",
    "position.weight": "wpe.weight",
    "norm.weight": "ln_f.weight",
    "norm.bias": "ln_f.bias",
}


def as_gpt2(ours: Mapping[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    """Our tensors by GPT-2's names and in its layout: weights, or gradients."""
    found = {f"transformer.{theirs}": ours[mine] for mine, theirs in _OUTSIDE.items()}
    for layer in range(n_layer):
        mine, theirs = f"blocks.{layer}.", f"transformer.h.{layer}."
        found |= {theirs + name: ours[mine + own] for own, name in _VECTORS.items()}
        found |= {theirs + name: ours[mine + own].t() for own, name in _MATRICES.items()}
        for part in ("weight", "bias"):
            three = [ours[f"{mine}attention.{which}.{part}"] for which in ("query", "key", "value")]
            found[f"{theirs}attn.c_attn.{part}"] = torch.cat([one.t() for one in three], -1)
    return found


def gpt2_with(ours: Mapping[str, Tensor], shape: Shape) -> GPT2LMHeadModel:
    """GPT2LMHeadModel with our weights: every parameter of it is set, and the head is tied."""
    model = GPT2LMHeadModel(GPT2Config(**shape.gpt2()))
    given = {name: tensor.detach().contiguous() for name, tensor in as_gpt2(ours, shape.n_layer).items()}
    missing, unexpected = model.load_state_dict(given, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    assert model.lm_head.weight is model.transformer.wte.weight
    return model
