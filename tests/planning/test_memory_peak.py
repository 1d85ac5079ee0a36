"""The plan's memory is the measured peak of the whole training process, within an eighth."""

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

# Steps of a model with GPT-2's vocabulary on random tokens: there is no need of its tokenizer's files.
LARGE_VOCABULARY = """
import json, sys
import numpy as np, torch
from farthing import assemble, config, session
from farthing.data.batches import Batch
from farthing.planning import Counts, settle
from farthing.planning.settings import memory_terms
from farthing.recipe import Recipe
from farthing.runtime import device, hardware

recipe, vocabulary = config.load(Recipe, None, sys.argv[2:]), 50_257
machine = device.this_machine("cpu")
device.configure(machine, threads=1)
settings = settle(recipe, machine, Counts(vocabulary, None, None))
terms = memory_terms(
    recipe, vocabulary, settings.micro_batch, settings.precision, settings.attention, machine
)
stepper = assemble.build_stepper(recipe, settings, vocabulary, machine.torch_device)
rows, length = recipe.train.batch_size, recipe.model.context_length
inputs, targets = np.random.default_rng(0).integers(0, vocabulary, (2, rows, length))
for _ in range(3):
    stepper.take(Batch(inputs, targets, None, targets.size, rows))
print(json.dumps([sum(terms.values()), hardware.peak_memory()]))
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
    ("child", "words"),
    [
        (CHILD, ["model.dropout=0.1", "model.n_layer=4", "model.d_model=256", "model.n_head=4",
                 "train.precision=fp32"]),
        (CHILD, ["model.mlp.kind=swiglu", "model.n_layer=6", "model.d_model=256", "model.n_head=4",
                 "train.precision=bf16", "train.attention=math", "optimizer.kind=adamw"]),
        (LARGE_VOCABULARY, ["model.n_layer=4", "model.d_model=256", "model.n_head=4", "model.context_length=128",
                            "train.batch_size=8", "train.precision=bf16", "train.attention=math", "train.compile=off",
                            "optimizer.kind=adamw"]),
    ],
    ids=["dropout in fp32", "SwiGLU in bf16", "GPT-2's vocabulary"],
)  # fmt: skip
def test_the_peak_is_predicted(child: str, words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", child, str(tmp_path), *COMMON, *words], capture_output=True, text=True, check=True
    )
    predicted, measured = json.loads(done.stdout.splitlines()[-1])
    assert predicted == pytest.approx(measured, rel=0.125)
