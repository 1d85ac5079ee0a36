"""What is tried is what the recipe leaves open, what the machine has and what fits; what is pinned stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from farthing import config
from farthing.planning import Counts, Settings, settle
from farthing.planning import candidates as planning_candidates
from farthing.planning import settings as settings_module
from farthing.planning.candidates import compiled, coordinates, plain_settings, safer
from farthing.planning.settings import fits, refitted
from farthing.recipe import Recipe
from farthing.runtime import device, hardware
from farthing.runtime.device import Choice, Machine, this_machine

GIB = 2**30
COUNTS = Counts(vocab_size=512, tokens_per_epoch=100_000, validation_tokens=1000)
SMALL = ["model.n_layer=2", "model.d_model=64", "model.n_head=2", "model.context_length=64", "train.batch_size=12"]
PINS = {
    "precision": ["fp32", "bf16"],
    "attention": ["sdpa", "math"],
    "weight_gradient": ["strided", "copied"],
    "micro_batch": [5],
    "threads": [3],
    "compile": ["off"],
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return replace(this_machine("cpu"), memory_total=64 * GIB, memory_available=48 * GIB)


def recipe(*overrides: str) -> Recipe:
    return config.load(Recipe, None, ["budget.steps=10", *SMALL, *overrides])


def every(made: Recipe, machine: Machine) -> set[Settings]:
    """All that a trial may ever come to, whoever wins."""
    start = settle(made, machine, COUNTS)
    found, new = {start}, {start}
    if (plain := plain_settings(made, machine, COUNTS, start)) is not None:
        new.add(plain)
    while new:
        found |= new
        moves = coordinates(made, machine, COUNTS)
        new = {other for best in new for coordinate in moves for other in coordinate(best)} - found
    return found


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in PINS.items() for value in values])
def test_what_is_pinned_is_never_tried_otherwise(machine: Machine, name: str, value: Any) -> None:
    found = every(recipe(f"train.{name}={value}"), machine)
    expected = False if name == "compile" else value
    assert {getattr(one, name) for one in found} == {expected}
    assert compiled(recipe("train.compile=off"), machine, next(iter(found))) is None


def test_all_that_is_open_is_tried(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "logical_cores", lambda: 64)
    monkeypatch.setattr(hardware, "cpu_limit", lambda: None)
    monkeypatch.setattr(planning_candidates, "matmul_rate", lambda precision, kind: 1e9)
    found = every(recipe(), machine)
    assert {(one.precision, one.attention) for one in found} == {
        (precision, attention) for precision in ("fp32", "bf16") for attention in ("sdpa", "math")
    }
    assert {one.micro_batch for one in found} == {12, 6, 3, 2, 1}
    assert {one.weight_gradient for one in found if one.precision == "bf16"} == {"strided", "copied"}
    assert {one.threads for one in found} == {hardware.usable_cores(), 64}
    assert all(one.micro_batch * one.accumulation >= 12 > one.micro_batch * (one.accumulation - 1) for one in found)
    assert not any(one.compile for one in found)


def test_bf16_is_not_tried_where_it_is_emulated_slowly(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning_candidates, "matmul_rate", lambda precision, kind: 1e9 if precision == "bf16" else 9e9)
    monkeypatch.setattr(device, "matmul_rate", lambda precision, kind: 1e9 if precision == "bf16" else 9e9)
    assert {one.precision for one in every(recipe(), machine)} == {"fp32"}


@pytest.mark.parametrize(("limit", "counts"), [(1.5, {1, 2}), (3.0, {3}), (None, {4, 8})])
def test_threads_follow_the_limit_of_a_container(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, limit: float | None, counts: set[int]
) -> None:
    monkeypatch.setattr(hardware, "physical_cores", lambda: 4)
    monkeypatch.setattr(hardware, "logical_cores", lambda: 8)
    monkeypatch.setattr(hardware, "cpu_limit", lambda: limit)
    assert {one.threads for one in every(recipe(), machine)} == counts


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"])
def test_threads_that_the_environment_settles_are_left_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setattr(hardware, "logical_cores", lambda: 64)
    monkeypatch.setenv(variable, "2")
    assert len({one.threads for one in every(recipe(), machine)}) == 1


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_gpu_is_tried_in_micro_batches_and_with_cuda_graphs_only(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, kind: device.DeviceKind
) -> None:
    gpu = replace(machine, device=kind, bf16=True)
    monkeypatch.setattr(settings_module, "memory_now", lambda kind: 0)
    start = Settings(kind, 2, "fp32", "sdpa", False, 12, 1, {})
    moves = [list(coordinate(start)) for coordinate in coordinates(recipe(), gpu, COUNTS)]
    graphs = [[replace(start, cuda_graphs=True)]] if kind == "cuda" else []
    assert moves == [*graphs, [replace(start, micro_batch=6, accumulation=2)]]


@pytest.mark.parametrize("pin", ["precision=bf16", "precision=fp16", "attention=math"])
def test_a_recipe_can_rule_plain_fp32_out(machine: Machine, pin: str) -> None:
    start = Settings("cpu", 1, "bf16", "math", False, 12, 1, {})
    assert plain_settings(recipe(f"train.{pin}"), machine, COUNTS, start) is None
    plain = plain_settings(recipe(), machine, COUNTS, replace(start, weight_gradient="copied"))
    assert plain == Settings("cpu", 1, "fp32", "sdpa", False, 12, 1, {})


def test_only_what_fits_is_tried(machine: Machine) -> None:
    made = recipe("model.context_length=1024", "train.batch_size=32", "limits.memory_gb=0.75")
    start = settle(made, machine, COUNTS)
    assert start.micro_batch < 32
    assert all(fits(made, machine, COUNTS, one) for one in every(made, machine))
    plain = plain_settings(made, machine, COUNTS, replace(start, precision="bf16"))
    assert plain is not None and fits(made, machine, COUNTS, plain)
    # fp32 takes more memory than bf16: its micro-batch may have to be a smaller one.
    whole = replace(start, micro_batch=32, accumulation=1)
    assert plain_settings(made, machine, COUNTS, whole) == refitted(made, machine, COUNTS, plain)


def test_compiling_is_left_out_where_it_does_not_work(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    best = Settings("cpu", 1, "bf16", "math", False, 12, 1, {})
    for works in (True, False):
        monkeypatch.setattr(planning_candidates, "choose_compile", lambda *_, works=works, **__: Choice(works, "tried"))
        assert compiled(recipe(), machine, best) == (replace(best, compile=True) if works else None)


def test_what_is_safer_ends_with_plain_fp32() -> None:
    for settings in (
        Settings("cpu", 2, "bf16", "math", True, 4, 3, {}, "copied"),
        Settings("cpu", 2, "fp16", "sdpa", False, 4, 3, {}),
        Settings("cuda", 2, "bf16", "sdpa", True, 4, 3, {}),
    ):
        *others, last = safer(settings)
        assert (last.precision, last.attention, last.compile) == ("fp32", "sdpa", False)
        assert settings not in [*others, last]
