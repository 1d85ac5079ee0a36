"""What to try next: a pure function of what has been tried, so that a search that is continued goes on as it would have.

Optuna's samplers (TPE, Gaussian process) learn from a study in memory that is made anew from the trials' records each
time. The evolution strategy is replayed from them generation by generation; nothing of either is ever stored.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farthing.errors import UserError
from farthing.search.asked import AnySampler, CmaEs, Gp, Grid, QuasiRandom, Random, Tpe, Value
from farthing.search.space import Candidate, Choose, Conflict, Domain, Drawn, Options, Range, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_TRIES_APART = 1 << 16
"""Distance in a quasi-random sequence between a trial's first candidate and those after refusals."""
_MOST_FAILURES = 50
"""Failed candidates, the newest, that a Gaussian process hears of: its cost grows with the cube of their number."""


@dataclass(frozen=True)
class Tried:
    """A candidate of the past.

    Args:
        drawn: its parameters, as today's space reads them.
        score: lower is better; None while it runs, and of what has failed or was refused.
        curve: what a pruned one was stopped at, by percent of its budget.
        running: whether it is still being tried.
        generation: of an evolution strategy.
    """

    drawn: list[Drawn]
    score: float | None
    curve: dict[int, float]
    running: bool = False
    generation: int | None = None


@dataclass(frozen=True)
class Turn:
    """Whose turn it is: nothing else makes two draws of one search differ.

    Args:
        seed: of the search.
        number: of the trial to be.
        tries: candidates that have been refused for it.
    """

    seed: int
    number: int
    tries: int = 0


@dataclass(frozen=True)
class Proposal:
    """What to try, or what would have been if it made a recipe."""

    candidate: Candidate | None
    drawn: list[Drawn]
    reason: str = ""
    generation: int | None = None


def propose(space: Space, sampler: AnySampler, past: Sequence[Tried], turn: Turn) -> Proposal | None:
    """The next candidate; None where a grid has none left.

    Args:
        space: where it lies.
        sampler: who chooses.
        past: everything that was tried or refused and still fits, in order.
        turn: of the trial to be.
    """
    generation = None
    match sampler:
        case Random():
            choose = _at_random(turn)
        case QuasiRandom():
            choose = _evenly(space, turn)
        case Grid():
            return _next_of_grid(space, past)
        case CmaEs():
            choose, generation = _evolved(space, sampler, past, turn)
        case Tpe() | Gp():
            scored = sum(one.score is not None for one in past)
            learnt = scored >= sampler.startup_trials
            choose = _by_optuna(sampler, past, turn) if learnt else _at_random(turn)
    try:
        candidate = space.propose(choose)
    except Conflict as conflict:
        return Proposal(None, conflict.drawn, str(conflict), generation)
    return Proposal(candidate, candidate.drawn, generation=generation)


def check_sampler(space: Space, sampler: AnySampler) -> None:
    """Refuse a sampler that cannot work in this space.

    Raises:
        UserError: a grid over numbers without a step, or an evolution strategy without two numbers.
    """
    if isinstance(sampler, Grid):
        for path, dimension in space.dimensions.items():
            if dimension.kind == "float" and dimension.step is None:
                raise UserError(f'space."{path}": sampler.kind=grid needs a step or choices there')
    if isinstance(sampler, CmaEs) and len(_numbers(space)) < 2:
        raise UserError("sampler.kind=cmaes needs two or more numbers in the space that are always there; try tpe")


def _at_random(turn: Turn) -> Choose:
    import numpy as np

    chance = np.random.default_rng([turn.seed, turn.number, turn.tries])
    return lambda name, path, domain: domain.at(float(chance.random()))


def _evenly(space: Space, turn: Turn) -> Choose:
    """A point of Sobol's sequence, moved by the same random vector in every turn."""
    import numpy as np
    from scipy.stats import qmc

    paths = list(space.dimensions)
    sequence = qmc.Sobol(len(paths), scramble=False)
    index = turn.number + turn.tries * _TRIES_APART
    if index:
        sequence.fast_forward(index)
    with warnings.catch_warnings():
        # Balance is about whole powers of two; a search ends where its budget does.
        warnings.simplefilter("ignore", UserWarning)
        point = sequence.random(1)[0]
    moved = (point + np.random.default_rng(turn.seed).random(len(paths))) % 1.0
    return lambda name, path, domain: domain.at(float(moved[paths.index(path)]))


def _next_of_grid(space: Space, past: Sequence[Tried]) -> Proposal | None:
    done = {_key(one.drawn) for one in past}
    for choose in _odometer():
        try:
            candidate = space.propose(choose)
        except Conflict as conflict:
            found = Proposal(None, conflict.drawn, str(conflict))
        else:
            found = Proposal(candidate, candidate.drawn)
        if _key(found.drawn) not in done:
            return found
    return None


def _key(drawn: Sequence[Drawn]) -> frozenset[tuple[str, Value]]:
    return frozenset((one.path, one.value) for one in drawn)


def _odometer() -> Iterator[Choose]:
    """Every way through a walk, the last choice turning fastest; the caller must take each before the next."""
    places: list[int] = []
    while True:
        sizes: list[int] = []

        def choose(name: str, path: str, domain: Domain, sizes: list[int] = sizes) -> Value:
            values = list(domain.values())
            at = len(sizes)
            sizes.append(len(values))
            if at == len(places):
                places.append(0)
            return values[places[at]]

        yield choose
        del places[len(sizes) :]
        while places and places[-1] + 1 >= sizes[len(places) - 1]:
            places.pop()
        if not places:
            return
        places[-1] += 1


def _numbers(space: Space) -> dict[str, Range]:
    """The ranges that every candidate draws from, by path."""
    found: dict[str, Range] = {}
    for dimension, path in ((space.dimensions[path], path) for path in space.dimensions):
        if dimension.kind == "choice" or dimension.when:
            continue
        if isinstance(dimension.low, int | float) and isinstance(dimension.high, int | float):
            if dimension.kind == "int" and (dimension.divides or dimension.multiple_of):
                continue
            step = None if dimension.kind == "int" and dimension.step == 1 else dimension.step
            whole = dimension.kind == "int"
            found[path] = Range(dimension.low, dimension.high, log=dimension.log, step=step, whole=whole)
    return found


def _evolved(space: Space, sampler: CmaEs, past: Sequence[Tried], turn: Turn) -> tuple[Choose, int]:
    """The strategy as the past has left it, and its generation."""
    import numpy as np
    from cmaes import CMA

    numbers = _numbers(space)
    count = len(numbers)
    size = 4 + int(3 * math.log(count)) if sampler.population == "auto" else sampler.population
    strategy = CMA(
        mean=np.full(count, 0.5),
        sigma=sampler.sigma,
        bounds=np.tile([0.0, 1.0], (count, 1)),
        seed=turn.seed % 2**31,
        population_size=size,
    )
    worst = max((one.score for one in past if one.score is not None), default=0.0) + 1.0
    generation = 0
    while True:
        ended = [one for one in past if one.generation == generation and not one.running]
        if len(ended) < size:
            break
        strategy.tell([(_point(one, numbers), worst if one.score is None else one.score) for one in ended[:size]])
        generation += 1
    strategy.reseed_rng(int(np.random.default_rng([turn.seed, turn.number, turn.tries]).integers(2**31)))
    point = dict(zip(numbers, strategy.ask(), strict=True))
    rest = _at_random(turn)

    def choose(name: str, path: str, domain: Domain) -> Value:
        return domain.at(float(point[path])) if path in point else rest(name, path, domain)

    return choose, generation


def _point(tried: Tried, numbers: dict[str, Range]) -> Any:
    import numpy as np

    values = {one.path: one.value for one in tried.drawn}
    # What was refused before its last parameter was settled stands in the middle of what is missing.
    units = [numbers[path].unit(values[path]) if path in values else 0.5 for path in numbers]  # type: ignore[arg-type]
    return np.clip(np.array(units), 0.0, 1.0)


def _by_optuna(sampler: Tpe | Gp, past: Sequence[Tried], turn: Turn) -> Choose:
    import numpy as np
    import optuna

    seed = int(np.random.default_rng([turn.seed, turn.number, turn.tries]).integers(2**31))
    with warnings.catch_warnings():
        # What is experimental in Optuna is pinned here by its version and by our tests.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if isinstance(sampler, Tpe):
            chosen: Any = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, constant_liar=True)
        else:
            chosen = optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)
    study = quiet_study(chosen)
    study.add_trials(list(_frozen(past, failures_score=isinstance(sampler, Gp))))
    trial = study.ask()

    def choose(name: str, path: str, domain: Domain) -> Value:
        if isinstance(domain, Options):
            return _original(domain, trial.suggest_categorical(name, list(domain.choices)))
        if domain.whole:
            step = round(domain.step or 1)
            return int(trial.suggest_int(name, round(domain.low), _last(domain), log=domain.log, step=step))
        return float(trial.suggest_float(name, domain.low, _last(domain), log=domain.log, step=domain.step))

    return choose


def quiet_study(sampler: Any = None) -> Any:
    """An Optuna study in memory that says nothing."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=sampler, study_name="search")


def _frozen(past: Sequence[Tried], *, failures_score: bool) -> Iterator[Any]:
    """The past as Optuna's trials.

    To TPE a failed or refused candidate is one that was pruned before its first report, which is worse than all
    others; a Gaussian process only hears of scores, so there they get the worst.
    """
    from optuna.trial import TrialState, create_trial

    worst = max((one.score for one in past if one.score is not None), default=None)
    failures = [one for one in past if one.score is None and not one.running]
    dropped = {id(one) for one in failures[:-_MOST_FAILURES]} if failures_score else set()
    for one in past:
        if id(one) in dropped:
            continue
        parts: dict[str, Any] = {
            "params": {drawn.name: drawn.value for drawn in one.drawn},
            "distributions": {drawn.name: distribution(drawn.domain) for drawn in one.drawn},
        }
        if one.running:
            yield create_trial(state=TrialState.RUNNING, intermediate_values=one.curve, **parts)
        elif one.score is not None and not one.curve:
            yield create_trial(value=one.score, **parts)
        elif failures_score and worst is not None:
            yield create_trial(value=one.score if one.score is not None else worst, **parts)
        else:
            yield create_trial(state=TrialState.PRUNED, intermediate_values=one.curve, **parts)


def distribution(domain: Domain) -> BaseDistribution:
    """Optuna's word for a domain."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Options):
        return CategoricalDistribution(list(domain.choices))
    if domain.whole:
        return IntDistribution(round(domain.low), round(_last(domain)), log=domain.log, step=round(domain.step or 1))
    return FloatDistribution(domain.low, _last(domain), log=domain.log, step=domain.step)


def _last(domain: Range) -> Any:
    """The largest value that a step reaches."""
    if domain.log or domain.step is None or domain.count is None:
        return round(domain.high) if domain.whole else domain.high
    last = domain.low + (domain.count - 1) * domain.step
    return round(last) if domain.whole else last


def _original(domain: Options, value: Any) -> Value:
    # Optuna may hand back an equal value of another type.
    return next(one for one in domain.choices if one == value and isinstance(one, bool) == isinstance(value, bool))
