"""publish-check and --push at the command: a line a point, exit codes, and a hub that gets what passed and no more."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest

from cli.small import Command
from cli.test_contract import only_object
from export.hub import TOKEN, upload_hub


def test_an_export_is_looked_through_before_it_is_uploaded(
    farthing: Command, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with upload_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        refused = farthing("export", "done", "out", "--quiet", "--push", "tiny")
        assert refused.code == 2
        assert refused.err.startswith("error: --push tiny: nothing was uploaded: licence: none is stated")
        assert refused.err.count("\n") == 1 and TOKEN not in refused.err
        assert hub.requests == [], "a hub that is not asked knows nothing"
        card = Path("out/README.md")
        card.write_text(card.read_text("utf-8").replace("---\n", "---\nlicense: mit\n", 1), "utf-8")
        done = farthing("publish-check", "out", "--run", "done", "--push", "tiny", "--json", "--quiet")
        found = only_object(done)
        assert found["passed"] and found["pushed"] == f"{hub.address}/somebody/tiny"
        assert [point["status"] for point in found["points"]] == ["pass"] * 6
        there = hub.repositories["somebody/tiny"]
        assert there.private
        assert there.files == {path.name: path.read_bytes() for path in Path("out").iterdir()}


@pytest.fixture
def unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that fails everywhere, and needs nothing loaded to do so."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"_name_or_path": "/home/anna/model"}', "utf-8")
    (folder / "more.pkl").write_bytes(b"")
    return folder


def test_each_point_has_a_line_that_says_what_to_do(farthing: Command, unfinished: Path) -> None:
    answer = farthing("publish-check", "model")
    assert answer.code == 2
    lines = answer.out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == ["fail"] * 5 + ["not checked"]
    assert all(" -> " in line for line in lines)
    assert "/home/anna/model" in answer.out
    shown = farthing("publish-check", "model", "--quiet")
    assert shown.out.splitlines() == lines[:5], "what fails is never too much to say"


def test_the_same_as_json(farthing: Command, unfinished: Path) -> None:
    answer = farthing("publish-check", "model", "--json", "--quiet")
    assert (answer.code, answer.out.count("\n")) == (2, 1)
    found = json.loads(answer.out)
    assert (found["folder"], found["passed"], found["pushed"]) == ("model", False, None)
    assert all(point.keys() == {"name", "status", "told", "todo"} for point in found["points"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["missing"], "missing: no such folder"),
        (["."], "no exported model"),
        (["model", "--run", "missing"], "missing: no such run"),
        (["model", "--push", "a/b/c"], "--push 'a/b/c': should be NAME or OWNER/NAME"),
        (["model", "--push", "me/model"], "--push me/model: nothing was uploaded: licence"),
    ],
)
def test_what_cannot_be_done_is_one_line(farthing: Command, unfinished: Path, words: list[str], says: str) -> None:
    answer = farthing("publish-check", *words, "--quiet")
    assert answer.code == 2
    assert says in answer.err and answer.err.count("\n") == 1
