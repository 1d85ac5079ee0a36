"""Training: exact sizes, even samples, the same file every time, and no text that makes it explode."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farthing.data.tokenizer import SEPARATOR, build_tokenizer
from farthing.data.tokenizer_train import sample, train_bpe
from farthing.data.tokenizer_unigram import train_unigram
from farthing.errors import UserError
from farthing.recipe.data import Bpe, Unigram

TRAINERS: list[Callable[..., str]] = [train_bpe, train_unigram]
SECTIONS = [Bpe, Unigram]
SOURCE = inspect.getsource(ArgumentParser)


def vocabulary(trained: str) -> list[str]:
    model = json.loads(trained)["model"]
    return [entry[0] for entry in model["vocab"]] if model["type"] == "Unigram" else list(model["vocab"])


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("size", [257, 258, 300, 600])
def test_vocabulary_has_exactly_the_size_asked_for(section: type[Bpe | Unigram], size: int) -> None:
    made = build_tokenizer(section(vocab_size=size), lambda: iter([SOURCE]), directory=Path())
    assert made.vocab_size == size
    assert made.separator == size - 1
    assert made.separator_text == SEPARATOR
    assert {bytes([value]) for value in range(256)} <= {made.token_bytes(token) for token in range(size)}


@pytest.mark.parametrize("section", SECTIONS)
def test_little_text_makes_a_smaller_vocabulary(section: type[Bpe | Unigram]) -> None:
    made = build_tokenizer(section(vocab_size=50_000), lambda: iter(["the cat", "the hat"]), directory=Path())
    assert 257 < made.vocab_size < 300
    assert made.decode(made.encode("the bat ☃")) == "the bat ☃"


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("documents", [[], [""], ["", ""]])
def test_no_text_is_refused(section: type[Bpe | Unigram], documents: list[str]) -> None:
    with pytest.raises(UserError, match="no text to train on"):
        build_tokenizer(section(), lambda: iter(documents), directory=Path())


@pytest.mark.parametrize("section", SECTIONS)
def test_whole_words_are_found(section: type[Bpe | Unigram]) -> None:
    # A word that is part of no other is where a search among distinct words without their counts goes wrong.
    text = "salt and pepper, fish and chips, bread and butter, night and day. " * 50
    made = build_tokenizer(section(vocab_size=300), lambda: iter([text]), directory=Path())
    assert len(made.encode(" and")) == 1


@pytest.mark.parametrize("train", TRAINERS)
def test_one_word_of_megabytes_is_no_trouble(train: Callable[..., str]) -> None:
    minified = "a" * 1_000_000 + "=-" * 500_000 + "function(){return a};" * 20_000
    names = vocabulary(train(iter([minified]), vocab_size=600))
    assert max(map(len, names)) <= 64
    assert {"function", "return"} <= set(names)


@pytest.mark.parametrize("train", TRAINERS)
def test_rare_bytes_and_broken_characters_are_no_trouble(train: Callable[..., str]) -> None:
    every = "".join(chr(point) for point in range(0x20, 0x3000)) + "\x00\x85\u2028" * 3
    assert len(vocabulary(train(iter([every, "😀😀 \n\n\n", "\t"]), vocab_size=400))) == 399


@pytest.mark.parametrize("kind", ["Bpe", "Unigram"])
def test_the_same_text_gives_the_same_file_in_every_process(kind: str) -> None:
    program = (
        "import inspect, argparse, pathlib\n"
        "from farthing.data.tokenizer import build_tokenizer\n"
        f"from farthing.recipe.data import {kind}\n"
        f"texts = lambda: iter([inspect.getsource(argparse)])\n"
        f"print(build_tokenizer({kind}(vocab_size=2000), texts, directory=pathlib.Path()).fingerprint)"
    )
    printed = set()
    for number, threads in ((0, "1"), (1, "3"), (2, "2")):
        settings = {
            "PYTHONHASHSEED": str(number),
            "RAYON_NUM_THREADS": threads,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        run = [sys.executable, "-c", program]
        printed.add(subprocess.run(run, env=os.environ | settings, capture_output=True, text=True, check=True).stdout)
    assert len(printed) == 1


@pytest.mark.parametrize("section", SECTIONS)
def test_only_the_text_it_is_given_matters(section: type[Bpe | Unigram]) -> None:
    asked: list[str] = []

    def texts() -> Iterator[str]:
        asked.append("again")
        yield SOURCE

    made = build_tokenizer(section(vocab_size=500), texts, directory=Path())
    same = build_tokenizer(section(vocab_size=500), lambda: iter([SOURCE]), directory=Path())
    other = build_tokenizer(section(vocab_size=500), lambda: iter([SOURCE.upper()]), directory=Path())
    assert made.fingerprint == same.fingerprint != other.fingerprint
    assert len(asked) == 2


@given(
    documents=st.lists(st.text("ab é\n", max_size=60), min_size=1, max_size=40).filter(any),
    most=st.integers(1, 3000),
)
@settings(max_examples=100)
def test_a_sample_is_bounded_and_whole_where_it_fits(documents: list[str], most: int) -> None:
    total = sum(len(document.encode()) for document in documents)
    drawn = list(sample(lambda: iter(documents), most))
    size = sum(len(piece.encode()) for piece in drawn)
    if total <= most:
        assert "".join(drawn) == "".join(documents)
    else:
        assert size <= max(most, 2)
    assert any(drawn)


def test_a_sample_of_broken_text_is_refused() -> None:
    with pytest.raises(UserError, match="surrogate"):
        sample(lambda: iter(["fine", "bro\udfffken"]), 100)


def test_a_sample_is_drawn_evenly_over_the_documents() -> None:
    documents = [f"{number:05d} " * 20 for number in range(5000)]
    drawn = list(sample(lambda: iter(documents), 60_000))
    assert 490 <= len(drawn) <= 500
    places = [int(piece[:5]) for piece in drawn]
    gaps = [after - before for before, after in itertools.pairwise(places)]
    assert places[0] < 15
    assert places[-1] >= 4985
    assert set(gaps) <= {10, 11}
    # One document is cut into pieces, and these are drawn from all over it.
    book = "".join(documents) * 10
    parts = list(sample(lambda: iter([book]), 600_000))
    found = [book.index(part[-240:-120]) for part in parts]
    assert len(parts) > 5
    assert len("".join(parts)) <= 600_000
    assert len(set(found)) > 1


def test_text_of_too_many_words_makes_a_smaller_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farthing.data.tokenizer_train._MOST_WORDS", 1000)
    documents = [" ".join(f"w{letter}{number}" for letter in "ab") for number in range(5000)]
    drawn = list(sample(lambda: iter(documents), 10**9))
    assert 300 < len(drawn) < 1000
