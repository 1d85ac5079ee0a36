"""Settings for a run: remembered or tried, then held against plain fp32, with whatever had to be given up told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from farthing.errors import first_line
from farthing.events import Notice
from farthing.planning import remembered
from farthing.planning.candidates import compiled, coordinates, plain_settings, safer
from farthing.planning.settings import Counts, Settings, fits, predicted_seconds, refitted
from farthing.planning.trial import Track, Trial, allowance, search, worth_compiling
from farthing.recipe import Recipe
from farthing.runtime import hardware
from farthing.runtime.device import Machine, choose_compile

SLOWEST_WINDOW = 2.0
"""Seconds that one sequence may be expected to take where settings are still tried."""
MOST_WAITING = 0.2
"""Share of the time that threads may wait for a core in a trial that is believed."""


class Parity(Protocol):
    """How far settings are from plain fp32."""

    @property
    def holds(self) -> bool:
        """Whether they are near enough."""

    def told(self) -> str:
        """The same in words."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""


class Bench(Track, Protocol):
    """What takes the steps."""

    def step_seconds(self, settings: Settings, *, guess: float) -> float | None:
        """About how long a step takes; None where it does not fit in memory."""

    def allow(self, step_seconds: float, trial_seconds: float) -> None:
        """Prepare for a trial of so many seconds."""


@dataclass(frozen=True)
class Choice:
    """The settings of a run and what they rest on."""

    settings: Settings
    trial: Trial | None = None
    """None where the run is too short for one, or everything is pinned"""
    parity: dict[str, Any] | None = None
    """how far they are from plain fp32; None where they are just that"""
    fallbacks: list[Notice] = field(default_factory=list)
    """what had to be given up, for the events"""


def choose(recipe: Recipe, machine: Machine, counts: Counts, start: Settings, bench: Bench, *, guess: float) -> Choice:
    """What an earlier run of this recipe on this machine chose, or else what a trial finds.

    Args:
        recipe: what was asked; what it pins is never tried otherwise.
        machine: where it will run.
        counts: the text in tokens.
        start: from `settle`.
        bench: takes the steps.
        guess: seconds of a step, as estimated.
    """
    file = remembered.file_of(recipe, machine, counts, start)
    known = remembered.recall(file)
    if known is not None and known[0].device == start.device and fits(recipe, machine, counts, known[0]):
        return Choice(*known)
    settings, trial, busy = start, None, _busy()
    # Where compiling is asked for, what is compiled is what would have to be tried: a minute for each.
    compiling = recipe.train.compile == "on" and start.compile
    if not compiling and guess / recipe.train.batch_size <= SLOWEST_WINDOW:
        settings, trial = _tried(recipe, machine, counts, replace(start, compile=False), bench, guess, busy)
    if busy():
        # Such times are those of the other work: the probes, which keep the best of several runs, know more.
        return Choice(start, None if trial is None else trial.disturbed())
    if trial is None:
        settings = start
    remembered.remember(file, settings, trial)
    return Choice(settings, trial)


def _busy() -> Callable[[], bool]:
    """Whether this process has had to wait for other work since this call."""
    before = hardware.ran_and_waited()

    def busy() -> bool:
        ran, waited = (now - then for now, then in zip(hardware.ran_and_waited(), before, strict=True))
        return waited > MOST_WAITING * (ran + waited)

    return busy


def _tried(
    recipe: Recipe,
    machine: Machine,
    counts: Counts,
    start: Settings,
    bench: Bench,
    guess: float,
    busy: Callable[[], bool],
) -> tuple[Settings, Trial | None]:
    step = bench.step_seconds(start, guess=guess)
    seconds = 0.0 if step is None else allowance(predicted_seconds(recipe, counts, step))
    if step is None or seconds == 0:
        return start, None
    bench.allow(step, seconds)
    settings, trial = search(
        start,
        bench,
        plain=plain_settings(recipe, machine, counts, start),
        coordinates=coordinates(recipe, machine, counts),
        seconds=seconds,
        predict=lambda seconds_per_step: predicted_seconds(recipe, counts, seconds_per_step),
        compiled=lambda best: compiled(recipe, machine, best),
        tokens_per_step=recipe.train.batch_size * recipe.model.context_length,
        disturbed=busy,
    )
    return settings, trial if any(one.runs for one in trial.tried) else None


def checked(
    recipe: Recipe, machine: Machine, counts: Counts, choice: Choice, compare: Callable[[Settings, Settings], Parity]
) -> Choice:
    """The choice held against plain fp32 on a few tokens; where it does not hold, the next safe settings instead.

    What is pinned is given up too: a slower run is better than one that learns from wrong gradients.
    """
    eager = replace(choice.settings, compile=False)
    plain = replace(eager, precision="fp32", attention="sdpa", weight_gradient="strided")
    if eager == plain:
        return choice
    trouble, parity = _apart(eager, plain, compare)
    if not trouble:
        return replace(choice, parity=parity)
    for other in safer(eager):
        still, parity = ("", None) if other == plain else _apart(other, plain, compare)
        if not still:
            break
    why = f"fell back: {_in_words(eager)} does not compute what plain fp32 does here"
    settings = replace(other, why={**other.why, "precision": why})
    if recipe.train.micro_batch == "auto" and not fits(recipe, machine, counts, settings):
        settings = refitted(recipe, machine, counts, settings)
    told = (
        f"{_in_words(eager)} does not compute what plain fp32 does here ({trouble}); going on with {_in_words(other)}"
    )
    fallback = Notice(code="parity_fallback", message=told)
    trial = None if choice.trial is None else choice.trial.overruled()
    return Choice(settings, trial, parity, [*choice.fallbacks, fallback])


def _apart(
    settings: Settings, plain: Settings, compare: Callable[[Settings, Settings], Parity]
) -> tuple[str, dict[str, Any] | None]:
    """What is wrong with settings, nothing if nothing is; and the numbers."""
    try:
        found = compare(settings, plain)
    except RuntimeError as error:
        # An operation that is not there in this format, say.
        return first_line(error), None
    return "" if found.holds else found.told(), found.as_dict()


def limitations(
    recipe: Recipe, machine: Machine, counts: Counts, settings: Settings, seconds_per_step: float
) -> list[Notice]:
    """What this machine lacks of what was asked, or of what auto would have used."""
    found = []
    asked, precision = recipe.train.precision, settings.precision
    if asked == "bf16" and not machine.bf16:
        told = f"this {machine.device} device has no bf16 of its own, which is emulated; train.precision=fp32 may be faster"
        found.append(Notice(code="precision_fallback", message=told))
    native = machine.device == "cpu" or (machine.device == "cuda" and machine.bf16)
    if asked == "auto" and not native and precision == "fp32":
        found.append(Notice(code="precision_fallback", message=f"training in fp32: {settings.why['precision']}"))
    wanted = recipe.train.compile == "on" or (
        recipe.train.compile == "auto"
        and worth_compiling(predicted_seconds(recipe, counts, seconds_per_step), machine.device)
    )
    if wanted and not settings.compile:
        works = choose_compile("on", machine, predicted_seconds=None)
        if not works.value:
            found.append(Notice(code="compile_fallback", message=f"{works.reason}; going on without it"))
    return found


def _in_words(settings: Settings) -> str:
    return settings.told().partition(", micro-batch")[0]
