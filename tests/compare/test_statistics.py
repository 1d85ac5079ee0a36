"""Held against scipy and published tables; the false verdicts counted over a thousand comparisons of equals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from farthing.compare.statistics import (
    Difference,
    Noise,
    Scores,
    Unknown,
    compare,
    compare_all,
    difference,
    holm,
    interval_of_sd,
    power_of,
    seeds_to_tell,
    smallest_difference,
    summarise,
    t_quantile,
)

A = {1: 1.201, 2: 1.215, 3: 1.190, 4: 1.222, 5: 1.207}
B = {1: 1.251, 2: 1.239, 3: 1.248, 4: 1.262, 5: 1.243}
LATER = {seed + 10: score for seed, score in B.items()}

scores = st.floats(0.5, 3.0).map(lambda score: round(score, 6))
arms = st.dictionaries(st.integers(0, 12), scores, min_size=2, max_size=8)


def measured(arm: Scores, baseline: Scores, noise: Noise | None = None) -> Difference:
    found = difference(arm, baseline, noise=noise)
    assert isinstance(found, Difference), found
    return found


def test_an_arm_in_short() -> None:
    found = summarise({**A, 6: None, 7: math.nan}, level=0.05)
    values = list(A.values())
    assert (found.n, found.failed) == (5, 2)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    expected = scipy.stats.t.interval(0.95, 4, np.mean(values), scipy.stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)


def test_what_too_few_runs_cannot_give_is_none() -> None:
    assert (one := summarise({1: 1.5})).mean == 1.5
    assert (one.sd, one.low, one.high) == (None, None, None)
    assert (none := summarise({1: None})).mean is None
    assert (none.n, none.failed) == (0, 1)


@pytest.mark.parametrize(
    ("level", "degrees", "published"),
    # Any textbook's table of Student's t, two-sided.
    [(0.05, 1, 12.706), (0.05, 4, 2.776), (0.05, 30, 2.042), (0.01, 9, 3.250), (0.1, 19, 1.729)],
)
def test_quantiles_are_those_of_the_tables(level: float, degrees: int, published: float) -> None:
    assert t_quantile(level, degrees) == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize(("n", "published"), [(2, (0.446, 31.91)), (5, (0.599, 2.874)), (20, (0.760, 1.461))])
def test_the_interval_of_a_spread(n: int, published: tuple[float, float]) -> None:
    """Factors for the limits of a standard deviation at 95 %, as handbooks of quality control print them."""
    assert interval_of_sd(1.0, n) == pytest.approx(published, rel=2e-3)
    with pytest.raises(ValueError, match="two or more"):
        interval_of_sd(1.0, 1)


def test_paired_where_seeds_are_shared() -> None:
    found = measured(A, B)
    expected = scipy.stats.ttest_rel(list(A.values()), list(B.values()))
    assert found.method == "paired t"
    assert (found.p, found.n) == (pytest.approx(expected.pvalue), 5)
    assert found.interval(0.1) == pytest.approx(tuple(expected.confidence_interval(0.9)))


def test_welch_where_they_are_not() -> None:
    few = {1: 1.3, 2: 1.1}
    for arm, baseline in ((A, LATER), (few, LATER), (A, {1: 1.2, 11: 1.21, 12: 1.3, 13: 1.2, 14: 1.22})):
        found = measured(arm, baseline)
        expected = scipy.stats.ttest_ind(list(arm.values()), list(baseline.values()), equal_var=False)
        assert found.method == "Welch t"
        assert found.p == pytest.approx(expected.pvalue)
        assert found.interval() == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_a_failed_run_is_in_no_pair() -> None:
    found = measured({**A, 2: None}, B)
    kept = [seed for seed in A if seed != 2]
    expected = scipy.stats.ttest_rel([A[seed] for seed in kept], [B[seed] for seed in kept])
    assert (found.p, found.n) == (pytest.approx(expected.pvalue), 4)


def test_holm_as_in_a_worked_example() -> None:
    # Four tests of which the two smallest pass at 0.05.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.7, 0.9]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_is_a_step_down_of_bonferroni(p_values: list[float], random: object) -> None:
    found = holm(p_values)
    for raw, corrected in zip(p_values, found, strict=True):
        assert raw <= corrected <= min(1.0, raw * len(p_values))
    assert min(found) == pytest.approx(min(1.0, min(p_values) * len(p_values)))
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    assert [found[index] for index in order] == sorted(found)


@pytest.mark.parametrize(
    ("effect", "n", "paired"),
    # Cohen (1988), Statistical Power Analysis, table 2.4.1 for two samples; G*Power's for pairs. 80 %, 5 %, two-sided.
    [(0.2, 394, False), (0.5, 64, False), (0.8, 26, False), (1.2, 12, False), (0.5, 34, True), (0.8, 15, True)],
)
def test_how_many_seeds_it_takes(effect: float, n: int, paired: bool) -> None:
    found = Difference(-effect, 0.1, 9.0, "paired t" if paired else "Welch t", 3, 1.0)
    assert seeds_to_tell(found) == n
    assert power_of(effect, n, paired=paired) >= 0.8 > power_of(effect, n - 1, paired=paired)


def test_power_is_what_a_simulation_shows() -> None:
    rng = np.random.default_rng(5)
    draws = rng.normal(size=(4000, 2, 5))
    draws[:, 0] -= 1.5
    told = scipy.stats.ttest_ind(draws[:, 0], draws[:, 1], axis=1)
    seen = np.mean((told.pvalue <= 0.05) & (told.statistic < 0))
    assert power_of(1.5, 5, paired=False) == pytest.approx(seen, abs=3 * math.sqrt(0.25 / 4000))


def test_the_smallest_difference_is_the_one_with_that_power() -> None:
    found = smallest_difference(0.01, 5)
    assert found is not None
    assert power_of(found / 0.01, 5, paired=False) == pytest.approx(0.8, abs=1e-6)
    assert smallest_difference(0.01, 1) is None


def test_no_number_of_seeds_tells_nothing_from_nothing() -> None:
    assert seeds_to_tell(Difference(0.0, 0.1, 4.0, "Welch t", 3, 0.2)) is None
    assert seeds_to_tell(Difference(1e-6, 0.1, 4.0, "Welch t", 3, 0.2)) is None


def test_a_verdict_says_what_it_rests_on() -> None:
    found = compare(A, B)
    assert (found.verdict, found.method, found.more_seeds, found.reason) == ("better", "paired t", 0, "")
    assert found.p == found.p_corrected
    assert compare(B, A).verdict == "worse"
    close = compare({1: 1.200, 2: 1.210, 3: 1.190}, {4: 1.205, 5: 1.212, 6: 1.194})
    assert close.verdict == "cannot tell"
    assert close.more_seeds is not None and close.more_seeds > 3
    assert close.low is not None and close.high is not None and close.low < 0 < close.high


def test_one_run_an_arm_tells_nothing_without_a_noise_floor() -> None:
    found = compare({1: 1.0}, {1: 2.0})
    assert (found.verdict, found.p, found.more_seeds) == ("cannot tell", None, None)
    assert found.difference == -1.0
    assert "noise" in found.reason
    against_five = compare({1: 1.0}, B)
    assert against_five.verdict == "cannot tell"
    noise = Noise(0.01, 4)
    assert compare({1: 1.0}, {1: 2.0}, noise=noise).verdict == "better"
    within = compare({1: 1.20}, {1: 1.21}, noise=noise)
    assert (within.verdict, within.method) == ("cannot tell", "noise floor")
    expected = 2 * scipy.stats.t.sf(0.01 / (0.01 * math.sqrt(2)), 4)
    assert within.p == pytest.approx(expected)


def test_a_noise_floor_is_not_used_where_the_arms_show_their_own() -> None:
    assert compare(A, B, noise=Noise(100.0, 4)) == compare(A, B)


def test_scores_without_any_spread_are_no_evidence() -> None:
    found = compare({1: 1.1, 2: 1.1}, {1: 1.2, 2: 1.2})
    assert (found.verdict, found.p) == ("cannot tell", None)
    assert isinstance(difference({1: 1.1, 2: 1.1}, {3: 1.2, 4: 1.2}), Unknown)
    # Nor is a spread that is nothing but rounding.
    assert isinstance(difference({1: 0.1 + 0.2, 2: 0.3}, {1: 0.2, 2: 0.2}), Unknown)


def test_an_arm_with_failed_runs_can_lose_but_not_win() -> None:
    assert compare({**A, 6: None}, B).verdict == "cannot tell"
    assert "failed" in compare({**A, 6: None}, B).reason
    assert compare({**B, 6: None}, A).verdict == "worse"
    assert compare(A, {**B, 6: None}).verdict == "better"
    assert compare(B, {**A, 6: None}).verdict == "cannot tell"
    nothing_left = compare({1: None, 2: math.nan}, B)
    assert (nothing_left.verdict, nothing_left.difference) == ("cannot tell", None)


def test_several_arms_are_corrected_for_their_number() -> None:
    weak = {1: 1.235, 2: 1.23, 3: 1.24, 4: 1.23, 5: 1.239}
    alone = compare(weak, B)
    assert alone.verdict == "better"
    others = {f"other {n}": {seed: score + 0.001 * (-1) ** (seed + n) for seed, score in B.items()} for n in range(9)}
    together = compare_all({"weak": weak, **others, "single": {1: 1.0}}, B)
    assert together["weak"].p == alone.p
    # The arm of a single run cannot be tested, and does not count among the ten.
    assert together["weak"].p_corrected == pytest.approx(10 * (alone.p or 0))
    assert together["single"].p is None


@given(arms, arms, st.floats(-0.4, 0.4), st.floats(0.5, 2))
def test_units_and_offsets_change_no_verdict(a: Scores, b: Scores, shift: float, factor: float) -> None:
    found = difference(a, b)
    assume(isinstance(found, Difference) and found.error > 1e-4)
    assert isinstance(found, Difference)

    def moved(arm: Scores) -> dict[int, float | None]:
        return {seed: (score or 0) * factor + shift for seed, score in arm.items()}

    other = measured(moved(a), moved(b))
    assert other.p == pytest.approx(found.p, rel=1e-5, abs=1e-9)
    assert other.value == pytest.approx(found.value * factor, abs=1e-9)


@given(arms, arms)
def test_changing_sides_turns_the_verdict_round(a: Scores, b: Scores) -> None:
    there, back = compare(a, b), compare(b, a)
    assert {"better": "worse", "worse": "better"}.get(there.verdict, there.verdict) == back.verdict
    assert (there.p, there.more_seeds) == (back.p, back.more_seeds)


@given(arms, arms, st.integers(20, 25))
def test_a_failure_never_makes_an_arm_better(a: dict[int, float | None], b: Scores, seed: int) -> None:
    assert compare({**a, seed: None}, b).verdict != "better"
    if compare(a, b).verdict == "worse":
        assert compare({**a, seed: None}, b).verdict == "worse"


@given(arms, arms)
def test_verdict_interval_and_p_agree(a: Scores, b: Scores) -> None:
    found = compare(a, b)
    if found.low is None or found.high is None or found.p is None:
        assert found.verdict == "cannot tell"
    elif abs(found.p - 0.05) > 1e-9:
        assert (found.verdict == "cannot tell") == (found.low < 0 < found.high)


@pytest.mark.parametrize("level", [0.0, -0.1, 0.6, math.nan])
def test_a_level_that_is_no_level_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        compare(A, B, level=level)


# Nulls: both sides of every comparison are draws of one distribution.

TRIALS = 1000


def at_most(level: float) -> int:
    """False verdicts in a thousand that a test which keeps its level exactly would exceed once in a thousand times."""
    return int(scipy.stats.binom.isf(1e-3, TRIALS, level))


def welch_null(rng: np.random.Generator) -> tuple[dict[str, Scores], Scores]:
    return {"arm": dict(enumerate(rng.normal(1.2, 0.01, 5)))}, dict(enumerate(rng.normal(1.2, 0.03, 4), start=10))


def paired_null(rng: np.random.Generator) -> tuple[dict[str, Scores], Scores]:
    of_seed = rng.normal(1.2, 0.02, 3)
    return {"arm": dict(enumerate(of_seed + rng.normal(0, 0.01, 3)))}, dict(enumerate(of_seed + rng.normal(0, 0.01, 3)))


def several_arms_null(rng: np.random.Generator) -> tuple[dict[str, Scores], Scores]:
    several = {f"arm {n}": dict(enumerate(rng.normal(1.2, 0.01, 4))) for n in range(6)}
    return several, dict(enumerate(rng.normal(1.2, 0.01, 4), start=10))


def skewed_null(rng: np.random.Generator) -> tuple[dict[str, Scores], Scores]:
    """Runs are more often unlucky than lucky: the tail is on the worse side."""
    return {"arm": dict(enumerate(1.2 + rng.exponential(0.01, 5)))}, dict(
        enumerate(1.2 + rng.exponential(0.01, 5), start=10)
    )


def noise_floor_null(rng: np.random.Generator) -> tuple[dict[str, Scores], Scores]:
    return {"arm": {1: float(rng.normal(1.2, 0.01))}}, {1: float(rng.normal(1.2, 0.01))}


@pytest.mark.parametrize("null", [welch_null, paired_null, several_arms_null, skewed_null, noise_floor_null])
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_false_verdicts_are_no_more_than_the_level_says(
    null: Callable[[np.random.Generator], tuple[dict[str, Scores], Scores]], level: float
) -> None:
    rng = np.random.default_rng(2026)
    better = either = 0
    for _ in range(TRIALS):
        several, baseline = null(rng)
        floor = Noise(float(np.std(rng.normal(1.2, 0.01, 5), ddof=1)), 4)
        words = {one.verdict for one in compare_all(several, baseline, level=level, noise={"arm": floor}).values()}
        better += "better" in words
        either += words != {"cannot tell"}
    assert better <= TRIALS * level
    assert either <= at_most(level)
    assert either > 0, "a test that never says anything is no test"
