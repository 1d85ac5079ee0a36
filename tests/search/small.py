"""A text, a recipe of a few steps and a search around it, and the command in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from farthing.recipe import Recipe
from farthing.search.asked import Search
from farthing.search.check import Asked, read
from farthing.search.record import Folder, Record, trial_id
from farthing.search.space import Space

TITLES = "".join(f"Show HN: the {word} that counts {n}\n" for n in range(60) for word in ("farthing", "penny"))
RECIPE = """\
[data]
kind = "text"
path = "titles.txt"
documents = "line"
[tokenizer]
kind = "byte"
[model]
n_layer = 1
n_head = 2
d_model = 16
context_length = 16
[optimizer]
kind = "adamw"
[budget]
steps = 10
[train]
batch_size = 4
micro_batch = 4
threads = 1
precision = "fp32"
attention = "sdpa"
compile = "off"
log_every = 1
[evaluate]
every = 2
references = false
[sample]
tokens = 1
"""
SEARCH = """\
recipe = "small.toml"
[space]
"optimizer.lr" = { kind = "float", low = 1e-4, high = 1e-1, log = true }
"model.d_model" = { kind = "choice", choices = [16, 24, 32] }
"model.n_head" = { kind = "choice", choices = [2, 3, 4], divides = "model.d_model" }
[tied]
"optimizer.weight_decay" = { of = "optimizer.lr", times = 0.1 }
[sampler]
kind = "random"
[budget]
trials = 2
[confirm]
top = 0
"""


def furnish(folder: Path, search: str = SEARCH) -> Path:
    """A desk with text, recipe and search.toml; returns the search's file."""
    (folder / "titles.txt").write_text(TITLES, "utf-8")
    (folder / "small.toml").write_text(RECIPE, "utf-8")
    (folder / "s.toml").write_text(search, "utf-8")
    return folder / "s.toml"


def asked(folder: Path, search: str = SEARCH, overrides: Sequence[str] = ()) -> Asked:
    """The search as it is read."""
    return read(str(furnish(folder, search)), Recipe, overrides)


def space_of(folder: Path, space: str, *, more: str = "") -> Space:
    """A space around the small recipe."""
    text = f'recipe = "small.toml"\n{more}\n[space]\n{space}\n[budget]\ntrials = 1\n'
    return asked(folder, text).space


def record(number: int, score: float | None, **more: Any) -> Record:
    """A trial as a file would tell it."""
    state = more.pop("state", "complete" if score is not None else "failed")
    parts: dict[str, Any] = {"parameters": {}, "recipe": {}, "seeds": [1337], "state": state, "score": score}
    return Record(**{"id": trial_id(number), "number": number, **parts, **more})


def search_of(**parts: Any) -> Search:
    """A search's sections, without a file."""
    table = {"space": {"optimizer.lr": {}}, "budget": {"trials": 5}, **parts}
    return Search.model_validate(table)


STARTED: list[subprocess.Popen[str]] = []


def start(*words: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """`farthing search`, left running in a process group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "farthing", "search", *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def done(process: subprocess.Popen[str], *, code: int = 0) -> dict[str, Any]:
    """Wait for `farthing search --json` and return its answer."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, (process.returncode, err)
    answer: dict[str, Any] = json.loads(out.splitlines()[-1]) if out.strip() else {}
    return answer


def wait_until(holds: Callable[[], bool], *processes: subprocess.Popen[str], seconds: float = 120) -> None:
    """Wait for something to be so while the processes live."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "waited in vain"
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def records(folder: Path) -> list[Record]:
    """What the files of a search tell."""
    return Folder(folder).records()


def steps(folder: Path) -> int:
    """Steps that runs have logged."""
    logs = folder.glob("*/events.jsonl")
    return sum(log.read_text("utf-8").count('"kind": "step"') for log in logs)


def stop_leftovers(folder: Path) -> None:
    """End what searches have left, so that no test that fails leaves a process behind."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)
    if not folder.exists():
        return
    for one in Folder(folder).records():
        if one.process is not None and not one.ended:
            try:
                os.killpg(one.process, signal.SIGKILL)
            except ProcessLookupError:
                continue
