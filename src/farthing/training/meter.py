"""The clocks of a run: training seconds apart from start-up and everything else, and what the machine costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from farthing.events import Ready


class StartUp:
    """Times what comes before the first step of a sitting, stage by stage.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin = clock()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time in this block belongs to a stage."""
        start = self._clock()
        try:
            yield
        finally:
            self._stages[name] = self._stages.get(name, 0.0) + self._clock() - start

    def part(self, name: str, seconds: float, *, of: str) -> None:
        """Tell so many seconds of a stage apart from it."""
        self._stages[name] = self._stages.get(name, 0.0) + seconds
        self._stages[of] = max(0.0, self._stages.get(of, 0.0) - seconds)

    @property
    def seconds(self) -> float:
        """Since the sitting began."""
        return self._clock() - self._begin

    def ready(self) -> Ready:
        """The event that tells all of it, now that it is over."""
        names = ("text", "plan", "trial", "build", "compile")
        text, plan, trial, build, compile_ = (round(self._stages.get(name, 0.0), 3) for name in names)
        return Ready(seconds=round(self.seconds, 3), text=text, plan=plan, trial=trial, build=build, compile=compile_)


class Meter:
    """Adds up training time and wall time over all sittings of a run.

    Training time passes only inside `training()`; evaluation, checkpoints and start-up are outside.

    Args:
        seconds: training seconds of earlier sittings.
        wall_seconds: all seconds of earlier sittings.
        already: seconds of this sitting that passed before the meter was made (imports, data, planning).
        price_per_hour: what the machine costs, or None.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        *,
        seconds: float = 0.0,
        wall_seconds: float = 0.0,
        already: float = 0.0,
        price_per_hour: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self._clock = clock
        self._begin = clock() - already
        self._earlier = wall_seconds
        self._price = price_per_hour

    @contextmanager
    def training(self) -> Iterator[None]:
        """Time in this block is training time."""
        start = self._clock()
        try:
            yield
        finally:
            self.seconds += self._clock() - start

    @property
    def wall_seconds(self) -> float:
        """Everything so far, over all sittings."""
        return self._earlier + self._clock() - self._begin

    @property
    def money(self) -> float:
        """The price of the wall time so far; 0 where no price is given."""
        return 0.0 if self._price is None else self.wall_seconds / 3600 * self._price
