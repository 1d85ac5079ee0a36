"""The slots of published architectures reproduce transformers' logits, weights copied across."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from farthing.model.gpt import GPT
from farthing.recipe.model import Model
from model.combinations import shaken, tokens

transformers = pytest.importorskip("transformers")
V = 61


def assert_same(ours: GPT, theirs: nn.Module, *, length: int) -> None:
    rows = tokens(2, length, vocab_size=V)
    with torch.no_grad():
        expected = theirs(rows).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(rows), expected, rtol=0, atol=1e-5)


def load(theirs: nn.Module, weights: dict[str, Tensor]) -> None:
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    # What may be missing is the tied head, which is the embedding.
    assert set(missing) <= {"lm_head.weight"}, missing
    assert not unexpected, unexpected
    theirs.eval()


@pytest.mark.parametrize("attention", ["sdpa", "math"])
@pytest.mark.parametrize(("layers", "heads", "width", "length"), [(1, 1, 8, 5), (2, 3, 24, 16), (3, 4, 64, 33)])
@pytest.mark.parametrize("tied", [True, False])
def test_gpt2(layers: int, heads: int, width: int, length: int, tied: bool, attention: str) -> None:
    shape = {"n_layer": layers, "n_head": heads, "d_model": width, "context_length": length}
    slots = {
        "norm": {"kind": "layernorm"},
        "position": {"kind": "learned"},
        "mlp": {"kind": "gelu", "approximate": "tanh"},
    }
    ours = shaken(
        Model.model_validate({**shape, **slots, "bias": True, "tie_embeddings": tied}),
        vocab_size=V,
        attention=attention,
    )
    config = transformers.GPT2Config(
        vocab_size=V,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    theirs = transformers.GPT2LMHeadModel(config)
    load(theirs, gpt2_weights(ours))
    assert_same(ours, theirs, length=length)


def gpt2_weights(model: GPT) -> dict[str, Tensor]:
    ours = model.state_dict()
    names = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
    linear = {"attention.output": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    out = {"transformer.wte.weight": ours["embed.weight"], "transformer.wpe.weight": ours["position.weight"]}
    for layer in range(model.section.n_layer):
        here, there = f"blocks.{layer}.", f"transformer.h.{layer}."
        for kind in ("weight", "bias"):
            out |= {f"{there}{b}.{kind}": ours[f"{here}{a}.{kind}"] for a, b in names.items()}
            out |= {f"{there}{b}.{kind}": ours[f"{here}{a}.{kind}"].t() for a, b in linear.items()}
            qkv = [ours[f"{here}attention.{name}.{kind}"] for name in ("query", "key", "value")]
            out[f"{there}attn.c_attn.{kind}"] = torch.cat(qkv).t()
    out |= {f"transformer.ln_f.{kind}": ours[f"norm.{kind}"] for kind in ("weight", "bias")}
    return out if model.unembed is None else {**out, "lm_head.weight": ours["unembed.weight"]}


SHAPES = [(1, 1, 1, 8, 7), (2, 4, 4, 32, 16), (2, 4, 2, 48, 21), (3, 6, 1, 96, 40)]


@pytest.mark.parametrize("attention", ["sdpa", "math"])
@pytest.mark.parametrize(("layers", "heads", "kv_heads", "width", "length"), SHAPES)
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_llama_and_qwen3(
    family: str, layers: int, heads: int, kv_heads: int, width: int, length: int, tied: bool, attention: str
) -> None:
    section = Model.model_validate(
        {
            "n_layer": layers,
            "n_head": heads,
            "n_kv_head": kv_heads,
            "d_model": width,
            "context_length": length,
            "tie_embeddings": tied,
            "norm": {"kind": "rmsnorm", "eps": 1e-6},
            "position": {"kind": "rope", "base": 5000.0},
            "mlp": {"kind": "swiglu", "ratio": 8 / 3, "multiple_of": 8},
            "attention": {"qk_norm": "rmsnorm" if family == "Qwen3" else "none"},
        }
    )
    ours = shaken(section, vocab_size=V, attention=attention)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=V,
        hidden_size=width,
        intermediate_size=section.hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=section.head_dim,
        max_position_embeddings=length,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=tied,
    )
    theirs = getattr(transformers, f"{family}ForCausalLM")(config)
    load(theirs, llama_weights(ours))
    assert_same(ours, theirs, length=length)


def llama_weights(model: GPT) -> dict[str, Tensor]:
    names = {
        "attention_norm": "input_layernorm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "attention.query_norm": "self_attn.q_norm",
        "attention.key_norm": "self_attn.k_norm",
        "mlp_norm": "post_attention_layernorm",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    }
    top = {
        "embed.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "unembed.weight": "lm_head.weight",
    }
    out = {}
    for name, tensor in model.state_dict().items():
        if name in top:
            out[top[name]] = tensor
        else:
            _, layer, rest = name.split(".", 2)
            out[f"model.layers.{layer}.{names[rest.removesuffix('.weight')]}.weight"] = tensor
    return out
