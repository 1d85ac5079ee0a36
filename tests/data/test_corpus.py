"""A corpus holds every non-empty document, is addressed by content and survives damage, crashes and rivals."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farthing.data.corpus import Corpus, open_corpus
from farthing.data.sources import open_source
from farthing.errors import UserError
from farthing.recipe.data import PyStdlib, Text


def opened(folder: Path, path: str = "t.txt", documents: str = "line") -> Corpus:
    section = Text.model_validate({"path": path, "documents": documents})
    return open_corpus(open_source(section, directory=folder), cache=folder / "cache")


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "cache" / "corpora").iterdir() if not path.name.startswith("."))


@settings(max_examples=25)
@given(st.lists(st.text(alphabet="ab ü\t", max_size=5), min_size=1, max_size=30))
def test_it_holds_every_document_and_counts_the_empty_ones(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "t.txt").write_bytes("".join(text + "\n" for text in texts).encode())
    kept = [text.encode() for text in texts if text]
    if not kept:
        with pytest.raises(UserError, match=rf"no text in it \({len(texts)} empty documents\)"):
            opened(folder)
        assert not entries(folder)
        return
    corpus = opened(folder)
    assert len(corpus) == len(kept) and corpus.dropped == len(texts) - len(kept)
    assert [corpus.document(i) for i in range(len(corpus))] == kept
    some = np.arange(len(kept))[::2]
    assert list(corpus.documents(some)) == kept[::2]
    assert corpus.sizes(some).tolist() == [len(text) for text in kept[::2]]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"")
    with pytest.raises(UserError, match=r"t\.txt: no text in it"):
        opened(tmp_path)


def test_content_decides_and_neither_name_nor_date_does(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\nb\n")
    first = opened(tmp_path)
    (tmp_path / "other name ü.txt").write_text("a\nb\n")
    os.utime(tmp_path / "other name ü.txt", (1, 1))
    again = opened(tmp_path, "other name ü.txt")
    assert len(entries(tmp_path)) == 1 and again.fingerprint == first.fingerprint
    before = (tmp_path / "t.txt").stat()
    (tmp_path / "t.txt").write_text("a\nc\n")
    os.utime(tmp_path / "t.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert opened(tmp_path).fingerprint != first.fingerprint


def test_the_fingerprint_is_of_the_documents_not_of_their_storage(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"a\r\n\r\nb\r\n")
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(b"a\nb"))
    assert opened(tmp_path).fingerprint == opened(tmp_path, "t.txt.gz").fingerprint
    assert opened(tmp_path).fingerprint != opened(tmp_path, documents="file").fingerprint


@pytest.mark.parametrize("file", ["documents.utf8", "offsets.npy", "entry.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "append"])
def test_a_damaged_entry_is_built_again(file: str, damage: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("first\nsecond\n")
    first = opened(tmp_path)
    path = entries(tmp_path)[0] / file
    raw = path.read_bytes()
    middle = len(raw) // 2
    match damage:
        case "flip":
            path.write_bytes(raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :])
        case "cut":
            path.write_bytes(raw[:middle])
        case "append":
            path.write_bytes(raw + b"x")
        case _:
            path.unlink()
    again = opened(tmp_path)
    assert again.fingerprint == first.fingerprint
    assert [again.document(i) for i in range(2)] == [b"first", b"second"]
    assert path.read_bytes() == raw


_BUILD = """
import sys
from pathlib import Path
from farthing.data.corpus import open_corpus
from farthing.data.sources import open_source
from farthing.recipe.data import Text
folder = Path(sys.argv[1])
source = open_source(Text(path="t.txt", documents="line"), directory=folder)
print(open_corpus(source, cache=folder / "cache").fingerprint)
"""


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), **environment}
    return subprocess.Popen([sys.executable, "-c", _BUILD, str(folder)], stdout=subprocess.PIPE, text=True, env=env)


def test_a_killed_build_leaves_nothing_that_counts(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\nb\n" * 1000)
    killed = start(tmp_path, FARTHING_CRASHPOINT="storage.before_folder_rename")
    assert killed.communicate(timeout=60)[0] == "" and killed.returncode == -signal.SIGKILL
    assert not entries(tmp_path)
    assert len(opened(tmp_path)) == 2000
    assert not list((tmp_path / "cache" / "corpora").glob(".tmp-*"))


def test_rivals_both_end_well(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\nb\n" * 100_000)
    rivals = [start(tmp_path) for _ in range(3)]
    found = {rival.communicate(timeout=60)[0].strip() for rival in rivals}
    assert [rival.returncode for rival in rivals] == [0, 0, 0]
    assert found == {opened(tmp_path).fingerprint}
    assert len(entries(tmp_path)) == 1


def test_a_failing_build_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"fine\n" * 500_000 + b"\xff")
    with pytest.raises(UserError, match="0xff at offset 2,500,000"):
        opened(tmp_path)
    assert not entries(tmp_path) and not list((tmp_path / "cache" / "corpora").glob(".tmp-*"))


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\nb\n")
    (tmp_path / "cache").write_text("a file stands where the folder should")
    with pytest.raises(UserError, match=r"cannot be written.*FARTHING_CACHE"):
        opened(tmp_path)


def test_the_standard_library_makes_a_corpus_of_whole_files(tmp_path: Path) -> None:
    corpus = open_corpus(open_source(PyStdlib(), directory=tmp_path), cache=tmp_path)
    assert len(corpus) + corpus.dropped == len(corpus.files) and corpus.one_per_file
    assert sum(file["bytes"] for file in corpus.files) == int(corpus.offsets_N[-1])
