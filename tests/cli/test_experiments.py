"""compare, noise, train --seeds, plan --predict and the held-out score, with runs that were really trained."""

from __future__ import annotations

import csv
import json
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cli.small import Answer, Command, end, start, wait_for_step
from cli.test_bad_input import refused
from farthing import api
from farthing.api import arms as arms_of
from farthing.api import verbs
from farthing.errors import Preempted
from farthing.rundir import RunDir
from farthing.training.interruption import Interruption

ARM = ("train", "small.toml", "--seeds", "1,2,3", "--json", "--quiet")


def table(answer: Answer) -> Any:
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


@pytest.fixture(scope="session")
def _trained_arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base arm and one that learns too fast, three seeds each."""
    from cli.conftest import _furnish

    folder = _furnish(tmp_path_factory.mktemp("arms"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        api.train_seeds("small.toml", seeds=[1, 2, 3], name="base", quiet=True)
        api.train_seeds("small.toml", {"optimizer.lr": 0.2}, seeds=[1, 2, 3], name="fast", quiet=True)
    return folder


@pytest.fixture
def arms(_trained_arms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "desk"
    shutil.copytree(_trained_arms, folder)
    for receipt in folder.glob("runs/*/receipt.json"):
        told = json.loads(receipt.read_text("utf-8"))
        receipt.write_text(json.dumps({**told, "directory": str(folder)}), "utf-8")
    monkeypatch.chdir(folder)
    return folder


def test_arms_of_real_runs(farthing: Command, arms: Path) -> None:
    found = table(farthing("compare", "base*", "fast*", "--json", "--curves", "curves.csv"))
    assert [(arm["arm"], arm["n"], arm["failed"]) for arm in found["arms"]] == [("base", 3, 0), ("fast", 3, 0)]
    assert found["arms"][1]["changes"] == {"optimizer.lr": [0.02, 0.2]}
    (verdict,) = found["verdicts"]
    assert verdict["method"] == "paired t"
    scores = [[run["score"] for run in arm["runs"]] for arm in found["arms"]]
    differences = [fast - base for base, fast in zip(*scores, strict=True)]
    assert verdict["difference"] == pytest.approx(sum(differences) / 3)
    for arm in found["arms"]:
        for run in arm["runs"]:
            result = json.loads((Path(run["run"]) / "result.json").read_text("utf-8"))
            assert run["score"] == result["validation"]["bits_per_byte"]
        assert arm["spent"]["steps"] == 6
        assert arm["paid"]["tokens"] == 3 * arm["spent"]["tokens"]
    with (arms / "curves.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["arm"] for row in rows} == {"base", "fast"}
    assert len([row for row in rows if row["run"] == "base-seed1" and row["what"] == "loss"]) == 6


def test_a_person_reads_it(farthing: Command, arms: Path) -> None:
    told = farthing("compare", "base*", "fast*")
    assert told.code == 0, told.err
    assert max(map(len, told.out.splitlines())) <= 80
    for words in ("bits/byte", "fast differs from base: optimizer.lr 0.02 -> 0.2", "against base", "paired t, 3 pairs"):
        assert words in " ".join(told.out.split()), words
    quiet = farthing("compare", "base*", "fast*", "--quiet").out
    assert " ".join(quiet.split()).startswith(("fast: better", "fast: worse", "fast: cannot tell"))
    assert "bits/byte" not in quiet


def test_what_is_unfinished_is_named_and_left_out(farthing: Command, arms: Path) -> None:
    (arms / "runs" / "fast-seed2" / "result.json").unlink()
    found = table(farthing("compare", "runs", "--json"))
    assert [arm["n"] for arm in found["arms"]] == [3, 2]
    assert found["left_out"][0]["run"] == "fast-seed2"
    assert "left out: fast-seed2: unfinished" in farthing("compare", "runs").out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["compare"], ["missing argument"]),
        (["compare", "bse-seed1"], ["bse-seed1: no such run in runs", "did you mean base-seed1?"]),
        (["compare", "x*"], ["x*: matches no run"]),
        (["compare", "runs", "--baseline", "slow"], ["--baseline slow: none of the runs"]),
        (["compare", "runs", "--level", "2"], ["--level 2: must be above 0"]),
        (["compare", "runs", "--by", "loss"], ["--by loss: no such reading", "bits_per_byte"]),
        (["compare", "runs", "--curves", "nowhere/c.csv"], ["--curves nowhere/c.csv: no such folder"]),
        (["compare", "runs", "--curves", "runs"], ["--curves runs: is a folder"]),
        (["train", "small.toml", "--seeds", "1,two"], ["--seeds '1,two'", "1,2,3"]),
        (["train", "small.toml", "--seeds", "1,1"], ["--seeds: 1 is given twice"]),
        (["train", "small.toml", "--seeds", "-1"], ["--seeds '-1'"]),
        (["train", "small.toml", "seed=3", "--seeds", "1"], ["seed=... and --seeds"]),
        (["train", "small.toml", "--seeds", "1", "--name", "../x"], ["--name '../x-seed1'"]),
        (
            ["train", "small.toml", "optimizer.lr=0.5", "--seeds", "1,4", "--name", "base"],
            ["base-seed1: is a run of another recipe (optimizer.lr was 0.02, is 0.5)", "--name"],
        ),
        (["noise", "small.toml", "--seeds", "1"], ["--seeds 1", "two or more"]),
        (["noise", "small.toml", "model.nlayer=2"], ["did you mean model.n_layer?"]),
        (
            ["plan", "small.toml", "--predict", "runs"],
            ["too few runs", "takes 3 or more that differ in size or tokens; with a score: 1"],
        ),
        (["plan", "small.toml", "--predict", "nothing"], ["nothing: no such run"]),
    ],
)
def test_mistakes_are_told_in_a_line(farthing: Command, arms: Path, words: list[str], told: list[str]) -> None:
    before = sorted(path.name for path in (arms / "runs").iterdir())
    refused(farthing(*words), *told)
    assert sorted(path.name for path in (arms / "runs").iterdir()) == before


def test_an_arm_is_one_command_that_may_be_given_again(farthing: Command, desk: Path) -> None:
    first = table(farthing(*ARM))
    assert (first["arm"], first["n"], first["failed"]) == ("small", 3, 0)
    assert first["low"] < first["mean"] < first["high"]
    assert [Path(run["run"]).name for run in first["runs"]] == ["small-seed1", "small-seed2", "small-seed3"]
    before = {path: path.stat().st_mtime_ns for path in desk.glob("runs/*/result.json")}
    assert table(farthing(*ARM)) == first
    assert {path: path.stat().st_mtime_ns for path in desk.glob("runs/*/result.json")} == before
    # A run that was cut off goes on; one that is missing is trained: the same bits either way.
    (desk / "runs" / "small-seed2" / "result.json").unlink()
    shutil.rmtree(desk / "runs" / "small-seed3")
    again = table(farthing(*ARM))
    assert [run["score"] for run in again["runs"]] == [run["score"] for run in first["runs"]]
    told = farthing(*ARM[:4]).out
    assert "small-seed2" in told
    assert "mean of 3 seeds" in told


def test_a_seed_of_an_arm_is_the_same_run_as_by_itself(farthing: Command, desk: Path) -> None:
    alone = table(farthing("train", "small.toml", "seed=2", "--json", "--quiet"))
    arm = table(farthing(*ARM))
    assert arm["runs"][1]["score"] == alone["validation"]["bits_per_byte"]


def test_a_failed_run_is_counted_and_the_rest_is_trained(farthing: Command, desk: Path) -> None:
    """Seed 2 has diverged before; it is not tried again, and not hidden."""
    farthing(*ARM)
    run = RunDir(desk / "runs" / "small-seed2")
    run.result.unlink()
    lines = run.events.read_text("utf-8").splitlines()[:4]
    stopped = {"kind": "stopped", "time": 1.0, "step": 3, "reason": "diverged", "message": "the loss ran away"}
    run.events.write_text("\n".join([*lines, json.dumps(stopped)]) + "\n", "utf-8")
    found = table(farthing(*ARM))
    assert (found["n"], found["failed"]) == (2, 1)
    assert found["runs"][1] == {"run": str(Path("runs/small-seed2")), "seed": 2, "status": "failed", "score": None}
    assert "small-seed2 failed: diverged at step 3" in found["notes"]


def test_an_arm_that_diverges_is_trained_to_the_last_seed(farthing: Command, desk: Path) -> None:
    words = ("optimizer.kind=sgd", "optimizer.lr=1e20", "train.gradient_clip=none", "budget.steps=40")
    answer = farthing("train", "small.toml", *words, "--seeds", "1,2", "--json", "--quiet")
    assert answer.code == 5, answer
    assert answer.err.startswith("error: small: none of 2 runs came to a score: small-seed1 failed: diverged")
    assert (desk / "runs" / "small-seed2").is_dir()


def test_an_interrupted_arm_goes_on_where_it_was(
    farthing: Command, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = table(farthing(*ARM))
    shutil.rmtree(desk / "runs")
    real, seen = Interruption.__enter__, []

    def stop_the_second(self: Interruption) -> Interruption:
        found = real(self)
        seen.append(self)
        if len(seen) == 2:
            self.signal = "SIGTERM"  # type: ignore[assignment]
        return found

    with monkeypatch.context() as patch, pytest.raises(Preempted, match="same command"):
        patch.setattr(Interruption, "__enter__", stop_the_second)
        api.train_seeds("small.toml", seeds=[1, 2, 3], quiet=True)
    assert sorted(path.name for path in (desk / "runs").iterdir()) == ["small-seed1", "small-seed2"]
    again = table(farthing(*ARM))
    assert [run["score"] for run in again["runs"]] == [run["score"] for run in whole["runs"]]


def test_a_deadline_is_of_the_whole_arm(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    real = verbs.train

    def train(*words: Any, deadline: str, **others: Any) -> api.Run:
        given.append(deadline)
        return real(*words, deadline=deadline, **others)

    monkeypatch.setattr(verbs, "train", train)
    api.train_seeds("small.toml", seeds=[1, 2], deadline="2h", quiet=True)
    first, second = given
    assert first == second
    assert 7100 < datetime.fromisoformat(first).timestamp() - time.time() <= 7200
    with pytest.raises(Preempted, match=r"small-seed3 was finished"):
        arms_of._finish(
            RunDir(desk / "runs" / "small-seed3"),
            api.open_run("small-seed1").recipe,
            device="cpu",
            until=1.0,
            quiet=True,
        )


def test_a_killed_arm_loses_no_run(farthing: Command, desk: Path) -> None:
    words = ("train", "small.toml", "--seeds", "1,2", "budget.steps=120", "checkpoint.every=20", "--quiet", "--json")
    process = start(*words, cwd=desk)
    wait_for_step(process, RunDir(desk / "runs" / "small-seed2"), more_than=30)
    process.kill()
    end(process)
    first = (desk / "runs" / "small-seed1" / "result.json").read_bytes()
    found = table(farthing(*words))
    assert found["n"] == 2
    assert (desk / "runs" / "small-seed1" / "result.json").read_bytes() == first


def test_noise_is_measured_once_and_used_by_compare(farthing: Command, arms: Path) -> None:
    alone = ("compare", "base-seed1", "fast-seed2", "--json")
    (verdict,) = table(farthing(*alone))["verdicts"]
    assert (verdict["verdict"], verdict["method"]) == ("cannot tell", "none")
    found = table(farthing("noise", "small.toml", "--seeds", "3", "--name", "base", "--json", "--quiet"))
    assert (found["n"], found["arm"]) == (3, "base")
    assert found["sd_low"] < found["sd"] < found["sd_high"]
    (verdict,) = table(farthing(*alone))["verdicts"]
    assert verdict["method"] == "noise floor"
    told = farthing("noise", "small.toml", "--seeds", "3", "--name", "base")
    assert "standard deviation over 3 seeds" in " ".join(told.out.split())
    assert len(json.loads(farthing("runs", "--json").out)) == 6, "the noise floor is no run"


def test_the_held_out_score_is_kept_once_and_shown(farthing: Command, arms: Path) -> None:
    assert table(farthing("compare", "runs", "--json"))["arms"][0]["held_out"] is None
    told = farthing("eval", "base-seed1", "--split", "test")
    assert told.out.endswith("kept beside the run: compare and report show it next to the validation score\n")
    kept = (arms / "runs" / "base-seed1" / "held_out.json").read_text("utf-8")
    again = farthing("eval", "base-seed1", "--split", "test", "--json")
    assert table(again) == json.loads(kept)["test"]
    assert (arms / "runs" / "base-seed1" / "held_out.json").read_text("utf-8") == kept
    found = table(farthing("compare", "runs", "--json"))
    base = next(arm for arm in found["arms"] if arm["arm"] == "base")
    assert base["held_out"]["mean"] == json.loads(kept)["test"]["bits_per_byte"]
    assert base["mean"] != base["held_out"]["mean"]
    assert "held out" in farthing("compare", "runs").out
    # From Python, and the same number; a score of anything else is nobody's held-out score.
    assert api.held_out(api.open_run("base-seed1")) == json.loads(kept)["test"]
    farthing("eval", "base-seed2", "--split", "test", "evaluate.stride=4", "--json")
    farthing("eval", "base-seed2", "--split", "validation", "--json")
    assert not (arms / "runs" / "base-seed2" / "held_out.json").exists()
    assert api.held_out(api.open_run("base-seed2"))["split"] == "test"
    assert (arms / "runs" / "base-seed2" / "held_out.json").is_file()


def test_a_plan_is_told_what_to_expect(farthing: Command, desk: Path) -> None:
    for name, steps in (("a", 3), ("b", 6), ("c", 12), ("d", 24), ("e", 48)):
        api.train("small.toml", {"budget.steps": steps}, name=f"long{name}", quiet=True)
    found = table(farthing("plan", "small.toml", "budget.steps=96", "--predict", "runs", "--json"))
    ahead = found["predicted"]
    assert ahead["fit"]["law"] == "tokens"
    bits = ahead["bits_per_byte"]
    assert bits["low"] <= bits["value"] <= bits["high"]
    # Runs as short as these follow no law, but each was better than the one before.
    assert bits["value"] < api.open_run("longd").validation["bits_per_byte"]
    told = farthing("plan", "small.toml", "budget.steps=96", "--predict", "long*")
    assert "expected: " in told.out
    assert "ten times the largest run" in told.out
    answer = farthing("plan", "small.toml", "data.validation=0.3", "--predict", "runs")
    refused(answer, "they say nothing about a score on other text")
