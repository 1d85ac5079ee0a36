"""Budgets become steps that never exceed them, and the first limit reached ends a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from farthing.budget import Budget, Rates, Spent, progress, steps_for_limits


@st.composite
def rates(draw: st.DrawFn) -> Rates:
    length = draw(st.integers(1, 50))
    tokens = draw(st.integers(1, 2_000))
    return Rates(
        sequences_per_step=draw(st.integers(1, 20)),
        sequences_per_epoch=-(-tokens // length),
        tokens_per_epoch=tokens,
        context_length=length,
        flops_per_token=draw(st.floats(1.0, 1e9)),
        seconds_per_step=draw(st.floats(1e-3, 100.0)),
        overhead_seconds=draw(st.floats(0.0, 100.0)),
    )


def most_tokens(steps: int, given_rates: Rates) -> int:
    """Tokens of so many steps where the ragged window of an epoch comes last."""
    epochs, rest = divmod(steps * given_rates.sequences_per_step, given_rates.sequences_per_epoch)
    return epochs * given_rates.tokens_per_epoch + min(rest * given_rates.context_length, given_rates.tokens_per_epoch)


@given(given_rates=rates(), tokens=st.integers(1, 100_000))
def test_a_limit_in_tokens_is_never_exceeded_and_one_more_step_would(given_rates: Rates, tokens: int) -> None:
    steps = steps_for_limits(Budget(tokens=tokens), given_rates)["tokens"]
    assert steps == 1 or most_tokens(steps, given_rates) <= tokens
    assert most_tokens(steps + 1, given_rates) > tokens


@given(given_rates=rates(), flops=st.floats(1.0, 1e14))
def test_a_limit_in_flops_is_never_exceeded(given_rates: Rates, flops: float) -> None:
    assume(flops / given_rates.flops_per_token < 1e6)
    steps = steps_for_limits(Budget(flops=flops), given_rates)["flops"]
    assert steps == 1 or most_tokens(steps, given_rates) * given_rates.flops_per_token <= flops * (1 + 1e-9)


@given(given_rates=rates(), minutes=st.floats(1e-3, 1e4))
def test_a_limit_in_minutes_is_never_exceeded(given_rates: Rates, minutes: float) -> None:
    steps = steps_for_limits(Budget(minutes=minutes), given_rates)["minutes"]
    assert given_rates.seconds_per_step is not None
    assert steps == 1 or steps * given_rates.seconds_per_step <= minutes * 60 * (1 + 1e-9)
    assert (steps + 1) * given_rates.seconds_per_step > minutes * 60 * (1 - 1e-9)


@given(given_rates=rates(), money=st.floats(0.01, 1e4), price=st.floats(0.01, 1e3))
def test_a_limit_in_money_is_never_exceeded_overheads_included(given_rates: Rates, money: float, price: float) -> None:
    steps = steps_for_limits(Budget(money=money, price_per_hour=price), given_rates)["money"]
    assert given_rates.seconds_per_step is not None
    cost = (steps * given_rates.seconds_per_step + given_rates.overhead_seconds) / 3600 * price
    assert steps == 1 or cost <= money * (1 + 1e-9)


@given(given_rates=rates(), epochs=st.integers(1, 30))
def test_whole_epochs_take_exactly_the_steps_that_serve_their_windows(given_rates: Rates, epochs: int) -> None:
    steps = steps_for_limits(Budget(epochs=epochs), given_rates)["epochs"]
    windows = epochs * given_rates.sequences_per_epoch
    assert (steps - 1) * given_rates.sequences_per_step < windows <= steps * given_rates.sequences_per_step


@given(given_rates=rates(), epochs=st.integers(1, 30))
def test_the_same_work_is_the_same_number_of_steps(given_rates: Rates, epochs: int) -> None:
    # Where steps end with epochs, the four ways to say it agree.
    given_rates = dataclasses.replace(given_rates, sequences_per_step=1)
    steps = steps_for_limits(Budget(epochs=epochs), given_rates)["epochs"]
    tokens = epochs * given_rates.tokens_per_epoch
    same = Budget(tokens=tokens, steps=steps, flops=tokens * given_rates.flops_per_token)
    assert set(steps_for_limits(same, given_rates).values()) == {steps}


@given(given_rates=rates(), limits=st.fixed_dictionaries({}, optional={
    "epochs": st.floats(0.01, 100), "steps": st.integers(1, 10**6), "tokens": st.integers(1, 10**9),
    "flops": st.floats(1, 1e15), "minutes": st.floats(0.01, 1e4),
}))  # fmt: skip
def test_each_limit_is_found_by_itself_and_gives_at_least_a_step(given_rates: Rates, limits: dict[str, Any]) -> None:
    assume(limits)
    found = steps_for_limits(Budget(**limits), given_rates)
    assert found.keys() == limits.keys()
    for name, value in limits.items():
        assert found[name] == steps_for_limits(Budget(**{name: value}), given_rates)[name] >= 1


def test_minutes_and_money_wait_for_a_measurement() -> None:
    unmeasured = Rates(4, 10, 100, 10, 1.0)
    budget = Budget(minutes=1, money=1, price_per_hour=1, steps=7)
    assert steps_for_limits(budget, unmeasured) == {"steps": 7}


SPENT = st.builds(
    Spent, steps=st.integers(0, 10**6), tokens=st.integers(0, 10**9), epochs=st.floats(0, 1e3),
    flops=st.floats(0, 1e18), seconds=st.floats(0, 1e6), money=st.floats(0, 1e4),
)  # fmt: skip
BUDGET = st.builds(
    Budget, steps=st.integers(1, 10**6), tokens=st.none() | st.integers(1, 10**9), epochs=st.none() | st.floats(0.1, 1e3),
    flops=st.none() | st.floats(1, 1e18), minutes=st.none() | st.floats(0.1, 1e4),
    money=st.none() | st.floats(0.01, 1e3), price_per_hour=st.just(2.0),
)  # fmt: skip


@given(budget=BUDGET, one=SPENT, more=SPENT)
def test_progress_never_falls_as_more_is_spent(budget: Budget, one: Spent, more: Spent) -> None:
    both = Spent(*(a + b for a, b in zip(one.as_dict().values(), more.as_dict().values(), strict=True)))  # type: ignore[arg-type]
    assert 0 <= progress(budget, one) <= progress(budget, both)


@given(budget=BUDGET, spent=SPENT)
def test_the_first_limit_reached_ends_the_run(budget: Budget, spent: Spent) -> None:
    used = {**spent.as_dict(), "minutes": spent.seconds / 60}
    reached = [name for name, limit in budget.limits().items() if used[name] >= limit]
    assert bool(reached) == (progress(budget, spent) >= 1)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "no budget"),
        ({"price_per_hour": 1.0}, "no budget"),
        ({"money": 1.0}, "price_per_hour"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"minutes": -1}, "greater than 0"),
        ({"tokens": 1.5}, "integer"),
        ({"epochs": float("nan")}, "finite"),
        ({"flops": float("inf")}, "finite"),
    ],
)
def test_a_budget_that_is_none_is_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**limits)
