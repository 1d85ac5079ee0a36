"""What a search has found: the best recipe, what mattered, in which direction, and how sure that is.

Everything is data (`findings.json`): history, slices and parallel coordinates are drawn by the report.
"""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from farthing import config
from farthing.compare.statistics import compare_all, holm, summarise
from farthing.errors import UserError
from farthing.rundir import RunDir
from farthing.search.account import counts, refusals, spent
from farthing.search.asked import CmaEs, Gp, Search, Tpe
from farthing.search.check import Asked
from farthing.search.launch import held_out, holds_out
from farthing.search.proposing import best
from farthing.search.record import BASE, Folder, Record
from farthing.search.sampling import distribution, quiet_study
from farthing.search.space import Drawn, Options, Range
from farthing.search.study import History
from farthing.storage import write_json, write_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = 0.05
"""chance of a trend in words where there is none, over all parameters together"""
FEWEST = 4
"""trials from which a trend is looked for"""
EXACT = 8
"""the most trials of which every order of the scores is gone through"""
DRAWS = 9_999
"""random orders above that"""
_BLOCK = 2_000_000
"""numbers in one block of random orders, so that memory stays small"""
_ROUNDING = 1e-12
_FEW_VALUES = 6


def find(asked: Asked, folder: Folder, records: Sequence[Record], ended: str) -> dict[str, Any]:
    """Everything that the trials tell, JSON-ready; writes findings.json and best.toml, which goes where there is no best.

    Args:
        asked: the search.
        folder: where it is kept.
        records: its trials and confirmation runs; of those that do not fit any more, only what they cost is told.
        ended: why it ended, or empty while it has not.
    """
    history, every = History(asked.space), records
    records = history.belong(every)
    complete = best(records, history)
    placed = {one.id: history.place(one) or [] for one in complete}
    points = [({drawn.path: drawn.value for drawn in placed[one.id]}, float(one.score or 0.0)) for one in complete]
    confirmed = confirmation(asked.search, records, complete)
    winner = _winner(asked.search, complete, confirmed)
    for id, summary in (held_out(to_hold_out(asked, folder, records)) or {}).items():
        assert confirmed is not None
        confirmed["arms"][id]["held_out"] = summary
    found: dict[str, Any] = {
        "version": 1,
        "folder": str(folder.path),
        "ended": ended,
        "best": None if winner is None else _best(folder, winner, confirmed),
        **counts(records, folder.refused()),
        "left_out": len(history.left_out(every)),
        "left_out_because": history.why_left_out(every),
        "spent": spent(every),
        "importance": importance(list(placed.values()), [score for _, score in points]),
        "trends": trends(points),
        "confirmation": confirmed,
        "left_out_ids": sorted({one.id for one in every} - {one.id for one in records if one.state != "refused"}),
        "notes": _notes(asked.search, sum(one.role == "trial" and one.score is not None for one in records), confirmed),
        "history": _history(records),
        "slices": _slices(points),
        "parallel": [{"trial": one.id, "score": one.score, **points[at][0]} for at, one in enumerate(complete)],
        "refusals": refusals(records, folder.refused()),
        "failures": [{"trial": one.id, "reason": one.reason} for one in records if one.state == "failed"],
    }
    if winner is None:
        folder.best.unlink(missing_ok=True)
    else:
        _write_best(asked, folder, winner)
    write_json(folder.findings, found)
    return found


def _notes(search: Search, scored: int, confirmed: Mapping[str, Any] | None) -> dict[str, str]:
    """What a reader must know of the numbers, by which part of the findings it is about."""
    found = {}
    sampler = search.sampler
    learns = isinstance(sampler, Tpe | Gp | CmaEs)
    if learns and scored > getattr(sampler, "startup_trials", 0):
        found["trends"] = (
            f"{sampler.kind} chose later trials by the scores of earlier ones, so the p of these trends is a hint and no "
            "proof: a random search would be needed for that"
        )
    arms = _whole(confirmed)
    if len(arms) > 1:
        found["confirmation"] = (
            f"the winner has the lowest of {len(arms)} means over fresh seeds, so its own mean is a little too low; the "
            "verdicts against the base are corrected for their number"
        )
    return found


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


def _winner(search: Search, complete: Sequence[Record], confirmed: Mapping[str, Any] | None) -> Record | None:
    """The best over the fresh seeds that all have run, among those whose runs all have a score; else the best trial."""
    arms = {} if confirmed is None else confirmed["arms"]
    top = [one for one in complete[: search.confirm.top] if not (one.id in arms and arms[one.id]["failed"])]
    seeds = [set(arms[one.id]["scores"]) if one.id in arms else set() for one in top]
    common = set.intersection(*seeds) if seeds else set()
    if not common:
        return complete[0] if complete else None
    return min(top, key=lambda one: math.fsum(arms[one.id]["scores"][seed] for seed in common))


def _whole(confirmed: Mapping[str, Any] | None) -> dict[str, Any]:
    """The confirmed trials whose runs all have a score."""
    arms = {} if confirmed is None else confirmed["arms"]
    return {id: arm for id, arm in arms.items() if id != BASE and not arm["failed"] and arm["n"]}


def to_hold_out(asked: Asked, folder: Folder, records: Sequence[Record]) -> dict[str, dict[int, RunDir]]:
    """The winner's and the base's finished confirmation runs by seed, which are scored on the test text at the end.

    Empty where the base recipe holds out no such text, where nothing has been confirmed, or where some of the runs are
    on another machine.
    """
    if not holds_out(asked.space.base):
        return {}
    history = History(asked.space)
    records = history.belong(records)
    complete = best(records, history)
    confirmed = confirmation(asked.search, records, complete)
    winner = None if confirmed is None else _winner(asked.search, complete, confirmed)
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
    told = f"# Best of a search: {winner.id}, {winner.score:.4f} bits per byte.\n\n"
    write_text(folder.best, told + asked.difference(recipe, folder.path))
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

    Numbers by Spearman's rank correlation, other choices by Kruskal and Wallis's statistic over their ranks; p by
    permutation, so that it holds with few trials too, and corrected by Holm for the number of parameters.
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
    import numpy as np

    groups: dict[Any, list[float]] = {}
    for value, score in pairs:
        groups.setdefault(value, []).append(score)
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in groups)
    ranks_N = _ranks([score for _, score in pairs])
    if numeric:
        weights_GN = _ranks([value for value, _ in pairs])[None]
    else:
        weights_GN = np.array([[value == one for value, _ in pairs] for one in groups]) * 1.0
        weights_GN /= np.sqrt(weights_GN.sum(axis=1, keepdims=True))
    scale = math.sqrt(float((weights_GN**2).sum() * (ranks_N**2).sum()))
    told: dict[str, Any] = {
        "path": path,
        "n": len(pairs),
        "spearman": float(weights_GN[0] @ ranks_N) / scale if numeric and scale else None,
        "p": _chance(weights_GN, ranks_N),
    }
    if len(groups) <= _FEW_VALUES and len(groups) < len(pairs):
        ordered = sorted(groups, key=lambda value: statistics.fmean(groups[value]))
        told["values"] = [
            {"value": value, "mean": statistics.fmean(groups[value]), "n": len(groups[value])} for value in ordered
        ]
    return told


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Ranks less their mean; equal values share theirs."""
    import numpy as np

    _, places_N, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks_N: NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[places_N]
    ranks_N -= ranks_N.mean()
    return ranks_N


def _chance(weights_GN: NDArray[np.float64], ranks_N: NDArray[np.float64]) -> float:
    """The share of all orders of the scores in which they hang on the values at least as much as in the one seen.

    With up to EXACT trials every order is gone through. Above that it is DRAWS random ones and the one seen, which keeps
    the level (Phipson and Smyth 2010), and always the same ones, so that the same trials tell the same.

    Args:
        weights_GN: for numbers one row, their ranks; else a row for each value, 1 / sqrt(how many have it) where a
            trial has it. The squared length of weights @ ranks then grows with Spearman's or Kruskal and Wallis's
            statistic. G: rows, N: trials.
        ranks_N: of the scores, less their mean.
    """
    n = len(ranks_N)
    # Two orders that agree but for rounding are equally strong.
    slack = _ROUNDING * float((weights_GN**2).sum() * (ranks_N**2).sum())
    least = float(((weights_GN @ ranks_N) ** 2).sum()) - slack
    blocks = [_every_order(n)] if n <= EXACT else (_random_orders(n, block) for block in range(_blocks(n)))
    strong = drawn = 0
    for orders_DN in blocks:
        strengths_D = ((ranks_N[orders_DN] @ weights_GN.T) ** 2).sum(axis=1)
        strong += int((strengths_D >= least).sum())
        drawn += len(orders_DN)
    return strong / drawn if n <= EXACT else (strong + 1) / (drawn + 1)


def _blocks(n: int) -> int:
    return math.ceil(DRAWS * n / _BLOCK)


@lru_cache(maxsize=EXACT)
def _every_order(n: int) -> NDArray[np.intp]:
    import numpy as np

    return np.array(list(itertools.permutations(range(n))))


@lru_cache(maxsize=8)
def _random_orders(n: int, block: int) -> NDArray[np.int32]:
    """A share of the DRAWS orders of n trials, one a row."""
    import numpy as np

    first, end = (DRAWS * one // _blocks(n) for one in (block, block + 1))
    return np.random.default_rng([n, block]).permuted(np.tile(np.arange(n, dtype=np.int32), (end - first, 1)), axis=1)


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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
