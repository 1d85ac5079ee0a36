"""What ails a run, in plain words from its curves, each with its evidence and what to try next.

Every rule is a pure function of a run's course. The thresholds are judgements, and stand here by name with their reasons.

Letters: P stretches of the training loss, E evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from farthing.compare.statistics import Verdict
from farthing.report.course import Course, Floats

Ailment = Literal[
    "diverged",
    "learning rate too high",
    "over-fitting",
    "data-limited",
    "still descending",
    "noise too large to tell",
    "nothing to complain of",
]

LOST = 0.5
"""a run that ends having lost half of what it had gained has diverged, even if it went on"""
RISE = 0.15
"""share of all that was gained which a loss may rise by on its way, and still be called calm"""
CLEAR = 6.0
"""a rise counts from so many standard deviations of the smoothed loss"""
WORSE = 0.005
"""share by which validation has to be above its lowest before that is called over-fitting"""
MANY_EPOCHS = 4.0
"""up to about four passes repeated text is nearly as good as new (Muennighoff et al. 2023)"""
GAP = 0.03
"""share by which validation has to be above training where the text is what limits a run"""
WORTHWHILE = 0.02
"""share of the loss that twice the budget has to promise before a longer run is proposed"""
FEWEST = 4
"""evaluations from which a trend is read off them"""


@dataclass(frozen=True)
class Finding:
    """Something to know about a run or an arm.

    Args:
        ailment: in a word or a few.
        words: a sentence, with the step where there is one.
        evidence: the numbers it rests on, by name.
        advice: what to try next, as a clause.
        changes: the settings of that experiment, by path; empty where none is proposed.
        seeds: how many more seeds to train instead.
    """

    ailment: Ailment
    words: str
    evidence: Mapping[str, float] = field(default_factory=dict)
    advice: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 0


def diagnose(course: Course) -> list[Finding]:
    """What the curves of one run say, the gravest first; never empty."""
    broken = diverged(course)
    if broken is not None:
        return [broken]
    rules: tuple[Callable[[Course], Finding | None], ...] = (rate_too_high, over_fitting, data_limited)
    found = [one for rule in rules if (one := rule(course)) is not None]
    # While something is wrong, or the text is the limit, a longer run is not what helps, even if the loss still falls.
    if not found and (one := still_descending(course)) is not None:
        found.append(one)
    return found or [nothing(course)]


def diverged(course: Course) -> Finding | None:
    """A run that failed, or gave back most of what it had learned."""
    lower = _lower_rates(course.settings)
    loss_P = smooth(course.loss_P)
    finite_P = np.isfinite(course.loss_P)
    evidence: dict[str, float] = {}
    if finite_P.any():
        evidence = {"lowest_loss": float(np.nanmin(loss_P)), "last_loss": float(course.loss_P[finite_P][-1])}
    if course.failure.startswith("out_of_memory"):
        return None
    if course.failure:
        step = course.failed_at
        where = f" at step {step}" if step is not None else ""
        if step is not None:
            evidence["step"] = step
        words = f"diverged{where}: {course.failure}" if step is None else f"diverged{where}"
        if evidence.keys() >= {"lowest_loss"}:
            words += f"; the training loss had been as low as {evidence['lowest_loss']:.3f} nats per token"
        return Finding("diverged", words, evidence, "a third of the learning rate", lower)
    if len(loss_P) < FEWEST or not finite_P.any():
        return None
    whole_P = loss_P[np.isfinite(loss_P)]
    end, lowest = float(whole_P[-1]), float(whole_P.min())
    gained, lost = float(whole_P[0]) - lowest, end - lowest
    if lost > LOST * gained and lost > CLEAR * _wobble(course):
        step = int(course.steps_P[int(np.nanargmin(loss_P))])
        words = f"diverged at step {step}: the training loss rose from {lowest:.3f} there to {end:.3f} nats per token"
        evidence = {"step": step, "lowest_loss": lowest, "last_loss": end}
        return Finding("diverged", words, evidence, "a third of the learning rate", lower)
    return None


def rate_too_high(course: Course) -> Finding | None:
    """Updates that had to be left out, or a loss that climbs far on its way and comes back."""
    lower = _lower_rates(course.settings)
    if course.left_out:
        words = f"{course.left_out} updates were left out or taken back because the loss ran away"
        advice = "a third of the learning rate"
        return Finding("learning rate too high", words, {"left_out": course.left_out}, advice, lower)
    # Text in its own order is harder here and easier there, whatever the rate.
    if course.settings.get("train.order") == "sequential":
        return None
    loss_P = smooth(course.loss_P)
    if len(loss_P) < 3 * FEWEST or not np.isfinite(loss_P).all():
        return None
    lowest_P = np.minimum.accumulate(loss_P)
    at = int(np.argmax(loss_P - lowest_P))
    rise, gained = float(loss_P[at] - lowest_P[at]), float(loss_P[0] - loss_P.min())
    if gained <= 0 or rise < RISE * gained or rise < CLEAR * _wobble(course):
        return None
    step = int(course.steps_P[at])
    words = (
        f"around step {step} the training loss was {rise:.3f} nats per token above where it had been before, "
        f"{rise / gained:.0%} of all that it gained"
    )
    evidence = {"step": step, "rise": rise, "share_of_gain": rise / gained}
    return Finding("learning rate too high", words, evidence, "a third of the learning rate", lower)


def over_fitting(course: Course) -> Finding | None:
    """Validation turns upward while training goes on falling."""
    value_E = course.validation_E
    if len(value_E) < FEWEST or not np.isfinite(value_E).all():
        return None
    best = int(np.argmin(value_E))
    rise = float(value_E[-1] - value_E[best])
    if best == len(value_E) - 1 or rise < WORSE * value_E[best] or rise < 3 * _jitter(value_E):
        return None
    before, after = _loss_at(course, course.tokens_E[best]), _loss_at(course, course.tokens_E[-1])
    if not after < before:
        return None
    step = int(course.steps_E[best])
    words = (
        f"validation was lowest at step {step} ({value_E[best]:.3f} nats per token) and has risen to {value_E[-1]:.3f} "
        f"since, while training fell from {before:.3f} to {after:.3f}"
    )
    evidence = {
        "step": step, "lowest_validation": float(value_E[best]), "last_validation": float(value_E[-1]),
        "training_then": before, "training_at_the_end": after, "epochs": course.epochs,
    }  # fmt: skip
    advice, changes = _against_over_fitting(course, step)
    return Finding("over-fitting", words, evidence, advice, changes)


def data_limited(course: Course) -> Finding | None:
    """Many passes over a text that the model knows much better than any other."""
    value_E = course.validation_E[np.isfinite(course.validation_E)]
    if course.epochs < MANY_EPOCHS or len(value_E) == 0 or over_fitting(course) is not None:
        return None
    training, validation = _loss_at(course, math.inf), float(value_E[-1])
    gap = (validation - training) / validation if validation > 0 else math.nan
    if not gap > GAP:
        return None
    words = (
        f"the text was read {course.epochs:.3g} times, and the model spends {training:.3f} nats per token on it against "
        f"{validation:.3f} on validation: more text would buy more than more steps"
    )
    evidence = {"epochs": course.epochs, "training": training, "validation": validation, "gap": gap}
    if course.settings.get("data.limit") is not None:
        return Finding("data-limited", words, evidence, "all of the text", {"data.limit": "none"})
    return Finding("data-limited", words, evidence, "dropout, or more text", {"model.dropout": _more_dropout(course)})


def still_descending(course: Course) -> Finding | None:
    """The loss still falls with the logarithm of the tokens, so that twice the budget would show."""
    tokens, value, what = _later_half(course.tokens_E, course.validation_E, FEWEST), None, "validation"
    if tokens is None:
        tokens, what = _later_half(course.tokens_P, smooth(course.loss_P), 3 * FEWEST), "training"
    if tokens is None:
        return None
    tokens_N, value = tokens
    slope, error = _slope(np.log(tokens_N), np.log(value))
    gain = 1 - 2.0**slope
    if gain < WORTHWHILE or slope > -3 * error:
        return None
    last = float(value[-1])
    words = (
        f"{what} still fell from {value[0]:.3f} to {last:.3f} nats per token over the last half; at that pace twice the "
        f"budget would take off another {gain:.1%}"
    )
    evidence = {"slope": slope, "standard_error": error, "gain_of_twice_the_budget": gain, "last": last}
    return Finding("still descending", words, evidence, "twice the budget", _twice(course.settings))


def too_noisy(verdict: Verdict) -> Finding | None:
    """A comparison that came to no verdict though it was tested, or could not be tested for want of seeds."""
    if verdict.verdict != "cannot tell" or verdict.difference is None:
        return None
    evidence = {"difference": verdict.difference, "n": float(verdict.n)}
    if verdict.p is None or verdict.low is None or verdict.high is None:
        words = f"a difference of {verdict.difference:+.4f} to the baseline was seen, but {verdict.reason}"
        return Finding("noise too large to tell", words, evidence, "two more seeds", seeds=2)
    evidence |= {"low": verdict.low, "high": verdict.high, "p": verdict.p}
    words = (
        f"the difference to the baseline, {verdict.difference:+.4f}, lies between {verdict.low:+.4f} and "
        f"{verdict.high:+.4f} with {verdict.n} seeds"
    )
    more = verdict.more_seeds
    if more is None:
        advice = "leave it: if it is as small as it looks, no number of seeds that one can afford will tell it"
        return Finding("noise too large to tell", words, evidence, advice)
    if more == 0:
        return None  # it was told apart, and something else stands in the way
    advice = f"{more} more seed{'' if more == 1 else 's'} an arm"
    return Finding("noise too large to tell", words, {**evidence, "more_seeds": float(more)}, advice, seeds=more)


def nothing(course: Course) -> Finding:
    """What is left to say of a run that no rule speaks against."""
    value_E = course.validation_E[np.isfinite(course.validation_E)]
    if len(value_E) < FEWEST:
        words = f"no rule speaks against it, but {len(value_E)} evaluations show little"
        advice = "evaluate more often"
        every = max(1, int(course.steps_P[-1] // 10)) if len(course.steps_P) else 1
        return Finding(
            "nothing to complain of", words, {"evaluations": float(len(value_E))}, advice, {"evaluate.every": every}
        )
    last = float(value_E[-1])
    words = f"the loss fell steadily and has all but settled, at {last:.3f} nats per token on validation"
    evidence = {"last_validation": last, "epochs": course.epochs}
    return Finding("nothing to complain of", words, evidence, "a larger model at the same budget", _wider(course))


def smooth(value_P: Floats) -> Floats:
    """A running median over a twentieth of the points, three at least; single spikes vanish, steps stay."""
    half = max(1, len(value_P) // 40)
    out_P = np.full(len(value_P), math.nan)
    for at in range(len(value_P)):
        window = value_P[max(0, at - half) : at + half + 1]
        finite = window[np.isfinite(window)]
        if len(finite):
            out_P[at] = np.median(finite)
    return out_P


def noise_of(value_P: Floats) -> float:
    """Standard deviation of a curve about its own trend, from what lies between neighbours of the later half."""
    later = value_P[len(value_P) // 2 :]
    step = np.diff(later[np.isfinite(later)])
    if len(step) < 2:
        return 0.0
    # The median absolute deviation, so that the jumps that are looked for do not hide themselves.
    return float(1.4826 * np.median(np.abs(step - np.median(step))) / math.sqrt(2))


def _wobble(course: Course) -> float:
    """Standard deviation of the smoothed training loss: that of a median of so many."""
    window = 2 * max(1, len(course.loss_P) // 40) + 1
    return 1.25 * noise_of(course.loss_P) / math.sqrt(window)


def _jitter(value_E: Floats) -> float:
    """How far evaluations lie off the line through their neighbours."""
    if len(value_E) < FEWEST:
        return 0.0
    bend = value_E[1:-1] - (value_E[:-2] + value_E[2:]) / 2
    return float(1.4826 * np.median(np.abs(bend)) / math.sqrt(1.5))


def _loss_at(course: Course, tokens: float) -> float:
    """The training loss around a point: the smoothed stretch that ends there."""
    loss_P = smooth(course.loss_P)
    at = min(int(np.searchsorted(course.tokens_P, tokens)), len(loss_P) - 1)
    return float(loss_P[at]) if at >= 0 else math.nan


def _later_half(tokens: Floats, value: Floats, fewest: int) -> tuple[Floats, Floats] | None:
    if len(tokens) == 0:
        return None
    keep = np.isfinite(value) & (tokens >= tokens[-1] / 2) & (tokens > 0) & (value > 0)
    return (tokens[keep], value[keep]) if keep.sum() >= fewest else None


def _slope(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope of the least-squares line, with its standard error."""
    away = x - x.mean()
    square = float((away**2).sum())
    if square == 0:
        return 0.0, math.inf
    slope = float((away * (y - y.mean())).sum() / square)
    left = y - y.mean() - slope * away
    return slope, math.sqrt(float((left**2).sum()) / max(1, len(x) - 2) / square)


def _lower_rates(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        path: _round(settings[path] / 3) for path in ("optimizer.lr", "optimizer.rest.lr") if _is_number(settings, path)
    }


def _against_over_fitting(course: Course, step: int) -> tuple[str, dict[str, Any]]:
    if course.settings.get("data.limit") is not None:
        return "all of the text", {"data.limit": "none"}
    if not course.settings.get("model.dropout"):
        return "dropout", {"model.dropout": 0.1}
    return "stopping where validation was lowest", {**_no_limits(course.settings), "budget.steps": step}


def _more_dropout(course: Course) -> float:
    dropout = float(course.settings.get("model.dropout") or 0.0)
    return _round(min(0.5, dropout + 0.1))


def _twice(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every limit of the budget doubled."""
    found = {name: settings[f"budget.{name}"] for name in _limits(settings)}
    return {
        f"budget.{name}": 2 * value if isinstance(value, int) else _round(2 * value) for name, value in found.items()
    }


def _no_limits(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f"budget.{name}": "none" for name in _limits(settings)}


def _limits(settings: Mapping[str, Any]) -> Iterable[str]:
    return (
        name
        for name in ("epochs", "steps", "tokens", "flops", "minutes", "money")
        if _is_number(settings, f"budget.{name}")
    )


def _wider(course: Course) -> dict[str, Any]:
    layers = course.settings.get("model.n_layer")
    return {"model.n_layer": 2 * layers} if isinstance(layers, int) else {}


def _is_number(settings: Mapping[str, Any], path: str) -> bool:
    value = settings.get(path)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _round(value: float) -> float:
    return float(f"{value:.2g}")
