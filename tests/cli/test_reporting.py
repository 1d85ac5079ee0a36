"""report, at the command: where it goes, what it refuses, and that it stays light."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cli.small import Command
from farthing.cli.reporting import _title


def test_a_run_is_reported_in_its_own_folder(farthing: Command, trained: Path) -> None:
    answer = farthing("report", "done", "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    page = trained / "runs" / "done" / "report.html"
    assert told["report"] == str(page.relative_to(trained)) and told["of"] == "run" and told["runs"] == 1
    content = page.read_text("utf-8")
    for words in ("Network", "Tokenizer", "Samples", "Receipts", "feed-forward"):
        assert words in content
    assert told["diagnosis"] and all(
        set(one) >= {"ailment", "words", "evidence", "commands"} for one in told["diagnosis"]
    )


def test_the_next_experiment_can_be_typed_as_it_stands(farthing: Command, trained: Path) -> None:
    told = json.loads(farthing("report", "done", "--json").out)
    for command in [command for one in told["diagnosis"] for command in one["commands"]]:
        words = command.split()
        assert words[:2] == ["farthing", "train"]
        planned = farthing("plan", *words[2:], "--json")
        assert planned.code == 0, planned.err


def test_a_folder_of_runs_as_markdown(farthing: Command, trained: Path) -> None:
    shutil.copytree(trained / "runs" / "done", trained / "runs" / "again")
    answer = farthing("report", "runs", "--markdown", "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert told["report"] == "runs/report.md"
    assert any("repeats seed" in note for note in told["notes"])
    assert {Path(file).suffix for file in told["files"]} >= {".md", ".svg", ".png"}
    assert all((trained / file).is_file() for file in told["files"])


def test_a_text_that_is_gone_costs_only_the_tokenizer(farthing: Command, trained: Path) -> None:
    (trained / "titles.txt").unlink()
    assert farthing("report", "done", "--quiet").code == 0
    assert "cannot be told here" in (trained / "runs" / "done" / "report.html").read_text("utf-8")


def _another(trained: Path, name: str, **validation: object) -> Path:
    """A second run like `done`, of another recipe, with another reading."""
    run = trained / "runs" / name
    shutil.copytree(trained / "runs" / "done", run)
    recipe = run / "recipe.toml"
    recipe.write_text(re.sub(r"(?m)^dropout = .*$", "dropout = 0.25", recipe.read_text("utf-8")), "utf-8")
    result = json.loads((run / "result.json").read_text("utf-8"))
    result["validation"] |= validation
    (run / "result.json").write_text(json.dumps(result), "utf-8")
    return run


def test_why_runs_are_not_compared_is_said_in_a_line(farthing: Command, trained: Path) -> None:
    _another(trained, "older", version=0)
    told = farthing("report", "done", "older", "--json")
    assert told.code == 0, told.err
    (note,) = [note for note in json.loads(told.out)["notes"] if note.startswith("not compared: ")]
    assert "yardstick version" in note
    shown = farthing("report", "done", "older").out
    assert "not compared: " in shown and "yardstick version" in " ".join(shown.split())
    assert not farthing("report", "done", "older", "--quiet").out
    assert "not compared" not in farthing("report", "done").out


def test_a_damaged_line_of_the_log_costs_no_run_in_compare_or_report(farthing: Command, trained: Path) -> None:
    events = _another(trained, "spoilt") / "events.jsonl"
    lines = events.read_bytes().splitlines(keepends=True)
    events.write_bytes(b"".join([*lines[:3], b"\x00 garbage \xff\n", *lines[3:]]))
    compared = json.loads(farthing("compare", "done", "spoilt", "--curves", "curves.csv", "--json").out)
    reported = json.loads(farthing("report", "done", "spoilt", "--json").out)
    assert [one["arm"] for one in compared["arms"]] == reported["arms"] == ["done", "spoilt"]
    assert compared["left_out"] == reported["left_out"] == []
    assert "spoilt: damaged lines of its events are left out" in reported["notes"]
    assert "spoilt" in (trained / "curves.csv").read_text("utf-8")


def test_the_held_out_score_is_shown_with_its_checkpoint(farthing: Command, trained: Path) -> None:
    report = trained / "runs" / "done" / "report.html"
    assert farthing("report", "done", "--quiet").code == 0
    assert "Held-out text" not in report.read_text("utf-8")
    assert farthing("eval", "done", "--split", "test", "--quiet").code == 0
    kept = (trained / "runs" / "done" / "held_out.json").read_bytes()
    assert farthing("report", "done", "--quiet").code == 0
    content = report.read_text("utf-8")
    assert "Held-out text" in content and '<td class=" number">step 6</td>' in content
    bits = json.loads(kept)["test"]["bits_per_byte"]
    assert content.count(f"{bits:.4f}") == 2  # among the held-out scores, and among the checkpoints
    assert (trained / "runs" / "done" / "held_out.json").read_bytes() == kept


def test_mistakes_are_one_line_and_leave_nothing(farthing: Command, trained: Path) -> None:
    (trained / "mine.html").write_text("mine", "utf-8")
    wrong = [
        (["report", "nobody"], "nobody"),
        (["report", "done", "--out", "mine.html"], "is no report"),
        (["report", "done", "--out", "nowhere/r.html"], "no such folder"),
        (["report", "done", "--by", "taste"], "--by taste"),
        (["report", "done", "--level", "2"], "--level 2"),
        (["report", "done", "--baseline", "nobody"], "--baseline nobody"),
    ]
    before = sorted(trained.rglob("*"))
    for words, told in wrong:
        answer = farthing(*words)
        assert answer.code == 2, words
        assert told in answer.err and len(answer.err.strip().splitlines()) <= 3, answer.err
        assert not answer.out
    assert sorted(trained.rglob("*")) == before
    assert (trained / "mine.html").read_text("utf-8") == "mine"


def test_a_search_without_findings_says_so(farthing: Command, trained: Path) -> None:
    folder = trained / "runs" / "looking"
    folder.mkdir()
    (folder / "search.toml").write_text('recipe = "default"\n', "utf-8")
    answer = farthing("report", "looking")
    assert answer.code == 2 and "nothing yet" in answer.err
    (folder / "findings.json").write_text("{", "utf-8")
    assert "damaged" in farthing("report", "looking").err
    (folder / "findings.json").write_text('{"version": 9}', "utf-8")
    assert "version 9" in farthing("report", "looking").err


def test_no_torch_is_imported_for_a_report(trained: Path) -> None:
    program = (
        "import sys\nfrom farthing.cli import main\n"
        "try:\n    main(['report', 'done', '-q'])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules and 'optuna' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=trained, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_title_names_each_arm_once() -> None:
    assert _title(["runs/base-seed1", "base-seed2", "base-seed10", "wide-seed1"]) == "base, wide"
    assert _title(["a", "b", "c", "runs/d/", "e*", "f", "g"]) == "a, b, c, d, e* and 2 more"
