"""A soak: a run that is killed (-9) at random about every minute for hours, against its twin that nobody disturbs.

    python benchmarks/soak.py --hours 2 --every 60

The time to the next kill is drawn from an exponential distribution, so kills also strike while a process starts, saves
or scores, and soon after one another. Whoever is killed is called again by the command line, `farthing resume`, and
nothing else; the twin runs beside it, from the same recipe. At the end weights, optimizer, averaged weights, the loss
of every step, every score and the samples must be equal bit for bit. Shown besides: steps done over again, the most
disk the run took, what was left over, and how the twin's memory and open files grew.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bench
import psutil
import reliability

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from farthing.rundir import RunDir
from faults.injected import seen_from_outside
from training.story import final_state

# Whatever is drawn at random in training is in it, and nothing that a measurement decides: the twin measures anew.
RECIPE = [
    "budget.minutes=none", "model.n_layer=4", "model.n_head=4", "model.d_model=128", "model.context_length=128",
    "model.dropout=0.1", "train.batch_size=16", "train.micro_batch=8", "train.order=random_offset", "train.ema=0.99",
    "train.threads=1", "train.precision=fp32", "train.compile=off", "train.attention=sdpa",
    "train.weight_gradient=strided", "tokenizer.vocab_size=2048", "data.validation=0.002", "evaluate.every=300",
    "evaluate.references=false", "sample.tokens=50",
]  # fmt: skip
SHARE_IN_STEPS = 0.7
"""of the time; the rest goes into starting again and steps done over again"""
TWIN_EVERY = 60.0
"""seconds between two looks at the twin's memory"""


@dataclass
class Told:
    """What has happened so far."""

    kills: int = 0
    sittings: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    redone: list[int] = field(default_factory=list)
    """steps done over again, kill by kill"""
    behind: int = 0
    """times that a sitting went on from an older checkpoint than the newest"""
    most_bytes: int = 0
    trouble: list[str] = field(default_factory=list)


class Soak:
    """One run under fire and its twin.

    Args:
        folder: where runs go.
        steps: optimizer steps of both.
        every: mean seconds between kills.
        draw: when they come.
    """

    def __init__(self, folder: Path, *, steps: int, every: float, draw: random.Random) -> None:
        self.told = Told()
        self.run, self.twin = RunDir(folder / "killed"), RunDir(folder / "twin")
        self._folder, self._every, self._draw = folder, every, draw
        self._recipe = [*RECIPE, f"budget.steps={steps}", f"checkpoint.mtbf_hours={every / 3600:.6f}"]
        self.memory: list[tuple[float, int, int]] = []
        """of the twin: seconds since the start, resident bytes, open files"""

    def go(self, most_seconds: float) -> None:
        """Kill and resume until the run has finished, or the time is over; then wait for the twin."""
        start = time.monotonic()
        twin = self._begin(self.twin)
        try:
            while time.monotonic() - start < most_seconds and not self.told.trouble:
                self._watch(twin, start)
                if self._sit(twin, start):
                    break
            else:
                self.told.trouble.append("it had not finished when the time was over")
            while twin.poll() is None and time.monotonic() - start < most_seconds:
                self._watch(twin, start)
                time.sleep(1.0)
            if twin.poll() is None:
                self.told.trouble.append("the twin had not finished when the time was over")
            elif twin.returncode:
                self.told.trouble.append(f"the twin ended with code {twin.returncode}")
        finally:
            twin.kill()

    def _begin(self, run: RunDir) -> subprocess.Popen[bytes]:
        if run.recipe.is_file():
            words = ["resume", str(run.path)]
        else:
            words = ["train", "default", *self._recipe, "--runs", str(run.path.parent), "--name", run.name]
        with (self._folder / f"{run.name}.log").open("ab") as log:
            command = [sys.executable, "-m", "farthing", *words, "--device", "cpu", "--quiet"]
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _sit(self, twin: subprocess.Popen[bytes], start: float) -> bool:
        """One sitting, to its end or until it is killed; whether the run has finished."""
        told, child = self.told, self._begin(self.run)
        told.sittings += 1
        end = time.monotonic() + self._draw.expovariate(1 / self._every)
        while time.monotonic() < end:
            try:
                code = child.wait(min(1.0, max(0.0, end - time.monotonic())))
            except subprocess.TimeoutExpired:
                self._watch(twin, start)
                continue
            if code:
                told.trouble.append(f"a sitting ended with code {code}: see killed.log")
            return self.run.result.is_file()
        child.kill()
        child.wait()
        told.kills += 1
        told.phases[seen_from_outside(self.run.path)] += 1
        self._count()
        print(f"{time.monotonic() - start:6.0f} s: kill {told.kills}, {self._steps()} steps", flush=True)
        return False

    def _count(self) -> None:
        """What the kill cost, and whether the sitting before had begun where it should."""
        if not self.run.recipe.is_file():
            return
        files = [file for file in self.run.path.rglob("*") if file.is_file()]
        self.told.most_bytes = max(self.told.most_bytes, sum(file.stat().st_size for file in files))
        saved = (self.run.checkpoint_steps() or [0])[-1]
        self.told.redone.append(max(0, self._steps() - saved))

    def _steps(self) -> int:
        """The last step that the events tell of, from the file's last lines."""
        if not self.run.events.is_file():
            return 0
        with self.run.events.open("rb") as stream:
            stream.seek(max(0, self.run.events.stat().st_size - 4096))
            lines = stream.read().split(b"\n")[1:-1]
        found = [json.loads(line) for line in lines]
        return max((event["step"] for event in found if event["kind"] == "step"), default=0)

    def _watch(self, twin: subprocess.Popen[bytes], start: float) -> None:
        seconds = time.monotonic() - start
        if twin.poll() is not None or (self.memory and seconds - self.memory[-1][0] < TWIN_EVERY):
            return
        process = psutil.Process(twin.pid)
        self.memory.append((seconds, process.memory_info().rss, process.num_fds()))

    def results(self) -> dict[str, Any]:
        """JSON-ready, with the verdict."""
        told = self.told
        found: dict[str, Any] = {
            "kills": told.kills,
            "sittings": told.sittings,
            "phases": dict(told.phases),
            "steps_redone": sum(told.redone),
            "most_steps_redone": max(told.redone, default=0),
            "most_bytes": told.most_bytes,
            "trouble": told.trouble,
            "twin": _growth(self.memory),
        }
        if not told.trouble:
            ends = [final_state(run) for run in (self.run, self.twin)]
            found["differs"] = sorted(key for key in ends[0] if ends[0][key] != ends[1][key])
            found["tensors"] = len(ends[0]["tensors"])
            found["steps"] = len(ends[0]["steps"])
            found["leftovers"] = [path.name for path in self.run.path.rglob(".*")]
            found["bytes"] = sum(file.stat().st_size for file in self.run.path.rglob("*") if file.is_file())
        return found


def _growth(memory: list[tuple[float, int, int]]) -> dict[str, Any]:
    """Slope of the twin's resident memory over its second half, in MB an hour, and its open files."""
    late = memory[len(memory) // 2 :]
    if len(late) < 3:
        return {}
    hours, sizes = [one[0] / 3600 for one in late], [one[1] / 1e6 for one in late]
    middle, mean = sum(hours) / len(hours), sum(sizes) / len(sizes)
    spread = sum((hour - middle) ** 2 for hour in hours)
    slope = sum((hour - middle) * (size - mean) for hour, size in zip(hours, sizes, strict=True)) / spread
    return {
        "megabytes_an_hour": round(slope, 2),
        "megabytes": round(sizes[-1], 1),
        "looks": len(memory),
        "open_files": sorted({one[2] for one in late}),
    }


def planned_steps(hours: float) -> int:
    """As many as about fill the time, by the measured seconds of a step."""
    _, plan = bench.farthing("plan", "default", *RECIPE, "budget.steps=100000")
    return max(100, int(hours * 3600 * SHARE_IN_STEPS / plan["seconds_per_step"]))


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    if found["trouble"]:
        verdict = f"FAILED: {'; '.join(found['trouble'])}"
    elif found["differs"] or found["leftovers"]:
        verdict = f"FAILED: {', '.join([*found['differs'], *found['leftovers']])}"
    else:
        verdict = (
            f"finished by itself; {found['tensors']} tensors, {found['steps']:,} losses, all scores and samples equal"
        )
    rows = [
        ("hours", f"{found['hours']:.2f}"),
        ("kill -9, at random moments", f"{found['kills']}, one in {found['every']:.0f} s on average"),
        ("kills that left half a save behind", str(found["phases"].get("saving", 0))),
        ("steps done over again", f"{found['steps_redone']:,}, at most {found['most_steps_redone']:,} after one kill"),
        ("most disk", f"{found['most_bytes'] / 1e6:.0f} MB"),
        ("result", verdict),
    ]
    if twin := found["twin"]:
        rows.append(
            ("the twin's memory", f"{twin['megabytes']:.0f} MB, {twin['megabytes_an_hour']:+.1f} MB an hour in its second "
             f"half; open files {' or '.join(map(str, twin['open_files']))}")
        )  # fmt: skip
    return "\n".join(["| a soak | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> None:
    """Soak, compare, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0, help="about how long; the run has so many steps")
    parser.add_argument("--every", type=float, default=60.0, help="mean seconds between kills")
    parser.add_argument("--steps", type=int, help="so many steps, whatever the time")
    parser.add_argument("--most-hours", type=float, help="give up after this; none: twice --hours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/reliability.md")
    chosen = parser.parse_args()
    steps = chosen.steps or planned_steps(chosen.hours)
    with tempfile.TemporaryDirectory(prefix="farthing-soak-") as folder:
        soak = Soak(Path(folder), steps=steps, every=chosen.every, draw=random.Random(chosen.seed))
        start = time.monotonic()
        soak.go(3600 * (chosen.most_hours or 2 * chosen.hours))
        hours = (time.monotonic() - start) / 3600
        found = {"hours": round(hours, 3), "every": chosen.every, **soak.results()}
        if found["trouble"]:
            print((Path(folder) / "killed.log").read_text("utf-8", "replace")[-3000:])
    print(table(found))
    bench.write("soak", found)
    if chosen.write:
        reliability.write("soak", table(found))
    sys.exit(bool(found["trouble"] or found["differs"] or found["leftovers"]))


if __name__ == "__main__":
    main()
