"""Timing a few real steps: it finds a micro-batch that fits, leaves no trace in the random numbers, and ends in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from farthing import assemble
from farthing.errors import ResourceError
from farthing.runtime.device import this_machine
from farthing.storage import cache_folder
from farthing.training import calibrate
from farthing.training.step import Stepper
from training.story import recipe


@pytest.fixture
def parts(story: Path) -> tuple[Stepper, Any]:
    made = recipe(["train.batch_size=12", "train.micro_batch=12"])
    text = assemble.read_text(made, directory=story, cache=cache_folder(), report=lambda stage, done, total: None)
    plan = assemble.plan_run(made, this_machine("cpu"), text, disk_free=10**12, measure=False)
    built = assemble.build_stepper(made, plan.settings, text.tokenizer.vocab_size, torch.device("cpu"))
    return built, assemble.build_batches(made, text.train)


def test_it_takes_at_least_three_steps_and_leaves_random_numbers_alone(parts: tuple[Stepper, Any]) -> None:
    stepper, batches = parts
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    measured = calibrate.measure(stepper, batches, seconds=0.0)
    assert torch.equal(torch.rand(3), expected)
    assert measured.samples == calibrate.LEAST_STEPS
    assert measured.seconds_per_step > 0


def test_where_micro_batches_are_many_a_step_is_their_sum(
    parts: tuple[Stepper, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper, batches = parts
    stepper.micro_batch = 3
    now = [0.0]
    windows: list[int] = []
    take, accumulate, update = stepper.take, stepper.accumulate, stepper.optimizer.step

    def taken(batch: Any) -> Any:
        windows.append(batch.windows)
        return take(batch)

    def accumulated(batch: Any) -> Any:
        now[0] += batch.windows  # a second a window
        return accumulate(batch)

    def updated(*arguments: Any) -> None:
        now[0] += 0.25
        update(*arguments)

    monkeypatch.setattr(stepper, "take", taken)
    monkeypatch.setattr(stepper, "accumulate", accumulated)
    monkeypatch.setattr(stepper.optimizer, "step", updated)
    monkeypatch.setattr(calibrate.time, "monotonic", lambda: now[0])
    measured = calibrate.measure(stepper, batches, seconds=20.0)
    assert measured.seconds_per_step == 12.25, "one update a step, not one for each micro-batch"
    assert set(windows) == {3, 1}, "a whole step would have taken too long"
    windows.clear()
    measured = calibrate.measure(stepper, batches, seconds=120.0)
    assert measured.seconds_per_step == 12.25
    assert windows[0] == 3 and set(windows[1:]) == {12}
    assert measured.samples == 10


def test_it_finds_a_micro_batch_that_fits(parts: tuple[Stepper, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stepper, batches = parts
    genuine = Stepper._loss

    def loss(self: Stepper, inputs_BT: torch.Tensor, *rest: Any) -> Any:
        if len(inputs_BT) > 3:
            raise MemoryError("full")
        return genuine(self, inputs_BT, *rest)

    monkeypatch.setattr(Stepper, "_loss", loss)
    calibrate.measure(stepper, batches, seconds=0.0)
    assert stepper.micro_batch == 3


def test_F12_where_nothing_fits_it_says_so(parts: tuple[Stepper, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(self: Stepper, *rest: Any) -> Any:
        raise MemoryError("full")

    monkeypatch.setattr(Stepper, "_loss", loss)
    with pytest.raises(ResourceError, match="out of memory before the first step") as caught:
        calibrate.measure(*parts, seconds=0.0)
    assert caught.value.exit_code == 6
