"""Farthing, transformers' Trainer and Lightning, killed alike: who goes on without help, and to the same weights?

    python benchmarks/rivals_reliability.py              (about ten minutes; Lightning from .venv-lightning, see below)
    python benchmarks/rivals_reliability.py --kills 100

A tiny GPT with dropout on one thread of the CPU, 24 steps, saved every 4. Killed once in each run, half of them at a
uniformly random moment of training and half inside a save other than the first, drawn uniformly over the time that
saves take; then resumed as each one's documentation says. A run counts as exact if its final weights have the bits of
that side's own undisturbed run, of which there are three, equal among themselves.

Lightning lives in an environment of its own: python -m venv .venv-lightning, and there pip install torch==2.13.0
lightning. Without it, its rows are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import bench
import reliability

LIGHTNING = bench.HERE.parent / ".venv-lightning" / "bin" / "python"
SIDES = {"ours": sys.executable, "trainer": sys.executable, "lightning": str(LIGHTNING)}
SAVES = 6
WHERE = {"training": "at any moment of training", "save": "inside a save"}


class Side:
    """One side's process, which forks for each run."""

    def __init__(self, name: str, python: str) -> None:
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [python, "-m", "sides.enduring", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=bench.HERE,
            env={**os.environ, **environment},
        )
        self.facts = self._read()

    def run(self, folder: Path, *, resume: bool, **kill: Any) -> dict[str, Any]:
        """Train; returns how that ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"folder": str(folder), "resume": resume, **kill}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def quit(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with code {self._process.wait()}")
        return dict(json.loads(line))


def measure(side: Side, folder: Path, *, kills: int, draw: random.Random) -> dict[str, Any]:
    """Kill and resume one side's runs, each once."""
    words = draw.choices(["the", "cat", "dog", "owl", "went", "to", "a", "hill", "and", "saw", "no", "sea"], k=20_000)
    lines = [" ".join(words[start : start + 10]) for start in range(0, len(words), 10)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", "utf-8")
    target = folder / "run"

    def train(*, resume: bool, **kill: Any) -> dict[str, Any]:
        if not resume:
            shutil.rmtree(target, ignore_errors=True)
        return side.run(target, resume=resume, **kill)

    whole = [train(resume=False) for _ in range(3)]
    if whole[0]["error"]:
        raise SystemExit(f"{side.facts['version']}: {whole[0]['error']}")
    saves = [seconds for one in whole for seconds in one["saves"]]
    found: dict[str, Any] = {
        **side.facts,
        "undisturbed_equal": len({one["weights"] for one in whole}) == 1,
        "save_seconds": bench.spread(saves),
        "seconds": statistics.median(one["seconds"] for one in whole),
        "kills": {},
    }
    for where in WHERE:
        told: Counter[str] = Counter()
        errors: Counter[str] = Counter()
        while told["killed"] < kills // 2:
            seconds = draw.uniform(0, found["seconds"] if where == "training" else statistics.median(saves))
            nth = 1 if where == "training" else draw.randint(2, SAVES)
            done = train(resume=False, where=where, nth=nth, seconds=seconds)
            if done["code"] == 0:
                told["ended before"] += 1
                if told["ended before"] > 10 * kills:
                    raise SystemExit(f"{side.facts['version']}: kills in {where} never strike")
                continue
            told["killed"] += 1
            after = train(resume=True)
            told["resumed"] += not after["error"]
            told["exact"] += after["weights"] == whole[0]["weights"]
            if after["error"]:
                errors[re.sub(r"\d+(?=[/'\"]|$)", "N", after["error"].replace(str(folder), ""))] += 1
        found["kills"][where] = {**told, "errors": dict(errors)}
        print(f"{side.facts['version']}: {WHERE[where]}: {dict(told)} {dict(errors)}", flush=True)
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    rows = [
        "| killed once | kills | resumed without help | final weights of the undisturbed run |",
        "|---|--:|--:|--:|",
    ]
    for one in found.values():
        for where, told in one["kills"].items():
            killed = told["killed"]
            rows.append(
                f"| {one['version']}, {WHERE[where]} | {killed} | {told.get('resumed', 0)} | {told.get('exact', 0)} |"
            )
    errors = [
        f"- {one['version']}, {WHERE[where]}: {count} times `{error}`"
        for one in found.values()
        for where, told in one["kills"].items()
        for error, count in told["errors"].items()
    ]
    unequal = [
        f"- {one['version']}: three undisturbed runs differ." for one in found.values() if not one["undisturbed_equal"]
    ]
    return "\n".join([*rows, "", *unequal, *errors])


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of each side")
    parser.add_argument("--sides", default="ours,trainer,lightning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/reliability.md")
    chosen = parser.parse_args()
    found = {}
    for name in chosen.sides.split(","):
        if not Path(SIDES[name]).exists():
            print(f"left out: {name}: no {SIDES[name]}", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="farthing-rivals-") as folder:
            os.environ["FARTHING_CACHE"] = str(Path(folder) / "cache")
            side = Side(name, SIDES[name])
            try:
                found[name] = measure(side, Path(folder), kills=chosen.kills, draw=random.Random(chosen.seed))
            finally:
                side.quit()
    print(table(found))
    bench.write("rivals_reliability", {"sides": found})
    if chosen.write:
        reliability.write("rivals", table(found))


if __name__ == "__main__":
    main()
