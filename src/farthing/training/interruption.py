"""Being told to stop: signals, deadlines, and how much time a clean stop needs.

A handler only sets a flag; the loop looks at it between micro-batches, where the weights are whole.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping
from datetime import datetime
from types import FrameType, TracebackType
from typing import Any

from farthing.errors import UserError

SAFETY_SECONDS = 10.0
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s)?")


class Abandoned(Exception):
    """A stop was asked for in the middle of something that can be done again; weights are those of the last whole step."""


def parse_deadline(text: str, *, now: float | None = None) -> float:
    """When to be gone, in Unix seconds, from a duration (90m, 1h30m, 45s, 600) or a local time (2026-11-22T18:00).

    Raises:
        UserError: it is neither, or lies in the past.
    """
    now = time.time() if now is None else now
    match = _DURATION.fullmatch(text.strip().lower())
    if text.strip().replace(".", "", 1).isdecimal():
        at = now + float(text)
    elif match and any(match.groups()):
        hours, minutes, seconds = (float(group or 0) for group in match.groups())
        at = now + hours * 3600 + minutes * 60 + seconds
    else:
        try:
            at = datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError):
            raise UserError(
                f"--deadline {text!r}: write a duration (90m, 1h30m, 600) or a time (2026-11-22T18:00)"
            ) from None
    if at <= now:
        raise UserError(f"--deadline {text!r}: that is in the past")
    return at


def slurm_deadline(environment: Mapping[str, str] = os.environ) -> float | None:
    """The end of the SLURM job this process runs in, in Unix seconds, if it runs in one."""
    end = environment.get("SLURM_JOB_END_TIME", "")
    return float(end) if end.isdecimal() else None


def _steady_now() -> float:
    """Seconds on a clock that cannot be set, and that goes on while the machine sleeps, where there is such a clock."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


class Interruption:
    """Listens, as a context manager, for signals and the clock.

    SIGTERM and a first SIGINT ask for a checkpoint and a stop; a second SIGINT stops at once (exit code 130);
    SIGUSR1 asks for a checkpoint and goes on; SIGHUP is ignored, so that a lost terminal does not end a run.

    Args:
        deadline: Unix seconds by which the process must be gone, or None.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.signal: str | None = None
        self.save_now = False
        # Held against a clock that nobody sets: one put forward by a day must not end a run.
        self._until = None if deadline is None else _steady_now() + (deadline - time.time())
        self._slowest_step = 0.0
        self._slowest_save = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        handlers: dict[str, Any] = {
            "SIGTERM": self._stop,
            "SIGINT": self._stop,
            "SIGUSR1": self._save,
            "SIGHUP": signal.SIG_IGN,
        }
        for name, handler in handlers.items():
            number = getattr(signal, name, None)
            if number is not None:
                try:
                    self._before[number] = signal.signal(number, handler)
                except ValueError:
                    # Not the main thread (a notebook's worker): signals stay with their owner.
                    return self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def took(self, *, step: float = 0.0, save: float = 0.0) -> None:
        """Tell how long a step or a save took, in seconds; the slowest of each is what a stop must allow for."""
        self._slowest_step = max(self._slowest_step, step)
        self._slowest_save = max(self._slowest_save, save)

    @property
    def has_deadline(self) -> bool:
        """Whether the clock may end the run."""
        return self._until is not None

    @property
    def reason(self) -> str | None:
        """Why the run must stop now, or None."""
        if self.signal is not None:
            return f"{self.signal} received"
        if self._until is not None:
            needed = 2 * self._slowest_save + self._slowest_step + SAFETY_SECONDS
            left = self._until - _steady_now()
            if left < needed:
                return f"deadline in {max(0.0, left):.0f} s, a clean stop needs up to {needed:.0f} s"
        return None

    def go_on(self) -> None:
        """Whoever is in the middle of something asks this.

        Raises:
            Abandoned: the run must stop now.
        """
        if self.reason is not None:
            raise Abandoned

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.signal == "SIGINT" and number == signal.SIGINT:
            os._exit(130)
        self.signal = signal.Signals(number).name

    def _save(self, number: int, frame: FrameType | None) -> None:
        self.save_now = True
