"""How a run went, from its events: losses, scores, and what was told on the way. The diagnosis and the report look at this.

Letters: P stretches of the training loss, E evaluations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farthing.compare.curves import Curve, RunCurves, number, read_curves, read_event
from farthing.compare.runs import RunRecord
from farthing.config import flatten
from farthing.events import Evaluated, Notice, Step
from farthing.rundir import RunDir

Floats = NDArray[np.float64]

_STEP = f'{{"kind": "{Step.kind}"'.encode()
_AT = re.compile(r"at step (\d+)")
_LEFT_OUT = ("skipped_step", "rolled_back")


@dataclass(frozen=True)
class Course:
    """What a run's curves are judged by.

    Args:
        tokens_P: training tokens seen at the end of each stretch.
        steps_P: optimizer steps taken until there.
        loss_P: training cross-entropy in nats per token, mean of each stretch; NaN where it was not finite.
        tokens_E: training tokens seen at each evaluation.
        steps_E: optimizer steps taken until there.
        validation_E: validation cross-entropy in nats per token; NaN where it was not finite.
        epochs: passes over the training text in the end.
        failure: how the run failed, empty if it did not.
        left_out: steps whose update was left out or taken back because the loss ran away.
        settings: the recipe's, by dotted path.
    """

    tokens_P: Floats
    steps_P: Floats
    loss_P: Floats
    tokens_E: Floats = field(default_factory=lambda: np.empty(0))
    steps_E: Floats = field(default_factory=lambda: np.empty(0))
    validation_E: Floats = field(default_factory=lambda: np.empty(0))
    epochs: float = 0.0
    failure: str = ""
    left_out: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed_at(self) -> int | None:
        """The step at which it failed, where that is known."""
        found = _AT.search(self.failure)
        return int(found.group(1)) if found else None


@dataclass(frozen=True)
class Story:
    """A run's curves and everything else that its events say.

    Args:
        run: whose.
        curves: loss and score, in the reading of the report.
        course: what the diagnosis goes by.
        evaluations: the events, in order.
        notices: likewise.
        damaged: whether its events have lines that are none any more, and were left out.
    """

    run: RunRecord
    curves: RunCurves
    course: Course
    evaluations: Sequence[Mapping[str, Any]]
    notices: Sequence[Mapping[str, Any]]
    damaged: bool = False


def read_story(run: RunRecord, *, by: str, points: int) -> Story:
    """Everything that a run's events tell.

    Args:
        run: finished or failed.
        by: the yardstick of its score's curve.
        points: the most that the loss is brought down to.

    Raises:
        UserError: the events are of a newer version.
    """
    curves = read_curves(run, by=by, points=points)
    found = _all_but_steps(run)
    events = [event for event in found if event is not None]
    evaluations = [event for event in events if event["kind"] == Evaluated.kind]
    notices = [event for event in events if event["kind"] == Notice.kind]
    left_out = sum(notice["code"] in _LEFT_OUT for notice in notices)
    course = _course(run, curves.loss, evaluations, left_out)
    return Story(run, curves, course, evaluations, notices, curves.damaged or len(events) < len(found))


def _course(run: RunRecord, loss: Curve, evaluations: Sequence[Mapping[str, Any]], left_out: int) -> Course:
    values = [number(event["validation"].get("nats_per_token")) for event in evaluations]
    return Course(
        tokens_P=loss.axes["tokens"],
        steps_P=loss.axes["steps"],
        loss_P=loss.value_P,
        tokens_E=np.array([event["spent"]["tokens"] for event in evaluations], dtype=np.float64),
        steps_E=np.array([event["step"] for event in evaluations], dtype=np.float64),
        validation_E=np.array(values, dtype=np.float64),
        epochs=float(run.spent.get("epochs", 0.0)),
        failure=run.why,
        left_out=left_out,
        settings=flatten(run.recipe),
    )


def _all_but_steps(run: RunRecord) -> list[dict[str, Any] | None]:
    """The few events that are no steps, None for one that is damaged; a torn last line is left out."""
    path = RunDir(run.path).events
    if not path.exists():
        return []
    with path.open("rb") as stream:
        return [read_event(line) for line in stream if line.endswith(b"\n") and not line.startswith(_STEP)]


@dataclass(frozen=True)
class Rates:
    """Learning rate and gradient norm over a run's steps, for a closer look at one run.

    Args:
        steps_P: the last step of each stretch.
        lr_P: its learning rate.
        gradient_P: the median gradient norm of the stretch, before clipping; NaN where none was finite.
    """

    steps_P: Floats
    lr_P: Floats
    gradient_P: Floats


def read_rates(run: RunRecord, *, points: int) -> Rates:
    """Learning rate and gradient norm, brought down to so many points; damaged lines are left out."""
    path = RunDir(run.path).events
    lines: list[bytes] = []
    if path.exists():
        with path.open("rb") as stream:
            lines = [line for line in stream if line.startswith(_STEP) and line.endswith(b"\n")]
    events = [event for line in lines if (event := read_event(line)) is not None]
    ends = np.unique(np.linspace(0, len(events), min(points, len(events)) + 1).round().astype(int))
    norms = np.array([number(one.get("gradient_norm")) for one in events], dtype=float)
    stretches = [norms[first:last] for first, last in pairwise(ends)]
    finite = [stretch[np.isfinite(stretch)] for stretch in stretches]
    return Rates(
        steps_P=np.array([events[end - 1]["step"] for end in ends[1:]], dtype=np.float64),
        lr_P=np.array([number(events[end - 1].get("lr")) for end in ends[1:]], dtype=np.float64),
        gradient_P=np.array([np.median(one) if len(one) else np.nan for one in finite], dtype=np.float64),
    )
