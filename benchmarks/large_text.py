"""A text of 1 GB: resident memory beyond model and optimizer, and megabytes a second, from an empty cache.

python benchmarks/large_text.py [--megabytes 1000]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import bench

CHILD = """
import json, sys, threading, time
from pathlib import Path
from farthing import config, session
from farthing.recipe import Recipe
from farthing.runtime import hardware

recipe = config.load(Recipe, "default", sys.argv[2:])
seen = {}
def planned(name, recipe, plan):
    seen["plan"] = plan
    seen["read"] = time.monotonic() - start
start = time.monotonic()
session.new_run(recipe, Path(sys.argv[1]), device="cpu", watcher=session.Watcher(planned=planned))
plan = seen["plan"]
print(json.dumps({"peak": hardware.peak_memory(), "weights": plan.memory["weights"],
                  "optimizer": plan.memory["optimizer"], "seconds_to_first_step": seen["read"],
                  "tokens_per_epoch": plan.tokens_per_epoch}))
"""


def main() -> None:
    """Write the text, train three small steps on it, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    megabytes = parser.parse_args().megabytes
    sources = "".join(
        path.read_text("utf-8", "ignore") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    )
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "large.txt"
        with text.open("w", encoding="utf-8") as out:
            written = number = 0
            while written < megabytes * 1_000_000:
                # Numbered, so that the copies are not one and the same text.
                number += 1
                written += out.write(f"\n\n# copy {number}\n") + out.write(sources)
        words = ["data.kind=text", f"data.path={text}", "data.documents=paragraph", "budget.minutes=none",
                 "budget.steps=3", "data.validation=1000", "evaluate.references=false", "sample.tokens=0",
                 "train.batch_size=4",
            "model.n_head=2", "model.d_model=128", "model.n_layer=2"]  # fmt: skip
        env = {"FARTHING_CACHE": str(Path(folder) / "cache")}
        done = subprocess.run([sys.executable, "-c", CHILD, str(Path(folder) / "run"), *words], capture_output=True,
                              text=True, env={**os.environ, **env}, check=False)  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        found = json.loads(done.stdout.splitlines()[-1])
        size = text.stat().st_size
    beyond = found["peak"] - found["weights"] - found["optimizer"]
    print(f"{size / 1e9:.2f} GB: {beyond / 2**30:.2f} GiB beyond model and optimizer, "
          f"{found['seconds_to_first_step']:.0f} s to the first step ({size / 1e6 / found['seconds_to_first_step']:.1f} MB/s "
          "for hashing, reading, splitting, training the tokenizer, encoding and checking)")  # fmt: skip
    bench.write("large_text", {"bytes": size, "beyond_model_and_optimizer": beyond, **found})


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
