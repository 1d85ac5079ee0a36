"""How long an optimizer step takes here, measured on a few real ones with a model that is thrown away."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from farthing.data.batches import Batch, Batches
from farthing.errors import ResourceError
from farthing.runtime.probes import synchronize
from farthing.runtime.seed import random_states, restore_random_states
from farthing.training.step import OutOfMemory, Stepper

LEAST_STEPS = 3


@dataclass(frozen=True)
class Measured:
    """Seconds of one whole optimizer step, the mean over `samples` micro-batches or steps."""

    seconds_per_step: float
    samples: int


def measure(stepper: Stepper, batches: Batches, *, seconds: float) -> Measured:
    """Take steps for about `seconds` and time them; where a step has many micro-batches, time a few of them.

    The stepper's model and optimizer are changed: give it ones that are not needed. Torch's random state is put back.

    Raises:
        ResourceError: not even one sequence at a time fits.
    """
    states = random_states()
    stepper.optimizer.set_factor(0.0)
    accumulation = -(-stepper.batch_size // stepper.micro_batch)
    # The first step allocates, initialises and compiles; it says little about the others.
    batch = batches.batch(0)
    start = time.monotonic()
    while True:
        part = batch.rows(0, min(stepper.batch_size, stepper.micro_batch))
        try:
            stepper.take(part)
            break
        except OutOfMemory as error:
            if stepper.micro_batch == 1 or error.in_update:
                raise ResourceError(f"out of memory before the first step: {error}; use a smaller model") from None
            stepper.micro_batch = -(-stepper.micro_batch // 2)
            accumulation = -(-stepper.batch_size // stepper.micro_batch)
    first = time.monotonic() - start
    whole = accumulation * first < seconds / LEAST_STEPS
    times: list[float] = []
    while len(times) < LEAST_STEPS or (sum(times) < seconds and len(times) < 50):
        probe = batches.batch(len(times) + 1)
        start = time.monotonic()
        stepper.take(probe if whole else probe.rows(0, stepper.micro_batch))
        synchronize(stepper.device.type)
        times.append(time.monotonic() - start)
    # The mean, not the median: a run pays for the hiccups of a shared machine too.
    step = sum(times) / len(times)
    if not whole and accumulation > 1:
        # Each of these updated the weights, as only the last micro-batch of a step does.
        step = step * accumulation - (accumulation - 1) * update_seconds(stepper, batch, clock=time.monotonic)
    restore_random_states(states)
    return Measured(step, len(times))


def update_seconds(stepper: Stepper, batch: Batch, *, clock: Callable[[], float]) -> float:
    """What a step takes beyond its forward and backward passes, on one window of a batch; weights are updated."""
    part = batch.rows(0, 1)
    passes, steps = [], []
    for _ in range(2):
        start = clock()
        stepper.model.train()
        stepper.accumulate(part)
        synchronize(stepper.device.type)
        passes.append(clock() - start)
        stepper.optimizer.zero_grad()
        start = clock()
        stepper.take(part)
        synchronize(stepper.device.type)
        steps.append(clock() - start)
    return max(0.0, min(steps) - min(passes))
