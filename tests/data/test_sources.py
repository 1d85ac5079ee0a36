"""Every source reads back what was written, whatever the file's compression and the cutting of its stream."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from farthing.data.sources import Source, open_source
from farthing.data.sources.stream import text_pieces
from farthing.data.sources.text import between, lines, paragraphs, split_on
from farthing.errors import UserError
from farthing.recipe.data import Csv, Hub, Jsonl, Parquet, PyStdlib, Text

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda raw: raw,
    "gzip": gzip.compress,
    "gzip-members": lambda raw: gzip.compress(raw[:7]) + gzip.compress(raw[7:]),
    "zstd": zstandard.ZstdCompressor().compress,
    "zstd-frames": lambda raw: zstandard.compress(raw[:7]) + zstandard.compress(raw[7:]),
}
TEXTS = ["one", "zwei und drei", "四五\r\n sechs", '  sieben,\t"acht"\n\nneun ', "x" * 3000]


def read(source: Source) -> list[bytes]:
    def whole(document: bytes | Iterator[bytes]) -> bytes:
        return document if isinstance(document, bytes) else b"".join(document)

    return [whole(document) for document in source.documents(lambda more: None)]


def chopped(raw: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({cut % (len(raw) + 1) for cut in cuts} | {0, len(raw)})
    return (raw[start:end] for start, end in pairwise(places))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["file", "line", "paragraph", "marker", "jsonl", "csv"])
def test_every_kind_reads_back_what_was_written(kind: str, compression: str, tmp_path: Path) -> None:
    texts = {
        "file": ["".join(TEXTS)],
        "line": [text for whole in TEXTS for text in whole.replace("\r\n", "\n").split("\n")],
        "paragraph": ["one", "zwei\nund", "drei "],
    }.get(kind, TEXTS)
    section: Text | Jsonl | Csv
    match kind:
        case "file":
            section, raw = Text(path="my text.txt"), texts[0]
        case "line":
            section, raw = Text(path="my text.txt", documents="line"), "\r\n".join(texts) + "\n"
        case "paragraph":
            section, raw = Text(path="my text.txt", documents="paragraph"), "\n" + "\n \n\n".join(texts) + "\n\n"
        case "marker":
            section, raw = (
                Text(path="my text.txt", documents="marker", marker="<|e|>"),
                "\n<|e|>\n".join(texts) + "<|e|>\n",
            )
        case "jsonl":
            section = Jsonl(path="my text.txt")
            raw = "\n\n".join(json.dumps({"id": 1, "text": text}) for text in texts)
        case _:
            section, out = Csv(path="my text.txt", field="b", delimiter=";"), io.StringIO()
            csv.writer(out, delimiter=";").writerows([["a", "b"], *([["x", text] for text in texts])])
            raw = out.getvalue()
    (tmp_path / "my text.txt").write_bytes(COMPRESSIONS[compression](raw.encode()))
    found = [text.decode() for text in read(open_source(section, directory=tmp_path))]
    assert [text for text in found if text] == [text for text in texts if text]


def test_parquet_reads_back_what_was_written(tmp_path: Path) -> None:
    columns = {"n": list(range(6)), "text": pa.array([*TEXTS, None]).dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "ü.parquet", row_group_size=2)
    found = read(open_source(Parquet(path="*.parquet"), directory=tmp_path))
    assert found == [text.encode() for text in TEXTS] + [b""]


def test_a_byte_order_mark_is_no_text_but_carriage_returns_are(tmp_path: Path) -> None:
    (tmp_path / "dos.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read(open_source(Text(path="dos.txt"), directory=tmp_path)) == [b"one\r\ntwo\r\n"]
    assert read(open_source(Text(path="dos.txt", documents="line"), directory=tmp_path)) == [b"one", b"two"]


def test_files_come_in_the_order_named_and_each_once(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert read(open_source(Text(path=["c.txt", "*.txt"]), directory=tmp_path)) == [b"c", b"a", b"b"]


def test_the_standard_library_is_sorted_and_without_tests() -> None:
    source = open_source(PyStdlib(), directory=Path())
    assert list(source.names) == sorted(source.names)
    assert {"ast.py", "json/decoder.py", "asyncio/tasks.py"} <= set(source.names)
    folders = {folder for name in source.names for folder in Path(name).parts[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert 500 < len(source.names) < 900
    assert sum(path.stat().st_size for path in source.files) > 9_000_000


@given(st.binary(max_size=60), st.binary(min_size=1, max_size=3), st.lists(st.integers(0, 60), max_size=8))
def test_splitting_a_stream_equals_splitting_the_whole(raw: bytes, separator: bytes, cuts: list[int]) -> None:
    assert list(split_on(chopped(raw, cuts), separator)) == raw.split(separator)


@given(st.text(alphabet="ab \n\r", max_size=60).map(str.encode), st.lists(st.integers(0, 60), max_size=8))
def test_lines_and_paragraphs_do_not_depend_on_the_cutting(raw: bytes, cuts: list[int]) -> None:
    for rule in (lines, paragraphs, lambda stream: between(stream, b"aa")):
        assert list(rule(chopped(raw, cuts))) == list(rule([raw] if raw else []))
    plain = [line.removesuffix(b"\r") for line in raw.split(b"\n")]
    assert [line for line in lines([raw]) if line] == [line for line in plain if line]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@given(text=st.text(alphabet=st.characters(blacklist_characters="\0\ufeff", blacklist_categories=("Cs",)), max_size=50))
def test_streams_are_cut_between_characters(
    compression: str, tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "text"
    path.write_bytes(COMPRESSIONS[compression](text.encode()))
    assert "".join(piece.decode() for piece in text_pieces(path, lambda more: None)) == text


BAD_FILES = {
    "binary": (b"a" * 10 + b"\0", "zero byte at offset 10"),
    "latin-1": (b"ab\xe9cd", "byte 0xe9 at offset 2"),
    "far": (b"a" * ((1 << 20) + 5) + b"\xff", "byte 0xff at offset 1,048,581"),
    "surrogate": (b"\xed\xa0\x80", "byte 0xed at offset 0"),
    "half a character": (b"abc\xe2\x82", "offset 3"),
    "utf-16": ("hello".encode("utf-16"), "UTF-16"),
    "torn gzip": (gzip.compress(os.urandom(5000).hex().encode())[:-100], "damaged compressed file"),
    "torn zstd": (zstandard.compress(os.urandom(5000).hex().encode())[:-100], "damaged compressed file"),
    "wrong gzip": (gzip.compress(b"abc" * 100)[:-8] + b"12345678", "damaged compressed file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_is_not_text_is_refused_with_its_place(name: str, tmp_path: Path) -> None:
    raw, expected = BAD_FILES[name]
    (tmp_path / "bad.txt").write_bytes(raw)
    with pytest.raises(UserError, match=expected) as refused:
        read(open_source(Text(path="bad.txt"), directory=tmp_path))
    assert "bad.txt" in str(refused.value) and "\n" not in str(refused.value)


BAD_RECORDS = [
    (Jsonl(path="x"), b'{"text": "a"}\nnope\n', "line 2 is not JSON"),
    (Jsonl(path="x"), b"[" * 100_000, "line 1 is not JSON"),
    (Jsonl(path="x"), b'{"text": "a"}\n[1]\n', "line 2 is a JSON list"),
    (Jsonl(path="x"), b'{"a": 1, "b": 2}\n', "no field 'text'; there are: a, b"),
    (Jsonl(path="x"), b'{"text": 12}\n', "holds int 12"),
    (Jsonl(path="x"), b'{"text": "\\ud800"}\n', "surrogate"),
    (Csv(path="x"), b"a,b\n1,2\n", "no column 'text'; there are: a, b"),
    (Csv(path="x"), b"text,b\n1\n", "line 2 has 1 columns where the header has 2"),
    (Csv(path="x"), b'text,b\n"abc,1\n', "not CSV"),
    (Parquet(path="x"), b"PAR1 no", "not a readable Parquet file"),
]


@pytest.mark.parametrize(("section", "raw", "expected"), BAD_RECORDS)
def test_bad_records_are_refused_with_their_line(
    section: Jsonl | Csv | Parquet, raw: bytes, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(UserError, match=expected) as refused:
        read(open_source(section, directory=tmp_path))
    assert "\n" not in str(refused.value)


def test_a_parquet_column_that_is_no_text_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="holds int64, not text"):
        read(open_source(Parquet(path="x.parquet"), directory=tmp_path))
    with pytest.raises(UserError, match="no column 'body'; there are: text"):
        read(open_source(Parquet(path="x.parquet", field="body"), directory=tmp_path))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("absent.txt", "no such file.*did you mean absent2.txt"),
        ("data/hn_titles.txt", "farthing data get hn-titles"),
        ("fineweb_train_*.bin", "farthing data get fineweb-10b"),
        ("fineweb_edu/*.parquet", "farthing data get fineweb-edu"),
        ("TinyStories.txt", "farthing data get tinystories"),
        ("wikitext103_train.txt", "farthing data get wikitext-103"),
        ("tinyshakespeare.txt", "farthing data get tinyshakespeare"),
        ("*.nothing", "matches no file"),
        ("folder", "is a folder"),
        ("pipe", "a pipe or a device"),
        ("a\0b", "no such file"),
        ("x" * 5000, "no such file"),
        ([], "no file is named"),
    ],
)
def test_what_is_no_file_is_refused(path: str | list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "absent2.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=expected):
        open_source(Text(path=path), directory=tmp_path)


def test_a_dataset_is_streamed_in_its_own_order(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    lines = [json.dumps({"body": text, "id": number}) for number, text in enumerate(TEXTS)]
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(lines))
    section = Hub(path=str(tmp_path / "set"), field="body")
    assert read(open_source(section, directory=tmp_path)) == [text.encode() for text in TEXTS]
    first = section.model_copy(update={"limit": 2, "split": "tail"})
    assert read(open_source(first, directory=tmp_path)) == [text.encode() for text in TEXTS[:2]]
    with pytest.raises(UserError, match="row 0 has no field 'text'; there are: body, id"):
        read(open_source(section.model_copy(update={"field": "text"}), directory=tmp_path))
    with pytest.raises(UserError, match="split 'nope', cannot be read"):
        read(open_source(section.model_copy(update={"hub_split": "nope"}), directory=tmp_path))


def test_the_hub_offline_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hub dataset nobody/nothing") as refused:
        read(open_source(Hub(path="nobody/nothing"), directory=tmp_path))
    assert "\n" not in str(refused.value)
