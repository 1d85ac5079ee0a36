"""Looking while seeds come in: a fixed number of looks, an early verdict where it is clear, an early end where it is not.

A test repeated at every new seed errs far more often than its level says. Here the level is spent over the looks (Lan and
DeMets 1983, Discrete sequential boundaries for clinical trials, Biometrika 70), so that the chance of a false verdict at
any of them stays at most the level. Scores have an unknown spread, so a look's p value comes from the t test of its own
seeds and is held against the nominal level of the normal boundary: the significance-level approach of Jennison and
Turnbull (2000), Group Sequential Methods, section 4.4. With as few seeds as here that alone errs up to a fifth too
often; the nominal levels are scaled down to what simulated pairs show.

A change that has become hopeless is given up by its conditional power (Lan and Wittes 1988, The B-value, Biometrics 44).
That rule only ever ends a comparison without a verdict, so it cannot make a false one likelier.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal

from farthing.compare.statistics import (
    LEVEL,
    Difference,
    Noise,
    Scores,
    Unknown,
    check_level,
    difference,
    finished,
    word_for,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Spending = Literal["obrien-fleming", "pocock"]
Decision = Literal["better", "worse", "hopeless", "cannot tell", "continue"]

FEWEST_TO_GIVE_UP = 3
"""seeds before a change that has been better so far may be called hopeless"""
_NODES = 256
"""of the quadrature over a look's continuation region; four digits of every published boundary need a tenth of them"""
_SIMULATED = 100_000
"""comparisons of equals that the levels are scaled by: they are known to 1 or 2 % of themselves"""


@dataclass(frozen=True)
class Look:
    """What one look at the seeds so far says.

    Args:
        decision: better or worse: told, stop; hopeless: stop, it will hardly become better; cannot tell: that was the
            last look; continue: train the seeds of the next look.
        seeds: how many seeds of the arm were looked at.
        difference: arm minus baseline, or why there is none.
        p: two-sided, of this look alone; None where nothing can be tested.
        nominal: what p is held against at this look.
        conditional_power: the chance to end as better if the trend so far is the truth; None where it is not known.
        reason: in words.
    """

    decision: Decision
    seeds: int
    difference: Difference | Unknown
    p: float | None
    nominal: float
    conditional_power: float | None
    reason: str


@dataclass(frozen=True)
class Sequential:
    """A comparison of one arm with a baseline in several looks.

    Args:
        looks: seeds of the arm at each look, rising, for example (2, 3, 5).
        level: the most that the chance of a false verdict may be, over all looks together.
        spending: how the level is spent; obrien-fleming keeps nearly all of it for the last look, pocock spends it evenly.
        hopeless_below: conditional power at which a change is given up; 0 never gives up.

    Raises:
        ValueError: looks that do not rise, or begin below one seed.
    """

    looks: tuple[int, ...]
    level: float = LEVEL
    spending: Spending = "obrien-fleming"
    hopeless_below: float = 0.1

    def __post_init__(self) -> None:
        check_level(self.level)
        if not self.looks or any(b <= a for a, b in zip(self.looks, self.looks[1:], strict=False)):
            raise ValueError(f"looks {self.looks}: the numbers of seeds must rise")
        if self.looks[0] < 1:
            raise ValueError(f"looks {self.looks}: a look takes a seed or more")
        if not 0 <= self.hopeless_below < 1:
            raise ValueError(f"hopeless_below {self.hopeless_below:g}: must be at least 0 and below 1")

    @property
    def nominal(self) -> tuple[float, ...]:
        """The two-sided p value at each look below which there is a verdict."""
        return _nominal(self.looks, self.level, self.spending)

    def look(self, arm: Scores, baseline: Scores, *, noise: Noise | None = None) -> Look:
        """What to do after one of the looks.

        Args:
            arm: scores by seed, None where a run failed; as many seeds as one of `looks`.
            baseline: likewise; may have more seeds.
            noise: the recipe's noise floor, for a look at a single seed.

        Raises:
            ValueError: the arm has another number of seeds than any look.
        """
        seeds = len(arm)
        if seeds not in self.looks:
            raise ValueError(f"{seeds} seeds: the looks are at {', '.join(map(str, self.looks))}")
        which = self.looks.index(seeds)
        nominal, last = self.nominal[which], seeds == self.looks[-1]
        found = difference(arm, baseline, noise=noise)
        if isinstance(found, Unknown):
            decision: Decision = "cannot tell" if last else "continue"
            return Look(decision, seeds, found, None, nominal, None, found.reason)
        word, reason = word_for(found, arm, baseline, clear=found.p <= nominal)
        if word != "cannot tell":
            return Look(word, seeds, found, found.p, nominal, None, f"p = {found.p:.2g}, at most {nominal:.2g}")
        if last:
            # The nominal level is below the whole one, so an interval that leaves out zero may still tell nothing.
            short = f": p = {found.p:.2g}, and {nominal:.2g} or less would tell" if found.p > nominal else ""
            return Look("cannot tell", seeds, found, found.p, nominal, None, reason + short)
        if len(finished(arm)) < seeds:
            return Look("hopeless", seeds, found, found.p, nominal, 0.0, "an arm with failed runs is never better")
        chance = self._conditional_power(found, seeds / self.looks[-1])
        if seeds < FEWEST_TO_GIVE_UP and found.value < 0:
            # Two seeds hardly know their own spread: what has been better in the mean so far gets another look.
            return Look("continue", seeds, found, found.p, nominal, chance, reason)
        if chance < self.hopeless_below:
            why = f"by the trend so far, the chance to end as better is {chance:.0%}"
            return Look("hopeless", seeds, found, found.p, nominal, chance, why)
        return Look("continue", seeds, found, found.p, nominal, chance, reason)

    def _conditional_power(self, found: Difference, fraction: float) -> float:
        """The chance to cross the last boundary on the side of better, if the drift seen so far goes on."""
        from scipy.special import ndtr, ndtri

        final = -float(ndtri(self.nominal[-1] / 2))
        z = -float(ndtri(found.p / 2)) * (1 if found.value < 0 else -1)
        b_value = z * math.sqrt(fraction)
        drift = b_value / fraction
        return float(ndtr((b_value + drift * (1 - fraction) - final) / math.sqrt(1 - fraction)))


@lru_cache(maxsize=256)
def _nominal(looks: tuple[int, ...], level: float, spending: Spending) -> tuple[float, ...]:
    """The nominal levels of the looks, such that t tests over pairs keep the level: the method with the fewest degrees."""
    import numpy as np
    from scipy.special import ndtr, stdtr

    bounds = boundaries(tuple(seeds / looks[-1] for seeds in looks), level, spending)
    nominal = [2 * float(ndtr(-bound)) for bound in bounds]
    # A single seed shows no spread of its own; the test against a noise floor has the degrees of that.
    tested = [(seeds, one) for seeds, one in zip(looks, nominal, strict=True) if seeds > 1]
    if len(tested) < 2:
        return tuple(nominal)
    draws_SN = np.random.default_rng(0).standard_normal((_SIMULATED, looks[-1]))
    least_S = np.full(_SIMULATED, np.inf)
    for seeds, one in tested:
        seen_SN = draws_SN[:, :seeds]
        t_S = seen_SN.mean(axis=1) / (seen_SN.std(axis=1, ddof=1) / math.sqrt(seeds))
        least_S = np.minimum(least_S, 2 * stdtr(seeds - 1, -abs(t_S)) / one)
    factor = min(1.0, float(np.quantile(least_S, level)))
    return tuple(one * factor for one in nominal)


@lru_cache(maxsize=256)
def boundaries(
    fractions: tuple[float, ...], level: float = LEVEL, spending: Spending = "obrien-fleming"
) -> tuple[float, ...]:
    """The z values at which a two-sided, symmetric test of several looks ends.

    Armitage, McPherson and Rowe's recursion (1969): the density of the sum of all increments, on the paths that no
    earlier look has ended, is carried from look to look by Gauss-Legendre quadrature.

    Args:
        fractions: share of all seeds at each look, rising to 1.
        level: two-sided.
        spending: how much of it may be spent by a fraction of the seeds.
    """
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    found: list[float] = []
    at_M, mass_M = np.zeros(1), np.ones(1)  # where the paths that go on stand, and how many of them stand there
    before = spent = 0.0
    for fraction in fractions:
        step = math.sqrt(fraction - before)
        allowed = _spent(fraction, level, spending)
        crossing = partial(_crossing, at_M=at_M, mass_M=mass_M, edge=math.sqrt(fraction), step=step)
        bound = _bisect(crossing, allowed - spent)
        found.append(bound)
        # Beyond this there is nothing that counts, however wide the first looks' regions are.
        edge = min(bound, 10.0) * math.sqrt(fraction)
        next_N = nodes * edge
        density_NM = np.exp(-0.5 * ((next_N[:, None] - at_M[None, :]) / step) ** 2) / (step * math.sqrt(2 * math.pi))
        at_M, mass_M = next_N, (density_NM @ mass_M) * weights * edge
        before, spent = fraction, allowed
    return tuple(found)


def _crossing(bound: float, *, at_M: Floats, mass_M: Floats, edge: float, step: float) -> float:
    """The mass of paths that a look ends, from where they stood before it."""
    from scipy.special import ndtr

    outside_M = ndtr((at_M - bound * edge) / step) + ndtr((-bound * edge - at_M) / step)
    return float(mass_M @ outside_M)


def _spent(fraction: float, level: float, spending: Spending) -> float:
    """The part of a two-sided level that may be spent by this fraction of the seeds (Lan and DeMets 1983)."""
    from scipy.special import ndtr, ndtri

    if fraction >= 1:
        return level
    if spending == "pocock":
        return level * math.log(1 + (math.e - 1) * fraction)
    return 4 * float(ndtr(float(ndtri(level / 4)) / math.sqrt(fraction)))


def _bisect(crossing: Callable[[float], float], wanted: float) -> float:
    low, high = 0.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if crossing(middle) > wanted else (low, middle)
    return (low + high) / 2


def evenly(most: int, looks: int, *, first: int = 2) -> tuple[int, ...]:
    """Numbers of seeds for so many looks, spread evenly from `first` to `most`; fewer looks where there is no room."""
    if looks < 1 or most < first:
        raise ValueError(f"{looks} looks at {first} to {most} seeds: there is no such thing")
    if looks == 1:
        return (most,)
    steps = [first + (most - first) * index / (looks - 1) for index in range(looks)]
    return tuple(sorted({round(step) for step in steps}))
