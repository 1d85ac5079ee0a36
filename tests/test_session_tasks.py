"""Tasks while training: asked at their cadence, in full at the end, and without a trace in what is learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farthing import config
from farthing.errors import Preempted, UserError
from farthing.recipe import Recipe
from farthing.rundir import RunDir
from farthing.storage import read_json
from training.story import QUICK, events, final_state, new_run, resume, signal_at, tell


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tell(tmp_path, monkeypatch)
    records = [
        {"query": f"the cat number {n} went to", "choices": ["the hill", "a tree"], "gold": n % 2} for n in range(9)
    ]
    (folder / "choices.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), "utf-8")
    (folder / "words.txt").write_text("the owl went to the sea", "utf-8")
    return folder


ASKED = [
    {"task": "choices", "path": "choices.jsonl", "limit": 4, "every": 3},
    {"task": "perplexity", "path": "words.txt", "every": "end"},
    {"task": "choices", "path": "choices.jsonl", "shots": 2},
]


def recipe(tasks: list[dict[str, object]]) -> Recipe:
    return config.build(Recipe, {**config.to_table(config.load(Recipe, None, QUICK)), **evaluate(tasks)})


def evaluate(tasks: list[dict[str, object]]) -> dict[str, object]:
    return {"evaluate": {"every": 5, "references": False, "tasks": tasks}}


def test_tasks_are_asked_and_nothing_learns_of_it(story: Path) -> None:
    plain = new_run(story / "runs" / "plain", recipe([]))
    asked = new_run(story / "runs" / "asked", recipe(ASKED))
    assert final_state(asked)["tensors"] == final_state(plain)["tensors"]
    assert final_state(asked)["steps"] == final_state(plain)["steps"]
    told = [(one["step"], one["task"], one["result"]["items"], one["result"]["shots"]) for one in events(asked, "task")]
    full = [(10, "choices", 9, 0), (10, "perplexity", 1, 0), (10, "choices", 9, 2)]
    assert told == [(3, "choices", 4, 0), (5, "choices", 9, 2), (6, "choices", 4, 0), (9, "choices", 4, 0), *full]
    for one in events(asked, "task"):
        assert one["value"] == one["result"]["scores"][one["result"]["metric"]]["value"]
    result = read_json(asked.result)["tasks"]
    assert result == [one["result"] for one in events(asked, "task")[-3:]]
    assert read_json(plain.result)["tasks"] == []


def test_a_stop_changes_no_task(story: Path) -> None:
    whole = new_run(story / "runs" / "whole", recipe(ASKED))
    cut = RunDir(story / "runs" / "cut")
    with pytest.raises(Preempted):
        new_run(cut.path, recipe(ASKED), signal_at(4))
    resume(cut)

    def told(run: RunDir) -> list[tuple[int, dict[str, object]]]:
        return [(one["step"], one["result"]["scores"]) for one in events(run, "task")]

    assert told(cut) == told(whole)


def test_bad_questions_are_told_before_there_is_a_run(story: Path) -> None:
    (story / "choices.jsonl").write_text('{"query": "q", "choices": ["a", "b"], "gold": 2}\n', "utf-8")
    with pytest.raises(UserError, match=r"choices\.jsonl:1: gold=2 should be"):
        new_run(story / "runs" / "bad", recipe(ASKED))
    assert not (story / "runs" / "bad").exists()
    with pytest.raises(UserError, match=r"evaluate\.tasks\.path = 'nowhere\.jsonl': no such file"):
        new_run(story / "runs" / "bad", recipe([{"task": "piqa", "path": "nowhere.jsonl"}]))


def test_what_could_not_be_asked_later_is_refused_before_there_is_a_run(story: Path) -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"task": "perplexity", "path": "words.txt", "shots": 1}, "read as it stands, without worked examples"),
        ({"task": "choices", "path": "choices.jsonl", "shots": 40}, "only 8 other questions"),
    ]
    for asked, told in cases:
        with pytest.raises(UserError, match=told):
            new_run(story / "runs" / "bad", recipe([{**asked, "every": "end"}]))
        assert not (story / "runs" / "bad").exists()


def test_a_recipe_without_tasks_is_the_recipe_that_it_was() -> None:
    made = recipe([])
    table = config.to_table(made)
    table["evaluate"].pop("tasks", None)
    assert config.fingerprint(config.build(Recipe, table)) == config.fingerprint(made)
    assert config.fingerprint(recipe(ASKED)) != config.fingerprint(made)
    assert config.build(Recipe, config.to_table(recipe(ASKED))) == recipe(ASKED)


def test_a_recipe_file_may_name_tasks(story: Path) -> None:
    made = recipe(ASKED)
    (story / "own.toml").write_text(config.to_toml(made), "utf-8")
    assert config.load(Recipe, str(story / "own.toml")) == made
