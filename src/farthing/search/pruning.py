"""When a running trial is not worth its rest: Optuna's pruners over the curves in the trials' records.

A trial's place is the percent of its own budget, so that trials of different lengths are held against each other where
they have spent the same share.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from farthing.search.asked import AnyPruner, Hyperband, Median, NoPruner, SuccessiveHalving, Wilcoxon
from farthing.search.record import Record
from farthing.search.sampling import quiet_study


def judge(pruner: AnyPruner, others: Sequence[Record], trial: Record) -> tuple[bool, Record]:
    """Whether to stop a trial now, and the trial with what the pruner must remember of it.

    Args:
        pruner: who decides.
        others: the other trials of the search.
        trial: with all that is known of it up to now.
    """
    if isinstance(pruner, NoPruner):
        return False, trial
    across = isinstance(pruner, Wilcoxon)
    reports = _reports(trial, across)
    if not reports:
        return False, trial
    study = quiet_study()
    listed = sorted([*(one for one in others if one.number != trial.number), trial], key=lambda one: one.number)
    study.add_trials([_frozen(one, across, itself=one is trial) for one in listed])
    place = listed.index(trial)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        stop = bool(_optuna(pruner).prune(study, study.trials[place]))
    rungs = {key: value for key, value in study.trials[place].system_attrs.items() if isinstance(value, float)}
    return stop, replace(trial, rungs=rungs)


def pruned(record: Record, reason: str) -> Record:
    """A trial that is stopped, with the last score that is known of it.

    Args:
        record: with scores of finished seeds, or a curve.
        reason: who stopped it, and when.
    """
    curve = {int(percent): value for percent, value in record.curve.items()}
    last = sum(record.scores.values()) / len(record.scores) if record.scores else curve[max(curve)]
    return replace(record, state="pruned", score=last, reason=reason)


def _optuna(pruner: AnyPruner) -> Any:
    from optuna import pruners

    match pruner:
        case Median():
            return pruners.MedianPruner(
                n_startup_trials=pruner.startup_trials, n_warmup_steps=round(100 * pruner.warmup)
            )
        case SuccessiveHalving():
            return pruners.SuccessiveHalvingPruner(min_resource=_percent(pruner.least), reduction_factor=pruner.factor)
        case Hyperband():
            return pruners.HyperbandPruner(
                min_resource=_percent(pruner.least), max_resource=100, reduction_factor=pruner.factor
            )
        case Wilcoxon():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return pruners.WilcoxonPruner(p_threshold=pruner.level, n_startup_steps=pruner.startup_seeds)
        case NoPruner():
            return pruners.NopPruner()


def _percent(share: float) -> int:
    return max(1, round(100 * share))


def _reports(trial: Record, across: bool) -> Mapping[int, float]:
    if across:
        return {index: trial.scores[str(seed)] for index, seed in enumerate(trial.seeds) if str(seed) in trial.scores}
    # With several seeds the first one's curve decides; afterwards there is nothing more to learn from it.
    return {} if len(trial.scores) > 0 else _filled(trial.curve)


def _filled(curve: Mapping[str, float]) -> dict[int, float]:
    """A value at every percent from the first score on: the last one known there."""
    known = {int(percent): value for percent, value in curve.items()}
    filled: dict[int, float] = {}
    for percent in range(min(known, default=0), max(known, default=-1) + 1):
        filled[percent] = known.get(percent, filled.get(percent - 1, 0.0))
    return filled


def _frozen(trial: Record, across: bool, *, itself: bool) -> Any:
    from optuna.trial import TrialState, create_trial

    if across:
        reports = dict(_reports(trial, across))
    else:
        reports = _filled(trial.curve)
    if trial.state == "complete" and not itself:
        return create_trial(value=trial.score, intermediate_values=reports, system_attrs=trial.rungs)
    state = TrialState.RUNNING if itself or trial.state == "running" else TrialState.PRUNED
    return create_trial(state=state, intermediate_values=reports, system_attrs=trial.rungs)
