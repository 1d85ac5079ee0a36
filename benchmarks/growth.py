"""How the time of a step grows with width, depth, context, batch and cores, against the matrix products alone.

    python benchmarks/growth.py            (about eight minutes)
    python benchmarks/growth.py --axes context,cores

Around the 12 M shape with GPT-2's architecture one number is changed at a time. All values of an axis take turns, each
beside its own floor (the bf16 matrix products of that shape), so that a row tells how far from the floor it is.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import bench
import turns
from shapes import HEADLINE, OURS, SHAPES, Shape

BASE = SHAPES[HEADLINE]
Point = tuple[str, Shape, int]
"""name, shape, threads (0: all cores)"""


def axes() -> dict[str, list[Point]]:
    """The values of each axis."""
    widths = [replace(BASE, d_model=width, n_head=width // 64) for width in (192, 384, 768)]
    depths = [replace(BASE, n_layer=depth) for depth in (3, 6, 12)]
    # The same 2,048 tokens a step, so that only attention grows.
    contexts = [replace(BASE, context=context, batch=BASE.tokens // context) for context in (64, 128, 512, 1024)]
    batches = [replace(BASE, batch=batch) for batch in (4, 16, 64)]
    return {
        "width": [(str(shape.d_model), shape, 0) for shape in widths],
        "depth": [(str(shape.n_layer), shape, 0) for shape in depths],
        "context": [(str(shape.context), shape, 0) for shape in contexts],
        "batch": [(str(shape.batch), shape, 0) for shape in batches],
        "cores": [(str(cores), BASE, cores) for cores in (1, 2)],
    }


def measure(axis: str, points: list[Point], *, rounds: int, seconds: float, minutes: float) -> list[dict[str, Any]]:
    """Every value of one axis, ours and its floor, in turn."""
    starts = {}
    for value, shape, threads in points:
        env = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        overrides = [*shape.recipe(), *OURS["gelu"]]
        starts[f"ours {value}"] = {
            "module": "sides.ours",
            "asked": {"overrides": overrides, "minutes": minutes},
            "env": env,
        }
        floor = {"shape": shape.as_dict(), "precision": "bf16"}
        starts[f"floor {value}"] = {"module": "sides.floor", "asked": floor, "env": env}
    with turns.sides(starts) as there:
        taken = turns.take_turns(there, rounds=rounds, seconds=seconds)
        facts = {name: side.facts for name, side in there.items()}
    rows = []
    for value, shape, _ in points:
        ours, floor = taken[f"ours {value}"], taken[f"floor {value}"]
        rows.append(
            {
                "axis": axis,
                "value": value,
                "shape": shape.as_dict(),
                "parameters": facts[f"ours {value}"]["parameters"],
                "step_seconds": bench.spread(ours),
                "tokens_per_second": bench.spread([shape.tokens / once for once in ours]),
                "reaches_of_floor": bench.ratio(floor, ours),
                "chosen": facts[f"ours {value}"]["chosen"],
                "settings": facts[f"ours {value}"]["settings"],
            }
        )
    return rows


def main() -> None:
    """Measure the axes asked for and keep each as soon as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", default=",".join(axes()))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a turn, at least one step")
    parser.add_argument("--minutes", type=float, default=5.0, help="the run's length that the plan is made for")
    chosen = parser.parse_args()
    for axis in chosen.axes.split(","):
        rows = measure(axis, axes()[axis], rounds=chosen.rounds, seconds=chosen.seconds, minutes=chosen.minutes)
        print(f"\n{axis:<10}{'parameters':>12}{'step':>11}{'tokens/s':>10}{'of the floor':>14}  settings")
        for row in rows:
            print(
                f"{row['value']:<10}{row['parameters']:>12,}{row['step_seconds']['median'] * 1e3:>8,.0f} ms"
                f"{row['tokens_per_second']['median']:>10,.0f}{row['reaches_of_floor']['median']:>14.0%}"
                f"  {row['chosen']}"
            )
        bench.merge("growth", axis, {"rounds": chosen.rounds, "planned_for_minutes": chosen.minutes, "rows": rows})


if __name__ == "__main__":
    main()
