"""A search stops before it spends more than it may."""

from __future__ import annotations

import pytest

from farthing.search.account import fresh_seeds, full, pace, too_dear, total
from search.small import record, search_of

ONE = {"flops": 100.0, "seconds": 60.0, "money": 0.5}


def test_only_trials_count_as_trials() -> None:
    search = search_of(budget={"trials": 3})
    trials = [record(0, 2.0), record(1, None), record(2, None, state="refused"), record(3, 2.0, role="confirmation")]
    assert full(search.budget, trials) == ""
    assert "budget.trials=3" in full(search.budget, [*trials, record(4, 2.5, state="pruned")])


def test_what_runs_counts_as_planned_and_what_has_ended_as_spent() -> None:
    ended = record(0, 2.0, spent={"flops": 10.0, "seconds": 30.0, "money": 0.1}, planned=ONE)
    running = record(1, None, state="running", spent={"flops": 10.0, "seconds": 90.0, "money": 0.1}, planned=ONE)
    assert total([ended, running]) == {"flops": 110.0, "seconds": 120.0, "money": pytest.approx(0.6)}


@pytest.mark.parametrize(
    ("budget", "fits"),
    [
        ({"flops": 500}, True),
        ({"flops": 499}, False),
        ({"minutes": 5}, True),
        ({"minutes": 4.9}, False),
        ({"money": 2.5}, True),
        ({"money": 2.4}, False),
        ({"trials": 9}, True),
    ],
)
def test_a_trial_begins_only_if_it_and_its_confirmation_fit_in(budget: dict[str, float], fits: bool) -> None:
    # One trial, and two arms of one seed that confirm it: three times as much, after two have been spent.
    search = search_of(budget=budget, confirm={"top": 1, "seeds": 1})
    spent = [record(0, 2.0, spent={name: 2 * value for name, value in ONE.items()})]
    told = too_dear(search, spent, ONE)
    assert (told == "") is fits, told
    assert fits or "left" in told


def test_trials_that_take_longer_than_planned_are_reckoned_with() -> None:
    slow = [record(number, 2.0, spent={"seconds": 120.0}, planned=ONE) for number in range(3)]
    assert pace(slow) == 2.0 and pace([]) == 1.0
    search = search_of(budget={"minutes": 7.5}, confirm={"top": 0})
    assert too_dear(search, slow, ONE) != ""
    assert too_dear(search_of(budget={"minutes": 8.0}, confirm={"top": 0}), slow, ONE) == ""


def test_fresh_seeds_are_fresh() -> None:
    search = search_of(seeds=[10_002, 7], confirm={"seeds": 3})
    assert fresh_seeds(search) == [10_001, 10_003, 10_004]
