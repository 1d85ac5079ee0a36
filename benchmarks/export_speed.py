"""Exporting a model of GPT-2's size (124 M parameters) with its gate: from the command to the folder.

python benchmarks/export_speed.py            (about five minutes, nearly all of it one step of training and its score)

The run takes one step on the standard library's sources; what its weights are worth does not matter here.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import bench
from shapes import GPT2_ARCHITECTURE, Shape

GPT2 = Shape("124M/1024", n_layer=12, n_head=12, d_model=768, vocab_size=50257, context=1024, batch=1)
ROUNDS = 3
TO_REACH = 30.0
"""seconds"""
SMALL_SCORE = ["data.limit=60", "data.validation=2", "evaluate.references=false", "sample.tokens=0"]


def main() -> None:
    """Train for one step, export it a few times, measure and keep."""
    bench.prepare_tokenizer(GPT2)
    found: dict[str, Any] = {"parameters": 0, "seconds": {}, "to_reach": TO_REACH}
    with tempfile.TemporaryDirectory() as folder:
        words = ["default", *GPT2.recipe(), *GPT2_ARCHITECTURE, *SMALL_SCORE, "budget.minutes=none", "budget.steps=1"]
        bench.farthing("train", *words, "--runs", folder, "--name", "gpt2", "--quiet")
        for dtype in ("fp32", "bf16"):
            seconds = []
            for number in range(ROUNDS):
                target = Path(folder) / f"{dtype}-{number}"
                took, told = bench.farthing(
                    "export", "gpt2", str(target), "--runs", folder, "--dtype", dtype, "--quiet"
                )
                seconds.append(took)
            found["seconds"][dtype] = bench.spread(seconds)
            found |= {"parameters": told["parameters"], "form": told["form"], f"proof_{dtype}": told["proof"]}
            print(
                f"{dtype}: {statistics.median(seconds):.1f} s for {told['parameters'] / 1e6:.0f} M parameters",
                flush=True,
            )
    bench.write("export", found)


if __name__ == "__main__":
    main()
