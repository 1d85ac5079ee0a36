"""A folder with a text and a recipe, and one finished run for everyone who only looks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cli.small import RECIPE, TITLES, Command
from farthing import api


def _furnish(folder: Path) -> Path:
    (folder / "titles.txt").write_text(TITLES, "utf-8")
    (folder / "small.toml").write_text(RECIPE, "utf-8")
    return folder


@pytest.fixture
def farthing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("COLUMNS", "80")
    return Command(capsys)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a person works: a text and a recipe, no runs yet."""
    monkeypatch.chdir(tmp_path)
    return _furnish(tmp_path)


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = _furnish(tmp_path_factory.mktemp("desk"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        api.train("small.toml", ["evaluate.legacy=titles"], name="done", quiet=True)
    return folder


@pytest.fixture
def trained(_finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with a finished run `done`, which a test may damage."""
    folder = tmp_path / "desk"
    shutil.copytree(_finished, folder)
    receipt = folder / "runs" / "done" / "receipt.json"
    # The run is told that it was started here, so that it reads this copy of its text.
    receipt.write_text(json.dumps({**json.loads(receipt.read_text("utf-8")), "directory": str(folder)}), "utf-8")
    monkeypatch.chdir(folder)
    return folder
