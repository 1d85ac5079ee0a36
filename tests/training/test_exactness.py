"""Stopping and resuming changes nothing: weights, optimizer, scores, samples and events come out bit for bit the same.

The facts' C01 and C07: stops at several steps, in mid-epoch and at its end, with every source of randomness on.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from farthing import config, session
from farthing.errors import Preempted
from farthing.events import Event, Step, read_events
from farthing.planning import Plan
from farthing.recipe import Recipe
from farthing.rundir import RunDir

BASE = [
    "data.kind=text",
    "data.path=story.txt",
    "data.documents=line",
    "tokenizer.kind=byte",
    "model.n_layer=2",
    "model.n_head=2",
    "model.d_model=16",
    "model.context_length=16",
    "model.dropout=0.2",
    "train.batch_size=6",
    "train.micro_batch=4",
    "train.threads=1",
    "train.precision=fp32",
    "train.order=random_offset",
    "train.log_every=1",
    "schedule.warmup=0.25",
    "budget.steps=14",
    "evaluate.every=5",
    "evaluate.references=false",
    "checkpoint.every=4",
    "sample.tokens=12",
]

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


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # 14 steps of 6 windows are a little more than two epochs, so that stops fall within and at the end of one.
    lines = [f"the {animal} number {n} went to the {place}" for n in range(4) for animal in ("cat", "dog", "owl")
             for place in ("hill", "sea")]  # fmt: skip
    (tmp_path / "story.txt").write_text("\n".join(lines) + "\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class StopAt:
    """Sends this process a real SIGTERM when a step is reported."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, event: Event) -> None:
        if isinstance(event, Step) and event.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_at(step: int) -> session.Watcher:
    def planned(name: str, recipe: Recipe, plan: Plan) -> Callable[[Event], None]:
        return StopAt(step)

    return session.Watcher(planned=planned)


def final_state(run: RunDir) -> dict[str, Any]:
    """Everything that must not depend on interruptions."""
    last = run.checkpoint(run.checkpoint_steps()[-1])
    tensors = {
        f"{file.name}:{name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for file in sorted(last.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    steps = [
        (e["step"], e["loss"], e["lr"], e["gradient_norm"], e["spent"]["tokens"])
        for e in read_events(run.events)
        if e["kind"] == "step"
    ]
    scores = [(e["step"], e["validation"], e["best"]) for e in read_events(run.events) if e["kind"] == "evaluation"]
    return {"tensors": tensors, "steps": steps, "scores": scores, "samples": run.samples.read_text("utf-8")}


def run_through(recipe: Recipe, path: Path, stops: list[int]) -> RunDir:
    run = RunDir(path)
    for sitting, stop in enumerate([*stops, 0]):
        watcher = stop_at(stop)
        try:
            if sitting == 0:
                session.new_run(recipe, path, device="cpu", watcher=watcher)
            else:
                session.resume(run, device="cpu", watcher=watcher)
        except Preempted:
            assert stop, "stopped without being asked"
        else:
            assert not stop, f"was asked to stop at step {stop} and did not"
    return run


@pytest.mark.parametrize("variant", VARIANTS)
def test_C01_resumed_run_equals_the_undisturbed_one(story: Path, variant: str) -> None:
    recipe = config.load(Recipe, None, [*BASE, *VARIANTS[variant]])
    whole = final_state(run_through(recipe, story / "runs" / "whole", []))
    assert [step for step, *_ in whole["steps"]] == list(range(1, 15))
    assert final_state(run_through(recipe, story / "runs" / "cut", [1, 7, 13])) == whole


@pytest.mark.parametrize("stop", range(1, 14))
def test_C01_stop_at_every_step(story: Path, stop: int) -> None:
    recipe = config.load(Recipe, None, BASE)
    whole = final_state(run_through(recipe, story / "runs" / "whole", []))
    assert final_state(run_through(recipe, story / "runs" / "cut", [stop])) == whole


def test_C07_how_often_one_evaluates_does_not_touch_training(story: Path) -> None:
    states = []
    for every in ("1", "5", "end"):
        recipe = config.load(Recipe, None, [*BASE, f"evaluate.every={every}"])
        states.append(final_state(run_through(recipe, story / "runs" / every, [])))
    assert states[0]["tensors"] == states[1]["tensors"] == states[2]["tensors"]
    assert states[0]["scores"][-1] == (14, states[2]["scores"][-1][1], states[0]["scores"][-1][2])


def test_two_runs_of_one_recipe_are_equal_and_another_seed_differs(story: Path) -> None:
    recipe = config.load(Recipe, None, BASE)
    first = final_state(run_through(recipe, story / "runs" / "a", []))
    assert final_state(run_through(recipe, story / "runs" / "b", [])) == first
    other = config.load(Recipe, None, [*BASE, "seed=7"])
    assert final_state(run_through(other, story / "runs" / "c", []))["steps"] != first["steps"]


def test_resuming_a_finished_run_changes_nothing(story: Path) -> None:
    run = run_through(config.load(Recipe, None, BASE), story / "runs" / "done", [])
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file() and file.name != "run.lock"}
    session.resume(run, device="cpu")
    after = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file() and file.name != "run.lock"}
    assert after == before
