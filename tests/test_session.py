"""Same work, same weights: however a budget is said, and however work is divided into sittings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from farthing import session
from farthing.errors import CheckpointError, Preempted, UserError
from farthing.events import read_events
from farthing.model import linear
from farthing.planning import remembered, trial
from farthing.rundir import RunDir
from farthing.runtime import hardware
from farthing.storage import read_json, write_json
from training.story import events, final_state, last_checkpoint, new_run, recipe, resume, signal_at, tell, tensors_of

SHAPE = [
    "model.context_length=16",
    "train.batch_size=1",
    "train.micro_batch=1",
    "evaluate.every=end",
    "sample.tokens=2",
]


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tell(tmp_path, monkeypatch)


def test_the_same_work_gives_the_same_weights_however_the_budget_is_said(story: Path) -> None:
    by_epoch = new_run(story / "runs" / "epochs", recipe([*SHAPE, "budget.steps=none", "budget.epochs=1"]))
    plan = session.read_plan(by_epoch)
    assert plan.tokens_per_epoch == plan.tokens and plan.flops is not None
    expected = final_state(by_epoch)
    for said in (f"tokens={plan.tokens}", f"steps={plan.steps}", f"flops={plan.flops!r}"):
        cleared = [] if said.startswith("steps") else ["budget.steps=none"]
        run = new_run(story / "runs" / said.replace("=", " "), recipe([*SHAPE, *cleared, f"budget.{said}"]))
        assert session.read_plan(run).steps == plan.steps
        assert final_state(run) == expected


def test_the_first_of_two_limits_ends_the_run(story: Path) -> None:
    three = final_state(new_run(story / "runs" / "three", recipe(["budget.steps=3"])))
    run = new_run(story / "runs" / "both", recipe(["budget.steps=3", "budget.epochs=50", "budget.tokens=100000"]))
    assert session.read_plan(run).limited_by == "steps"
    assert final_state(run) == three


def test_micro_batches_and_checkpoints_do_not_change_what_is_learnt(story: Path) -> None:
    made = [new_run(story / "runs" / str(every), recipe([f"checkpoint.every={every}"])) for every in (1, 3, "end")]
    first, *others = [tensors_of(last_checkpoint(run)) for run in made]
    assert all(other == first for other in others)


def test_the_result_and_the_events_tell_one_story(story: Path) -> None:
    run = new_run(story / "runs" / "told", recipe())
    result, told = read_json(run.result), list(read_events(run.events))
    assert [told[0]["kind"], told[-1]["kind"]] == ["started", "finished"]
    assert result["status"] == run.status() == "finished"
    assert result["validation"] == told[-1]["validation"] == events(run, "evaluation")[-1]["validation"]
    assert result["spent"] == told[-1]["spent"] == events(run, "step")[-1]["spent"]
    assert set(result["spent"]) == {"steps", "tokens", "epochs", "flops", "seconds", "money"}
    assert result["samples"][0]["text"] in run.samples.read_bytes().decode()


def test_an_option_taken_back_is_still_so_after_a_stop(story: Path) -> None:
    # Clipping is on by default: recipe.toml must say that this run has none.
    made = recipe(["train.gradient_clip=none"])
    whole = final_state(new_run(story / "runs" / "whole", made))
    run = RunDir(story / "runs" / "cut")
    with pytest.raises(Preempted):
        new_run(run.path, made, signal_at(4))
    resume(run)
    assert final_state(run) == whole


def test_F14_damage_is_told_in_the_events_and_the_end_is_the_same(story: Path) -> None:
    made = recipe(["checkpoint.every=2"])
    whole = final_state(new_run(story / "runs" / "whole", made))
    run = RunDir(story / "runs" / "cut")
    with pytest.raises(Preempted):
        new_run(run.path, made, signal_at(7))
    (run.checkpoint(7) / "model.safetensors").write_bytes(b"")
    resume(run)
    assert final_state(run) == whole
    [notice] = events(run, "notice")
    assert notice["code"] == "damaged_checkpoint" and "step-00000007" in notice["message"]
    [resumed] = events(run, "resumed")
    assert resumed["step"] == 6 and resumed["exact"]
    assert [folder.name[:13] for folder in run.quarantine.iterdir()] == ["step-00000007"]


def test_F17_with_every_checkpoint_damaged_nothing_is_touched(story: Path) -> None:
    run = RunDir(story / "runs" / "cut")
    with pytest.raises(Preempted):
        new_run(run.path, recipe(["checkpoint.every=2"]), signal_at(7))
    for step in run.checkpoint_steps():
        (run.checkpoint(step) / "state.json").write_text("{}")
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file() and file.name != "run.lock"}
    with pytest.raises(CheckpointError) as caught:
        resume(run)
    assert caught.value.exit_code == 4
    assert all(f"step-{step:08d}" in str(caught.value) for step in run.checkpoint_steps())
    after = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file() and file.name != "run.lock"}
    assert after == before


@pytest.mark.parametrize("name", ["plan.json", "receipt.json"])
@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_a_damaged_plan_or_receipt_is_named(story: Path, name: str, content: str | None) -> None:
    run = RunDir(story / "runs" / "cut")
    with pytest.raises(Preempted):
        new_run(run.path, recipe(["budget.steps=3"]), signal_at(1))
    if content is None:
        (run.path / name).unlink()
    else:
        (run.path / name).write_text(content)
    with pytest.raises(CheckpointError, match=name) as caught:
        resume(run)
    assert "\n" not in str(caught.value)


def test_a_run_that_died_before_its_first_checkpoint_starts_again_with_clean_events(story: Path) -> None:
    made = recipe(["checkpoint.every=end", "evaluate.every=end"])
    whole = final_state(new_run(story / "runs" / "whole", made))
    run = new_run(story / "runs" / "again", made)
    shutil.rmtree(run.checkpoints)
    run.checkpoints.mkdir()
    run.result.unlink()
    run.events.write_bytes(run.events.read_bytes()[:-700])
    resume(run)
    assert final_state(run) == whole
    assert not events(run, "resumed")


def test_a_refused_plan_leaves_nothing_behind(story: Path) -> None:
    with pytest.raises(UserError, match="refused"):
        new_run(story / "runs" / "huge", recipe(["limits.max_megabytes=0.000001"]))
    assert not (story / "runs").exists()


def test_a_name_that_is_taken_is_refused(story: Path) -> None:
    run = new_run(story / "runs" / "one", recipe(["budget.steps=1"]))
    before = run.events.read_bytes()
    with pytest.raises(UserError, match="exists"):
        new_run(run.path, recipe(["budget.steps=1"]))
    assert run.events.read_bytes() == before


# --- what auto chooses, and what start-up costs

OPEN = ["train.precision=auto", "train.micro_batch=auto", "train.threads=auto", "train.compile=off"]


def a_trial_for_every_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trial, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(trial, "SHARE", 1000.0)
    monkeypatch.setattr(trial, "MOST_SECONDS", 0.5)
    # Other work on this machine must not decide what is tested here.
    monkeypatch.setattr(hardware, "ran_and_waited", lambda: (0.0, 0.0))
    monkeypatch.setattr(remembered, "folder", lambda: tmp_path / "choices")


def test_two_runs_that_leave_everything_to_auto_are_equal(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_trial_for_every_run(monkeypatch, story)
    made = recipe(OPEN)
    first = new_run(story / "runs" / "first", made)
    plan = session.read_plan(first)
    assert plan.trial is not None and not plan.trial.remembered
    assert [one for one in plan.trial.tried if (one.precision, one.attention) == ("fp32", "sdpa") and one.runs]
    [taken] = [one for one in plan.trial.tried if one.taken]
    assert (taken.precision, taken.micro_batch) == (plan.settings.precision, plan.settings.micro_batch)
    second = new_run(story / "runs" / "second", made)
    again = session.read_plan(second)
    assert again.trial is not None and again.trial.remembered and again.settings == plan.settings
    assert final_state(second) == final_state(first)
    assert events(first, "ready")[0]["trial"] == plan.trial.seconds > 0
    assert events(second, "ready")[0]["trial"] == 0


def test_a_stop_changes_nothing_of_what_auto_chose(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_trial_for_every_run(monkeypatch, story)
    made = recipe(OPEN)
    whole = final_state(new_run(story / "runs" / "whole", made))
    run = RunDir(story / "runs" / "cut")
    with pytest.raises(Preempted):
        new_run(run.path, made, signal_at(4))
    # Neither the memory of earlier choices nor another trial has a say from here on.
    shutil.rmtree(story / "choices")
    monkeypatch.setattr(trial, "search", None)
    resume(run)
    assert final_state(run) == whole


def test_a_wrong_kernel_is_found_before_the_first_step(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = new_run(story / "runs" / "plain", recipe(["train.precision=fp32", "train.attention=sdpa"]))
    genuine = linear.Linear.forward

    def forward(self: linear.Linear, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = genuine(self, x)
        return y * 1.1 if torch.is_autocast_enabled("cpu") else y

    monkeypatch.setattr(linear.Linear, "forward", forward)
    run = RunDir(story / "runs" / "fallen")
    made = recipe(["train.precision=bf16", "train.attention=sdpa"])
    with pytest.raises(Preempted):
        new_run(run.path, made, signal_at(4))
    [notice] = [event for event in events(run, "notice") if event["code"] != "data_warning"]
    assert notice["code"] == "parity_fallback"
    assert "bf16" in notice["message"] and "going on with fp32" in notice["message"]
    plan = session.read_plan(run)
    assert plan.settings.precision == "fp32" and plan.fallbacks[0].message == notice["message"]
    resume(run)
    assert tensors_of(last_checkpoint(run)) == tensors_of(last_checkpoint(plain)), "plain fp32 from the first step on"


def test_a_run_of_an_earlier_version_can_be_resumed(story: Path) -> None:
    made = recipe(["train.precision=bf16"])
    whole = final_state(new_run(story / "runs" / "whole", made))
    run = RunDir(story / "runs" / "cut")
    with pytest.raises(Preempted):
        new_run(run.path, made, signal_at(4))
    table = read_json(run.plan)
    for name in ("trial", "parity", "fallbacks"):
        del table[name]
    del table["settings"]["weight_gradient"]
    write_json(run.plan, table)
    run.recipe.write_text(run.recipe.read_text("utf-8").replace('weight_gradient = "auto"\n', ""), "utf-8")
    resume(run)
    assert final_state(run) == whole


def test_start_up_is_told_apart_and_adds_up_over_sittings(story: Path) -> None:
    run = RunDir(story / "runs" / "twice")
    with pytest.raises(Preempted):
        new_run(run.path, recipe(), signal_at(4))
    resume(run)
    ready = events(run, "ready")
    assert len(ready) == 2
    result = read_json(run.result)
    stages = ("text", "plan", "trial", "build", "compile")
    for one in ready:
        assert 0 < sum(one[stage] for stage in stages) <= one["seconds"] + 0.01
    for name in ("seconds", *stages):
        assert result["startup"][name] == pytest.approx(sum(one[name] for one in ready), abs=0.002)
    assert result["startup"]["first_step"] == pytest.approx(events(run, "step")[0]["spent"]["seconds"], abs=0.001)
    assert result["startup"]["seconds"] + result["spent"]["seconds"] < result["wall_seconds"]
    kinds = [event["kind"] for event in read_events(run.events) if event["kind"] != "notice"]
    assert kinds[:3] == ["started", "ready", "step"]
    assert kinds[kinds.index("resumed") :][:3] == ["resumed", "ready", "step"]
