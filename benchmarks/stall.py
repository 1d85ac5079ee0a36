"""What saving costs training: stall, slower steps beside a save, and disk, at 12 M and 124 M parameters.

    python benchmarks/stall.py            (three to four minutes)

A real run (`farthing train`, background saves) saves every few steps. By the clock of its events: the stall is what the
loop waits for the copy of the tensors, as the checkpoint's event tells; the whole cost is how much longer than usual all
the steps took from one that is followed by a save until that save is over. Both are held against the interval that
checkpoint.every = "auto" plans on this machine for a checkpoint of this size (Young 1974, Daly 2006). The extra disk is
the most that the checkpoints' folder held, less what it holds at rest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import bench
import reliability
from shapes import OURS, SHAPES, Shape

from farthing.planning.price import save_interval
from farthing.recipe.running import Checkpoint
from farthing.runtime.disk import saving_rate

GPT2 = Shape("124M/128", n_layer=12, n_head=12, d_model=768, vocab_size=50_257, context=128, batch=4)
MEASURED = {"12M": SHAPES["12M/128"], "124M": GPT2}
STEPS_BETWEEN = {"12M": 20, "124M": 16}
"""enough that a save is over before the next begins"""
KEPT = 2
MOST = 0.02
COMMON = ["budget.minutes=none", "train.log_every=1", "evaluate.every=end", "evaluate.references=false",
          "sample.tokens=0", "data.validation=2", "train.compile=off", "checkpoint.best=false",
          f"checkpoint.keep={KEPT}"]  # fmt: skip


def costs(events: list[dict[str, Any]], between: int) -> dict[str, Any]:
    """Of the checkpoints in mid-run: the loop's wait, the whole cost and how much slower steps were, in seconds."""
    times = {event["step"]: event["time"] for event in events if event["kind"] == "step"}
    saves = {event["step"]: event for event in events if event["kind"] == "checkpoint" and event["step"] in times}
    last = max(times)
    saves = {step: save for step, save in saves.items() if step % between == 0 and step + between <= last}
    gaps = {step: times[step + 1] - times[step] for step in sorted(times)[:-1]}
    beside = {
        step: [
            later for later in gaps if later >= step and times[later] < times[step] + save["stall"] + save["seconds"]
        ]
        for step, save in saves.items()
    }
    busy = {later for found in beside.values() for later in found}
    # The first steps allocate.
    usual = statistics.median(gap for step, gap in gaps.items() if step not in busy and step > 2)
    slower = [gaps[later] / usual - 1 for step, found in beside.items() for later in found if later != step]
    return {
        "usual_step_seconds": usual,
        "stall_seconds": bench.spread([save["stall"] for save in saves.values()]),
        "cost_seconds": bench.spread([sum(gaps[later] - usual for later in found) for found in beside.values()]),
        "save_seconds": bench.spread([save["seconds"] for save in saves.values()]),
        "slower_beside": statistics.median(slower) if slower else 0.0,
        "checkpoints": len(saves),
        "checkpoint_bytes": max(save["bytes"] for save in saves.values()),
    }


def measure(name: str, *, saves: int, folder: Path) -> dict[str, Any]:
    """One shape's run."""
    shape, between = MEASURED[name], STEPS_BETWEEN[name]
    bench.prepare_tokenizer(shape)
    words = [*shape.recipe(), *OURS["gelu"], *COMMON, f"budget.steps={between * (saves + 1) + 1}"]
    checkpoints = folder / name / "checkpoints"
    most, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            with suppress(OSError):  # files come and go
                most[0] = max(most[0], sum(file.stat().st_size for file in checkpoints.rglob("*")))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        bench.farthing("train", "default", *words, f"checkpoint.every={between}", "--runs", str(folder), "--name", name)
    finally:
        over.set()
        watcher.join()
    lines = (folder / name / "events.jsonl").read_text("utf-8").splitlines()
    found = costs([json.loads(line) for line in lines], between)
    interval = save_interval(Checkpoint(), found["checkpoint_bytes"], saving_rate(folder))
    return {
        **found,
        "planned_interval_seconds": interval,
        "stall_share": found["stall_seconds"]["median"] / (interval + found["stall_seconds"]["median"]),
        "cost_share": found["cost_seconds"]["median"] / (interval + found["cost_seconds"]["median"]),
        "extra_disk_checkpoints": most[0] / found["checkpoint_bytes"] - KEPT,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    rows = [
        "| parameters | checkpoint | written in | planned every | stall | share | steps beside | whole cost | share | disk |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, one in found.items():
        rows.append(
            f"| {name} | {one['checkpoint_bytes'] / 1e6:,.0f} MB | {one['save_seconds']['median']:.1f} s "
            f"| {one['planned_interval_seconds']:.0f} s | {one['stall_seconds']['median']:.2f} s "
            f"| {one['stall_share']:.2%} | {one['slower_beside']:+.0%} | {one['cost_seconds']['median']:.2f} s "
            f"| {one['cost_share']:.2%} | {max(0.0, one['extra_disk_checkpoints']):.2f} checkpoints |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure, print and keep; exit code 1 where saving stalls training for 2 % of the time or more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="12M,124M")
    parser.add_argument("--saves", type=int, default=2, help="in mid-run, of each size")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/reliability.md")
    chosen = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.sizes.split(","):
            found[name] = measure(name, saves=chosen.saves, folder=Path(folder))
            print(table({name: found[name]}).splitlines()[-1], flush=True)
    bench.write("stall", {"shapes": found, "met": all(one["stall_share"] < MOST for one in found.values())})
    if chosen.write:
        reliability.write("stall", table(found))
    raise SystemExit(int(any(one["stall_share"] >= MOST for one in found.values())))


if __name__ == "__main__":
    main()
