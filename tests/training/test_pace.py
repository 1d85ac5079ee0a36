"""Fewer steps where minutes or money will not last, never more, and only at a few moments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from farthing.training.meter import Meter
from farthing.training.pace import CHECKS, Pace


def test_what_is_used_is_the_largest_share_of_a_limit() -> None:
    meter = Meter(seconds=30.0, wall_seconds=3600.0, price_per_hour=2.0, clock=lambda: 0.0)
    assert Pace(seconds=None, money=None).used(meter) == 0.0
    assert Pace(seconds=60.0, money=None).used(meter) == 0.5
    assert Pace(seconds=60.0, money=2.5).used(meter) == 0.8


def follow(steps: int, seconds: list[float], limit: float) -> tuple[int, list[int], float]:
    """Takes steps of the given durations (the last one repeated): (steps taken, plans made, seconds at the end)."""
    pace, plans, now, step = Pace(seconds=limit, money=None), [], 0.0, 0
    while step < steps and now < limit:
        now += seconds[min(step, len(seconds) - 1)]
        step += 1
        fewer = pace.fewer_steps(step, steps, now / limit)
        if fewer is not None:
            assert step < fewer < steps
            plans.append(fewer)
            steps = fewer
    return step, plans, now


def test_a_steady_machine_keeps_its_plan() -> None:
    assert follow(95, [1.0], 100.0) == (95, [], 95.0)


def test_a_machine_at_half_speed_takes_half_the_steps_and_ends_in_budget() -> None:
    taken, plans, now = follow(95, [2.0], 100.0)
    assert plans and taken == plans[-1]
    assert 45 <= taken <= 50
    assert now <= 100.0


def test_a_machine_that_slows_down_late_still_ends_its_schedule() -> None:
    taken, plans, now = follow(95, [1.0] * 40 + [3.0], 100.0)
    assert taken == plans[-1]
    assert now <= 103.0


@given(
    steps=st.integers(1, 300), seconds=st.lists(st.floats(0.1, 5.0), min_size=1, max_size=50), limit=st.floats(1, 500)
)
def test_there_are_few_plans_each_shorter(steps: int, seconds: list[float], limit: float) -> None:
    taken, plans, _ = follow(steps, seconds, limit)
    assert taken <= steps
    assert len(plans) <= len(CHECKS)
    assert plans == sorted(plans, reverse=True)
