"""A run that gets nowhere leaves word of what it was doing, and a run that does leaves nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from farthing.training import loop
from farthing.training.watchdog import Watchdog
from training.story import events, final_state, new_run, recipe


def stuck_in_a_call() -> None:
    time.sleep(0.6)


def test_a_stall_is_written_down_with_its_stack_and_told_once(tmp_path: Path) -> None:
    file = tmp_path / "stacks.txt"
    with Watchdog(file, patience=0.2) as watchdog:
        assert watchdog.alive() is None
        stuck_in_a_call()
        took = watchdog.alive()
        assert took is not None and took > 0.2
        assert watchdog.alive() is None
    assert "stuck_in_a_call" in file.read_text("utf-8")


def test_a_second_stall_is_told_too(tmp_path: Path) -> None:
    with Watchdog(tmp_path / "stacks.txt", patience=0.1) as watchdog:
        time.sleep(0.4)
        assert watchdog.alive() is not None
        watchdog._slowest = 0.0
        watchdog._arm(time.monotonic())
        time.sleep(0.4)
        assert watchdog.alive() is not None


def test_no_stall_leaves_no_file(tmp_path: Path) -> None:
    with Watchdog(tmp_path / "stacks.txt", patience=60) as watchdog:
        assert watchdog.alive() is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_no_trouble(tmp_path: Path) -> None:
    with Watchdog(tmp_path / "not there" / "stacks.txt", patience=0.01) as watchdog:
        time.sleep(0.05)
        assert watchdog.alive() is None


def test_F11_a_run_that_hangs_goes_on_with_a_notice(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(["evaluate.every=end"])
    whole = final_state(new_run(story / "runs" / "whole", made))
    monkeypatch.setattr(loop, "Watchdog", lambda path: Watchdog(path, patience=0.3))
    genuine, calls = loop.Trainer._take, []

    def hangs_once(self: loop.Trainer, index: int) -> object:
        calls.append(index)
        if len(calls) == 4:
            stuck_in_a_call()
        return genuine(self, index)

    monkeypatch.setattr(loop.Trainer, "_take", hangs_once)
    run = new_run(story / "runs" / "hung", made)
    told = [event for event in events(run, "notice") if event["code"] == "stalled"]
    assert len(told) == 1 and told[0]["details"]["seconds"] > 0.3
    assert "stuck_in_a_call" in run.stacks.read_text("utf-8")
    assert final_state(run) == whole


def test_F11_stopped_and_continued(story: Path) -> None:
    """SIGSTOP for a moment, as a laptop that sleeps: the end is the same."""
    made = recipe(["evaluate.every=end", "budget.steps=40"])
    whole = final_state(new_run(story / "runs" / "whole", made))
    run_path = story / "runs" / "slept"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            new_run(run_path, made)
            code = 0
        finally:
            os._exit(code)
    for _ in range(3):
        time.sleep(0.15)
        os.kill(child, signal.SIGSTOP)
        time.sleep(0.2)
        os.kill(child, signal.SIGCONT)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    from farthing.rundir import RunDir

    assert final_state(RunDir(run_path)) == whole
