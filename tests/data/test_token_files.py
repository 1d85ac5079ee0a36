"""Shards that llm.c reads: the same documents, whatever the cut, and the same text when we read them again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.small import RECIPE, TITLES, Command
from farthing import api
from farthing.api.token_files import export_tokens
from farthing.data import token_files
from farthing.data.split import TokenSplit
from farthing.data.token_files import write_shards
from farthing.errors import UserError

END = 256


def split_of(documents: list[bytes]) -> TokenSplit:
    stream = np.array([token for text in documents for token in (*text, END)], np.uint32)
    size = sum(map(len, documents))
    return TokenSplit("train", stream, END, len(documents), size, size, "", lambda: iter(()))


def read(path: Path) -> list[int]:
    """As llm.c does: a header of 256 int32, then as many uint16 as its third number says."""
    content = path.read_bytes()
    magic, version, count = np.frombuffer(content, "<i4", 3)
    assert (magic, version, len(content)) == (20240520, 1, 1024 + 2 * count)
    return [int(token) for token in np.frombuffer(content, "<u2", offset=1024)]


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=6), st.integers(1, 30), st.integers(1, 5))
def test_each_document_begins_with_the_separator(
    tmp_path_factory: pytest.TempPathFactory, documents: list[bytes], shard_tokens: int, chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "_CHUNK", chunk)
        paths = write_shards(split_of(documents), folder, stem="train", shard_tokens=shard_tokens)
    found = [read(path) for path in paths]
    assert all(len(tokens) == shard_tokens for tokens in found[:-1]) and 0 < len(found[-1]) <= shard_tokens
    expected = [token for text in documents for token in (END, *text)]
    assert [token for tokens in found for token in tokens] == expected
    assert [path.name for path in paths] == [f"train_{number:06d}.bin" for number in range(len(paths))]


def test_a_token_of_17_bits_is_refused(tmp_path: Path) -> None:
    split = TokenSplit("train", np.array([70_000, END], np.uint32), END, 1, 2, 2, "", lambda: iter(()))
    with pytest.raises(UserError, match="70,000 does not fit"):
        write_shards(split, tmp_path, stem="train")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "titles.txt").write_text(TITLES, "utf-8")
    (tmp_path / "small.toml").write_text(RECIPE, "utf-8")
    return tmp_path


def test_a_run_on_them_learns_from_the_same_tokens(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = Command(capsys)("data", "export", "small.toml", "--to", "shards", "--shard-tokens", "500", "--json")
    told = json.loads(done.out)
    assert done.code == 0 and told["vocab_size"] == 257 and told["shards"]["train"] > 2
    assert sorted(told["tokens"]) == ["test", "train", "validation"]
    words = ["data.kind=bin", "data.path=shards/train_*.bin", "data.validation=shards/val_*.bin"]
    words += ["tokenizer.kind=file", "tokenizer.path=shards/tokenizer.json", "train.order=sequential"]
    texts, shards = (
        api.train("small.toml", changes, name=name, quiet=True)
        for name, changes in (("texts", ["train.order=sequential"]), ("shards", words))
    )
    losses = [[one["loss"] for one in run.events if one["kind"] == "step"] for run in (texts, shards)]
    assert losses[0] == losses[1]
    assert shards.validation["nats_per_token"] == texts.validation["nats_per_token"]


def test_nothing_is_written_over_or_half_written(desk: Path) -> None:
    (desk / "shards").mkdir()
    with pytest.raises(UserError, match="exists already"):
        export_tokens("small.toml", to="shards")
    with pytest.raises(UserError, match="must be at least 1"):
        export_tokens("small.toml", to="more", shard_tokens=0)
    with pytest.raises(UserError, match=r"absent\.txt"):
        export_tokens("small.toml", ["data.path=absent.txt"], to="more")
    assert not (desk / "more").exists() and not list((desk / "shards").iterdir())
