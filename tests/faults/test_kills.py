"""F01, F05: a kill -9 at any point loses nothing that was saved, needs nobody's help, and does not change the end."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from farthing import config, errors
from farthing.recipe import Recipe
from farthing.rundir import RunDir
from training.story import Ended, events, final_state, in_child, new_run, recipe, resume

SOURCES = Path(config.__file__).parent
PASSAGES = (1, 2)
ONCE_A_RUN = {"checkpoint.in_replace"}
"""reached once only; the second kill is then in the resumed sitting"""
# SAM, dropout and an average of the weights: whatever is lost shows in the end.
BUSY = [
    "optimizer.sharpness.kind=sam",
    "train.ema=0.9",
    "checkpoint.every=3",
    "evaluate.every=4",
]


def crashpoints() -> list[str]:
    """Every place in the product where a kill can be asked for; a new one cannot be forgotten here."""
    found = set()
    for file in SOURCES.rglob("*.py"):
        found |= set(re.findall(r'crashpoint\("([^"]+)"\)', file.read_text("utf-8")))
    return sorted(found)


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    return {}


def undisturbed_end(kept: dict[str, Any], story: Path, made: Recipe) -> dict[str, Any]:
    key = config.fingerprint(made)
    if key not in kept:
        kept[key] = final_state(new_run(story / "runs" / "whole", made))
    return kept[key]


def start_and_die(made: Recipe, path: Path, crashpoint: str) -> Ended:
    return in_child(lambda: new_run(path, made), path.parent.parent, crashpoint=crashpoint)


def go_on(run: RunDir, made: Recipe, folder: Path, *, crashpoint: str = "") -> Ended:
    """What a person or a supervisor does: resume, or start again where there is no run yet."""
    if run.recipe.is_file():
        return in_child(lambda: resume(run), folder, crashpoint=crashpoint)
    return in_child(lambda: new_run(run.path, made), folder, crashpoint=crashpoint)


def leftovers(run: RunDir) -> list[str]:
    return [str(path) for path in run.path.rglob(".*")]


def test_there_are_points_to_be_killed_at() -> None:
    assert len(crashpoints()) >= 8


@pytest.mark.parametrize("point", crashpoints())
def test_F01_killed_at(point: str, story: Path, undisturbed: dict[str, Any]) -> None:
    made = recipe(BUSY)
    whole = undisturbed_end(undisturbed, story, made)
    for passage in PASSAGES:
        run = RunDir(story / "runs" / f"killed-{passage}")
        again = point in ONCE_A_RUN and passage > 1
        died = start_and_die(made, run.path, f"{point}:{1 if again else passage}")
        # The fault must have happened, or the test would prove nothing.
        assert died.code == -signal.SIGKILL, died
        assert not run.is_locked()
        if again:
            assert go_on(run, made, story, crashpoint=point).code == -signal.SIGKILL
        ended = go_on(run, made, story)
        assert ended.code == 0, ended
        assert final_state(run) == whole
        assert not leftovers(run)


def test_F03_killed_again_and_again(story: Path, undisturbed: dict[str, Any]) -> None:
    made = recipe(BUSY)
    whole = undisturbed_end(undisturbed, story, made)
    run = RunDir(story / "runs" / "loop")
    deaths = 0
    # Each sitting gets as far as its second save, and dies there.
    for _ in range(12):
        ended = go_on(run, made, story, crashpoint="checkpoint.before_rename:2")
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended
        deaths += 1
        assert len(leftovers(run)) <= 1
    assert deaths >= 3
    assert final_state(run) == whole


@pytest.mark.parametrize("point", ["checkpoint.in_replace", "checkpoint.before_rename", "checkpoint.after_rename"])
def test_F05_the_only_checkpoint_survives_its_own_replacement(point: str, story: Path) -> None:
    # The final state is saved before the final evaluation and again after it: by then it is all there is.
    made = recipe(["checkpoint.every=end", "evaluate.every=end", "checkpoint.best=false"])
    run = RunDir(story / "runs" / "end")
    died = start_and_die(made, run.path, point if point.endswith("in_replace") else f"{point}:2")
    assert died.code == -signal.SIGKILL, died
    before = run.events.read_bytes()
    assert b'"step": 10' in before
    ended = go_on(run, made, story)
    assert ended.code == 0, ended
    resumed = events(run, "resumed")
    assert [event["step"] for event in resumed] == [10], "the training was paid for twice"


def test_F05_a_kill_while_pruning_leaves_two_good_checkpoints_and_the_best(story: Path) -> None:
    made = recipe(["checkpoint.every=2", "evaluate.every=2"])
    for point in ("checkpoint.before_delete", "checkpoint.in_delete"):
        run = RunDir(story / "runs" / point)
        assert start_and_die(made, run.path, f"{point}:2").code == -signal.SIGKILL
        assert len(run.checkpoint_steps()) >= 2
        ended = go_on(run, made, story)
        assert ended.code == 0, ended
        assert len(run.checkpoint_steps()) in (2, 3)


def test_F04_a_kill_while_resuming_changes_nothing(story: Path, undisturbed: dict[str, Any]) -> None:
    made = recipe(BUSY)
    whole = undisturbed_end(undisturbed, story, made)
    run = RunDir(story / "runs" / "twice")
    assert start_and_die(made, run.path, "checkpoint.after_rename").code == -signal.SIGKILL
    # The first thing that a resumed sitting writes atomically, and so on.
    for point in ("storage.before_rename:1", "storage.before_folder_rename:1", "checkpoint.after_tensors:1"):
        assert go_on(run, made, story, crashpoint=point).code == -signal.SIGKILL
    assert go_on(run, made, story).code == 0
    assert final_state(run) == whole


def test_F36_a_second_process_is_kept_out_and_let_in_at_once_after_a_kill(story: Path) -> None:
    made = recipe()
    run = RunDir(story / "runs" / "shared")

    def hold_and_be_refused() -> None:
        with run.locked():
            inner = in_child(lambda: resume(run), story)
            assert inner.code == errors.RunLockedError.exit_code, inner
            assert "in use by process" in inner.message

    assert start_and_die(made, run.path, "checkpoint.after_rename").code == -signal.SIGKILL
    assert in_child(hold_and_be_refused, story) == Ended(0, "")
    assert go_on(run, made, story).code == 0
