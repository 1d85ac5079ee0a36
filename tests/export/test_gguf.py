"""GGUF: what llama.cpp's own reader and transformers make of the file is the model that was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.strangers import CONTEXT, TEXT, TOKENIZER, VOCABULARY, logits_of, ours, section, tokens
from farthing.data.tokenizer import SEPARATOR, Tokenizer
from farthing.data.tokenizer_train import byte_tokenizer
from farthing.data.tokenizer_unigram import train_unigram
from farthing.errors import FarthingError, UserError
from farthing.export import Dtype, Exportable, Written
from farthing.export import gguf as format_
from farthing.model.gpt import GPT
from farthing.recipe.running import Sample

gguf = pytest.importorskip("gguf")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

GPT2: dict[str, Any] = {
    "bias": True,
    "norm": {"kind": "layernorm"},
    "position": {"kind": "learned"},
    "mlp": {"kind": "gelu", "approximate": "tanh"},
}
SWIGLU: dict[str, Any] = {"mlp": {"kind": "swiglu", "ratio": 2.5}}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "gpt2 without biases or positions, untied": (
        "gpt2",
        {**GPT2, "bias": False, "position": {"kind": "none"}, "tie_embeddings": False},
    ),
    "llama": ("llama", SWIGLU),
    "llama, grouped, untied": ("llama", {**SWIGLU, "n_kv_head": 2, "tie_embeddings": False}),
    "llama, base, eps, layer scale": (
        "llama",
        {**SWIGLU, "position": {"kind": "rope", "base": 500.0}, "norm": {"kind": "rmsnorm", "eps": 1e-3}, "layer_scale": 0.5},
    ),
    "qwen3": ("qwen3", {**SWIGLU, "attention": {"qk_norm": "rmsnorm"}}),
    "qwen3, grouped": ("qwen3", {**SWIGLU, "attention": {"qk_norm": "rmsnorm"}, "n_kv_head": 1}),
}  # fmt: skip
# Where a head has many coordinates, the two layouts of RoPE are further apart.
WIDE = {"d_model": 32, "n_head": 2}


TEXTS = (TEXT, "  two spaces,\n\ttabs 12345 ½ Zażółć 🙂", "def f(x):\n    return x  # it's", "\x01\xa0\u3000")


def exportable(model: GPT, tokenizer: str = TOKENIZER) -> Exportable:
    weights = {name: values.detach() for name, values in model.state_dict().items()}
    known = Tokenizer.from_json(tokenizer, separator=SEPARATOR)
    return Exportable(model.section, known.vocab_size, weights, known, Sample(), [TEXT], "small", 7)


def written(model: GPT, folder: Path, dtype: Dtype = "fp32") -> Written:
    return format_.write(folder, exportable(model), dtype=dtype)


def by_transformers(folder: Path, **told: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, gguf_file=format_.FILE)
    for name, value in told.items():
        setattr(config, name, value)
    settings = {"config": config} if told else {}
    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=format_.FILE, dtype=torch.float32, attn_implementation="eager", **settings
    ).eval()


UNREAD = {"gpt2": {"n_positions": CONTEXT}, "qwen3": {"head_dim": 16}}
"""what transformers has to be told of these models, as the notes of an export say"""


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_reads_it_with_the_same_logits(name: str, tmp_path: Path) -> None:
    architecture, changes = SHAPES[name]
    model = ours(section(**{**changes, **WIDE}))
    told = written(model, tmp_path)
    assert told.form == f"GGUF {architecture}"
    theirs = by_transformers(tmp_path, **UNREAD.get(architecture, {}))
    assert theirs.config.model_type == architecture
    assert [note.split("config with ")[1].split()[0] for note in told.notes[1:]] == [
        f"{key}={value}" for key, value in UNREAD.get(architecture, {}).items()
    ]
    torch.testing.assert_close(logits_of(theirs), logits_of(model), atol=1e-4, rtol=1e-4)


def test_a_gpt2_of_1024_positions_needs_nothing_said(tmp_path: Path) -> None:
    model = ours(section(**{**GPT2, "context_length": 1024}))
    assert len(written(model, tmp_path).notes) == 1
    torch.testing.assert_close(logits_of(by_transformers(tmp_path)), logits_of(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_bf16_is_the_model_rounded(architecture: str, tmp_path: Path) -> None:
    model = ours(section(**{**SHAPES[architecture][1], **WIDE}))
    told = written(model, tmp_path, "bf16")
    assert 0 < told.proof["largest_weight_difference"] < 0.01
    for name, values in model.state_dict().items():
        if values.ndim == 2 and name != "position.weight":
            values.copy_(values.to(torch.bfloat16))
    theirs = by_transformers(tmp_path, **UNREAD.get(architecture, {}))
    torch.testing.assert_close(logits_of(theirs), logits_of(model), atol=1e-4, rtol=1e-4)


def test_the_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = exportable(ours(section(**SWIGLU)))
    format_.write(tmp_path, made, dtype="fp32")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=format_.FILE)
    for text in TEXTS:
        ids = made.tokenizer.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert theirs(SEPARATOR)["input_ids"] == [made.separator]
    assert theirs.eos_token_id == theirs.bos_token_id == made.separator


@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_reads_it_with_the_same_logits_and_ids(name: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    architecture, changes = SHAPES[name]
    made = exportable(model := ours(section(**{**changes, **WIDE})))
    format_.write(tmp_path, made, dtype="fp32")
    # Keys and values in fp32, where llama.cpp would keep them in fp16.
    theirs = llama_cpp.Llama(
        str(tmp_path / format_.FILE), n_ctx=CONTEXT, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0
    )
    theirs.eval(tokens()[0].tolist())
    found = torch.tensor(np.array(theirs.scores[:CONTEXT]), dtype=torch.float32)
    # Its GELU is a table in fp16.
    close = 2e-3 if architecture == "gpt2" else 1e-5
    torch.testing.assert_close(found, logits_of(model)[0], atol=close, rtol=close)
    for text in TEXTS:
        assert theirs.tokenize(text.encode(), add_bos=False) == made.tokenizer.encode(text)


def field(reader: Any, name: str) -> Any:
    return reader.get_field(name).contents()


def test_what_llama_cpp_asks_of_the_file(tmp_path: Path) -> None:
    model = ours(section(**{**SWIGLU, **WIDE, "n_kv_head": 1}))
    written(model, tmp_path)
    reader = gguf.GGUFReader(tmp_path / format_.FILE)
    expected = {
        "general.architecture": "llama",
        "llama.context_length": CONTEXT,
        "llama.embedding_length": 32,
        "llama.block_count": 2,
        "llama.feed_forward_length": 80,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.rope.dimension_count": 16,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": VOCABULARY - 1,
    }
    assert {name: field(reader, name) for name in expected} == expected
    kinds = field(reader, "tokenizer.ggml.token_type")
    assert kinds == [1] * (VOCABULARY - 1) + [3]
    assert field(reader, "tokenizer.ggml.tokens")[-1] == SEPARATOR
    # The rows of a head in pairs (2i, 2i + 1), as ggml's rope of kind 0 turns them.
    stored = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.attn_q.weight")
    ours_DK = model.state_dict()["blocks.1.attention.query.weight"].numpy().reshape(2, 2, 8, 32)
    np.testing.assert_array_equal(stored.data.reshape(2, 8, 2, 32), ours_DK.swapaxes(1, 2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mlp": {"kind": "gelu"}}, "arcee|ArceeForCausalLM"),
        ({"mlp": {"kind": "geglu"}}, "llama has SwiGLU"),
        ({**SWIGLU, "bias": True}, "llama has no biases"),
        ({**GPT2, "mlp": {"kind": "gelu"}}, "gpt2 has GELU in its tanh form"),
        ({**GPT2, "mlp": {"kind": "relu2"}}, "gpt2 has GELU in its tanh form"),
        (
            {**GPT2, "mlp": {"kind": "gelu", "approximate": "tanh", "ratio": 3}},
            "feed-forward width of 4 d_model, here 48",
        ),
        ({**SWIGLU, "attention": {"gate": "head"}}, "an output gate in attention"),
    ],
)
def test_what_it_has_no_architecture_for_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as refused:
        written(ours(section(**changes)), tmp_path)
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["byte", "unigram"])
def test_a_tokenizer_that_it_has_no_words_for_is_refused(kind: str, tmp_path: Path) -> None:
    made = byte_tokenizer() if kind == "byte" else train_unigram(iter([TEXT * 20]), vocab_size=300)
    with pytest.raises(UserError, match=r"byte-pair encodings over GPT-2's words only"):
        format_.write(tmp_path, exportable(ours(section(**SWIGLU)), made), dtype="fp32")


def test_a_file_that_does_not_read_back_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(gguf.GGUFReader):  # type: ignore[misc]
        def __init__(self, path: Path) -> None:
            super().__init__(path, "r+")
            self.tensors[0].data[:] = 0

    monkeypatch.setattr(gguf, "GGUFReader", Forgetful)
    with pytest.raises(FarthingError, match="does not read back as it was written"):
        written(ours(section(**SWIGLU)), tmp_path)
