"""Training speed and memory: Farthing, transformers' Trainer, litgpt, a plain fp32 loop, and the matrix products alone.

    python benchmarks/throughput.py                          every shape and side (about 25 minutes)
    python benchmarks/throughput.py --quick                  the headline shape alone (about 5 minutes)
    python benchmarks/throughput.py --shapes 12M/128,45M/512 --sides ours-gelu,trainer-fp32 --rounds 3

Each side is a process of its own; they take turns of some seconds, round by round, while the others wait. A ratio is
taken within a round; the median of the rounds is given, with the least and the most. Every step has 2,048 tokens of
the same text. Peak memory is the process's own (VmHWM), imports and all; what a side held before it had a model is
kept apart. litgpt has an environment of its own, .venv-litgpt, which `make bench` makes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bench
import turns
from shapes import HEADLINE, LARGE_VOCABULARY, OURS, PLAIN, SHAPES, Shape
from turns import Side

LITGPT_PYTHON = Path(os.environ.get("LITGPT_PYTHON", bench.HERE.parent / ".venv-litgpt/bin/python"))

# name: module, what it is asked for besides the shape and the text
SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "ours-gelu": ("sides.ours", {"overrides": OURS["gelu"]}),
    "ours-gelu-erf": ("sides.ours", {"overrides": OURS["gelu-erf"]}),
    "ours-default": ("sides.ours", {"overrides": OURS["default"]}),
    "ours-relu2": ("sides.ours", {"overrides": OURS["relu2"]}),
    "ours-gelu-plain": ("sides.ours", {"overrides": [*OURS["gelu"], *PLAIN]}),
    "trainer-fp32": ("sides.trainer", {"precision": "fp32"}),
    "trainer-bf16": ("sides.trainer", {"precision": "bf16"}),
    # The Trainer with a fused GELU, the one that GPT-2 ports of today use: not GPT2Config's default.
    "trainer-bf16-fused-gelu": (
        "sides.trainer",
        {"precision": "bf16", "config": {"activation_function": "gelu_pytorch_tanh"}},
    ),
    "litgpt-fp32": ("sides.lit", {"precision": "32-true"}),
    "litgpt-bf16-mixed": ("sides.lit", {"precision": "bf16-mixed"}),
    "litgpt-bf16-true": ("sides.lit", {"precision": "bf16-true"}),
    "plain-fp32": ("sides.plain", {}),
    "floor-bf16": ("sides.floor", {"precision": "bf16"}),
    "floor-fp32": ("sides.floor", {"precision": "fp32"}),
}
ESSENTIAL = [
    "ours-gelu",
    "ours-default",
    "trainer-fp32",
    "trainer-bf16",
    "litgpt-bf16-mixed",
    "plain-fp32",
    "floor-bf16",
]
"""what every shape but the headline's gets; litgpt in the precision that is its own default"""
MEMORY_SIDES = ["ours-gelu", "trainer-fp32", "trainer-bf16", "litgpt-bf16-mixed", "plain-fp32"]
"""at the large vocabulary, where memory is what is asked about"""


def sides_of(shape: Shape, wanted: str) -> list[str]:
    """Which sides a shape gets: those asked for, else all for the headline and the essential ones for the others."""
    if wanted:
        return wanted.split(",")
    if shape.name == LARGE_VOCABULARY:
        return MEMORY_SIDES
    return list(SIDES) if shape.name == HEADLINE else ESSENTIAL


def starts(shape: Shape, tokens: Path, names: list[str], *, minutes: float, threads: int) -> dict[str, dict[str, Any]]:
    """Arguments of Side for each name."""
    found = {}
    for name in names:
        module, asked = SIDES[name]
        if "overrides" in asked:
            asked = {"overrides": [*shape.recipe(), *asked["overrides"]]}
        found[name] = {
            "module": module,
            "asked": {**asked, "shape": shape.as_dict(), "tokens": str(tokens), "minutes": minutes},
            "python": str(LITGPT_PYTHON) if module == "sides.lit" else sys.executable,
            "env": {"OMP_NUM_THREADS": str(threads)} if threads else {},
        }
    return found


def ratios(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """How many times as fast each of our sides is as each rival, and which share of the floor it reaches."""
    found = {}
    for ours in (name for name in seconds if name.startswith("ours")):
        for other in (name for name in seconds if not name.startswith("ours")):
            if other.startswith("floor"):
                found[f"{ours} reaches of {other}"] = bench.ratio(seconds[other], seconds[ours])
            else:
                found[f"{ours} against {other}"] = bench.ratio(seconds[other], seconds[ours])
    return found


def measure(
    shape: Shape, names: list[str], folder: Path, *, rounds: int, seconds: float, minutes: float, threads: int
) -> dict[str, Any]:
    """One shape: every side's speed, the ratios, and memory."""
    tokens = bench.token_file(shape, folder)
    with turns.sides(starts(shape, tokens, names, minutes=minutes, threads=threads)) as there:
        taken = turns.take_turns(there, rounds=rounds, seconds=seconds)
        working = next(iter(there))
        idle = turns.idle_share(there, working, [name for name in there if name != working], seconds=seconds)
        rows = {name: _row(shape, side, taken[name]) for name, side in there.items()}
        for name, side in there.items():
            rows[name]["peak_bytes"] = side.quit()
    return {
        "shape": shape.as_dict(),
        "threads": threads or "all cores",
        "planned_for_minutes": minutes,
        "rounds": rounds,
        "sides": rows,
        "ratios": ratios(taken),
        "cores_busy_while_waiting": {name: round(share, 3) for name, share in idle.items()},
    }


def _row(shape: Shape, side: Side, step_seconds: list[float]) -> dict[str, Any]:
    rate = bench.spread([shape.tokens / seconds for seconds in step_seconds])
    return {"tokens_per_second": rate, "step_seconds": step_seconds, **side.facts}


def show(result: Mapping[str, Any]) -> None:
    """Print one shape's table."""
    print(f"\n{result['shape']['name']}: {result['rounds']} rounds, threads: {result['threads']}")
    print(f"{'side':<26}{'tokens/s':>10}{'least':>9}{'most':>9}{'peak MiB':>10}  settings")
    for name, row in result["sides"].items():
        rate = row["tokens_per_second"]
        print(
            f"{name:<26}{rate['median']:>10,.0f}{rate['least']:>9,.0f}{rate['most']:>9,.0f}"
            f"{row['peak_bytes'] / 2**20:>10,.0f}  {row.get('chosen', '')}"
        )
    mine = [name for name in result["sides"] if name.startswith("ours")]
    print(f"{'times as fast as':<26}" + "".join(f"{name:>22}" for name in mine))
    for other in (name for name in result["sides"] if name not in mine):
        kind = "reaches of" if other.startswith("floor") else "against"
        cells = [bench.told(result["ratios"][f"{name} {kind} {other}"]) for name in mine]
        print(f"{'share of ' if kind != 'against' else ''}{other:<26}"[:26] + "".join(f"{cell:>22}" for cell in cells))


def main() -> None:
    """Measure the shapes asked for and keep each as soon as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--sides", default="", help=f"of {','.join(SIDES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn, at least one step")
    parser.add_argument("--minutes", type=float, default=60.0, help="the run's length that our plan is made for")
    parser.add_argument("--threads", type=int, default=0, help="OMP_NUM_THREADS of every side; 0: all cores")
    parser.add_argument("--quick", action="store_true", help="the headline shape alone")
    chosen = parser.parse_args()
    for name in [HEADLINE] if chosen.quick else chosen.shapes.split(","):
        shape = SHAPES[name]
        with tempfile.TemporaryDirectory() as folder:
            result = measure(
                shape,
                sides_of(shape, chosen.sides),
                Path(folder),
                rounds=chosen.rounds,
                seconds=chosen.seconds,
                minutes=chosen.minutes,
                threads=chosen.threads,
            )
        show(result)
        bench.merge("throughput", name if not chosen.threads else f"{name}, {chosen.threads} threads", result)


if __name__ == "__main__":
    main()
