"""Curves of runs: loss and score against tokens, FLOPs, seconds and money; and an arm's mean curve with its interval.

Runs of any length are brought down to a few hundred points: the training loss as means over equal stretches of steps, so
that no step is left out; scores as they were taken.

Letters: P points, R runs.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from farthing.compare.arms import Arm
from farthing.compare.runs import RunRecord, check_events_version, parse_event
from farthing.compare.statistics import LEVEL, t_quantile
from farthing.events import Evaluated, Step
from farthing.rundir import RunDir
from farthing.storage import write_text

Floats = NDArray[np.float64]

AXES = ("steps", "tokens", "epochs", "flops", "seconds", "money")
"""what a curve may be drawn against: what was spent up to a point"""
POINTS = 200

_STEP = f'{{"kind": "{Step.kind}"'.encode()
_EVALUATED = f'{{"kind": "{Evaluated.kind}"'.encode()
_LOSS = re.compile(rb'"loss": ([^,]+),')


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
    """

    run: RunRecord
    loss: Curve
    score: Curve


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
        UserError: the events are damaged, or of a newer version.
    """
    path = RunDir(run.path).events
    content = path.read_bytes() if path.exists() else b""
    lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
    if lines:
        check_events_version(path, lines[0] + b"\n")
    scored = [parse_event(path, line) for line in lines if line.startswith(_EVALUATED)]
    values = [_number(event["validation"].get(by)) for event in scored]
    score = Curve(_axes(event["spent"] for event in scored), np.array(values, dtype=np.float64))
    return RunCurves(run, _loss(path, [line for line in lines if line.startswith(_STEP)], points), score)


def _loss(path: Path, lines: Sequence[bytes], points: int) -> Curve:
    """Means of the loss over equal stretches, of the steps at which it was finite; each stands where its stretch ends."""
    if not lines:
        return Curve(_axes([]), np.empty(0))
    ends_P = np.unique(np.linspace(0, len(lines), min(points, len(lines)) + 1).round().astype(int))
    spent = [parse_event(path, lines[end - 1])["spent"] for end in ends_P[1:]]
    # One number of each line: to parse the whole of it takes twenty times as long.
    found = [_LOSS.search(line) for line in lines]
    loss_N = np.array([_number_of(match.group(1)) if match else math.nan for match in found])
    finite_N = np.isfinite(loss_N)
    sums_P = np.add.reduceat(np.where(finite_N, loss_N, 0.0), ends_P[:-1])
    count_P = np.add.reduceat(finite_N, ends_P[:-1], dtype=np.float64)
    mean_P = np.divide(sums_P, count_P, out=np.full_like(sums_P, math.nan), where=count_P > 0)
    return Curve(_axes(spent), mean_P)


def _number_of(text: bytes) -> float:
    return math.nan if text == b"null" else float(text)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _axes(spent: Iterable[dict[str, float]]) -> dict[str, Floats]:
    listed = list(spent)
    return {name: np.array([one[name] for one in listed], dtype=np.float64) for name in AXES}


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
        UserError: a run's events are damaged, or of a newer version.
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
