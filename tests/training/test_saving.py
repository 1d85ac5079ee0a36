"""Checkpoints written while training goes on: what is saved is the moment it was asked for, whatever happens after."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farthing.errors import Preempted
from farthing.planning.price import MOST_BETWEEN_SAVES, MOST_SPENT_ON_SAVES, save_interval
from farthing.recipe.running import Checkpoint
from farthing.rundir import RunDir
from farthing.runtime.disk import SavingRate, saving_rate
from farthing.training import checkpoint as checkpoints
from farthing.training.saving import Saver
from training.story import events, final_state, in_child, new_run, notices, recipe, resume, signal_at, tensors_of

OFTEN = ["checkpoint.every=3", "checkpoint.keep=9", "evaluate.every=end", "train.ema=0.9"]
KEYS = {"recipe": "r", "text": "t", "tokenizer": "k"}


def snapshot_of(value: float, optimizer: float = 0.0) -> checkpoints.Snapshot:
    weights = {"weight": torch.full((4, 3), value)}
    return checkpoints.Snapshot(weights, {"weight/m": torch.full((4, 3), optimizer)}, None, {"step": 1})


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run", recipe="", tokenizer="{}", plan={}, receipt={})


def slow_saves(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Saves that begin, tell that they have, and go on only when they may."""
    begun, may = threading.Event(), threading.Event()
    genuine = checkpoints.save

    def save(*arguments: Any) -> checkpoints.Saved:
        begun.set()
        assert may.wait(30)
        return genuine(*arguments)

    monkeypatch.setattr(checkpoints, "save", save)
    return begun, may


def test_F42_what_changes_after_the_start_of_a_save_is_not_in_it(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may = slow_saves(monkeypatch)
    saver = Saver(run, KEYS, keep=2, background=True)
    moment = snapshot_of(1.0, 2.0)
    saver.start(1, moment, protect=None)
    assert begun.wait(30)
    assert saver.finished(wait=False) is None, "it goes on beside us"
    moment.model["weight"].fill_(7.0)
    moment.optimizer["weight/m"].fill_(7.0)
    may.set()
    outcome = saver.finished(wait=True)
    assert outcome is not None and outcome.saved is not None and outcome.step == 1
    read = checkpoints.load(outcome.saved.path)
    assert read.model["weight"].eq(1.0).all() and read.optimizer["weight/m"].eq(2.0).all()
    assert saver.finished(wait=True) is None, "an outcome is told once"


def test_F42_one_save_after_another_in_the_same_memory(run: RunDir) -> None:
    saver = Saver(run, KEYS, keep=9, background=True)
    for step in (1, 2, 3):
        saver.start(step, snapshot_of(float(step)), protect=None)
        assert saver.finished(wait=True) is not None
    saved = [checkpoints.load(run.checkpoint(step)).model["weight"][0, 0].item() for step in (1, 2, 3)]
    assert saved == [1.0, 2.0, 3.0]
    places = {copy.data_ptr() for copy in saver._copies.values()}
    saver.start(4, snapshot_of(4.0), protect=None)
    saver.close()
    assert {copy.data_ptr() for copy in saver._copies.values()} == places


def test_F13_a_saver_that_dies_is_an_error_now(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: Any) -> None:
        raise RuntimeError("the saver is broken")

    monkeypatch.setattr(checkpoints, "save", dies)
    saver = Saver(run, KEYS, keep=2, background=True)
    saver.start(1, snapshot_of(1.0), protect=None)
    with pytest.raises(RuntimeError, match="the saver is broken"):
        saver.finished(wait=True)


def test_F13_a_run_whose_saver_dies_stops_and_can_be_resumed(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(OFTEN)
    whole = final_state(new_run(story / "runs" / "whole", made))
    genuine, calls = checkpoints.save, []

    def dies_once(*arguments: Any) -> checkpoints.Saved:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the saver is broken")
        return genuine(*arguments)

    monkeypatch.setattr(checkpoints, "save", dies_once)
    with pytest.raises(RuntimeError, match="the saver is broken"):
        new_run(story / "runs" / "broken", made)
    broken = RunDir(story / "runs" / "broken")
    assert not broken.is_locked()
    resume(broken)
    assert final_state(broken) == whole


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_background_and_foreground_save_the_same(kind: str, story: Path) -> None:
    made = [recipe([*OFTEN, f"optimizer.kind={kind}", f"checkpoint.background={on}"]) for on in ("true", "false")]
    runs = [new_run(story / "runs" / str(n), one) for n, one in enumerate(made)]
    assert runs[0].checkpoint_steps() == runs[1].checkpoint_steps() == [3, 6, 9, 10]
    for step in runs[0].checkpoint_steps():
        assert tensors_of(runs[0].checkpoint(step)) == tensors_of(runs[1].checkpoint(step))
    assert final_state(runs[0])["tensors"] == final_state(runs[1])["tensors"]


def test_F42_a_slow_disk_holds_training_up_only_for_the_next_save(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(OFTEN)
    whole = new_run(story / "runs" / "whole", made)
    genuine = checkpoints.save
    under_way: list[int] = []

    def save(run: RunDir, step: int, *rest: Any) -> checkpoints.Saved:
        under_way.append(step)
        assert len(under_way) == 1, "one at a time"
        threading.Event().wait(0.2)
        try:
            return genuine(run, step, *rest)
        finally:
            under_way.remove(step)

    monkeypatch.setattr(checkpoints, "save", save)
    slow = new_run(story / "runs" / "slow", made)
    assert final_state(slow) == final_state(whole)
    for step in whole.checkpoint_steps():
        assert tensors_of(slow.checkpoint(step)) == tensors_of(whole.checkpoint(step))


def test_F06_a_signal_while_a_save_is_under_way(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(OFTEN)
    whole = final_state(new_run(story / "runs" / "whole", made))
    with monkeypatch.context() as patch:
        genuine = checkpoints.save

        def save(*arguments: Any) -> checkpoints.Saved:
            threading.Event().wait(0.2)
            return genuine(*arguments)

        patch.setattr(checkpoints, "save", save)
        with pytest.raises(Preempted):
            new_run(story / "runs" / "cut", made, signal_at(4))
    cut = RunDir(story / "runs" / "cut")
    assert cut.checkpoint_steps() == [3, 4], "the one under way was finished, and the stop has its own"
    resume(cut)
    assert final_state(cut) == whole


@pytest.mark.parametrize("point", ["checkpoint.after_tensors", "checkpoint.before_rename", "checkpoint.after_rename"])
def test_F42_killed_in_the_background(point: str, story: Path) -> None:
    made = recipe(OFTEN)
    whole = final_state(new_run(story / "runs" / "whole", made))
    cut = RunDir(story / "runs" / "cut")
    died = in_child(lambda: new_run(cut.path, made), story, crashpoint=f"{point}:2")
    assert died.code == -signal.SIGKILL
    resume(cut)
    assert final_state(cut) == whole


def test_F20_a_failed_save_in_the_background_is_told_once(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = checkpoints.save

    def fails_once(run: RunDir, step: int, *rest: Any) -> checkpoints.Saved:
        if step == 3:
            raise OSError(28, "No space left on device")
        return genuine(run, step, *rest)

    monkeypatch.setattr(checkpoints, "save", fails_once)
    run = new_run(story / "runs" / "full", recipe(OFTEN))
    assert notices(run).count("checkpoint_failed") == 1
    assert run.checkpoint_steps() == [6, 9, 10]


def test_the_event_tells_the_stall(story: Path) -> None:
    run = new_run(story / "runs" / "told", recipe(OFTEN))
    told = events(run, "checkpoint")
    assert [event["step"] for event in told] == [3, 6, 9, 10, 10]
    assert all(event["stall"] >= 0 for event in told)


@given(
    size=st.floats(1e4, 1e11),
    copy=st.floats(1e8, 1e11),
    write=st.floats(1e6, 1e10),
    hours=st.floats(0.1, 1000),
    idle=st.floats(1, 10),
    background=st.booleans(),
    crowded=st.booleans(),
)
def test_the_interval_costs_little_and_loses_little(
    size: float, copy: float, write: float, hours: float, idle: float, background: bool, crowded: bool
) -> None:
    section = Checkpoint(background=background, mtbf_hours=hours)
    interval = save_interval(section, int(size), SavingRate(copy, write, write * idle), crowded=crowded)
    beside = int(size) / copy + (int(size) / write / idle if crowded else 0)
    lost = beside if background else int(size) / write
    assert lost <= interval * MOST_SPENT_ON_SAVES * (1 + 1e-9)
    assert interval <= max(MOST_BETWEEN_SAVES, lost / MOST_SPENT_ON_SAVES, 2 * int(size) / write) * (1 + 1e-9)


def test_an_unknown_disk_is_saved_to_every_minute() -> None:
    assert save_interval(Checkpoint(), 10**12, None) == MOST_BETWEEN_SAVES


def test_frequent_failures_ask_for_frequent_saves() -> None:
    intervals = [save_interval(Checkpoint(mtbf_hours=h), 10**6, SavingRate(1e10, 1e9, 1e9)) for h in (0.1, 1, 10)]
    assert intervals == sorted(intervals) and intervals[0] < intervals[-1]


def test_the_disk_is_measured_where_it_can_be(tmp_path: Path) -> None:
    rate = saving_rate(tmp_path)
    assert rate is not None and rate.copy > 0 and rate.write > 0 and rate.work >= 0.9 * rate.write
    assert not list(tmp_path.iterdir()), "it leaves nothing"
    assert saving_rate(tmp_path / "not there") is None
