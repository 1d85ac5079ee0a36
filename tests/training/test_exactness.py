"""Stopping and resuming changes nothing: weights, optimizer, scores, samples and events come out bit for bit the same.

The facts' C01 and C07: stops at several steps, in mid-epoch and at its end, with every source of randomness on.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from training.story import BASE, final_state, recipe, resume, run_through

VARIANTS = {
    "muon": [],
    "adamw_ema": ["optimizer.kind=adamw", "train.ema=0.9"],
    "sam": ["optimizer.kind=adamw", "optimizer.sharpness.kind=sam"],
    "asam": ["optimizer.kind=sgd", "optimizer.momentum=0.9", "optimizer.sharpness.kind=asam"],
    "r_drop": ["objective.r_drop=2.0", "objective.z_loss=1e-4", "objective.label_smoothing=0.1"],
    "fp16": ["train.precision=fp16", "optimizer.kind=adamw"],
    "bf16": ["train.precision=bf16", "optimizer.kind=lion"],
    "adafactor": ["optimizer.kind=adafactor", "train.order=shuffled"],
    "rmsprop_documents": ["optimizer.kind=rmsprop", "model.attention.scope=document", "train.order=sequential"],
    "everything": [
        "train.ema=0.95",
        "optimizer.sharpness.kind=sam",
        "objective.r_drop=1.0",
        "train.precision=bf16",
        "model.attention.gate=head",
        "model.layer_scale=0.1",
    ],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_C01_resumed_run_equals_the_undisturbed_one(story: Path, variant: str) -> None:
    made = recipe(VARIANTS[variant], BASE)
    whole = final_state(run_through(made, story / "runs" / "whole", []))
    assert [step for step, *_ in whole["steps"]] == list(range(1, 15))
    assert final_state(run_through(made, story / "runs" / "cut", [1, 7, 13])) == whole


@pytest.mark.parametrize("stop", range(1, 14))
def test_C01_stop_at_every_step(story: Path, stop: int) -> None:
    made = recipe(base=BASE)
    whole = final_state(run_through(made, story / "runs" / "whole", []))
    assert final_state(run_through(made, story / "runs" / "cut", [stop])) == whole


def test_C07_how_often_one_evaluates_does_not_touch_training(story: Path) -> None:
    states = []
    for every in ("1", "5", "end"):
        made = recipe([f"evaluate.every={every}"], BASE)
        states.append(final_state(run_through(made, story / "runs" / every, [])))
    assert states[0]["tensors"] == states[1]["tensors"] == states[2]["tensors"]
    assert states[0]["scores"][-1] == (14, states[2]["scores"][-1][1], states[0]["scores"][-1][2])


def test_two_runs_of_one_recipe_are_equal_and_another_seed_differs(story: Path) -> None:
    made = recipe(base=BASE)
    first = final_state(run_through(made, story / "runs" / "a", []))
    assert final_state(run_through(made, story / "runs" / "b", [])) == first
    other = recipe(["seed=7"], BASE)
    assert final_state(run_through(other, story / "runs" / "c", []))["steps"] != first["steps"]


def test_resuming_a_finished_run_changes_nothing(story: Path) -> None:
    run = run_through(recipe(base=BASE), story / "runs" / "done", [])
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file() and file.name != "run.lock"}
    resume(run)
    after = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file() and file.name != "run.lock"}
    assert after == before
