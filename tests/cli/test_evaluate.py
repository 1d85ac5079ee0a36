"""eval --task: a table that a newcomer understands, one line of JSON, every decision in a file, and one line for each slip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.small import Command
from farthing.compare.task_results import read_tasks
from farthing.rundir import RunDir

QUESTIONS = [{"query": f"Show {n}:", "choices": ["HN", "a thing", "x"], "gold": n % 3} for n in range(12)]


@pytest.fixture
def desk(trained: Path) -> Path:
    (trained / "choices.jsonl").write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS), "utf-8")
    piqa = {"query": "Question: open it\n", "choices": ["pull", "push"], "gold": 0}
    (trained / "piqa.jsonl").write_text(json.dumps(piqa) + "\n", "utf-8")
    return trained


def test_a_task_as_json(farthing: Command, desk: Path) -> None:
    answer = farthing("eval", "done", "--task", "choices", "--data", "choices.jsonl", "--json")
    assert answer.code == 0, answer.err
    assert answer.out.count("\n") == 1
    found = json.loads(answer.out)
    assert (found["model"], found["step"]) == ("done", 6)
    (result,) = found["tasks"]
    assert (result["task"], result["items"], result["source"]) == ("choices", 12, str(desk / "choices.jsonl"))
    low = farthing("eval", "done", "evaluate.precision=train", "--task", "choices", "--data", "choices.jsonl", "--json")
    assert json.loads(low.out)["tasks"][0]["precision"] in ("fp32", "bf16")


def test_a_task_asked_in_full_is_kept_for_report_and_card(farthing: Command, desk: Path) -> None:
    run = RunDir(desk / "runs" / "done")
    words = ("eval", "done", "--task", "choices", "--data", "choices.jsonl", "--quiet")
    farthing(*words, "--limit", "6")
    farthing(*words, "evaluate.precision=train")
    assert not run.tasks.exists(), "a part of the questions, or another precision, is no result to publish"
    for _ in range(2):
        assert "kept beside the run" in farthing(*words).out
    (kept,) = read_tasks(run)
    assert (kept["step"], kept["result"]["task"], kept["result"]["items"]) == (6, "choices", 12)
    assert read_tasks(run, step=5) == []
    answer = farthing("report", "done", "--markdown", "--out", "report.md", "--quiet")
    assert answer.code == 0, answer.err
    assert "## Tasks" in (desk / "report.md").read_text("utf-8")
    answer = farthing("export", "done", "out", "--quiet")
    assert answer.code == 0, answer.err
    assert "choices" in (desk / "out" / "README.md").read_text("utf-8")


def test_several_tasks_as_a_table(farthing: Command, desk: Path) -> None:
    answer = farthing("eval", "done", "--task", "choices,piqa", "--data", ".", "--limit", "6", "--quiet")
    assert answer.code == 0, answer.err
    assert answer.err == ""
    for word in ("choices: ", "piqa: ", "accuracy", "33.3 %", "50.0 %", "verdict", "at chance"):
        assert word in answer.out
    assert "6 of 12 questions" in answer.out and "all 1 question, in fp32" in answer.out
    assert max(map(len, answer.out.splitlines())) <= 80


def test_every_decision_is_written(farthing: Command, desk: Path) -> None:
    words = ("eval", "done", "--task", "choices", "--data", "choices.jsonl", "--shots", "1", "--answers", "out.jsonl")
    assert farthing(*words).code == 0
    lines = [json.loads(line) for line in (desk / "out.jsonl").read_text("utf-8").splitlines()]
    assert [line["question"] for line in lines] == list(range(12))
    assert {line["task"] for line in lines} == {"choices"}
    assert all(len(line["nats"]) == 3 and line["gold"] == line["question"] % 3 for line in lines)
    before = (desk / "out.jsonl").read_bytes()
    again = farthing(*words)
    assert again.code == 2 and "--answers out.jsonl: is there already" in again.err
    assert (desk / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--task", "helaswag"), "no such task; did you mean hellaswag"),
        (("--task", "choices,piqa", "--data", "choices.jsonl"), "2 tasks need a folder that holds a file for each"),
        (("--task", "choices", "--data", "nowhere.jsonl"), "--data = 'nowhere.jsonl': no such file"),
        (("--task", "choices"), "choices is for text of your own; give a file"),
        (("--task", "choices", "--data", "choices.jsonl", "--limit", "0"), "--limit 0: at least 1 question"),
        (("--task", "choices", "--data", "choices.jsonl", "--shots", "-1"), "--shots -1: 0 examples or more"),
        (("--task", "choices", "--data", "choices.jsonl", "--shots", "12"), "there are only 11 other questions"),
        (("--task", "choices", "--data", "choices.jsonl", "--split", "test"), "a task has its own questions"),
        (("--task", "choices", "--data", "choices.jsonl", "evaluate.stride=4"), "evaluate.stride=4: tasks take only"),
        (("--task", "choices", "--data", "choices.jsonl", "--answers", "no/x.jsonl"), "there is no folder no"),
        (("--limit", "5"), "--limit: is for tasks; name one with --task"),
        (("--shots", "5"), "--shots: is for tasks; name one with --task"),
    ],
)
def test_a_slip_is_one_line(farthing: Command, desk: Path, words: tuple[str, ...], told: str) -> None:
    answer = farthing("eval", "done", *words)
    assert answer.code == 2
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1 and told in answer.err
    assert answer.out == ""


def test_a_run_that_is_not_there_is_told_first(farthing: Command, desk: Path) -> None:
    answer = farthing("eval", "dome", "--task", "choices", "--data", "choices.jsonl")
    assert answer.code == 2 and "did you mean done" in answer.err
