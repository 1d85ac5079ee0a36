"""Does a law that is fitted to small runs say what ten times the largest of them buys, or three times?

    python benchmarks/prediction.py                 (about half an hour on two cores; stopped, the same command goes on)
    python benchmarks/prediction.py --write         (the table in docs/compare.md, from benchmarks/results/prediction.json)

The default recipe's text and optimizer, models of 0.4 to 2.6 million parameters, for 0.5, 1.5 and 5 TFLOP each; then 15
TFLOP. `farthing plan --predict` says, of 50 TFLOP, what four sizes will score, from those that took a tenth at most and
from all of them; and they are trained. Scores are what counts here, so two runs share the machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bench

REPOSITORY = bench.HERE.parent
PAGE = REPOSITORY / "docs" / "compare.md"
BEGIN = "<!-- benchmarks/prediction.py writes from here -->"
RECIPE = [
    "default", "model.context_length=128", "train.batch_size=8", "train.precision=auto", "train.threads=1",
    "budget.minutes=none", "evaluate.references=false", "sample.tokens=20",
]  # fmt: skip
# Width, layers and heads, the smallest first.
SIZES = {"64x2": (64, 2, 2), "96x3": (96, 3, 3), "128x4": (128, 4, 4), "192x4": (192, 4, 6), "256x5": (256, 5, 8)}
SMALL = [
    *((size, flops) for size in ("64x2", "96x3", "128x4", "192x4") for flops in (1.5e12, 5e12)),
    *((size, 5e11) for size in ("64x2", "96x3", "128x4")),
]
MIDDLE = [(size, 1.5e13) for size in ("64x2", "96x3", "128x4", "192x4")]
LARGE = [(size, 5e13) for size in ("96x3", "128x4", "192x4", "256x5")]


class Law:
    """The runs that the law is fitted to and those that it is held against, in one folder of runs."""

    def __init__(self, runs: str, workers: int) -> None:
        self._runs, self._workers = runs, workers

    def carry_out(self) -> dict[str, Any]:
        """Train the small, predict, train more, predict again, train the large."""
        small = self._train("small", SMALL)
        tenth = [self._predict(size, flops, "small-*") for size, flops in LARGE]
        middle = self._train("middle", MIDDLE)
        third = [self._predict(size, flops, "[sm]*-*") for size, flops in LARGE]
        large = self._train("large", LARGE)
        told = zip(tenth, third, large, strict=True)
        return {"small": small, "middle": middle, "large": [{"tenth": a, "third": b, **came} for a, b, came in told]}

    def _train(self, kind: str, runs: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
        def train(asked: tuple[str, float]) -> dict[str, Any]:
            size, flops = asked
            name = f"{kind}-{size}-{flops:g}".replace("+", "")
            # An arm of one seed, since an arm that was broken off goes on by the same command.
            bench.farthing(
                "train", *_recipe(size, flops), "--seeds", "1", "--name", name, "--runs", self._runs, "--quiet"
            )
            found = json.loads((Path(self._runs) / f"{name}-seed1" / "result.json").read_text("utf-8"))
            kept = {"size": size, "flops": flops, "bits_per_byte": found["validation"]["bits_per_byte"]}
            print(kept, flush=True)
            return {**kept, "parameters": found["parameters"], "spent": found["spent"]}

        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(train, runs))

    def _predict(self, size: str, flops: float, runs: str) -> dict[str, Any]:
        known = str(Path(self._runs) / runs)
        _, plan = bench.farthing("plan", *_recipe(size, flops), "--predict", known, "--runs", self._runs, "--quiet")
        found = plan["predicted"]
        print(size, runs, found["bits_per_byte"], flush=True)
        return {key: found[key] for key in ("bits_per_byte", "best_parameters", "notes", "fit")}


def _recipe(size: str, flops: float) -> list[str]:
    width, layers, heads = SIZES[size]
    shape = [f"model.d_model={width}", f"model.n_layer={layers}", f"model.n_head={heads}"]
    return [*RECIPE, *shape, f"budget.flops={flops:g}"]


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """What was promised and what came, as lines of Markdown."""
    yield "| model | parameters | tokens | promised from a tenth | promised from a third | came |"
    yield "|---|---|---|---|---|---|"
    for one in found["large"]:
        told = [one[part]["bits_per_byte"] for part in ("tenth", "third")]
        promised = " | ".join(f"{said['value']:.3f} ({said['low']:.3f} to {said['high']:.3f})" for said in told)
        million = f"{one['parameters'] / 1e6:.1f} M | {one['spent']['tokens'] / 1e6:.1f} M"
        yield f"| {one['size']} | {million} | {promised} | {one['bits_per_byte']:.3f} |"


def main() -> None:
    """Train, predict, train, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs/prediction", help="where the runs are kept")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="train nothing: put the table into docs/compare.md")
    chosen = parser.parse_args()
    if not chosen.write:
        bench.write("prediction", Law(chosen.runs, chosen.workers).carry_out())
    found = bench.read("prediction")
    print("\n".join(table(found)))
    if chosen.write:
        bench.put_between(PAGE, BEGIN, "<!-- to here -->", list(table(found)))


if __name__ == "__main__":
    main()
