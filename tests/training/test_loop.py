"""What the loop does when things go wrong, and what it counts, shown by whole runs of a tiny recipe."""

from __future__ import annotations

import functools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from farthing import api, assemble, errors, session
from farthing.api import verbs
from farthing.data.batches import Batch, Batches
from farthing.evals import forward
from farthing.events import Evaluated, Event, Step, read_events
from farthing.rundir import RunDir
from farthing.runtime.disk import SavingRate
from farthing.storage import cache_folder
from farthing.training import checkpoint as checkpoints
from farthing.training import interruption as interruptions
from farthing.training import loop, saving
from farthing.training.step import Stepper
from training.story import (
    events,
    final_state,
    in_child,
    last_checkpoint,
    new_run,
    notices,
    recipe,
    resume,
    signal_at,
    tensors_of,
    watching,
)

EVERYTHING_FINITE = ["checkpoint.every=3", "evaluate.every=end"]


def batches_of(made: Any) -> Batches:
    text = assemble.read_text(made, directory=Path.cwd(), cache=cache_folder(), report=lambda stage, done, total: None)
    return assemble.build_batches(made, text.train)


def poison(monkeypatch: pytest.MonkeyPatch, bad: Callable[[Batch, int], bool], what: str = "loss") -> list[int]:
    """Make the loss or the gradients of some steps not finite; returns where the calls are counted."""
    calls: list[int] = []
    genuine = Stepper.accumulate

    def accumulate(self: Stepper, batch: Batch) -> torch.Tensor:
        nats = genuine(self, batch)
        calls.append(len(calls))
        if bad(batch, len(calls)):
            if what == "loss":
                return nats * math.nan
            parameter = next(self.model.parameters())
            assert parameter.grad is not None
            parameter.grad[0] = math.inf if what == "inf gradient" else math.nan
        return nats

    monkeypatch.setattr(Stepper, "accumulate", accumulate)
    return calls


def same_batch(batches: Batches, index: int) -> Callable[[Batch, int], bool]:
    wanted = batches.batch(index).inputs_BT
    return lambda batch, call: batch.inputs_BT.shape == wanted.shape and bool((batch.inputs_BT == wanted).all())


# --- divergence


@pytest.mark.parametrize("step", [1, 2, 5, 10])
@pytest.mark.parametrize("what", ["loss", "nan gradient", "inf gradient"])
def test_F30_F32_a_bad_step_never_moves_the_weights(
    story: Path, monkeypatch: pytest.MonkeyPatch, step: int, what: str
) -> None:
    calls: list[str] = []
    genuine = assemble.build_stepper

    def built(*args: Any, **more: Any) -> Stepper:
        stepper = genuine(*args, **more)
        move = stepper.optimizer.step
        monkeypatch.setattr(stepper.optimizer, "step", lambda: (calls.append("moved"), move())[1])
        return stepper

    made = recipe(EVERYTHING_FINITE)
    batches = batches_of(made)
    monkeypatch.setattr(assemble, "plan_run", no_calibration(assemble.plan_run))
    monkeypatch.setattr(assemble, "build_stepper", built)
    poison(monkeypatch, same_batch(batches, step - 1), what)
    run = RunDir(story / "runs" / "bad")
    with pytest.raises(errors.DivergedError) as caught:
        new_run(run.path, made)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value) and f"at step {step}" in str(caught.value) and "lr" in str(caught.value)
    assert len(calls) == step - 1
    [stopped] = events(run, "stopped")
    assert (stopped["reason"], stopped["step"]) == ("diverged", step - 1)
    assert [event["step"] for event in events(run, "step")] == list(range(1, step))
    assert run.checkpoint_steps() == [s for s in (3, 6, 9) if s < step][-2:]
    assert not run.result.exists()


def no_calibration(genuine: Callable[..., Any]) -> Callable[..., Any]:
    def plan_run(*args: Any, **more: Any) -> Any:
        return genuine(*args, **{**more, "measure": False})

    return plan_run


def test_F33_a_real_divergence_stops_with_exit_code_5(story: Path) -> None:
    made = recipe(["optimizer.kind=sgd", "optimizer.lr=1e30", "train.gradient_clip=none", "schedule.warmup=0",
                   "evaluate.every=1", "checkpoint.every=1"])  # fmt: skip
    run = RunDir(story / "runs" / "wild")
    ended = in_child(lambda: new_run(run.path, made), story)
    assert ended.code == 5, ended
    assert "diverged" in ended.message and "\n" not in ended.message
    assert [event["reason"] for event in events(run, "stopped")] == ["diverged"]
    for step in run.checkpoint_steps():
        weights = load_file(run.checkpoint(step) / "model.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


@pytest.mark.parametrize("ends", ["at a step", "at the end"])
def test_F32_weights_that_are_not_finite_are_never_saved_nor_scored(
    story: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    made = recipe(["checkpoint.every=2", "evaluate.every=2"])
    last = 4 if ends == "at a step" else 10
    monkeypatch.setattr(assemble, "plan_run", no_calibration(assemble.plan_run))
    genuine = Stepper.take
    taken: list[int] = []

    def take(self: Stepper, batch: Batch, refuse: Any = None) -> Any:
        result = genuine(self, batch)
        taken.append(1)
        if len(taken) == last:
            with torch.no_grad():
                next(self.model.parameters())[0, 0] = math.inf
        return result

    monkeypatch.setattr(Stepper, "take", take)
    run = RunDir(story / "runs" / "inf")
    with pytest.raises(errors.DivergedError, match="weights are not finite"):
        new_run(run.path, made)
    assert [event["reason"] for event in events(run, "stopped")] == ["diverged"]
    assert [event["step"] for event in events(run, "evaluation")] == list(range(2, last, 2))
    assert max(run.checkpoint_steps()) == last - 2


def test_F33_rollback_skips_the_poisonous_batch_and_goes_on(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(["checkpoint.every=3", "train.on_divergence=rollback", "evaluate.every=end"])
    batches = batches_of(made)
    monkeypatch.setattr(assemble, "plan_run", no_calibration(assemble.plan_run))
    # The batch of the eighth step: back to 6, and batches 6 and 7 (from 0) are passed over.
    poison(monkeypatch, same_batch(batches, 7))
    served = serving(monkeypatch)
    run = new_run(story / "runs" / "back", made)
    [told] = [event for event in events(run, "notice") if event["code"] == "rolled_back"]
    assert told["details"]["skipped"] == 2
    assert told["details"]["documents"] == batches.documents(7)[:20].tolist()
    assert served == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert events(run, "step")[-1]["step"] == 10
    assert [event["step"] for event in events(run, "step")] == [1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10]
    assert session.read_plan(run).steps == 10


def serving(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that the loop asks for, by index."""
    served: list[int] = []
    genuine = Batches.batch

    def batch(self: Batches, step: int, **more: Any) -> Batch:
        if more:
            served.append(step)
        return genuine(self, step, **more)

    monkeypatch.setattr(Batches, "batch", batch)
    return served


def test_F33_rollback_is_remembered_over_a_stop(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(["checkpoint.every=3", "train.on_divergence=rollback", "evaluate.every=end"])
    batches = batches_of(made)
    monkeypatch.setattr(assemble, "plan_run", no_calibration(assemble.plan_run))
    poison(monkeypatch, same_batch(batches, 7))
    whole = new_run(story / "runs" / "whole", made)
    run = RunDir(story / "runs" / "cut")
    with pytest.raises(errors.Preempted):
        new_run(run.path, made, signal_at(8))
    resume(run)
    assert tensors_of(last_checkpoint(run)) == tensors_of(last_checkpoint(whole))


def test_F33_three_rollbacks_at_most(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(["checkpoint.every=3", "train.on_divergence=rollback"])
    monkeypatch.setattr(assemble, "plan_run", no_calibration(assemble.plan_run))
    poison(monkeypatch, lambda batch, call: call > 4)
    run = RunDir(story / "runs" / "hopeless")
    with pytest.raises(errors.DivergedError, match=r"after 3 roll-backs"):
        new_run(run.path, made)
    assert notices(run).count("rolled_back") == loop.MAX_ROLLBACKS == 3
    assert run.checkpoint_steps() == [3]


def test_F33_rollback_without_a_checkpoint_says_so(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "plan_run", no_calibration(assemble.plan_run))
    poison(monkeypatch, lambda batch, call: call == 2)
    with pytest.raises(errors.DivergedError, match="no checkpoint to go back to"):
        new_run(story / "runs" / "early", recipe(["checkpoint.every=3", "train.on_divergence=rollback"]))


def test_fp16_overflow_is_a_skipped_step_and_too_many_are_trouble(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "plan_run", no_calibration(assemble.plan_run))
    calls = poison(monkeypatch, lambda batch, call: call == 3 or call > 35, "inf gradient")
    made = recipe(["train.precision=fp16", "budget.steps=60", "evaluate.every=end"])
    run = RunDir(story / "runs" / "half")
    with pytest.raises(errors.DivergedError, match="overflowed 20 times in a row"):
        new_run(run.path, made)
    assert len(calls) == 35 + 20
    steps = events(run, "step")
    assert steps[2]["gradient_norm"] is None and steps[2]["loss"] is not None
    assert len(steps) == 54


# --- signals and deadlines


def test_F06_a_signal_in_mid_accumulation_abandons_the_step_and_changes_nothing(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(["train.micro_batch=2", "optimizer.sharpness.kind=sam", "train.ema=0.9"])
    whole = final_state(new_run(story / "runs" / "whole", made))
    genuine = Stepper._to_device
    # Three micro-batches a pass, two passes a step: within the first pass, and within the second, moved weights and all.
    for at in (6 * 4 + 1, 6 * 4 + 4):
        parts: list[int] = []

        def to_device(self: Stepper, part: Batch, at: int = at, parts: list[int] = parts) -> Any:
            parts.append(part.windows)
            if len(parts) == at + 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return genuine(self, part)

        run = RunDir(story / "runs" / f"cut-{at}")
        with monkeypatch.context() as patch:
            patch.setattr(assemble, "plan_run", no_calibration(assemble.plan_run))
            patch.setattr(Stepper, "_to_device", to_device)
            with pytest.raises(errors.Preempted) as caught:
                new_run(run.path, made)
        assert caught.value.exit_code == 75
        assert "SIGTERM" in str(caught.value) and f"farthing resume {run.path}" in str(caught.value)
        assert len(parts) == at + 1, "the rest of the step was not computed"
        assert run.checkpoint_steps()[-1] == 4
        resume(run)
        assert final_state(run) == whole


def test_F06_zero_steps_are_lost_by_sigterm(story: Path) -> None:
    run = RunDir(story / "runs" / "told")
    ended = in_child(lambda: new_run(run.path, recipe(), signal_at(7)), story)
    assert ended.code == 75, ended
    assert run.checkpoint_steps()[-1] == 7
    assert [event["reason"] for event in events(run, "stopped")] == ["preempted"]


def test_F09_sigusr1_saves_and_goes_on_and_sighup_is_ignored(story: Path) -> None:
    made = recipe(["checkpoint.every=end", "checkpoint.best=false", "evaluate.every=end"])
    quiet = new_run(story / "runs" / "quiet", made)
    run = new_run(story / "runs" / "asked", made, signal_at(4, signal.SIGUSR1))
    assert [event["step"] for event in events(run, "checkpoint")] == [4, 10, 10]
    assert [event["step"] for event in events(quiet, "checkpoint")] == [10, 10]
    hung_up = new_run(story / "runs" / "hung up", made, signal_at(4, signal.SIGHUP))
    assert final_state(run) == final_state(quiet) == final_state(hung_up)


def test_F08_a_second_sigint_ends_at_once_with_the_last_checkpoint_whole(story: Path) -> None:
    made = recipe(["checkpoint.every=3"])
    whole = final_state(new_run(story / "runs" / "whole", made))

    run = RunDir(story / "runs" / "twice")

    def twice(event: Event) -> None:
        if isinstance(event, Step) and event.step == 5:
            while not run.checkpoint_steps():  # the save goes on in the background; the child's alarm bounds this
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
            raise AssertionError("still there")

    assert in_child(lambda: new_run(run.path, made, watching(twice)), story).code == 130
    assert run.checkpoint_steps() == [3]
    resume(run)
    assert final_state(run) == whole


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("look", [1, 2, 3])
def test_F06_a_signal_within_an_evaluation_ends_it_and_resuming_makes_up_for_it(
    story: Path, monkeypatch: pytest.MonkeyPatch, look: int, at: int
) -> None:
    """Looks at steps 4 and 8, and at the end; each reads its windows one by one."""
    made = recipe(["data.validation=0.4", "evaluate.every=4", "evaluate.batch_size=1", "checkpoint.every=3"])
    whole = final_state(new_run(story / "runs" / "whole", made))
    genuine, passes, looks = assemble.Evaluation.run, [0], [0]

    def looked(self: assemble.Evaluation, *arguments: Any) -> Any:
        looks[0] += 1
        found = genuine(self, *arguments)
        return found

    measuring = forward.measuring

    def counted(*arguments: Any, **more: Any) -> Any:
        passes[0] += looks[0] == look
        if passes[0] == at + 1 and looks[0] == look:  # the first is that of the reader being made
            os.kill(os.getpid(), signal.SIGTERM)
        return measuring(*arguments, **more)

    run = RunDir(story / "runs" / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(assemble.Evaluation, "run", looked)
        patch.setattr(forward, "measuring", counted)
        with pytest.raises(errors.Preempted):
            new_run(run.path, made)
    step = {1: 4, 2: 8, 3: 10}[look]
    assert passes[0] == at + 1, "no window was read after it"
    assert run.checkpoint_steps()[-1] == step
    assert [event["step"] for event in events(run, "evaluation")] == [4, 8, 10][: look - 1]
    resume(run)
    assert final_state(run) == whole


def test_F07_what_a_stop_has_left_undone_is_done_and_nothing_twice(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes after the evaluation at the end, before the samples."""
    made = recipe(["evaluate.every=end"])
    whole = final_state(new_run(story / "runs" / "whole", made))

    def follower(event: Event) -> None:
        if isinstance(event, Evaluated):
            os.kill(os.getpid(), signal.SIGTERM)

    run = RunDir(story / "runs" / "cut")
    with pytest.raises(errors.Preempted):
        new_run(run.path, made, watching(follower))
    assert len(events(run, "evaluation")) == 1 and not run.result.exists()
    resume(run)
    assert final_state(run) == whole
    assert len(events(run, "evaluation")) == 1, "it was paid for once"


def test_F10_a_first_save_is_allowed_for_before_any_has_been_timed(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "saving_rate", lambda folder: SavingRate(1e9, 1.0, 1.0))
    run = RunDir(story / "runs" / "late")
    with pytest.raises(errors.Preempted, match="a clean stop needs up to"):
        new_run(run.path, recipe(["checkpoint.every=end"]), deadline=time.time() + 3600)
    assert run.checkpoint_steps() == [0], "a byte a second is too slow for an hour"


def test_F20_a_disk_that_stays_full_stops_training_and_says_what_is_missing(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    made = recipe(["checkpoint.every=2", "checkpoint.best=false", "evaluate.every=end", "checkpoint.background=false"])
    whole = final_state(new_run(story / "runs" / "whole", made))
    run = RunDir(story / "runs" / "full")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_write", full)
        with pytest.raises(errors.ResourceError, match="3 checkpoints in a row could not be written"):
            new_run(run.path, made)
    told = [event["message"] for event in events(run, "notice") if event["code"] == "checkpoint_failed"]
    assert len(told) == 3 and all("bytes, " in message and "are missing" in message for message in told)
    assert [event["reason"] for event in events(run, "stopped")] == ["disk_full"]
    assert events(run, "step")[-1]["step"] == 6
    resume(run)
    assert final_state(run) == whole


def test_F21_a_stop_that_cannot_save_says_from_where_it_will_go_on(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(["checkpoint.every=3", "checkpoint.background=false"])
    genuine = checkpoints._write

    def full_from_now_on(target: Path, step: int, *rest: Any) -> None:
        if step > 3:
            raise OSError(28, "No space left on device")
        genuine(target, step, *rest)

    monkeypatch.setattr(checkpoints, "_write", full_from_now_on)
    with pytest.raises(errors.Preempted, match="stopped after step 5 of 10, of which those after 3 could not be saved"):
        new_run(story / "runs" / "told", made, signal_at(5))


def test_F24_a_line_of_the_log_that_is_damaged_costs_no_run(story: Path) -> None:
    run = RunDir(story / "runs" / "flipped")
    with pytest.raises(errors.Preempted):
        new_run(run.path, recipe(), signal_at(7))
    lines = run.events.read_bytes().split(b"\n")
    lines[2] = b"?" + lines[2][1:]
    run.events.write_bytes(b"\n".join(lines))
    with pytest.raises(errors.UserError, match=r"events\.jsonl:3"):
        events(run, "step")
    resume(run)
    assert run.result.is_file()
    found = [event for event in read_events(run.events, on_bad=lambda line: None) if event["kind"] == "notice"]
    assert [event["code"] for event in found] == ["damaged_log"] and "events.jsonl:3" in found[0]["message"]


def test_handlers_are_put_back(story: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    new_run(story / "runs" / "one", recipe(["budget.steps=1"]))
    assert [signal.getsignal(number) for number in numbers] == before


def slowly(seconds: float) -> session.Watcher:
    def follower(event: Event) -> None:
        if isinstance(event, Step):
            time.sleep(seconds)

    return watching(follower)


@pytest.mark.parametrize("how", ["--deadline", "SLURM"])
def test_F10_a_deadline_is_kept_and_the_end_is_the_same(story: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    made = recipe(["budget.steps=2000", "checkpoint.every=end", "evaluate.every=end", "sample.tokens=0"])
    monkeypatch.setattr(interruptions, "SAFETY_SECONDS", 1.0)
    run = RunDir(story / "runs" / "late")
    until = math.ceil(time.time()) + 3
    if how == "SLURM":
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(until))
    with pytest.raises(errors.Preempted) as caught:
        deadline = verbs._until(None if how == "SLURM" else f"{until - time.time():.3f}")
        assert deadline == pytest.approx(until, abs=0.1)
        new_run(run.path, made, slowly(0.01), deadline=deadline)
    assert time.time() < until
    assert caught.value.exit_code == 75
    assert "deadline" in str(caught.value) and "farthing resume" in str(caught.value)
    [stopped] = events(run, "stopped")
    assert stopped["step"] == run.checkpoint_steps()[-1] < 2000


def test_F10_a_deadline_that_cannot_be_kept_stops_before_the_first_step(story: Path) -> None:
    run = RunDir(story / "runs" / "never")
    with pytest.raises(errors.Preempted):
        new_run(run.path, recipe(), deadline=time.time() + 2)
    assert run.checkpoint_steps() == [0]
    resume(run)
    assert final_state(run) == final_state(new_run(story / "runs" / "whole", recipe()))


# --- memory


def test_F12_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ["train.batch_size=12", "checkpoint.every=4", "evaluate.every=end"]
    small = new_run(story / "runs" / "small", recipe([*base, "train.micro_batch=3"]))
    genuine = Stepper._loss

    def loss(self: Stepper, inputs_BT: torch.Tensor, *rest: Any) -> Any:
        if len(inputs_BT) > 4:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 20.00 GiB")
        return genuine(self, inputs_BT, *rest)

    monkeypatch.setattr(Stepper, "_loss", loss)
    monkeypatch.setattr(assemble, "plan_run", no_calibration(assemble.plan_run))
    made = recipe([*base, "train.micro_batch=12"])
    run = new_run(story / "runs" / "large", made)
    told = [event for event in events(run, "notice") if event["code"] == "out_of_memory"]
    assert [event["details"]["micro_batch"] for event in told] == [6, 3]
    assert "12 -> 6" in told[0]["message"]
    # Dropout's random numbers depend on the micro-batch, so from the retried first step on all is as in the small run.
    assert tensors_of(last_checkpoint(run)) == tensors_of(last_checkpoint(small))
    # The smaller micro-batch is remembered: a resumed run does not run out again.
    cut = RunDir(story / "runs" / "cut")
    with pytest.raises(errors.Preempted):
        new_run(cut.path, made, signal_at(5))
    resume(cut)
    assert notices(cut).count("out_of_memory") == 2
    assert tensors_of(last_checkpoint(cut)) == tensors_of(last_checkpoint(small))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_F12_memory_that_is_really_full(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    if os.environ.get("FARTHING_FRESH") != "1":
        # In a process of its own: what earlier tests have freed would serve here, and memory would never run out.
        own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        itself = f"{__file__}::test_F12_memory_that_is_really_full"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", itself],
            env={**own, "FARTHING_FRESH": "1"}, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return
    monkeypatch.setattr(assemble, "plan_run", no_calibration(assemble.plan_run))

    def limited(run: RunDir, room: int) -> None:
        genuine = assemble.build_trainer

        def build_trainer(*args: Any, **more: Any) -> Any:
            trainer = genuine(*args, **more)
            # Room for what there is and a little more: the whole batch at once does not fit.
            size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))
            return trainer

        assemble.build_trainer = build_trainer  # in this child only
        new_run(run.path, made)

    wide = ["optimizer.kind=sgd", "optimizer.lr=0.1", "model.n_head=2", "model.d_model=64", "model.context_length=256",
            "model.dropout=0",
            "train.batch_size=96", "budget.steps=2", "checkpoint.every=end", "evaluate.every=end",
            "evaluate.batch_size=1", "train.order=shuffled", "train.attention=math", "limits.memory_gb=64"]  # fmt: skip
    made = recipe([*wide, "train.micro_batch=96"])
    # How the allocator cuts up what it has is its own affair: where not even one sequence fits, with more room it does.
    for megabytes in (60, 90, 120):
        run = RunDir(story / "runs" / f"full-{megabytes}")
        ended = in_child(functools.partial(limited, run, megabytes << 20), story)
        assert ended.code in (0, 6), ended
        if ended.code == 0:
            break
        assert "\n" not in ended.message
    assert ended.code == 0, ended
    smallest = [event["details"]["micro_batch"] for event in events(run, "notice") if event["code"] == "out_of_memory"]
    assert smallest, "memory did not run out: the test proves nothing"
    fine = new_run(story / "runs" / "fine", recipe([*wide, f"train.micro_batch={smallest[-1]}"]))
    # Memory may have lasted for the first step: then that one's sums were in another order.
    weights = [load_file(last_checkpoint(one) / "model.safetensors") for one in (run, fine)]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-5, atol=1e-6)


def test_F12_memory_that_runs_out_with_one_sequence_is_exit_code_6(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(self: Stepper, *rest: Any) -> Any:
        raise MemoryError("cannot allocate")

    run = RunDir(story / "runs" / "none")
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "_loss", loss)
        with pytest.raises(errors.ResourceError, match="before the first step") as caught:
            new_run(run.path, recipe())
        assert caught.value.exit_code == 6 and not run.path.exists()
        patch.setattr(assemble, "plan_run", no_calibration(assemble.plan_run))
        with pytest.raises(errors.ResourceError, match="one sequence at a time"):
            new_run(run.path, recipe())
    assert [event["reason"] for event in events(run, "stopped")] == ["out_of_memory"]
    resume(run)
    assert final_state(run) == final_state(new_run(story / "runs" / "whole", recipe()))


def test_F12_memory_that_runs_out_in_mid_update_is_not_tried_again(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(["checkpoint.every=3"])
    genuine = torch.optim.AdamW.step
    count: list[int] = []

    def step(self: Any, *args: Any) -> Any:
        result = genuine(self, *args)
        count.append(1)
        if len(count) == 5:
            raise MemoryError("half of the weights have moved")
        return result

    run = RunDir(story / "runs" / "half")
    with monkeypatch.context() as patch:
        patch.setattr(assemble, "plan_run", no_calibration(assemble.plan_run))
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(errors.ResourceError, match="updating the weights"):
            new_run(run.path, made)
    assert run.checkpoint_steps() == [3], "weights that moved in part are not saved"
    resume(run)
    assert final_state(run) == final_state(new_run(story / "runs" / "whole", made))


# --- budgets and counters


@pytest.mark.parametrize("order", ["sequential", "shuffled", "random_offset", "one_batch"])
def test_spent_is_exact(story: Path, order: str) -> None:
    made = recipe([f"train.order={order}", "model.context_length=13", "evaluate.every=end", "sample.tokens=0"])
    run = new_run(story / "runs" / order, made)
    batches, plan = batches_of(made), session.read_plan(run)
    for event in events(run, "step"):
        spent, step = event["spent"], event["step"]
        assert spent["steps"] == step
        assert spent["tokens"] == batches.tokens_before(6 * step) == counted(batches, step)
        assert spent["epochs"] == spent["tokens"] / batches.tokens_per_epoch
        assert spent["flops"] == spent["tokens"] * plan.flops_per_token
    seconds = [event["spent"]["seconds"] for event in events(run, "step")]
    assert seconds == sorted(seconds) and seconds[0] > 0


def counted(batches: Batches, steps: int) -> int:
    return sum(int((batches.batch(step).targets_BT >= 0).sum()) for step in range(steps))


def test_a_budget_in_epochs_serves_each_token_exactly_as_often(story: Path) -> None:
    made = recipe(["budget.epochs=2", "budget.steps=none", "model.context_length=13", "evaluate.every=end"])
    run = new_run(story / "runs" / "twice", made)
    last = events(run, "step")[-1]["spent"]
    assert last["epochs"] == 2.0
    assert last["tokens"] == 2 * session.read_plan(run).tokens_per_epoch


def test_a_budget_in_minutes_is_kept_and_its_steps_are_fixed_at_the_start(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble, "CALIBRATION_SECONDS_WHEN_IT_COUNTS", 0.3)
    made = recipe(["budget.minutes=0.02", "budget.steps=none", "evaluate.every=end", "sample.tokens=0"])
    run = new_run(story / "runs" / "timed", made)
    plan = session.read_plan(run)
    assert plan.limited_by == "minutes" and plan.measured and plan.steps is not None
    steps = events(run, "step")
    assert len(steps) <= plan.steps
    # The limit may be passed by one step at most; whether it is reached is the machine's affair.
    assert all(event["spent"]["seconds"] <= 0.02 * 60 for event in steps[:-1])
    shortened = [event["details"]["steps"] for event in events(run, "notice") if event["code"] == "replanned"]
    assert ("budget_guard" in notices(run)) == (len(steps) < (shortened or [plan.steps])[-1])


@pytest.mark.parametrize("limit", ["minutes", "money"])
def test_a_run_whose_machine_slowed_down_takes_fewer_steps_and_ends_its_schedule_in_budget(
    story: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    genuine = Stepper.take

    def slower(self: Stepper, batch: Batch, refuse: Any = None) -> Any:
        time.sleep(0.05)
        return genuine(self, batch)

    budget = ["budget.minutes=0.02"] if limit == "minutes" else ["budget.money=0.3", "budget.price_per_hour=360"]
    made = recipe([*budget, "budget.steps=1000", "evaluate.every=end", "sample.tokens=0", "checkpoint.every=end"])
    monkeypatch.setattr(assemble, "plan_run", pretending(assemble.plan_run, steps=200))
    monkeypatch.setattr(Stepper, "take", slower)
    run = new_run(story / "runs" / "slow", made)
    told = [code for code in notices(run) if code != "data_warning"]
    assert told[0] == "replanned" and set(told) <= {"replanned", "budget_guard"}
    steps = events(run, "step")
    assert steps[-1]["lr"] < 0.2 * max(event["lr"] for event in steps), "the schedule must come to its end"
    name, most = ("seconds", 1.2) if limit == "minutes" else ("money", 0.3)
    assert len(steps) < 200
    assert all(event["spent"][name] < most for event in steps[:-1])
    assert run.status() == "finished"
    assert run.checkpoint_steps()[-1] == len(steps)
    assert events(run, "evaluation")[-1]["step"] == len(steps)


def pretending(genuine: Callable[..., Any], *, steps: int) -> Callable[..., Any]:
    from dataclasses import replace

    def plan_run(*args: Any, **more: Any) -> Any:
        plan = genuine(*args, **{**more, "measure": False})
        return replace(plan, steps=steps, last_window=6 * steps, evaluate_every=steps, checkpoint_every=steps)

    return plan_run


def test_money_counts_all_the_time_and_adds_up_over_sittings(story: Path) -> None:
    made = recipe(["budget.price_per_hour=3600", "evaluate.every=5"])
    run = RunDir(story / "runs" / "paid")
    with pytest.raises(errors.Preempted):
        new_run(run.path, made, signal_at(6))
    first = events(run, "step")[-1]["spent"]
    result = resume(run)
    # At one a second, money is the wall time: more than training alone, and never reset.
    assert result["spent"]["money"] > first["money"] > first["seconds"] > 0
    assert result["wall_seconds"] >= result["spent"]["money"]


# --- data orders, averages


def test_one_batch_is_learnt_by_heart(story: Path) -> None:
    made = recipe(["train.order=one_batch", "budget.steps=150", "optimizer.lr=2e-2", "model.d_model=32",
                   "model.dropout=0", "evaluate.every=end", "checkpoint.every=end", "sample.tokens=0"])  # fmt: skip
    losses = [event["loss"] for event in events(new_run(story / "runs" / "heart", made), "step")]
    assert losses[0] > 4 and losses[-1] < 0.1


def test_the_averaged_weights_are_scored_and_kept(story: Path) -> None:
    plain = new_run(story / "runs" / "plain", recipe())
    run = new_run(story / "runs" / "averaged", recipe(["train.ema=0.9"]))
    folder = last_checkpoint(run)
    raw, averaged = load_file(folder / "model.safetensors"), load_file(folder / "average.safetensors")
    assert tensors_of(last_checkpoint(plain)).items() <= tensors_of(folder).items(), "averaging does not touch training"
    assert raw.keys() == averaged.keys()
    assert not any(torch.equal(raw[name], averaged[name]) for name in raw)
    scores = [event["validation"]["bits_per_byte"] for event in events(run, "evaluation")]
    assert scores != [event["validation"]["bits_per_byte"] for event in events(plain, "evaluation")]
    opened = api.open_run(run.path)
    assert opened.evaluate().validation["bits_per_byte"] == pytest.approx(scores[-1], rel=1e-6)


def test_a_best_score_is_never_a_nan_nor_blocked_by_one(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([3.0, math.nan, 2.0, 2.5, math.nan])
    genuine = assemble.score

    def score(*args: Any, **more: Any) -> dict[str, Any]:
        bits = next(scores)
        return {**genuine(*args, **more), "bits_per_byte": bits if math.isfinite(bits) else None}

    monkeypatch.setattr(assemble, "score", score)
    run = new_run(story / "runs" / "best", recipe(["evaluate.every=2", "checkpoint.every=2"]))
    assert [event["best"] for event in events(run, "evaluation")] == [True, False, True, False, False]
    assert run.checkpoint_steps() == [6, 8, 10]
    assert api.open_run(run.path).result["best"] == {"step": 6, "bits_per_byte": 2.0}


def test_numpy_and_python_randomness_is_left_as_it_was_between_steps(story: Path) -> None:
    drawn: list[float] = []

    def draw(event: Event) -> None:
        # A watcher that draws random numbers disturbs nothing.
        drawn.append(float(torch.rand(()) + np.random.rand()))

    calm = new_run(story / "runs" / "calm", recipe())
    assert final_state(new_run(story / "runs" / "noisy", recipe(), watching(draw))) == final_state(calm)
    assert drawn
