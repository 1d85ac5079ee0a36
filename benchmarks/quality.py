"""Time to quality: training seconds to a given bits per byte, Farthing against GPT-2 by transformers' Trainer.

    python benchmarks/quality.py [TITLES.txt]                         both texts (about 45 minutes; without titles 25)
    python benchmarks/quality.py --data pystdlib --arms "ours, 1 min" --rivals-minutes 4

About 2.6 M parameters on both sides, the same tokens (a BPE of 4,096), batch and context, and one yardstick: our
scorer's bits per byte over every validation token, in fp32. Scoring is not counted in anyone's seconds; imports and
planning are told apart as start-up, and compiling, where auto compiles, is counted. Every run's learning rate ends with
its own budget, so a point in mid-run understates what a shorter run would have reached: ours is therefore run with
several budgets, and the time to a score is the earliest of any run of that side. The rivals are GPT-2's architecture
under AdamW (0.9, 0.95, weight decay 0.1) with a cosine and 5 % warm-up, at the rate that small GPTs are published with
(6e-4) and at a better one (3e-3), in fp32 as on most CPUs, and in bf16. All runs of a text take turns of some seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bench
import turns
from shapes import Shape
from turns import Side

SHAPE = Shape("2.6M/256", n_layer=4, n_head=3, d_model=192, vocab_size=4096, context=256, batch=16)
TURN_SECONDS = 10.0
PROBE_STEPS = 8
OUR_MINUTES = (0.5, 1.0, 2.0)
OUR_MARGIN = 0.97
"""share of a budget that is turned into steps, as the plan leaves some too"""


def common_arguments(rate: float) -> dict[str, Any]:
    """AdamW and its schedule as small GPTs are published with."""
    return {
        "learning_rate": rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
    }


@dataclass
class Run:
    """One run of one side, while it lasts.

    Args:
        name: what the tables call it.
        asked: what its worker is asked for, but for the number of steps.
        minutes: its budget of training time.
        points: (training seconds, bits per byte) at each look.
    """

    name: str
    asked: dict[str, Any]
    minutes: float
    steps: int = 0
    done: int = 0
    seconds: float = 0.0
    points: list[tuple[float, float]] = field(default_factory=list)

    @property
    def looks(self) -> int:
        """Scores over the run: enough to see the curve, few enough to afford."""
        return 6 if self.minutes >= 2 else 4

    def probe(self) -> None:
        """Turn the budget into steps: a throw-away worker takes some."""
        side = Side(self.name, "sides.learner", {**self.asked, "steps": 1_000_000})
        side.go(2)
        once = side.go(PROBE_STEPS)
        side.kill()
        self.steps = max(self.looks, int(OUR_MARGIN * self.minutes * 60 / once))

    def turn(self, side: Side) -> None:
        """Train for about TURN_SECONDS, or to the next look, and look there."""
        once = self.seconds / self.done if self.done else self.minutes * 60 / self.steps
        next_look = -(-(len(self.points) + 1) * self.steps // self.looks)
        count = min(next_look - self.done, max(1, round(TURN_SECONDS / once)))
        self.seconds += count * side.go(count)
        self.done += count
        if self.done == next_look:
            self.points.append((self.seconds, float(side.ask("score"))))


def texts(titles: Path | None) -> dict[str, list[str]]:
    """Each text as overrides of the recipe's data; a fraction or number of documents to score that can be afforded."""
    found = {"pystdlib": ["data.kind=pystdlib", "data.validation=0.02"]}
    if titles is not None and titles.is_file():
        found["titles"] = [
            "data.kind=text",
            f"data.path={titles.absolute()}",
            "data.documents=line",
            "data.validation=2000",
        ]
    return found


def runs_on(data: list[str], *, rivals_minutes: float) -> list[Run]:
    """All runs of one text."""
    overrides = [*SHAPE.recipe(), *data]
    found = [
        Run(f"ours, {minutes:g} min", {"arm": "ours", "overrides": overrides, "minutes": minutes}, minutes)
        for minutes in OUR_MINUTES
    ]
    for precision, rate in (("fp32", 6e-4), ("fp32", 3e-3), ("bf16", 3e-3)):
        asked = {
            "arm": "trainer",
            "overrides": overrides,
            "shape": SHAPE.as_dict(),
            "precision": precision,
            "arguments": common_arguments(rate),
        }
        found.append(Run(f"trainer {precision}, lr {rate:g}", asked, rivals_minutes))
    return found


def measure(runs: list[Run]) -> dict[str, Any]:
    """Carry all runs out, turn by turn, and return their curves."""
    for run in runs:
        run.probe()
    starts = {run.name: {"module": "sides.learner", "asked": {**run.asked, "steps": run.steps}} for run in runs}
    with turns.sides(starts) as there:
        left = [run for run in runs if run.name in there]
        while left:
            for run in left:
                run.turn(there[run.name])
                if run.done == run.steps:
                    print(f"  {run.name}: {run.points[-1][1]:.4f} after {run.seconds:.0f} s", flush=True)
            left = [run for run in left if run.done < run.steps]
        return {
            run.name: {
                "minutes": run.minutes,
                "steps": run.steps,
                "tokens": run.steps * SHAPE.tokens,
                "training_seconds": run.seconds,
                "start_seconds": there[run.name].start_seconds,
                "bits_per_byte": run.points[-1][1],
                "curve": run.points,
                **there[run.name].facts,
            }
            for run in runs
            if run.name in there
        }


def time_to(curves: Mapping[str, Mapping[str, Any]], side: str, score: float) -> float | None:
    """The fewest training seconds after which any run of a side was at a score or below; between looks, by line."""
    found = []
    for name, row in curves.items():
        if not name.startswith(side):
            continue
        before: tuple[float, float] | None = None
        for seconds, bits in row["curve"]:
            if bits <= score:
                share = 1.0 if before is None or before[1] == bits else (before[1] - score) / (before[1] - bits)
                found.append(seconds if before is None else before[0] + share * (seconds - before[0]))
                break
            before = (seconds, bits)
    return min(found, default=None)


def readings(curves: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For the final score of every rival: its seconds, ours, and how many times shorter ours are."""
    rows = []
    for name, row in curves.items():
        if name.startswith("ours"):
            continue
        score = row["bits_per_byte"]
        mine = time_to(curves, "ours", score)
        theirs = time_to(curves, name, score)
        assert theirs is not None
        ratio = None if mine is None else theirs / mine
        rows.append({"rival": name, "bits_per_byte": score, "seconds": theirs, "ours_seconds": mine, "ratio": ratio})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table of one text."""
    print(f"{'to the score of':<26}{'bits/byte':>10}{'its seconds':>13}{'ours':>8}{'times':>8}")
    for row in rows:
        mine = "not reached" if row["ours_seconds"] is None else f"{row['ours_seconds']:.0f}"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.1f}"
        print(f"{row['rival']:<26}{row['bits_per_byte']:>10.4f}{row['seconds']:>13.0f}{mine:>8}{ratio:>8}")


def main() -> None:
    """Measure each text asked for, and keep what each run reached beside what earlier ones did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("titles", type=Path, nargs="?")
    parser.add_argument("--data", default="pystdlib,titles")
    parser.add_argument("--arms", default="", help="only runs whose names begin with one of these, semicolon-separated")
    parser.add_argument("--rivals-minutes", type=float, default=4.0, help="training time of each rival's run")
    chosen = parser.parse_args()
    there = texts(chosen.titles)
    for name in chosen.data.split(","):
        if name not in there:
            print(f"{name}: skipped, since there is no such file: give the path of hn_titles.txt as the argument")
            continue
        wanted = [word.strip() for word in chosen.arms.split(";") if word.strip()]
        runs = [
            run
            for run in runs_on(there[name], rivals_minutes=chosen.rivals_minutes)
            if not wanted or any(run.name.startswith(word) for word in wanted)
        ]
        print(f"\n{name}", flush=True)
        earlier = bench.read("quality").get("parts", {}).get(name, {}).get("runs", {})
        curves = {**earlier, **measure(runs)}
        rows = readings(curves)
        show(rows)
        bench.merge("quality", name, {"shape": SHAPE.as_dict(), "runs": curves, "time_to": rows})


if __name__ == "__main__":
    main()
