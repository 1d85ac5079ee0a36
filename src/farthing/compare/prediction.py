"""From finished runs to what a recipe may expect that has not been trained: `farthing plan R --predict RUNS`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from farthing import config
from farthing.compare.arms import Arm, check_alike
from farthing.compare.scaling import Fit, Point
from farthing.errors import UserError
from farthing.section import Section

FAR = 10.0
"""times the largest budget seen; further out, nothing that was measured vouches for a prediction"""
_NEAR = 1.5
"""times the largest budget seen, up to which a prediction is hardly one"""
_SIZES = (
    "model.n_layer",
    "model.n_head",
    "model.d_model",
    "budget.",
    "evaluate.",
    "checkpoint.",
    "sample.",
    "limits.",
    "seed",
    "mirrors",
    # How the same steps are computed, and what is done when they fail.
    "train.micro_batch",
    "train.precision",
    "train.compile",
    "train.attention",
    "train.weight_gradient",
    "train.threads",
    "train.log_every",
    "train.on_divergence",
    "train.rollback_lr",
    "train.spike_zscore",
    "train.divergence_factor",
)
"""settings that may differ between runs of one law without being an experiment of their own"""


def expect(found: Fit, runs: Section, recipe: Section, *, parameters: int, tokens: int, flops: float) -> dict[str, Any]:
    """What the fit lets one expect of a recipe that has not been trained, JSON-ready.

    Args:
        found: the fit.
        runs: the recipe of one of its runs.
        recipe: the one to come.
        parameters: of its model.
        tokens: that it will train on.
        flops: operations that it will spend.

    Raises:
        UserError: it is of another text than the runs.
    """
    differing = [change for change in config.diff(runs, recipe) if not change.path.startswith(_SIZES)]
    if other := next((change for change in differing if change.path.startswith("data.")), None):
        raise UserError(
            f"{other.path}={other.new!r}, and the runs have {other.old!r}: they say nothing about a score on other text"
        )
    notes = list(found.notes)
    if differing:
        notes.append(f"the recipe differs from the runs in {', '.join(change.path for change in differing)}")
    if flops > FAR * found.largest:
        notes.append(
            f"{flops / found.largest:.3g} times the largest run: nothing that was measured vouches for the law that far out"
        )
    elif flops > _NEAR * found.largest:
        notes.append(
            f"{flops / found.largest:.3g} times the largest run: the interval is that of the law, and cannot know whether the "
            "law goes on that far"
        )
    best = found.best_size(flops)
    return {
        "bits_per_byte": found.predict(parameters=parameters, tokens=tokens, flops=flops).as_dict(),
        "level": found.level,
        "best_parameters": None if best is None else best[0].as_dict(),
        "best_tokens": None if best is None else best[1].as_dict(),
        "fit": found.as_dict(),
        "notes": notes,
    }


def points_of(arms: Sequence[Arm]) -> tuple[list[Point], list[str]]:
    """One point an arm, the mean of its seeds; of several arms of equal size and tokens only the best.

    Raises:
        UserError: the runs cannot be compared (see `arms.check_alike`).
    """
    notes = [note for note in check_alike(arms, "bits_per_byte") if "seconds" not in note]
    points: dict[tuple[float, float], Point] = {}
    several = 0
    for arm in arms:
        if not arm.finished:
            notes.append(f"{arm.name} has no finished run and is left out")
            continue
        scores = [float(run.validation["bits_per_byte"]) for run in arm.finished]
        spent = arm.spent()
        point = Point(
            arm.finished[0].parameters, spent["tokens"], spent["flops"], sum(scores) / len(scores), spent["epochs"]
        )
        key = (point.parameters, point.tokens)
        several += key in points
        if key not in points or point.loss < points[key].loss:
            points[key] = point
    if several:
        notes.append(f"{several} recipes were left out: another of the same size and tokens was better")
    differing = _other_settings(arms)
    if differing:
        notes.append(f"the runs differ in more than size and budget: {', '.join(differing)}")
    return list(points.values()), notes


def _other_settings(arms: Sequence[Arm]) -> list[str]:
    first = arms[0].recipe
    paths = {change.path for arm in arms[1:] for change in config.diff(first, arm.recipe)}
    return sorted(path for path in paths if not path.startswith(_SIZES))
