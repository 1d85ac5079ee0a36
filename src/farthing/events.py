"""What happens in a run, as typed events in an append-only file, one JSON object a line (docs/events.md).

The training loop emits events and knows nobody who reads them; every screen, plot and table is made from this file.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from farthing.errors import FarthingError, UserError, without_secrets
from farthing.storage import fsync_folder

EVENTS_VERSION = 1
"""Version of this contract; readers refuse a newer one."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a run. `kind` names it in the file; `time` (Unix seconds) is added when written."""

    kind: ClassVar[str] = "event"

    def as_dict(self) -> dict[str, Any]:
        """The fields of this event, JSON-ready, with its kind first."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A run begins: always the first line."""

    kind: ClassVar[str] = "started"
    run: str
    recipe: str
    """fingerprint of the resolved recipe"""
    parameters: int
    steps: int
    """optimizer steps planned"""
    version: int = EVENTS_VERSION


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """A stopped run goes on from a checkpoint; lines past that checkpoint have been cut off."""

    kind: ClassVar[str] = "resumed"
    step: int
    checkpoint: str
    exact: bool
    """whether this machine's numeric fingerprint equals the one before, so that the end is bit for bit the same"""
    why_inexact: str = ""


@dataclass(frozen=True, kw_only=True)
class Ready(Event):
    """A sitting's start-up is over: its first step comes next. All in seconds."""

    kind: ClassVar[str] = "ready"
    seconds: float
    """the whole start-up of this sitting; what follows are parts of it"""
    text: float
    """reading, tokenising, opening what is cached"""
    plan: float
    """probing the machine and timing steps; on resume, reading the plan"""
    trial: float
    """trying settings on real steps; 0 where none were tried in this sitting"""
    build: float
    """model, optimizer, and what a checkpoint holds of them"""
    compile: float
    """torch.compile, and checking what it made"""


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """One optimizer step."""

    kind: ClassVar[str] = "step"
    step: int
    loss: float | None
    """training cross-entropy of this step's batch, nats per token; null if it was not finite"""
    lr: float
    """learning rate of the first parameter group"""
    gradient_norm: float | None
    """before clipping; null if it was not finite"""
    spent: dict[str, float]
    """cumulative: steps, tokens, epochs, flops, seconds, money"""
    tokens_per_second: float
    utilisation: float | None = None
    """share of this machine's measured matrix-product rate"""
    memory_bytes: int | None = None
    """peak memory so far"""


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """A full pass over the validation tokens."""

    kind: ClassVar[str] = "evaluation"
    step: int
    split: str
    validation: dict[str, Any]
    """the yardsticks (docs/yardstick.md)"""
    spent: dict[str, float]
    seconds: float
    """how long this evaluation took"""
    best: bool = False
    """whether this is the lowest bits per byte so far"""


@dataclass(frozen=True, kw_only=True)
class Asking(Event):
    """Training is over, and all questions of a task are about to be asked, which may take minutes."""

    kind: ClassVar[str] = "asking"
    step: int
    task: str
    items: int
    """how many questions or texts"""


@dataclass(frozen=True, kw_only=True)
class TaskScored(Event):
    """The model has been asked a task's questions: some of them at a cadence, all of them at the end."""

    kind: ClassVar[str] = "task"
    step: int
    task: str
    value: float | None
    """the number that people compare the task by; null if it was not finite"""
    result: dict[str, Any]
    """docs/tasks.md"""
    spent: dict[str, float]
    seconds: float
    """how long this took"""


@dataclass(frozen=True, kw_only=True)
class Checkpointed(Event):
    """A checkpoint is complete and durable."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    path: str
    bytes: int
    seconds: float
    """how long it took to write, verify and prune"""
    stall: float = 0.0
    """how long training stood still for it, in seconds"""


@dataclass(frozen=True, kw_only=True)
class Sampled(Event):
    """Text written by the model."""

    kind: ClassVar[str] = "sample"
    step: int
    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """Something a person should know: a fallback taken, memory run out and batch split, a warning about the data."""

    kind: ClassVar[str] = "notice"
    code: str
    """short, stable name: compile_fallback, out_of_memory, replanned, rolled_back, ... (docs/events.md)"""
    message: str
    step: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """A run stops before its end, and how to go on."""

    kind: ClassVar[str] = "stopped"
    step: int
    reason: str
    """preempted, deadline, diverged, out_of_memory, disk_full, error"""
    message: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """A run is complete: always the last line."""

    kind: ClassVar[str] = "finished"
    status: str
    spent: dict[str, float]
    validation: dict[str, Any]
    wall_seconds: float
    """everything, start-up, evaluation and checkpoints included, over all sittings"""


_RELIED_ON: dict[str, dict[str, type]] = {
    Step.kind: {"step": int, "spent": dict},
    Evaluated.kind: {"step": int, "validation": dict, "spent": dict},
    Notice.kind: {"code": str, "message": str},
    Stopped.kind: {"step": int, "reason": str, "message": str},
}
_MOST = 1e300
"""a number of that size is no count and no score, and cannot be shown"""

Emit = Callable[[Event], None]


class EventLog:
    """Append-only writer of events.jsonl; also hands each event to the sinks that follow it.

    Opening repairs a torn last line by cutting it off. Each event is one write; a short write is undone, and a full
    disk never stops training: the event is dropped, and `dropped` counts it. Whoever follows is told when that begins,
    and the log itself when it can be written again.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.dropped = 0
        self._untold = 0
        """events dropped since the log was last told"""
        self._clock = clock
        self._followers: list[Emit] = []
        new = not path.exists()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if new:
            # Syncing a file makes its content durable, not its name. A disk that will not is no reason to stop.
            with suppress(OSError):
                fsync_folder(path.parent)
        os.ftruncate(self._descriptor, _sound_length(path))

    def follow(self, follower: Emit) -> None:
        """Call `follower` with every event from now on."""
        self._followers.append(follower)

    def emit(self, event: Event) -> None:
        """Append one event and pass it to the followers."""
        if isinstance(event, Notice | Stopped):  # what a library says may repeat a secret
            event = replace(event, message=without_secrets(event.message))
        untold = self._untold
        if failure := self._append(event):
            self.dropped += 1
            self._untold += 1
            if not untold:
                message = f"{self.path.name} cannot be written ({failure}): what happens meanwhile is missing from it"
                self._tell(Notice(code="log_interrupted", message=message))
        elif untold:
            self._untold = 0
            many = "1 event" if untold == 1 else f"{untold:,} events"
            self.emit(
                Notice(code="log_resumed", message=f"{many} could not be written to {self.path.name}; it goes on")
            )
        self._tell(event)

    def _append(self, event: Event) -> str:
        """Write one line; why that failed, or nothing."""
        record = {"kind": event.kind, "time": round(self._clock(), 3), **event.as_dict()}
        line = json.dumps(record, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        before = os.fstat(self._descriptor).st_size
        failure = ""
        try:
            if os.write(self._descriptor, line) != len(line):
                failure = "only a part of a line fitted"
        except OSError as error:
            failure = error.strerror or str(error)
        if failure:
            with suppress(OSError):
                os.ftruncate(self._descriptor, before)
        return failure

    def _tell(self, event: Event) -> None:
        for follower in list(self._followers):
            try:
                follower(event)
            except FarthingError:
                raise
            except Exception as error:
                # A closed terminal or a tracker's fault must not cost the run; whoever failed is told nothing more.
                self._followers.remove(follower)
                reason = f"{type(error).__name__}: {error}"
                self.emit(
                    Notice(code="follower_lost", message=f"{type(follower).__name__} no longer follows: {reason}")
                )

    def tell_bad(self, line: int) -> None:
        """A line of the log's file, which something has damaged, is no event any more."""
        self.emit(Notice(code="damaged_log", message=f"{self.path.name}:{line}: is no event any more; it is left out"))

    def position(self) -> int:
        """Bytes written so far, durable after this call: what a checkpoint remembers."""
        os.fsync(self._descriptor)
        return os.fstat(self._descriptor).st_size

    def cut_back(self, position: int) -> None:
        """Forget everything after `position`: those steps are about to be taken again."""
        os.ftruncate(self._descriptor, min(position, os.fstat(self._descriptor).st_size))

    def close(self) -> None:
        """Flush to disk and close."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)


def _sound_length(path: Path) -> int:
    content = path.read_bytes()
    return content.rfind(b"\n") + 1


def read_events(path: Path, *, on_bad: Callable[[int], None] | None = None) -> Iterator[dict[str, Any]]:
    """The events of a run in order; a torn last line is skipped, as is a run that has none yet.

    Args:
        path: events.jsonl.
        on_bad: is told the number of each line that is no event, and these are left out; None refuses the file.

    Raises:
        UserError: a line other than the last is not a JSON event, or the file is of a newer version.
    """
    if not path.exists():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict) or not _has_its_fields(record):
                if on_bad is not None:
                    on_bad(number)
                    continue
                raise UserError(f"{path}:{number}: not a JSON event: {line[:60]!r}")
            if record["kind"] == Started.kind and record.get("version", 0) > EVENTS_VERSION:
                raise UserError(f"{path}: events of version {record['version']}; this farthing reads {EVENTS_VERSION}")
            yield record


def _has_its_fields(record: dict[str, Any]) -> bool:
    """Whether what every reader relies on is there and of its kind."""
    if not isinstance(record.get("kind"), str) or not isinstance(record.get("version", 0), int):
        return False
    known = _RELIED_ON.get(record["kind"], {})
    tables = [record[name] for name, kind in known.items() if kind is dict and isinstance(record.get(name), dict)]
    return all(isinstance(record.get(name), kind) for name, kind in known.items()) and all(
        value is None or isinstance(value, str) or (isinstance(value, int | float) and abs(value) < _MOST)
        for table in tables
        for value in table.values()
    )
