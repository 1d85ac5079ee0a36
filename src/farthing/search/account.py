"""What a search has spent, and whether one more trial fits into what it may spend."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from farthing.search.asked import Confirm, Search, SearchBudget
from farthing.search.record import Record

WORD = {"flops": "FLOPs", "seconds": "minutes", "money": "money"}
TOO_DEAR = "too dear for what is left of"
"""how the reason begins for which a candidate is refused that the budget no longer has room for"""
FRESH = 10_001
"""the first seed of confirmation runs"""


def total(records: Sequence[Record]) -> dict[str, float]:
    """FLOPs, seconds and money of everything that has run, and of what runs, as planned."""
    return {name: sum(record.cost.get(name, 0.0) for record in records) for name in ("flops", "seconds", "money")}


def fresh_seeds(search: Search) -> list[int]:
    """Seeds that no trial has seen."""
    found: list[int] = []
    seed = FRESH
    while len(found) < search.confirm.seeds:
        if seed not in search.seeds:
            found.append(seed)
        seed += 1
    return found


def runs_to_confirm(confirm: Confirm) -> int:
    """How many runs the end may take."""
    return (confirm.top + confirm.base) * confirm.seeds if confirm.top else 0


def pace(records: Sequence[Record]) -> float:
    """How many times longer trials hold the machine than was planned; 1 until one has ended."""
    ratios = [
        record.spent["seconds"] / record.planned["seconds"]
        for record in records
        if record.state == "complete" and record.planned.get("seconds") and record.spent.get("seconds")
    ]
    return statistics.median(ratios) if ratios else 1.0


def full(budget: SearchBudget, records: Sequence[Record]) -> str:
    """Why no trial may begin whatever it costs; empty while one may."""
    trials = sum(record.counts for record in records)
    if budget.trials is not None and trials >= budget.trials:
        return f"budget.trials={budget.trials} are done"
    spent = total(records)
    for name, limit in limits(budget).items():
        if spent[name] >= limit:
            return f"budget.{WORD[name].lower()} is spent"
    return ""


def too_dear(search: Search, records: Sequence[Record], planned: Mapping[str, float]) -> str:
    """Why this trial, and confirmation runs as dear as it, no longer fit in; empty if they do.

    Args:
        search: its budget, seeds and confirmation.
        records: everything so far.
        planned: what one run of the trial takes.
    """
    spent, runs = total(records), len(search.seeds) + runs_to_confirm(search.confirm)
    for name, limit in limits(search.budget).items():
        one = planned.get(name, 0.0) * (pace(records) if name != "flops" else 1.0)
        if spent[name] + runs * one > limit:
            scale = 60.0 if name == "seconds" else 1.0
            left = max(0.0, limit - spent[name]) / scale
            return (
                f"{TOO_DEAR} budget.{WORD[name].lower()}: {runs * one / scale:.3g} with what confirms it, and "
                f"{left:.3g} of {limit / scale:.3g} are left"
            )
    return ""


def limits(budget: SearchBudget) -> dict[str, float]:
    """The limits that are set, by what is spent; minutes in seconds."""
    every = {
        "flops": budget.flops,
        "seconds": None if budget.minutes is None else 60 * budget.minutes,
        "money": budget.money,
    }
    return {name: limit for name, limit in every.items() if limit is not None}
