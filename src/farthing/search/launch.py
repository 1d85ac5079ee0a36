"""One process a run: `farthing train` or `farthing resume`, watched through its run folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from farthing import config
from farthing.compare.runs import read_held_out
from farthing.compare.statistics import summarise
from farthing.errors import FarthingError, UserError
from farthing.events import Evaluated, Ready, Started, Step, read_events
from farthing.rundir import RunDir, read_result
from farthing.section import Section
from farthing.storage import read_json

STOPPED = 75
"""exit code of a run that was told to stop and saved itself"""
REFUSED = 2
MEANINGS = {
    1: "a fault in farthing",
    2: "refused",
    3: "its text is gone, changed or damaged",
    4: "no valid checkpoint",
    5: "diverged",
    6: "out of memory or disk",
    7: "another process held its folder",
    75: "stopped from outside",
    130: "interrupted",
}
_LABEL = re.compile(r"^(?:error|stopped): ")


class Job:
    """A run that is being trained by a process of ours, or by one that an earlier sitting has left behind.

    Args:
        run: its folder.
        recipe: what to train, if there is no folder yet.
        seed: of the run.
        device: auto, cpu, cuda or mps.
        output: file that the process's output is added to.
        cores: the logical cores that it may use; none: all.
        orphan: process id of one that may still be running.
    """

    def __init__(
        self,
        run: RunDir,
        *,
        recipe: Path,
        seed: int,
        device: str,
        output: Path,
        cores: Sequence[int] = (),
        orphan: int | None = None,
    ) -> None:
        self.run = run
        self.seed = seed
        self.stopping = False
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None
        self._orphan = orphan
        self._begins = output.stat().st_size if output.exists() else 0
        if self._alive():
            return
        self._orphan = None
        self._process = _launched(run, recipe, seed, device, output, cores)

    @property
    def process(self) -> int | None:
        """The process id, where it is known."""
        return self._orphan if self._process is None else self._process.pid

    def ended(self) -> int | None:
        """The exit code once it has ended, else None; of a process that is not ours, the code that its files tell."""
        if self._process is not None:
            return self._process.poll()
        if self._alive():
            return None
        return 0 if self.run.result.is_file() else STOPPED

    def stop(self) -> None:
        """Ask it to save itself and stop."""
        self.stopping = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.stopping = True
        self._signal(signal.SIGKILL)

    def last_words(self) -> str:
        """The last line that its process printed, without "error:"."""
        with suppress(OSError), self._output.open("rb") as stream:
            stream.seek(self._begins)
            lines = [line for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
            return _LABEL.sub("", lines[-1])[:300] if lines else ""
        return ""

    def why(self, code: int) -> str:
        """What an exit code means, and what the process said last."""
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            hint = "; the system does that where memory runs out" if name == "SIGKILL" else ""
            return f"killed by {name}{hint}"
        words = self.last_words()
        return MEANINGS.get(code, f"exit code {code}") + (f": {words}" if words else "")

    def _alive(self) -> bool:
        """Whether a process that is not ours works on this run: it holds the folder, or is about to make it."""
        return self.run.is_locked() or self._left_behind() is not None

    def _left_behind(self) -> psutil.Process | None:
        if self._orphan is None:
            return None
        try:
            process = psutil.Process(self._orphan)
            # A process id may belong to somebody else by now.
            ours = process.status() != psutil.STATUS_ZOMBIE and self.run.name in " ".join(process.cmdline())
        except psutil.Error:
            return None
        return process if ours else None

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, psutil.Error):
            if self._process is not None:
                os.killpg(self._process.pid, number)
            elif (process := self._left_behind()) is not None:
                process.send_signal(number)


def _launched(
    run: RunDir, recipe: Path, seed: int, device: str, output: Path, cores: Sequence[int]
) -> subprocess.Popen[bytes]:
    common = ["--device", device, "--quiet"]
    if run.recipe.is_file():
        words = ["resume", str(run.path), *common]
    else:
        words = ["train", str(recipe), f"seed={seed}", "--name", run.name, "--runs", str(run.path.parent), *common]
    environment = dict(os.environ)
    if cores:
        environment.update(OMP_NUM_THREADS=str(len(cores)), MKL_NUM_THREADS=str(len(cores)))
    with output.open("ab") as stream:
        # A session of its own: a Ctrl-C in the terminal reaches the search alone, which then stops its runs in order.
        process = subprocess.Popen(
            [sys.executable, "-m", "farthing", *words], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            env=environment, start_new_session=True,
        )  # fmt: skip
    if cores and hasattr(os, "sched_setaffinity"):
        with suppress(OSError):
            os.sched_setaffinity(process.pid, cores)
    return process


def shares(workers: int) -> list[list[int]]:
    """The logical cores of each of so many workers: even shares, or one each in turn; empty for a single one."""
    if workers == 1 or not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(workers)]
    cores = sorted(os.sched_getaffinity(0))
    size = max(1, len(cores) // workers)
    return [[cores[(worker * size + index) % len(cores)] for index in range(size)] for worker in range(workers)]


class Watch:
    """Reads a run's events as they come: its curve, and what it has spent.

    Args:
        run: its folder.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._at = 0
        self._steps = 0
        self.step = 0
        self.curve: dict[str, float] = {}
        self.text = ""

    @property
    def progress(self) -> float:
        """Share of the planned steps that is done."""
        return min(1.0, self.step / self._steps) if self._steps else 0.0

    def look(self) -> bool:
        """Take in what is new; whether there is a new score."""
        fresh = False
        try:
            size = self._run.events.stat().st_size
        except OSError:
            return False
        if size < self._at:
            # A resumed run takes back what came after its checkpoint.
            self._at, self.step, self.curve = 0, 0, {}
        with suppress(OSError), self._run.events.open("rb") as stream:
            stream.seek(self._at)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._at += len(line)
                with suppress(ValueError):
                    fresh = self._take(json.loads(line)) or fresh
        return fresh

    def _take(self, event: Mapping[str, Any]) -> bool:
        match event.get("kind"):
            case Started.kind:
                self._steps = event["steps"]
            case Step.kind:
                self.step = event["step"]
            case Evaluated.kind if self._steps:
                self.text = event["validation"].get("fingerprint", "")
                value = event["validation"].get("bits_per_byte")
                if value is not None:
                    self.curve[str(min(100, round(100 * event["step"] / self._steps)))] = value
                    return True
        return False


def spent(run: RunDir) -> dict[str, float]:
    """FLOPs, seconds that the machine was held, and money of a run so far, from its files alone."""
    result = read_result(run)
    if result:
        used = result["spent"]
        return {"flops": used["flops"], "seconds": result["wall_seconds"], "money": used["money"]}
    used, startup = {}, 0.0
    with suppress(FarthingError):
        for event in read_events(run.events):
            if event["kind"] == Step.kind:
                used = event["spent"]
            elif event["kind"] == Ready.kind:
                startup += event["seconds"]
    return {
        "flops": used.get("flops", 0.0),
        "seconds": used.get("seconds", 0.0) + startup,
        "money": used.get("money", 0.0),
    }


def score(run: RunDir, which: str) -> tuple[float | None, str]:
    """A finished run's bits per byte, of its end or its best checkpoint, and its validation text's fingerprint."""
    result = read_result(run)
    validation = result.get("validation", {})
    best = result.get("best")
    value = best["bits_per_byte"] if which == "best" and best else validation.get("bits_per_byte")
    return value, validation.get("fingerprint", "")


def trained_on(run: RunDir) -> str:
    """The fingerprint of the text that a run was trained on; empty where its receipt does not tell."""
    try:
        return str(read_json(run.receipt)["data"]["parts"]["train"]["fingerprint"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def holds_out(recipe: Section) -> bool:
    """Whether a recipe holds out test text (data.test), which nothing looks at before the end."""
    return config.flatten(recipe).get("data.test") is not None


def take_held_out(run: RunDir, device: str) -> str:
    """Score a finished run on its test text, unless that has been done; why it could not be, empty where it is done."""
    if run.held_out.is_file():
        return ""
    words = ["eval", str(run.path), "--split", "test", "--device", device, "--json", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "farthing", *words], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if run.held_out.is_file():
        return ""
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return _LABEL.sub("", lines[-1])[:300] if lines else f"exit code {done.returncode}"


def take_every_held_out(
    arms: Mapping[str, Mapping[int, RunDir]], device: str, *, stopping: Callable[[], bool]
) -> tuple[bool, str]:
    """Score every run on the test text; whether that is done, and a line for a person: the means, or why not.

    Args:
        arms: finished runs by seed, by what the arm is called.
        device: auto, cpu, cuda or mps.
        stopping: whether a person wants it all to stop.
    """
    for run in (run for runs in arms.values() for run in runs.values()):
        why = take_held_out(run, device)
        if stopping():
            return False, ""
        if why:
            return True, f"{run.name}: no score on the test text: {why}"
    told = held_out(arms)
    means = ", ".join(f"{name} {one['mean']:.4f}" for name, one in (told or {}).items())
    return True, f"on the test text, looked at once: {means} bits/byte" if told else ""


def held_out(arms: Mapping[str, Mapping[int, RunDir]]) -> dict[str, Any] | None:
    """Bits per byte on the test text over each arm's seeds, summarised; None before every run has been scored on one text.

    Args:
        arms: finished runs by seed, by what the arm is called.

    Raises:
        UserError: a score is damaged.
    """
    found: dict[str, Any] = {}
    texts: set[str] = set()
    for name, runs in arms.items():
        values: dict[int, float | None] = {}
        for seed, run in runs.items():
            try:
                told = read_held_out(run)
                if told is None:
                    return None
                values[seed] = float(told["bits_per_byte"])
                texts.add(str(told.get("fingerprint", "")))
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(f"{run.held_out}: damaged: {error}; take it away and it is scored anew") from None
        if not values:
            return None
        found[name] = summarise(values).as_dict()
    return found if len(texts) == 1 else None


def wait(jobs: Sequence[Job], seconds: float) -> bool:
    """Wait until all have ended; False when that takes longer."""
    until = time.monotonic() + seconds
    while any(job.ended() is None for job in jobs):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
