"""The guard sees what is not finite or runs away, and one bad value poisons nothing."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.training.guard import MOST_PASSED_OVER, SPIKE_FEWEST, SPIKE_WINDOW, WINDOW, DivergenceGuard

LOSSES = st.floats(min_value=0.01, max_value=20.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_F30_a_value_that_is_not_finite_is_reported(bad: float) -> None:
    message = DivergenceGuard(3.0).check(bad)
    assert message is not None and str(bad) in message


@given(losses=st.lists(LOSSES, max_size=3 * WINDOW), at=st.integers(0, 3 * WINDOW))
def test_F31_M18_one_nan_changes_nothing_that_follows(losses: list[float], at: int) -> None:
    calm, shaken = DivergenceGuard(3.0), DivergenceGuard(3.0)
    for number, loss in enumerate(losses):
        if number == at:
            shaken.check(math.nan)
        assert calm.check(loss) == shaken.check(loss)


@given(losses=st.lists(st.floats(1.0, 2.0), min_size=1, max_size=60))
def test_a_loss_that_stays_within_the_factor_is_fine(losses: list[float]) -> None:
    guard = DivergenceGuard(2.01)
    assert [guard.check(loss) for loss in losses] == [None] * len(losses)


def test_a_loss_that_runs_away_is_reported_once_its_mean_exceeds_the_factor() -> None:
    guard = DivergenceGuard(3.0)
    assert all(guard.check(1.0) is None for _ in range(WINDOW))
    # The mean passes 3 when k of 20 values are 11: 1 + k / 2 > 3.
    told = [guard.check(11.0) for _ in range(6)]
    assert told[:4] == [None] * 4 and told[4] is not None
    assert "3.500" in told[4] and "1.000" in told[4]


@given(losses=st.lists(LOSSES | st.just(math.nan), max_size=70), cut=st.integers(0, 70))
def test_M19_its_state_survives_a_stop(losses: list[float], cut: int) -> None:
    whole = DivergenceGuard(1.5)
    expected = [whole.check(loss) for loss in losses]
    first, second = DivergenceGuard(1.5), DivergenceGuard(1.5)
    told = [first.check(loss) for loss in losses[:cut]]
    second.load_state(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert told + [second.check(loss) for loss in losses[cut:]] == expected


def test_overflows_in_a_row_are_trouble_and_a_good_step_forgives_them() -> None:
    guard = DivergenceGuard(3.0)
    assert [guard.overflowed() for _ in range(WINDOW - 1)] == [None] * (WINDOW - 1)
    guard.check(1.0)
    assert guard.overflowed() is None
    again = DivergenceGuard(3.0)
    again.load_state(json.loads(json.dumps(guard.state())))
    told = [again.overflowed() for _ in range(WINDOW - 1)]
    assert told[:-1] == [None] * (WINDOW - 2)
    assert told[-1] is not None and "20 times in a row" in told[-1]


CALM = st.lists(st.floats(1.0, 2.0), max_size=SPIKE_WINDOW - SPIKE_FEWEST).map(
    lambda losses: [1.0, 2.0] * (SPIKE_FEWEST // 2) + losses
)
"""between 1 and 2, with a deviation of a quarter at least: nothing in there is 12 deviations from the mean"""


@given(losses=CALM)
def test_F33_a_spike_is_told_and_never_enters_the_window(losses: list[float]) -> None:
    guard = DivergenceGuard(3.0, spike_zscore=12.0)
    assert [guard.spike(loss, loss) for loss in losses] == [None] * len(losses)
    before = guard.state()
    for loss, norm in ((1e6, 1.5), (1.5, 1e6)):
        told = guard.spike(loss, norm)
        assert told is not None and "1e+06" in told
        assert guard.state() == before


def test_F33_a_fall_is_no_spike_and_few_steps_are_no_ground_to_judge() -> None:
    guard = DivergenceGuard(3.0, spike_zscore=3.0)
    assert all(guard.spike(5.0 + n % 2, 1.0) is None for n in range(SPIKE_FEWEST - 1))
    assert guard.spike(500.0, 1.0) is None
    assert DivergenceGuard(3.0).spike(1e9, 1e9) is None
    fresh = DivergenceGuard(3.0, spike_zscore=3.0)
    assert all(fresh.spike(5.0 + n % 2, 1.0) is None for n in range(SPIKE_FEWEST))
    assert fresh.spike(0.001, 1.0) is None


@given(losses=st.lists(LOSSES, max_size=150), cut=st.integers(0, 150))
def test_M19_spikes_are_judged_the_same_after_a_stop(losses: list[float], cut: int) -> None:
    def told(guard: DivergenceGuard, some: list[float]) -> list[str | None]:
        return [guard.spike(loss, 1 / loss) for loss in some]

    expected = told(DivergenceGuard(3.0, spike_zscore=2.0), losses)
    first, second = (DivergenceGuard(3.0, spike_zscore=2.0) for _ in range(2))
    began = told(first, losses[:cut])
    second.load_state(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert began + told(second, losses[cut:]) == expected


def test_too_many_batches_passed_over_in_a_row_are_trouble() -> None:
    guard = DivergenceGuard(3.0)
    assert [guard.passed_over() for _ in range(MOST_PASSED_OVER)] == [None] * MOST_PASSED_OVER
    assert guard.passed_over() is not None
    guard.check(1.0)
    assert guard.passed_over() is None


def test_a_state_from_before_there_were_spikes_is_read() -> None:
    guard = DivergenceGuard(3.0, spike_zscore=2.0)
    guard.load_state({"recent": [1.0], "lowest": None, "overflows": 0})
    assert guard.spike(1.0, 1.0) is None
