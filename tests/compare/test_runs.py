"""Run folders read back: whatever is wrong with one is told in one line, and the others are compared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compare.folders import records, write_arm, write_run
from farthing.compare.runs import gather, read_run
from farthing.errors import UserError
from farthing.recipe import Recipe
from farthing.rundir import RunDir


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def test_a_run_is_read_from_its_files(tmp_path: Path) -> None:
    write_run(tmp_path, "one", 1.25, seed=7, parameters=123)
    found = read_run(RunDir(tmp_path / "one"), Recipe)
    assert (found.name, found.status, found.why, found.seed, found.parameters) == ("one", "finished", "", 7, 123)
    assert found.validation["bits_per_byte"] == 1.25
    assert found.spent["steps"] == 20
    assert found.held_out is None
    assert found.machine == "a processor"


def test_runs_of_one_recipe_share_an_arm_whatever_their_seed(tmp_path: Path) -> None:
    write_arm(tmp_path, "base", {1: 1.2, 2: 1.3})
    write_run(tmp_path, "wide", recipe={"model.d_model": 256, "model.n_head": 4})
    arms = {run.name: run.arm for run in records(tmp_path)}
    assert arms["base-seed1"] == arms["base-seed2"] != arms["wide"]


def test_names_folders_and_globs_lead_to_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    write_arm(runs, "base", {1: 1.2, 2: 1.3})
    write_run(runs, "other")
    (runs / "notes").mkdir()
    monkeypatch.chdir(tmp_path)

    def names(*named: str) -> list[str]:
        return [run.name for run in gather(named, runs=Path("runs"), recipe=Recipe).runs]

    assert names("other", "base-seed2") == ["other", "base-seed2"]
    assert names("base*") == names("runs/base-seed?") == ["base-seed1", "base-seed2"]
    assert set(names("runs")) == {"base-seed1", "base-seed2", "other"}
    assert names("other", str(runs / "other"), "runs/other") == ["other"], "however often it is named"
    for wrong, word in (
        ("bse-seed1", "did you mean base-seed1?"),
        ("x*", "matches no run"),
        ("runs/notes", "recipe.toml"),
    ):
        with pytest.raises(UserError, match=word.replace("?", r"\?")):
            names(wrong)


def test_a_run_that_failed_is_a_failure_and_one_that_was_interrupted_is_not(tmp_path: Path) -> None:
    write_run(tmp_path, "good")
    write_run(tmp_path, "diverged", stopped="diverged")
    write_run(tmp_path, "memory", stopped="out_of_memory")
    write_run(tmp_path, "nan", None)
    write_run(tmp_path, "killed", stopped="preempted")
    write_run(tmp_path, "error", stopped="error")
    found = gather([str(tmp_path)], runs=tmp_path, recipe=Recipe)
    status = {run.name: (run.status, run.why) for run in found.runs}
    assert status == {
        "good": ("finished", ""),
        "diverged": ("failed", "diverged at step 10"),
        "memory": ("failed", "out_of_memory at step 10"),
        "nan": ("failed", "its score is not finite"),
    }
    left = {one.run: one.why for one in found.left_out}
    assert left.keys() == {"killed", "error"}
    assert left["killed"].startswith("unfinished, stopped at step 10; finish it with: farthing resume ")


def _without(name: str) -> Any:
    return lambda run: (run / name).unlink()


def _with(name: str, content: str) -> Any:
    return lambda run: (run / name).write_text(content, "utf-8")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_without("result.json"), "unfinished, stopped at step 20"),
        (_without("receipt.json"), "damaged: receipt.json: No such file or directory"),
        (_with("receipt.json", "{}"), "damaged: 'data' is missing"),
        (_with("result.json", "{"), "damaged: "),
        (_with("result.json", '{"validation": {"bits_per_byte": "low"}}'), "damaged: 'spent' is missing"),
        (_with("recipe.toml", "seed = "), "damaged: not TOML"),
        (_with("recipe.toml", "strange = 1"), "damaged: strange: no such field"),
        (lambda run: edit(run / "result.json", version=9), "a result of version 9; this farthing reads 1"),
        (
            lambda run: [edit(run / "receipt.json", farthing="99.0"), _with("recipe.toml", "strange = 1")(run)],
            "from farthing 99.0, newer than this one",
        ),
        (
            lambda run: [
                _without("result.json")(run),
                _with("events.jsonl", '{"kind": "started", "version": 9}\n')(run),
            ],
            "events of version 9; this farthing reads 1",
        ),
        (
            lambda run: [_without("result.json")(run), _with("events.jsonl", "what?\n")(run)],
            "damaged: events.jsonl has a line that is not a JSON event: b'what?",
        ),
        (lambda run: (run / "held_out.json").write_text('{"version": 9}'), "a held-out score of version 9"),
        (lambda run: (run / "held_out.json").write_text("{}"), "damaged: 'version' is missing"),
    ],
)
def test_what_cannot_be_read_is_left_out_in_one_line(tmp_path: Path, damage: Any, told: str) -> None:
    write_run(tmp_path, "good")
    write_run(tmp_path, "bad")
    damage(tmp_path / "bad")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = gather([str(tmp_path)], runs=tmp_path, recipe=Recipe)
    assert [run.name for run in found.runs] == ["good"]
    (left,) = found.left_out
    assert left.run == "bad"
    assert left.why.startswith(told), left.why
    assert "\n" not in str(left)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    shutil.rmtree(tmp_path / "good")
    with pytest.raises(UserError, match="no finished run to compare: bad: "):
        gather([str(tmp_path)], runs=tmp_path, recipe=Recipe)


def test_a_running_run_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path, "now", stopped="preempted")
    with run.locked(), pytest.raises(UserError, match="still running, at step 10"):
        read_run(run, Recipe)


def test_a_torn_end_is_no_damage(tmp_path: Path) -> None:
    run = write_run(tmp_path, "torn", stopped="diverged")
    with run.events.open("ab") as stream:
        stream.write(b'{"kind": "resu')
    assert read_run(run, Recipe).why == "diverged at step 10"


def test_a_sample_longer_than_the_end_that_is_read(tmp_path: Path) -> None:
    run = write_run(tmp_path, "long", stopped="diverged")
    lines = run.events.read_text("utf-8").splitlines()
    lines.insert(-1, json.dumps({"kind": "sample", "time": 1.0, "step": 3, "prompt": "", "text": "x" * 200_000}))
    run.events.write_text("\n".join(lines) + "\n", "utf-8")
    assert read_run(run, Recipe).status == "failed"


def test_reading_brings_no_torch(tmp_path: Path) -> None:
    write_arm(tmp_path, "base", {1: 1.2, 2: 1.3})
    program = (
        "import sys\nfrom farthing.cli import main\n"
        "try:\n main(sys.argv[1:])\nexcept SystemExit as end:\n assert not end.code\n"
        "assert not {'torch', 'transformers', 'optuna', 'altair', 'pandas'} & set(sys.modules), 'heavy'"
    )
    words = ["compare", str(tmp_path), "--json", "--curves", str(tmp_path / "curves.csv")]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, env=dict(os.environ), timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["arms"][0]["n"] == 2
