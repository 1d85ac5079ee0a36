"""The training loop: steps until the budget is spent, and between steps whatever actions are due.

Nothing here knows what an evaluation, a screen or a search is: events go out, actions come in. The learning rate, the
data and the random numbers of a step are pure functions of its number, so a checkpoint needs to hold none of them.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NoReturn

from farthing.budget import Spent
from farthing.errors import CheckpointError, DivergedError, Preempted, ResourceError
from farthing.events import Emit, Evaluated, Event, Notice, Step, Stopped
from farthing.optim.schedules import factor
from farthing.recipe.optimization import AnySchedule
from farthing.rundir import RunDir
from farthing.runtime.device import peak_memory_bytes
from farthing.runtime.seed import seed_step
from farthing.training import checkpoint as checkpoints
from farthing.training.actions import Action, Moment, act
from farthing.training.averaging import Averaged
from farthing.training.course import Course, State
from farthing.training.feeding import Fed
from farthing.training.guard import DivergenceGuard
from farthing.training.interruption import Interruption
from farthing.training.meter import Meter
from farthing.training.pace import Pace
from farthing.training.saving import Keeper
from farthing.training.step import Abandoned, OutOfMemory, Stepper, Taken
from farthing.training.watchdog import Watchdog

MAX_ROLLBACKS = 3
MOST_WITHOUT_ROOM = 3
"""saves in a row that a full disk may cost before training stops: from then on it only adds to what would be lost"""


class Trainer:
    """A run under way.

    Args:
        run: its folder.
        course: what the plan settled.
        schedule: the recipe's schedule section.
        stepper: model, optimizer and objective.
        batches: the data.
        average: averaged weights, or None.
        guard: watches the loss.
        meter: the clock.
        actions: what to do between steps.
        emit: takes events.
        interruption: signals and deadline.
        log_position: bytes of events so far, durable.
    """

    def __init__(
        self,
        *,
        run: RunDir,
        course: Course,
        schedule: AnySchedule,
        stepper: Stepper,
        batches: Fed,
        average: Averaged | None,
        guard: DivergenceGuard,
        meter: Meter,
        actions: Sequence[Action],
        emit: Emit,
        interruption: Interruption,
        log_position: Callable[[], int],
    ) -> None:
        self.run = run
        self.course = course
        self.schedule = schedule
        self.stepper = stepper
        self.batches = batches
        self.average = average
        self.guard = guard
        self.meter = meter
        self.actions = actions
        self.emit = emit
        self.interruption = interruption
        self.state = State(steps=course.steps)
        self.pace = Pace(seconds=course.stop_seconds, money=course.stop_money)
        self._pending: list[Step] = []
        self.keeper = Keeper(run, course, stepper, average, guard, meter, emit, log_position)

    def train(self) -> State:
        """Take steps until the budget is spent.

        Raises:
            Preempted: a signal or deadline stopped the run; a checkpoint has been saved.
            DivergedError: the loss diverged and the policy, or the third roll-back, says stop.
            ResourceError: memory ran out with a micro-batch of one, or the final checkpoint cannot be written.
        """
        with Watchdog(self.run.stacks) as self._watchdog:
            try:
                self._train()
            finally:
                self.keeper.close()
        return self.state

    def _train(self) -> None:
        course = self.course
        if self.interruption.has_deadline:
            self.keeper.expect()
        if not self.state.acted:
            # Killed between a checkpoint and the evaluation of the same step.
            moment = Moment(self.state.step, self.state.steps, self.state.spent)
            self._act_at(moment, self._due(moment))
        while self.state.step < self.state.steps and not self._over_budget():
            self.keeper.settle(wait=False)
            self.interruption.took(save=self.keeper.slowest)
            self._tell_stall()
            if self.keeper.without_room >= MOST_WITHOUT_ROOM:
                self._without_room(f"{MOST_WITHOUT_ROOM} checkpoints in a row could not be written: the disk is full")
            if reason := self.interruption.reason:
                self._stop_for(reason)
            # 1) the pure functions of the step's number: rate, random numbers, data
            step, index = self.state.step, self.state.step + self.state.skipped
            self.stepper.optimizer.set_factor(factor(self.schedule, step / self.state.steps) * self.state.rate)
            before = self.meter.seconds
            with self.meter.training():
                seed_step(course.seed, index)
                taken = self._take(index)
            if taken is None:
                continue
            # 2) look at the loss before believing in the step
            if (trouble := self._trouble(taken)) and not self._passed_over(taken, index, trouble):
                self._diverged(trouble)
                continue
            if self.average is not None and not taken.skipped:
                self.average.update()
            self._count(taken, self.meter.seconds - before)
            # 3) what is due between steps; the meter's clock stands still
            self._between_steps()
            self._keep_pace()
        self._end()

    def _tell_stall(self) -> None:
        if (seconds := self._watchdog.alive()) is not None:
            message = f"nothing came to its end for {seconds:.0f} s; what every thread was doing: {self.run.stacks}"
            self._notice("stalled", message, seconds=round(seconds, 1))

    def _take(self, index: int) -> Taken | None:
        """One step's update; None if it has to be tried again."""
        last = self.course.last_window + self.state.skipped * self.stepper.batch_size
        start = time.monotonic()
        try:
            refuse = self.guard.spike if self.guard.looks_for_spikes else None
            taken = self.stepper.take(self.batches.batch(index, last_window=last), refuse)
        except Abandoned:
            # A signal in mid-accumulation: the weights are those of the last whole step, so stop from there.
            return None
        except OutOfMemory as error:
            self._less_memory(error)
            return None
        self.interruption.took(step=time.monotonic() - start)
        return taken

    def _count(self, taken: Taken, seconds: float) -> None:
        state, course = self.state, self.course
        tokens = state.spent.tokens + taken.tokens
        state.step += 1
        state.spent = Spent(
            steps=state.step,
            tokens=tokens,
            epochs=tokens / self.batches.tokens_per_epoch,
            flops=tokens * course.flops_per_token,
            seconds=self.meter.seconds,
            money=self.meter.money,
        )
        rate = taken.tokens / max(1e-9, seconds)
        self._pending.append(
            Step(
                step=state.step,
                loss=_finite(taken.loss),
                lr=taken.lr,
                gradient_norm=_finite(taken.gradient_norm),
                spent=state.spent.as_dict(),
                tokens_per_second=round(rate, 1),
                utilisation=round(rate * course.flops_per_token / course.peak_flops, 4) if course.peak_flops else None,
                memory_bytes=peak_memory_bytes(self.stepper.device.type),
            )
        )
        if state.step % course.log_every == 0 or state.step in (1, state.steps):
            self._flush()

    def _flush(self) -> None:
        while self._pending:
            self.emit(self._pending.pop(0))

    def _between_steps(self) -> None:
        moment = Moment(self.state.step, self.state.steps, self.state.spent)
        every = self.course.checkpoint_every
        asked = self.interruption.save_now or (every > 0 and moment.step % every == 0)
        due = self._due(moment)
        at_end = moment.step == moment.steps
        if not (asked or due or at_end):
            return
        if not self.keeper.weights_are_finite():
            # The last update did it, and its own loss could not show it.
            self._diverged(f"the weights are not finite after step {moment.step}", after=True)
            return
        if at_end:
            return
        if asked:
            # Before the evaluation, so that whatever befalls that costs no step; a resumed run makes up for it.
            self.interruption.save_now, self.state.acted = False, not due
            self._flush()
            self.keeper.begin(self.state)
        if due:
            self._act_at(moment, due)

    def _due(self, moment: Moment) -> list[Action]:
        return [action for action in self.actions if action.due(moment)]

    def _act_at(self, moment: Moment, due: Sequence[Action]) -> None:
        """Do what is due at a step in mid-run, and keep the weights that it finds to be the best so far."""
        self.state.acted = self._act(moment, due)
        if self.state.acted and self._is_new_best():
            self._flush()
            self.keeper.begin(self.state)

    def _act(self, moment: Moment, due: Sequence[Action]) -> bool:
        """Whether all was done before the run was told to stop."""
        self._flush()
        with self.average.swapped() if self.average is not None and due else nullcontext():
            model, told = self.stepper.model, self.interruption
            return act(due, moment, model, self.state, stopping=lambda: told.reason is not None, note=self._note)

    def _note(self, event: Event) -> None:
        self.emit(self.state.take(event) if isinstance(event, Evaluated) else event)

    def _is_new_best(self) -> bool:
        return self.course.keep_best and self.state.best_step == self.state.step

    def restore(self, snapshot: checkpoints.Snapshot) -> None:
        """Put everything back as it was at a checkpoint."""
        self.state = self.keeper.restore(snapshot)
        self._pending.clear()

    def _save(self) -> None:
        """A checkpoint of this moment, complete before anything else happens."""
        self._flush()
        self.keeper.save(self.state)

    def _stop_for(self, reason: str) -> None:
        self._flush()
        if not self.keeper.weights_are_finite():
            self._give_up(f"the weights are not finite after step {self.state.step}", after=True)
        self.keeper.settle(wait=True)
        if self.keeper.saved_step != self.state.step or self.state.acts:
            self._save()
        where = f"stopped after step {self.state.step} of {self.state.steps}"
        if self.keeper.saved_step != self.state.step:
            where += f", of which those after {self.keeper.saved_step or 0} could not be saved"
        message = f"{reason}; {where}. Continue with: farthing resume {shlex.quote(str(self.run.path))}"
        self.emit(Stopped(step=self.state.step, reason="preempted", message=message))
        raise Preempted(message)

    def _keep_pace(self) -> None:
        """Take steps away where minutes or money will not last for them, so that the schedule still ends."""
        used = self.pace.used(self.meter)
        fewer = self.pace.fewer_steps(self.state.step, self.state.steps, used)
        if fewer is None:
            return
        old, self.state.steps = self.state.steps, fewer
        message = f"the machine is slower than measured at the start: {fewer} steps instead of {old}, to end in budget"
        self._flush()
        self._notice("replanned", message, steps=fewer, was=old)
        # Saved at once: a crash from here on must not lead to another plan.
        if self.keeper.weights_are_finite():
            self._save()

    def _over_budget(self) -> bool:
        """Whether minutes or money have run out before the steps they were turned into."""
        return self.pace.used(self.meter) >= 1

    def _end(self) -> None:
        self._flush()
        self.keeper.settle(wait=True)
        if not self.state.ended:
            if self.state.step < self.state.steps:
                message = (
                    f"the budget of minutes or money ran out at step {self.state.step} of {self.state.steps}: the machine "
                    "was slower than measured at the start, and the run ends before its schedule does"
                )
                self._notice("budget_guard", message)
            if not self.keeper.weights_are_finite():
                self._give_up(f"the weights are not finite after step {self.state.step}", after=True)
            # The weights are paid for: nothing that follows may cost them.
            if self.keeper.saved_step != self.state.step:
                self._save()
            moment = Moment(self.state.step, self.state.step, self.state.spent)
            if not self._act(moment, self._due(moment)):
                self._stop_for(self.interruption.reason or "a stop was asked for")
            self.state.ended = True
            self.state.spent = replace(self.state.spent, money=self.meter.money)  # scoring has its price too
            self._save()
        if self.keeper.saved_step != self.state.step:
            self._without_room("the final checkpoint could not be written")

    def _without_room(self, what: str) -> NoReturn:
        message = f"{self.run.path}: {what}; free some space, then: farthing resume {shlex.quote(str(self.run.path))}"
        self.emit(Stopped(step=self.state.step, reason="disk_full", message=message))
        raise ResourceError(message)

    def _less_memory(self, error: OutOfMemory) -> None:
        old = self.stepper.micro_batch
        if old == 1 or error.in_update:
            # Memory that ran out in mid-update leaves weights half moved: only a checkpoint is whole then.
            what = "updating the weights" if error.in_update else "with one sequence at a time"
            message = f"out of memory {what}: {error}; use a smaller model or context, or free some memory"
            self.emit(Stopped(step=self.state.step, reason="out_of_memory", message=message))
            raise ResourceError(message)
        self.stepper.micro_batch = -(-old // 2)
        message = f"out of memory: micro-batch {old} -> {self.stepper.micro_batch}, more accumulation; same batch"
        self._notice("out_of_memory", message, micro_batch=self.stepper.micro_batch)

    def _trouble(self, taken: Taken) -> str | None:
        if taken.refused is not None:
            return taken.refused
        if taken.skipped and math.isfinite(taken.loss):
            # fp16's scaler meets an overflow now and then by design; anyone else's gradient must be finite.
            if self.stepper.precision.scaler is not None:
                return self.guard.overflowed()
            return f"the gradient's norm is {taken.gradient_norm}"
        return self.guard.check(taken.loss)

    def _passed_over(self, taken: Taken, index: int, trouble: str) -> bool:
        """Whether the policy is to go on without this batch, and that can be done; told if so."""
        if self.course.on_divergence != "skip" or not taken.skipped:
            return False
        if hopeless := self.guard.passed_over():
            self._give_up(f"{trouble}; {hopeless}")
        self._flush()
        message = f"{trouble} at step {self.state.step + 1}; its update is left out"
        self._notice("skipped_step", message, documents=self._documents(index))
        return True

    def _documents(self, index: int) -> list[int]:
        """The documents of a batch, the first of them."""
        return [int(document) for document in self.batches.documents(index)[:20]]

    def _diverged(self, trouble: str, *, after: bool = False) -> None:
        """Back to the newest checkpoint without the batches since, or give up; `after`: what did it is a step already."""
        self._flush()
        state = self.state
        if self.course.on_divergence != "rollback" or state.rollbacks >= MAX_ROLLBACKS:
            self._give_up(trouble, after=after)
        self.keeper.settle(wait=True)
        try:
            newest = checkpoints.load_newest(self.run, self.course.identity, self._tell_damage)
        except CheckpointError:
            newest = None
        if newest is None:
            self._give_up(f"{trouble}; there is no checkpoint to go back to", after=after)
        index = state.step + state.skipped - after
        documents, rate = self._documents(index), state.rate * self.course.rollback_lr
        snapshot, _ = newest
        self.restore(snapshot)
        # The next batch is the one after the poisonous one, whatever step it now belongs to.
        self.state.skipped, self.state.rollbacks = index + 1 - self.state.step, state.rollbacks + 1
        self.state.rate = rate
        self.emit(
            Notice(
                code="rolled_back",
                message=f"{trouble} at step {state.step + 1 - after}; back to step {self.state.step}, "
                f"the batches since are skipped, the learning rate is {rate:g} of the schedule's",
                step=state.step,
                details={"documents": documents, "skipped": self.state.skipped, "rate": rate},
            )
        )
        # Saved at once: a crash from here on must not forget which batches were poison.
        self._save()

    def _tell_damage(self, message: str) -> None:
        self._notice("damaged_checkpoint", message)

    def _notice(self, code: str, message: str, **details: Any) -> None:
        self.emit(Notice(code=code, message=message, step=self.state.step, details=details))

    def _give_up(self, trouble: str, *, after: bool = False) -> NoReturn:
        step, rollbacks = self.state.step - after, self.state.rollbacks
        again = f" after {rollbacks} roll-backs" if rollbacks else ""
        message = f"diverged at step {step + 1}{again}: {trouble}; try a lower optimizer.lr or more schedule.warmup"
        documents = self._documents(step + self.state.skipped)
        self.emit(Stopped(step=step, reason="diverged", message=message, details={"documents": documents}))
        raise DivergedError(message)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
