"""Training time, wall time and start-up are kept apart, and none starts again in a new sitting (M26)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.training.meter import Meter, StartUp


class Clock:
    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


@given(spans=st.lists(st.tuples(st.booleans(), st.integers(0, 1000)), max_size=30), earlier=st.integers(0, 1000))
def test_only_training_counts_as_training(spans: list[tuple[bool, int]], earlier: int) -> None:
    clock = Clock()
    meter = Meter(seconds=earlier, wall_seconds=2 * earlier, already=5.0, price_per_hour=7200.0, clock=clock)
    for training, seconds in spans:
        if training:
            with meter.training():
                clock.now += seconds
        else:
            clock.now += seconds
    assert meter.seconds == earlier + sum(seconds for training, seconds in spans if training)
    assert meter.wall_seconds == 2 * earlier + 5 + sum(seconds for _, seconds in spans)
    assert meter.money == pytest.approx(2 * meter.wall_seconds)


def test_time_of_a_step_that_failed_was_spent_too() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    with pytest.raises(KeyError), meter.training():
        clock.now += 3
        raise KeyError
    assert meter.seconds == 3
    assert meter.money == 0


@given(
    st.lists(st.tuples(st.sampled_from(["text", "plan", "build", "compile", ""]), st.integers(0, 1000)), max_size=20)
)
def test_start_up_is_told_stage_by_stage(spans: list[tuple[str, int]]) -> None:
    clock = Clock()
    startup = StartUp(clock)
    for name, seconds in spans:
        if name:
            with startup.stage(name):
                clock.now += seconds
        else:
            clock.now += seconds
    ready = startup.ready()
    assert ready.seconds == sum(seconds for _, seconds in spans)
    for name in ("text", "plan", "build", "compile"):
        assert getattr(ready, name) == sum(seconds for stage, seconds in spans if stage == name)
    assert ready.trial == 0


def test_a_trial_is_told_apart_from_the_plan_that_it_is_part_of() -> None:
    clock = Clock()
    startup = StartUp(clock)
    with startup.stage("plan"):
        clock.now += 7
    startup.part("trial", 5, of="plan")
    assert (startup.ready().plan, startup.ready().trial, startup.ready().seconds) == (2, 5, 7)
