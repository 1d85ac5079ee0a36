"""Whole searches in processes of their own: to the end, continued, and disturbed in every way that loses nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from farthing import config
from farthing.recipe import Recipe
from farthing.rundir import RunDir, list_runs
from farthing.search.record import Folder, Record
from farthing.storage import read_json
from search.small import SEARCH, asked, done, furnish, record, records, start, steps, stop_leftovers, wait_until

# The first trial has the base's width, the second one is larger than the limit; then two that run.
GRID = """\
recipe = "small.toml"
[space]
"optimizer.lr" = { kind = "choice", choices = [1e-3, 1e-1] }
"model.d_model" = { kind = "choice", choices = [16, 64] }
[sampler]
kind = "grid"
[limits]
max_parameters = 20000
[budget]
trials = 9
[confirm]
top = 1
seeds = 1
base = false
"""
LONG = ["budget.steps=1500", "evaluate.every=150", "checkpoint.every=100"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A desk with a search that has come to its end, and its answer."""
    desk = tmp_path_factory.mktemp("desk")
    furnish(desk, GRID)
    return desk, done(start("s.toml", "--json", cwd=desk))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What two longer trials come to where nothing happens to them."""
    desk = tmp_path_factory.mktemp("undisturbed")
    furnish(desk)
    return desk / "runs" / "s", done(start("s.toml", *LONG, "--json", cwd=desk))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Path]:
    furnish(tmp_path)
    yield tmp_path
    stop_leftovers(tmp_path / "runs" / "s")


def told(folder: Path) -> list[tuple[Any, ...]]:
    """What must not depend on how often a search was stopped."""
    return [(one.id, one.state, one.parameters, one.scores, one.score) for one in records(folder)]


def test_a_search_ends_with_a_recipe_that_train_takes(ended: tuple[Path, dict[str, Any]]) -> None:
    desk, answer = ended
    folder = desk / "runs" / "s"
    assert (answer["trials"], answer["refused"], answer["failed"], answer["pruned"]) == (2, 2, 0, 0)
    assert answer["ended"] == "the whole grid has been tried"
    best = answer["best"]
    assert best["parameters"] == {"optimizer.lr": 0.1, "model.d_model": 16}
    winner = next(one for one in records(folder) if one.id == best["trial"])
    made = config.load(Recipe, str(folder / "best.toml"))
    assert config.to_table(made) == winner.recipe
    assert config.read_toml(folder / "best.toml") == {"base": "../../small.toml", "optimizer": {"lr": 0.1}}
    # Each trial is an ordinary run folder, whose end is the score.
    run = RunDir(Path(desk / best["run"]))
    assert read_json(run.result)["validation"]["bits_per_byte"] == best["bits_per_byte"]
    assert {one.name for one in list_runs(folder)} == {
        "trial-00000-seed-1337", "trial-00001-seed-1337", "confirm-trial-00001-seed-10001",
    }  # fmt: skip


def test_refused_candidates_cost_nothing_and_are_told(ended: tuple[Path, dict[str, Any]]) -> None:
    desk, answer = ended
    found = read_json(desk / "runs" / "s" / "findings.json")
    assert found["refusals"] == {"limits.max_parameters": 2}
    assert [one["state"] for one in found["history"]] == ["complete", "complete"]
    assert answer["confirmation"]["arms"][answer["best"]["trial"]]["n"] == 1
    assert answer["best"]["confirmed_bits_per_byte"] != answer["best"]["bits_per_byte"], "these are fresh seeds"


def test_what_has_ended_stays_as_it_is(ended: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    desk, answer = ended
    copy = tmp_path / "desk"
    shutil.copytree(desk, copy)
    before = {one: one.stat().st_mtime_ns for one in copy.rglob("trial-*/*") if one.is_file()}
    again = done(start("s.toml", "--json", cwd=copy))
    assert {key: again[key] for key in ("best", "trials", "refused", "confirmation")} == {
        key: answer[key] for key in ("best", "trials", "refused", "confirmation")
    }
    assert {one: one.stat().st_mtime_ns for one in copy.rglob("trial-*/*") if one.is_file()} == before
    # A wider space keeps the old trials that fit in it, and goes on from there.
    (copy / "s.toml").write_text(GRID.replace("1e-1]", "1e-1, 1e-2]").replace("top = 1", "top = 0"), "utf-8")
    wider = done(start("s.toml", "--json", cwd=copy))
    assert (wider["trials"], wider["refused"]) == (3, 3)
    assert {one["optimizer.lr"] for one in read_json(copy / "runs/s/findings.json")["parallel"]} == {1e-3, 1e-1, 1e-2}
    # A narrower one leaves out what it could not have proposed.
    (copy / "s.toml").write_text(GRID.replace("[1e-3, 1e-1]", "[1e-3]").replace("top = 1", "top = 0"), "utf-8")
    narrower = done(start("s.toml", "--json", cwd=copy))
    assert narrower["best"]["parameters"]["optimizer.lr"] == 1e-3
    assert read_json(copy / "runs/s/findings.json")["left_out"] == 2


def begun_anew(folder: Path, number: int) -> Record:
    """A trial as if its run had been begun and then lost."""
    [old] = [one for one in records(folder) if one.role == "trial" and one.number == number]
    begun = replace(old, state="running", score=None, scores={}, spent={}, curve={})
    Folder(folder).write(begun)
    shutil.rmtree(Folder(folder).run(old, 1337).path)
    return begun


def test_a_search_whose_budget_is_used_up_has_ended(ended: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    desk, answer = ended
    copy = tmp_path / "desk"
    shutil.copytree(desk, copy)
    folder = copy / "runs" / "s"
    begun = begun_anew(folder, 0)
    (folder / "findings.json").unlink()
    for _ in range(2):
        small = done(start("s.toml", "search.budget.minutes=0.01", "--json", cwd=copy))
        assert (small["trials"], small["complete"], small["running"]) == (2, 1, 1)
        assert small["ended"] == "budget.minutes is spent; a larger budget goes on with 1 stopped trial"
        assert small["best"]["trial"] == answer["best"]["trial"] and (folder / "best.toml").is_file()
        assert read_json(folder / "findings.json")["ended"] == small["ended"]
        assert next(one for one in records(folder) if one.id == begun.id) == begun, "it was not begun again"
    more = done(start("s.toml", "--json", cwd=copy))
    assert (more["trials"], more["complete"], more["running"]) == (2, 2, 0) and more["ended"] == answer["ended"]
    assert next(one for one in records(folder) if one.id == begun.id).scores == records(desk / "runs" / "s")[1].scores


def test_a_run_is_stopped_where_the_budget_ends_and_goes_on_with_a_larger_one(desk: Path) -> None:
    folder = Folder(desk / "runs" / "s")
    folder.make("")
    words = ["s.toml", "--json", "budget.steps=100000", "search.budget.trials=1", "search.budget.minutes=0.1"]
    table = config.to_table(
        asked(desk, SEARCH, words[2:]).space.propose(lambda name, at, domain: domain.at(0.0)).recipe
    )
    assert folder.create(record(0, None, state="running", recipe=table))
    for _ in range(2):
        answer = done(start(*words, cwd=desk))
        assert (answer["trials"], answer["complete"], answer["running"]) == (1, 0, 1)
        assert answer["best"] is None and answer["ended"].startswith("budget.minutes is spent; a larger budget goes on")
        [stopped] = folder.records()
        assert stopped.state == "running" and stopped.spent["seconds"] >= 6.0 and stopped.attempt == 2
        assert not folder.run(stopped, 1337).is_locked()
    larger = done(start(*words[:-1], f"search.budget.minutes={stopped.spent['seconds'] / 60 + 0.05}", cwd=desk))
    assert larger["running"] == 1 and folder.records()[0].attempt == 3


def test_trials_that_fit_no_more_are_told_and_others_take_their_place(
    ended: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    desk, answer = ended
    copy = tmp_path / "desk"
    shutil.copytree(desk, copy)
    folder = copy / "runs" / "s"
    words = ["s.toml", "data.validation=0.3", "search.budget.trials=2"]  # another text to be scored on
    search = start(*words, "--json", cwd=copy)
    out, err = search.communicate(timeout=300)
    told = json.loads(out.splitlines()[-1])
    assert search.returncode == 0 and (told["trials"], told["complete"], told["left_out"]) == (2, 2, 2), err
    [line] = [line for line in err.splitlines() if line.startswith("left out")]
    assert line.endswith(f": {told['left_out_because']}") and "data.validation=" in line and "now 0.3" in line
    assert told["best"]["trial"] not in {one.id for one in records(desk / "runs" / "s")}
    assert told["spent"]["flops"] > answer["spent"]["flops"], "all that was spent"
    # The folder's own SEARCH.toml is this search, the command line's settings included.
    again = done(start(str(folder / "search.toml"), "--name", "s", "--json", cwd=copy))
    assert again == told


@pytest.mark.slow
def test_a_stop_leaves_something_to_report(desk: Path) -> None:
    folder = desk / "runs" / "s"
    search = start("s.toml", *LONG, cwd=desk)
    wait_until(lambda: folder.exists() and [one.state for one in records(folder)] == ["complete", "running"], search,
               seconds=300)  # fmt: skip
    search.send_signal(signal.SIGTERM)
    _, err = search.communicate(timeout=60)
    assert search.returncode == 75, err
    found = read_json(folder / "findings.json")
    assert (found["ended"], found["complete"], found["running"]) == ("", 1, 1)
    assert found["best"]["trial"] == "trial-00000" and found["confirmation"] is None
    assert not list(folder.glob(".tmp-*"))
    report = subprocess.run(
        [sys.executable, "-m", "farthing", "report", str(folder)], cwd=desk, capture_output=True, text=True, check=False
    )
    assert report.returncode == 0, report.stderr


def test_status_reads_files_alone(ended: tuple[Path, dict[str, Any]]) -> None:
    desk, _ = ended
    process = start("--status", str(desk / "runs" / "s"), "--json", cwd=desk)
    answer = done(process)
    assert answer["trials"] == 2 and [one["state"] for one in answer["each"]].count("complete") == 3
    nothing = start("--status", str(desk), cwd=desk)
    _, err = nothing.communicate()
    assert nothing.returncode == 2 and "is not the folder of a search" in err


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 99}'])
def test_a_damaged_trial_is_named(tmp_path: Path, content: str) -> None:
    folder = Folder(tmp_path / "s")
    folder.make("")
    assert folder.create(record(0, 2.0))
    (tmp_path / "s" / "trials" / "trial-00000" / "trial.json").write_text(content, "utf-8")
    with pytest.raises(ValueError, match="trial-00000") as caught:
        folder.records()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_F26_killed_with_its_run_and_without(desk: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    search = start("s.toml", *LONG, "--json", cwd=desk)
    folder = desk / "runs" / "s"
    # First the search and its run, then the search alone, whose run goes on meanwhile and is found again.
    for run_too in (True, False):
        before = steps(folder)
        wait_until(lambda before=before: steps(folder) > before + 200, search)
        os.killpg(search.pid, signal.SIGKILL)
        search.communicate()
        [unfinished] = [one for one in records(folder) if not one.ended]
        assert unfinished.process is not None
        if run_too:
            os.killpg(unfinished.process, signal.SIGKILL)
        search = start("s.toml", *LONG, "--json", cwd=desk)
    answer = done(search)
    there, whole = undisturbed
    assert answer["trials"] == whole["trials"] == 2
    assert told(folder) == told(there)
    assert answer["best"]["bits_per_byte"] == whole["best"]["bits_per_byte"]
    assert max(one.attempt for one in records(folder)) == 3
    assert answer["spent"]["flops"] == whole["spent"]["flops"], "what was paid for is counted once"


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(desk: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    folder = desk / "runs" / "s"
    search = start("s.toml", *LONG, "--workers", "2", cwd=desk)
    # Before there are runs, which might otherwise be over by the time that a second process has said no.
    wait_until(lambda: folder.exists() and RunDir(folder).is_locked(), search)
    second = start("s.toml", cwd=desk)
    _, err = second.communicate()
    assert second.returncode == 7 and "in use by" in err, err
    wait_until(lambda: len([one for one in folder.glob("*/events.jsonl") if one.stat().st_size > 2000]) == 2, search)
    search.send_signal(signal.SIGINT)
    _, err = search.communicate(timeout=60)
    assert search.returncode == 75 and "the same command goes on" in err
    stopped = records(folder)
    assert [one.state for one in stopped] == ["running", "running"]
    saved = {run.name: run.checkpoint_steps()[-1] for run in list_runs(folder)}
    assert all(saved.values()) and not any(run.is_locked() for run in list_runs(folder))
    answer = done(start("s.toml", *LONG, "--json", "--workers", "2", cwd=desk))
    assert answer["trials"] == answer["complete"] == 2
    # Two at a time propose as one does: a random candidate does not depend on the others' scores.
    assert told(folder) == told(undisturbed[0])
    for run in list_runs(folder):
        lines = run.events.read_text("utf-8").splitlines()
        resumed = [json.loads(line) for line in lines if '"resumed"' in line]
        assert [one["step"] for one in resumed] == [saved[run.name]], "nothing was done twice"


def test_what_fails_or_is_hopeless_is_recorded_and_the_search_goes_on(desk: Path) -> None:
    (desk / "s.toml").write_text(
        SEARCH.split("[space]")[0]
        + '[space]\n"optimizer.lr" = { kind = "choice", choices = [1e18, 1e-2, 1e-7, 2e-2] }\n'
        + '[sampler]\nkind = "grid"\n[pruner]\nkind = "median"\nstartup_trials = 1\nwarmup = 0.0\n'
        + "[budget]\ntrials = 9\n[confirm]\ntop = 0\n",
        "utf-8",
    )
    folder = desk / "runs" / "s"
    # Without clipping, the first one's loss is not finite after a step; the last is killed by a stranger.
    search = start("s.toml", *LONG, "train.gradient_clip=none", "--json", cwd=desk)

    def last() -> list[Record]:
        found = [one for one in records(folder) if one.number == 3] if folder.exists() else []
        return [one for one in found if one.process is not None and Folder(folder).run(one, 1337).events.exists()]

    wait_until(lambda: bool(last()), search, seconds=300)
    process = last()[0].process
    assert process is not None
    os.kill(process, signal.SIGKILL)
    answer = done(search)
    assert (answer["trials"], answer["failed"], answer["complete"], answer["pruned"]) == (4, 2, 1, 1)
    diverged, complete, pruned, killed = records(folder)
    assert diverged.state == "failed" and "diverged" in diverged.reason, diverged.reason
    assert "SIGKILL" in killed.reason
    assert pruned.reason.startswith("median at ")
    assert 0 < max(map(int, pruned.curve)) < 100 and pruned.score == pruned.curve[max(pruned.curve, key=int)]
    assert 0 < pruned.spent["flops"] < complete.spent["flops"], "what a pruned trial has spent is spent"


def test_a_search_whose_runs_are_all_refused_stops(desk: Path) -> None:
    # Plans know nothing of it: each run is launched, and refuses.
    with (desk / "small.toml").open("a", encoding="utf-8") as recipe:
        recipe.write('[[evaluate.tasks]]\ntask = "choices"\npath = "gone.jsonl"\n')
    grid = '"optimizer.lr" = { kind = "choice", choices = [1e-1, 1e-2, 1e-3, 1e-4] }\n[sampler]\nkind = "grid"\n'
    (desk / "s.toml").write_text(f'recipe = "small.toml"\n[space]\n{grid}[budget]\ntrials = 2\n', "utf-8")
    search = start("s.toml", cwd=desk)
    _, err = search.communicate(timeout=300)
    assert search.returncode == 1, err
    last = err.splitlines()[-1]
    assert "3 trials in a row were refused; the last one: trial-00002: " in last and "gone.jsonl" in last
    assert [one.state for one in records(desk / "runs" / "s")] == ["refused"] * 3


@pytest.mark.slow
def test_winner_and_base_are_scored_on_the_test_text_once(desk: Path) -> None:
    space = '"optimizer.lr" = { kind = "choice", choices = [1e-1] }\n[sampler]\nkind = "grid"\n'
    ends = "[budget]\ntrials = 1\n[confirm]\ntop = 1\nseeds = 1\n"
    (desk / "s.toml").write_text(f'recipe = "small.toml"\n[changes]\ndata.test = 0.2\n[space]\n{space}{ends}', "utf-8")
    search = start("s.toml", "--json", cwd=desk)
    out, err = search.communicate(timeout=300)
    assert search.returncode == 0, err
    answer, folder = json.loads(out.splitlines()[-1]), desk / "runs" / "s"
    arms = answer["confirmation"]["arms"]
    scores = {}
    for id, arm in arms.items():
        kept = folder / f"confirm-{id}-seed-10001" / "held_out.json"
        scores[kept] = read_json(kept)["test"]["bits_per_byte"]
        assert arm["held_out"]["mean"] == scores[kept] != arm["mean"], "another text than the one that chooses"
    assert list(arms) == ["trial-00000", "base"]
    assert answer["best"]["held_out_bits_per_byte"] == arms["trial-00000"]["held_out"]["mean"]
    assert not list(folder.glob("trial-*/held_out.json")), "what was chosen among is never scored on it"
    told = [line for line in err.splitlines() if "on the test text, looked at once: trial-00000 " in line]
    assert len(told) == 1 and ", base " in told[0]
    before = {kept: kept.stat().st_mtime_ns for kept in scores}
    assert done(start("s.toml", "--json", cwd=desk))["confirmation"] == answer["confirmation"]
    assert {kept: kept.stat().st_mtime_ns for kept in scores} == before


def test_a_trial_that_never_gets_to_a_checkpoint_is_given_up(desk: Path) -> None:
    folder = Folder(desk / "runs" / "s")
    folder.make("")
    table = config.to_table(asked(desk).space.propose(lambda name, at, domain: domain.at(0.0)).recipe)
    assert folder.create(record(0, None, state="running", recipe=table, fruitless=4))
    answer = done(start("s.toml", "--json", "search.budget.trials=1", cwd=desk))
    assert (answer["trials"], answer["failed"]) == (1, 1)
    assert "5 sittings in a row" in folder.records()[0].reason


def claim(folder: str, number: int, results: Any) -> None:
    results.put(Folder(Path(folder)).create(record(number, None, state="running", worker=str(os.getpid()))))


def test_S20_a_trial_belongs_to_whoever_made_its_folder(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "s")
    folder.make("")
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    racers = [context.Process(target=claim, args=(str(folder.path), number % 20, results)) for number in range(100)]
    for racer in racers:
        racer.start()
    won = sum(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join()
    assert won == 20 and [one.number for one in folder.records()] == list(range(20))
    assert not [one for one in (folder.path / "trials").iterdir() if one.name.startswith(".")]
