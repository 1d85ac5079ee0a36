"""The default recipe as a newcomer meets it: time to the first step, to the end, and the score; help and tokenising.

python benchmarks/start.py            (about eight minutes)
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench


def help_seconds() -> float:
    """The median of five `farthing --help`."""
    return statistics.median(bench.run([sys.executable, "-m", "farthing", "--help"])[0] for _ in range(5))


def default_run(cache: str, runs: str, name: str) -> dict[str, float]:
    """Seconds from the command to the first step's event and to the end, and the score."""
    began = time.time()
    seconds, result = bench.farthing("train", "--runs", runs, "--name", name, env={"FARTHING_CACHE": cache})
    events = [json.loads(line) for line in (Path(runs) / name / "events.jsonl").read_text("utf-8").splitlines()]
    first = next(event for event in events if event["kind"] == "step")
    return {
        "first_step_seconds": first["time"] - began,
        "total_seconds": seconds,
        "bits_per_byte": result["validation"]["bits_per_byte"],
        "xz": result["references"]["xz"],
        "tokens": result["spent"]["tokens"],
        "steps": result["spent"]["steps"],
        "training_seconds": result["spent"]["seconds"],
    }


TOKENISE = """
import json, sys, time
from pathlib import Path
from farthing import config
from farthing.data.prepare import prepare
from farthing.recipe import Recipe

recipe = config.load(Recipe, "default")
stages = {}
def report(stage, done, total):
    now = time.monotonic()
    stages.setdefault(stage, [now, now])[1] = now
start = time.monotonic()
text = prepare(recipe.data, recipe.tokenizer, directory=Path.cwd(), cache=Path(sys.argv[1]), context_length=256,
               report=report)
total = time.monotonic() - start
size = text.train.bytes + text.validation.bytes
start = time.monotonic()
prepare(recipe.data, recipe.tokenizer, directory=Path.cwd(), cache=Path(sys.argv[1]), context_length=256)
warm = time.monotonic() - start
print(json.dumps({"bytes": size, "cold_seconds": total, "warm_seconds": warm,
                  "stages": {name: end - begin for name, (begin, end) in stages.items()}}))
"""


def tokenising() -> dict[str, float]:
    """The default text read, its tokenizer trained, and encoded, with an empty cache; then warm."""
    with tempfile.TemporaryDirectory() as cache:
        out = subprocess.run([sys.executable, "-c", TOKENISE, cache], capture_output=True, text=True, check=True)
    found = json.loads(out.stdout.splitlines()[-1])
    stage = next(
        (seconds for name, seconds in found["stages"].items() if "token" in name and "train" not in name), None
    )
    rate = None if not stage else found["bytes"] / 1e6 / stage
    return {**found, "megabytes_per_second": rate}


def main() -> None:
    """Measure and keep."""
    found = {"help_seconds": help_seconds(), "tokenising": tokenising()}
    print(json.dumps(found, indent=1), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        cache = f"{folder}/cache"
        found["cold"] = default_run(cache, folder, "cold")
        print(json.dumps(found["cold"], indent=1), flush=True)
        # A short one is enough to see how soon a warm start is at its first step.
        began = time.time()
        bench.farthing("train", "budget.steps=3", "evaluate.references=false", "data.validation=5", "--runs", folder,
                       "--name", "warm0", env={"FARTHING_CACHE": cache})  # fmt: skip
        began = time.time()
        bench.farthing("train", "budget.steps=3", "evaluate.references=false", "data.validation=5", "--runs", folder,
                       "--name", "warm", env={"FARTHING_CACHE": cache})  # fmt: skip
        lines = (Path(folder) / "warm" / "events.jsonl").read_text("utf-8").splitlines()
        first = next(json.loads(line) for line in lines if '"kind": "step"' in line)
        found["warm_first_step_seconds"] = first["time"] - began
    print(json.dumps({"warm_first_step_seconds": found["warm_first_step_seconds"]}))
    bench.write("start", found)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
