"""Three workers search together through PostgreSQL; one is killed with kill -9, another stopped for a while.

python benchmarks/search_postgres.py

Two searches of the same trials: one undisturbed by a single worker, one by three, of which the first is killed together
with its run as soon as that has saved a checkpoint, and the second is stopped (SIGSTOP) until its trial is taken over.
The table has a row a trial. It ends with what must hold: as many trials as asked for, each once, and every score what it is
without any disturbance. PostgreSQL is a private cluster in a temporary folder (.ci/postgres installs the binaries).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench
from cluster import cluster

from farthing.rundir import RunDir
from farthing.search.record import Folder, Record

TRIALS = 8
HEARTBEAT_SECONDS = 5
PATIENCE_SECONDS = 600.0
TITLES = "".join(
    f"Show HN: the {word} that counts {n}\n" for n in range(200) for word in ("farthing", "penny", "groat")
)
RECIPE = """\
[data]
kind = "text"
path = "titles.txt"
documents = "line"
[tokenizer]
kind = "byte"
[model]
n_layer = 2
n_head = 2
d_model = 32
context_length = 32
[optimizer]
kind = "adamw"
[budget]
steps = 1500
[train]
batch_size = 8
threads = 1
precision = "fp32"
compile = "off"
[evaluate]
every = 300
references = false
[checkpoint]
every = 100
[sample]
tokens = 1
"""
SEARCH = f"""\
recipe = "small.toml"
heartbeat_seconds = {HEARTBEAT_SECONDS}
[space]
"optimizer.lr" = {{ kind = "float", low = 1e-4, high = 3e-2, log = true }}
"model.dropout" = {{ kind = "float", low = 0.0, high = 0.3 }}
[sampler]
kind = "random"
[budget]
trials = {TRIALS}
[confirm]
top = 0
"""


def start(desk: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "farthing", "search", "s.toml", "--json", *words],
        cwd=desk, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def furnish(folder: Path) -> Path:
    folder.mkdir()
    for name, content in (("titles.txt", TITLES), ("small.toml", RECIPE), ("s.toml", SEARCH)):
        (folder / name).write_text(content, "utf-8")
    return folder


def mine(folder: Folder, worker: subprocess.Popen[str]) -> list[tuple[Record, RunDir]]:
    """What a worker has running, with the run folders."""
    records = folder.records() if folder.path.exists() else []
    return [(one, folder.run(one, 1337)) for one in records if one.worker.endswith(f":{worker.pid}") and not one.ended]


def disturbed(desk: Path, url: str) -> tuple[list[dict[str, object]], list[str]]:
    folder = Folder(desk / "runs" / "s")
    workers = [start(desk, "--storage", url) for _ in range(3)]
    victim, sleeper, _ = workers
    while not any(run.checkpoint_steps() for _, run in mine(folder, victim)):
        time.sleep(0.05)
    lost = mine(folder, victim)
    os.killpg(victim.pid, signal.SIGKILL)
    for record, _ in lost:
        if record.process is not None:
            os.killpg(record.process, signal.SIGKILL)
    victim.communicate()
    while not mine(folder, sleeper):
        time.sleep(0.05)
    held = mine(folder, sleeper)
    os.kill(sleeper.pid, signal.SIGSTOP)
    # Nobody can tell a stopped worker from a dead one: whoever is free takes its trial over.
    until, stolen = time.monotonic() + PATIENCE_SECONDS, {one.id for one, _ in held}
    while not any(one.id in stolen and one.attempt > 1 for one in folder.records()) and time.monotonic() < until:
        time.sleep(0.2)
    os.kill(sleeper.pid, signal.SIGCONT)
    answers, refused = [], 0
    for worker in workers[1:]:
        out, err = worker.communicate(timeout=1800)
        assert worker.returncode == 0, err
        answers.append(json.loads(out))
        refused += err.count("another worker has taken it over")
    told = [
        f"killed with kill -9: {', '.join(one.id for one, _ in lost)}; stopped until taken over: {', '.join(stolen)}",
        f"trials that the stopped worker had to let go when it woke up: {refused}",
    ]
    return answers, told


def main() -> None:
    """Print a row a trial, and what holds."""
    with tempfile.TemporaryDirectory() as temporary, cluster() as server:
        alone, together = furnish(Path(temporary) / "alone"), furnish(Path(temporary) / "together")
        out, err = start(alone).communicate(timeout=1800)
        assert out, err
        answers, told = disturbed(together, server.url)
        expected = {repr(one.parameters): one.score for one in Folder(alone / "runs" / "s").records()}
        found = Folder(together / "runs" / "s").records()
        rows = []
        print(f"{'trial':<14}{'attempts':>9}{'last worker':>14}{'bits/byte':>12}{'undisturbed':>13}")
        for one in found:
            before = expected.get(repr(one.parameters))
            worker = one.worker.rpartition(":")[2]
            shown = "other" if before is None else f"{before:.6f}"
            print(f"{one.id:<14}{one.attempt:>9}{worker:>14}{one.score or 0:>12.6f}{shown:>13}")
            rows.append({"trial": one.id, "attempt": one.attempt, "score": one.score, "undisturbed": before})
        same = sum(row["score"] == row["undisturbed"] for row in rows if row["undisturbed"] is not None)
        shared = sum(row["undisturbed"] is not None for row in rows)
        counted = [answer["trials"] for answer in answers]
        print("\n".join(told))
        once = len({one.id for one in found}) == len(found)
        complete = sum(one.state == "complete" for one in found)
        print(
            f"asked for {TRIALS} trials; counted by the workers that are left: {counted}; complete: {complete}; each once: {once}"
        )
        print(
            f"scores equal to the undisturbed search's, to the last bit: {same} of {shared} candidates that both tried"
        )
        bench.write("search_postgres", {"rows": rows, "asked": TRIALS, "counted": counted, "told": told})
        assert counted == [TRIALS, TRIALS] and len(found) == TRIALS and same == shared


if __name__ == "__main__":
    main()
