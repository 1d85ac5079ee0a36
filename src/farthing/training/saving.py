"""Checkpoints written while training goes on: from a copy, one at a time, and never in silence."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from farthing.errors import first_line
from farthing.events import Checkpointed, Emit, Notice
from farthing.rundir import RunDir
from farthing.runtime.device import is_out_of_memory
from farthing.runtime.disk import saving_rate
from farthing.runtime.seed import random_states, restore_random_states
from farthing.training import checkpoint as checkpoints
from farthing.training.averaging import Averaged
from farthing.training.course import Course, State
from farthing.training.guard import DivergenceGuard
from farthing.training.meter import Meter
from farthing.training.step import Stepper

SPARE_HANDLES = 4


@dataclass(frozen=True)
class Outcome:
    """What came of one save.

    Args:
        step: the checkpoint's.
        saved: where it is, or None where it could not be written.
        error: why not.
    """

    step: int
    saved: checkpoints.Saved | None
    error: Exception | None


class Saver:
    """Writes the checkpoints of a run, verifies each, and prunes the older ones only then.

    In the background a save stalls training for as long as it takes to copy the tensors; writing, hashing, reading
    back and pruning happen on a thread of their own. The copy keeps its place in memory from one save to the next.

    Args:
        run: the run's folder.
        identity: what its checkpoints belong to.
        keep: newest checkpoints to keep.
        background: whether saves may go on beside training; costs the memory of one checkpoint.
    """

    def __init__(self, run: RunDir, identity: Mapping[str, str], *, keep: int, background: bool) -> None:
        self._run, self._identity, self._keep = run, dict(identity), keep
        self._copies: dict[str, Tensor] = {}
        self._under_way: Future[Outcome] | None = None
        self._thread: ThreadPoolExecutor | None = None
        # Held for tidying up at the end, which takes file handles that may have run out by then.
        self._spare: list[int] = []
        with suppress(OSError):
            self._spare += [os.open(os.devnull, os.O_RDONLY) for _ in range(SPARE_HANDLES)]
        if background:
            # Started now: a thread that is started when memory has run out may die before it begins, and Python then
            # waits for it for ever.
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="farthing-saver")
            self._thread.submit(lambda: None).result()

    def start(self, step: int, snapshot: checkpoints.Snapshot, *, protect: int | None, at_once: bool = False) -> None:
        """Begin to save; what `snapshot` refers to may change as soon as this returns.

        Args:
            step: optimizer steps done.
            snapshot: the tensors in use, not copies.
            protect: a step whose checkpoint is kept whatever its age.
            at_once: save here and now, without a copy: somebody waits for it.
        """
        assert self._under_way is None, "the save before has not been looked at"
        if self._thread is None or at_once:
            self._under_way = Future()
            self._under_way.set_result(self._write(step, snapshot, protect))
            return
        try:
            copied = replace(
                snapshot,
                model=self._copy("model", snapshot.model),
                optimizer=self._copy("optimizer", snapshot.optimizer),
                average=None if snapshot.average is None else self._copy("average", snapshot.average),
            )
            self._under_way = self._thread.submit(self._write, step, copied, protect)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._under_way = Future()
            self._under_way.set_result(Outcome(step, None, error))

    def finished(self, *, wait: bool) -> Outcome | None:
        """What came of the save that was begun last, once; None while it goes on, or if there is none.

        Raises:
            BaseException: whatever the save failed of, other than a lack of room or memory.
        """
        if self._under_way is None or not (wait or self._under_way.done()):
            return None
        done, self._under_way = self._under_way, None
        return done.result()

    def close(self) -> None:
        """Wait for a save under way, whatever comes of it, and for its thread: the run's lock must not be given back before.

        What could not be deleted while files were short (EMFILE) is then.
        """
        if self._thread is not None:
            self._thread.shutdown()
        while self._spare:
            os.close(self._spare.pop())
        with suppress(OSError):
            self._run.sweep()

    def _write(self, step: int, snapshot: checkpoints.Snapshot, protect: int | None) -> Outcome:
        try:
            saved = checkpoints.save(self._run, step, snapshot, self._identity)
            # What cannot be deleted now is another time; the new checkpoint is no worse for it.
            with suppress(OSError):
                checkpoints.prune(self._run, keep=self._keep, protect=protect)
            return Outcome(step, saved, None)
        except OSError as error:
            return Outcome(step, None, error)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return Outcome(step, None, error)

    @torch.no_grad()
    def _copy(self, part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of these on the CPU, in the memory that the copies before them had."""
        made = {}
        for name, tensor in tensors.items():
            kept = self._copies.get(f"{part}/{name}")
            if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
                kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._copies[f"{part}/{name}"] = kept
            made[name] = kept.copy_(tensor.detach())
        return made


class Keeper:
    """Takes snapshots of a run under way, has them saved, tells what came of it, and puts one back.

    Args:
        run: the run's folder.
        course: what the plan settled.
        stepper: model, optimizer and precision.
        average: averaged weights, or None.
        guard: watches the loss.
        meter: the clock.
        emit: takes events.
        log_position: bytes of events so far, durable.
    """

    def __init__(
        self,
        run: RunDir,
        course: Course,
        stepper: Stepper,
        average: Averaged | None,
        guard: DivergenceGuard,
        meter: Meter,
        emit: Emit,
        log_position: Callable[[], int],
    ) -> None:
        self.saved_step: int | None = None
        """the step of the newest complete checkpoint of this sitting, or the one it began from"""
        self.slowest = 0.0
        """seconds that the slowest save took"""
        self.without_room = 0
        """saves in a row for which the disk had no room"""
        self._run, self._course, self._stepper, self._average = run, course, stepper, average
        self._guard, self._meter, self._emit, self._log_position = guard, meter, emit, log_position
        self._saver = Saver(run, course.identity, keep=course.keep, background=course.background_saves)
        self._stall = 0.0

    def expect(self) -> None:
        """Estimate what a save takes from the speed of the disk, before the first one tells."""
        if rate := saving_rate(self._run.path):
            self.slowest = max(self.slowest, self._course.checkpoint_bytes / rate.write)

    def save(self, state: State) -> None:
        """Write a checkpoint of this moment and wait for it; a full disk is reported and training goes on."""
        self.begin(state, at_once=True)
        self.settle(wait=True)

    def begin(self, state: State, *, at_once: bool = False) -> None:
        """As `save`, but where saves go on in the background, only until the copy is taken."""
        assert self.weights_are_finite(), "weights that are not finite must not be saved over good ones"
        start = time.monotonic()
        self.settle(wait=True)
        try:
            snapshot = self._snapshot(state)
        except OSError as error:
            self._tell_failure(state.step, error)
            return
        self._saver.start(
            state.step, snapshot, protect=state.best_step if self._course.keep_best else None, at_once=at_once
        )
        self._stall = time.monotonic() - start

    def settle(self, *, wait: bool) -> None:
        """Tell what came of the save under way, if it is over or must be waited for."""
        outcome = self._saver.finished(wait=wait)
        if outcome is None:
            return
        if outcome.saved is None:
            assert outcome.error is not None
            self._tell_failure(outcome.step, outcome.error)
            return
        self.saved_step, saved, self.without_room = outcome.step, outcome.saved, 0
        self.slowest = max(self.slowest, saved.seconds)
        self._emit(
            Checkpointed(
                step=outcome.step,
                path=str(saved.path.relative_to(self._run.path)),
                bytes=saved.bytes,
                seconds=round(saved.seconds, 3),
                stall=round(self._stall, 4),
            )
        )

    def close(self) -> None:
        """Wait for a save under way, whatever comes of it."""
        self._saver.close()

    def restore(self, snapshot: checkpoints.Snapshot) -> State:
        """Put everything back as it was at a checkpoint; returns where the run stood."""
        saved = snapshot.state
        self._stepper.model.load_state_dict(snapshot.model, strict=True)
        self._stepper.optimizer.load_state(snapshot.optimizer, saved["optimizer"])
        self._stepper.precision.load_state(saved["scaler"])
        self._guard.load_state(saved["guard"])
        if self._average is not None:
            assert snapshot.average is not None
            self._average.load_state(snapshot.average, saved["average"])
        self._stepper.micro_batch = saved["micro_batch"]
        restore_random_states(saved["random"])
        state = State.of(saved)
        self.saved_step = state.step
        return state

    def weights_are_finite(self) -> bool:
        """Whether every weight is a number."""
        return checkpoints.is_finite(self._stepper.model.state_dict())

    def _snapshot(self, state: State) -> checkpoints.Snapshot:
        optimizer_tensors, optimizer_values = self._stepper.optimizer.state()
        average_tensors, average_values = self._average.state() if self._average is not None else (None, None)
        values = {
            "format": checkpoints.FORMAT,
            **state.as_dict(),
            "optimizer": optimizer_values,
            "scaler": self._stepper.precision.state(),
            "guard": self._guard.state(),
            "average": average_values,
            "micro_batch": self._stepper.micro_batch,
            "wall_seconds": self._meter.wall_seconds,
            "random": random_states(),
            "events_bytes": self._log_position(),
            "numeric": self._course.numeric,
        }
        return checkpoints.Snapshot(dict(self._stepper.model.state_dict()), optimizer_tensors, average_tensors, values)

    def _tell_failure(self, step: int, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            self.without_room += 1
            reason += self._room()
        message = f"the checkpoint of step {step} could not be written: {reason}; older ones are untouched"
        self._emit(Notice(code="checkpoint_failed", message=message, step=step))

    def _room(self) -> str:
        """How much a checkpoint needs, and how much of that is missing."""
        needed = self._course.checkpoint_bytes
        try:
            free = shutil.disk_usage(self._run.path).free
        except OSError:
            return f" (it takes {needed:,} bytes)"
        return f" (it takes {needed:,} bytes, {free:,} are free: {max(0, needed - free):,} are missing)"
