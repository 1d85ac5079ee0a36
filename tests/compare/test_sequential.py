"""Boundaries held against published tables; false verdicts, power and seeds saved counted by simulation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from compare.test_statistics import TRIALS, at_most
from farthing.compare.sequential import Sequential, Spending, boundaries, evenly
from farthing.compare.statistics import Noise, Scores

FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.mark.parametrize(
    ("spending", "fractions", "level", "published"),
    [
        # Lan and DeMets's spending functions, two-sided 0.05, five looks: Reboussin, DeMets, Kim and Lan (2000),
        # Computations for group sequential boundaries, Controlled Clinical Trials 21.
        ("obrien-fleming", FIFTHS, 0.05, (4.877, 3.357, 2.680, 2.290, 2.031)),
        ("pocock", FIFTHS, 0.05, (2.438, 2.427, 2.410, 2.397, 2.386)),
        # Two looks: Jennison and Turnbull (2000), tables 7.1 and following, to the digits that are there.
        ("obrien-fleming", (0.5, 1.0), 0.05, (2.963, 1.969)),
        ("pocock", (0.5, 1.0), 0.05, (2.157, 2.201)),
    ],
)
def test_boundaries_are_the_published_ones(
    spending: Spending, fractions: tuple[float, ...], level: float, published: tuple[float, ...]
) -> None:
    assert boundaries(fractions, level, spending) == pytest.approx(published, abs=1.5e-3)


def test_one_look_is_the_plain_test() -> None:
    assert boundaries((1.0,), 0.05, "pocock") == pytest.approx((norm.isf(0.025),), abs=1e-6)
    assert Sequential((5,), level=0.1).nominal == pytest.approx((0.1,))


@settings(max_examples=15)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4, unique=True),
    st.sampled_from([0.01, 0.05, 0.2]),
    st.sampled_from(["obrien-fleming", "pocock"]),
)
def test_the_level_is_spent_and_no_more(looks: list[int], level: float, spending: Spending) -> None:
    seeds = sorted(looks)
    nominal = Sequential(tuple(seeds), level=level, spending=spending).nominal
    assert all(0 <= one <= level * (1 + 1e-6) for one in nominal)
    # All looks together may at least spend the level, since paths can cross at more than one; a fifth at most is taken
    # back for what so few seeds know of their own spread.
    assert sum(nominal) >= 0.8 * level


def test_a_random_walk_crosses_as_often_as_the_level_says() -> None:
    rng = np.random.default_rng(3)
    walks = rng.normal(size=(200_000, 5)).cumsum(axis=1) / np.sqrt(np.arange(1, 6))
    for spending in ("obrien-fleming", "pocock"):
        bound = np.array(boundaries(FIFTHS, 0.05, spending))
        assert np.mean((abs(walks) > bound).any(axis=1)) == pytest.approx(0.05, abs=0.002)


def play(test: Sequential, arm: Scores, baseline: Scores) -> tuple[str, int]:
    """The decision in which a comparison ends, and the seeds that it took."""
    for seeds in test.looks:
        look = test.look({seed: arm[seed] for seed in range(seeds)}, {seed: baseline[seed] for seed in range(seeds)})
        if look.decision != "continue":
            return look.decision, seeds
    raise AssertionError("the last look decides")


def draws(rng: np.random.Generator, effect: float, most: int, paired: float) -> tuple[Scores, Scores]:
    of_seed = rng.normal(0, paired, most)
    arm = 1.2 - effect + of_seed + rng.normal(0, 0.01, most)
    return dict(enumerate(arm)), dict(enumerate(1.2 + of_seed + rng.normal(0, 0.01, most)))


@pytest.mark.parametrize("test", [
    Sequential((2, 3, 4, 5)),
    Sequential((3, 5, 8), spending="pocock"),
    Sequential((3, 6, 10), level=0.2, spending="pocock", hopeless_below=0.0),
    Sequential((2, 3, 5), level=0.1, hopeless_below=0.0),
])  # fmt: skip
def test_false_verdicts_are_no_more_than_the_level_says(test: Sequential) -> None:
    rng = np.random.default_rng(11)
    ends = [play(test, *draws(rng, 0.0, test.looks[-1], 0.01))[0] for _ in range(TRIALS)]
    assert ends.count("better") <= TRIALS * test.level
    assert ends.count("better") + ends.count("worse") <= at_most(test.level)


def test_hopeless_changes_end_early_and_good_ones_are_still_found() -> None:
    rng = np.random.default_rng(7)
    test = Sequential((3, 5, 8), spending="pocock")
    nothing = [play(test, *draws(rng, 0.0, 8, 0.01)) for _ in range(300)]
    assert np.mean([seeds for _, seeds in nothing]) < 5
    good = [play(test, *draws(rng, 0.03, 8, 0.01)) for _ in range(300)]
    assert np.mean([decision == "better" for decision, _ in good]) > 0.9
    assert np.mean([seeds for _, seeds in good]) < 7


GOOD = {0: 1.10, 1: 1.11, 2: 1.105}
BASE = {0: 1.20, 1: 1.212, 2: 1.203, 3: 1.21, 4: 1.19}


def test_a_look_says_what_to_do() -> None:
    test = Sequential((3, 5), spending="pocock")
    look = test.look(GOOD, BASE)
    assert (look.decision, look.seeds) == ("better", 3)
    assert look.p is not None and look.p <= look.nominal
    assert test.look({seed: score + 0.2 for seed, score in GOOD.items()}, BASE).decision == "worse"
    hopeless = test.look({seed: score + 0.101 for seed, score in GOOD.items()}, BASE)
    assert hopeless.decision == "hopeless"
    assert hopeless.conditional_power is not None and hopeless.conditional_power < 0.1
    last = test.look({**{seed: score + 0.1 for seed, score in GOOD.items()}, 3: 1.2, 4: 1.2}, BASE)
    assert last.decision == "cannot tell"


def test_failed_runs_are_looked_at_too() -> None:
    test = Sequential((3, 5), spending="pocock")
    assert test.look({**GOOD, 2: None}, BASE).decision == "hopeless"
    assert test.look({0: None, 1: None, 2: None}, BASE).decision == "continue"
    nothing: Scores = dict.fromkeys(range(5))
    assert test.look(nothing, BASE).decision == "cannot tell"


def test_a_single_seed_is_looked_at_through_the_noise_floor() -> None:
    test = Sequential((1, 3), spending="pocock")
    assert test.look({0: 1.0}, {0: 1.2}).decision == "continue"
    assert test.look({0: 1.0}, {0: 1.2}, noise=Noise(0.005, 9)).decision == "better"


@pytest.mark.parametrize("wrong", [
    lambda: Sequential(()),
    lambda: Sequential((3, 3)),
    lambda: Sequential((0, 2)),
    lambda: Sequential((2, 3), level=0.9),
    lambda: Sequential((2, 3), hopeless_below=1.0),
    lambda: Sequential((2, 3)).look({1: 1.0}, {1: 1.0}),
    lambda: evenly(3, 0),
    lambda: evenly(1, 2),
])  # fmt: skip
def test_what_is_no_plan_of_looks_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        wrong()


def test_looks_spread_evenly() -> None:
    assert evenly(8, 3) == (2, 5, 8)
    assert evenly(3, 5) == (2, 3)
    assert evenly(5, 1) == (5,)
