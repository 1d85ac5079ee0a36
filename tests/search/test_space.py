"""Whatever is drawn makes a recipe that keeps every condition, and is read back from it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing import config
from farthing.recipe import Recipe
from farthing.search.asked import Choice, Value
from farthing.search.space import Candidate, Conflict, Domain, Options, Range, Space
from search.small import asked, space_of

SPACE = """
"model.d_model" = { kind = "int", low = 8, high = 64, step = 8 }
"model.n_head" = { kind = "choice", choices = [1, 2, 3, 4, 6], divides = "model.d_model" }
"model.context_length" = { kind = "choice", choices = [8, 16, 32] }
"evaluate.stride" = { kind = "int", low = 1, high = { of = "model.context_length" } }
"optimizer.kind" = { kind = "choice", choices = ["adamw", "sgd"] }
"optimizer.lr" = { kind = "float", low = 1e-4, high = 1e-1, log = true }
optimizer.momentum = { kind = "float", low = 0.0, high = 0.9, when = { "optimizer.kind" = "sgd" } }
"model.dropout" = { kind = "float", low = 0.0, high = 0.5, step = 0.1 }
"model.tie_embeddings" = { kind = "choice", choices = [true, false] }
[tied]
"train.batch_size" = { of = "model.context_length", times = 128, inverse = true }
"optimizer.weight_decay" = { of = "optimizer.lr", times = 0.1 }
"""


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Space:
    return space_of(tmp_path_factory.mktemp("space"), SPACE)


def drawn(space: Space, units: list[float]) -> Candidate:
    places = iter(units)
    return space.propose(lambda name, path, domain: domain.at(next(places)))


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=9, max_size=9))
def test_every_candidate_keeps_the_conditions(space: Space, units: list[float]) -> None:
    made = drawn(space, units)
    flat = config.flatten(made.recipe)
    parameters = made.parameters
    assert flat["model.d_model"] % flat["model.n_head"] == 0
    assert 1 <= flat["evaluate.stride"] <= flat["model.context_length"]
    assert flat["train.batch_size"] * flat["model.context_length"] == 128
    assert flat["optimizer.weight_decay"] == pytest.approx(0.1 * parameters["optimizer.lr"])
    assert ("optimizer.momentum" in parameters) == (parameters["optimizer.kind"] == "sgd")
    assert round(flat["model.dropout"] * 10, 9).is_integer()
    assert all(flat[path] == value for path, value in made.settings.items())


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=9, max_size=9))
def test_a_candidate_fits_in_its_own_space(space: Space, units: list[float]) -> None:
    made = drawn(space, units)
    assert space.fits(config.to_table(made.recipe)) == made.drawn


numbers = st.one_of(
    st.builds(
        lambda low, width, log: Range(low, low + width, log=log),
        st.floats(1e-6, 1e3), st.floats(0, 1e3), st.booleans(),
    ),
    st.builds(
        lambda low, count, step: Range(low, low + count * step, step=step, whole=True),
        st.integers(-50, 50), st.integers(0, 20), st.integers(1, 9),
    ),
    st.builds(lambda low, width: Range(low, low + width, log=True, whole=True), st.integers(1, 50), st.integers(0, 90)),
)  # fmt: skip


@given(numbers, st.floats(0, 1))
def test_a_drawn_number_lies_in_its_range_and_its_place_gives_it_back(domain: Range, unit: float) -> None:
    value = domain.at(unit)
    assert domain.holds(value)
    assert domain.at(domain.unit(value)) == pytest.approx(value, rel=1e-9)
    assert domain.holds(domain.at(0.0)) and domain.holds(domain.at(1.0))


def test_whole_numbers_on_a_logarithmic_scale_each_own_the_half_unit_around_them() -> None:
    values = [Range(1, 4, log=True, whole=True).at((index + 0.5) / 10_000) for index in range(10_000)]
    for number in (1, 2, 3, 4):
        share = math.log((number + 0.5) / (number - 0.5)) / math.log(4.5 / 0.5)
        assert values.count(number) == pytest.approx(10_000 * share, abs=2)


@pytest.mark.parametrize("value", ["16", 16.5, True, None, 12, 200])
def test_what_a_range_does_not_hold(value: object) -> None:
    assert not Range(16, 64, step=8, whole=True).holds(value)


def test_true_is_no_one() -> None:
    assert Options((1, 2)).holds(1) and Options((1, 2)).holds(1.0) and not Options((1, 2)).holds(True)
    assert not Options((True, False)).holds(0)


def test_an_old_trial_fits_while_the_space_could_have_proposed_it(tmp_path: Path) -> None:
    lr = '"optimizer.lr" = { kind = "float", low = 1e-4, high = 1e-1, log = true }'
    old = space_of(tmp_path, lr)
    table = config.to_table(old.propose(lambda name, path, domain: 0.01).recipe)
    assert old.fits(table)
    # A wider range, and one more parameter that the old trial had at the base's value.
    wider = space_of(
        tmp_path, lr.replace("1e-1", "1.0") + '\n"model.dropout" = { kind = "float", low = 0.0, high = 0.5 }'
    )
    places = wider.fits(table)
    assert places is not None and {one.path: one.value for one in places} == {
        "optimizer.lr": 0.01,
        "model.dropout": 0.0,
    }
    for other in (
        lr.replace("1e-1", "1e-3"),
        lr + '\n"model.dropout" = { kind = "float", low = 0.1, high = 0.5 }',
        lr + '\n[tied]\n"optimizer.weight_decay" = { of = "optimizer.lr" }',
        '"model.dropout" = { kind = "float", low = 0.0, high = 0.5 }',
    ):
        assert space_of(tmp_path, other).fits(table) is None
    assert space_of(tmp_path, lr, more="changes.train.batch_size = 8").fits(table) is None


def test_a_contradiction_says_what_contradicts(tmp_path: Path) -> None:
    widths, heads = Choice(choices=[16, 25]), Choice(choices=[2, 4], divides="model.d_model")
    base = asked(tmp_path).space.base
    space = Space(Recipe, base, {"model.n_head": heads, "model.d_model": widths}, {})
    with pytest.raises(Conflict, match=r"none of 2, 4 divides model\.d_model=25") as caught:
        space.propose(_last)
    assert [one.value for one in caught.value.drawn] == [25]
    assert space.place({"model.d_model": 25}) == caught.value.drawn


def _last(name: str, path: str, domain: Domain) -> Value:
    return domain.at(0.99)
