"""The driver's end of taking turns: one long-lived process for each side, all of them idle but the one whose turn it is.

Each side has memory, threads and environment of its own. A side that waits is blocked reading its standard input; the
threads of its OpenMP pool go to sleep some milliseconds after their last work (libgomp's default, which is what users
have), and `idle_share` checks that they do.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import bench
import psutil

QUIT_SECONDS = 20.0


class SideFailed(Exception):
    """A side's process ended, or never began; says why."""


class Side:
    """One side's process.

    Args:
        name: what the tables call it.
        module: the worker, for example sides.plain.
        asked: what it is asked for: the JSON object it gets as its argument.
        python: the interpreter of the side's environment.
        env: environment variables besides our own.

    Raises:
        SideFailed: it ended before it was ready.
    """

    def __init__(
        self,
        name: str,
        module: str,
        asked: Mapping[str, Any],
        *,
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115, as long as we
        try:
            self._process = subprocess.Popen(
                [python, "-m", module, json.dumps(dict(asked))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                cwd=bench.HERE,
                env={**os.environ, **(env or {})},
            )
        except OSError as error:
            self._errors.close()
            raise SideFailed(f"{name}: {python}: {error.strerror}") from None
        start = time.monotonic()
        try:
            self.facts = self._read()
        except SideFailed:
            self.kill()
            raise
        self.start_seconds = time.monotonic() - start

    def go(self, units: int) -> float:
        """Let it do so many units of work (steps, tokens, passes); returns the seconds of one."""
        return float(self._ask(f"go {units}")["seconds"]) / units

    def ask(self, question: str) -> Any:
        """One of the further questions that it answers."""
        return self._ask(question)["answer"]

    def quit(self) -> int:
        """End it; returns the most bytes of memory it has held."""
        peak = int(self._ask("quit")["peak_bytes"])
        # It may have processes of its own to end (a compiler's).
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(QUIT_SECONDS)
        self.kill()
        return peak

    def kill(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def cpu_seconds(self) -> float:
        """Processor seconds that it has used, of all its threads together."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone; reading says why
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise SideFailed(f"{self.name}: exit code {self._process.returncode}\n{self._errors.read()[-3000:]}")
        return dict(json.loads(line))


@contextmanager
def sides(starts: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Side]]:
    """Start each side (arguments of Side by name), one after the other.

    A rival that cannot be had is named and left out; without one of ours there is nothing to measure.
    """
    with ExitStack() as stack:
        found = {}
        for name, arguments in starts.items():
            try:
                side = Side(name, **arguments)
            except SideFailed as failure:
                if name.startswith("ours"):
                    raise SystemExit(str(failure)) from None
                print(f"left out: {failure}", file=sys.stderr, flush=True)
                continue
            stack.callback(side.kill)
            found[name] = side
        yield found


def take_turns(there: Mapping[str, Side], *, rounds: int, seconds: float, most: int = 10_000) -> dict[str, list[float]]:
    """Seconds of a unit of each side's work, round by round; a turn lasts about `seconds`, after one that is not kept."""
    units = {}
    for name, side in there.items():
        once = side.go(1)
        units[name] = max(1, min(most, math.ceil(seconds / once)))
    return bench.in_turn({name: (lambda side=side, n=units[name]: side.go(n)) for name, side in there.items()}, rounds)


def idle_share(there: Mapping[str, Side], name: str, others: Sequence[str], *, seconds: float) -> dict[str, float]:
    """Cores that each of the others keeps busy while one side works: near zero if waiting costs nothing."""
    before = {other: there[other].cpu_seconds() for other in others}
    once = there[name].go(1)
    units = max(1, math.ceil(seconds / once))
    lasted = once + units * there[name].go(units)
    return {other: (there[other].cpu_seconds() - before[other]) / lasted for other in others}
