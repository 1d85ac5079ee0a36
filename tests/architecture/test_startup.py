"""What the first second costs: help and imports bring no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from architecture.source import ROOT

HEAVY = {"torch", "transformers", "datasets", "pytorch_optimizer", "tokenizers", "pyarrow", "optuna", "pandas", "scipy"}


@pytest.mark.parametrize(
    "program",
    [
        "import farthing",
        "import farthing.config, farthing.recipe, farthing.rundir",
        "sys.argv = ['farthing', '--help']\nfrom farthing.cli import main\nmain()",
        "sys.argv = ['farthing', '--version']\nfrom farthing.cli import main\nmain()",
        "sys.argv = ['farthing', 'runs', '--help']\nfrom farthing.cli import main\nmain()",
    ],
)
def test_nothing_heavy_is_imported(program: str) -> None:
    report = (
        "import atexit, json, sys\natexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", report + program], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(json.loads(done.stderr.splitlines()[-1]))
