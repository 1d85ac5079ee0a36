"""Files are replaced whole or not at all, and JSON is strict."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.storage import (
    cache_folder,
    crashpoint,
    new_folder,
    read_json,
    sha256_of,
    write_bytes,
    write_json,
    write_text,
)
from training.story import in_child


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "one")
    write_text(path, "zwei – два")
    assert path.read_text("utf-8") == "zwei – два"
    assert not hidden(tmp_path)


def test_F01_killed_before_the_rename_the_old_content_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    ended = in_child(lambda: write_text(path, "new"), tmp_path, crashpoint="storage.before_rename")
    assert ended.code == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(hidden(tmp_path)) == 1, "the temporary file lies beside its target, on the same file system (M30)"


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError):
        write_bytes(target, b"a file cannot replace a folder")
    assert read_json(path) == {"a": 1}
    assert not hidden(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=JSON)
def test_json_comes_back_equal(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    try:
        write_json(path, value)
    except UnicodeEncodeError:
        return  # half of a surrogate pair is no text
    assert read_json(path) == value


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', "[Infinity]", "[-Infinity]", "{", "", "\x00"])
def test_F18_json_that_is_not_strict_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError):
        read_json(path)


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with new_folder(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        assert not target.exists()
    assert (target / "inner" / "file").read_text() == "x"
    assert not hidden(tmp_path)


def test_a_folder_whose_making_fails_never_appears(tmp_path: Path) -> None:
    with pytest.raises(KeyError), new_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_F01_killed_before_the_folders_rename(tmp_path: Path) -> None:
    def make() -> None:
        with new_folder(tmp_path / "folder") as folder:
            (folder / "file").write_text("x")

    assert in_child(make, tmp_path, crashpoint="storage.before_folder_rename").code == -signal.SIGKILL
    assert not (tmp_path / "folder").exists()
    make()
    assert (tmp_path / "folder" / "file").read_text() == "x"


@pytest.mark.parametrize("exclusive", [False, True])
def test_who_makes_a_folder_second_finds_the_first_ones(tmp_path: Path, exclusive: bool) -> None:
    target = tmp_path / "folder"

    def make(content: str) -> None:
        with new_folder(target, exclusive=exclusive) as folder:
            (folder / "file").write_text(content)

    make("first")
    if exclusive:
        with pytest.raises(FileExistsError):
            make("second")
    else:
        make("second")
    assert (target / "file").read_text() == "first"
    assert not hidden(tmp_path)


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_crashpoint_kills_at_its_passage_only(tmp_path: Path) -> None:
    def pass_by(count: int) -> int:
        def work() -> None:
            for _ in range(count):
                crashpoint("here")
                crashpoint("elsewhere")

        return in_child(work, tmp_path, crashpoint="here:3").code

    assert pass_by(2) == 0
    assert pass_by(3) == -signal.SIGKILL


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() != tmp_path / "farthing", "FARTHING_CACHE goes first"
    monkeypatch.delenv("FARTHING_CACHE")
    assert cache_folder() == tmp_path / "farthing"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "farthing"


def test_written_json_is_readable_by_people(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ключ": [1]})
    text = (tmp_path / "a.json").read_text("utf-8")
    assert "ключ" in text and text.endswith("}\n") and json.loads(text) == {"ключ": [1]}
