"""The bench takes real steps in turn with shared weights, works out whole steps from parts, and tells what fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from farthing import assemble
from farthing.data.batches import Batch, Batches
from farthing.planning import Settings
from farthing.storage import cache_folder
from farthing.training import bench as benches
from farthing.training import parity
from farthing.training.bench import Bench
from farthing.training.step import OutOfMemory, Stepper
from training.story import recipe

START = Settings("cpu", 1, "fp32", "sdpa", False, 12, 1, {})
OTHER = replace(START, attention="math")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bench(story: Path, clock: Clock) -> Iterator[Bench[Settings]]:
    made = recipe(["train.batch_size=12", "model.dropout=0"])
    text = assemble.read_text(made, directory=story, cache=cache_folder(), report=lambda stage, done, total: None)

    def build(settings: Settings, like: Stepper | None) -> Stepper:
        return assemble.build_stepper(made, settings, text.tokenizer.vocab_size, torch.device("cpu"), like=like)

    with Bench(build, assemble.build_batches(made, text.train), clock=clock) as built:
        yield built


def paced(monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds: dict[str, float], update: float = 0.0) -> list[Any]:
    """A window takes so many seconds, by attention path, and each update so many more; returns what is taken."""
    taken: list[tuple[str, int]] = []
    accumulate, take = Stepper.accumulate, Stepper.take

    def accumulated(self: Stepper, batch: Batch) -> Any:
        clock.now += seconds[self.model.blocks[0].attention.path] * batch.windows  # type: ignore[union-attr, index]
        return accumulate(self, batch)

    def took(self: Stepper, batch: Batch) -> Any:
        taken.append((self.model.blocks[0].attention.path, batch.windows))  # type: ignore[union-attr, arg-type]
        clock.now += update
        return take(self, batch)

    monkeypatch.setattr(Stepper, "accumulate", accumulated)
    monkeypatch.setattr(Stepper, "take", took)
    return taken


def test_whole_steps_are_taken_where_there_is_time(
    bench: Bench[Settings], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = paced(monkeypatch, clock, {"sdpa": 0.01, "math": 0.011}, update=0.5)
    assert bench.step_seconds(START, guess=0.1) == pytest.approx(12 * 0.01 + 0.5)
    bench.allow(0.62, 1000.0)
    taken.clear()
    race = bench.race(START, OTHER, seconds=100.0)
    assert race.incumbent == pytest.approx([12 * 0.01 + 0.5] * benches.MOST_ROUNDS)
    assert race.challenger == pytest.approx([12 * 0.011 + 0.5] * benches.MOST_ROUNDS)
    assert taken[2:] == [("sdpa", 12), ("math", 12)] * benches.MOST_ROUNDS, "in turn"


def test_long_steps_are_worked_out_from_some_of_their_windows(
    bench: Bench[Settings], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = paced(monkeypatch, clock, {"sdpa": 1.0, "math": 1.1}, update=3.0)
    assert bench.step_seconds(START, guess=6.0) == pytest.approx(12 * 1.0 + 3.0)
    assert max(windows for _, windows in taken) == 2
    bench.allow(15.0, 15.0 * benches.ROUNDS_IN_TRIAL / 3)
    race = bench.race(START, OTHER, seconds=0.0)
    assert taken[-1] == ("math", 4), "a third of the step's windows"
    assert race.incumbent == pytest.approx([15.0] * benches.LEAST_ROUNDS)
    assert race.challenger == pytest.approx([12 * 1.1 + 3.0] * benches.LEAST_ROUNDS)


def test_a_clear_loser_is_not_timed_for_long(
    bench: Bench[Settings], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    paced(monkeypatch, clock, {"sdpa": 1.0, "math": 2.0})
    bench.step_seconds(START, guess=0.1)
    assert len(bench.race(START, OTHER, seconds=1000.0).challenger) == benches.LEAST_ROUNDS


def test_out_of_memory_is_told(bench: Bench[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = Stepper.take

    def take(self: Stepper, batch: Batch) -> Any:
        if self.precision.name == "bf16":
            raise OutOfMemory("full")
        return genuine(self, batch)

    monkeypatch.setattr(Stepper, "take", take)
    low = replace(START, precision="bf16")
    bench.step_seconds(START, guess=0.1)
    race = bench.race(START, low, seconds=0.0)
    assert race.failure == "does not fit in memory" and not race.challenger
    assert bench.step_seconds(low, guess=0.1) is None


def test_weights_are_shared_and_never_moved(bench: Bench[Settings]) -> None:
    first = bench.stepper(START)
    before = {name: value.clone() for name, value in first.model.state_dict().items()}
    bench.step_seconds(START, guess=0.1)
    bench.race(START, replace(START, precision="bf16", micro_batch=6, accumulation=2), seconds=0.0)
    bench.race(START, OTHER, seconds=0.0)
    assert bench.compare(OTHER, START).holds
    assert all(torch.equal(value, before[name]) for name, value in first.model.state_dict().items())
    assert [id(one) for one in bench.stepper(OTHER).model.parameters()] == [id(one) for one in first.model.parameters()]


def test_random_numbers_are_as_before(story: Path) -> None:
    made = recipe()
    text = assemble.read_text(made, directory=story, cache=cache_folder(), report=lambda stage, done, total: None)

    def build(settings: Settings, like: Stepper | None) -> Stepper:
        return assemble.build_stepper(made, settings, text.tokenizer.vocab_size, torch.device("cpu"), like=like)

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with Bench(build, assemble.build_batches(made, text.train)) as built:
        built.step_seconds(START, guess=0.1)
        built.race(START, OTHER, seconds=0.0)
    assert torch.equal(torch.rand(3), expected)


def test_threads_are_those_of_who_takes_the_step(bench: Bench[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    genuine = Stepper.take

    def take(self: Stepper, batch: Batch) -> Any:
        seen.append(torch.get_num_threads())
        return genuine(self, batch)

    monkeypatch.setattr(Stepper, "take", take)
    bench.step_seconds(START, guess=0.1)
    seen.clear()
    bench.race(START, replace(START, threads=2), seconds=0.0)
    assert seen[:2] == [2, 1] and set(zip(seen[2::2], seen[3::2], strict=True)) == {(1, 2)}


@pytest.mark.parametrize("works", [True, False])
def test_what_is_compiled_is_checked_and_its_compiling_timed(
    bench: Bench[Settings], clock: Clock, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    def compiler(function: Any, **more: Any) -> Any:
        ready: set[int] = set()

        def call(tokens_BT: torch.Tensor, segments_BT: torch.Tensor | None = None) -> Any:
            if len(tokens_BT) not in ready:
                clock.now += 40.0
                ready.add(len(tokens_BT))
            return function(tokens_BT, segments_BT) * (1.0 if works else 1.5)

        return call

    monkeypatch.setattr(torch, "compile", compiler)
    paced(monkeypatch, clock, {"sdpa": 0.1, "math": 0.1})
    bench.step_seconds(START, guess=0.1)
    race = bench.race(START, replace(START, compile=True), seconds=0.0)
    if works:
        assert race.compile_seconds == pytest.approx(40.0)
        assert race.challenger == pytest.approx([1.2] * benches.LEAST_ROUNDS)
    else:
        assert race.failure.startswith("compiled, it does not compute the same: loss off by")


def test_a_compiler_that_fails_is_told(bench: Bench[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler(function: Any, **more: Any) -> Any:
        def call(*arguments: Any) -> Any:
            raise AssertionError("no C++ compiler\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", compiler)
    bench.step_seconds(START, guess=0.1)
    race = bench.race(START, replace(START, compile=True), seconds=0.0)
    assert race.failure == "torch.compile failed: no C++ compiler"


def test_what_torch_cannot_do_is_told_and_a_mistake_of_ours_is_not_hidden(
    bench: Bench[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.step_seconds(START, guess=0.1)
    error: Exception = RuntimeError('"addmm" not implemented\nand so on')

    def take(self: Stepper, batch: Batch) -> Any:
        raise error

    monkeypatch.setattr(Stepper, "take", take)
    assert bench.race(START, OTHER, seconds=0.0).failure == 'does not work here: "addmm" not implemented'
    error = AssertionError("ours")
    with pytest.raises(AssertionError, match="ours"):
        bench.race(START, OTHER, seconds=0.0)


def test_batches_are_real(bench: Bench[Settings]) -> None:
    assert isinstance(bench._batches, Batches)
    few = parity.few_tokens(bench._batches.batch(0))
    assert few.windows == 12
