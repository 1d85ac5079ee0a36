"""What scores over seeds can tell: intervals, tests between arms, and how many more seeds it would take.

An arm is one recipe trained with several seeds. Its scores are a mapping from seed to score; lower is better, as in bits
per byte, and None stands for a run that failed (diverged, ran out of memory, or ended in a score that is not finite).

Between two arms: a paired t test over the seeds that both have, where these are at least half of the larger arm, since
runs of one seed share initial weights, data order and dropout; Welch's test otherwise, which lets the arms have
different spreads. Which of the two is chosen follows from the seeds alone, never from the scores. Several arms against
one baseline are corrected by Holm (1979), so that the chance of any false verdict is at most the level.

A failed run has no score, and leaving it out flatters its arm. So an arm with failed runs can lose, but never wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Scores = Mapping[int, float | None]
Word = Literal["better", "worse", "cannot tell"]
Method = Literal["paired t", "Welch t", "noise floor", "none"]

LEVEL = 0.05
POWER = 0.8
MOST_SEEDS = 1000
"""a difference that takes more seeds than this is nothing that anybody will tell"""


@dataclass(frozen=True)
class Noise:
    """The spread between seeds, known from elsewhere: what an arm of one run is judged by.

    Args:
        sd: standard deviation of a score over seeds.
        degrees_of_freedom: how well it is known; runs less one.
    """

    sd: float
    degrees_of_freedom: float


@dataclass(frozen=True)
class Summary:
    """An arm's scores in short; what too few runs cannot give is None.

    Args:
        n: finished runs.
        failed: runs without a score; they are in no other number here.
        mean: of the finished runs.
        sd: standard deviation between seeds, n - 1 in the divisor.
        low: lower end of the mean's t interval at 1 - level.
        high: its upper end.
        level: of the interval.
    """

    n: int
    failed: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    level: float

    def as_dict(self) -> dict[str, Any]:
        """The same, JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """What lies between two arms: arm minus baseline, so that below zero is better.

    Args:
        value: the difference of the means (of the pairs, where paired).
        error: its standard error.
        degrees_of_freedom: of its t distribution.
        method: how it was taken.
        n: seeds of the smaller arm, or pairs.
        sd: of one pair's difference, or of one run's score: what decides how many seeds are needed.
    """

    value: float
    error: float
    degrees_of_freedom: float
    method: Method
    n: int
    sd: float

    @property
    def p(self) -> float:
        """Two-sided: the chance of a difference at least this large if there were none."""
        from scipy.special import stdtr

        return min(1.0, 2 * float(stdtr(self.degrees_of_freedom, -abs(self.value) / self.error)))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The t interval at 1 - level, without correction for other comparisons."""
        half = t_quantile(level, self.degrees_of_freedom) * self.error
        return self.value - half, self.value + half


@dataclass(frozen=True)
class Unknown:
    """Why two arms cannot be held against each other; `value` is their difference where there is one at all."""

    reason: str
    value: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What can be said of an arm against the baseline.

    Args:
        verdict: better (lower), worse, or cannot tell.
        method: of the test.
        difference: arm minus baseline; below zero is better.
        low: lower end of the difference's interval at 1 - level, not corrected for other arms.
        high: its upper end.
        p: two-sided, of this comparison alone.
        p_corrected: after Holm's correction for all that were tested together; what the verdict goes by.
        level: the most that the chance of a false verdict may be, over all arms together.
        n: seeds of the smaller arm, or pairs.
        more_seeds: how many more seeds an arm would take to tell the difference that was seen with 80 % power; 0 where
            it has been told, None where that is unknown or above a thousand.
        reason: why it cannot be told, or what else stands in the way; otherwise empty.
    """

    verdict: Word
    method: Method
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_corrected: float | None
    level: float
    n: int
    more_seeds: int | None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The same, JSON-ready."""
        return asdict(self)


def check_level(level: float) -> float:
    """A level is a probability between 0 and a half.

    Raises:
        ValueError: it is not.
    """
    if not 0 < level <= 0.5:
        raise ValueError(f"level {level:g}: must be above 0 and at most 0.5")
    return level


def t_quantile(level: float, degrees_of_freedom: float) -> float:
    """The t that is exceeded in either direction with probability `level`."""
    from scipy.special import stdtrit

    return -float(stdtrit(degrees_of_freedom, check_level(level) / 2))


def summarise(scores: Scores, *, level: float = LEVEL) -> Summary:
    """Mean, spread and interval of an arm; no interval and no spread of fewer than two runs."""
    found = finished(scores)
    values = list(found.values())
    n, failed = len(values), len(scores) - len(values)
    if not values:
        return Summary(0, failed, None, None, None, None, check_level(level))
    mean = _mean(values)
    if n < 2:
        return Summary(n, failed, mean, None, None, None, check_level(level))
    sd = _sd(values)
    half = t_quantile(level, n - 1) * sd / math.sqrt(n)
    return Summary(n, failed, mean, sd, mean - half, mean + half, level)


def finished(scores: Scores) -> dict[int, float]:
    """The scores that are numbers, by seed."""
    return {seed: score for seed, score in scores.items() if score is not None and math.isfinite(score)}


def difference(arm: Scores, baseline: Scores, *, noise: Noise | None = None) -> Difference | Unknown:
    """What lies between two arms, with its standard error.

    Args:
        arm: scores by seed.
        baseline: likewise.
        noise: the recipe's noise floor, taken to hold for both; used only where the arms' own spread is not known.
    """
    a, b = finished(arm), finished(baseline)
    if not a or not b:
        which = "the arm" if not a else "the baseline"
        return Unknown(f"no run of {which} has a score")
    shared = sorted(a.keys() & b.keys())
    if len(shared) >= 2 and 2 * len(shared) >= max(len(a), len(b)):
        found = _paired([a[seed] - b[seed] for seed in shared])
    elif min(len(a), len(b)) >= 2:
        found = _welch(list(a.values()), list(b.values()))
    else:
        found = None
    if found is not None and _some_spread(found.error, a, b):
        return found
    value = _mean(a.values()) - _mean(b.values())
    if noise is not None and noise.sd > 0:
        error = noise.sd * math.sqrt(1 / len(a) + 1 / len(b))
        return Difference(value, error, noise.degrees_of_freedom, "noise floor", min(len(a), len(b)), noise.sd)
    if found is None:
        return Unknown("one run shows no noise: train more seeds, or measure the recipe's noise floor", value)
    return Unknown("the runs agree to the last digit, so there is no noise to hold the difference against", value)


def compare(arm: Scores, baseline: Scores, *, level: float = LEVEL, noise: Noise | None = None) -> Verdict:
    """The verdict on one arm against the baseline."""
    return compare_all({"": arm}, baseline, level=level, noise={} if noise is None else {"": noise})[""]


def compare_all(
    arms: Mapping[str, Scores], baseline: Scores, *, level: float = LEVEL, noise: Mapping[str, Noise] | None = None
) -> dict[str, Verdict]:
    """The verdict on each arm against one baseline, corrected for their number.

    Args:
        arms: by name; without the baseline.
        baseline: its scores.
        level: the most that the chance of any false verdict may be.
        noise: noise floors by the arm's name, for arms whose own spread is not known.
    """
    check_level(level)
    found = {name: difference(arm, baseline, noise=(noise or {}).get(name)) for name, arm in arms.items()}
    # Whether an arm can be tested follows from how many runs there are, so those that cannot are no part of the family.
    told = {name: one for name, one in found.items() if isinstance(one, Difference)}
    corrected = dict(zip(told, holm([one.p for one in told.values()]), strict=True))
    verdicts = {}
    for name, one in found.items():
        if isinstance(one, Unknown):
            n = min(len(finished(arms[name])), len(finished(baseline)))
            verdicts[name] = Verdict(
                "cannot tell", "none", one.value, None, None, None, None, level, n, None, one.reason
            )
        else:
            verdicts[name] = _judge(one, corrected[name], arms[name], baseline, level=level, tests=len(told))
    return verdicts


def _judge(
    found: Difference, p_corrected: float, arm: Scores, baseline: Scores, *, level: float, tests: int
) -> Verdict:
    word, reason = word_for(found, arm, baseline, clear=p_corrected <= level)
    low, high = found.interval(level)
    more: int | None = 0
    if p_corrected > level:
        needed = seeds_to_tell(found, level=level / tests)
        more = None if needed is None else max(1, needed - found.n)
    return Verdict(word, found.method, found.value, low, high, found.p, p_corrected, level, found.n, more, reason)


def word_for(found: Difference, arm: Scores, baseline: Scores, *, clear: bool) -> tuple[Word, str]:
    """The verdict's word, and what stands in its way.

    Args:
        found: the difference.
        arm: scores by seed, failed runs included.
        baseline: likewise.
        clear: whether the difference is beyond noise.
    """
    if not clear:
        return "cannot tell", "the difference is within the noise"
    failures = len(arm) - len(finished(arm)), len(baseline) - len(finished(baseline))
    if found.value < 0:
        why = f"{failures[0]} of its {len(arm)} runs failed, and those that are left flatter it"
        return ("cannot tell", why) if failures[0] else ("better", "")
    why = f"{failures[1]} of the baseline's {len(baseline)} runs failed, and those that are left flatter it"
    return ("cannot tell", why) if failures[1] else ("worse", "")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values that may each be held against the level of the whole family.

    Holm, S. (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def power_of(effect: float, n: int, *, paired: bool, level: float = LEVEL) -> float:
    """The chance that a two-sided t test at `level` tells a true difference, from the noncentral t distribution.

    Args:
        effect: true difference over the standard deviation (of the pairs' differences, where paired).
        n: pairs, or runs an arm.
        paired: which test.
        level: of the test.
    """
    from scipy.special import nctdtr

    degrees = n - 1 if paired else 2 * (n - 1)
    shift = abs(effect) * math.sqrt(n if paired else n / 2)
    if shift > 30:
        return 1.0  # far beyond where the series is reliable, and as good as certain
    bound = t_quantile(level, degrees)
    above = 1 - float(nctdtr(degrees, shift, bound))
    # The chance of a verdict in the wrong direction is no power.
    return min(1.0, max(0.0, above))


def seeds_to_tell(found: Difference, *, level: float = LEVEL, power: float = POWER) -> int | None:
    """Seeds an arm (or pairs) with which a difference like this one would be told; None above a thousand."""
    if found.value == 0:
        return None
    paired, effect = found.method == "paired t", found.value / found.sd
    if power_of(effect, MOST_SEEDS, paired=paired, level=level) < power:
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(effect, middle, paired=paired, level=level) >= power else (middle, high)
    return high


def smallest_difference(sd: float, n: int, *, level: float = LEVEL, power: float = POWER) -> float | None:
    """The smallest true difference between two arms of `n` seeds each that Welch's test tells with this power.

    None of fewer than two seeds an arm: there is no such difference.
    """
    if n < 2:
        return None
    low, high = 0.0, 1.0
    while power_of(high, n, paired=False, level=level) < power:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(middle, n, paired=False, level=level) >= power else (middle, high)
    return high * sd


def interval_of_sd(sd: float, n: int, *, level: float = LEVEL) -> tuple[float, float]:
    """The chi-square interval of a standard deviation that was seen over `n` runs, at 1 - level.

    Raises:
        ValueError: fewer than two runs.
    """
    from scipy.special import chdtri

    if n < 2:
        raise ValueError(f"{n} run: a spread takes two or more")
    half = check_level(level) / 2
    low, high = (sd * math.sqrt((n - 1) / float(chdtri(n - 1, tail))) for tail in (half, 1 - half))
    return low, high


def _paired(differences: Sequence[float]) -> Difference:
    n, sd = len(differences), _sd(differences)
    return Difference(_mean(differences), sd / math.sqrt(n), n - 1, "paired t", n, sd)


def _welch(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Welch, B. L. (1947), The generalization of "Student's" problem, Biometrika 34."""
    of_a, of_b = _sd(a) ** 2 / len(a), _sd(b) ** 2 / len(b)
    error = math.sqrt(of_a + of_b)
    # Without any spread there is no test either; the caller sees that by the error.
    below = of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1)
    degrees = (of_a + of_b) ** 2 / below if below > 0 else float(len(a) + len(b) - 2)
    sd = math.sqrt((_sd(a) ** 2 + _sd(b) ** 2) / 2)
    return Difference(_mean(a) - _mean(b), error, degrees, "Welch t", min(len(a), len(b)), sd)


def _some_spread(error: float, *arms: Mapping[int, float]) -> bool:
    """Whether a standard error is more than the rounding of the scores."""
    largest = max(abs(score) for arm in arms for score in arm.values())
    return error > 1e-12 * largest


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


def _sd(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
