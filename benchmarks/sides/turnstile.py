"""The worker's end of taking turns: it works only when told to, and says how long that took.

Messages are JSON lines on standard input and output; see benchmarks/turns.py for the driver's end. Only the standard
library, so that it runs in any environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WARM_UP = 3
"""units of work before the first turn: they allocate, initialise and compile"""


def asked() -> dict[str, Any]:
    """What the driver asks of this worker: the JSON object that is its only argument."""
    table: dict[str, Any] = json.loads(sys.argv[1])
    return table


class Turnstile:
    """Stands between two units of work (steps, tokens, passes) and lets as many through as the driver has asked for.

    `while turnstile.next(): step()` is a worker. Where a library owns the loop, call next() from a hook of it.

    Args:
        facts: told to the driver when the warm-up is over.
        answers: further questions that the driver may ask between two units, by name.
        warm_up: units before the first turn.
        settle: called before a clock is read, where a device may still be at work.
    """

    def __init__(
        self,
        facts: Mapping[str, Any],
        answers: Mapping[str, Callable[[], Any]] | None = None,
        *,
        warm_up: int = WARM_UP,
        settle: Callable[[], object] = lambda: None,
    ) -> None:
        # Libraries print what they like: the driver's pipe is kept apart, and their standard output goes to the errors.
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._facts, self._answers, self._settle = dict(facts), dict(answers or {}), settle
        self._left, self._start, self._ready = warm_up, time.perf_counter(), False

    def next(self) -> bool:
        """Wait until another unit is wanted; False when the driver has had enough."""
        if self._left:
            self._left -= 1
            return True
        self._settle()
        seconds = time.perf_counter() - self._start
        if self._ready:
            self._say({"seconds": seconds})
        else:
            self._ready = True
            self._say({**self._facts, "warm_up_seconds": seconds})
        return self._wait()

    def _wait(self) -> bool:
        for line in sys.stdin:
            word, _, argument = line.strip().partition(" ")
            if word == "go":
                self._left, self._start = int(argument) - 1, time.perf_counter()
                return True
            if word == "quit":
                break
            self._say({"answer": self._answers[word]()})
        self._say({"peak_bytes": peak_memory()})
        return False

    def _say(self, message: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


def peak_memory() -> int:
    """Most bytes of memory that this process has held (VmHWM)."""
    lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
