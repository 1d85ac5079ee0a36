"""What every benchmark shares: the machine's description, child processes, and where results go."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def machine() -> dict[str, Any]:
    """The machine, so that a number can be read for what it is."""
    import torch

    from farthing.runtime import hardware

    return {
        "cpu": hardware.cpu_name(),
        "physical_cores": hardware.physical_cores(),
        "memory_gib": round(hardware.memory_total() / 2**30, 1),
        "instruction_sets": list(hardware.instruction_sets()),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def run(arguments: Sequence[str], *, env: Mapping[str, str] | None = None) -> tuple[float, int, str]:
    """Run a child process: (seconds, peak resident bytes, standard output); its failure is ours."""
    start = time.monotonic()
    child = subprocess.Popen(
        list(arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    )
    out, err = child.communicate()
    seconds = time.monotonic() - start
    if child.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {child.returncode}\n{err[-2000:]}")
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, out


def farthing(*words: str, env: Mapping[str, str] | None = None) -> tuple[float, dict[str, Any]]:
    """Run the command with --json: (seconds, its JSON)."""
    seconds, _, out = run([sys.executable, "-m", "farthing", *words, "--json"], env=env)
    return seconds, json.loads(out.splitlines()[-1])


def write(name: str, results: Mapping[str, Any]) -> None:
    """Keep a benchmark's results with its command and machine."""
    RESULTS.mkdir(exist_ok=True)
    record = {"command": f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip(),
              "date": time.strftime("%Y-%m-%d"), "machine": machine(), **results}  # fmt: skip
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"written to {path.relative_to(HERE.parent)}")
