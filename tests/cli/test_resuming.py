"""resume --all: what a person types after a reboot."""

from __future__ import annotations

import json
import os
import shutil
import signal
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from cli.small import FOREVER, Command, end, in_process_of_its_own, start, wait_for_step
from farthing.cli import resuming
from farthing.cli.resuming import in_words, unfinished
from farthing.errors import Preempted
from farthing.rundir import RunDir


def killed(desk: Path, name: str, *more: str, runs: str = "runs") -> RunDir:
    """A run that a power cut or the system has ended."""
    run = RunDir(desk / runs / name)
    process = start("train", "small.toml", *more, "--runs", runs, "--name", name, cwd=desk)
    wait_for_step(process, run, more_than=3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert run.status() == "stopped"
    return run


def test_everything_unfinished_is_finished_and_nothing_else_touched(desk: Path) -> None:
    slow = ["budget.steps=60", "checkpoint.every=2", "evaluate.every=end"]
    above, below = killed(desk, "above", *slow), killed(desk, "below", *slow, runs="runs/deeper")
    done = RunDir(desk / "runs" / "done")
    assert in_process_of_its_own("train", "small.toml", "--name", "done", "--quiet", cwd=desk).code == 0
    before = done.result.stat().st_mtime_ns
    answer = in_process_of_its_own("resume", "--all", "runs", "--json", cwd=desk)
    assert answer.code == 0, answer
    assert json.loads(answer.out.splitlines()[-1]) == {"runs/above": "finished", "runs/deeper/below": "finished"}
    assert above.status() == below.status() == "finished"
    assert done.result.stat().st_mtime_ns == before
    again = in_process_of_its_own("resume", "--all", "runs", cwd=desk)
    assert (again.code, again.out) == (0, "runs: nothing to continue\n")


def test_one_that_cannot_go_on_does_not_keep_the_others_back(desk: Path) -> None:
    slow = ["budget.steps=60", "checkpoint.every=2", "evaluate.every=end"]
    broken, whole = killed(desk, "broken", *slow), killed(desk, "whole", *slow)
    broken.receipt.write_text("{", "utf-8")
    answer = in_process_of_its_own("resume", "--all", "runs", "--quiet", cwd=desk)
    assert answer.code == 6
    assert answer.err.splitlines()[-1] == "error: 1 of 2 runs could not be finished: runs/broken"
    assert whole.status() == "finished"


def test_a_signal_stops_the_whole_once_and_cleanly(desk: Path) -> None:
    first = killed(desk, "first", *FOREVER, "checkpoint.every=2")
    killed(desk, "second", *FOREVER, "checkpoint.every=2")
    before = first.events.read_text("utf-8").count('"kind": "step"')
    process = start("resume", "--all", "runs", cwd=desk)
    # The new sitting forgets the steps after the last checkpoint first, so only more than ever before are its own.
    wait_for_step(process, first, more_than=before)
    stopped = end(process, signal.SIGINT)
    assert stopped.code == 75, stopped
    assert stopped.err.splitlines()[-1] == "stopped: runs/first: stopped. Continue with: farthing resume --all runs"
    assert "SIGINT received" in stopped.err
    assert not first.is_locked()


def test_a_run_in_use_is_left_to_its_user(desk: Path) -> None:
    run = RunDir(desk / "runs" / "busy")
    process = start("train", "small.toml", *FOREVER, "--name", "busy", cwd=desk)
    wait_for_step(process, run)
    assert unfinished(desk / "runs") == []
    end(process, signal.SIGTERM)
    assert [one.name for one in unfinished(desk / "runs")] == ["busy"]


def test_what_is_inside_a_run_or_hidden_is_no_run(trained: Path) -> None:
    shutil.copytree(trained / "runs" / "done", trained / "runs" / "done" / "copy")
    shutil.copytree(trained / "runs" / "done", trained / "runs" / ".hidden" / "copy")
    for copy in ("runs/done/copy", "runs/.hidden/copy"):
        RunDir(trained / copy).result.unlink()
    assert unfinished(trained / "runs") == []
    RunDir(trained / "runs" / "done").result.unlink()
    assert [run.path for run in unfinished(trained / "runs" / "done")] == [trained / "runs" / "done"]


@pytest.mark.parametrize("words", [["resume"], ["resume", "done", "--all", "runs"], ["resume", "--all", "nowhere"]])
def test_what_is_asked_must_be_clear(words: list[str], trained: Path, farthing: Command) -> None:
    answer = farthing(*words)
    assert answer.code == 2 and answer.err.count("\n") == 1


def test_codes_in_words() -> None:
    assert in_words(0) == "finished" and in_words(-9) == "killed by signal 9" and in_words(42) == "ended with code 42"


def test_all_runs_share_one_deadline(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [RunDir(desk / "runs" / name) for name in ("first", "second", "third")]
    given: list[str] = []
    clock = [datetime(2026, 11, 22, 12, 0)]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return clock[0]

    def goes_on(run: RunDir, *, deadline: str, **more: object) -> int:
        given.append(deadline)
        clock[0] += timedelta(minutes=60)
        return 0

    monkeypatch.setattr(resuming, "datetime", Clock)
    monkeypatch.setattr(resuming, "unfinished", lambda folder: runs)
    monkeypatch.setattr(resuming, "_continue", goes_on)
    monkeypatch.setattr(resuming, "_moment", lambda deadline: clock[0] + timedelta(minutes=90))
    with pytest.raises(Preempted, match="resume --all"):
        resuming.resume_all(desk, device="cpu", deadline="90m", quiet=True, as_json=False)
    assert given == ["2026-11-22T13:30:00"] * 2, "the third would begin after the end"


def test_a_deadline_counts_from_now() -> None:
    until = resuming._moment("90m")
    assert timedelta(minutes=89) < until - datetime.now() <= timedelta(minutes=90)
