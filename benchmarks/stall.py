"""Checkpoint stall: seconds that saving takes out of training, at 12 M and 45 M parameters.

    python benchmarks/stall.py            (about two minutes)

A real run (`farthing train`) saves every few steps. The stall is the time from the step before a checkpoint to the step
after it, by the clock of the events, less the usual time from step to step. Beside it: what that is of the time between
two checkpoints at the cadence that checkpoint.every = "auto" takes (one a minute).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import bench
from shapes import SHAPES

CADENCE_SECONDS = 60.0
COMMON = ["budget.minutes=none", "train.log_every=1", "evaluate.every=end", "evaluate.references=false",
          "sample.tokens=0", "data.validation=2", "train.compile=off"]  # fmt: skip


def stalls(events: list[dict[str, Any]]) -> tuple[list[float], float, int]:
    """Stall of each checkpoint in mid-run, the usual seconds from step to step, and a checkpoint's bytes."""
    steps = {event["step"]: event["time"] for event in events if event["kind"] == "step"}
    saved = {event["step"]: event["bytes"] for event in events if event["kind"] == "checkpoint"}
    gaps = {step: steps[step + 1] - steps[step] for step in sorted(steps)[:-1]}
    # The first step allocates.
    usual = statistics.median(gap for step, gap in gaps.items() if step not in saved and step > 1)
    return [gaps[step] - usual for step in saved if step in gaps], usual, next(iter(saved.values()))


def measure(name: str, *, checkpoints: int, folder: str) -> dict[str, Any]:
    """One shape's run."""
    steps = 3 * checkpoints + 2
    given = [*SHAPES[name].recipe(), *COMMON, f"budget.steps={steps}", "checkpoint.every=3"]
    run = name.replace("/", "-")
    bench.farthing("train", "default", *given, "--runs", folder, "--name", run)
    lines = (Path(folder) / run / "events.jsonl").read_text("utf-8").splitlines()
    found, usual, size = stalls([json.loads(line) for line in lines])
    return {
        "stall_seconds": bench.spread(found),
        "checkpoints": len(found),
        "usual_step_seconds": usual,
        "checkpoint_bytes": size,
        "share_at_one_a_minute": statistics.median(found) / (CADENCE_SECONDS + statistics.median(found)),
    }


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="12M/128,45M/128")
    parser.add_argument("--checkpoints", type=int, default=5)
    chosen = parser.parse_args()
    found = {}
    print(f"{'shape':<12}{'stall':>9}{'least':>8}{'most':>8}{'checkpoint':>13}{'of the time':>13}")
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.shapes.split(","):
            found[name] = row = measure(name, checkpoints=chosen.checkpoints, folder=folder)
            stall = row["stall_seconds"]
            print(
                f"{name:<12}{stall['median']:>7.2f} s{stall['least']:>8.2f}{stall['most']:>8.2f}"
                f"{row['checkpoint_bytes'] / 1e6:>10,.0f} MB{row['share_at_one_a_minute']:>13.2%}",
                flush=True,
            )
    bench.write("stall", {"shapes": found})


if __name__ == "__main__":
    main()
