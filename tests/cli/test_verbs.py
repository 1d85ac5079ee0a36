"""What a person reads: every verb's answer and help, within 80 columns."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

from cli.small import Command
from farthing.cli import main
from farthing.rundir import RunDir

VERBS = [
    "plan", "train", "resume", "eval", "sample", "runs", "doctor", "recipe list", "recipe show", "recipe diff",
    "recipe schema", "data get", "tokenizer train", "tokenizer inspect", "tokenizer compare",
]  # fmt: skip


def narrow(text: str, width: int = 80) -> bool:
    return all(len(line) <= width and line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_plain_and_ends_with_an_example(farthing: Command, verb: str) -> None:
    told = farthing(*verb.split(), "--help")
    assert (told.code, told.err) == (0, "")
    assert told.out.startswith(f"Usage: farthing {verb} ")
    assert narrow(told.out)
    for word in ("<str>", "<int", "<float>", "list[str]", "{RUN}", "..."):
        assert word not in told.out.replace("[PATH=VALUE]...", "").replace("TOKENIZER...", "").replace("=VALUE]...", "")
    example = told.out.rstrip().splitlines()[-1].strip()
    assert shlex.split(example)[1 : 1 + len(verb.split())] == verb.split()


def test_the_list_of_verbs_is_whole(farthing: Command) -> None:
    told = farthing("--help").out
    assert narrow(told)
    assert "..." not in told.partition("Commands:")[2]
    assert all(verb.split()[0] in told for verb in VERBS)
    assert farthing().out == told


def test_plan(farthing: Command, desk: Path) -> None:
    told = farthing("plan", "small.toml", "budget.price_per_hour=7")
    assert told.code == 0
    assert narrow(told.out)
    for word in ("7,232 parameters", "KiB", "1 thread (asked for)", "6 (budget.steps ends it)", "money", " ms, "):
        assert word in told.out, told.out
    assert " 0 MiB" not in told.out


def test_plan_without_the_text(farthing: Command, desk: Path) -> None:
    told = farthing("plan", "small.toml", "data.path=gone.txt", "budget.steps=none", "budget.epochs=2")
    assert told.code == 2
    assert "known only when the text can be read" in told.out


def test_train_ends_with_the_score_the_cost_a_sample_and_what_to_try(farthing: Command, desk: Path) -> None:
    told = farthing("train", "small.toml", "sample.prompt='Show HN'")
    assert told.code == 0
    for word in ("runs/small-1 · finished", "bits per byte", "xz", "this model", "it writes", "Show HN"):
        assert word in told.out
    assert "farthing sample runs/small-1 'Show HN'" in told.out
    assert told.err.splitlines()[0].startswith("small-1 · 7.23 k parameters · 6 steps · 384 tokens")
    quiet = farthing("train", "small.toml", "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    assert RunDir(desk / "runs" / "small-2").status() == "finished"


def test_a_deadline_that_is_near_stops_at_once_with_a_checkpoint(farthing: Command, desk: Path) -> None:
    told = farthing("train", "small.toml", "--deadline", "9s")
    assert told.code == 75
    assert "deadline" in told.err.splitlines()[-1]
    assert "farthing resume runs/small-1" in told.err.splitlines()[-1]


def test_ctrl_c_before_there_is_anything_to_save(farthing: Command, desk: Path) -> None:
    # Measuring these steps takes seconds; the interrupt comes in the midst of them.
    large = ("model.d_model=256", "model.n_layer=4", "train.batch_size=64")
    farthing("plan", "small.toml")
    timer = threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    told = farthing("train", "small.toml", *large)
    timer.join()
    assert (told.code, told.out) == (130, "")
    assert told.err == "stopped: Ctrl-C\n"
    assert not (desk / "runs").exists()


def test_eval(farthing: Command, trained: Path) -> None:
    told = farthing("eval", "done")
    assert (told.code, told.err) == (0, "")
    assert narrow(told.out)
    for word in ("done on validation", "bits per byte", "xz", "unigram", "legacy titles", "windows of 16", "step 6"):
        assert word in told.out


def test_sample_is_the_prompt_and_what_follows(farthing: Command, trained: Path) -> None:
    finished = json.loads((trained / "runs" / "done" / "result.json").read_text("utf-8"))
    written = finished["samples"][0]["text"]
    assert json.loads(farthing("sample", "done", "--json").out)["text"] == written, "the run's own sample again"
    greedy = ("sample", "done", "Show HN: the penny", "--temperature", "0", "--tokens", "4")
    told = farthing(*greedy)
    assert told.out.startswith("Show HN: the penny")
    assert told.out.endswith("\n")
    assert farthing(*greedy, "--seed", "3").out == told.out
    assert farthing(*greedy[:3], "--top-k", "1", "--tokens", "4").out == told.out
    assert farthing(*greedy[:3], "--top-p", "1e-9", "--tokens", "4").out == told.out


@pytest.mark.parametrize(
    "prompt", ["", "é 😀 新", "a prompt that is longer than the context " * 20, "<eos>", "two\nlines"]
)
def test_any_prompt_will_do(farthing: Command, trained: Path, prompt: str) -> None:
    found = json.loads(farthing("sample", "done", prompt, "--tokens", "20", "--json").out)
    assert found["prompt"] == prompt
    assert 0 <= found["tokens"] <= 20
    assert farthing("sample", "done", prompt, "--tokens", "20").out.startswith(prompt)


def test_what_a_model_writes_cannot_act_on_the_terminal(farthing: Command, trained: Path) -> None:
    told = farthing("sample", "done", "\x1b]0;owned\x07", "--temperature", "5", "--tokens", "300").out
    assert not set(told) & {"\x1b", "\x07", "\x08", "\x9b"}


def test_a_terminal_that_knows_no_unicode(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["sample", "done", "é 😀", "--tokens", "3"], ["runs"], ["eval", "done"], ["resume", "done"]):
        raw = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
            with pytest.raises(SystemExit) as ended:
                main(words)
            assert ended.value.code == 0
            assert raw.getvalue().isascii()


def test_runs(farthing: Command, trained: Path) -> None:
    assert farthing("runs", "--runs", "empty").out == "no runs in empty yet; start one with: farthing train\n"
    assert json.loads(farthing("runs", "--runs", "empty", "--json").out) == []
    for name in ("stopped", "half", "no plan", "torn"):
        shutil.copytree("runs/done", f"runs/{name}")
        Path(f"runs/{name}/result.json").unlink()
    with Path("runs/half/events.jsonl").open("r+b") as stream:
        stream.truncate(stream.seek(0, 2) - 5)
    Path("runs/no plan/plan.json").unlink()
    Path("runs/torn/plan.json").write_text('{"steps": 6}', "utf-8")
    Path("runs/not-a-run").mkdir()
    with RunDir(Path("runs/half")).locked():
        told = farthing("runs").out
        rows = {row["run"]: row for row in json.loads(farthing("runs", "--json").out)}
    assert narrow(told)
    assert {name: row["status"] for name, row in rows.items()} == {
        "done": "finished", "stopped": "stopped", "half": "running", "no plan": "damaged", "torn": "damaged",
    }  # fmt: skip
    assert rows["half"]["bits_per_byte"] == rows["done"]["bits_per_byte"]
    assert rows["half"]["steps"] == 6
    assert "no plan is damaged: plan.json: No such file or directory" in told
    assert "torn is damaged: 'parameters' is missing" in told
    assert "money" not in told, "nobody asked what it costs"
    assert farthing("runs", "--quiet").out.splitlines() == list(rows)


def test_a_finished_run_that_took_fewer_steps_than_planned_is_not_shown_as_cut_short(
    farthing: Command, trained: Path
) -> None:
    plan = Path("runs/done/plan.json")
    planned = json.loads(plan.read_text("utf-8"))
    plan.write_text(json.dumps({**planned, "steps": planned["steps"] + 15}), "utf-8")
    (row,) = (line for line in farthing("runs").out.splitlines() if line.startswith("done "))
    assert "/" not in row
    assert f" {planned['steps']} " in row


def test_runs_shows_money_where_there_was_a_price(farthing: Command, trained: Path) -> None:
    result = Path("runs/done/result.json")
    found = json.loads(result.read_text("utf-8"))
    found["spent"]["money"] = 1.5
    result.write_text(json.dumps(found), "utf-8")
    assert "money" in farthing("runs").out
    assert "1.50" in farthing("runs").out


def test_recipe(farthing: Command, desk: Path) -> None:
    assert {"default", "titles-best", "studies/a0"} <= set(farthing("recipe", "list").out.split())
    Path("shown.toml").write_text(farthing("recipe", "show", "small.toml", "seed=5").out, "utf-8")
    told = farthing("recipe", "diff", "small.toml", "shown.toml").out
    assert told == "seed: 1337 -> 5\n"
    assert farthing("recipe", "diff", "shown.toml", "shown.toml").out == "no difference\n"
    assert 'data.path: "titles.txt" -> (not set)' in farthing("recipe", "diff", "small.toml", "default").out
    assert json.loads(farthing("recipe", "schema").out)["title"] == "Farthing recipe"


def test_tokenizer(farthing: Command, desk: Path) -> None:
    words = ("small.toml", "tokenizer.kind=bpe", "tokenizer.vocab_size=300")
    told = farthing("tokenizer", "train", *words, "--to", "mine.json")
    assert told.code == 0, told.err
    assert narrow(told.out.splitlines()[0])
    use = shlex.split(told.out.rpartition("by adding: ")[2])
    assert farthing("train", "small.toml", *use, "--quiet", "--name", "mine").code == 0
    report = json.loads(farthing("tokenizer", "inspect", *words, "--json").out)
    assert report["vocab_size"] == 300
    inspected = farthing("tokenizer", "inspect", *words).out
    assert narrow(inspected)
    assert "bytes per token" in inspected
    compared = farthing("tokenizer", "compare", "small.toml", "byte", "bpe:300", "unigram:300", "file:mine.json")
    assert narrow(compared.out)
    lines = compared.out.splitlines()
    assert [line.split()[0] for line in lines] == ["tokenizer", "byte", "bpe:300", "unigram:300", "file:mine.json"]
    assert lines[2].split()[1:] == lines[4].split()[1:], "the same tokenizer from its file"
    quiet = farthing("tokenizer", "train", *words, "--to", "other.json", "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    assert Path("other.json").read_bytes() == Path("mine.json").read_bytes()


def test_a_known_corpus_needs_the_network(farthing: Command, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing listens there.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    told = farthing("data", "get", "tinyshakespeare")
    assert told.code == 2
    assert told.err.startswith("error: cannot fetch tinyshakespeare")
    assert told.err.count("\n") == 1


def test_doctor(farthing: Command, desk: Path) -> None:
    told = farthing("doctor", "--fast")
    assert told.code == 0
    assert narrow(told.out)
    for word in ("torch", "cores", "GFLOP/s", "what auto chooses here", "precision", "disk for runs"):
        assert word in told.out
    assert " ? " not in told.out
