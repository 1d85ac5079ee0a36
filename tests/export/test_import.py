"""Folders of transformers, read as ours: the same logits, whatever class, shards and number format they have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from export.strangers import (
    CONTEXT,
    SHAPE,
    VOCABULARY,
    logits_of,
    made_by_transformers,
    ours,
    save,
    save_ours,
    section,
)
from farthing.export.foreign import read_folder
from farthing.export.stock import stock_class
from farthing.model.gpt import model_with
from model.combinations import CHOICES
from model.combinations import section as combined

pytest.importorskip("transformers")


def reopened(folder: Path) -> Any:
    found = read_folder(folder)
    return model_with(found.weights, found.section, found.tokenizer.vocab_size).eval()


CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2, exact gelu, wide, untied": (
        "gpt2",
        {"activation_function": "gelu", "n_inner": 48, "tie_word_embeddings": False},
    ),
    "llama, grouped": ("llama", {}),
    "llama, tied, biases, rope base": (
        "llama",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "llama, geglu": ("llama", {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-3}),
    "qwen3": ("qwen3", {"head_dim": 4}),
    "qwen3, tied": ("qwen3", {"head_dim": 4, "tie_word_embeddings": True}),
    "arcee": ("arcee", {}),
    "apertus": ("apertus", {"hidden_act": "relu2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "starcoder2": ("starcoder2", {}),
    "persimmon": ("persimmon", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}),
    "smollm3": ("smollm3", {"no_rope_layers": [0, 0]}),
    "vaultgemma": (
        "vaultgemma",
        {"head_dim": 4, "query_pre_attn_scalar": 4, "layer_types": ["full_attention"] * 2, "attn_logit_softcapping": None},
    ),
    "opt": (
        "opt",
        {"ffn_dim": 40, "activation_function": "gelu", "do_layer_norm_before": False, "word_embed_proj_dim": 16},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_what_transformers_saves_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    kind, settings = CLASSES[name]
    theirs = made_by_transformers(kind, **settings)
    mine = reopened(save(theirs, tmp_path / "model"))
    expected = logits_of(theirs)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(logits_of(mine), expected, atol=1e-4, rtol=1e-4)


def test_shards_in_bf16_with_a_padded_vocabulary(tmp_path: Path) -> None:
    theirs = made_by_transformers("llama", vocab_size=VOCABULARY + 11).to(torch.bfloat16)
    folder = save(theirs, tmp_path / "model", max_shard_size="6KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    found = read_folder(folder)
    mine = model_with(found.weights, found.section, VOCABULARY).eval()
    torch.testing.assert_close(logits_of(mine), logits_of(theirs.float()), atol=1e-4, rtol=1e-4)
    assert found.notes == ("11 rows of the embedding that no token uses were left out",)
    assert all(values.dtype == torch.float32 for values in found.weights.values())


@pytest.mark.parametrize(("kind", "settings"), [("gpt2", {}), ("llama", {"tie_word_embeddings": True})])
def test_a_model_saved_without_its_head(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = made_by_transformers(kind, **settings)
    folder = save(theirs.base_model, tmp_path / "model")
    torch.testing.assert_close(logits_of(reopened(folder)), logits_of(theirs), atol=1e-4, rtol=1e-4)


SECTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "bias": True, "norm": {"kind": "layernorm"}, "position": {"kind": "learned"},
        "mlp": {"kind": "gelu", "approximate": "tanh"},
    },
    "gpt2 without biases or positions, untied": {
        "norm": {"kind": "layernorm", "eps": 1e-3}, "position": {"kind": "none"}, "mlp": {"kind": "relu2", "ratio": 3},
        "tie_embeddings": False,
    },
    "llama": {"mlp": {"kind": "swiglu", "ratio": 8 / 3, "multiple_of": 8}, "n_kv_head": 2, "tie_embeddings": False},
    "llama with layer scale": {"mlp": {"kind": "geglu"}, "layer_scale": 0.5, "bias": True},
    "qwen3": {"mlp": {"kind": "swiglu"}, "attention": {"qk_norm": "rmsnorm"}, "position": {"kind": "rope", "base": 500}},
    "arcee": {"mlp": {"kind": "relu2"}, "n_kv_head": 1},
    "apertus": {"mlp": {"kind": "gelu"}, "attention": {"qk_norm": "rmsnorm"}},
    "starcoder2": {"mlp": {"kind": "gelu"}, "norm": {"kind": "layernorm"}, "bias": True},
    "starcoder2 without biases": {"mlp": {"kind": "gelu"}, "norm": {"kind": "layernorm"}},
    "stablelm": {"mlp": {"kind": "swiglu"}, "norm": {"kind": "layernorm"}, "attention": {"qk_norm": "layernorm"}},
    "persimmon": {"mlp": {"kind": "gelu"}, "norm": {"kind": "layernorm"}, "attention": {"qk_norm": "layernorm"}},
    "smollm3": {"mlp": {"kind": "swiglu"}, "position": {"kind": "none"}},
    "vaultgemma": {"mlp": {"kind": "swiglu"}, "logit_softcap": 3.0},
    "vaultgemma, untied": {"mlp": {"kind": "geglu"}, "logit_softcap": 3.0, "tie_embeddings": False},
    "opt": {
        "mlp": {"kind": "gelu"}, "norm": {"kind": "layernorm", "placement": "post"}, "position": {"kind": "learned"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SECTIONS)
def test_what_export_writes_comes_back_with_the_same_logits(name: str, tmp_path: Path) -> None:
    mine = ours(section(**SECTIONS[name]))
    matched = stock_class(mine.section).stock
    assert matched is not None and matched.model_type == name.split()[0].rstrip(",")
    back = reopened(save_ours(mine, tmp_path / "model"))
    torch.testing.assert_close(logits_of(back), logits_of(mine), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("choice", CHOICES, ids=range(len(CHOICES)))
def test_whatever_the_slots_an_export_can_be_opened(choice: dict[str, object], tmp_path: Path) -> None:
    mine = ours(combined(choice, context_length=CONTEXT))
    # A model that learned from one document at a time computes the same on one document.
    back = reopened(save_ours(mine, tmp_path / "model"))
    torch.testing.assert_close(logits_of(back), logits_of(mine), atol=1e-5, rtol=1e-5)


def test_a_model_without_a_stock_class_needs_none_of_the_folders_code(tmp_path: Path) -> None:
    changes = {
        "mlp": {"kind": "relu2", "ratio": 3.3},
        "attention": {"qk_norm": "layernorm", "gate": "head"},
        "norm": {"kind": "rmsnorm", "placement": "post"},
        "layer_scale": 0.3,
        "logit_softcap": 5.0,
        "n_kv_head": 2,
        "tie_embeddings": False,
    }
    mine = ours(section(**changes))
    assert stock_class(mine.section).stock is None
    folder = save_ours(mine, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "modeling_evil.py").write_text("raise RuntimeError('this must not run')", "utf-8")
    torch.testing.assert_close(logits_of(reopened(folder)), logits_of(mine), atol=0, rtol=0)


def test_the_settings_that_no_logit_shows_come_back_too(tmp_path: Path) -> None:
    wanted = section(**SECTIONS["llama"])
    found = read_folder(save_ours(ours(wanted), tmp_path / "model")).section
    assert found.context_length == SHAPE["context_length"]
    assert found.kv_heads == 2 and not found.tie_embeddings and found.hidden == wanted.hidden
