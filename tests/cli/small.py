"""A text and a recipe small enough to train in a second, and the command called in this process or in one of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from farthing.cli import main
from farthing.rundir import RunDir

TITLES = "".join(f"Show HN: the {word} that counts {n}\n" for n in range(60) for word in ("farthing", "penny"))
RECIPE = """\
[data]
kind = "text"
path = "titles.txt"
documents = "line"
test = 0.1
[tokenizer]
kind = "byte"
[model]
n_layer = 1
n_head = 2
d_model = 16
context_length = 16
[budget]
steps = 6
[train]
batch_size = 4
threads = 1
log_every = 1
[checkpoint]
every = 3
[sample]
tokens = 8
"""
FOREVER = ["budget.steps=1000000", "evaluate.every=end", "checkpoint.every=end"]


@dataclass(frozen=True)
class Answer:
    """What the command said."""

    code: int
    out: str
    err: str


class Command:
    """`farthing` in this process, with what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> Answer:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        printed = self._capsys.readouterr()
        return Answer(int(ended.value.code or 0), printed.out, printed.err)


def in_process_of_its_own(*words: str, cwd: Path, **settings: Any) -> Answer:
    """The command as a shell would start it."""
    done = subprocess.run(
        [sys.executable, "-m", "farthing", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        **settings,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """The command, left running."""
    return subprocess.Popen(
        [sys.executable, "-m", "farthing", *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def wait_for_step(process: subprocess.Popen[str], run: RunDir, *, more_than: int = 0) -> int:
    """Wait until the run has logged a step in this sitting; returns how many events of steps there are."""
    for _ in range(6000):
        steps = run.events.read_text("utf-8").count('"kind": "step"') if run.events.exists() else 0
        if steps > more_than:
            return steps
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("no step was taken in a minute")


def end(process: subprocess.Popen[str], *signals: signal.Signals, pause: float = 0.0) -> Answer:
    """Send signals, wait, and return what was said."""
    for number in signals:
        process.send_signal(number)
        time.sleep(pause)
    out, err = process.communicate(timeout=60)
    return Answer(process.returncode, out, err)
