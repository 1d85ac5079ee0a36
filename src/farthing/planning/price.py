"""The price before it is paid: what a recipe comes to on this machine.

Recipe + machine + counts of the text -> steps, micro-batch, memory, FLOPs, minutes and money, and what is refused.
Derived numbers live here and never go back into the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from farthing.budget import Rates, steps_for_limits
from farthing.events import Notice
from farthing.forms import shaped
from farthing.model import cost
from farthing.optim.memory import state_bytes
from farthing.planning.choose import Choice
from farthing.planning.settings import (
    START_SECONDS,
    Counts,
    Settings,
    Timing,
    available_memory,
    fewest,
    flops_per_token,
    memory_terms,
    parameters_by_role,
    rates_of,
)
from farthing.planning.trial import Trial
from farthing.recipe import Recipe
from farthing.recipe.running import Checkpoint
from farthing.runtime.device import Machine, matmul_rate
from farthing.runtime.disk import SavingRate

CALIBRATION_MARGIN = 0.95
"""Share of a budget in minutes or money that is turned into steps; the rest absorbs a machine that slows down."""

MOST_BETWEEN_SAVES = 60.0
"""seconds of training between checkpoints at most, if they cost little"""
MOST_SPENT_ON_SAVES = 0.02
"""share of the time"""
GIB = 1 << 30
MOST_THREADS = 1024
"""that a plan may ask torch for; far more would only be asked by a damaged one"""


@dataclass(frozen=True)
class Plan:
    """What a run will take. `steps`, `tokens` and what follows from them are None while the text has not been read."""

    parameters: int
    parameters_by_part: dict[str, int]
    vocab_size: int
    steps: int | None
    limited_by: str | None
    steps_by_limit: dict[str, int]
    last_window: int | None
    tokens: int | None
    epochs: float | None
    flops: float | None
    flops_per_token: float
    tokens_per_epoch: int | None
    settings: Settings
    memory: dict[str, int]
    memory_bytes: int
    memory_available: int
    checkpoint_bytes: int
    seconds_per_step: float
    timing: str
    measured: bool
    seconds: float | None
    evaluation_seconds: float | None
    money: float | None
    peak_flops: float
    evaluate_every: int | None
    checkpoint_every: int | None
    log_every: int
    fits: bool
    refusals: list[str] = field(default_factory=list)
    passing: list[str] = field(default_factory=list)
    """the refusals that say nothing of the recipe: the disk has too little room at this moment"""
    warnings: list[str] = field(default_factory=list)
    trial: Trial | None = None
    """what the settings rest on; None where nothing was tried"""
    parity: dict[str, Any] | None = None
    """how far loss and gradients are from those of plain fp32, and how far they may be; None where they are just that"""
    background_saves: bool = False
    """whether checkpoints are written while training goes on"""
    fallbacks: list[Notice] = field(default_factory=list)
    """what had to be given up on this machine; the events tell it too"""

    def told(self) -> str:
        """The settings in one line, and what they rest on."""
        if any(one.code == "parity_fallback" for one in self.fallbacks):
            return f"{self.settings.told()}: what is faster does not compute the same here"
        return self.settings.told() + ("" if self.trial is None else f": {self.trial.told()}")

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Plan:
        """The plan that `as_dict` described, now or in an earlier version.

        Raises:
            ValueError: it is not of that form.
        """
        made = shaped(cls, table)
        if not 1 <= made.settings.threads <= MOST_THREADS:
            raise ValueError(f"settings.threads: {made.settings.threads} is no number of threads")
        return made

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; what plan.json holds."""
        return asdict(self)


@dataclass(frozen=True)
class Planned:
    """A plan, and why the text could not be read, if it could not."""

    recipe: Recipe
    plan: Plan
    missing_text: str | None

    @property
    def refusals(self) -> list[str]:
        """Why `train` would refuse; empty if it would not."""
        return [*self.plan.refusals, *([self.missing_text] if self.missing_text else [])]


def make_plan(
    recipe: Recipe,
    machine: Machine,
    counts: Counts,
    choice: Choice,
    timing: Timing,
    *,
    disk_free: int,
    saving: SavingRate | None = None,
    warnings: list[str] | None = None,
) -> Plan:
    """Put the whole plan together.

    Args:
        recipe: what was asked.
        machine: where it will run.
        counts: the text in tokens.
        choice: the settings, and what they rest on.
        timing: measured, or from `estimate`.
        disk_free: bytes free where the run folder goes.
        saving: how fast checkpoints can be copied and written there; None if that is not known.
        warnings: what the text's preflight had to say.
    """
    settings, table = choice.settings, cost.parameter_table(recipe.model, counts.vocab_size)
    terms = memory_terms(
        recipe, counts.vocab_size, settings.micro_batch, settings.precision, settings.attention, machine
    )
    saved = cost_of_checkpoint(recipe, counts.vocab_size)
    rates = rates_of(recipe, counts, timing.seconds_per_step)
    plan = _Schedule.of(recipe, counts, rates, timing, _interval(recipe, saved, saving, machine, settings.threads))
    available = available_memory(recipe, machine)
    copied = _checkpoint_copy(recipe, plan, saved, machine, room=available - sum(terms.values()))
    terms |= copied or {}
    result = Plan(
        parameters=sum(table.values()),
        parameters_by_part=table,
        vocab_size=counts.vocab_size,
        steps=plan.steps,
        limited_by=plan.limited_by,
        steps_by_limit=plan.by_limit,
        last_window=plan.last_window,
        tokens=plan.tokens,
        epochs=None if plan.tokens is None or not counts.tokens_per_epoch else plan.tokens / counts.tokens_per_epoch,
        flops=None if plan.tokens is None else plan.tokens * flops_per_token(recipe, counts.vocab_size),
        flops_per_token=flops_per_token(recipe, counts.vocab_size),
        tokens_per_epoch=counts.tokens_per_epoch,
        settings=settings,
        memory=terms,
        memory_bytes=sum(terms.values()),
        memory_available=available,
        checkpoint_bytes=saved,
        seconds_per_step=timing.seconds_per_step,
        timing=timing.how,
        measured=timing.measured,
        seconds=plan.seconds,
        evaluation_seconds=plan.evaluation_seconds,
        money=_money(recipe, plan),
        peak_flops=matmul_rate(settings.precision, machine.device),
        evaluate_every=plan.evaluate_every,
        checkpoint_every=plan.checkpoint_every,
        log_every=plan.log_every,
        background_saves=copied is not None,
        fits=sum(terms.values()) <= available,
        warnings=list(warnings or []),
        trial=choice.trial,
        parity=choice.parity,
        fallbacks=choice.fallbacks,
    )
    result.warnings.extend(_too_little_money(recipe, result))
    result.passing.extend(_passing(recipe, result, disk_free))
    result.refusals.extend([*_refusals(recipe, result), *result.passing])
    return result


def cost_of_checkpoint(recipe: Recipe, vocab_size: int) -> int:
    """Bytes of one checkpoint: weights, optimizer state and the averaged weights if there are any."""
    roles = parameters_by_role(recipe.model, vocab_size)
    copies = 2 if recipe.train.ema is not None else 1
    return copies * 4 * sum(roles.values()) + state_bytes(recipe.optimizer, roles)


def save_interval(
    section: Checkpoint, checkpoint_bytes: int, saving: SavingRate | None, *, crowded: bool = True
) -> float:
    """Seconds of training between checkpoints where the recipe leaves that open.

    Young (1974) and Daly (2006): sqrt(2 C M) for checkpoints that cost C seconds of training and failures M seconds
    apart on average. A minute at most, so that a crash costs half a minute on average, unless saving would then take
    more than a fiftieth of the time.

    Args:
        section: the recipe's.
        checkpoint_bytes: size of one.
        saving: how fast it is saved; None where that is not known.
        crowded: whether training uses every core. A save in the background then costs training as much time as it takes
            of a processor: threads that share a step wait for the one that has to share its core.
    """
    if saving is None:
        return MOST_BETWEEN_SAVES
    copied, written = checkpoint_bytes / saving.copy, checkpoint_bytes / saving.write
    lost = copied + (checkpoint_bytes / saving.work if crowded else 0.0) if section.background else written
    wanted = math.sqrt(2 * lost * section.mtbf_hours * 3600)
    return max(min(wanted, MOST_BETWEEN_SAVES), lost / MOST_SPENT_ON_SAVES, 2 * written)


def _interval(recipe: Recipe, saved: int, saving: SavingRate | None, machine: Machine, threads: int) -> float:
    crowded = machine.device == "cpu" and threads >= machine.physical_cores
    return save_interval(recipe.checkpoint, saved, saving, crowded=crowded)


def _money(recipe: Recipe, plan: _Schedule) -> float | None:
    price = recipe.budget.price_per_hour
    if price is None or plan.seconds is None:
        return None
    return (plan.seconds + (plan.evaluation_seconds or 0) + START_SECONDS) / 3600 * price


def _checkpoint_copy(
    recipe: Recipe, plan: _Schedule, saved: int, machine: Machine, *, room: int
) -> dict[str, int] | None:
    """Memory of the copy that checkpoints are written from in the background; None where training waits for them."""
    if not recipe.checkpoint.background or not plan.steps or (plan.checkpoint_every or plan.steps) >= plan.steps:
        return None
    if machine.device != "cpu":
        return {}
    return {"checkpoint copy": saved} if saved <= room else None


@dataclass(frozen=True)
class _Schedule:
    """How long the run is, and how often it looks up from its work."""

    steps: int | None
    limited_by: str | None
    by_limit: dict[str, int]
    last_window: int | None
    tokens: int | None
    seconds: float | None
    evaluation_seconds: float | None
    evaluate_every: int | None
    checkpoint_every: int | None
    log_every: int

    @classmethod
    def of(cls, recipe: Recipe, counts: Counts, rates: Rates | None, timing: Timing, save_seconds: float) -> _Schedule:
        per_step = timing.seconds_per_step
        log_every = (
            max(1, min(100, round(0.5 / per_step))) if recipe.train.log_every == "auto" else recipe.train.log_every
        )
        by_limit = _with_margin(recipe, steps_for_limits(recipe.budget, rates)) if rates else {}
        shortest = fewest(by_limit)
        if shortest is None or rates is None:
            return cls(None, None, by_limit, None, None, None, None, None, None, log_every)
        limited_by, steps = shortest
        last = steps * recipe.train.batch_size
        if limited_by == "epochs" and recipe.budget.epochs is not None:
            last = min(last, round(recipe.budget.epochs * rates.sequences_per_epoch))
        # Exact but for the ragged last window of an unfinished epoch.
        whole, rest = divmod(last, rates.sequences_per_epoch)
        tokens = whole * rates.tokens_per_epoch + min(rest * recipe.model.context_length, rates.tokens_per_epoch)
        once = _evaluation_seconds(recipe, counts, timing)
        asked, saving = recipe.evaluate.every, recipe.checkpoint.every
        # Ten looks, fewer where they would cost more than a tenth of the run. From counts, never from clocks: the
        # same recipe must look at the same steps each time, or its best checkpoint would depend on the weather.
        affordable = int(0.1 * 1.5 * tokens / counts.validation_tokens) if counts.validation_tokens else 10
        every = _in_steps(asked, steps, auto=-(-steps // min(10, max(1, affordable))))
        save = _in_steps(saving, steps, auto=max(1, round(save_seconds / per_step)))
        looks = steps // every + (steps % every > 0)
        looking = looks * once + _task_seconds(recipe, counts, timing, steps, every)
        return cls(steps, limited_by, by_limit, last, tokens, steps * per_step, looking, every, save, log_every)


def _in_steps(asked: int | str, steps: int, *, auto: int) -> int:
    """A cadence as a number of steps, the end being one."""
    if isinstance(asked, int):
        return min(asked, steps)
    return min(auto, steps) if asked == "auto" else steps


def _with_margin(recipe: Recipe, by_limit: dict[str, int]) -> dict[str, int]:
    return {
        name: max(1, int(steps * CALIBRATION_MARGIN)) if name in ("minutes", "money") else steps
        for name, steps in by_limit.items()
    }


def _evaluation_seconds(recipe: Recipe, counts: Counts, timing: Timing) -> float:
    """One evaluation."""
    if counts.validation_tokens is None:
        return 0.0
    stride = recipe.evaluate.stride
    rescored = recipe.model.context_length / stride if stride != "context_length" else 1.0
    readings = 2 if recipe.evaluate.legacy == "titles" else 1
    return _reading_seconds(recipe, timing, counts.validation_tokens * rescored * readings)


def _reading_seconds(recipe: Recipe, timing: Timing, tokens: float) -> float:
    """To score so many tokens: a forward pass is a third of a step's work, in fp32 at perhaps half the rate."""
    return tokens * timing.seconds_per_step / (recipe.train.batch_size * recipe.model.context_length) * (2 / 3)


def _task_seconds(recipe: Recipe, counts: Counts, timing: Timing, steps: int, every: int) -> float:
    """All askings of all tasks: a part of the questions at the cadence, all of them at the end."""
    tokens = 0.0
    for asked, size in zip(recipe.evaluate.tasks, counts.tasks, strict=bool(counts.tasks)):
        part = 1.0 if asked.limit is None else min(1.0, asked.limit / max(1, size.items))
        before_the_end = (steps - 1) // _in_steps(asked.every, steps, auto=every)
        tokens += size.tokens * (1 + asked.shots) * (before_the_end * part + 1)
    return _reading_seconds(recipe, timing, tokens)


def _too_little_money(recipe: Recipe, plan: Plan) -> list[str]:
    limit = recipe.budget.money
    if limit is None or plan.money is None or plan.money <= 1.05 * limit:
        return []
    return [
        f"budget.money={limit:g} hardly lasts for start-up and scoring: {plan.steps} steps and these cost about "
        f"{plan.money:.2g}; give more, or a smaller model or validation text"
    ]


def _refusals(recipe: Recipe, plan: Plan) -> list[str]:
    found = []
    if not plan.fits:
        largest = max(plan.memory, key=lambda term: plan.memory[term])
        advice = "train.micro_batch=auto" if recipe.train.micro_batch != "auto" else "a smaller model, batch or context"
        found.append(
            f"needs about {plan.memory_bytes / GIB:.1f} GiB ({largest} alone {plan.memory[largest] / GIB:.1f}), "
            f"{plan.memory_available / GIB:.1f} GiB to be had; try {advice}"
        )
    size = plan.parameters * 4 / 1e6
    low, high = recipe.limits.min_megabytes, recipe.limits.max_megabytes
    if low is not None and size < low:
        found.append(f"the model has {size:.1f} MB of fp32 parameters, under limits.min_megabytes={low:g}")
    if high is not None and size > high:
        found.append(f"the model has {size:.1f} MB of fp32 parameters, over limits.max_megabytes={high:g}")
    return found


def _passing(recipe: Recipe, plan: Plan, disk_free: int) -> list[str]:
    copies = recipe.checkpoint.keep + recipe.checkpoint.best + 1
    if disk_free >= copies * plan.checkpoint_bytes:
        return []
    return [
        f"needs {copies * plan.checkpoint_bytes / 1e9:.2f} GB of disk for {copies} checkpoints, "
        f"{disk_free / 1e9:.2f} GB free; free some, or point --runs at a larger disk"
    ]
