"""Farthing from Python: the same as the command, as objects."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import farthing
from farthing import config
from farthing.recipe import Recipe

SMALL: dict[str, Any] = {
    "data.kind": "text",
    "data.path": "story.txt",
    "data.documents": "line",
    "tokenizer.kind": "byte",
    "model.n_layer": 1,
    "model.n_head": 2,
    "model.d_model": 16,
    "model.context_length": 16,
    "train.batch_size": 4,
    "train.threads": 1,
    "train.log_every": 1,
    "budget.minutes": None,
    "budget.steps": 4,
    "evaluate.every": 2,
    "sample.tokens": 8,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> farthing.Run:
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "story.txt").write_text("".join(f"line {n} of a story\n" for n in range(90)), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return farthing.train("default", SMALL, runs=folder / "runs", name="first", quiet=True)


@pytest.fixture
def at_home(made: farthing.Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made.path.parents[1])
    return made.path.parents[1]


def test_a_run_can_be_looked_at(made: farthing.Run, at_home: Path) -> None:
    assert (made.name, made.status) == ("first", "finished")
    assert 0 < made.validation["bits_per_byte"] < 16
    assert set(made.spent) == {"steps", "tokens", "epochs", "flops", "seconds", "money"}
    assert (made.spent["steps"], made.plan.steps) == (4, 4)
    assert made.recipe.model.d_model == 16
    assert made.plan.parameters == made.result["parameters"]
    assert made.events[0]["kind"] == "started"
    assert made.events[-1]["kind"] == "finished"
    assert repr(made) == f"Run({str(made.path)!r}, finished, {made.validation['bits_per_byte']:.4f} bits per byte)"
    assert made.tokenizer.decode(made.tokenizer.encode("héé")) == "héé"


def test_a_run_can_be_used(made: farthing.Run, at_home: Path) -> None:
    assert made.sample(made.recipe.sample.prompt) == made.result["samples"][0]["text"]
    text = made.sample("line ", tokens=3, temperature=0)
    written = made.stream("line ", tokens=3, temperature=0)
    assert "".join(written) == text
    assert written.tokens == 3
    scored = made.evaluate()
    assert scored.validation == made.validation
    assert scored.step == 4
    assert scored.references == made.result["references"]
    (at_home / "other.txt").write_text("line 5 of a play\n", "utf-8")
    other = made.evaluate("other.txt", {"evaluate.stride": 8}, references=False)
    assert (other.validation["bytes"], other.validation["stride"], other.references) == (16, 8, None)


def test_the_dataframe_has_a_row_a_step(made: farthing.Run) -> None:
    pytest.importorskip("pandas")
    frame = made.dataframe()
    assert list(frame["step"]) == [1, 2, 3, 4]
    assert frame["loss"].notna().all()
    assert list(frame["validation_bits_per_byte"].notna()) == [False, True, False, True]
    assert frame["validation_bits_per_byte"].iloc[-1] == made.validation["bits_per_byte"]
    assert frame["spent_tokens"].is_monotonic_increasing


def test_runs_are_found_again(made: farthing.Run, at_home: Path) -> None:
    assert farthing.open_run("first").validation == made.validation
    assert farthing.open_run(made.path).name == "first"
    assert [run.name for run in farthing.runs()] == ["first"]
    assert farthing.runs("nowhere") == []
    assert farthing.resume("first", quiet=True).result == made.result


def test_a_recipe_may_be_an_object(made: farthing.Run, at_home: Path, tmp_path: Path) -> None:
    recipe = config.load(Recipe, "default", SMALL)
    planned = farthing.plan(recipe, ["budget.steps=3"])
    assert (planned.plan.steps, planned.refusals, planned.missing_text) == (3, [], None)
    run = farthing.train(recipe, ["budget.steps=3"], runs=str(tmp_path), quiet=True)
    assert (run.name, run.spent["steps"]) == ("run-1", 3)


def test_a_plan_without_its_text_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    planned = farthing.plan("default", SMALL)
    assert planned.plan.parameters > 0
    assert planned.missing_text is not None
    assert "story.txt" in planned.missing_text
    assert planned.refusals == [planned.missing_text]


def test_mistakes_are_user_errors_and_leave_nothing(made: farthing.Run, at_home: Path, tmp_path: Path) -> None:
    for overrides in ({"model.n_layers": 3}, {"budget.steps": -1}, {"data.path": "gone.txt"}, {"model.n_head": 5}):
        with pytest.raises(farthing.UserError) as told:
            farthing.train("default", {**SMALL, **overrides}, runs=tmp_path, quiet=True)
        assert "\n" not in str(told.value)
    with pytest.raises(farthing.UserError, match="first"):
        farthing.train("default", SMALL, name="first", quiet=True)
    with pytest.raises(farthing.UserError, match="evaluate"):
        made.evaluate(overrides={"model.n_layer": 3})
    with pytest.raises(farthing.UserError, match="top_p"):
        made.sample(top_p=3.0)
    with pytest.raises(farthing.UserError, match="no such run"):
        farthing.open_run("second")
    assert not list(tmp_path.iterdir())


def test_it_works_outside_the_main_thread(at_home: Path, tmp_path: Path) -> None:
    found: list[Any] = []

    def work() -> None:
        try:
            run = farthing.train("default", SMALL, runs=tmp_path, quiet=True)
            found.append(run.sample("line ", tokens=2))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(found[0], str), found


def test_progress_goes_to_standard_error(at_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    farthing.train("default", SMALL, runs=tmp_path)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "step 4/4" in printed.err
    farthing.train("default", SMALL, runs=tmp_path, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_a_half_finished_run_tells_what_it_has(made: farthing.Run, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(made.path, copied)
    (copied / "result.json").unlink()
    run = farthing.open_run(copied)
    assert run.status == "stopped"
    assert run.result == {}
    assert (run.validation, run.spent) == (made.validation, made.spent)
    lines = (copied / "events.jsonl").read_text("utf-8").splitlines(keepends=True)
    (copied / "events.jsonl").write_text(lines[0], "utf-8")
    assert (run.validation, run.spent, len(run.events)) == ({}, {}, 1)
    assert repr(run) == f"Run({str(copied)!r}, stopped)"


def test_importing_farthing_is_cheap_and_complete() -> None:
    program = "import farthing, json, sys; print(json.dumps([dir(farthing), 'torch' in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    names, torch = json.loads(done.stdout)
    assert not torch
    assert {"train", "plan", "resume", "open_run", "runs", "Run", "UserError"} <= set(names)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = farthing.trian  # type: ignore[attr-defined]
