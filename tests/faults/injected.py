"""Faults put into a child of this process, at chosen operations, phases or moments, and the phase that each one hit.

Phases are what the run is doing. Every thread of a child keeps a stack of them, and writes the innermost into memory
that it shares with its parent, who reads it even after a kill -9.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farthing.errors import of_the_system

PHASES = ("starting", "training", "logging", "saving", "pruning", "sweeping", "scoring", "resuming", "ending")
OPERATIONS = ("open", "write", "fsync", "ftruncate", "rename", "replace", "unlink", "rmdir", "mkdir", "scandir")
"""of the module os; what a save, an event or a resume is made of, but for the tensors, which are written in Rust"""
_GENUINE = {name: getattr(os, name) for name in (*OPERATIONS, "kill", "_exit", "close")}
LONGEST_SECONDS = 120
"""that a sitting may last; one of these runs takes less than a second where nothing else is going on"""
_PIECE = 1 << 16
"""bytes: as large as the smallest tensors that matter"""


class Doing:
    """What a child is doing, in memory that its parent reads whatever becomes of it."""

    def __init__(self) -> None:
        self.entered: Counter[str] = Counter()
        """how often each phase has begun, in this process"""
        self.on_entry: Callable[[str, int], None] = lambda phase, times: None
        """called in the child with a phase that begins, and how often it now has"""
        self._memory: mmap.mmap | bytearray = mmap.mmap(
            -1, 2
        )  # the main thread's phase, and that of the thread that saves
        self._stack = threading.local()

    def begin_anew(self) -> None:
        """For a new child, in its parent."""
        self._memory[:] = b"\0\0"
        self.entered.clear()

    def alone(self) -> None:
        """For a process of which nobody wants to know."""
        self._memory = bytearray(2)

    def now(self) -> str:
        """The phase of a child; where a save is under way beside training, the save's."""
        return PHASES[self._memory[1] or self._memory[0]]

    def both(self) -> tuple[str, str]:
        """The phases of a child's main thread and of the one that saves; the first one's where there is none."""
        return PHASES[self._memory[0]], self.now()

    def here(self) -> str:
        """The phase of this thread."""
        stack = getattr(self._stack, "phases", None)
        return stack[-1] if stack else PHASES[0]

    def tell_of(self, owner: Any, name: str, phase: str) -> None:
        """From now on, calls of this function are in this phase."""
        genuine = getattr(owner, name)

        @functools.wraps(genuine)
        def call(*arguments: Any, **more: Any) -> Any:
            stack = self._stack.__dict__.setdefault("phases", [])
            stack.append(phase)
            self._write(stack)
            self.entered[phase] += 1
            self.on_entry(phase, self.entered[phase])
            try:
                return genuine(*arguments, **more)
            finally:
                stack.pop()
                self._write(stack)

        setattr(owner, name, call)

    def _write(self, stack: list[str]) -> None:
        slot = 0 if threading.current_thread() is threading.main_thread() else 1
        self._memory[slot] = PHASES.index(stack[-1]) if stack else 0


DOING = Doing()


@functools.cache
def watch_phases() -> None:
    """Have runs of this process and its children tell their phases, from now on."""
    from farthing import assemble, session
    from farthing.events import EventLog
    from farthing.rundir import RunDir
    from farthing.training import checkpoint as checkpoints
    from farthing.training.loop import Trainer
    from farthing.training.step import Stepper

    for owner, name, phase in (
        (session, "new_run", "starting"),
        (session, "resume", "resuming"),
        (Trainer, "_train", "training"),
        (Stepper, "take", "training"),
        (EventLog, "emit", "logging"),
        (EventLog, "position", "saving"),
        (checkpoints, "save", "saving"),
        (checkpoints, "prune", "pruning"),
        (RunDir, "sweep", "sweeping"),
        (assemble, "score", "scoring"),
        (Trainer, "_end", "ending"),
        (session, "_conclude", "ending"),
    ):
        DOING.tell_of(owner, name, phase)


@dataclass(frozen=True)
class Injection:
    """What is to happen in the child.

    Args:
        what: kill_before or kill_after an operation, or an error by its name (EIO, ENOSPC) from it; or, when a phase
            begins: kill_within (some seconds), raise, memory or descriptors (which run out).
        at: at this one of the operations, or beginnings of the phase, from 1.
        operation: count these; "any" counts all.
        phase: count operations in this phase only; or the phase whose beginning is meant.
        times: how many operations in a row fail, for errors.
        amount: seconds, bytes or descriptors.
    """

    what: str = "kill_before"
    at: int = 1
    operation: str = "any"
    phase: str = ""
    times: int = 1
    amount: float = 0.0


AT_ENTRY = ("kill_within", "raise", "memory", "descriptors")


class Operations:
    """Counts what this process asks of the file system, and does what is asked for at one of them.

    Args:
        report: where the phase is written to when the fault happens, and the count at the end.
        injection: the fault; None only counts.
    """

    def __init__(self, report: Path, injection: Injection | None) -> None:
        self.counts: Counter[str] = Counter()
        self._report, self._injection = report, injection
        self._seen, self._told = 0, False
        self._taken: list[bytearray] = []

    def install(self) -> None:
        """From now on, in this process, for ever: the child ends anyway."""
        if self._injection is not None and self._injection.what in AT_ENTRY:
            DOING.on_entry = self._entered
        for name in OPERATIONS:
            setattr(os, name, self._wrapped(name, _GENUINE[name]))

    def write_counts(self) -> None:
        """Write down how many operations there were, phase by phase."""
        for phase, count in self.counts.items():
            append(self._report, f"count {phase} {count}\n")

    def give_back(self) -> None:
        """The memory that has been taken away."""
        self._taken.clear()

    def struck(self, phase: str) -> None:
        """Write down that the fault has happened, once."""
        if not self._told:
            self._told = True
            append(self._report, f"fault {phase}\n")

    def _wrapped(self, name: str, genuine: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            phase, injection = DOING.here(), self._injection
            self.counts[phase] += 1
            if (
                injection is None
                or injection.what in AT_ENTRY
                or injection.operation not in ("any", name)
                or injection.phase not in ("", phase)
            ):
                return genuine(*arguments, **more)
            self._seen += 1
            if not injection.at <= self._seen < injection.at + injection.times:
                return genuine(*arguments, **more)
            if injection.what == "kill_after":
                genuine(*arguments, **more)
            self.struck(phase)
            if injection.what.startswith("kill"):
                _GENUINE["kill"](os.getpid(), signal.SIGKILL)
            code = getattr(errno, injection.what)
            raise OSError(code, os.strerror(code))

        return call

    def _entered(self, phase: str, times: int) -> None:
        injection = self._injection
        assert injection is not None
        if phase != injection.phase or times != injection.at:
            return
        match injection.what:
            case "kill_within":
                # Nobody handles SIGALRM, so it ends the process wherever it is, in C too, as kill -9 does.
                signal.setitimer(signal.ITIMER_REAL, max(1e-6, injection.amount))
            case "memory":
                in_use = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
                _limit(resource.RLIMIT_AS, in_use)
                self._taken = _all_free_memory()
                del self._taken[: int(injection.amount) // _PIECE]
            case "descriptors":
                free = os.dup(0)
                _GENUINE["close"](free)
                _limit(resource.RLIMIT_NOFILE, free + int(injection.amount))
            case "raise":
                self.struck(phase)
                raise RuntimeError("put in by the fault harness")


def _all_free_memory() -> list[bytearray]:
    """What malloc still has of large pieces, taken; small objects still find room."""
    taken = []
    with contextlib.suppress(MemoryError):
        while True:
            taken.append(bytearray(_PIECE))
    return taken


def _limit(what: int, soft: float) -> None:
    resource.setrlimit(what, (int(soft), resource.getrlimit(what)[1]))


def append(path: Path, text: str) -> None:
    """Add to a report, whatever has become of os."""
    descriptor = _GENUINE["open"](path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    _GENUINE["write"](descriptor, text.encode())
    _GENUINE["close"](descriptor)


@dataclass(frozen=True)
class Child:
    """How a child ended, and the phases that faults hit in it.

    Args:
        code: exit code, or minus the signal that killed it.
        phases: of faults that the child noted.
        last: what it was doing when it ended: its main thread, and the one that saves.
        counts: operations, phase by phase, of a child that came to an end of its own.
        message: what it had to say.
    """

    code: int
    phases: tuple[str, ...]
    last: tuple[str, str]
    counts: Counter[str]
    message: str


def spawn(work: Callable[[], object], report: Path, *, injection: Injection | None = None, limit: int = 0) -> int:
    """Start `work` in a fork, with a fault, or a limit on the bytes of a file; returns its process id."""
    report.unlink(missing_ok=True)
    DOING.begin_anew()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(LONGEST_SECONDS)
        devnull = _GENUINE["open"](os.devnull, os.O_RDWR)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        operations = Operations(report, injection)
        if limit:
            # Handled, not ignored, so that it is known to have happened; the write fails with EFBIG either way.
            signal.signal(signal.SIGXFSZ, lambda number, frame: operations.struck(DOING.now()))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        operations.install()
        work()
        code = 0
    except BaseException as error:
        known = of_the_system(error) if isinstance(error, OSError) else error  # as the command line answers it
        code = 130 if isinstance(error, KeyboardInterrupt) else getattr(known, "exit_code", 1)
        told = f"{type(error).__name__}: {error}"
    finally:
        # What has run out for the run is needed for the report.
        operations.give_back()
        for what in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
            _limit(what, resource.getrlimit(what)[1])
        operations.write_counts()
        if code:
            append(report, f"error {told}".replace("\n", " ") + "\n")
        _GENUINE["_exit"](code)
    return 0


def wait(child: int, report: Path) -> Child:
    """Wait for a child to end and read what it left."""
    _, status = os.waitpid(child, 0)
    lines = [line.split(" ", 1) for line in report.read_text("utf-8").splitlines()] if report.exists() else []
    counts: Counter[str] = Counter()
    for kind, rest in lines:
        if kind == "count":
            phase, _, count = rest.partition(" ")
            counts[phase] += int(count)
    phases = tuple(rest for kind, rest in lines if kind == "fault")
    errors = [rest for kind, rest in lines if kind == "error"]
    return Child(os.waitstatus_to_exitcode(status), phases, DOING.both(), counts, errors[-1] if errors else "")


def has_ended(child: int) -> bool:
    """Whether a child has come to its end, however; it can still be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def seen_from_outside(run: Path) -> str:
    """The phase of a run that some other process had under way and that was killed, from what it left."""
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
        if has_ended(child):
            return False
        time.sleep(0.001)
    return False
