"""What a search has found: the best recipe, what mattered, in which direction, and how sure that is.

Everything is data (`findings.json`): history, slices and parallel coordinates are drawn by the report.
"""

from __future__ import annotations

import math
import os
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from farthing import config
from farthing.compare.statistics import compare_all, holm, summarise
from farthing.errors import UserError
from farthing.rundir import RunDir
from farthing.search.account import TOO_DEAR, total
from farthing.search.asked import Search
from farthing.search.check import Asked
from farthing.search.launch import held_out, holds_out
from farthing.search.proposing import best
from farthing.search.record import BASE, Folder, Record, Refused
from farthing.search.sampling import distribution, quiet_study
from farthing.search.space import Drawn, Options, Range
from farthing.search.study import History
from farthing.storage import write_json, write_text

LEVEL = 0.05
"""chance of a trend in words where there is none, over all parameters together"""
FEWEST = 4
"""trials from which a trend is looked for"""
_FEW_VALUES = 6


def find(asked: Asked, folder: Folder, records: Sequence[Record], ended: str) -> dict[str, Any]:
    """Everything that the trials tell, JSON-ready; writes findings.json and best.toml.

    Args:
        asked: the search.
        folder: where it is kept.
        records: its trials and confirmation runs.
        ended: why it ended, or empty while it has not.
    """
    history = History(asked.space)
    complete = best(records, history)
    placed = {one.id: history.place(one) or [] for one in complete}
    points = [({drawn.path: drawn.value for drawn in placed[one.id]}, float(one.score or 0.0)) for one in complete]
    confirmed = confirmation(asked.search, records, complete)
    winner = _winner(complete, confirmed)
    for id, summary in (held_out(to_hold_out(asked, folder, records)) or {}).items():
        assert confirmed is not None
        confirmed["arms"][id]["held_out"] = summary
    found: dict[str, Any] = {
        "version": 1,
        "folder": str(folder.path),
        "ended": ended,
        "best": None if winner is None else _best(folder, winner, confirmed),
        **counts(records, folder.refused()),
        "left_out": sum(one.role == "trial" and history.place(one) is None for one in records),
        "spent": total(records),
        "importance": importance(list(placed.values()), [score for _, score in points]),
        "trends": trends(points),
        "confirmation": confirmed,
        "history": _history(records),
        "slices": _slices(points),
        "parallel": [{"trial": one.id, "score": one.score, **points[at][0]} for at, one in enumerate(complete)],
        "refusals": _refusals(records, folder.refused()),
        "failures": [{"trial": one.id, "reason": one.reason} for one in records if one.state == "failed"],
    }
    if winner is not None:
        _write_best(asked, folder, winner)
    write_json(folder.findings, found)
    return found


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


def confirmation(search: Search, records: Sequence[Record], complete: Sequence[Record]) -> dict[str, Any] | None:
    """The best trials with fresh seeds, each held against the base recipe with the same seeds.

    None where nothing was confirmed. What a trial scored in the search itself is not in it: it was chosen for that.
    """
    runs: dict[str, dict[int, float | None]] = {}
    for record in records:
        if record.role == "confirmation" and record.ended and record.of is not None:
            runs.setdefault(record.of, {})[record.seeds[0]] = record.score if record.state == "complete" else None
    top = [one.id for one in complete[: search.confirm.top] if one.id in runs]
    if not top:
        return None
    verdicts = compare_all({id: runs[id] for id in top}, runs[BASE]) if BASE in runs else {}
    return {
        "arms": {id: {"scores": _by_seed(runs[id]), **summarise(runs[id]).as_dict()} for id in [*top, *_base(runs)]},
        "verdicts": {id: verdict.as_dict() for id, verdict in verdicts.items()},
    }


def _base(runs: Mapping[str, Any]) -> list[str]:
    return [BASE] if BASE in runs else []


def _by_seed(scores: Mapping[int, float | None]) -> dict[str, float | None]:
    return {str(seed): score for seed, score in sorted(scores.items())}


def _winner(complete: Sequence[Record], confirmed: Mapping[str, Any] | None) -> Record | None:
    """The best with fresh seeds, among those whose runs all have a score; else the best of the trials."""
    if confirmed is not None:
        arms = {id: arm for id, arm in confirmed["arms"].items() if id != BASE and not arm["failed"] and arm["n"]}
        if arms:
            first = min(arms, key=lambda id: arms[id]["mean"])
            return next(one for one in complete if one.id == first)
    return complete[0] if complete else None


def to_hold_out(asked: Asked, folder: Folder, records: Sequence[Record]) -> dict[str, dict[int, RunDir]]:
    """The winner's and the base's finished confirmation runs by seed, which are scored on the test text at the end.

    Empty where the base recipe holds out no such text, where nothing has been confirmed, or where some of the runs are
    on another machine.
    """
    if not holds_out(asked.space.base):
        return {}
    complete = best(records, History(asked.space))
    winner = _winner(complete, confirmation(asked.search, records, complete))
    arms: dict[str, dict[int, RunDir]] = {} if winner is None else {winner.id: {}, BASE: {}}
    for one in records:
        if one.role == "confirmation" and one.state == "complete" and one.of in arms:
            arms[one.of][one.seeds[0]] = folder.run(one, one.seeds[0])
    if winner is None or not arms[winner.id]:
        return {}
    here = all(run.result.is_file() for runs in arms.values() for run in runs.values())
    return {id: runs for id, runs in arms.items() if runs} if here else {}


def _best(folder: Folder, winner: Record, confirmed: Mapping[str, Any] | None) -> dict[str, Any]:
    arm = None if confirmed is None else confirmed["arms"].get(winner.id)
    return {
        "trial": winner.id,
        "bits_per_byte": winner.score,
        "confirmed_bits_per_byte": None if arm is None else arm["mean"],
        "held_out_bits_per_byte": None if arm is None or "held_out" not in arm else arm["held_out"]["mean"],
        "parameters": winner.parameters,
        "recipe": str(folder.best),
        "run": str(folder.run(winner, winner.seeds[0]).path),
    }


def _write_best(asked: Asked, folder: Folder, winner: Record) -> None:
    """best.toml: what differs from the base recipe, or all of it where that does not read back to the same."""
    schema = asked.space.schema
    recipe = config.build(schema, winner.recipe)
    place = Path(asked.base)
    base = os.path.relpath(place, folder.path) if place.is_file() else asked.base
    told = f"# Best of a search: {winner.id}, {winner.score:.4f} bits per byte.\n\n"
    original = config.load(schema, asked.base)
    changed: config.Table = {}
    for change in config.diff(original, recipe):
        keys = change.path.split(".")
        patch: Any = "none" if change.new is None else change.new
        if change.path in config.flatten(recipe):
            for key in reversed(keys):
                patch = {key: patch}
            changed = config.merge(changed, patch)
    write_text(folder.best, told + tomli_w.dumps({"base": base, **changed}))
    try:
        same = config.fingerprint(config.load(schema, str(folder.best))) == config.fingerprint(recipe)
    except UserError:
        same = False
    if not same:
        write_text(folder.best, told + config.to_toml(recipe))


def importance(trials: Sequence[Sequence[Drawn]], scores: Sequence[float]) -> dict[str, float]:
    """Each parameter's share in what makes a trial one of the better ones (PED-ANOVA, Watanabe et al. 2023).

    Only parameters that every trial has; empty where there are too few trials or nothing differs.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if len(trials) < FEWEST or len(set(scores)) < 2:
        return {}
    shared = set.intersection(*({one.path for one in drawn} for drawn in trials))
    domains: dict[str, Range | Options] = {}
    for path in sorted(shared):
        seen = [one for drawn in trials for one in drawn if one.path == path]
        if len({one.value for one in seen}) > 1:
            domains[path] = _whole_domain(seen)
    if not domains:
        return {}
    if len(domains) == 1:
        return {next(iter(domains)): 1.0}
    from optuna.trial import create_trial

    study = quiet_study()
    words = {path: distribution(domain) for path, domain in domains.items()}
    for drawn, score in zip(trials, scores, strict=True):
        values = {one.path: one.value for one in drawn if one.path in domains}
        study.add_trial(create_trial(value=score, params=values, distributions=words))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {path: float(share) for path, share in found.items() if math.isfinite(share)}


def _whole_domain(seen: Sequence[Drawn]) -> Range | Options:
    """What holds all values that a parameter was drawn from, though the domain depended on others."""
    ranges = [one.domain for one in seen if isinstance(one.domain, Range)]
    if len(ranges) == len(seen):
        low, high = min(one.low for one in ranges), max(one.high for one in ranges)
        first = ranges[0]
        return Range(low, high, log=first.log, whole=first.whole)
    return Options(tuple(dict.fromkeys(one.value for one in seen)))


def trends(points: Sequence[tuple[Mapping[str, Any], float]]) -> list[dict[str, Any]]:
    """Which way each parameter moves the score, in words and numbers, the clearest first.

    Numbers by Spearman's rank correlation, other choices by Kruskal and Wallis's test over their ranks; p corrected by
    Holm for the number of parameters.
    """
    found = []
    for path in dict.fromkeys(path for parameters, _ in points for path in parameters):
        pairs = [(parameters[path], score) for parameters, score in points if path in parameters]
        if len(pairs) >= FEWEST and len({value for value, _ in pairs}) > 1:
            found.append(_trend(path, pairs))
    for one, corrected in zip(found, holm([one["p"] for one in found]), strict=True):
        one["p_corrected"] = corrected
        one["words"] = _in_words(one)
    return sorted(found, key=lambda one: one["p"])


def _trend(path: str, pairs: Sequence[tuple[Any, float]]) -> dict[str, Any]:
    from scipy import stats

    groups: dict[Any, list[float]] = {}
    for value, score in pairs:
        groups.setdefault(value, []).append(score)
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in groups)
    scores = [score for _, score in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all scores equal: no trend, which p says
        if numeric:
            result: Any = stats.spearmanr([value for value, _ in pairs], scores)
        else:
            result = stats.kruskal(*groups.values())
    p = float(result.pvalue)
    told: dict[str, Any] = {
        "path": path,
        "n": len(pairs),
        "spearman": _finite(float(result.statistic)) if numeric else None,
        "p": p if math.isfinite(p) else 1.0,
    }
    if len(groups) <= _FEW_VALUES and len(groups) < len(pairs):
        ordered = sorted(groups, key=lambda value: statistics.fmean(groups[value]))
        told["values"] = [
            {"value": value, "mean": statistics.fmean(groups[value]), "n": len(groups[value])} for value in ordered
        ]
    return told


def _in_words(trend: Mapping[str, Any]) -> str:
    name, rho = trend["path"], trend["spearman"]
    numbers = f"p = {trend['p_corrected']:.2g}, n = {trend['n']}"
    if rho is not None:
        numbers = f"Spearman {rho:+.2f}, {numbers}"
    clear = trend["p_corrected"] <= LEVEL
    values = trend.get("values")
    lowest = f"; lowest mean at {values[0]['value']} ({values[0]['mean']:.4f}, n = {values[0]['n']})" if values else ""
    if rho is not None:
        what = f"{'more' if rho < 0 else 'less'} {name} helps" if clear else f"{name}: no clear trend"
    else:
        what = f"{name} matters" if clear else f"{name}: no clear difference"
    return f"{what} ({numbers}){lowest}"


def _history(records: Sequence[Record]) -> list[dict[str, Any]]:
    lowest, found = math.inf, []
    for one in records:
        if one.role != "trial" or not one.ended:
            continue
        if one.state == "complete" and one.score is not None:
            lowest = min(lowest, one.score)
        found.append(
            {
                "trial": one.id,
                "state": one.state,
                "score": one.score,
                "best": _finite(lowest),
                "seconds": one.spent.get("seconds", 0.0),
                "curve": one.curve,
            }
        )
    return found


def _slices(points: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, list[list[Any]]]:
    found: dict[str, list[list[Any]]] = {}
    for parameters, score in points:
        for path, value in parameters.items():
            found.setdefault(path, []).append([value, score])
    return found


def _refusals(records: Sequence[Record], refused: Sequence[Refused]) -> dict[str, int]:
    """How often each limit was broken or other reason given, the commonest first."""
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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
