"""Curves of runs: loss and score against tokens, FLOPs, seconds and money; and an arm's mean curve with its interval.

Runs of any length are brought down to a few hundred points: the training loss as means over equal stretches of steps, so
that no step is left out; scores as they were taken. A damaged line of the events costs itself and no run.

Letters: P points, R runs.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.compare.arms import Arm
from farthing.compare.runs import RunRecord, check_events_version
from farthing.compare.statistics import LEVEL, t_quantile
from farthing.events import Evaluated, Notice, Step
from farthing.rundir import RunDir
from farthing.storage import write_text

Floats = NDArray[np.float64]

AXES = ("steps", "tokens", "epochs", "flops", "seconds", "money")
"""what a curve may be drawn against: what was spent up to a point"""
POINTS = 200

_STEP = f'{{"kind": "{Step.kind}"'.encode()
_EVALUATED = f'{{"kind": "{Evaluated.kind}"'.encode()
_LOSS = re.compile(rb'"loss": ([^,]+),')
_MOST = 1e300
"""a number of that size is no count"""


@dataclass(frozen=True)
class Curve:
    """One quantity over the course of one run.

    Args:
        axes: what had been spent at each point, by name (AXES), each of shape (P,).
        value_P: the quantity; NaN where it was not finite.
    """

    axes: dict[str, Floats]
    value_P: Floats


@dataclass(frozen=True)
class RunCurves:
    """The curves of a run.

    Args:
        run: whose.
        loss: training cross-entropy in nats per token, means over stretches of steps.
        score: a yardstick on the validation text, as often as it was taken.
        damaged: whether lines were seen that are no events any more, and were left out.
    """

    run: RunRecord
    loss: Curve
    score: Curve
    damaged: bool = False


@dataclass(frozen=True)
class Band:
    """The mean of several runs' curves at equal numbers of tokens, with the t interval of the mean.

    Args:
        axes: what the runs had spent on average at each point, each of shape (P,).
        mean_P: of the runs.
        low_P: lower end of the interval; NaN of a single run.
        high_P: upper end.
        n: runs.
    """

    axes: dict[str, Floats]
    mean_P: Floats
    low_P: Floats
    high_P: Floats
    n: int


def read_curves(run: RunRecord, *, by: str = "bits_per_byte", points: int = POINTS) -> RunCurves:
    """The curves of a run, from its events.

    Args:
        run: finished or failed.
        by: which yardstick the score is.
        points: the most that the loss is brought down to.

    Raises:
        UserError: the events are of a newer version.
    """
    path = RunDir(run.path).events
    content = path.read_bytes() if path.exists() else b""
    lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
    if lines and read_event(lines[0]) is not None:
        check_events_version(path, lines[0] + b"\n")
    scored = [read_event(line) for line in lines if line.startswith(_EVALUATED)]
    whole = [event for event in scored if event is not None]
    values = [number(event["validation"].get(by)) for event in whole]
    score = Curve(_axes(event["spent"] for event in whole), np.array(values, dtype=np.float64))
    steps = [line for line in lines if line.startswith(_STEP)]
    damaged = len(whole) < len(scored) or not all(line.startswith(b"{") and line.endswith(b"}") for line in lines)
    loss = _loss(steps, points)
    if loss is None:
        damaged = True
        loss = _loss([line for line in steps if read_event(line) is not None], points)
        assert loss is not None
    return RunCurves(run, loss, score, damaged)


def read_event(line: bytes) -> dict[str, Any] | None:
    """One line of a run's events; None where damage has left no event, or one without what its readers rely on."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and _is_sound(event) else None


def _is_sound(event: dict[str, Any]) -> bool:
    kind = event.get("kind")
    if kind == Notice.kind:
        return isinstance(event.get("code"), str) and isinstance(event.get("message"), str)
    if kind not in (Step.kind, Evaluated.kind):
        return isinstance(kind, str) and isinstance(event.get("version", 0), int)
    if kind == Evaluated.kind and not isinstance(event.get("validation"), dict):
        return False
    spent = event.get("spent")
    counts = [event.get("step"), *(spent.get(name) for name in AXES)] if isinstance(spent, dict) else [None]
    return all(isinstance(one, int | float) and abs(one) < _MOST for one in counts)


def _loss(lines: Sequence[bytes], points: int) -> Curve | None:
    """Means of the loss over equal stretches, of the steps at which it was finite; each stands where its stretch ends.

    None where a stretch ends with a line that is no event: to see which others are none takes twenty times as long.
    """
    if not lines:
        return Curve(_axes([]), np.empty(0))
    ends_P = np.unique(np.linspace(0, len(lines), min(points, len(lines)) + 1).round().astype(int))
    last = [event for end in ends_P[1:] if (event := read_event(lines[end - 1])) is not None]
    if len(last) < len(ends_P) - 1:
        return None
    # One number of each line: to parse the whole of it takes twenty times as long.
    found = [_LOSS.search(line) for line in lines]
    loss_N = np.array([_number_of(match.group(1)) if match else math.nan for match in found])
    finite_N = np.isfinite(loss_N)
    sums_P = np.add.reduceat(np.where(finite_N, loss_N, 0.0), ends_P[:-1])
    count_P = np.add.reduceat(finite_N, ends_P[:-1], dtype=np.float64)
    mean_P = np.divide(sums_P, count_P, out=np.full_like(sums_P, math.nan), where=count_P > 0)
    return Curve(_axes(event["spent"] for event in last), mean_P)


def _number_of(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:  # null, or damage
        return math.nan


def number(value: object) -> float:
    """A number that an event has; NaN where it was not finite, or is none."""
    return float(value) if isinstance(value, int | float) and abs(value) < _MOST else math.nan


def _axes(spent: Iterable[dict[str, float]]) -> dict[str, Floats]:
    listed = list(spent)
    return {name: np.array([one[name] for one in listed], dtype=np.float64) for name in AXES}


def thinned(curve: Curve, most: int) -> Curve:
    """The means of equal stretches of points, so many at most; what was not finite is left out of them."""
    length = len(curve.value_P)
    ends = np.unique(np.linspace(0, length, min(most, length) + 1).round().astype(int))
    pieces = [curve.value_P[first:last] for first, last in pairwise(ends)]
    finite = [piece[np.isfinite(piece)] for piece in pieces]
    value_P = np.array([piece.mean() if len(piece) else math.nan for piece in finite])
    return Curve({name: values[ends[1:] - 1] for name, values in curve.axes.items()}, value_P)


def band(curves: Sequence[Curve], *, points: int = POINTS, level: float = LEVEL) -> Band | None:
    """The mean of several runs' curves with the t interval of the mean, as far as all of them reach.

    None where there is nothing in common: no curve, an empty one, or no overlap.

    Args:
        curves: of the runs of one arm.
        points: the most that the band has.
        level: the interval is at 1 - level.
    """
    if not curves or any(len(curve.value_P) == 0 for curve in curves):
        return None
    first = max(curve.axes["tokens"][0] for curve in curves)
    last = min(curve.axes["tokens"][-1] for curve in curves)
    if last < first:
        return None
    longest = max(curves, key=lambda curve: len(curve.value_P))
    at_P = longest.axes["tokens"]
    at_P = at_P[(at_P >= first) & (at_P <= last)]
    if len(at_P) == 0:
        at_P = np.array([last])
    if len(at_P) > points:
        at_P = at_P[np.unique(np.linspace(0, len(at_P) - 1, points).round().astype(int))]

    def at(curve: Curve, values_P: Floats) -> Floats:
        return np.interp(at_P, curve.axes["tokens"], values_P)

    value_RP = np.stack([at(curve, curve.value_P) for curve in curves])
    axes = {name: np.mean([at(curve, curve.axes[name]) for curve in curves], axis=0) for name in AXES}
    mean_P, n = value_RP.mean(axis=0), len(curves)
    if n < 2:
        nothing_P = np.full_like(mean_P, math.nan)
        return Band(axes, mean_P, nothing_P, nothing_P, n)
    half_P = t_quantile(level, n - 1) * value_RP.std(axis=0, ddof=1) / math.sqrt(n)
    return Band(axes, mean_P, mean_P - half_P, mean_P + half_P, n)


def write_csv(path: Path, arms: Sequence[Arm], *, by: str = "bits_per_byte", level: float = LEVEL) -> None:
    """All curves as one long table, a line a point: of each run, and of each arm the mean with its interval.

    Columns: arm, run (empty: the arm's mean), seed, what (loss, or the reading's name), steps, tokens, epochs, flops,
    seconds, money, value, low, high.

    Raises:
        UserError: a run's events are of a newer version.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["arm", "run", "seed", "what", *AXES, "value", "low", "high"])
    for arm in arms:
        found = [read_curves(run, by=by) for run in arm.runs]
        for one in found:
            for what, curve in (("loss", one.loss), (by, one.score)):
                writer.writerows(_rows([arm.name, one.run.name, one.run.seed, what], curve.axes, curve.value_P))
        whole = [one for one in found if one.run.status == "finished"]
        for what, several in (("loss", [one.loss for one in whole]), (by, [one.score for one in whole])):
            if (mean := band(several, level=level)) is not None:
                ends = (mean.mean_P, mean.low_P, mean.high_P)
                writer.writerows(_rows([arm.name, "", "", what], mean.axes, *ends))
    write_text(path, table.getvalue())


def _rows(names: list[object], axes: dict[str, Floats], *values: Floats) -> Iterable[list[object]]:
    columns = [axes[name] for name in AXES] + list(values)
    for numbers in zip(*columns, strict=True):
        cells = ["" if math.isnan(number) else f"{number:.10g}" for number in numbers]
        yield [*names, *cells, *[""] * (3 - len(values))]
