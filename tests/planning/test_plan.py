"""What a recipe comes to: steps from every kind of budget, memory, micro-batch, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing import config
from farthing.planning import Choice, Counts, Plan, Timing, estimate, make_plan, settle
from farthing.planning.settings import TaskSize, parameters_by_role
from farthing.recipe import Recipe
from farthing.runtime.device import Machine, this_machine

GIB = 2**30
TEXT = Counts(vocab_size=4096, tokens_per_epoch=1_000_000, validation_tokens=100_000)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return replace(this_machine("cpu"), memory_total=64 * GIB, memory_available=48 * GIB)


def plan_of(machine: Machine, *overrides: str, name: str = "default", counts: Counts = TEXT, **changes: Any) -> Plan:
    recipe = config.load(Recipe, name, ["budget.minutes=none", *overrides] if name == "default" else list(overrides))
    settings = settle(recipe, machine, counts)
    timing = Timing(changes.get("seconds_per_step", 1.0), "given", measured=True)
    return make_plan(recipe, machine, counts, Choice(settings), timing, disk_free=changes.get("disk_free", 10**12))


def test_each_kind_of_budget_becomes_steps(machine: Machine) -> None:
    base = plan_of(machine, "budget.steps=100")
    per_step = 16 * 256
    assert base.steps == 100 and base.tokens == 100 * per_step and base.limited_by == "steps"
    assert plan_of(machine, f"budget.tokens={100 * per_step}").steps == 100
    assert plan_of(machine, f"budget.tokens={100 * per_step - 1}").steps == 99
    assert plan_of(machine, f"budget.flops={base.flops}").steps == 100
    epochs = plan_of(machine, "budget.epochs=2")
    assert epochs.tokens == 2_000_000
    assert epochs.last_window == 2 * math.ceil(1_000_000 / 256)
    assert epochs.steps == math.ceil(epochs.last_window / 16)


def test_minutes_and_money_are_turned_into_steps_with_a_margin(machine: Machine) -> None:
    timed = plan_of(machine, "budget.minutes=10", seconds_per_step=2.0)
    assert timed.steps == int(300 * 0.95)
    assert timed.seconds == timed.steps * 2.0
    paid = plan_of(machine, "budget.money=1", "budget.price_per_hour=2", seconds_per_step=2.0)
    assert paid.money is not None and 0.5 < paid.money <= 1.0
    assert paid.limited_by == "money"


def test_tasks_are_counted_as_often_as_they_are_asked(machine: Machine) -> None:
    asked = 'evaluate.tasks=[{task="choices", path="q.jsonl", every=40, limit=100, shots=1}]'
    counts = replace(TEXT, tasks=(TaskSize(items=1000, tokens=50_000.0),))
    plain = plan_of(machine, "budget.steps=100")
    plan = plan_of(machine, "budget.steps=100", asked, counts=counts)
    # A tenth of the questions after 40 and 80 steps, all at the end; an example before each makes it twice as long.
    tokens = 2 * 50_000 * (0.1 + 0.1 + 1)
    more = tokens / (16 * 256) * 1.0 * (2 / 3)
    assert plan.evaluation_seconds == pytest.approx((plain.evaluation_seconds or 0) + more)
    assert plan_of(machine, "budget.steps=100", asked).evaluation_seconds == plain.evaluation_seconds, "unread"


def test_the_first_limit_ends_the_run(machine: Machine) -> None:
    both = plan_of(machine, "budget.steps=100", "budget.epochs=50", "budget.minutes=100")
    assert both.limited_by == "steps"
    assert both.steps == min(both.steps_by_limit.values())


@given(memory=st.floats(0.4, 40), batch=st.integers(1, 300))
def test_the_micro_batch_fits_and_covers_the_batch(memory: float, batch: int) -> None:
    machine = replace(this_machine("cpu"), memory_available=48 * GIB)
    plan = plan_of(machine, "budget.steps=1", f"limits.memory_gb={memory}", f"train.batch_size={batch}")
    settings = plan.settings
    assert settings.micro_batch * settings.accumulation >= batch > settings.micro_batch * (settings.accumulation - 1)
    assert plan.fits == (plan.memory_bytes <= plan.memory_available)
    assert plan.fits or settings.micro_batch == 1


def test_study_a_step_6_is_refused_on_a_12_gb_device(machine: Machine) -> None:
    titles = Counts(vocab_size=16_000, tokens_per_epoch=1_100_000, validation_tokens=121_000)
    refused = plan_of(machine, "limits.memory_gb=12", "train.precision=fp32", name="studies/a6", counts=titles)
    assert not refused.fits
    assert "train.micro_batch=auto" in refused.refusals[0]
    split = plan_of(
        machine,
        "limits.memory_gb=12",
        "train.micro_batch=auto",
        "train.precision=fp32",
        name="studies/a6",
        counts=titles,
    )
    assert split.fits and split.settings.accumulation > 1 and not split.refusals


def test_model_size_limits_are_refused_by_name(machine: Machine) -> None:
    small = plan_of(machine, "budget.steps=1", "limits.min_megabytes=50")
    assert "limits.min_megabytes=50" in small.refusals[0] and small.fits
    large = plan_of(machine, "budget.steps=1", "limits.max_megabytes=5")
    assert "limits.max_megabytes=5" in large.refusals[0]


def test_a_full_disk_is_foreseen(machine: Machine) -> None:
    plan = plan_of(machine, "budget.steps=1", disk_free=10**6)
    assert "disk" in plan.refusals[0] and "0.00 GB free" in plan.refusals[0]


def test_cadences(machine: Machine) -> None:
    auto = plan_of(machine, "budget.epochs=20", "evaluate.every=auto", seconds_per_step=0.1)
    assert auto.evaluate_every == math.ceil(auto.steps / 10)
    slow = plan_of(machine, "budget.epochs=20", "evaluate.every=auto", seconds_per_step=7.0)
    assert slow.evaluate_every == auto.evaluate_every, "what is evaluated must not depend on the clock"
    assert slow.checkpoint_every == round(60 / 7.0)
    end = plan_of(machine, "budget.steps=50", "evaluate.every=end", "checkpoint.every=end")
    assert end.evaluate_every == end.checkpoint_every == 50
    rare = plan_of(machine, "budget.tokens=200000", "evaluate.every=auto")
    assert rare.evaluate_every > rare.steps / 10, "looking may not cost more than a tenth of the run"


def test_a_plan_without_its_text_knows_what_it_can(machine: Machine) -> None:
    unread = Counts(vocab_size=50_257, tokens_per_epoch=None, validation_tokens=None)
    steps = plan_of(machine, "budget.steps=10", counts=unread)
    assert steps.steps == 10 and steps.parameters > 0 and steps.epochs is None
    epochs = plan_of(machine, "budget.epochs=1", counts=unread)
    assert epochs.steps is None and epochs.seconds is None and epochs.memory_bytes > 0


def test_second_passes_cost_what_they_cost(machine: Machine) -> None:
    once = plan_of(machine, "budget.steps=10")
    for twice in ("objective.r_drop=1", "optimizer.sharpness.kind=sam"):
        assert plan_of(machine, "budget.steps=10", twice).flops == 2 * once.flops
    assert plan_of(machine, "budget.steps=10", "objective.r_drop=1").memory_bytes > once.memory_bytes


def test_roles_add_up_to_the_parameters() -> None:
    for name in ("default", "titles-baseline", "studies/b-124m"):
        recipe = config.load(Recipe, name)
        roles = parameters_by_role(recipe.model, 4096)
        from farthing.model.gpt import GPT

        model = GPT(recipe.model, 4096)
        real = dict.fromkeys(roles, 0)
        for parameter_name, role in model.roles().items():
            real[role] += model.get_parameter(parameter_name).numel()
        assert roles == real


def test_an_estimate_says_that_it_is_one(machine: Machine) -> None:
    recipe = config.load(Recipe, "default")
    timing = estimate(recipe, machine, TEXT, settle(recipe, machine, TEXT))
    assert not timing.measured and timing.how.startswith("estimated")
    assert timing.seconds_per_step > 0
