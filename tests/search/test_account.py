"""A search stops before it spends more than it may."""

from __future__ import annotations

import pytest

from farthing.search.account import fresh_seeds, full, may_go_on, overrun, pace, spent, too_dear, total, used_up
from search.small import record, search_of

ONE = {"flops": 100.0, "seconds": 60.0, "money": 0.5}


def test_only_trials_count_as_trials() -> None:
    search = search_of(budget={"trials": 3})
    trials = [record(0, 2.0), record(1, None), record(2, None, state="refused"), record(3, 2.0, role="confirmation")]
    assert full(search.budget, trials) == ""
    assert "budget.trials=3" in full(search.budget, [*trials, record(4, 2.5, state="pruned")])


def test_what_fits_no_more_is_no_trial_but_its_cost_is_spent() -> None:
    old = [record(number, 2.0, spent=ONE) for number in range(3)]
    ids = {one.id for one in old}
    assert full(search_of(budget={"trials": 3}).budget, old, ids) == ""
    assert "budget.trials=3" in full(search_of(budget={"trials": 3}).budget, old)
    assert full(search_of(budget={"minutes": 3}).budget, old, ids) == "budget.minutes is spent"


def test_what_was_stopped_and_fits_no_more_keeps_no_room_for_its_rest() -> None:
    stopped = record(0, None, state="running", spent={"flops": 20.0}, planned=ONE)
    search = search_of(budget={"flops": 150}, confirm={"top": 0})
    assert "too dear" in too_dear(search, [stopped], ONE)
    assert too_dear(search, [stopped], ONE, left_out={stopped.id}) == ""
    tight = search_of(budget={"flops": 100}).budget
    assert "spent" in full(tight, [stopped]) and full(tight, [stopped], {stopped.id}) == ""


@pytest.mark.parametrize(
    ("budget", "goes_on"),
    [
        ({"trials": 2}, True),
        ({"trials": 1}, False),  # the one that has ended
        ({"minutes": 1.6}, True),  # plans may be wrong in minutes: it goes on until they are used up
        ({"minutes": 1.5}, False),
        ({"money": 0.8}, True),
        ({"money": 0.75}, False),
        ({"flops": 200}, True),
        ({"flops": 199}, False),  # FLOPs are known: its rest would be too much
    ],
)
def test_what_was_begun_goes_on_while_the_budget_has_room(budget: dict[str, float], goes_on: bool) -> None:
    half = {name: value / 2 for name, value in ONE.items()}
    begun = record(1, None, state="running", spent=half, planned=ONE)
    records = [record(0, 2.0, spent=ONE), begun]
    assert may_go_on(search_of(budget=budget).budget, records, begun, waiting={begun.id}) is goes_on


def test_a_run_is_stopped_when_what_it_holds_is_more_than_is_left() -> None:
    records = [record(0, 2.0, spent=ONE), record(1, None, state="running", planned=ONE)]
    budget = search_of(budget={"minutes": 1.5, "money": 9, "flops": 900}).budget
    assert overrun(budget, records, {"seconds": 29.0, "money": 1.0}) == "" == used_up(budget, records)
    assert overrun(budget, records, {"seconds": 31.0, "money": 1.0}) == "search.budget.minutes=1.5 is used up"
    assert overrun(budget, records, {"seconds": 1.0, "money": 8.6}) == "search.budget.money=9 is used up"
    assert spent(records) == ONE != total(records)


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


def test_room_is_kept_to_confirm_the_best_though_they_were_dearer() -> None:
    # One trial of 100 and, of one seed each, the dearest arm (300) and a base like it.
    best = record(0, 2.0, spent={"flops": 300.0})
    confirm = {"top": 1, "seeds": 1}
    assert too_dear(search_of(budget={"flops": 1000}, confirm=confirm), [best], {"flops": 100.0}, [best]) == ""
    assert "budget.flops" in too_dear(
        search_of(budget={"flops": 999}, confirm=confirm), [best], {"flops": 100.0}, [best]
    )


def test_trials_that_take_longer_than_planned_are_reckoned_with() -> None:
    slow = [record(number, 2.0, spent={"seconds": 120.0}, planned=ONE) for number in range(3)]
    assert pace(slow) == 2.0 and pace([]) == 1.0
    search = search_of(budget={"minutes": 7.5}, confirm={"top": 0})
    assert too_dear(search, slow, ONE) != ""
    assert too_dear(search_of(budget={"minutes": 8.0}, confirm={"top": 0}), slow, ONE) == ""


def test_fresh_seeds_are_fresh() -> None:
    search = search_of(seeds=[10_002, 7], confirm={"seeds": 3})
    assert fresh_seeds(search) == [10_001, 10_003, 10_004]
