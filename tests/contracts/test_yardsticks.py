"""What every tokenizer kind owes the yardsticks: the text's own bytes and characters, every token once, no loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest

from evals.small import CausalMean, Uniform
from farthing.data.prepare import Prepared, prepare
from farthing.data.tokenizer import build_tokenizer
from farthing.evals.references import references
from farthing.evals.samples import stream_text
from farthing.evals.scorer import score
from farthing.evals.yardstick import evaluate, yardsticks
from farthing.recipe import data as recipe
from farthing.recipe.running import Evaluate

LINES = [f"Título {n}: 漢字 and 🙂 are {n * n} <eos> <|endoftext|> characters" for n in range(40)]
KINDS = {union.model_fields["kind"].default for union in get_args(get_args(recipe.Tokenizer)[0])}
HOW = {"context_length": 16, "stride": 16, "batch_size": 4, "device": "cpu"}


def gpt2_files(folder: Path) -> recipe.Gpt2Tokenizer:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = [f"{first} {second}" for first, second in pairwise("characters")][:1]
    words = [*letters, "ch", "<|endoftext|>"]
    folder.mkdir()
    (folder / "encoder.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return recipe.Gpt2Tokenizer(path=str(folder))


def tokenizer_file(folder: Path) -> recipe.TokenizerFile:
    folder.mkdir()
    trained = build_tokenizer(recipe.Bpe(vocab_size=270), lambda: iter(LINES), directory=folder)
    (folder / "tokenizer.json").write_text(trained.to_json(), "utf-8")
    vocabulary = json.loads(trained.to_json())["added_tokens"]
    separator = next(token["content"] for token in vocabulary if token["id"] == trained.separator)
    return recipe.TokenizerFile(path=str(folder / "tokenizer.json"), separator=separator)


SECTIONS: dict[str, Callable[[Path], object]] = {
    "byte": lambda _: recipe.ByteTokenizer(),
    "bpe": lambda _: recipe.Bpe(vocab_size=300),
    "unigram": lambda _: recipe.Unigram(vocab_size=300),
    "gpt2": gpt2_files,
    "file": tokenizer_file,
}


@pytest.fixture(scope="module", params=sorted(SECTIONS))
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "lines.txt").write_text("\n".join(LINES) + "\n", "utf-8")
    return prepare(
        recipe.Text(path="lines.txt", documents="line", validation=10),
        SECTIONS[request.param](folder / "own"),  # type: ignore
        directory=folder,
        cache=folder / "cache",
        context_length=16,
    )


def test_every_kind_is_here() -> None:
    assert get_origin(recipe.Tokenizer) is Annotated
    assert set(SECTIONS) == KINDS


def test_bytes_and_characters_are_those_of_the_raw_text(prepared: Prepared) -> None:
    split = prepared.validation
    texts = list(split.texts())
    assert len(texts) == 10 and set(texts) <= set(LINES)
    readings = evaluate(
        Uniform(prepared.tokenizer.vocab_size), split, Evaluate(), context_length=16, train_batch_size=1,
        train_precision="fp32", device="cpu",
    )  # fmt: skip
    assert readings["bytes"] == sum(len(text.encode()) for text in texts)
    assert readings["characters"] == sum(map(len, texts))
    assert readings["documents"] == 10
    encoded = [prepared.tokenizer.encode(text) for text in texts]
    assert readings["tokens"] == sum(len(tokens) + 1 for tokens in encoded)


def test_the_same_text_has_the_same_measures_under_every_kind(
    prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("byte")
    (folder / "lines.txt").write_text("\n".join(LINES) + "\n", "utf-8")
    data = recipe.Text(path="lines.txt", documents="line", validation=10)
    plain = prepare(data, recipe.ByteTokenizer(), directory=folder, cache=folder / "cache", context_length=16)
    ours, other = prepared.validation, plain.validation
    assert (ours.bytes, ours.characters, ours.documents) == (other.bytes, other.characters, other.documents)
    assert ours.fingerprint == other.fingerprint


def test_scores_do_not_depend_on_the_batch(prepared: Prepared) -> None:
    model = CausalMean(vocab=prepared.tokenizer.vocab_size)
    found = [score(model, prepared.validation, **(HOW | {"batch_size": size})) for size in (1, 7, 64)]
    assert [one.nats for one in found] == pytest.approx([found[0].nats] * 3, rel=1e-6)
    assert {one.separators for one in found} == {10}
    assert yardsticks(found[0], prepared.validation)["separator_share"] > 0


def test_streamed_text_is_the_text(prepared: Prepared) -> None:
    tokenizer = prepared.tokenizer
    for text in LINES[:5]:
        pieces = list(stream_text(tokenizer, [*tokenizer.encode(text), tokenizer.separator]))
        assert "".join(pieces) == text == tokenizer.decode(tokenizer.encode(text))
        assert not any("\ufffd" in piece for piece in pieces)


def test_references_are_of_the_text_alone(prepared: Prepared) -> None:
    found = references(prepared.validation, training=prepared.train, vocab_size=prepared.tokenizer.vocab_size)
    assert found["bytes"] == prepared.validation.bytes
    assert 0 < found["xz"] < 8 and 0 < found["zstd"] < 8 and 0 < found["unigram"] < 10
