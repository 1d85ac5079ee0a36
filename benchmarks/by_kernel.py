"""Where a step's time goes, kernel by kernel, against the matrix products alone (12 M, context 128).

    python benchmarks/by_kernel.py                 (about a minute)
    python benchmarks/by_kernel.py --shape 45M/128 --arm default

torch.profiler over some of our steps, with the settings that auto picks for a run of --minutes; every operation's own
time goes to one class, and what no operation accounts for (Python, the profiler itself) is told as such. Beside the
products stands their floor, measured in the same process between the steps.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from typing import Any

import bench
import torch
from shapes import HEADLINE, OURS, SHAPES
from sides.floor import DTYPES, choose
from sides.ours import build, facts
from torch.profiler import ProfilerActivity, profile

# The first class whose pattern matches an operation's name takes it.
CLASSES: list[tuple[str, str]] = [
    ("optimizer", r"optimizer|adam|lerp|foreach|_fused_|newton_schulz|muon"),
    (
        "matrix products",
        r"(^|::)_?(addmm|mm|bmm|baddbmm|matmul|linear|addmv|mv)\b|mkldnn_linear|mkldnn_.*pointwise|onednn",
    ),
    ("fused attention", r"attention|flash"),
    ("softmax and loss", r"softmax|nll_loss|cross_entropy|logsumexp|\bexp\b|\blog\b|gather|max\b|amax"),
    ("normalisation", r"norm|rsqrt"),
    ("activation", r"gelu|relu|silu|sigmoid|threshold|tanh|square|\bpow\b"),
    ("casts and copies", r"copy|_to_copy|::to\b|contiguous|clone|transpose|cat\b|stack|fill|zero|empty|resize"),
    ("embedding", r"embedding|index"),
    ("compiled kernels", r"compiled|cpp_fused|graph_\d|inductor|CompiledFunction"),
    ("other pointwise", r"::(add|sub|mul|div|neg|where|masked|sum|mean|addcmul|addcdiv)"),
]


def class_of(operation: str) -> str:
    """The class of an operation by its name."""
    return next((name for name, pattern in CLASSES if re.search(pattern, operation, re.IGNORECASE)), "other")


def seconds_of(work: Callable[[], object], times: int) -> float:
    """Mean seconds of a call."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def main() -> None:
    """Profile, print the shares and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default=HEADLINE, choices=SHAPES)
    parser.add_argument("--arm", default="gelu", choices=OURS)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=5.0, help="the run's length that the plan is made for")
    chosen = parser.parse_args()
    shape = SHAPES[chosen.shape]
    built = build([*shape.recipe(), *OURS[chosen.arm]], minutes=chosen.minutes)
    batch, steps = built.batches.batch(0), chosen.steps
    with torch.inference_mode():
        products, _ = choose(shape, DTYPES["bf16"])

    @torch.inference_mode()
    def floor() -> None:
        for product in products.values():
            product()

    seconds_of(lambda: built.stepper.take(batch), 3)
    taken = bench.in_turn(
        {"step": lambda: seconds_of(lambda: built.stepper.take(batch), 2), "floor": lambda: seconds_of(floor, 2)},
        max(2, steps // 2),
    )
    step, least = bench.spread(taken["step"])["median"], bench.spread(taken["floor"])["median"]
    with profile(activities=[ProfilerActivity.CPU]) as found:
        profiled = seconds_of(lambda: built.stepper.take(batch), steps)
    classes: dict[str, float] = {}
    operations: list[dict[str, Any]] = []
    for event in found.key_averages():
        seconds, kind = event.self_cpu_time_total / 1e6 / steps, class_of(event.key)
        classes[kind] = classes.get(kind, 0.0) + seconds
        operations.append({"operation": event.key, "class": kind, "seconds": seconds, "calls": event.count / steps})
    operations.sort(key=lambda row: -row["seconds"])
    classes["outside every operation"] = max(0.0, profiled - sum(classes.values()))
    _show(chosen.shape, classes, operations, step=step, floor=least, profiled=profiled)
    bench.merge(
        "by_kernel",
        f"{chosen.shape} {chosen.arm}",
        {
            "step_seconds": step,
            "floor_seconds": least,
            "reaches_of_floor": bench.ratio(taken["floor"], taken["step"]),
            "profiled_step_seconds": profiled,
            "classes": classes,
            "operations": operations[:40],
            **facts(built),
        },
    )


def _show(
    shape: str,
    classes: dict[str, float],
    operations: list[dict[str, Any]],
    *,
    step: float,
    floor: float,
    profiled: float,
) -> None:
    print(
        f"{shape}: a step {step * 1e3:.1f} ms ({profiled * 1e3:.1f} ms profiled), products alone {floor * 1e3:.1f} ms"
    )
    print(f"{'class':<26}{'ms':>9}{'share':>9}")
    for name, seconds in sorted(classes.items(), key=lambda item: -item[1]):
        beside = f"   floor {floor * 1e3:.1f} ms" if name == "matrix products" else ""
        print(f"{name:<26}{seconds * 1e3:>9.1f}{seconds / profiled:>9.1%}{beside}")
    print("the largest operations:")
    for row in operations[:12]:
        print(f"  {row['operation'][:52]:<54}{row['seconds'] * 1e3:>8.1f} ms{row['calls']:>8.0f} calls  {row['class']}")


if __name__ == "__main__":
    main()
