"""Samplers: the same history gives the same candidate, and what is learnt moves them to where it is better."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from farthing.errors import UserError
from farthing.search.asked import AnySampler, CmaEs, Gp, Grid, QuasiRandom, Random, Tpe
from farthing.search.sampling import Tried, Turn, check_sampler, propose
from farthing.search.space import Drawn, Space
from search.small import space_of

SPACE = """
"optimizer.lr" = { kind = "float", low = 1e-4, high = 1.0, log = true }
"model.dropout" = { kind = "float", low = 0.0, high = 0.5 }
"model.n_layer" = { kind = "int", low = 1, high = 8 }
"model.d_model" = { kind = "choice", choices = [16, 24, 32] }
"model.n_head" = { kind = "choice", choices = [1, 2, 3, 4], divides = "model.d_model" }
"optimizer.kind" = { kind = "choice", choices = ["adamw", "sgd"] }
"optimizer.momentum" = { kind = "float", low = 0.0, high = 0.9, when = { "optimizer.kind" = "sgd" } }
"""
EVERY: list[AnySampler] = [
    Random(), QuasiRandom(), Tpe(startup_trials=4), CmaEs(population=4), Gp(startup_trials=4),
]  # fmt: skip
IDS = [one.kind for one in EVERY]


@pytest.fixture
def space(tmp_path: Path) -> Space:
    return space_of(tmp_path, SPACE)


def valley(drawn: list[Drawn]) -> float:
    """Lowest at lr 0.01 and dropout 0.1."""
    values = {one.path: one.value for one in drawn}
    lr, dropout = float(values["optimizer.lr"]), float(values["model.dropout"])
    return (math.log10(lr) + 2) ** 2 + 20 * (dropout - 0.1) ** 2


def story(space: Space, sampler: AnySampler, count: int, *, seed: int = 3) -> list[Tried]:
    """A search of so many trials in the valley, the third of every eight failing and the fourth pruned."""
    past: list[Tried] = []
    for number in range(count):
        made = propose(space, sampler, past, Turn(seed, number))
        assert made is not None
        score: float | None = valley(made.drawn)
        curve: dict[int, float] = {}
        if number % 8 == 2:
            score = None
        elif number % 8 == 3:
            assert score is not None
            curve = {10: score + 1, 20: score + 0.5}
        past.append(Tried(made.drawn, score, curve, generation=made.generation))
    return past


@pytest.mark.parametrize("sampler", EVERY, ids=IDS)
def test_the_same_history_gives_the_same_candidate(space: Space, sampler: AnySampler) -> None:
    past = story(space, sampler, 9)
    assert story(space, sampler, 9) == past
    again, other = (propose(space, sampler, past, Turn(seed, 9)) for seed in (3, 4))
    assert again == propose(space, sampler, past, Turn(3, 9))
    assert again is not None and other is not None and again.drawn != other.drawn
    assert again != propose(space, sampler, past, Turn(3, 9, tries=1)), "a refused candidate must not come again"


@pytest.mark.parametrize("sampler", EVERY, ids=IDS)
def test_trials_that_run_or_have_failed_are_no_trouble(space: Space, sampler: AnySampler) -> None:
    past = [*story(space, sampler, 12)]
    past += [Tried(one.drawn, None, {10: 3.0}, running=True, generation=one.generation) for one in past[-2:]]
    past += [Tried(past[0].drawn[:2], None, {}, generation=past[-1].generation)]
    made = propose(space, sampler, past, Turn(3, 20))
    assert made is not None and made.candidate is not None


@pytest.mark.parametrize("sampler", [Tpe(startup_trials=8), CmaEs(population=6), Gp(startup_trials=8)], ids=str)
def test_learning_samplers_go_where_it_is_better(tmp_path: Path, sampler: AnySampler) -> None:
    lines = SPACE.strip().splitlines()[:2]
    space = space_of(tmp_path, "\n".join(lines))

    def late(sampler: AnySampler) -> float:
        scores = sorted(one.score for one in story(space, sampler, 40)[-16:] if one.score is not None)
        return scores[len(scores) // 2]

    assert late(sampler) < 0.75 * late(Random())


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        """
"model.d_model" = { kind = "choice", choices = [16, 24] }
"model.n_head" = { kind = "choice", choices = [2, 3, 4], divides = "model.d_model" }
"optimizer.kind" = { kind = "choice", choices = ["adamw", "sgd"] }
"optimizer.momentum" = { kind = "float", low = 0.0, high = 0.5, step = 0.5, when = { "optimizer.kind" = "sgd" } }
""",
    )
    past: list[Tried] = []
    while (made := propose(space, Grid(), past, Turn(0, len(past)))) is not None:
        past.append(Tried(made.drawn, 1.0, {}))
    found = [{one.path: one.value for one in tried.drawn} for tried in past]
    assert len(found) == (2 + 3) * (1 + 2)
    assert len({frozenset(one.items()) for one in found}) == len(found)


def test_quasi_random_points_fill_a_range_more_evenly_than_chance(tmp_path: Path) -> None:
    space = space_of(tmp_path, '"model.dropout" = { kind = "float", low = 0.0, high = 0.5 }')

    def widest_gap(sampler: AnySampler) -> float:
        made = [propose(space, sampler, [], Turn(1, number)) for number in range(32)]
        values = sorted(float(one.drawn[0].value) for one in made if one is not None)
        return max(later - earlier for earlier, later in itertools.pairwise(values))

    assert widest_gap(QuasiRandom()) < 0.5 / 16 < widest_gap(Random())


def test_samplers_that_cannot_work_here(tmp_path: Path, space: Space) -> None:
    with pytest.raises(UserError, match=r'space\."optimizer\.lr": sampler\.kind=grid needs a step'):
        check_sampler(space, Grid())
    one = space_of(tmp_path, '"model.dropout" = { kind = "float", low = 0.0, high = 0.5 }')
    with pytest.raises(UserError, match="two or more numbers"):
        check_sampler(one, CmaEs())
