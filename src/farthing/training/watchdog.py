"""What every thread was doing when a run got nowhere: for a device, a disk or a worker that hangs without a word."""

from __future__ import annotations

import faulthandler
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

PATIENCE = 300.0
"""seconds without a step, an evaluation or a save coming to its end, before that is worth a look"""
TIMES_THE_SLOWEST = 10.0
"""and how many times the slowest of them so far"""


class Watchdog:
    """Writes the stacks of all threads to a file when nothing has happened for long, as a context manager.

    It neither ends nor delays a run: what looks like a hang may be a laptop that slept. The dump is made by a thread
    without Python's lock, so that it works where Python itself is stuck in a call.

    Args:
        path: the file; it is made at the first stall.
        patience: seconds; see PATIENCE.
    """

    def __init__(self, path: Path, *, patience: float = PATIENCE) -> None:
        self._path, self._patience = path, patience
        self._slowest = 0.0
        self._since = 0.0
        self._armed_at, self._limit = -1.0, patience
        self._file: IO[bytes] | None = None
        self._written = 0

    def __enter__(self) -> Watchdog:
        with suppress(OSError):
            # Opened now: where things hang, opening a file may hang as well.
            self._file = self._path.open("ab")
            self._written = self._file.tell()
        self._since = time.monotonic()
        self._arm(self._since)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        faulthandler.cancel_dump_traceback_later()
        empty = self._file.seek(0, 2) == 0
        self._file.close()
        self._file = None
        if empty:
            self._path.unlink(missing_ok=True)

    def alive(self) -> float | None:
        """Tell that something has come to its end; returns how many seconds it took if stacks were written meanwhile."""
        now = time.monotonic()
        took, self._since = now - self._since, now
        self._slowest = max(self._slowest, took)
        dumped = self._file is not None and self._file.seek(0, 2) > self._written
        # Starting the timer anew costs a thread: a step of a millisecond should not pay that each time.
        if dumped or now - self._armed_at > self._limit / 10:
            self._arm(now)
        return took if dumped else None

    def _arm(self, now: float) -> None:
        if self._file is None:
            return
        self._written = self._file.seek(0, 2)
        self._armed_at = now
        self._limit = max(self._patience, TIMES_THE_SLOWEST * self._slowest)
        faulthandler.dump_traceback_later(self._limit, file=self._file)
