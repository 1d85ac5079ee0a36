"""The learning rate as a pure function of the fraction of the budget spent. No torch here.

The convention of the studies: `progress` is measured before a step, steps being counted from 0, so step t of N runs
at `factor(section, t / N)`. A rise from `warmup_from = 0` therefore gives the very first step a rate of 0 (it fills
the optimizer's moments and moves nothing), and the floor is where the last step would lead, one step short of it.
"""

from __future__ import annotations

import math
from typing import assert_never

from farthing.recipe.optimization import AnySchedule, Constant, Cosine, InverseSqrt, Linear, Wsd


def factor(section: AnySchedule, progress: float) -> float:
    """The fraction of the peak rate, in [0, 1], when a fraction `progress` of the budget has been spent.

    Before 0 and beyond 1 it stays what it is there. The rise is linear from `warmup_from` at 0 to exactly 1 at
    `warmup`; what follows is the schedule's kind, and ends at exactly `floor` where the kind has one.
    """
    assert not math.isnan(progress), "progress is not a number"
    progress = min(max(progress, 0.0), 1.0)
    if progress < section.warmup:
        return _between(section.warmup_from, 1.0, progress / section.warmup)
    # 1 - (1 - p) / (1 - w), not (p - w) / (1 - w): exactly 0 at the warm-up's end and exactly 1 at the budget's.
    after_warmup = 1.0 - (1.0 - progress) / (1.0 - section.warmup)
    match section:
        case Constant():
            return 1.0
        case Linear():
            return _between(section.floor, 1.0, 1.0 - after_warmup)
        case Cosine():
            return _between(section.floor, 1.0, _half_cosine(after_warmup))
        case Wsd():
            return _between(section.floor, 1.0, _fall(section, max(0.0, 1.0 - (1.0 - progress) / section.decay)))
        case InverseSqrt():
            return math.sqrt(section.warmup / progress)
        case _:
            assert_never(section)


def _fall(section: Wsd, x: float) -> float:
    match section.shape:
        case "linear":
            return 1.0 - x
        case "cosine":
            return _half_cosine(x)
        case "one_minus_sqrt":
            return 1.0 - math.sqrt(x)


def _half_cosine(x: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * x))


def _between(low: float, high: float, x: float) -> float:
    return low + (high - low) * x
