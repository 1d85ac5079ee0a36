"""What a run does about a batch that poisons it, by policy: each way is deterministic and survives a stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from farthing import assemble, errors
from farthing.data.batches import Batch, Batches
from farthing.optim.schedules import factor
from farthing.rundir import RunDir
from farthing.storage import cache_folder
from farthing.training.guard import MOST_PASSED_OVER, SPIKE_FEWEST
from farthing.training.step import Stepper
from training.story import events, final_state, new_run, notices, recipe, resume, signal_at

SKIP = ["train.on_divergence=skip", "checkpoint.every=3", "evaluate.every=end"]
SPIKES = ["budget.steps=44", "train.spike_zscore=8", "evaluate.every=end", "checkpoint.every=5"]
Bad = Callable[[Batch], bool]


@pytest.fixture(autouse=True)
def _no_probing(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = assemble.plan_run

    def plan_run(*arguments: Any, **more: Any) -> Any:
        # The trial's steps would meet the poison first.
        return genuine(*arguments, **{**more, "measure": False})

    monkeypatch.setattr(assemble, "plan_run", plan_run)


def batch_of(made: Any, index: int) -> Bad:
    text = assemble.read_text(made, directory=Path.cwd(), cache=cache_folder(), report=lambda stage, done, total: None)
    wanted = assemble.build_batches(made, text.train).batch(index).inputs_BT
    return lambda batch: batch.inputs_BT.shape == wanted.shape and bool((batch.inputs_BT == wanted).all())


def documents_of(made: Any, index: int) -> list[int]:
    text = assemble.read_text(made, directory=Path.cwd(), cache=cache_folder(), report=lambda stage, done, total: None)
    batches: Batches = assemble.build_batches(made, text.train)
    return [int(one) for one in batches.documents(index)[:20]]


def scaled(monkeypatch: pytest.MonkeyPatch, bad: Bad, loss: float = 1.0, gradient: float = 1.0) -> None:
    """Multiply the loss that is told, or the gradients, of some batches."""
    genuine = Stepper.accumulate

    def accumulate(self: Stepper, batch: Batch) -> torch.Tensor:
        nats = genuine(self, batch)
        if not bad(batch):
            return nats
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad *= gradient
        return nats * loss

    monkeypatch.setattr(Stepper, "accumulate", accumulate)


@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 1.0), (1.0, math.inf)])
def test_F30_skip_leaves_out_the_update_and_goes_on(
    loss: float, gradient: float, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(SKIP)
    scaled(monkeypatch, batch_of(made, 4), loss, gradient)
    run = new_run(story / "runs" / "skips", made)
    [told] = [event for event in events(run, "notice") if event["code"] == "skipped_step"]
    assert told["details"]["documents"] == documents_of(made, 4)
    assert "at step 5" in told["message"]
    assert [event["step"] for event in events(run, "step")] == list(range(1, 11))
    if loss != 1.0:
        assert events(run, "step")[4]["loss"] is None, "what is not finite is shown as such"


def test_F30_a_skipped_step_is_the_same_after_a_stop(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(SKIP)
    scaled(monkeypatch, batch_of(made, 4), math.nan)
    whole = final_state(new_run(story / "runs" / "whole", made))
    run = RunDir(story / "runs" / "cut")
    with pytest.raises(errors.Preempted):
        new_run(run.path, made, signal_at(5))
    resume(run)
    assert final_state(run) == whole


def test_F28_skipping_for_ever_is_divergence(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe([*SKIP, "budget.steps=60"])
    scaled(monkeypatch, lambda batch: True, math.nan)
    run = RunDir(story / "runs" / "hopeless")
    with pytest.raises(errors.DivergedError, match="in a row"):
        new_run(run.path, made)
    assert notices(run).count("skipped_step") == MOST_PASSED_OVER
    [stopped] = events(run, "stopped")
    assert stopped["details"]["documents"]


@pytest.mark.parametrize(("loss", "gradient"), [(1000.0, 1.0), (1.0, 1000.0)])
def test_F33_a_spike_never_moves_the_weights_under_skip(
    loss: float, gradient: float, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe([*SPIKES, "train.on_divergence=skip"])
    index = SPIKE_FEWEST + 4
    bad = batch_of(made, index)
    calm = new_run(story / "runs" / "calm", made)
    assert not notices(calm), "an ordinary run has no spikes of that size"
    with monkeypatch.context() as patch:
        scaled(patch, bad, loss, gradient)
        spiked = new_run(story / "runs" / "spiked", made)
    with monkeypatch.context() as patch:
        scaled(patch, bad, math.nan)
        left_out = new_run(story / "runs" / "left-out", made)
    [told] = [event for event in events(spiked, "notice") if event["code"] == "skipped_step"]
    assert "spiked to" in told["message"] and told["details"]["documents"] == documents_of(made, index)
    assert final_state(spiked)["tensors"].keys() == final_state(left_out)["tensors"].keys()
    models = [
        {name: digest for name, digest in final_state(run)["tensors"].items() if name.startswith("model")}
        for run in (spiked, left_out, calm)
    ]
    assert models[0] == models[1] != models[2]


def test_F33_a_spike_stops_the_run_by_default(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(SPIKES)
    scaled(monkeypatch, batch_of(made, SPIKE_FEWEST + 4), 1000.0)
    run = RunDir(story / "runs" / "stops")
    with pytest.raises(errors.DivergedError, match="spiked to"):
        new_run(run.path, made)
    [stopped] = events(run, "stopped")
    assert stopped["details"]["documents"] == documents_of(made, SPIKE_FEWEST + 4)


def test_F33_a_roll_back_goes_on_with_a_smaller_rate_also_after_a_stop(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe([*SPIKES, "train.on_divergence=rollback", "train.rollback_lr=0.25"])
    index = SPIKE_FEWEST + 4
    scaled(monkeypatch, batch_of(made, index), 1000.0)
    whole = new_run(story / "runs" / "whole", made)
    [told] = [event for event in events(whole, "notice") if event["code"] == "rolled_back"]
    back = told["details"]["skipped"]
    assert told["details"]["rate"] == 0.25 and back == index + 1 - 35
    for event in events(whole, "step"):
        scale = 0.25 if event["step"] > 35 and event["time"] > told["time"] else 1.0
        if event["step"] <= 35 or event["time"] > told["time"]:
            wanted = made.optimizer.lr * factor(made.schedule, (event["step"] - 1) / 44) * scale
            assert event["lr"] == pytest.approx(wanted, rel=1e-12)
    run = RunDir(story / "runs" / "cut")
    with pytest.raises(errors.Preempted):
        new_run(run.path, made, signal_at(40))
    resume(run)
    assert final_state(run)["tensors"] == final_state(whole)["tensors"]


def test_a_kill_between_checkpoint_and_evaluation_costs_no_evaluation(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(["checkpoint.every=5", "evaluate.every=5", "checkpoint.best=true"])
    whole = final_state(new_run(story / "runs" / "whole", made))
    run = RunDir(story / "runs" / "cut")
    genuine = assemble.score

    def dies(*arguments: Any, **more: Any) -> Any:
        raise SystemExit(9)

    monkeypatch.setattr(assemble, "score", dies)
    with pytest.raises(SystemExit):
        new_run(run.path, made)
    assert run.checkpoint_steps() == [5], "the weights were safe before they were scored"
    assert not events(run, "evaluation")
    monkeypatch.setattr(assemble, "score", genuine)
    resume(run)
    assert final_state(run) == whole
