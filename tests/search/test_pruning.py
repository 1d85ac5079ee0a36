"""Pruners: who is stopped, and that what they remember survives in the records."""

from __future__ import annotations

import pytest

from farthing.search.asked import AnyPruner, Hyperband, Median, NoPruner, SuccessiveHalving, Wilcoxon
from farthing.search.pruning import judge
from farthing.search.record import Record
from search.small import record


def curve(end: float, upto: int = 100) -> dict[str, float]:
    """Down from 4 to `end`, scored at every tenth."""
    return {str(percent): 4 - (4 - end) * percent / 100 for percent in range(10, upto + 1, 10)}


def field(count: int = 9) -> list[Record]:
    return [record(number, 2 + number / 10, curve=curve(2 + number / 10)) for number in range(count)]


def running(number: int, end: float, upto: int) -> Record:
    return record(number, None, state="running", curve=curve(end, upto))


def test_none_never_stops() -> None:
    assert judge(NoPruner(), field(), running(20, 9.0, 50))[0] is False


@pytest.mark.parametrize(("end", "stopped"), [(2.1, False), (2.3, False), (2.6, True), (3.5, True)])
def test_the_median_at_the_same_share_of_the_budget(end: float, stopped: bool) -> None:
    assert judge(Median(), field(), running(20, end, 50))[0] is stopped


def test_the_median_waits_for_trials_and_for_the_warm_up() -> None:
    assert judge(Median(startup_trials=5), field(4), running(20, 3.9, 50))[0] is False
    assert judge(Median(warmup=0.6), field(), running(20, 3.9, 50))[0] is False


def test_trials_of_other_lengths_are_compared_at_the_last_score_before() -> None:
    # These were scored at other percents of their budgets; none at 50.
    others = [record(number, 2.0, curve={"33": 3.0, "66": 2.5, "100": 2.0}) for number in range(6)]
    assert judge(Median(), others, record(9, None, state="running", curve={"50": 3.1}))[0] is True
    assert judge(Median(), others, record(9, None, state="running", curve={"50": 2.9}))[0] is False


@pytest.mark.parametrize("pruner", [SuccessiveHalving(least=0.1, factor=3), Hyperband(least=0.1, factor=3)], ids=str)
def test_halving_lets_few_through_and_remembers_rungs(pruner: AnyPruner) -> None:
    trials: list[Record] = []
    for number in range(27):
        end = 2 + (number * 7 % 27) / 27
        for upto in range(10, 101, 10):
            now = running(number, end, upto)
            if trials and trials[-1].number == number:
                now = record(number, None, state="running", curve=curve(end, upto), rungs=trials.pop().rungs)
            stop, now = judge(pruner, trials, now)
            # Only what a file holds goes on: nothing is kept between two looks.
            state = "pruned" if stop else "complete" if upto == 100 else "running"
            score = now.curve[str(upto)] if state != "running" else None
            trials.append(
                Record.of_table(record(number, score, state=state, curve=now.curve, rungs=now.rungs).as_dict(), "")
            )
            if stop:
                break
    complete = [one for one in trials if one.state == "complete"]
    assert 1 <= len(complete) < 20
    assert any(one.state == "pruned" for one in trials)
    lowest = min(trials, key=lambda one: one.curve["10"])
    assert lowest.state == "complete" and lowest.rungs


@pytest.mark.parametrize("level", [0.1, 0.05, 0.3, 0.126, 0.125])
def test_wilcoxon_can_stop_a_trial_of_the_fewest_seeds_and_of_no_fewer(level: float) -> None:
    pruner = Wilcoxon(level=level)

    def stopped(count: int) -> bool:
        seeds = list(range(count))
        best = record(0, 2.0, seeds=seeds, scores={str(seed): 2.0 + seed / 100 for seed in seeds})
        # Worse on every seed, and by ever more: no p is smaller. The last seed's end is the trial's own.
        worse = [
            record(1, None, state="running", seeds=seeds, scores={str(seed): 3 + seed / 10 for seed in range(ended)})
            for ended in range(1, count)
        ]
        return any(judge(pruner, [best], one)[0] for one in worse)

    assert stopped(pruner.fewest_seeds) and not stopped(pruner.fewest_seeds - 1)


def test_wilcoxon_stops_a_trial_that_loses_on_seed_after_seed() -> None:
    seeds = list(range(8))
    best = record(0, 2.0, seeds=seeds, scores={str(seed): 2.0 + seed / 100 for seed in seeds})
    worse = record(1, None, state="running", seeds=seeds, scores={str(seed): 2.1 + seed / 100 for seed in range(5)})
    equal = record(1, None, state="running", seeds=seeds,
                   scores={str(seed): 2.0 + seed / 100 + (-1) ** seed / 100 for seed in range(5)})  # fmt: skip
    assert judge(Wilcoxon(), [best], worse)[0] is True
    assert judge(Wilcoxon(), [best], equal)[0] is False
    assert judge(Wilcoxon(), [], worse)[0] is False
