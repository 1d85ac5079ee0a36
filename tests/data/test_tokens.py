"""Token files: every layout gives the documents it was made from; damage is refused by name and number."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farthing.data.prepare import Prepared, prepare
from farthing.data.token_corpus import TokenCorpus, open_token_corpus
from farthing.errors import UserError
from farthing.recipe.data import Bin, Bpe, ByteTokenizer, Npz

END = 256


def shard(tokens: list[int], *, magic: int = 20240520, version: int = 1, count: int | None = None) -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    return header.tobytes() + np.array(tokens, "<u2").tobytes()


def opened(section: Bin | Npz, folder: Path, vocab_size: int = 257) -> TokenCorpus:
    return open_token_corpus(section, directory=folder, cache=folder / "cache", vocab_size=vocab_size, separator=END)


def texts(corpus: TokenCorpus) -> list[bytes]:
    return [corpus.document(i).astype(np.uint8).tobytes() for i in range(len(corpus))]


def tokens(*documents: bytes, before: bool = False) -> list[int]:
    return [t for text in documents for t in ([END, *text] if before else [*text, END])]


@settings(max_examples=40)
@given(
    documents=st.lists(st.binary(max_size=4), min_size=1, max_size=8).filter(any),
    cuts=st.lists(st.integers(0, 40), max_size=3),
    before=st.booleans(),
    kind=st.sampled_from(["bin", "npy", "npz", "npz-big"]),
)
def test_documents_are_what_separators_part(
    tmp_path_factory: pytest.TempPathFactory, documents: list[bytes], cuts: list[int], before: bool, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("tokens")
    stream = tokens(*documents, before=before)
    places = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})
    for number, (start, end) in enumerate(pairwise(places)):
        part = stream[start:end]
        match kind:
            case "bin":
                (folder / f"{number}.bin").write_bytes(shard(part))
            case "npy":
                np.save(folder / f"{number}.npy", np.array(part, np.int64))
            case "npz":
                np.savez(folder / f"{number}.npz", tokens=np.array(part, np.uint16))
            case _:
                np.savez_compressed(folder / f"{number}.npz", tokens=np.array(part, ">u4"))
    section = Bin(path="*.bin") if kind == "bin" else Npz(path="*.np*")
    corpus = opened(section, folder)
    kept = [text for text in documents if text]
    assert texts(corpus) == kept
    assert corpus.tokens_N.tolist() == tokens(*kept)
    some = np.arange(len(kept))[::2]
    assert np.concatenate(list(corpus.runs(some))).tolist() == tokens(*kept[::2])
    assert corpus.sizes(some).tolist() == [len(text) + 1 for text in kept[::2]]


def test_one_file_in_the_right_form_stays_where_it_is(tmp_path: Path) -> None:
    for before, name in ((False, "a.bin"), (True, "b.bin")):
        raw = tokens(b"one", b"two", before=before) + ([END] if before else [])
        (tmp_path / name).write_bytes(shard(raw))
        corpus = opened(Bin(path=name), tmp_path)
        assert corpus.in_place and texts(corpus) == [b"one", b"two"]
        assert not list((tmp_path / "cache").rglob("tokens.bin"))
    (tmp_path / "c.bin").write_bytes(shard(tokens(b"one", b"two", before=True)))
    assert not opened(Bin(path="c.bin"), tmp_path).in_place


def test_rows_are_documents(tmp_path: Path) -> None:
    rows = np.array([[97, 98, 99], [100, END, END], [END, 101, 102]])
    np.savez(tmp_path / "rows.npz", tokens=rows, other=rows)
    corpus = opened(Npz(path="rows.npz", array="tokens"), tmp_path)
    assert texts(corpus) == [b"abc", b"d", b"ef"]


BAD_SHARDS: dict[str, tuple[bytes, str]] = {
    "magic": (shard([1, 2], magic=20240801), "magic 20240801 where 20240520 belongs"),
    "version": (shard([1, 2], version=7), "version 7; only version 1"),
    "count": (shard([1, 2], count=5), r"counts 5 tokens \(10 bytes\), but 4 bytes follow"),
    "odd": (shard([1, 2]) + b"x", "but 5 bytes follow"),
    "header": (shard([1, 2])[:100], "100 bytes are too few"),
    "nothing": (shard([]), "counts 0 tokens"),
    "text": (b"It was a dark and stormy night. " * 50, "not an llm.c shard"),
    "vocabulary": (shard([1, 2, 300]), "token 300 at index 2 is not in the tokenizer's vocabulary of 257"),
    "separators": (shard([END, END]), "no document in it"),
}


@pytest.mark.parametrize("name", BAD_SHARDS)
def test_bad_shards_are_refused(name: str, tmp_path: Path) -> None:
    raw, expected = BAD_SHARDS[name]
    (tmp_path / "bad shard.bin").write_bytes(raw)
    with pytest.raises(UserError, match=expected) as refused:
        opened(Bin(path="bad shard.bin"), tmp_path)
    assert "bad shard.bin" in str(refused.value)


def test_bad_arrays_are_refused(tmp_path: Path) -> None:
    def refused(name: str, expected: str, array: str | None = None) -> None:
        with pytest.raises(UserError, match=expected):
            opened(Npz(path=name, array=array), tmp_path)

    ragged = np.empty(2, object)
    ragged[:] = [[1], [2, 3]]
    np.save(tmp_path / "ragged.npy", ragged, allow_pickle=True)
    refused("ragged.npy", "Python objects")
    np.save(tmp_path / "float.npy", np.ones(3))
    refused("float.npy", "float64, not whole numbers")
    np.save(tmp_path / "deep.npy", np.ones((2, 2, 2), int))
    refused("deep.npy", r"shape \(2, 2, 2\)")
    np.save(tmp_path / "none.npy", np.ones(0, int))
    refused("none.npy", "an empty array")
    np.save(tmp_path / "minus.npy", np.array([1, -1]))
    refused("minus.npy", "token -1 at index 1")
    np.savez(tmp_path / "two.npz", a=np.ones(3, int), b=np.ones(3, int))
    refused("two.npz", r"holds 2 arrays \(a, b\); set data.array")
    refused("two.npz", "no array 'c'; there are: a, b", array="c")
    (tmp_path / "text.npy").write_text("not an array")
    refused("text.npy", "not a NumPy array")
    np.save(tmp_path / "torn.npy", np.arange(100))
    (tmp_path / "torn.npy").write_bytes((tmp_path / "torn.npy").read_bytes()[:-8])
    refused("torn.npy", "the file is damaged")


def prepared(section: Any, folder: Path) -> Prepared:
    return prepare(section, ByteTokenizer(), directory=folder, cache=folder / "cache", context_length=4)


def test_prepared_tokens_count_the_bytes_and_characters_they_stand_for(tmp_path: Path) -> None:
    written = ["eins", "zwei ü", "drei", "四"]
    (tmp_path / "t.bin").write_bytes(shard(tokens(*(text.encode() for text in written), before=True)))
    made = prepared(Bin(path="t.bin", validation=2, split="tail"), tmp_path)
    assert list(made.train.texts()) == written[:2] and list(made.validation.texts()) == written[2:]
    assert made.validation.bytes == sum(len(text.encode()) for text in written[2:])
    assert made.validation.characters == sum(map(len, written[2:]))
    assert made.validation.tokens_N.tolist() == tokens(*(text.encode() for text in written[2:]))
    assert made.train.documents == 2 and made.train.separator == END
    shuffled = prepared(Bin(path="t.bin", validation=2), tmp_path)
    assert sorted([*shuffled.train.texts(), *shuffled.validation.texts()]) == sorted(written)
    assert shuffled.train.tokens_N.tolist() == tokens(*(text.encode() for text in shuffled.train.texts()))


def test_tokens_need_the_tokenizer_that_made_them(tmp_path: Path) -> None:
    (tmp_path / "t.bin").write_bytes(shard(tokens(b"a", b"b")))
    with pytest.raises(UserError, match=r"data.kind holds tokens already"):
        prepare(Bin(path="t.bin"), Bpe(), directory=tmp_path, cache=tmp_path, context_length=4)
