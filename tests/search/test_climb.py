"""A climb keeps what is better beyond noise, and survives whatever happens to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from cli.small import Command
from farthing import config, errors
from farthing.compare.sequential import Sequential
from farthing.compare.statistics import Difference
from farthing.recipe import Recipe
from farthing.search.climb import _grounds
from farthing.search.climb_asked import Judge, read
from farthing.search.climb_record import ClimbFolder, Decision, Standing
from farthing.search.file import find_file, shipped

LINES = [f"the {animal} number {n} went to the {place}" for n in range(40) for animal in ("cat", "dog", "owl", "fox")
         for place in ("hill", "sea", "lake")]  # fmt: skip
RECIPE = """
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
context_length = 32
[optimizer]
kind = "adamw"
lr = 1e-4
[budget]
steps = 30
[train]
batch_size = 4
threads = 1
precision = "fp32"
compile = "off"
[evaluate]
every = "end"
references = false
[sample]
tokens = 4
"""
CLIMB = """
recipe = "small.toml"
[judge]
looks = [2]
[limits]
max_parameters = 100_000
[confirm]
seeds = 2
[[step]]
name = "higher rate"
reason = "1e-4 hardly moves"
changes = { optimizer.lr = 1e-2 }
[[step]]
name = "too large"
changes = { model.d_model = 512 }
[[step]]
name = "tiny rate"
changes = { optimizer.lr = 1e-6 }
[[step]]
name = "the same"
changes = { model.n_layer = 1 }
"""


@pytest.fixture
def farthing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("COLUMNS", "200")
    return Command(capsys)


def furnish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text, a recipe and a climb, in the folder that is gone to."""
    (folder / "titles.txt").write_text("\n".join(LINES) + "\n", "utf-8")
    (folder / "small.toml").write_text(RECIPE, "utf-8")
    (folder / "climb.toml").write_text(CLIMB, "utf-8")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return furnish(tmp_path, monkeypatch)


def run_names(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/recipe.toml"))


@pytest.mark.slow
def test_a_climb_keeps_rolls_back_refuses_and_confirms(bench: Path, farthing: Command) -> None:
    told = farthing("climb", "climb.toml", "--json")
    assert told.code == 0, told
    found = json.loads(told.out.splitlines()[-1])
    assert [one["name"] for one in found["kept"]] == ["higher rate"]
    assert [one["name"] for one in found["rolled_back"]] == ["tiny rate"]
    assert {one["name"]: one["reason"] for one in found["refused"]} == {
        "too large": "3.279e+06 parameters, over limits.max_parameters=100000",
        "the same": "changes nothing in the best so far",
    }
    assert found["verdict"]["verdict"] == "better" and found["verdict"]["n"] == 2
    assert found["held_out"]["final"]["mean"] < found["held_out"]["base"]["mean"]
    folder = bench / "runs" / "climb"
    arms = {"base": (1, 2, 20001, 20002), "higher-rate": (1, 2, 20001, 20002), "tiny-rate": (1, 2)}
    names = [f"{arm}-seed{seed}" for arm, seeds in arms.items() for seed in seeds]
    assert run_names(folder) == sorted(names), "nothing was trained twice, and nothing that was refused"
    final = config.load(Recipe, str(folder / "final.toml"))
    assert final.optimizer.lr == 1e-2 and final.model.d_model == 16
    seen_before = (folder / "base-seed1" / "result.json").stat().st_mtime_ns
    again = farthing("climb", "climb.toml", "--json")
    assert json.loads(again.out.splitlines()[-1]) == found
    assert (folder / "base-seed1" / "result.json").stat().st_mtime_ns == seen_before
    shown = farthing("climb", "--status", "runs/climb")
    assert "kept:        higher rate" in shown.out and "fresh seeds" in shown.out
    assert farthing("report", "runs/climb", "--markdown", "--out", "climb.md").code == 0
    (row,) = [line for line in (bench / "climb.md").read_text("utf-8").splitlines() if line.startswith("| 1. higher")]
    assert "`optimizer.lr = 0.01`" in row and "1e-4 hardly moves" in row
    (bench / "climb.toml").write_text(CLIMB.replace("looks = [2]", "looks = [2, 3]"), "utf-8")
    other = farthing("climb", "climb.toml")
    assert other.code == 2 and "holds another climb" in other.err


@pytest.mark.slow
def test_a_climb_goes_on_with_a_larger_budget_until_it_is_confirmed(bench: Path, farthing: Command) -> None:
    words = ["climb", "climb.toml", "--json", "climb.confirm.ablation=false"]
    short = json.loads(farthing(*words, "climb.budget.runs=3", "climb.confirm.seeds=0").out.splitlines()[-1])
    assert short["kept"] == [] and "runs" in short["ended"]
    longer = json.loads(farthing(*words, "climb.budget.runs=30").out.splitlines()[-1])
    whole = json.loads(farthing(*words, "--name", "whole").out.splitlines()[-1])
    same = ("kept", "rolled_back", "refused", "verdict")
    assert {key: longer[key] for key in same} == {key: whole[key] for key in same}
    assert "runs" not in longer["ended"] and (bench / "runs" / "climb" / "final.toml").is_file()
    assert json.loads(farthing(*words, "climb.budget.runs=40").out.splitlines()[-1]) == longer
    again = farthing(*words, "climb.confirm.seeds=3")
    assert again.code == 2 and "holds another climb" in again.err
    (bench / "runs" / "climb" / "climb.toml").write_text("climb = 7\n", "utf-8")
    other = farthing(*words)
    assert other.code == 2 and "holds another climb" in other.err


@pytest.mark.slow
def test_F26_a_climb_that_is_killed_again_and_again_ends_as_if_it_had_not_been(bench: Path, farthing: Command) -> None:
    words = [sys.executable, "-m", "farthing", "climb", "climb.toml", "--name", "cut", "climb.confirm.seeds=0"]
    whole = farthing("climb", "climb.toml", "--name", "whole", "climb.confirm.seeds=0", "--json")
    for seconds in (1.5, 6.0, 9.0):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    cut = farthing("climb", "climb.toml", "--name", "cut", "climb.confirm.seeds=0", "--json")
    assert cut.code == whole.code == 0, cut
    ends: list[Any] = [json.loads(one.out.splitlines()[-1]) for one in (whole, cut)]
    for end in ends:
        for key in ("folder", "final"):
            end.pop(key)
    assert ends[0] == ends[1]
    assert run_names(bench / "runs" / "whole") == run_names(bench / "runs" / "cut")


@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_goes_on(bench: Path) -> None:
    words = [sys.executable, "-m", "farthing", "climb", "climb.toml", "--name", "stopped", "budget.steps=100000"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    events = bench / "runs" / "stopped" / "base-seed1" / "events.jsonl"
    for _ in range(1200):
        if events.exists() and '"step"' in events.read_text("utf-8"):
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75 and "the same command goes on" in error.splitlines()[-1]
    saved = list((bench / "runs" / "stopped" / "base-seed1" / "checkpoints").glob("step-*"))
    assert saved


@pytest.mark.slow
def test_a_free_climb_keeps_the_best_of_each_round(bench: Path, farthing: Command) -> None:
    steps = CLIMB.partition("[[step]]")[0].replace("seeds = 2", "seeds = 0")
    steps = steps.replace('recipe = "small.toml"', 'recipe = "small.toml"\norder = "free"')
    for name, rate in (("some", 4e-3), ("more", 1e-2)):
        steps += f'[[step]]\nname = "{name}"\nchanges = {{ optimizer.lr = {rate} }}\n'
    (bench / "free.toml").write_text(steps, "utf-8")
    told = farthing("climb", "free.toml", "--json")
    found = json.loads(told.out.splitlines()[-1])
    assert [one["name"] for one in found["kept"]] == ["more"], "the better of two that are better than the base"
    assert [(one["name"], one["round"]) for one in found["rolled_back"]] == [("some", 2)]
    assert found["runs"] == 6, "the second round found its runs in the first"


# --- without training


@pytest.mark.parametrize("name", shipped("climb"))
def test_shipped_climbs_are_sound(name: str) -> None:
    asked = read(name, Recipe)
    for step in asked.climb.step:
        assert step.reason
    everything: list[str] = []
    for step in asked.climb.step:
        # Each on top of all before it, or at least alone.
        try:
            asked.recipe([*everything, step.name])
            everything.append(step.name)
        except errors.UserError:
            asked.recipe([step.name])
    assert len(everything) >= len(asked.climb.step) - 2


def test_the_four_climbs_are_shipped() -> None:
    assert {"study-a", "study-c", "study-e", "titles"} <= set(shipped("climb"))


@pytest.mark.parametrize("kept", [[], [0], [0, 1], [1]])
def test_study_e_climbs_through_its_four_architectures_whichever_are_kept(kept: list[int]) -> None:
    asked = read("study-e", Recipe)
    names = [step.name for step in asked.climb.step]
    arms = ["e-rope-gelu", "e-rope-gqa", "e-swiglu-rmsnorm-gqa-rope"]
    assert asked.recipe([]).model == config.load(Recipe, "studies/e-baseline").model
    before = [names[index] for index in kept]
    for name, arm in list(zip(names, arms, strict=True))[max(kept, default=-1) + 1 :]:
        assert asked.recipe([*before, name]).model == config.load(Recipe, f"studies/{arm}").model


def grounds(value: float, margin: float, *, decision: str = "worse") -> str:
    scores = {seed: 1.3 + 0.001 * (seed % 2) + value + margin + 0.0001 * seed for seed in (1, 2, 3)}
    look = Sequential((3,)).look(scores, {seed: 1.3 + 0.001 * (seed % 2) for seed in (1, 2, 3)})
    assert look.decision == decision and isinstance(look.difference, Difference)
    return _grounds(look, margin, look.difference.interval()[0] - margin)


def test_a_gain_that_is_too_small_for_its_cost_is_not_called_worse() -> None:
    assert grounds(-0.005, 0.01).startswith("too little: p = ")
    assert grounds(-0.005, 0.01).endswith("; 0.0100 bits/byte had to be won")
    assert grounds(+0.005, 0.01).startswith("worse: p = ")
    assert grounds(+0.005, 0.0).startswith("worse: p = ") and "won" not in grounds(+0.005, 1e-6)
    assert grounds(-0.02, 0.01, decision="better").startswith("p = ")


def test_within_the_noise_of_the_last_look_says_what_would_have_told() -> None:
    scores = {1: 1.290, 2: 1.282, 3: 1.287}
    look = Sequential((2, 3), spending="pocock").look(scores, dict.fromkeys(scores, 1.3))
    assert isinstance(look.difference, Difference) and look.difference.interval()[1] < 0
    assert look.decision == "cannot tell" and look.p is not None and look.nominal < look.p < 0.05
    assert (
        look.reason
        == f"the difference is within the noise: p = {look.p:.2g}, and {look.nominal:.2g} or less would tell"
    )


FREE = """
recipe = "small.toml"
order = "free"
[[step]]
name = "heads"
changes = { model.n_head = 7 }
[[step]]
name = "width"
changes = { model.d_model = 28 }
"""


def test_in_a_free_order_a_change_may_need_a_later_one(bench: Path) -> None:
    (bench / "free.toml").write_text(FREE, "utf-8")
    assert len(read("free.toml", Recipe).climb.step) == 2
    (bench / "listed.toml").write_text(FREE.replace('order = "free"', ""), "utf-8")
    with pytest.raises(errors.UserError, match="step 'heads'"):
        read("listed.toml", Recipe)
    (bench / "never.toml").write_text(FREE.replace("28", "30"), "utf-8")
    with pytest.raises(errors.UserError, match="step 'heads'"):
        read("never.toml", Recipe)


def test_runs_of_an_interrupted_change_are_not_those_of_another(bench: Path) -> None:
    folder, before = ClimbFolder(bench / "climb"), Standing()
    folder.make("")
    slow, fast, faster = (config.load(Recipe, "small.toml", [f"optimizer.lr={rate}"]) for rate in (1e-6, 1e-1, 1.0))
    assert folder.arm(before, slow, "rate") == "rate"
    # Of that sitting only the file is left: it was interrupted before anything was decided.
    for recipe, name in ((fast, "rate-2"), (slow, "rate"), (faster, "rate-3")):
        assert folder.arm(Standing(), recipe, "rate") == name
        assert config.load(Recipe, str(folder.recipe(name))).optimizer.lr == recipe.optimizer.lr
    folder.recipe("rate-2").write_text("damaged", "utf-8")
    assert folder.arm(Standing(), fast, "rate") == "rate-4"
    assert folder.arm(Standing(), fast.model_copy(update={"seed": 8}), "rate") == "rate-4"


def test_what_has_not_been_decided_may_change(tmp_path: Path) -> None:
    asked = {
        "climb": {"judge": {"level": 0.05}, "step": [{"name": "a", "changes": {"x": 1}}, {"name": "b", "changes": {}}]}
    }
    folder = ClimbFolder(tmp_path / "climb")
    folder.make(tomli_w.dumps(asked))
    standing = Standing([Decision("a", "kept", "")])
    folder.write(standing)

    def given(steps: list[dict[str, Any]], level: float = 0.05) -> None:
        folder.take_over(tomli_w.dumps({"climb": {"judge": {"level": level}, "step": steps}}))

    first = {"name": "a", "reason": "told better", "changes": {"x": 1}}
    given([first, {"name": "c", "changes": {"y": 2}}])
    given([{"name": "d", "changes": {"y": 3}}, first])
    assert "d" in folder.asked.read_text("utf-8") and "told better" in folder.asked.read_text("utf-8")
    for steps, level in (
        ([{**first, "changes": {"x": 2}}], 0.05),
        ([{"name": "d", "changes": {}}], 0.05),
        ([first], 0.01),
    ):
        with pytest.raises(errors.UserError, match="holds another climb"):
            given(steps, level)
    standing.confirmation = {"verdict": {}}
    folder.write(standing)
    with pytest.raises(errors.UserError, match="holds another climb"):
        given([first])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("optimizer.lr = 1e-2", "optimizer.rate = 1e-2", "step 'higher rate': optimizer.rate: no such setting"),
        ("model.d_model = 512", "model.d_model = 511", "step 'too large': "),
        ("looks = [2]", "looks = [3, 2]", "the numbers of seeds must rise"),
        ('name = "too large"', 'name = "higher rate"', "is the name of two changes"),
        ("changes = { model.n_layer = 1 }", "changes = { seed = 3 }", "seed is no change"),
        ("changes = { model.n_layer = 1 }", "changes = {}", "changes"),
        ('recipe = "small.toml"', 'recipe = "smal.toml"', "smal.toml"),
        ("seeds = 2", "seeds = -2", "seeds"),
        ("[judge]", "[jugde]", "jugde"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    old: str, new: str, told: str, bench: Path, farthing: Command
) -> None:
    assert old in CLIMB
    (bench / "climb.toml").write_text(CLIMB.replace(old, new), "utf-8")
    answer = farthing("climb", "climb.toml")
    assert answer.code == 2 and told in answer.err and answer.err.count("\n") == 1, answer
    assert not (bench / "runs").exists()


@pytest.mark.parametrize(
    "words", [["climb"], ["climb", "nowhere"], ["climb", "climb.toml", "--workers", "0"], ["climb", "--status", "."]]
)
def test_what_is_asked_must_be_there(words: list[str], bench: Path, farthing: Command) -> None:
    answer = farthing(*words)
    assert answer.code == 2 and answer.err.count("\n") == 1


def test_a_folder_of_something_else_is_left_alone(bench: Path, farthing: Command) -> None:
    (bench / "runs" / "climb").mkdir(parents=True)
    (bench / "runs" / "climb" / "notes.txt").write_text("mine", "utf-8")
    answer = farthing("climb", "climb.toml")
    assert answer.code == 2 and "is no climb" in answer.err
    assert [path.name for path in (bench / "runs" / "climb").iterdir()] == ["notes.txt"]


def test_where_a_climb_stands_reads_back(tmp_path: Path) -> None:
    folder = ClimbFolder(tmp_path)
    decision = Decision("a", "kept", "p = 0.01", "a", "base", 3, -0.1, -0.2, -0.05, 0.01, 1.5, 0.01, 2)
    standing = Standing([decision], {"f": "a"}, "over", {"final": {}}, [{"change": "a"}], {"final": {}})
    folder.write(standing)
    assert folder.read() == standing and standing.kept == ["a"]
    for damage in ("{", '{"version": 99}', '{"version": 1, "decisions": [{}]}', "[]"):
        folder.standing.write_text(damage, "utf-8")
        with pytest.raises(errors.UserError):
            folder.read()


def test_defaults_look_more_than_once() -> None:
    assert len(Judge().looks) > 1 and find_file("study-a", "climb").is_file()
