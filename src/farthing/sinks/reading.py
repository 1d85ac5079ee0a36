"""Progress of what comes before the first step (reading, training a tokenizer, tokenising, fetching), and the hand-over."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from farthing.events import Event, Started, Stopped
from farthing.sinks.console import Console, Outlook
from farthing.sinks.legible import duration, legible
from farthing.sinks.summary import terminal

_QUIET_SECONDS = 2.0
"""a stage that is over sooner is not worth a line in a log"""


class Reading:
    """Shows stages as they are reported: a bar on a terminal, a line a stage elsewhere. A context manager.

    Call it with a stage's name, what is done and the total (0 where it is not known), in any one unit.

    Args:
        quiet: show nothing.
        stream: where to write; by default standard error.
        clock: seconds, rising.
    """

    def __init__(
        self, *, quiet: bool = False, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._clock = clock
        self._screen = terminal(self._stream)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._stage: str | None = None
        self._since = 0.0

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # A stage that failed has not taken so and so long: the error is all there is to say.
            self._stage = None
        self.close()

    def __call__(self, stage: str, done: float, total: float) -> None:
        """Take in progress; a screen that has gone away is no reason to fail."""
        if self._quiet:
            return
        if stage != self._stage:
            self._end_stage()
            self._stage, self._since = stage, self._clock()
        with suppress(OSError, ValueError):
            if self._screen.is_terminal:
                self._draw(stage, done, total)

    def close(self) -> None:
        """End the last stage and leave the terminal as it was found."""
        self._end_stage()
        if self._bars is not None:
            with suppress(OSError, ValueError):
                self._bars.stop()
            self._bars = None

    def _draw(self, stage: str, done: float, total: float) -> None:
        if self._bars is None:
            columns = (TextColumn("  {task.description}"), BarColumn(30), TimeRemainingColumn())
            self._bars = Progress(*columns, console=self._screen, transient=True)
            self._bars.start()
        for other, task in self._tasks.items():
            if other != stage:
                # A stage whose length nobody knew would otherwise look as if it still went on.
                self._bars.update(task, total=1, completed=1)
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(legible(stage), total=total or None)
        self._bars.update(self._tasks[stage], completed=done, total=total or None)

    def _end_stage(self) -> None:
        stage, self._stage = self._stage, None
        if stage is None:
            return
        took = self._clock() - self._since
        if took >= _QUIET_SECONDS:
            with suppress(OSError, ValueError):
                self._screen.print(f"{legible(stage)}: {duration(took)}")
                self._stream.flush()


class Following:
    """A console for one sitting of a run: told of the run at once, and not of what breaks it off.

    Building a model takes seconds in which the person should already see what is coming. What breaks a run off is
    raised as well, and the command or the notebook shows that.

    Args:
        outlook: what is known of the run.
        recipe: fingerprint of its recipe.
        quiet: only notices.
        stream: where to write; by default as Console does.
    """

    def __init__(self, outlook: Outlook, *, recipe: str, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._console = Console(outlook, quiet=quiet, stream=stream)
        self._console(Started(run=outlook.run, recipe=recipe, parameters=outlook.parameters, steps=outlook.steps))

    def __call__(self, event: Event) -> None:
        """Pass an event on."""
        if isinstance(event, Stopped):
            self.close()
        elif not isinstance(event, Started):
            self._console(event)

    def close(self) -> None:
        """Leave the terminal as it was found."""
        self._console.close()
