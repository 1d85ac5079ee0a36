"""Chance: intervals and verdicts against their definitions, and how often blind guessing is taken for knowledge."""

from __future__ import annotations

import math
from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farthing.evals.chance import LEVEL, accuracy, guessing, verdict, wilson


@given(right=st.integers(0, 3000), more=st.integers(0, 3000))
def test_wilsons_interval_solves_its_equation(right: int, more: int) -> None:
    questions = right + more
    if not questions:
        return
    low, high = wilson(right, questions)
    share = right / questions
    assert 0 <= low <= share <= high <= 1
    # Its ends are the probabilities from which the share lies 1.96 standard errors away.
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(
                1.959964 * math.sqrt(end * (1 - end) / questions), rel=1e-5, abs=1e-9
            )


def test_guessing_is_the_sum_over_all_ways() -> None:
    choices = [2, 4, 4, 5]
    expected = np.zeros(5)
    for ways in product((0, 1), repeat=4):
        chance = math.prod(1 / n if hit else 1 - 1 / n for hit, n in zip(ways, choices, strict=True))
        expected[sum(ways)] += chance
    np.testing.assert_allclose(guessing(choices), expected, atol=1e-14)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40))
def test_guessing_is_a_distribution_around_chance(choices: list[int]) -> None:
    probability_K = guessing(choices)
    assert probability_K.sum() == pytest.approx(1)
    mean = float((np.arange(len(probability_K)) * probability_K).sum())
    reading = accuracy(0, len(choices), choices=choices)
    assert reading.chance is not None
    assert mean / len(choices) == pytest.approx(reading.chance)


def test_thousands_of_questions_are_no_matter() -> None:
    probability_K = guessing([4] * 10_042)
    assert probability_K.sum() == pytest.approx(1)
    assert verdict(2510, [4] * 10_042) == "at chance"
    assert verdict(2600, [4] * 10_042) == "above chance"
    assert verdict(2400, [4] * 10_042) == "below chance"


@pytest.mark.parametrize("choices", [[4] * 200, [2] * 60, [2, 3, 4, 5] * 25])
def test_a_guesser_is_seldom_taken_for_one_who_knows(choices: list[int]) -> None:
    """Exactly: the probability of a verdict other than `at chance`, over all that a guesser may score."""
    probability_K = guessing(choices)
    wrong = sum(p for right, p in enumerate(probability_K) if verdict(right, choices) != "at chance")
    assert 0.2 * LEVEL < wrong <= LEVEL


def test_five_million_parameters_at_a_quarter_are_at_chance() -> None:
    reading = accuracy(2560, 10_042, choices=[4] * 10_042)
    assert reading.value == pytest.approx(0.2549, abs=1e-4)
    assert reading.standard_error == pytest.approx(0.00435, abs=1e-5)
    assert reading.chance == 0.25 and reading.verdict == "at chance"
    assert accuracy(3091, 10_042, choices=[4] * 10_042).verdict == "above chance"


def test_the_standard_error_is_that_of_the_mean() -> None:
    random = Random(1)
    scores = [random.random() < 0.3 for _ in range(500)]
    expected = np.std(scores, ddof=1) / math.sqrt(500)
    assert accuracy(sum(scores), 500).standard_error == pytest.approx(expected)
    assert accuracy(1, 1).standard_error is None


def test_without_choices_there_is_no_chance() -> None:
    reading = accuracy(3, 10)
    assert (reading.value, reading.chance, reading.verdict) == (0.3, None, None)


def test_one_choice_is_always_right() -> None:
    assert accuracy(4, 4, choices=[1] * 4).verdict == "at chance"


@settings(max_examples=20)
@given(st.integers(1, 60), st.integers(2, 5))
def test_more_right_answers_are_never_a_worse_verdict(questions: int, choices: int) -> None:
    order = ["below chance", "at chance", "above chance"]
    found = [order.index(verdict(right, [choices] * questions)) for right in range(questions + 1)]
    assert found == sorted(found)
