"""Faults put into a child of this process, at chosen operations or moments, and the phase that each one hit.

Phases are what the run was doing: starting, training, logging, saving, pruning, scoring, resuming, ending.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

OPERATIONS = ("open", "write", "fsync", "ftruncate", "rename", "replace", "unlink", "rmdir", "mkdir", "scandir")
"""of the module os; what a save, an event or a resume is made of, but for the tensors, which are written in Rust"""
_GENUINE = {name: getattr(os, name) for name in (*OPERATIONS, "kill", "_exit")}

_PHASES = (
    # (function, module), the innermost that is found names the phase
    ("prune", "training/checkpoint.py", "pruning"),
    ("discard", "training/checkpoint.py", "pruning"),
    ("sweep", "rundir.py", "sweeping"),
    ("save", "training/checkpoint.py", "saving"),
    ("load_newest", "training/checkpoint.py", "resuming"),
    ("resume", "session.py", "resuming"),
    ("position", "events.py", "saving"),
    ("emit", "events.py", "logging"),
    ("create", "rundir.py", "starting"),
    ("_conclude", "session.py", "ending"),
    ("_end", "training/loop.py", "ending"),
    ("train", "training/loop.py", "training"),
    ("new_run", "session.py", "starting"),
)


def phase_here(frame: FrameType | None = None) -> str:
    """What the run is doing, from the calls under way."""
    frame = frame or sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        for function, module, phase in _PHASES:
            if code.co_name == function and code.co_filename.endswith(module):
                return phase
        frame = frame.f_back
    return "starting"


@dataclass
class Injection:
    """What is to happen in the child.

    Args:
        operation: count these; "any" counts all.
        at: happens at this one of them, from 1.
        what: kill_before, kill_after, EIO, ENOSPC.
        times: how many operations in a row fail, for errors.
        only: path words, one of which the operation's path must hold; empty: any path.
    """

    operation: str = "any"
    at: int = 1
    what: str = "kill_before"
    times: int = 1
    only: tuple[str, ...] = ()


class Operations:
    """Counts what this process asks of the file system, and does what is asked for at one of them.

    Args:
        report: where the phase is written to when the fault happens, and the count at the end.
        injection: the fault; None only counts.
    """

    def __init__(self, report: Path, injection: Injection | None) -> None:
        self.count = 0
        self._report, self._injection = report, injection

    def install(self) -> None:
        """From now on, in this process, for ever: the child ends anyway."""
        for name in OPERATIONS:
            setattr(os, name, self._wrapped(name, _GENUINE[name]))

    def told(self) -> None:
        """Write the count down."""
        _append(self._report, f"count {self.count}\n")

    def _wrapped(self, name: str, genuine: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            injection = self._injection
            if injection is not None and injection.operation not in ("any", name):
                return genuine(*arguments, **more)
            self.count += 1
            if injection is None or not injection.at <= self.count < injection.at + injection.times:
                return genuine(*arguments, **more)
            _append(self._report, f"fault {phase_here(sys._getframe(1))} {name}\n")
            if injection.what == "kill_before":
                _GENUINE["kill"](os.getpid(), signal.SIGKILL)
            if injection.what == "kill_after":
                genuine(*arguments, **more)
                _GENUINE["kill"](os.getpid(), signal.SIGKILL)
            code = getattr(errno, injection.what)
            raise OSError(code, os.strerror(code))

        return call


def _append(path: Path, text: str) -> None:
    descriptor = _GENUINE["open"](path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    _GENUINE["write"](descriptor, text.encode())
    os.close(descriptor)


@dataclass(frozen=True)
class Child:
    """How a child ended, and the phases that faults hit in it."""

    code: int
    phases: tuple[str, ...]
    count: int
    message: str


def spawn(work: Callable[[], object], report: Path, *, injection: Injection | None = None, limit: int = 0) -> int:
    """Start `work` in a fork, with a fault or a limit on the size of files; returns its process id."""
    report.unlink(missing_ok=True)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(180)
        devnull = _GENUINE["open"](os.devnull, os.O_RDWR)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        if limit:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        operations = Operations(report, injection)
        operations.install()
        try:
            work()
            code = 0
        finally:
            operations.told()
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        _append(report, f"error {type(error).__name__}: {error}\n".replace("\n", " ") + "\n")
    finally:
        _GENUINE["_exit"](code)
    return 0


def wait(child: int, report: Path) -> Child:
    """Wait for a child to end and read what it left."""
    _, status = os.waitpid(child, 0)
    lines = report.read_text("utf-8").splitlines() if report.exists() else []
    phases = tuple(line.split()[1] for line in lines if line.startswith("fault "))
    counts = [int(line.split()[1]) for line in lines if line.startswith("count ")]
    errors = [line.removeprefix("error ") for line in lines if line.startswith("error ")]
    return Child(os.waitstatus_to_exitcode(status), phases, counts[-1] if counts else 0, errors[-1] if errors else "")


def seen_from_outside(run: Path) -> str:
    """The phase of a run that was killed from outside, from what it left."""
    checkpoints = run / "checkpoints"
    if not checkpoints.is_dir():
        return "starting"
    names = [entry.name for entry in checkpoints.iterdir()]
    if any(name.startswith(".tmp-") for name in names):
        return "saving"
    if any(name.startswith((".trash-", ".old-")) for name in names):
        return "pruning"
    return "training"


def until(run: Path, child: int, growth: int, *, seconds: float = 60.0) -> bool:
    """Wait until a run's events have grown by so many bytes; False if the child ended before."""
    events = run / "events.jsonl"
    start = events.stat().st_size if events.exists() else 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        size = events.stat().st_size if events.exists() else 0
        if size - start >= growth:
            return True
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.001)
    return False
