"""llm.c's checkpoints: the file as its programs read it, and back."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cli.small import Command
from export.strangers import CONTEXT, TEXT, TOKENIZER, VOCABULARY, logits_of, ours, section
from farthing import api
from farthing.api.importing import import_llmc
from farthing.data.tokenizer import SEPARATOR, Tokenizer
from farthing.errors import UserError
from farthing.export import Exportable
from farthing.export.llmc import FILE, read, read_header, write
from farthing.model.gpt import GPT, model_with
from farthing.recipe.running import Sample

GPT2: dict[str, Any] = {
    "bias": True,
    "norm": {"kind": "layernorm"},
    "position": {"kind": "learned"},
    "mlp": {"kind": "gelu", "approximate": "tanh"},
}
PADDED = 384


def tokenizer() -> Tokenizer:
    return Tokenizer.from_json(TOKENIZER, separator=SEPARATOR)


def exportable(model: GPT) -> Exportable:
    weights = {name: values.detach() for name, values in model.state_dict().items()}
    return Exportable(model.section, VOCABULARY, weights, tokenizer(), Sample(), [TEXT], "small", 7)


@pytest.fixture
def model() -> GPT:
    return ours(section(**GPT2))


@pytest.fixture
def file(model: GPT, tmp_path: Path) -> Path:
    write(tmp_path, exportable(model), dtype="fp32")
    return tmp_path / FILE


def reopened(path: Path) -> GPT:
    found = read(path, tokenizer())
    return model_with(found.weights, found.section, VOCABULARY).eval()


def by_hand(model: GPT) -> bytes:
    """The file as train_gpt2.py writes it: parameters in the order of ParameterTensors in train_gpt2.c, all of fp32."""
    at = {name: values.detach().numpy() for name, values in model.state_dict().items()}
    layers = range(model.section.n_layer)

    def every(name: str) -> list[np.ndarray]:
        return [at[f"blocks.{layer}.{name}"] for layer in layers]

    def qkv(leaf: str) -> list[np.ndarray]:
        return [at[f"blocks.{layer}.attention.{part}.{leaf}"] for layer in layers for part in ("query", "key", "value")]

    wte = np.zeros((PADDED, 16), "<f4")
    wte[:VOCABULARY] = at["embed.weight"]
    tensors = [wte, at["position.weight"]]
    tensors += every("attention_norm.weight") + every("attention_norm.bias") + qkv("weight") + qkv("bias")
    tensors += every("attention.output.weight") + every("attention.output.bias")
    tensors += every("mlp_norm.weight") + every("mlp_norm.bias") + every("mlp.up.weight") + every("mlp.up.bias")
    tensors += every("mlp.down.weight") + every("mlp.down.bias") + [at["norm.weight"], at["norm.bias"]]
    header = struct.pack("<256i", 20240326, 3, CONTEXT, VOCABULARY, 2, 4, 16, PADDED, *[0] * 248)
    return header + b"".join(np.ascontiguousarray(one, "<f4").tobytes() for one in tensors)


def test_the_file_is_the_one_that_llmc_writes(model: GPT, file: Path) -> None:
    assert file.read_bytes() == by_hand(model)


def test_fp32_comes_back_bit_for_bit(model: GPT, file: Path) -> None:
    found = read(file, tokenizer())
    assert found.section.model_copy(update={"init": model.section.init}) == model.section
    for name, values in model.state_dict().items():
        torch.testing.assert_close(found.weights[name], values, atol=0, rtol=0)
    torch.testing.assert_close(logits_of(reopened(file)), logits_of(model), atol=0, rtol=0)


def test_bf16_comes_back_rounded(model: GPT, tmp_path: Path) -> None:
    told = write(tmp_path, exportable(model), dtype="bf16")
    path = tmp_path / FILE
    assert read_header(path).version == 5
    assert path.stat().st_size == 1024 + (len(by_hand(model)) - 1024) // 2
    for name, values in read(path, tokenizer()).weights.items():
        expected = model.state_dict()[name].to(torch.bfloat16).float()
        torch.testing.assert_close(values, expected, atol=0, rtol=0)
    assert 0 < told.proof["largest_weight_difference"] < 0.01


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"position": {"kind": "rope"}}, "model.position.kind=rope"),
        ({"norm": {"kind": "rmsnorm"}}, "model.norm.kind=rmsnorm"),
        ({"norm": {"kind": "layernorm", "eps": 1e-6}}, "model.norm.eps=1e-06"),
        ({"mlp": {"kind": "gelu"}}, "model.mlp.approximate=none"),
        ({"mlp": {"kind": "gelu", "approximate": "tanh", "ratio": 3}}, "a feed-forward width of 48 (not 64)"),
        ({"bias": False}, "model.bias=False"),
        ({"tie_embeddings": False}, "model.tie_embeddings=False"),
        ({"n_kv_head": 2}, "model.n_kv_head=2"),
        ({"layer_scale": 0.1}, "model.layer_scale=0.1"),
    ],
)
def test_what_llmc_has_no_room_for_is_named(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        write(tmp_path, exportable(ours(section(**{**GPT2, **changes}))), dtype="fp32")
    assert named in str(refused.value) and "--format huggingface" in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"dropout": 0.1}, {"n_kv_head": 4}, {"init": {"kind": "zero_projections"}}])
def test_what_makes_no_difference_to_it_is_written(changes: dict[str, Any], tmp_path: Path) -> None:
    model = ours(section(**{**GPT2, **changes}))
    write(tmp_path, exportable(model), dtype="fp32")
    torch.testing.assert_close(logits_of(reopened(tmp_path / FILE)), logits_of(model), atol=0, rtol=0)


def patched(path: Path, place: int, value: int) -> None:
    content = bytearray(path.read_bytes())
    content[4 * place : 4 * place + 4] = struct.pack("<i", value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, 20240520, "that is a shard of tokens: train on it with data.kind=bin"),
        (0, 7, "not a model of llm.c: magic 7"),
        (1, 4, "llm.c model of version 4; 3 (fp32) and 5 (bf16) are read"),
        (1, 5, "bytes where its header asks for"),
        (2, 0, "makes no sense: context 0"),
        (2, CONTEXT + 1, "bytes where its header asks for"),
        (3, 1000, "makes no sense"),
        (4, (1 << 31) - 1, "bytes where its header asks for"),
        (4, -3, "makes no sense"),
        (5, 3, "makes no sense"),
        (6, 1 << 30, "bytes where its header asks for"),
        (7, 1 << 30, "bytes where its header asks for"),
    ],
)
def test_a_header_that_is_wrong_is_told(place: int, value: int, said: str, file: Path) -> None:
    patched(file, place, value)
    with pytest.raises(UserError) as refused:
        read(file, tokenizer())
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("cut", [0, 500, 1023, 1024, 5000, -1, -2])
def test_a_file_that_breaks_off_or_goes_on_is_told(cut: int, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"too few|asks for"):
        read(file, tokenizer())
    file.write_bytes(by_hand(ours(section(**GPT2))) + b"\0")
    with pytest.raises(UserError, match="asks for"):
        read(file, tokenizer())


def test_weights_that_are_not_finite_are_told(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-4:] = struct.pack("<f", float("nan"))
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"norm\.bias holds values that are not finite"):
        read(file, tokenizer())


@given(st.binary(max_size=3000))
def test_no_bytes_are_a_fault_of_ours(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(struct.pack("<2i", 20240326, 3) + content)
    with pytest.raises(UserError):
        read(path, tokenizer())


def test_it_is_imported_as_a_run(file: Path, model: GPT, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(file.parent)
    Path("tokenizer.json").write_text(TOKENIZER, "utf-8")
    farthing = Command(capsys)
    done = farthing("import", "llmc", FILE, "--tokenizer", "tokenizer.json", "--json")
    assert (done.code, json.loads(done.out)["kind"]) == (0, "llm.c version 3")
    torch.testing.assert_close(logits_of(api.open_model("model-1").model), logits_of(model), atol=1e-5, rtol=1e-5)
    Path("held.txt").write_text(TEXT, "utf-8")
    assert farthing("eval", "model-1", "--data", "held.txt", "--json").code == 0


def test_it_wants_the_tokenizer_that_it_was_trained_with(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    with pytest.raises(UserError, match="GPT-2's files could not be fetched"):
        import_llmc(file)
    other = json.loads(TOKENIZER)
    other["model"]["merges"].pop()
    last = VOCABULARY - 2
    other["model"]["vocab"] = {name: number for name, number in other["model"]["vocab"].items() if number < last}
    other["added_tokens"][0]["id"] = last
    Path("other.json").write_text(json.dumps(other), "utf-8")
    with pytest.raises(UserError, match=r"a vocabulary of .* but the tokenizer has"):
        import_llmc(file, tokenizer="other.json")
    assert not Path("runs").exists()


def test_gpt2s_own_files_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = json.loads(TOKENIZER)["model"]
    vocabulary = {**table["vocab"], "<|endoftext|>": VOCABULARY - 1}
    (tmp_path / "bpe").mkdir()
    (tmp_path / "bpe/encoder.json").write_text(json.dumps(vocabulary), "utf-8")
    lines = [one if isinstance(one, str) else " ".join(one) for one in table["merges"]]
    (tmp_path / "bpe/vocab.bpe").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", "utf-8")
    write(tmp_path, exportable(ours(section(**GPT2))), dtype="fp32")
    run = import_llmc(FILE, tokenizer="bpe", name="theirs").run
    assert run.tokenizer.separator_text == "<|endoftext|>"
