"""A bench on which settings take real steps in turn, all with one set of weights that is thrown away."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch

from farthing.data.batches import Batch, Batches
from farthing.errors import first_line
from farthing.runtime.probes import synchronize
from farthing.runtime.seed import random_states, restore_random_states
from farthing.training import parity
from farthing.training.calibrate import update_seconds
from farthing.training.parity import Parity
from farthing.training.step import OutOfMemory, Stepper

LEAST_ROUNDS, MOST_ROUNDS = 3, 12
CLEARLY_SLOWER = 1.25
"""A challenger that takes so many times as long has lost, and is not timed for longer than it has to be."""
ROUNDS_IN_TRIAL = 50
"""steps that fit in a trial: about eight of each candidate"""


class Way(Protocol):
    """Settings, as far as the bench must know them."""

    @property
    def threads(self) -> int:
        """CPU threads."""

    @property
    def compile(self) -> bool:
        """Whether the model is compiled."""

    def __hash__(self) -> int: ...


W = TypeVar("W", bound=Way)


@dataclass(frozen=True)
class Race:
    """Seconds of whole optimizer steps, taken in turn on the same batches."""

    incumbent: list[float] = field(default_factory=list)
    challenger: list[float] = field(default_factory=list)
    compile_seconds: float = 0.0
    failure: str = ""
    """why the challenger cannot be used; it has no times then"""


class Bench(Generic[W]):
    """Steppers for whatever settings are asked for, which share their parameters and their optimizer.

    Args:
        build: a stepper for some settings, with the parameters of another if one is given.
        batches: real ones.
        clock: seconds, rising.
    """

    def __init__(
        self,
        build: Callable[[W, Stepper | None], Stepper],
        batches: Batches,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._build, self._batches, self._clock = build, batches, clock
        self._steppers: dict[W, Stepper] = {}
        self._states = random_states()
        self._windows = 1
        self._update = 0.0
        self._compiled = False

    def __enter__(self) -> Bench[W]:
        return self

    def __exit__(self, *_: object) -> None:
        self._steppers.clear()
        restore_random_states(self._states)

    def stepper(self, way: W) -> Stepper:
        """The stepper for some settings."""
        if way not in self._steppers:
            like = next(iter(self._steppers.values()), None)
            made = self._build(way, like)
            if like is None:
                parity.fill_zeros(made.model)
                made.optimizer.set_factor(0.0)
            self._steppers[way] = made
        return self._steppers[way]

    def step_seconds(self, way: W, *, guess: float) -> float | None:
        """About how long a step takes, from a few windows where it is guessed to take more than a second.

        None where it does not fit in memory.
        """
        stepper = self.stepper(way)
        self._windows = max(1, min(stepper.batch_size, int(stepper.batch_size / max(guess, 1e-9))))
        try:
            self._take(way, 0)
            if self._windows < stepper.batch_size:
                self._update = update_seconds(stepper, self._batches.batch(0), clock=self._clock)
            return min(self._timed(way, number) for number in (1, 2))
        except OutOfMemory:
            return None

    def allow(self, step_seconds: float, trial_seconds: float) -> None:
        """Settle on as many windows for each candidate's steps as a trial of so many seconds has time for."""
        batch_size = next(iter(self._steppers.values())).batch_size
        share = trial_seconds / ROUNDS_IN_TRIAL / step_seconds
        self._windows = max(1, min(batch_size, int(share * batch_size)))

    def race(self, incumbent: W, challenger: W, *, seconds: float) -> Race:
        """Steps of both in turn for about `seconds`; a challenger that does not work is told in `failure`."""
        # Who has lost is let go: its copies of the weights in a lower precision take memory.
        self._steppers = {incumbent: self.stepper(incumbent)}
        stepper = self.stepper(challenger)
        micro_batch = stepper.micro_batch
        # What is compiled is compiled for micro-batches of one size.
        stepper.micro_batch = min(micro_batch, self._windows)
        try:
            start = self._clock()
            self._take(challenger, 0)
            first = self._clock() - start
            if challenger.compile:
                self._compiled = True
                found = parity.compare_compiled(stepper, self._part(0))
                if not found.holds:
                    return Race(failure=f"compiled, it does not compute the same: {found.told()}")
            self._take(incumbent, 0)
            times = self._rounds(incumbent, challenger, seconds)
        except OutOfMemory:
            return Race(failure="does not fit in memory")
        except Exception as error:
            if challenger.compile:
                return Race(failure=f"torch.compile failed: {first_line(error)}")
            if not isinstance(error, RuntimeError):
                raise
            # An operation that torch does not have in this format, say.
            return Race(failure=f"does not work here: {first_line(error)}")
        finally:
            stepper.micro_batch = micro_batch
        return Race(*times, compile_seconds=max(0.0, first - min(times[1])) if challenger.compile else 0.0)

    def _rounds(self, incumbent: W, challenger: W, seconds: float) -> tuple[list[float], list[float]]:
        times: tuple[list[float], list[float]] = ([], [])
        begun = self._clock()
        for number in range(MOST_ROUNDS):
            for way, taken in zip((incumbent, challenger), times, strict=True):
                taken.append(self._timed(way, number))
            over = self._clock() - begun >= seconds or min(times[1]) > CLEARLY_SLOWER * min(times[0])
            if number + 1 >= LEAST_ROUNDS and over:
                break
        return times

    def compare(self, way: W, plain: W) -> Parity:
        """Hold settings against plain ones on a few tokens of the first batch."""
        batch = parity.few_tokens(self._batches.batch(0))
        return parity.compare(self.stepper(way), self.stepper(plain), batch)

    def forget_compiled(self) -> None:
        """Drop what has been compiled, if anything: to be called where a run is not to use it."""
        if self._compiled:
            torch.compiler.reset()

    def _part(self, number: int) -> Batch:
        return self._batches.batch(number).rows(0, self._windows)

    def _take(self, way: W, number: int) -> None:
        stepper = self.stepper(way)
        if stepper.device.type == "cpu" and torch.get_num_threads() != way.threads:
            torch.set_num_threads(way.threads)
        stepper.take(self._part(number))
        synchronize(stepper.device.type)

    def _timed(self, way: W, number: int) -> float:
        """Seconds of a whole step, worked out where only some of its windows are taken."""
        start = self._clock()
        self._take(way, number)
        seconds = self._clock() - start
        whole = self.stepper(way).batch_size / self._windows
        return seconds if whole <= 1 else max(seconds - self._update, seconds / 10) * whole + self._update
