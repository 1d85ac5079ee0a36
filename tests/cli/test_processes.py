"""What needs a process of its own: signals, exit codes, pipes, and what the first second imports."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.small import FOREVER, end, in_process_of_its_own, start, wait_for_step
from farthing.rundir import RunDir


def test_a_stopped_run_says_how_to_go_on(desk: Path) -> None:
    run = RunDir(desk / "trials" / "long")
    process = start("train", "small.toml", *FOREVER, "--runs", "trials", "--name", "long", cwd=desk)
    steps = wait_for_step(process, run)
    stopped = end(process, signal.SIGINT)
    assert stopped.code == 75, stopped
    assert stopped.out == ""
    last = stopped.err.splitlines()[-1]
    assert last.startswith("stopped: SIGINT received")
    assert "farthing resume trials/long" in last
    assert stopped.err.count("SIGINT") == 1, "once is enough"
    assert run.checkpoint_steps()
    assert run.status() == "stopped"
    process = start("resume", "long", "--runs", "trials", cwd=desk)
    wait_for_step(process, run, more_than=max(steps, run.checkpoint_steps()[-1]))
    again = end(process, signal.SIGTERM)
    assert again.code == 75, again
    assert "resumed at step" in again.err
    assert "SIGTERM" in again.err.splitlines()[-1]


def test_a_reader_that_has_seen_enough(desk: Path) -> None:
    program = 'from farthing.cli import main; main(["recipe", "schema"])'
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=desk
    ) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        assert writer.stdout.readline() == b"{\n"
        writer.stdout.close()
        assert writer.wait(timeout=60) == 0
        assert writer.stderr.read() == b""


def test_an_exit_code_and_one_line(desk: Path) -> None:
    refused = in_process_of_its_own("train", "small.toml", "model.n_head=3", cwd=desk)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert in_process_of_its_own("--version", cwd=desk).code == 0


@pytest.mark.parametrize(
    "words", ["--help", "train --help", "eval --help", "runs", "recipe show default", "train x.toml"]
)
def test_what_needs_no_torch_does_not_wait_for_it(desk: Path, words: str) -> None:
    program = (
        "import atexit, sys\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'pandas', 'pyarrow', 'pytorch_optimizer'}\n"
        "atexit.register(lambda: print('heavy:', sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        "from farthing.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *words.split()], cwd=desk, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "heavy: []"
