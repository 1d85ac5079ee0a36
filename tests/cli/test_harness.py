"""eval --harness: lm-evaluation-harness's own tasks from the command line, offline, quiet, and one line for each slip."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.small import Command
from evals.harness_questions import write_questions

GUARDED = """
import os, socket, sys
def refuse(*_):
    raise AssertionError("a connection was tried")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
from farthing.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def desk(trained: Path) -> Path:
    write_questions(trained / "questions", each=6)
    return trained


def test_tasks_as_json_and_every_answer_in_a_file(farthing: Command, desk: Path) -> None:
    words = ("--harness", "hellaswag, lambada_openai", "--data", "questions", "--limit", "5", "--answers", "out.jsonl")
    answer = farthing("eval", "done", *words, "--json")
    assert answer.code == 0, answer.err
    assert answer.out.count("\n") == 1
    found = json.loads(answer.out)
    assert (found["model"], found["step"], found["precision"]) == ("done", 6, "fp32")
    assert found["harness"].startswith("0.4.")
    hellaswag, lambada = found["tasks"]
    assert (hellaswag["task"], hellaswag["questions"], hellaswag["shots"]) == ("hellaswag", 5, 0)
    assert {"acc", "acc_norm", "acc_bytes", "acc_stderr"} <= hellaswag.keys()
    assert {"acc", "perplexity", "perplexity_stderr"} <= lambada.keys()
    lines = [json.loads(line) for line in (desk / "out.jsonl").read_text("utf-8").splitlines()]
    assert [(line["task"], line["question"]) for line in lines[:6]] == [
        *(("hellaswag", number) for number in range(5)),
        ("lambada_openai", 0),
    ]
    assert all(len(line["answers"]) == 4 and line["acc"] in (0, 1) for line in lines[:5])


def test_tasks_as_a_table(farthing: Command, desk: Path) -> None:
    answer = farthing("eval", "done", "--harness", "winogrande", "--data", "questions", "--shots", "2", "--quiet")
    assert answer.code == 0, answer.err
    assert answer.err == ""
    title, header, row = answer.out.splitlines()
    assert title.startswith("done, step 6, by lm-evaluation-harness 0.4.")
    assert header.split() == ["task", "version", "shots", "questions", "metric", "value", "±"]
    assert row.split()[:5] == ["winogrande", "1.0", "2", "6", "acc"]


def test_the_folder_of_tasks_is_printed_alone(farthing: Command) -> None:
    answer = farthing("eval", "--harness-tasks")
    assert answer.code == 0
    folder = Path(answer.out.rstrip("\n"))
    assert {"hellaswag.yaml", "local.py"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--harness", "piqa", "--data", "nowhere"), "nowhere: has no questions of piqa"),
        (("--harness", " , ", "--data", "questions"), "--harness: name at least one task"),
        (("--harness", "piqa", "--task", "piqa"), "--task: does not go with --harness"),
        (("--harness", "piqa", "--data", "questions", "--limit", "0"), "--limit 0: should be at least 1"),
        (("--harness", "piqa", "--data", "questions", "--shots", "6"), "--shots 6: piqa has 6 questions"),
        (("--harness", "piqa", "--data", "questions", "evaluate.stride=4"), "evaluate.stride=4: tasks take only"),
        (("--harness", "piqa", "--data", "questions", "--answers", "small.toml"), "is there already"),
        (("--harness", "piqa", "--data", "hub"), "piqa: its questions could not be fetched"),
    ],
)
def test_a_slip_is_one_line(farthing: Command, desk: Path, words: tuple[str, ...], told: str) -> None:
    answer = farthing("eval", "done", *words)
    assert answer.code == 2
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1 and told in answer.err
    assert answer.out == ""


def test_without_the_harness_its_extra_is_named(farthing: Command, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    answer = farthing("eval", "done", "--harness", "piqa", "--data", "questions")
    assert answer.code == 2 and "pip install 'farthing[eval]'" in answer.err


def test_nothing_is_fetched_and_nothing_is_written(desk: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    before = sorted(desk.rglob("*"))
    words = ["eval", "done", "--harness", "arc_easy,lambada_openai", "--data", "questions", "--json", "--quiet"]
    env = {"HOME": str(home), "PATH": "", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, *words], cwd=desk, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert [task["questions"] for task in json.loads(done.stdout)["tasks"]] == [6, 6]
    assert done.stderr == ""
    assert sorted(desk.rglob("*")) == before
    assert [path for path in home.rglob("*") if path.is_file()] == []
