"""Bugs put in on purpose, one line each: the checks of this suite must fail with the bug in, and pass without it.

Each check is a shortened form of a test that stands
elsewhere; what is shown here is that it can fail.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farthing import assemble, session
from farthing.data.batches import Batch
from farthing.errors import FarthingError, Preempted
from farthing.events import EventLog
from farthing.model.gpt import GPT, build_model
from farthing.optim.build import build_optimizer
from farthing.optim.optimizer_set import OptimizerSet
from farthing.recipe import Model
from farthing.recipe.optimization import NoSharpness, Objective, Sgd
from farthing.rundir import RunDir
from farthing.training import checkpoint as checkpoints
from farthing.training import loop
from farthing.training import step as stepping
from farthing.training.course import State
from farthing.training.guard import DivergenceGuard
from farthing.training.interruption import Interruption
from farthing.training.loop import Trainer
from farthing.training.meter import Meter
from farthing.training.precision import Precision
from farthing.training.saving import Keeper, Saver
from farthing.training.step import Stepper
from training.story import events, final_state, new_run, recipe, resume, signal_at, tensors_of

Patch = pytest.MonkeyPatch
GENUINE_VERIFY = checkpoints.verify


# --- the checks, each the heart of a test


def resumed_equals_undisturbed(folder: Path) -> None:
    """C01 with dropout, an average and several epochs: test_exactness.py."""
    made = recipe(["train.ema=0.9", "evaluate.every=end"])
    whole = final_state(new_run(folder / "runs" / "whole", made))
    run = RunDir(folder / "runs" / "cut")
    with pytest.raises(Preempted):
        new_run(run.path, made, signal_at(5))
    # A new process begins with random numbers of its own.
    torch.manual_seed(123)
    resume(run)
    assert final_state(run) == whole


def evaluating_more_often_changes_nothing(folder: Path) -> None:
    """C07: test_exactness.py."""
    ends = [
        final_state(new_run(folder / "runs" / every, recipe([f"evaluate.every={every}"]))) for every in ("1", "end")
    ]
    assert ends[0]["tensors"] == ends[1]["tensors"]


def a_damaged_checkpoint_is_passed_over(folder: Path) -> None:
    """F15: test_checkpoint.py."""
    run = RunDir(folder / "runs" / "cut")
    with pytest.raises(Preempted):
        new_run(run.path, recipe(["checkpoint.every=2"]), signal_at(7))
    file = run.checkpoint(7) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    resume(run)
    assert events(run, "resumed")[0]["step"] == 6


def accumulation_is_exact(folder: Path) -> None:
    """C06: test_step.py."""
    ends = []
    for micro_batch in (4, 3):
        model = build_model(Model(n_layer=1, n_head=1, d_model=8, context_length=4), 11, seed=1, attention="math")
        optimizer = build_optimizer(Sgd(lr=1.0), model.named_parameters(), model.roles())
        optimizer.set_factor(1.0)
        stepper = Stepper(
            model=model, hidden=model.hidden, optimizer=optimizer, section=Objective(), sharpness=NoSharpness(),
            precision=Precision("fp32", torch.device("cpu")), device=torch.device("cpu"), batch_size=4,
            micro_batch=micro_batch, gradient_clip=None,
        )  # fmt: skip
        targets_BT = np.arange(16).reshape(4, 4) % 11
        targets_BT[3, 1:] = -100
        stepper.take(Batch(np.ones((4, 4), np.int64), targets_BT, None, 13, 4))
        ends.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)


def every_validation_token_is_scored(folder: Path) -> None:
    """C08: the scorer's tests."""
    made = recipe(["budget.steps=1", "model.context_length=13"])
    run = new_run(folder / "runs" / "one", made)
    text = assemble.read_text(made, directory=folder, cache=Path(os.environ["FARTHING_CACHE"]), report=lambda *a: None)
    assert events(run, "evaluation")[0]["validation"]["tokens"] == len(text.validation.tokens_N)


def tied_weights_stay_tied(folder: Path) -> None:
    """C10: one tensor before and after, moved by one optimizer."""
    section = Model(n_layer=1, n_head=1, d_model=8, context_length=4, tie_embeddings=True)
    model = build_model(section, 11, seed=1)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = session.read_plan(new_run(folder / "runs" / "any", recipe(["budget.steps=1"]))).settings
    loaded = assemble.load_model(recipe().model_copy(update={"model": section}), settings, weights, 11)
    token = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        before = loaded(token)
        loaded.embed.weight[7] += 1.0
        assert not torch.equal(loaded(token)[..., 7], before[..., 7])


def the_best_is_the_lowest(folder: Path) -> None:
    """F32: test_loop.py."""
    run = new_run(folder / "runs" / "best", recipe(["evaluate.every=2", "checkpoint.every=2"]))
    result = session.read_json(run.result)
    assert result["best"] == {"step": 6, "bits_per_byte": 2.0}


def a_save_holds_its_own_moment(folder: Path) -> None:
    """F42: test_saving.py."""
    ends = []
    for background in ("true", "false"):
        made = recipe(["checkpoint.every=4", "checkpoint.keep=9", f"checkpoint.background={background}"])
        ends.append(tensors_of(new_run(folder / "runs" / background, made).checkpoint(4)))
    assert ends[0] == ends[1]


def a_good_one_outlives_saves_that_rot(folder: Path) -> None:
    """F28: what does not read back costs nothing older."""
    write = checkpoints._write

    def rotting(target: Path, step: int, *rest: Any) -> None:
        write(target, step, *rest)
        if step > 2:
            os.truncate(target / "model.safetensors", 9)

    run = RunDir(folder / "runs" / "rotten")
    with Patch.context() as fault:
        fault.setattr(checkpoints, "_write", rotting)
        with contextlib.suppress(FarthingError):
            new_run(run.path, recipe(["checkpoint.every=2", "evaluate.every=end"]))
    assert run.checkpoint(2).is_dir()
    assert GENUINE_VERIFY(run.checkpoint(2))["step"] == 2


def one_nan_changes_nothing_that_follows(folder: Path) -> None:
    """F31: test_guard.py."""
    calm, shaken = DivergenceGuard(3.0), DivergenceGuard(3.0)
    shaken.check(math.nan)
    assert [calm.check(1.0) for _ in range(40)] == [shaken.check(1.0) for _ in range(40)]


def the_guard_is_the_same_after_a_stop(folder: Path) -> None:
    """M19: test_guard.py."""
    first, second = DivergenceGuard(3.0), DivergenceGuard(3.0)
    for _ in range(25):
        first.check(1.0)
    second.load_state(first.state())
    assert second.check(100.0) == first.check(100.0) is not None


def time_adds_up_over_sittings(folder: Path) -> None:
    """F10: test_loop.py."""
    run, take = RunDir(folder / "runs" / "timed"), Stepper.take

    def slower(self: Stepper, batch: Batch, refuse: Any = None) -> Any:
        time.sleep(0.2)
        return take(self, batch)

    # A first sitting that takes much longer than the second.
    with Patch.context() as slow:
        slow.setattr(Stepper, "take", slower)
        with pytest.raises(Preempted):
            new_run(run.path, recipe(), signal_at(6))
    before = events(run, "step")[-1]["spent"]["seconds"]
    assert before > 1.0
    assert resume(run)["spent"]["seconds"] > before


def a_torn_line_is_cut_off(folder: Path) -> None:
    """F24: test_events.py."""
    path = folder / "events.jsonl"
    path.write_bytes(b'{"kind": "a"}\n{"kind": "b')
    EventLog(path).close()
    assert path.read_bytes() == b'{"kind": "a"}\n'


def the_lock_is_free_after_a_crash(folder: Path) -> None:
    """F36: test_rundir.py; a file that a dead process left behind holds nobody up."""
    run = RunDir(folder)
    (folder / "run.lock").write_text("process 1 on elsewhere\n")
    assert not run.is_locked()
    with run.locked():
        assert run.is_locked()


# --- the bugs, each a line or two


def no_random_numbers_of_the_step(patch: Patch) -> None:
    patch.setattr(loop, "seed_step", lambda seed, step: None)


def data_begins_again(patch: Patch) -> None:
    genuine, sitting = Trainer.restore, Trainer._take
    at: dict[int, int] = {}

    def restore(self: Trainer, snapshot: Any) -> None:
        genuine(self, snapshot)
        at[id(self)] = self.state.step

    patch.setattr(Trainer, "restore", restore)
    patch.setattr(Trainer, "_take", lambda self, index: sitting(self, index - at.get(id(self), 0)))


def optimizer_forgets_its_steps(patch: Patch) -> None:
    genuine = OptimizerSet.load_state

    def load_state(self: OptimizerSet, tensors: Any, values: Any) -> None:
        genuine(self, tensors, values)
        for optimizer in self._optimizers:
            for state in optimizer.state.values():
                state["step"] = torch.tensor(0.0)

    patch.setattr(OptimizerSet, "load_state", load_state)


def optimizer_starts_empty(patch: Patch) -> None:
    patch.setattr(OptimizerSet, "load_state", lambda self, tensors, values: None)


def rate_counts_this_sitting(patch: Patch) -> None:
    genuine, train = loop.factor, Trainer.train
    steps = [0]

    def factor(section: Any, progress: float) -> float:
        steps[0] += 1
        return genuine(section, (steps[0] - 1) / 10)

    def begin(self: Trainer) -> Any:
        steps[0] = 0
        return train(self)

    patch.setattr(loop, "factor", factor)
    patch.setattr(Trainer, "train", begin)


def average_is_not_saved(patch: Patch) -> None:
    genuine = Trainer.restore

    def restore(self: Trainer, snapshot: Any) -> None:
        genuine(self, snapshot)
        assert self.average is not None
        self.average.__init__(self.stepper.model.named_parameters(), self.average.decay)  # type: ignore[misc]

    patch.setattr(Trainer, "restore", restore)


def events_are_not_cut_back(patch: Patch) -> None:
    genuine = Trainer._stop_for

    def stop_for(self: Trainer, reason: str) -> None:
        # Killed a little later than the last checkpoint: what is told after it must be forgotten.
        self.emit(
            loop.Step(
                step=self.state.step + 1,
                loss=0.0,
                lr=0.0,
                gradient_norm=0.0,
                spent=self.state.spent.as_dict(),
                tokens_per_second=0,
            )
        )
        genuine(self, reason)

    patch.setattr(Trainer, "_stop_for", stop_for)
    patch.setattr(EventLog, "cut_back", lambda self, position: None)


def evaluation_draws_and_training_follows(patch: Patch) -> None:
    genuine = assemble.score

    def score(*args: Any, **more: Any) -> Any:
        torch.rand(1)
        return genuine(*args, **more)

    patch.setattr(assemble, "score", score)
    patch.setattr(loop, "seed_step", lambda seed, step: torch.manual_seed(seed) if step == 0 else None)


def hashes_are_not_looked_at(patch: Patch) -> None:
    patch.setattr(checkpoints, "verify", lambda folder: checkpoints.read_json(folder / "manifest.json"))


def newest_or_nothing(patch: Patch) -> None:
    genuine = RunDir.checkpoint_steps
    patch.setattr(RunDir, "checkpoint_steps", lambda self: genuine(self)[-1:])


def mean_of_means(patch: Patch) -> None:
    genuine = stepping.head_objective

    def head_objective(x_ND: Any, weight: Any, low: Any, targets_N: Any, section: Any, **more: Any) -> Any:
        parts = 2 if len(targets_N) < 16 else 1
        more["tokens"] = parts * int((targets_N >= 0).sum())
        return genuine(x_ND, weight, low, targets_N, section, **more)

    patch.setattr(stepping, "head_objective", head_objective)


def tail_is_dropped(patch: Patch) -> None:
    genuine = assemble.score

    def score(made: Any, model: Any, split: Any, **more: Any) -> Any:
        whole = len(split.tokens_N) // made.model.context_length * made.model.context_length
        return genuine(made, model, replace(split, tokens_N=split.tokens_N[:whole]), **more)

    patch.setattr(assemble, "score", score)


def head_is_a_copy(patch: Patch) -> None:
    genuine = GPT.load_state_dict

    def load_state_dict(self: GPT, state: Any, **more: Any) -> Any:
        result = genuine(self, state, **more)
        self.unembed = torch.nn.Linear(self.embed.weight.shape[1], self.embed.weight.shape[0], bias=False)
        self.unembed.weight = torch.nn.Parameter(self.embed.weight.detach().clone())
        return result

    patch.setattr(GPT, "load_state_dict", load_state_dict)


def scores_of(patch: Patch) -> None:
    """Not a bug: the scores that the check of the best one needs, one of them no number."""
    scores = iter([3.0, math.nan, 2.0, 2.5, math.nan])
    genuine = assemble.score
    patch.setattr(assemble, "score", lambda *a, **m: {**genuine(*a, **m), "bits_per_byte": next(scores)})
    # events.jsonl takes numbers only; what is looked at here is the comparison.
    emit = EventLog.emit
    patch.setattr(
        EventLog, "emit", lambda self, event: None if "NaN" in str(event).replace("nan", "NaN") else emit(self, event)
    )
    begin = Keeper.begin

    def begun(self: Keeper, state: State, **how: bool) -> None:
        bits = state.validation.get("bits_per_byte")
        if isinstance(bits, float) and math.isnan(bits):
            state.validation = {**state.validation, "bits_per_byte": None}
        begin(self, state, **how)

    patch.setattr(Keeper, "begin", begun)


def nan_becomes_the_best(patch: Patch) -> None:
    genuine = Trainer._note

    def note(self: Trainer, event: Any) -> None:
        bits = getattr(event, "validation", {}).get("bits_per_byte")
        genuine(self, event)
        # `not best <= bits` where `bits < best` was meant
        if bits is not None and math.isnan(bits):
            self.state.best_bits_per_byte, self.state.best_step = 99.0, event.step

    patch.setattr(Trainer, "_note", note)


def pruned_before_it_is_known_to_be_good(patch: Patch) -> None:
    patch.setattr(checkpoints, "verify", lambda folder: {})


def nan_enters_the_window(patch: Patch) -> None:
    def check(self: DivergenceGuard, loss: float) -> str | None:
        self._recent.append(loss)
        mean = sum(self._recent) / len(self._recent)
        return None if mean < 3.0 else f"the mean is {mean}"

    patch.setattr(DivergenceGuard, "check", check)


def window_is_not_saved(patch: Patch) -> None:
    patch.setattr(DivergenceGuard, "load_state", lambda self, state: None)


def time_begins_again(patch: Patch) -> None:
    genuine = Meter.__init__
    patch.setattr(Meter, "__init__", lambda self, *, seconds=0.0, **more: genuine(self, **more))


def tail_is_not_repaired(patch: Patch) -> None:
    from farthing import events as module

    patch.setattr(module, "_sound_length", lambda path: path.stat().st_size)


def lock_is_a_file(patch: Patch) -> None:
    patch.setattr(RunDir, "is_locked", lambda self: self._lock.exists())


def handler_saves(patch: Patch) -> None:
    """M17: a save from within the handler, in the middle of a step: weights of one step, counters of another."""
    trainers: list[Trainer] = []
    genuine = Trainer.train

    def train(self: Trainer) -> Any:
        trainers.append(self)
        return genuine(self)

    def stop(self: Interruption, number: int, frame: Any) -> None:
        with torch.no_grad():
            for parameter in trainers[-1].stepper.model.parameters():
                parameter.add_(1e-3)  # half of an update
        trainers[-1].keeper.save(trainers[-1].state)
        self.signal = "SIGTERM"

    patch.setattr(Trainer, "train", train)
    patch.setattr(Interruption, "_stop", stop)


def snapshot_by_reference(patch: Patch) -> None:
    """M20: what is written in the background is what training is changing."""

    def late(*arguments: Any) -> Any:
        time.sleep(0.1)
        return genuine(*arguments)

    genuine = checkpoints.save
    patch.setattr(checkpoints, "save", late)
    patch.setattr(Saver, "_copy", lambda self, part, tensors: dict(tensors))


Check = Callable[[Path], None]
SEEDED: dict[str, tuple[Callable[[Patch], None], Check]] = {
    "M01 no random numbers restored": (no_random_numbers_of_the_step, resumed_equals_undisturbed),
    "M02 data position not restored": (data_begins_again, resumed_equals_undisturbed),
    "M06 hashes not checked": (hashes_are_not_looked_at, a_damaged_checkpoint_is_passed_over),
    "M07 no fall-back": (newest_or_nothing, a_damaged_checkpoint_is_passed_over),
    "M08 pruned before verified": (pruned_before_it_is_known_to_be_good, a_good_one_outlives_saves_that_rot),
    "M09 optimizer step counts not saved": (optimizer_forgets_its_steps, resumed_equals_undisturbed),
    "M09 optimizer state not loaded": (optimizer_starts_empty, resumed_equals_undisturbed),
    "M10 rate from a counter of the process": (rate_counts_this_sitting, resumed_equals_undisturbed),
    "M11 evaluation uses training's generator": (evaluation_draws_and_training_follows, evaluating_more_often_changes_nothing),
    "M12 mean of means": (mean_of_means, accumulation_is_exact),
    "M13 evaluation drops the tail": (tail_is_dropped, every_validation_token_is_scored),
    "M15 tied weight copied on load": (head_is_a_copy, tied_weights_stay_tied),
    "M17 signal handler saves": (handler_saves, resumed_equals_undisturbed),
    "M18 NaN enters the window": (nan_enters_the_window, one_nan_changes_nothing_that_follows),
    "M19 window not saved": (window_is_not_saved, the_guard_is_the_same_after_a_stop),
    "M20 saved by reference": (snapshot_by_reference, a_save_holds_its_own_moment),
    "M21 events appended to a torn line": (tail_is_not_repaired, a_torn_line_is_cut_off),
    "M22 lock is a file": (lock_is_a_file, the_lock_is_free_after_a_crash),
    "M26 time begins again": (time_begins_again, time_adds_up_over_sittings),
    "M27 NaN becomes the best": (nan_becomes_the_best, the_best_is_the_lowest),
    "average not restored": (average_is_not_saved, resumed_equals_undisturbed),
    "events not cut back": (events_are_not_cut_back, resumed_equals_undisturbed),
}  # fmt: skip
PREPARED = {the_best_is_the_lowest: scores_of}


@pytest.mark.parametrize(
    "check", dict.fromkeys(check for _, check in SEEDED.values()), ids=lambda check: check.__name__
)
def test_without_a_bug_the_check_passes(check: Check, story: Path, monkeypatch: Patch) -> None:
    PREPARED.get(check, lambda patch: None)(monkeypatch)
    check(story)


@pytest.mark.parametrize("bug", SEEDED)
def test_the_bug_is_caught(bug: str, story: Path, monkeypatch: Patch) -> None:
    put_in, check = SEEDED[bug]
    PREPARED.get(check, lambda patch: None)(monkeypatch)
    put_in(monkeypatch)
    with pytest.raises((AssertionError, FarthingError)):
        check(story)
