"""A share of right answers against blind guessing: how sure it is, and whether it says anything at all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

LEVEL = 0.05
"""how often, of all models that only guess, a verdict may find one to be above or below chance"""

_Z95 = 1.959963984540054

Verdict = Literal["above chance", "at chance", "below chance"]


@dataclass(frozen=True)
class Reading:
    """One number that a task comes to. What does not exist, or is not finite, is None.

    Args:
        value: the number.
        standard_error: over questions.
        low: lower end of the 95 % interval.
        high: upper end of it.
        chance: what blind guessing comes to on average.
        verdict: whether the value can be told from chance.
    """

    value: float | None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    verdict: Verdict | None = None


def accuracy(right: int, questions: int, *, choices: Sequence[int] | None = None) -> Reading:
    """The share of right answers, with Wilson's interval (1927) and, for multiple choice, the verdict on it.

    The standard error is that of a mean of zeros and ones, as lm-evaluation-harness gives it; None for one question.

    Args:
        right: how many were answered rightly.
        questions: of how many, at least one.
        choices: how many choices each question has; None where there is nothing to guess among.
    """
    assert 0 <= right <= questions and questions >= 1, (right, questions)
    share = right / questions
    error = math.sqrt(share * (1 - share) / (questions - 1)) if questions > 1 else None
    low, high = wilson(right, questions)
    if choices is None:
        return Reading(share, error, low, high)
    assert len(choices) == questions
    chance = sum(1 / number for number in choices) / questions
    return Reading(share, error, low, high, chance, verdict(right, choices))


def wilson(right: int, questions: int) -> tuple[float, float]:
    """The 95 % interval of a share, which never leaves 0 to 1 (Wilson 1927)."""
    share, spread = right / questions, _Z95**2 / questions
    middle = (share + spread / 2) / (1 + spread)
    reach = _Z95 / (1 + spread) * math.sqrt(share * (1 - share) / questions + spread / (4 * questions))
    # At the ends the two sides are equal but for rounding.
    low = 0.0 if right == 0 else max(0.0, middle - reach)
    return low, 1.0 if right == questions else min(1.0, middle + reach)


def verdict(right: int, choices: Sequence[int]) -> Verdict:
    """Whether so many right answers are more, or fewer, than guessing gives in all but LEVEL of cases.

    The test is exact: the number that guessing gets right is a sum of draws of probability 1 / choices.
    """
    probability_K = guessing(choices)
    if probability_K[right:].sum() <= LEVEL / 2:
        return "above chance"
    return "below chance" if probability_K[: right + 1].sum() <= LEVEL / 2 else "at chance"


def guessing(choices: Sequence[int]) -> np.ndarray:
    """The probability that blind guessing gets 0, 1, ... of these questions right, [questions + 1]."""
    total_K = np.ones(1)
    for number, count in Counter(choices).items():
        total_K = np.convolve(total_K, _binomial(count, 1 / number))
    return total_K


def _binomial(count: int, probability: float) -> np.ndarray:
    if probability == 1:
        return np.eye(count + 1)[count]
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        + k * math.log(probability) + (count - k) * math.log1p(-probability)
        for k in range(count + 1)
    ]  # fmt: skip
    return np.exp(logs)
