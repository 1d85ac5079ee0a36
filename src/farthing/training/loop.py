"""The training loop: steps until the budget is spent, and between steps whatever actions are due.

Nothing here knows what an evaluation, a screen or a search is: events go out, actions come in. The learning rate, the
data and the random numbers of a step are pure functions of its number, so a checkpoint needs to hold none of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from farthing.budget import Spent
from farthing.data.batches import Batches
from farthing.errors import DivergedError, Preempted, ResourceError
from farthing.events import Checkpointed, Emit, Evaluated, Notice, Step, Stopped
from farthing.optim.schedules import factor
from farthing.recipe.optimization import AnySchedule
from farthing.rundir import RunDir
from farthing.runtime.device import peak_memory_bytes
from farthing.runtime.seed import random_states, restore_random_states, seed_step
from farthing.training import checkpoint as checkpoints
from farthing.training.actions import Action, Moment
from farthing.training.averaging import Averaged
from farthing.training.guard import DivergenceGuard
from farthing.training.interruption import Interruption
from farthing.training.meter import Meter
from farthing.training.step import Abandoned, OutOfMemory, Stepper, Taken

MAX_ROLLBACKS = 3


@dataclass(frozen=True)
class Course:
    """What the plan has settled for the loop.

    Args:
        seed: of dropout; the data's order has it too.
        steps: optimizer steps in all.
        last_window: windows of the whole run (exclusive end), so that the last step serves exactly what remains.
        flops_per_token: training operations for one token.
        peak_flops: this machine's measured matrix-product rate, operations a second, or None.
        log_every: steps between flushes of step events.
        checkpoint_every: steps between checkpoints; 0 saves only at the end.
        keep: newest checkpoints to keep.
        keep_best: whether to keep the one with the best validation score too.
        on_divergence: stop or rollback.
        identity: fingerprints of recipe, data and tokenizer, written into every checkpoint.
        numeric: the numeric fingerprint of this machine, kept in the checkpoint's state.
        stop_seconds: guard of a budget in minutes: training seconds after which the run ends, or None.
        stop_money: guard of a budget in money, or None.
    """

    seed: int
    steps: int
    last_window: int
    flops_per_token: float
    peak_flops: float | None
    log_every: int
    checkpoint_every: int
    keep: int
    keep_best: bool
    on_divergence: str
    identity: dict[str, str]
    numeric: dict[str, Any]
    stop_seconds: float | None = None
    stop_money: float | None = None


@dataclass
class State:
    """Where a run stands; everything here is in the checkpoint."""

    step: int = 0
    spent: Spent = field(default_factory=Spent)
    skipped: int = 0
    """batches passed over after roll-backs"""
    rollbacks: int = 0
    best_bits_per_byte: float | None = None
    best_step: int | None = None
    validation: dict[str, Any] = field(default_factory=dict)
    """the last evaluation"""
    ended: bool = False
    """whether the last step's actions have been done too"""


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
        batches: Batches,
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
        self.log_position = log_position
        self.state = State()
        self._pending: list[Step] = []
        self._saved_step: int | None = None

    def train(self) -> State:
        """Take steps until the budget is spent.

        Raises:
            Preempted: a signal or deadline stopped the run; a checkpoint has been saved.
            DivergedError: the loss diverged and the policy, or the third roll-back, says stop.
            ResourceError: memory ran out with a micro-batch of one, or the final checkpoint cannot be written.
        """
        state, course = self.state, self.course
        while state.step < course.steps and not self._over_budget():
            if reason := self.interruption.reason:
                self._stop_for(reason)
            # 1) the pure functions of the step's number: rate, random numbers, data
            self.stepper.optimizer.set_factor(factor(self.schedule, state.step / course.steps))
            before = self.meter.seconds
            with self.meter.training():
                seed_step(course.seed, state.step + state.skipped)
                taken = self._take(state.step + state.skipped)
            if taken is None:
                continue
            # 2) look at the loss before believing in the step
            if trouble := self._trouble(taken):
                self._diverged(trouble)
                continue
            if self.average is not None and not taken.skipped:
                self.average.update()
            self._count(taken, self.meter.seconds - before)
            # 3) what is due between steps; the meter's clock stands still
            if state.step < course.steps:
                self._between_steps()
        self._end()
        return state

    def _take(self, index: int) -> Taken | None:
        """One step's update; None if it has to be tried again."""
        last = self.course.last_window + self.state.skipped * self.stepper.batch_size
        start = time.monotonic()
        try:
            taken = self.stepper.take(self.batches.batch(index, last_window=last))
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
        if state.step % course.log_every == 0 or state.step in (1, course.steps):
            self._flush()

    def _flush(self) -> None:
        for event in self._pending:
            self.emit(event)
        self._pending.clear()

    def _between_steps(self) -> None:
        moment = Moment(self.state.step, self.course.steps, self.state.spent)
        ran = self._act(moment)
        every = self.course.checkpoint_every
        asked = self.interruption.save_now or (every > 0 and moment.step % every == 0)
        if asked or (ran and self._is_new_best()):
            self.interruption.save_now = False
            self.save()

    def _act(self, moment: Moment) -> bool:
        due = [action for action in self.actions if action.due(moment)]
        if not due:
            return False
        self._flush()
        with self.average.swapped() if self.average is not None else nullcontext():
            for action in due:
                for event in action.run(moment, self.stepper.model):
                    self._note(event)
        return True

    def _note(self, event: Any) -> None:
        if isinstance(event, Evaluated):
            bits = event.validation.get("bits_per_byte")
            self.state.validation = event.validation
            # NaN is neither better nor worse than anything: it must not become, nor block, the best.
            if (
                bits is not None
                and math.isfinite(bits)
                and (self.state.best_bits_per_byte is None or bits < self.state.best_bits_per_byte)
            ):
                self.state.best_bits_per_byte, self.state.best_step = bits, event.step
                event = replace(event, best=True)
        self.emit(event)

    def _is_new_best(self) -> bool:
        return self.course.keep_best and self.state.best_step == self.state.step

    def save(self) -> None:
        """Write a checkpoint of this moment, once; a full disk is reported and training goes on."""
        self._flush()
        optimizer_tensors, optimizer_values = self.stepper.optimizer.state()
        average_tensors, average_values = self.average.state() if self.average is not None else (None, None)
        state = {
            "format": checkpoints.FORMAT,
            **asdict(self.state),
            "optimizer": optimizer_values,
            "scaler": self.stepper.precision.state(),
            "guard": self.guard.state(),
            "average": average_values,
            "micro_batch": self.stepper.micro_batch,
            "wall_seconds": self.meter.wall_seconds,
            "random": random_states(),
            "events_bytes": self.log_position(),
            "numeric": self.course.numeric,
        }
        snapshot = checkpoints.Snapshot(
            model=dict(self.stepper.model.state_dict()),
            optimizer=optimizer_tensors,
            average=average_tensors,
            state=state,
        )
        if not checkpoints.is_finite(snapshot.model):
            raise DivergedError("the weights are not finite; they are not saved over good ones")
        try:
            saved = checkpoints.save(self.run, self.state.step, snapshot, self.course.identity)
        except OSError as error:
            self.emit(
                Notice(
                    code="checkpoint_failed",
                    message=f"the checkpoint of step {self.state.step} could not be written: {error.strerror or error}; "
                    "older ones are untouched",
                    step=self.state.step,
                )
            )
            return
        self._saved_step = self.state.step
        self.interruption.took(save=saved.seconds)
        self.emit(
            Checkpointed(
                step=self.state.step,
                path=str(saved.path.relative_to(self.run.path)),
                bytes=saved.bytes,
                seconds=round(saved.seconds, 3),
            )
        )
        checkpoints.prune(
            self.run, keep=self.course.keep, protect=self.state.best_step if self.course.keep_best else None
        )

    def restore(self, snapshot: checkpoints.Snapshot) -> None:
        """Put everything back as it was at a checkpoint."""
        saved = snapshot.state
        self.stepper.model.load_state_dict(snapshot.model, strict=True)
        self.stepper.optimizer.load_state(snapshot.optimizer, saved["optimizer"])
        self.stepper.precision.load_state(saved["scaler"])
        self.guard.load_state(saved["guard"])
        if self.average is not None:
            assert snapshot.average is not None
            self.average.load_state(snapshot.average, saved["average"])
        self.stepper.micro_batch = saved["micro_batch"]
        restore_random_states(saved["random"])
        self.state = State(
            step=saved["step"],
            spent=Spent(**saved["spent"]),
            skipped=saved["skipped"],
            rollbacks=saved["rollbacks"],
            best_bits_per_byte=saved["best_bits_per_byte"],
            best_step=saved["best_step"],
            validation=saved["validation"],
            ended=saved["ended"],
        )
        self._saved_step = self.state.step
        self._pending.clear()

    def _stop_for(self, reason: str) -> None:
        self._flush()
        if self._saved_step != self.state.step:
            self.save()
        where = f"stopped after step {self.state.step} of {self.course.steps}"
        message = f"{reason}; {where}. Continue with: farthing resume {self.run.path}"
        self.emit(Stopped(step=self.state.step, reason="preempted", message=message))
        raise Preempted(message)

    def _over_budget(self) -> bool:
        """Whether minutes or money have run out before the steps they were turned into."""
        seconds, money = self.course.stop_seconds, self.course.stop_money
        return (seconds is not None and self.meter.seconds >= seconds) or (
            money is not None and self.meter.money >= money
        )

    def _end(self) -> None:
        self._flush()
        if not self.state.ended:
            if self.state.step < self.course.steps:
                message = (
                    f"the budget of minutes or money ran out at step {self.state.step} of {self.course.steps}: the machine "
                    "was slower than measured at the start, and the run ends before its schedule does"
                )
                self.emit(Notice(code="budget_guard", message=message, step=self.state.step))
            # The weights are paid for: nothing that follows may cost them.
            self.save()
            self._act(Moment(self.state.step, self.state.step, self.state.spent))
            self.state.ended = True
            self.save()
        if self._saved_step != self.state.step:
            raise ResourceError(
                f"{self.run.path}: the final checkpoint could not be written; free some space, then: "
                f"farthing resume {self.run.path}"
            )

    def _less_memory(self, error: OutOfMemory) -> None:
        old = self.stepper.micro_batch
        if old == 1:
            self.emit(Stopped(step=self.state.step, reason="out_of_memory", message=str(error)))
            raise ResourceError(f"out of memory with one sequence at a time: {error}; use a smaller model or context")
        self.stepper.micro_batch = -(-old // 2)
        self.emit(
            Notice(
                code="out_of_memory",
                message=f"out of memory: micro-batch {old} -> {self.stepper.micro_batch}, more accumulation; same batch",
                step=self.state.step,
                details={"micro_batch": self.stepper.micro_batch},
            )
        )

    def _trouble(self, taken: Taken) -> str | None:
        if taken.skipped:
            # fp16's scaler meets an overflow now and then by design; a finite loss says that is all it was.
            return self.guard.check(taken.loss) if not math.isfinite(taken.loss) else None
        if not math.isfinite(taken.gradient_norm) and math.isfinite(taken.loss):
            return f"the gradient's norm is {taken.gradient_norm}"
        return self.guard.check(taken.loss)

    def _diverged(self, trouble: str) -> None:
        self._flush()
        step = self.state.step
        documents = self.batches.documents(step + self.state.skipped)[:20].tolist()
        newest = checkpoints.load_newest(self.run, self.course.identity, lambda message: None)
        if self.course.on_divergence == "stop" or self.state.rollbacks >= MAX_ROLLBACKS or newest is None:
            again = f" after {self.state.rollbacks} roll-backs" if self.state.rollbacks else ""
            message = f"diverged at step {step + 1}{again}: {trouble}; try a lower optimizer.lr or more schedule.warmup"
            self.emit(Stopped(step=step, reason="diverged", message=message))
            raise DivergedError(message)
        skipped, rollbacks = self.state.skipped + step + 1 - newest[0].state["step"], self.state.rollbacks + 1
        self.restore(newest[0])
        self.state.skipped, self.state.rollbacks = skipped, rollbacks
        self.emit(
            Notice(
                code="rolled_back",
                message=f"{trouble} at step {step + 1}; back to step {self.state.step}, the batches since are skipped",
                step=step,
                details={"documents": documents, "skipped": skipped},
            )
        )
        # Saved at once: a crash from here on must not forget which batches were poison.
        self.save()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
