"""resume --all: after a reboot, everything unfinished goes on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from farthing.cli.options import say_json
from farthing.errors import Preempted, ResourceError, RunLockedError, UserError
from farthing.rundir import RunDir, list_runs
from farthing.sinks.legible import legible

_IN_WORDS = {
    0: "finished",
    3: "its data has changed",
    4: "no valid checkpoint",
    5: "diverged",
    6: "memory or disk ran out",
    RunLockedError.exit_code: "another process is at work on it",
    Preempted.exit_code: "stopped again; resume continues it",
    130: "stopped at once",
}
_TRIES = 3
"""sittings that may end without a new step, before a run is left alone"""


def resume_all(folder: Path, *, device: str, deadline: str | None, quiet: bool, as_json: bool) -> None:
    """Continue each run in `folder` and below that has neither finished nor is being worked on, the oldest first.

    Each goes on in a process of its own, so that none can take the others down. One that was killed is taken up
    again while it gets further; Ctrl-C, SIGTERM and the deadline stop the whole.

    Raises:
        UserError: there is no such folder.
        Preempted: a signal or the deadline stopped it before all were done.
        ResourceError: all were tried and some could not be finished.
    """
    if not folder.is_dir():
        raise UserError(f"--all {folder}: no such folder")
    ended: dict[str, int] = {}
    until = None if deadline is None else _moment(deadline)
    deadline = None if until is None else until.isoformat()
    for run in unfinished(folder):
        if until is not None and until <= datetime.now():
            ended[str(run.path)] = Preempted.exit_code
            break
        ended[str(run.path)] = code = _continue(run, device=device, deadline=deadline, quiet=quiet, as_json=as_json)
        if not as_json and not quiet:
            print(f"{legible(str(run.path))}: {in_words(code)}")
        if code in (Preempted.exit_code, 130):
            break
    else:
        if as_json:
            say_json({path: in_words(code) for path, code in ended.items()})
        elif not ended and not quiet:
            print(f"{legible(str(folder))}: nothing to continue")
        if failed := [path for path, code in ended.items() if code]:
            raise ResourceError(f"{len(failed)} of {len(ended)} runs could not be finished: {', '.join(failed)}")
        return
    raise Preempted(f"{list(ended)[-1]}: stopped. Continue with: farthing resume --all {shlex.quote(str(folder))}")


def _moment(deadline: str) -> datetime:
    """A duration counts once, from now, however many runs share it."""
    from farthing.training.interruption import parse_deadline

    return datetime.fromtimestamp(parse_deadline(deadline))


def in_words(code: int) -> str:
    """An exit code as a person says it."""
    return _IN_WORDS.get(code, f"killed by signal {-code}" if code < 0 else f"ended with code {code}")


def unfinished(folder: Path) -> list[RunDir]:
    """Runs in a folder, and in the folders in it, that have stopped before their end, the oldest first."""
    if RunDir(folder).recipe.is_file():
        found = [RunDir(folder)]
    else:
        found = [run for one in _folders(folder) for run in list_runs(one)]
    return [run for run in found if not run.result.is_file() and not run.is_locked()]


def _folders(folder: Path) -> Iterator[Path]:
    """A folder and all below it that may hold runs: not those inside a run, nor hidden ones."""
    yield folder
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink() and entry.name[0] != "." and not RunDir(entry).recipe.is_file():
            yield from _folders(entry)


def _continue(run: RunDir, *, device: str, deadline: str | None, quiet: bool, as_json: bool) -> int:
    command = [sys.executable, "-m", "farthing", "resume", str(run.path), "--device", device]
    command += ["--deadline", deadline] if deadline is not None else []
    command += ["--quiet"] if quiet or as_json else []
    idle = 0
    while True:
        before = run.checkpoint_steps()[-1:]
        code = _passing_signals_on(command)
        if code >= 0:
            return code
        # Killed from outside, by the system for want of memory perhaps. A run that gets nowhere is left alone.
        idle = idle + 1 if run.checkpoint_steps()[-1:] == before else 0
        if idle >= _TRIES:
            return code


def _passing_signals_on(command: list[str]) -> int:
    """Run a command to its end; returns its exit code, or minus the signal that killed it.

    In a process group of its own, so that Ctrl-C reaches it once, through us: twice would mean to stop at once.
    """
    process = subprocess.Popen(command, process_group=0 if hasattr(os, "setpgid") else None)
    names = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
    before = {
        name: signal.signal(getattr(signal, name), lambda number, _: process.send_signal(number)) for name in names
    }
    try:
        return process.wait()
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
