"""What a search has tried and spent, and whether one more trial fits into what it may spend."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence

from farthing.search.asked import Confirm, Search, SearchBudget
from farthing.search.record import Record, Refused

WORD = {"flops": "FLOPs", "seconds": "minutes", "money": "money"}
TOO_DEAR = "too dear for what is left of"
"""how the reason begins for which a candidate is refused that the budget no longer has room for"""
_SCALE = {"flops": 1.0, "seconds": 60.0, "money": 1.0}
"""how many of what is counted make one of what budget.flops, minutes and money are given in"""
_ROUNDING = 1e-9
FRESH = 10_001
"""the first seed of confirmation runs"""


def total(records: Sequence[Record], left_out: Collection[str] = ()) -> dict[str, float]:
    """FLOPs, seconds and money of everything that has run, and of what runs, as planned."""
    # What does not go on in this search costs no more than it has.
    costs = [record.spent if record.id in left_out else record.cost for record in records]
    return {name: sum(cost.get(name, 0.0) for cost in costs) for name in ("flops", "seconds", "money")}


def spent(records: Sequence[Record]) -> dict[str, float]:
    """FLOPs, seconds and money of everything that has run, whatever was planned for it."""
    return {name: sum(one.spent.get(name, 0.0) for one in records) for name in ("flops", "seconds", "money")}


def fresh_seeds(search: Search) -> list[int]:
    """Seeds that no trial has seen."""
    found: list[int] = []
    seed = FRESH
    while len(found) < search.confirm.seeds:
        if seed not in search.seeds:
            found.append(seed)
        seed += 1
    return found


def pace(records: Sequence[Record]) -> float:
    """How many times longer trials hold the machine than was planned; 1 until one has ended."""
    ratios = [
        record.spent["seconds"] / record.planned["seconds"]
        for record in records
        if record.state == "complete" and record.planned.get("seconds") and record.spent.get("seconds")
    ]
    return statistics.median(ratios) if ratios else 1.0


def full(budget: SearchBudget, records: Sequence[Record], left_out: Collection[str] = ()) -> str:
    """Why no trial may begin whatever it costs; empty while one may.

    Args:
        budget: of the search.
        records: everything so far.
        left_out: ids of trials that do not fit any more: what they cost is spent, but they are none of budget.trials.
    """
    trials = sum(record.counts and record.id not in left_out for record in records)
    if budget.trials is not None and trials >= budget.trials:
        return f"budget.trials={budget.trials} are done"
    return _reached(budget, total(records, left_out))


def used_up(budget: SearchBudget, records: Sequence[Record]) -> str:
    """Which limit has been reached by what has really been spent, whatever is planned; empty while none has."""
    return _reached(budget, spent(records))


def _reached(budget: SearchBudget, used: Mapping[str, float]) -> str:
    over = [name for name, limit in limits(budget).items() if used[name] >= limit]
    return f"budget.{WORD[over[0]].lower()} is spent" if over else ""


def overrun(budget: SearchBudget, records: Sequence[Record], held: Mapping[str, float]) -> str:
    """Which limit the runs that are going on break at this moment, in words; empty while they break none.

    Args:
        budget: of the search.
        records: everything so far.
        held: seconds and money that runs have taken since their records were written last.
    """
    known = spent(records)
    for name, limit in limits(budget).items():
        if known[name] + held.get(name, 0.0) > limit:
            return f"search.budget.{WORD[name].lower()}={limit / _SCALE[name]:g} is used up"
    return ""


def may_go_on(
    budget: SearchBudget,
    records: Sequence[Record],
    record: Record,
    *,
    waiting: Collection[str],
    left_out: Collection[str] = (),
) -> bool:
    """Whether what was begun earlier, and nobody works on, still has room in the budget.

    In minutes and money it has while anything is left of them, since plans may be wrong there, and a run is stopped
    when they are used up; in FLOPs plans are right.

    Args:
        budget: of the search.
        records: everything so far.
        record: a trial or a confirmation run.
        waiting: ids of all that nobody works on, this one included.
        left_out: ids of trials that do not fit any more.
    """
    others = [one for one in records if one.id not in waiting]
    trials = sum(one.counts and one.id not in left_out for one in others)
    if record.role == "trial" and budget.trials is not None and trials >= budget.trials:
        return False
    return room_for_flops(budget, [*others, record], left_out) and not used_up(budget, records)


def room_for_flops(budget: SearchBudget, records: Sequence[Record], left_out: Collection[str] = ()) -> bool:
    """Whether these, of which some still run, stay within the limit of FLOPs, in which plans are right."""
    return budget.flops is None or total(records, left_out)["flops"] <= budget.flops * (1 + _ROUNDING)


def too_dear(
    search: Search,
    records: Sequence[Record],
    planned: Mapping[str, float],
    top: Sequence[Record] = (),
    left_out: Collection[str] = (),
) -> str:
    """Why this trial, and the runs that confirm the best, no longer fit in; empty if they do.

    Args:
        search: its budget, seeds and confirmation.
        records: everything so far.
        planned: what one run of the trial takes.
        top: the best of the complete trials, which may be the ones to confirm.
        left_out: ids of trials that do not fit any more.
    """
    used = total(records, left_out)
    for name, limit in limits(search.budget).items():
        one = planned.get(name, 0.0) * (pace(records) if name != "flops" else 1.0)
        known = [record.spent.get(name, 0.0) / len(record.seeds) for record in top]
        whole = len(search.seeds) * one + _to_confirm(search.confirm, one, known)
        if used[name] + whole > limit:
            left = max(0.0, limit - used[name]) / _SCALE[name]
            return (
                f"{TOO_DEAR} budget.{WORD[name].lower()}: {whole / _SCALE[name]:.3g} with what confirms the best, and "
                f"{left:.3g} of {limit / _SCALE[name]:.3g} are left"
            )
    return ""


def _to_confirm(confirm: Confirm, one: float, known: Sequence[float]) -> float:
    """What the runs at the end may take: the dearest of those that may be confirmed, and a base like these."""
    if not confirm.top:
        return 0.0
    arms = sorted([*known, one], reverse=True)[: confirm.top]
    arms += [one] * (confirm.top - len(arms))
    return confirm.seeds * (sum(arms) + (statistics.fmean(arms) if confirm.base else 0.0))


def limits(budget: SearchBudget) -> dict[str, float]:
    """The limits that are set, by what is spent; minutes in seconds."""
    every = {
        "flops": budget.flops,
        "seconds": None if budget.minutes is None else 60 * budget.minutes,
        "money": budget.money,
    }
    return {name: limit for name, limit in every.items() if limit is not None}


def counts(records: Sequence[Record], refused: Sequence[Refused] = ()) -> dict[str, int]:
    """How many trials, and how they ended; refused candidates are no trials.

    Args:
        records: trials, with what was refused before each.
        refused: what has been since.
    """
    trials = [one for one in records if one.role == "trial"]
    without = len(refused) + sum(len(one.refused) for one in trials) + sum(one.state == "refused" for one in trials)
    return {
        "trials": sum(one.counts for one in trials),
        "complete": sum(one.state == "complete" for one in trials),
        "running": sum(one.state == "running" for one in trials),
        "refused": without,
        "failed": sum(one.state == "failed" for one in trials),
        "pruned": sum(one.state == "pruned" for one in trials),
    }


def refusals(records: Sequence[Record], refused: Sequence[Refused]) -> dict[str, int]:
    """How often each limit was broken or other reason given, the commonest first.

    Args:
        records: trials, with what was refused before each.
        refused: what has been since.
    """
    reasons = [one.reason for record in records for one in record.refused] + [one.reason for one in refused]
    reasons += [record.reason for record in records if record.state == "refused"]
    found: dict[str, int] = {}
    for reason in reasons:
        words = reason.replace("=", " ").split()
        limit = next((word for word in words if word.startswith("limits.")), reason[:100])
        if reason.startswith(TOO_DEAR):
            limit = reason.partition(":")[0]
        found[limit] = found.get(limit, 0) + 1
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
