"""Samples: whole characters, documents that end, draws that can be had again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evals.small import SEPARATOR, VOCAB
from farthing.evals import samples as module
from farthing.evals.samples import continue_text, stream_text, write_samples
from farthing.model.gpt import GPT, build_model
from farthing.recipe.model import LayerNorm, Model
from farthing.recipe.running import Sample


class Bytes:
    """Every byte a token."""

    separator = SEPARATOR

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""


@pytest.fixture(scope="module")
def model() -> GPT:
    return build_model(Model(n_layer=1, n_head=2, d_model=16, context_length=8), VOCAB, seed=1)


@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_streaming_gives_the_text_character_by_character(text: str) -> None:
    assert list(stream_text(Bytes(), text.encode())) == list(text)


def test_a_character_waits_for_its_last_byte() -> None:
    arrived: list[int] = []

    def arriving() -> object:
        for token in "a漢🙂".encode():
            arrived.append(token)
            yield token

    told = [(piece, len(arrived)) for piece in stream_text(Bytes(), arriving())]
    assert told == [("a", 1), ("漢", 4), ("🙂", 8)]


def test_unfinished_and_broken_characters_are_shown_as_such() -> None:
    assert "".join(stream_text(Bytes(), "🙂".encode()[:3])) == "\ufffd"
    assert "".join(stream_text(Bytes(), [0xFF, *b"ok"])) == "\ufffdok"
    assert "".join(stream_text(Bytes(), [*b"a", SEPARATOR, *b"b"])) == "ab"
    assert list(stream_text(Bytes(), [])) == []


def test_samples_are_drawn_one_seed_after_the_other(model: GPT) -> None:
    section = Sample(prompt="é", tokens=12, count=3, temperature=1.0)
    samples = write_samples(model, Bytes(), section, seed=5)
    assert [sample.prompt for sample in samples] == ["é"] * 3
    assert len({sample.text for sample in samples}) == 3
    alone = write_samples(model, Bytes(), Sample(prompt="é", tokens=12, temperature=1.0), seed=7)
    assert alone == samples[2:]
    assert all(0 <= sample.tokens <= 12 for sample in samples)


def test_many_samples_are_those_of_their_seeds(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    section = Sample(prompt="é", tokens=12, count=7, temperature=1.0)
    together = write_samples(model, Bytes(), section, seed=5)
    monkeypatch.setattr(module, "_TEXTS", 3)
    assert write_samples(model, Bytes(), section, seed=5) == together
    monkeypatch.setattr(module, "_CACHES", 1)
    assert write_samples(model, Bytes(), section, seed=5) == together


def always(token: int, section: Model) -> GPT:
    """A model that is sure of its next token, whatever it reads."""
    changes = {"bias": True, "norm": LayerNorm(), "tie_embeddings": False}
    gpt = build_model(section.model_copy(update=changes), VOCAB, seed=1)
    assert gpt.norm is not None and gpt.norm.bias is not None and gpt.unembed is not None
    with torch.no_grad():
        gpt.norm.weight.zero_()
        gpt.norm.bias.fill_(1.0)
        gpt.unembed.weight.zero_()
        gpt.unembed.weight[token] = 9.0
    return gpt


def test_a_document_ends_at_the_separator_and_leaves_no_trace(model: GPT) -> None:
    (sample,) = write_samples(always(SEPARATOR, model.section), Bytes(), Sample(tokens=5), seed=0)
    assert (sample.text, sample.tokens) == ("", 0)
    (sample,) = write_samples(always(ord("x"), model.section), Bytes(), Sample(tokens=5), seed=0)
    assert (sample.text, sample.tokens) == ("xxxxx", 5)


@pytest.mark.parametrize("prompt", ["", "hi"])
def test_every_document_begins_after_a_separator(model: GPT, prompt: str) -> None:
    first = next(continue_text(model, Bytes(), Sample(temperature=0), prompt=prompt, seed=0), SEPARATOR)
    assert first == int(model(torch.tensor([[SEPARATOR, *prompt.encode()]]))[0, -1].argmax())
    (sample,) = write_samples(model, Bytes(), Sample(prompt=prompt, temperature=0, tokens=1), seed=0)
    assert sample.text == ("" if first == SEPARATOR else bytes([first]).decode("utf-8", "replace"))


def test_samples_can_be_written_in_low_precision(model: GPT) -> None:
    section = Sample(tokens=12, count=2)
    low = write_samples(model, Bytes(), section, seed=5, precision="bf16")
    assert low == write_samples(model, Bytes(), section, seed=5, precision="bf16")
    assert all(sample.tokens <= 12 for sample in low)


def test_no_tokens_no_samples(model: GPT) -> None:
    assert write_samples(model, Bytes(), Sample(tokens=0, count=3), seed=0) == []
