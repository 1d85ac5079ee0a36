"""How long `farthing compare` takes over 200 finished runs of 2,000 steps each, and `farthing report` over 50 of them.

python benchmarks/compare_speed.py           (about three minutes, most of it for writing the runs)

The targets are 3 s for the comparison, and 15 s and 5 MB for the report. One run of the default recipe is trained for a
moment; its folder is copied, with other seeds, settings and scores, and with events of 2,000 steps. The arms differ in
operations per token, so that the report draws all that it can draw of them. No cache of the file system is emptied: the
first of the five readings is the coldest.
"""

from __future__ import annotations

import json
import random
import re
import resource
import sys
import tempfile
from pathlib import Path

import bench

RUNS, STEPS, ARMS, ROUNDS = 200, 2000, 40, 5
REPORTED = "arm[0-9]-seed*"
"""ten of the arms, five seeds each"""


def furnish(folder: Path) -> int:
    """Write the runs; returns the bytes of their events."""
    bench.farthing("train", "budget.minutes=none", "budget.steps=2", "data.validation=5", "evaluate.references=false",
                   "--runs", str(folder), "--name", "first")  # fmt: skip
    first = folder / "first"
    recipe, receipt, plan = ((first / name).read_text("utf-8") for name in ("recipe.toml", "receipt.json", "plan.json"))
    result = json.loads((first / "result.json").read_text("utf-8"))
    lines = (first / "events.jsonl").read_text("utf-8").splitlines()
    started, last = lines[0], lines[-1]
    step = json.loads(next(line for line in lines if '"kind": "step"' in line))
    scored = json.loads(next(line for line in lines if '"kind": "evaluation"' in line))
    size = 0
    for number in range(RUNS):
        arm, seed = number % ARMS, number // ARMS + 1
        run = folder / f"arm{arm}-seed{seed}"
        run.mkdir()
        text = re.sub(r"^seed = .*$", f"seed = {seed}", recipe, count=1, flags=re.MULTILINE)
        text = re.sub(r"^weight_decay = .*$", f"weight_decay = {0.1 + arm / 1000}", text, count=1, flags=re.MULTILINE)
        (run / "recipe.toml").write_text(text, "utf-8")
        (run / "receipt.json").write_text(receipt, "utf-8")
        (run / "plan.json").write_text(plan, "utf-8")
        rng = random.Random(number)
        bits = rng.gauss(1.3, 0.01)
        result["validation"]["bits_per_byte"] = bits
        (run / "result.json").write_text(json.dumps(result), "utf-8")
        events = [started]
        for at in range(1, STEPS + 1):
            flops = at * 7.2e10 * (1 + arm % 4)
            spent = {**step["spent"], "steps": at, "tokens": at * 4096, "flops": flops, "seconds": at * 0.26}
            loss = 2 + arm / 100 + 6 / at + rng.gauss(0, 0.1)
            events.append(json.dumps({**step, "step": at, "loss": loss, "spent": spent}))
            if at % (STEPS // 10) == 0:
                validation = {**scored["validation"], "bits_per_byte": bits + 1 - at / STEPS}
                events.append(json.dumps({**scored, "step": at, "validation": validation, "spent": spent}))
        content = "\n".join([*events, last]) + "\n"
        (run / "events.jsonl").write_text(content, "utf-8")
        size += len(content)
    return size


def cpu_seconds(command: list[str]) -> float:
    """Processor time of a child process: what it would take on a machine that does nothing else."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    bench.run(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and keep."""
    farthing = [sys.executable, "-m", "farthing"]
    with tempfile.TemporaryDirectory() as place:
        runs = Path(place)
        size = furnish(runs)
        page = runs / "report.html"
        compare = [*farthing, "compare", f"{runs}/arm*", "--json"]
        commands = {
            "help": [*farthing, "compare", "--help"],
            "compare": compare,
            "compare_with_curves": [*compare, "--curves", f"{runs}/curves.csv"],
            "report": [*farthing, "report", f"{runs}/{REPORTED}", "--out", str(page), "--json"],
        }
        found = bench.in_turn(
            {name: lambda command=command: bench.run(command)[0] for name, command in commands.items()}, ROUNDS
        )
        cpu = {name: cpu_seconds(command) for name, command in commands.items() if name != "help"}
        told = json.loads(bench.run(commands["report"])[2])
        reported = {"runs": told["runs"], "arms": len(told["arms"]), "html_bytes": page.stat().st_size}
    seconds = {name: bench.spread(values) for name, values in found.items()}
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "report": reported}, indent=1))
    facts = {"runs": RUNS, "steps": STEPS, "arms": ARMS, "events_bytes": size}
    bench.write("compare", {**facts, "seconds": seconds, "cpu_seconds": cpu, "report": reported})


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
