"""What a run may spend, what it has spent, and how far along that makes it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import Field, model_validator

from farthing.section import Section

Positive = Annotated[float, Field(gt=0)]


class Budget(Section):
    """Limits of a run. Give at least one; the first one reached ends it."""

    epochs: Positive | None = None
    """passes over the training tokens"""
    steps: Annotated[int, Field(ge=1)] | None = None
    """optimizer steps"""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """training tokens"""
    flops: Positive | None = None
    """floating-point operations of training, by the count of `farthing plan` (forward and backward, attention included)"""
    minutes: Positive | None = None
    """minutes of training time; evaluation and checkpoints come on top"""
    money: Positive | None = None
    """what the machine may cost while the run lasts, in the currency of price_per_hour"""
    price_per_hour: Positive | None = None
    """price of this machine for an hour; with it every run shows its running cost"""

    @model_validator(mode="after")
    def _some_limit(self) -> Budget:
        if not self.limits():
            raise ValueError("no budget: set one of budget.epochs, steps, tokens, flops, minutes or money")
        if self.money is not None and self.price_per_hour is None:
            raise ValueError("budget.money needs budget.price_per_hour, the price of this machine for an hour")
        return self

    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        every = {
            "epochs": self.epochs,
            "steps": self.steps,
            "tokens": self.tokens,
            "flops": self.flops,
            "minutes": self.minutes,
            "money": self.money,
        }
        return {name: value for name, value in every.items() if value is not None}


@dataclass(frozen=True)
class Spent:
    """What a run has used up so far.

    `seconds` is training time alone, without start-up, evaluation and checkpoints; `money` is the price of all the
    time that the machine was held, those included.
    """

    steps: int = 0
    tokens: int = 0
    epochs: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    money: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """The same as a JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Rates:
    """What one optimizer step of a given recipe takes.

    Args:
        sequences_per_step: windows in a full step.
        sequences_per_epoch: windows in one pass over the training tokens.
        tokens_per_epoch: training tokens.
        context_length: tokens of a full window; the last one of an epoch may be shorter.
        flops_per_token: training operations for one token.
        seconds_per_step: measured training time of a step, or None before calibration.
        overhead_seconds: predicted time outside training steps (start, evaluation, checkpoints), for money.
    """

    sequences_per_step: int
    sequences_per_epoch: int
    tokens_per_epoch: int
    context_length: int
    flops_per_token: float
    seconds_per_step: float | None = None
    overhead_seconds: float = 0.0

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a full step."""
        return self.sequences_per_step * self.context_length


def steps_for_limits(budget: Budget, rates: Rates) -> dict[str, int]:
    """How many steps each limit allows, by name; minutes and money only once a step has been measured.

    Epochs round up, since their last step serves exactly the windows that remain; every other limit rounds down, so
    that it is never exceeded, but never below one step.
    """
    found: dict[str, int] = {}
    for name, limit in budget.limits().items():
        if name == "epochs":
            found[name] = math.ceil(round(limit * rates.sequences_per_epoch, 6) / rates.sequences_per_step)
        elif name == "steps":
            found[name] = int(limit)
        elif name == "tokens":
            found[name] = _steps_within(int(limit), rates)
        elif name == "flops":
            # A product of floats, divided again, must not come out a hair below the whole number that it was.
            found[name] = _steps_within(int(limit / rates.flops_per_token * (1 + 1e-12)), rates)
        elif rates.seconds_per_step is not None:
            if name == "minutes":
                seconds = limit * 60
            else:
                assert budget.price_per_hour is not None
                seconds = limit / budget.price_per_hour * 3600 - rates.overhead_seconds
            found[name] = int(seconds / rates.seconds_per_step)
    return {name: max(1, steps) for name, steps in found.items()}


def _steps_within(tokens: int, rates: Rates) -> int:
    """The most steps that serve at most so many tokens, in whatever order an epoch's ragged window comes."""
    windows, epoch, batch = rates.sequences_per_epoch, rates.tokens_per_epoch, rates.sequences_per_step
    steps = tokens * windows // (batch * epoch)
    while steps > 0:
        epochs, rest = divmod(steps * batch, windows)
        if epochs * epoch + min(rest * rates.context_length, epoch) <= tokens:
            break
        steps -= 1
    return steps


def progress(budget: Budget, spent: Spent) -> float:
    """The largest fraction of any limit that is used up: 0 at the start, 1 or more when the run must end."""
    used = {
        "epochs": spent.epochs,
        "steps": spent.steps,
        "tokens": spent.tokens,
        "flops": spent.flops,
        "minutes": spent.seconds / 60,
        "money": spent.money,
    }
    return max(used[name] / limit for name, limit in budget.limits().items())
