"""A recipe's trackers follow a real run into its folder, and a missing one is refused before there is a run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from farthing import config, session
from farthing.errors import UserError
from farthing.recipe import Recipe

TINY = [
    "data.kind=text",
    "data.path=text.txt",
    "data.documents=line",
    "tokenizer.kind=byte",
    "model.n_layer=1",
    "model.n_head=1",
    "model.d_model=8",
    "model.context_length=16",
    "train.batch_size=2",
    "train.threads=1",
    "budget.steps=3",
    "sample.tokens=4",
]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    (tmp_path / "text.txt").write_text("".join(f"line {n} of the text\n" for n in range(40)), "utf-8")
    monkeypatch.chdir(tmp_path)
    return config.load(Recipe, None, [*TINY, 'mirrors=["tensorboard"]'])


def test_tensorboard_follows_a_run(recipe: Recipe, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    session.new_run(recipe, tmp_path / "runs" / "one", device="cpu")
    written = list((tmp_path / "runs" / "one" / "tensorboard").glob("events.out.*"))
    assert written and written[0].stat().st_size > 100


def test_a_missing_tracker_is_refused_before_there_is_a_run(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"farthing\[track\]"):
        session.new_run(recipe, tmp_path / "runs" / "two", device="cpu")
    assert not (tmp_path / "runs").exists()
