"""Predicted against measured peak memory of training, each recipe in a process of its own.

python benchmarks/memory.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import bench

COMMON = ["data.kind=pystdlib", "data.limit=60", "budget.steps=3", "evaluate.every=end", "evaluate.references=false",
          "evaluate.batch_size=1", "sample.tokens=0", "checkpoint.every=end", "data.validation=1"]  # fmt: skip
CASES = {
    "default": ["default", "budget.minutes=none"],
    "wide fp32 AdamW": ["default", "budget.minutes=none", "model.d_model=512", "model.n_head=8", "optimizer.kind=adamw",
                        "train.precision=fp32"],
    "titles-baseline": ["titles-baseline", "budget.epochs=none", "tokenizer.vocab_size=2000", "train.order=shuffled"],
    "deep bf16 SwiGLU with EMA": ["default", "budget.minutes=none", "model.n_layer=16", "model.mlp.kind=swiglu",
                                  "train.precision=bf16", "train.ema=0.99"],
    "R-Drop and SAM, long context": ["default", "budget.minutes=none", "model.context_length=512", "model.dropout=0.1",
                                     "objective.r_drop=1", "optimizer.kind=adamw", "optimizer.sharpness.kind=sam",
                                     "train.batch_size=8"],
    "deep fp32, accumulated": ["default", "budget.minutes=none", "tokenizer.kind=byte", "model.d_model=384",
                               "model.n_head=6", "model.n_layer=12", "train.precision=fp32", "train.micro_batch=8"],
}  # fmt: skip

CHILD = """
import json, sys, tempfile
from pathlib import Path
from farthing import config, session
from farthing.recipe import Recipe
from farthing.runtime import hardware

recipe = config.load(Recipe, sys.argv[1], sys.argv[2:])
plans, peaks = [], []

def planned(name, recipe, plan):
    # The calibration has taken real steps by now, so the peak so far is that of training.
    plans.append(plan)
    return lambda event: peaks.append(hardware.peak_memory()) if event.kind == "step" else None

with tempfile.TemporaryDirectory() as folder:
    session.new_run(recipe, Path(folder) / "run", device="cpu", watcher=session.Watcher(planned=planned))
print(json.dumps({"predicted": plans[0].memory_bytes, "terms": plans[0].memory, "measured": max(peaks),
                  "precision": plans[0].settings.precision, "attention": plans[0].settings.attention,
                  "parameters": plans[0].parameters}))
"""


def main() -> None:
    """Print a row a recipe and keep the numbers."""
    rows = []
    print(f"{'recipe':<32}{'parameters':>12}{'predicted':>12}{'measured':>12}{'off by':>9}")
    for name, words in CASES.items():
        out = subprocess.run(
            [sys.executable, "-c", CHILD, *words, *COMMON], capture_output=True, text=True, check=False,
            cwd=tempfile.gettempdir(),
        )  # fmt: skip
        if out.returncode:
            raise SystemExit(f"{name}: {out.stderr[-3000:]}")
        found = json.loads(out.stdout.splitlines()[-1])
        off = found["predicted"] / found["measured"] - 1
        rows.append({"recipe": name, "words": [*words, *COMMON], "off": round(off, 4), **found})
        print(
            f"{name:<32}{found['parameters']:>12,}{found['predicted'] / 2**20:>8.0f} MiB"
            f"{found['measured'] / 2**20:>8.0f} MiB{off:>+9.1%}"
        )
    worst = max(abs(row["off"]) for row in rows)
    print(f"worst: {worst:.1%}")
    bench.write("memory", {"worst": worst, "rows": rows})


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
