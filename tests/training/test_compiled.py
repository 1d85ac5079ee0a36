"""Compiling happens before the clock starts, for the shapes of whole steps, and is given up where it fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from farthing import assemble
from farthing.data.batches import Batches
from farthing.events import Event, Notice
from farthing.planning import Settings
from farthing.runtime.seed import random_states
from farthing.storage import cache_folder
from farthing.training.compiled import warm_up
from farthing.training.step import Stepper
from training.story import events, last_checkpoint, new_run, notices, recipe, tensors_of

COMPILED = Settings("cpu", 1, "fp32", "sdpa", True, 4, 2, {})


class Compiler:
    """Stands in for torch.compile: the plain function, times a factor, and a note of every call."""

    def __init__(self, factor: float = 1.0, error: str = "") -> None:
        self.factor, self.error = factor, error
        self.rows: list[int] = []

    def __call__(self, function: Callable[..., Any], **more: Any) -> Callable[..., Any]:
        def call(tokens_BT: torch.Tensor, segments_BT: torch.Tensor | None = None) -> Any:
            self.rows.append(len(tokens_BT))
            if self.error:
                raise RuntimeError(self.error)
            return function(tokens_BT, segments_BT) * self.factor

        return call


def parts(story: Path, monkeypatch: pytest.MonkeyPatch, compiler: Compiler, *overrides: str) -> tuple[Stepper, Batches]:
    monkeypatch.setattr(torch, "compile", compiler)
    made = recipe(list(overrides))
    text = assemble.read_text(made, directory=story, cache=cache_folder(), report=lambda stage, done, total: None)
    settings = replace(COMPILED, precision="bf16") if "train.precision=bf16" in overrides else COMPILED
    built = assemble.build_stepper(made, settings, text.tokenizer.vocab_size, torch.device("cpu"))
    return built, assemble.build_batches(made, text.train)


@pytest.mark.parametrize("words", [["model.dropout=0"], ["model.dropout=0.2"], ["train.precision=bf16"]])
def test_every_shape_of_a_step_is_compiled_and_nothing_else_happens(
    story: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    compiler = Compiler()
    stepper, batches = parts(story, monkeypatch, compiler, *words)
    before = {name: value.clone() for name, value in stepper.model.state_dict().items()}
    states, told = random_states(), list[Event]()
    assert warm_up(stepper, batches.batch(0), told.append) > 0
    assert sorted(compiler.rows) == [2, 4], "a batch of 6 in pieces of 4"
    assert not told and random_states() == states
    assert all(torch.equal(value, before[name]) for name, value in stepper.model.state_dict().items())
    assert all(parameter.grad is None for parameter in stepper.model.parameters())
    assert not stepper.optimizer.state()[0]
    compiler.rows.clear()
    stepper.take(batches.batch(0))
    assert compiler.rows == [4, 2]
    stepper.take(batches.batch(0).rows(0, 3))
    assert compiler.rows == [4, 2], "the few windows of a last step are not worth a compilation"


@pytest.mark.parametrize(
    ("compiler", "code", "told"),
    [
        (
            Compiler(error="no C++ compiler found\nlong story"),
            "compile_fallback",
            r"failed \(no C\+\+ compiler found\)",
        ),
        (Compiler(factor=1.3), "parity_fallback", "loss off by"),
        (Compiler(factor=float("nan")), "parity_fallback", "loss off by nan"),
    ],
)
def test_without_it_training_goes_on(
    story: Path, monkeypatch: pytest.MonkeyPatch, compiler: Compiler, code: str, told: str
) -> None:
    stepper, batches = parts(story, monkeypatch, compiler, "model.dropout=0")
    found: list[Any] = []
    warm_up(stepper, batches.batch(0), found.append)
    [notice] = found
    assert isinstance(notice, Notice) and notice.code == code
    assert "going on without it" in notice.message and "\n" not in notice.message

    assert re.search(told, notice.message)
    compiler.rows.clear()
    stepper.take(batches.batch(0))
    assert not compiler.rows


def test_memory_that_runs_out_is_left_to_the_loop(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(error="DefaultCPUAllocator: can't allocate memory")
    stepper, batches = parts(story, monkeypatch, compiler)
    told: list[Event] = []
    warm_up(stepper, batches.batch(0), told.append)
    assert not told and stepper.hidden != stepper.model.hidden


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_run_compiles_before_its_first_step_and_tells_how_long_that_took(
    story: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    plain = new_run(story / "runs" / "plain", recipe(["model.dropout=0"]))
    compiler = Compiler(factor=factor)
    monkeypatch.setattr(torch, "compile", compiler)
    # Whether the machine has a compiler is of no interest here.
    genuine = assemble.plan_run

    def plan_run(*args: Any, **more: Any) -> Any:
        plan = genuine(*args, **{**more, "measure": False})
        return replace(plan, settings=replace(plan.settings, compile=True))

    monkeypatch.setattr(assemble, "plan_run", plan_run)
    run = new_run(story / "runs" / "compiled", recipe(["model.dropout=0"]))
    [ready] = events(run, "ready")
    assert 0 < ready["compile"] <= ready["seconds"]
    assert events(plain, "ready")[0]["compile"] < ready["compile"]
    assert notices(run) == ([] if factor == 1.0 else ["parity_fallback"])
    assert tensors_of(last_checkpoint(run)) == tensors_of(last_checkpoint(plain)), "the same training either way"


@pytest.mark.slow
def test_the_real_compiler_computes_the_same_and_compiles_once(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(["train.batch_size=8", "model.dropout=0"])
    text = assemble.read_text(made, directory=story, cache=cache_folder(), report=lambda stage, done, total: None)
    batches = assemble.build_batches(made, text.train)
    losses = []
    for settings in (COMPILED, replace(COMPILED, compile=False)):
        stepper = assemble.build_stepper(made, settings, text.tokenizer.vocab_size, torch.device("cpu"))
        if settings.compile:
            told: list[Any] = []
            warm_up(stepper, batches.batch(0), told.append)
            if told:
                pytest.skip(told[0].message)
            with torch.compiler.set_stance("fail_on_recompile"):
                losses.append([stepper.take(batches.batch(number)).loss for number in range(3)])
        else:
            losses.append([stepper.take(batches.batch(number)).loss for number in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
