"""What auto chooses is never slower than plain fp32 eager: twelve recipes, each in turn with its plain self.

    python benchmarks/auto.py                      (about 15 minutes)
    python benchmarks/auto.py --recipes tiny,gqa

For each recipe the planner chooses as it does at the start of a run of the stated length: precision, attention,
compiling, micro-batch, and whatever else it measures. The same recipe with those pinned to fp32, SDPA, weight gradients
as autograd calls them and no compiling is the plain one. Steps of both take turns; compiling is not counted, since the
plan has weighed it against the length of the run. A recipe is slower where the median of the rounds says so by more than
3 %. Ends with exit code 1 if one is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from typing import Any

import bench
import turns
from shapes import GPT2_ARCHITECTURE, PLAIN, SHAPES, Shape

TOLERANCE = 0.97
BYTES = ["tokenizer.kind=byte"]

_small = Shape("", n_layer=4, n_head=2, d_model=64, vocab_size=1024, context=64, batch=16)
_medium = replace(SHAPES["12M/128"], n_layer=4, d_model=256, n_head=4)

# name: shape, overrides beyond it, minutes of the run
RECIPES: dict[str, tuple[Shape, list[str], float]] = {
    "tiny": (_small, [], 1),
    "bytes": (replace(_small, d_model=128, n_head=4, context=256), BYTES, 2),
    "default": (Shape("", n_layer=4, n_head=3, d_model=192, vocab_size=4096, context=256, batch=16), [], 3.5),
    "gpt2-12m": (SHAPES["12M/128"], [*GPT2_ARCHITECTURE, "optimizer.kind=adamw"], 5),
    "gpt2-12m-hour": (SHAPES["12M/128"], [*GPT2_ARCHITECTURE, "optimizer.kind=adamw"], 60),
    "relu2": (SHAPES["12M/512"], ["model.mlp.kind=relu2"], 20),
    "swiglu": (_medium, ["model.mlp.kind=swiglu", "model.mlp.ratio=2.6666667"], 10),
    "gqa": (_medium, ["model.n_kv_head=2", "model.attention.qk_norm=rmsnorm"], 10),
    "dropout": (_medium, ["model.dropout=0.1", "optimizer.kind=sgd", "optimizer.momentum=0.9"], 10),
    "documents": (replace(_medium, context=1024, batch=2), ["model.attention.scope=document"], 10),
    "vocabulary": (replace(_medium, vocab_size=50257, batch=8), [], 10),
    "50m": (replace(SHAPES["45M/128"], n_layer=9, batch=8), ["model.norm.kind=layernorm"], 30),
}


def overrides_of(name: str) -> list[str]:
    """A recipe of the table as overrides of the default one."""
    shape, more, _ = RECIPES[name]
    words = shape.recipe()
    if BYTES[0] in more:
        words = [word for word in words if not word.startswith("tokenizer.vocab_size")]
    return [*words, *more]


def measure(name: str, *, rounds: int, seconds: float) -> dict[str, Any]:
    """One recipe with the settings of auto and with plain ones, in turn."""
    overrides, minutes = overrides_of(name), RECIPES[name][2]
    bench.prepare_tokenizer(RECIPES[name][0])
    asked = {"ours, auto": overrides, "ours, plain": [*overrides, *PLAIN]}
    starts = {
        side: {"module": "sides.ours", "asked": {"overrides": words, "minutes": minutes}}
        for side, words in asked.items()
    }
    with turns.sides(starts) as there:
        taken = turns.take_turns(there, rounds=rounds, seconds=seconds)
        facts, start = there["ours, auto"].facts, there["ours, auto"].start_seconds
    faster = bench.ratio(taken["ours, plain"], taken["ours, auto"])
    return {
        "overrides": [word.replace(f"{tempfile.gettempdir()}/", "") for word in overrides],
        "minutes": minutes,
        "parameters": facts["parameters"],
        "chosen": facts["chosen"],
        "settings": facts["settings"],
        "start_seconds": start,
        "auto_step_seconds": bench.spread(taken["ours, auto"]),
        "plain_step_seconds": bench.spread(taken["ours, plain"]),
        "times_as_fast": faster,
        "slower": faster["median"] < TOLERANCE,
    }


def main() -> None:
    """Measure the recipes asked for and keep each as soon as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a turn, at least one step")
    chosen = parser.parse_args()
    slower = []
    print(f"{'recipe':<16}{'parameters':>12}{'plain':>10}{'auto':>10}  {'times as fast':<24}chosen")
    for name in chosen.recipes.split(","):
        row = measure(name, rounds=chosen.rounds, seconds=chosen.seconds)
        print(
            f"{name:<16}{row['parameters']:>12,}{row['plain_step_seconds']['median'] * 1e3:>7,.0f} ms"
            f"{row['auto_step_seconds']['median'] * 1e3:>7,.0f} ms  {bench.told(row['times_as_fast']):<24}"
            f"{row['chosen']}",
            flush=True,
        )
        bench.merge("auto", name, row)
        if row["slower"]:
            slower.append(name)
    print(f"slower than plain: {', '.join(slower) or 'none'}")
    sys.exit(bool(slower))


if __name__ == "__main__":
    main()
