"""Run folders read back for comparison: what was asked, what came of it, what it cost. No torch, and few bytes a run.

A finished run is read from its recipe, receipt and result alone. Its events, which may be megabytes, are read only where
there is no result, from their end, and for curves (curves.py).
"""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from farthing import __version__, config
from farthing.errors import FarthingError, UserError
from farthing.events import EVENTS_VERSION, Step, Stopped
from farthing.rundir import HELD_OUT_VERSION, RESULT_VERSION, RunDir, find_run, list_runs
from farthing.section import Section
from farthing.storage import read_json

Status = Literal["finished", "failed"]

_FAILURES = ("diverged", "out_of_memory")
"""reasons to stop that are the recipe's own; a run that was interrupted, or met an error, can still be finished"""
_TAIL = 1 << 16


@dataclass(frozen=True)
class RunRecord:
    """A run that has come to an end, well or badly.

    Args:
        path: its folder.
        status: finished, or failed: it diverged, ran out of memory, or its score is not finite.
        why: how it failed; empty for a finished run.
        recipe: what was asked, resolved.
        seed: the recipe's.
        arm: fingerprint of the recipe without its seed; runs that share it are one arm.
        validation: the yardsticks of the last weights; empty if it failed before any.
        held_out: the same on the held-out test text, if that has been scored.
        spent: steps, tokens, epochs, flops, seconds, money.
        wall_seconds: everything included; None where it is not known.
        parameters: of the model.
        texts: fingerprints of training, validation and test text, by part.
        tokenizer: the tokenizer's fingerprint.
        machine: the processor or GPU, in words.
    """

    path: Path
    status: Status
    why: str
    recipe: Section
    seed: int
    arm: str
    validation: Mapping[str, Any]
    held_out: Mapping[str, Any] | None
    spent: Mapping[str, float]
    wall_seconds: float | None
    parameters: int
    texts: Mapping[str, str]
    tokenizer: str
    machine: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name


@dataclass(frozen=True)
class LeftOut:
    """A run that cannot be compared: unfinished, damaged or from a newer version."""

    run: str
    why: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.run}: {self.why}"


@dataclass(frozen=True)
class Gathered:
    """The runs that were named: those to compare, and those that were left out, each with its reason."""

    runs: list[RunRecord] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def gather(named: Sequence[str], *, runs: Path, recipe: type[Section]) -> Gathered:
    """Read the runs that a person names.

    Args:
        named: run folders, names of runs in `runs`, folders of runs, or globs of any of these.
        runs: the folder of runs in which names are looked up.
        recipe: the model of a whole recipe file.

    Raises:
        UserError: a name leads nowhere, or not one run can be compared.
    """
    found = Gathered()
    folders: dict[Path, Path] = {}
    for folder in (folder for name in named for folder in _folders(name, runs)):
        folders.setdefault(folder.resolve(), folder)
    for folder in folders.values():
        try:
            found.runs.append(read_run(RunDir(folder), recipe))
        except (FarthingError, OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            found.left_out.append(LeftOut(folder.name, _reason(error)))
    if not found.runs:
        first = f": {found.left_out[0]}" if found.left_out else ""
        more = f" (and {len(found.left_out) - 1} more)" if len(found.left_out) > 1 else ""
        raise UserError(f"{' '.join(named)}: no finished run to compare{first}{more}")
    return found


def _folders(name: str, runs: Path) -> list[Path]:
    """The run folders that one word means."""
    if any(sign in name for sign in "*?["):
        matches = sorted(glob.glob(name)) or [str(runs / one) for one in sorted(glob.glob(name, root_dir=runs))]
        found = [path for match in matches for path in _inside(Path(match))]
        if not found:
            raise UserError(f"{name}: matches no run, neither here nor in {runs} (farthing runs lists them)")
        return found
    for place in (runs / name, Path(name)):
        if place.is_dir() and (found := _inside(place)):
            return found
    return [find_run(name, runs).path]


def _inside(path: Path) -> list[Path]:
    """A run, or the runs of a folder."""
    if RunDir(path).recipe.is_file():
        return [path]
    return [run.path for run in list_runs(path)] if path.is_dir() else []


def read_run(run: RunDir, recipe: type[Section]) -> RunRecord:
    """One run from its files.

    Raises:
        UserError: it is unfinished, damaged, or from a newer version of Farthing.
        OSError, ValueError, LookupError, TypeError: a file is missing or is not what it should be.
    """
    receipt = dict(read_json(run.receipt))
    try:
        asked = config.load(recipe, str(run.recipe))
    except UserError as error:
        if _newer(str(receipt.get("farthing", ""))):
            raise UserError(f"from farthing {receipt['farthing']}, newer than this one ({__version__})") from None
        raise UserError(f"damaged: {str(error).removeprefix(str(run.recipe)).lstrip(': ')}") from None
    result = dict(read_json(run.result)) if run.result.is_file() else {}
    if result.get("version", RESULT_VERSION) > RESULT_VERSION:
        raise UserError(f"a result of version {result['version']}; this farthing reads {RESULT_VERSION}")
    ended = _ended(result) if result else _broke_off(run)
    seed = asked.model_dump(include={"seed"})["seed"]
    return RunRecord(
        path=run.path,
        status=ended.status,
        why=ended.why,
        recipe=asked,
        seed=seed,
        arm=arm_fingerprint(asked),
        validation=ended.validation,
        held_out=read_held_out(run),
        spent=ended.spent,
        wall_seconds=ended.wall_seconds,
        parameters=int(result["parameters"] if result else read_json(run.plan)["parameters"]),
        texts={name: part["fingerprint"] for name, part in receipt["data"]["parts"].items()},
        tokenizer=str(receipt["data"]["tokenizer"]["fingerprint"]),
        machine=_machine(receipt.get("machine", {})),
    )


def arm_fingerprint(recipe: Section) -> str:
    """The recipe's fingerprint with its seed left out: equal for runs of one arm."""
    return config.fingerprint(recipe.model_copy(update={"seed": 0}))


def read_held_out(run: RunDir) -> Mapping[str, Any] | None:
    """The yardsticks on the held-out test text, if they have been taken.

    Raises:
        UserError: the file is of a newer version.
        ValueError: it is damaged.
    """
    if not run.held_out.is_file():
        return None
    found = read_json(run.held_out)
    if found["version"] > HELD_OUT_VERSION:
        raise UserError(f"a held-out score of version {found['version']}; this farthing reads {HELD_OUT_VERSION}")
    return dict(found["test"])


@dataclass(frozen=True)
class _End:
    status: Status
    why: str
    validation: Mapping[str, Any]
    spent: Mapping[str, float]
    wall_seconds: float | None


def _ended(result: Mapping[str, Any]) -> _End:
    validation, spent = dict(result["validation"]), dict(result["spent"])
    if not validation and result["status"] == "imported":
        raise UserError("imported without a score; import it with --text-of RUN to compare it with that run")
    bits = validation["bits_per_byte"]
    if bits is not None and not isinstance(bits, int | float):
        raise ValueError(f"damaged: bits_per_byte={bits!r}")
    failed = bits is None
    why = "its score is not finite" if failed else ""
    return _End("failed" if failed else "finished", why, validation, spent, float(result["wall_seconds"]))


def _broke_off(run: RunDir) -> _End:
    """What the end of the events tells of a run without a result.

    Raises:
        UserError: it is not over, and could still be finished.
    """
    why, spent = failure(run), _spent(run)
    if why is not None:
        # What was scored on the way is no score of the run's end.
        return _End("failed", why, {}, spent, None)
    if run.is_locked():
        raise UserError(f"still running, at step {spent.get('steps', 0)}")
    raise UserError(f"unfinished, stopped at step {spent.get('steps', 0)}; finish it with: farthing resume {run.path}")


def failure(run: RunDir) -> str | None:
    """How a run without a result came to its end through a fault of its own recipe, if that is so.

    Raises:
        UserError: its events are damaged or of a newer version.
    """
    told = last_events(run.events)
    if not told or told[-1]["kind"] != Stopped.kind or told[-1]["reason"] not in _FAILURES:
        return None
    return f"{told[-1]['reason']} at step {told[-1]['step']}"


def _spent(run: RunDir) -> Mapping[str, float]:
    told = last_events(run.events)
    return next((event["spent"] for event in reversed(told) if event["kind"] == Step.kind), {})


def last_events(path: Path) -> list[dict[str, Any]]:
    """The last few events of a run, a torn last line left out.

    Raises:
        UserError: a line is not a JSON event, or the file is of a newer version.
    """
    if not path.exists():
        return []
    with path.open("rb") as stream:
        first = stream.readline()
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _TAIL))
        tail = stream.read()
    check_events_version(path, first)
    lines = tail[: tail.rfind(b"\n") + 1].splitlines()
    whole = lines if size <= _TAIL else lines[1:]
    return [parse_event(path, line) for line in whole]


def check_events_version(path: Path, first: bytes) -> None:
    """Refuse events of a version that is not known here, by their first line."""
    version = parse_event(path, first).get("version", 0) if first.endswith(b"\n") else 0
    if version > EVENTS_VERSION:
        raise UserError(f"events of version {version}; this farthing reads {EVENTS_VERSION}")


def parse_event(path: Path, line: bytes) -> dict[str, Any]:
    """One line of a run's events.

    Raises:
        UserError: it is not a JSON event.
    """
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict) or "kind" not in event:
        raise UserError(f"damaged: {path.name} has a line that is not a JSON event: {line[:60]!r}")
    return event


def _newer(version: str) -> bool:
    def parts(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(".") if part.isdigit())

    return parts(version) > parts(__version__)


def _machine(machine: Mapping[str, Any]) -> str:
    return str(machine.get("device_name") or machine.get("cpu") or "unknown")


def _reason(error: Exception) -> str:
    """Why a run is left out, in one line."""
    if isinstance(error, OSError):
        return f"damaged: {Path(error.filename or '?').name}: {error.strerror}"
    if isinstance(error, FarthingError):
        return str(error)
    text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return text if text.startswith("damaged") else f"damaged: {text}"
