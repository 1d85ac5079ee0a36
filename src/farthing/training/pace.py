"""A budget in minutes or money on a machine that slows down: fewer steps, so that the schedule still ends in time."""

from __future__ import annotations

from farthing.training.meter import Meter

CHECKS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""shares of the budget at which the pace is looked at"""
SPARE = 0.98
"""share of what is left that is turned into steps"""


class Pace:
    """Compares a run's pace with what its budget of minutes or money allows.

    Steps were planned from a short measurement; a laptop that throttles or a neighbour that wakes up makes them too
    many, and a run cut off before its learning rate has come down is worth much less than a shorter one that ends
    well. Steps are only ever taken away, at few moments, and the loop saves each such decision at once.

    Args:
        seconds: limit of training time, or None.
        money: limit of money, or None.
    """

    def __init__(self, *, seconds: float | None, money: float | None) -> None:
        self._seconds = seconds
        self._money = money
        self._mark: tuple[int, float] | None = None

    def used(self, meter: Meter) -> float:
        """The largest share of a limit that is spent; 0 without limits."""
        shares = [0.0]
        if self._seconds is not None:
            shares.append(meter.seconds / self._seconds)
        if self._money is not None:
            shares.append(meter.money / self._money)
        return max(shares)

    def fewer_steps(self, step: int, steps: int, used: float) -> int | None:
        """How many steps the run should have instead of `steps`, if it is too slow for them; else None.

        Args:
            step: steps done.
            steps: steps planned.
            used: from `used`, now.
        """
        if self._mark is None:
            # A sitting's own pace counts, not that of the one before.
            self._mark = (step, used)
            return None
        since, before = self._mark
        passed = [check for check in CHECKS if before < check <= used]
        if not passed or step == since or step >= steps - 1:
            return None
        self._mark = (step, used)
        a_step = (used - before) / (step - since)
        if used + (steps - step) * a_step <= 1:
            return None
        return min(steps - 1, step + max(1, int((1 - used) * SPARE / a_step)))
