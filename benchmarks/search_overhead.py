"""What a search adds to each of its trials: from the launch of its process to its first step.

python benchmarks/search_overhead.py

Trials of the default recipe, everything left to auto, with a tokenizer of its own, that differ in learning rate and
dropout. A row a trial, from its own files: when its process was launched, when its first step was done, and what of
that was text, plan, the trial of settings, and building. Importing torch is timed by itself, in turn with the trials'
machine at rest, and taken off.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench

from farthing.events import Ready, Step, read_events
from farthing.search.record import Folder

TRIALS = 5
SEARCH = f"""\
recipe = "default"
[changes]
budget = {{ minutes = "none", steps = 200 }}
data.limit = 150
evaluate.references = false
evaluate.every = "end"
[space]
"optimizer.lr" = {{ kind = "float", low = 1e-3, high = 3e-2, log = true }}
"model.dropout" = {{ kind = "float", low = 0.05, high = 0.3 }}
[sampler]
kind = "tpe"
startup_trials = 2
[budget]
trials = {TRIALS}
[confirm]
top = 0
"""
MODEL = [
    "model.n_layer=2",
    "model.d_model=64",
    "model.n_head=2",
    "model.context_length=64",
    "tokenizer.vocab_size=1000",
]


def torch_seconds() -> float:
    """Starting Python and importing torch, and nothing else."""
    seconds, _, _ = bench.run([sys.executable, "-c", "import torch"])
    return seconds


def main() -> None:
    """Print a row a trial, and the median without torch's import."""
    imports = [torch_seconds() for _ in range(3)]
    with tempfile.TemporaryDirectory() as temporary:
        desk = Path(temporary)
        (desk / "s.toml").write_text(SEARCH, "utf-8")
        started = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "farthing", "search", "s.toml", *MODEL, "--json"], cwd=desk, capture_output=True,
            text=True, env={**os.environ, "FARTHING_CACHE": str(desk / "cache")},
        )  # fmt: skip
        wall = time.time() - started
        if done.returncode:
            raise SystemExit(done.stderr)
        answer = json.loads(done.stdout.splitlines()[-1])
        if answer["failed"]:
            raise SystemExit((desk / "runs" / "s" / "findings.json").read_text("utf-8"))
        rows = [row(desk / "runs" / "s", index) for index in range(TRIALS)]
    imports += [torch_seconds() for _ in range(3)]
    importing = statistics.median(imports)
    print(f"{'trial':<14}{'to first step':>14}{'text':>8}{'plan':>8}{'settings':>10}{'build':>8}{'training':>10}")
    for one in rows:
        print(f"{one['trial']:<14}{one['to_first_step']:>12.1f} s{one['text']:>6.1f} s{one['plan']:>6.1f} s"
              f"{one['settings']:>8.1f} s{one['build']:>6.1f} s{one['training']:>8.1f} s")  # fmt: skip
    median = statistics.median(one["to_first_step"] for one in rows)
    held = answer["spent"]["seconds"]
    print(
        f"python and torch's import: {importing:.1f} s; median beyond it: {median - importing:.1f} s (target: under 10 s)"
    )
    print(f"the search took {wall:.0f} s, its {TRIALS} runs {held:.0f} s")
    bench.write("search_overhead", {"rows": rows, "import_seconds": importing, "beyond_import": median - importing,
                                    "wall_seconds": wall, "runs_seconds": held})  # fmt: skip


def row(search: Path, index: int) -> dict[str, object]:
    """What one trial's files tell of its beginning."""
    folder = Folder(search)
    record = folder.records()[index]
    # The trial's recipe is written just before its process is launched.
    launched = folder.recipe(record).stat().st_mtime
    told = list(read_events(folder.run(record, record.seeds[0]).events))
    ready = next(one for one in told if one["kind"] == Ready.kind)
    first = next(one for one in told if one["kind"] == Step.kind)
    return {
        "trial": record.id,
        "to_first_step": first["time"] - launched,
        "text": ready["text"],
        "plan": ready["plan"] - ready["trial"],
        "settings": ready["trial"],
        "build": ready["build"],
        "training": told[-1]["spent"]["seconds"],
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
