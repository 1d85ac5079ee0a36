"""The plan's memory is the measured peak of the whole training process, within a fifth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import json, sys
from pathlib import Path
from farthing import config, session
from farthing.recipe import Recipe
from farthing.runtime import hardware

plans, peaks = [], []

def planned(name, recipe, plan):
    plans.append(plan)
    return lambda event: peaks.append(hardware.peak_memory()) if event.kind == "step" else None

recipe = config.load(Recipe, None, sys.argv[2:])
session.new_run(recipe, Path(sys.argv[1]) / "run", device="cpu", watcher=session.Watcher(planned=planned))
print(json.dumps([plans[0].memory_bytes, max(peaks)]))
"""

COMMON = [
    "data.kind=pystdlib",
    "data.limit=40",
    "data.validation=1",
    "tokenizer.kind=byte",
    "budget.steps=3",
    "train.threads=1",
    "evaluate.references=false",
    "sample.tokens=0",
]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize(
    "words",
    [
        ["model.dropout=0.1", "model.n_layer=4", "model.d_model=256", "model.n_head=4", "train.precision=fp32"],
        ["model.mlp.kind=swiglu", "model.n_layer=6", "model.d_model=256", "model.n_head=4", "train.precision=bf16",
         "train.attention=math", "optimizer.kind=adamw"],
    ],
)  # fmt: skip
def test_the_peak_is_predicted(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), *COMMON, *words], capture_output=True, text=True, check=True
    )
    predicted, measured = json.loads(done.stdout.splitlines()[-1])
    assert predicted == pytest.approx(measured, rel=0.2)
