"""A SEARCH.toml that could never work is refused in one line that names file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from farthing import config
from farthing.errors import UserError
from farthing.recipe import Recipe
from farthing.search.check import read
from farthing.search.file import find_file, shipped
from search.small import SEARCH, asked, furnish, space_of

LR = '"optimizer.lr" = { kind = "float", low = 1e-4, high = 1e-1, log = true }'


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ('"optimizer.lrr" = { kind = "float", low = 1, high = 2 }', ["optimizer.lrr", "did you mean optimizer.lr?"]),
        ('"n_head" = { kind = "int", low = 1, high = 2 }', ["did you mean model.n_head?"]),
        ('"optimizer.lr" = { kind = "float", low = 2, high = 1 }', ["low=2", "high=1", "empty"]),
        ('"optimizer.lr" = { kind = "float", low = 0, high = 1, log = true }', ["logarithm", "above 0"]),
        ('"optimizer.lr" = { kind = "flot", low = 0, high = 1 }', ["'flot'", "did you mean float?"]),
        ('"optimizer.lr" = { low = 0, high = 1 }', ["kind", "float, int, choice"]),
        ('"optimizer.lr" = { kind = "float", low = 0 }', ["high", "must be given"]),
        ('"optimizer.lr" = 3', ["must be a table"]),
        ('"optimizer.lr" = { kind = "float", low = 0.1, high = 1, stp = 1 }', ["stp", "did you mean step?"]),
        ('"optimizer.lr" = { kind = "int", low = 1, high = 8, log = true, step = 2 }', ["exclude"]),
        ('"model.norm.kind" = { kind = "choice", choices = ["rmsnorm", "batchnorm"] }', ["batchnorm", "no such kind"]),
        ('"model.d_model" = { kind = "choice", choices = [16, 17] }', ["17", "n_head"]),
        ('"model.d_model" = { kind = "choice", choices = [] }', ["choices"]),
        ('"model.d_model" = { kind = "choice", choices = [16, 16] }', ["16 is given twice"]),
        ('"model.dropout" = { kind = "float", low = 0.0, high = 1.0 }', ["high", "less than 1"]),
        ('"model.n_layer" = { kind = "float", low = 1.0, high = 2.5 }', ["high", "integer"]),
        ('"optimizer.momentum" = { kind = "float", low = 0.0, high = 0.9 }', ["momentum", "optimizer.kind=adamw"]),
        (
            '"optimizer.momentum" = { kind = "float", low = 0, high = 0.9, when = { "optimizer.kind" = "sgd" } }',
            ["never holds"],
        ),
        (LR.replace("}", ', when = { "modl.kind" = 1 } }'), ["modl.kind", "no such setting"]),
        (
            '"model.d_model" = { kind = "int", low = 8, high = 16, multiple_of = "model.n_head" }\n'
            '"model.n_head" = { kind = "int", low = 1, high = 4, divides = "model.d_model" }',
            ["depends on itself"],
        ),
        ('"seed" = { kind = "int", low = 1, high = 4 }', ["seeds = [...]"]),
        (f'{LR}\n[tied]\n"optimizer.lr" = {{ of = "model.dropout" }}', ["tied", "searched in [space] too"]),
        (f'{LR}\n[tied]\n"optimizer.weight_decay" = {{ off = "optimizer.lr" }}', ["off", "did you mean of?"]),
        (f'{LR}\n[tied]\n"optimizer.weight_decay" = 3', ["must be a table such as"]),
    ],
)
def test_a_faulty_space_is_one_line(tmp_path: Path, space: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        space_of(tmp_path, space)
    message = str(caught.value)
    assert "\n" not in message and "s.toml:" in message
    assert not [word for word in words if word not in message], message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sampler.kind = 'tpee'", ["tpee", "did you mean tpe?"]),
        ("pruner.kind = 'wilcoxon'", ["seeds"]),
        ("seeds = [1, 2, 3, 4]\npruner.kind = 'wilcoxon'", ["can never stop a trial of 4", "give at least 5 seeds"]),
        ("seeds = [1, 2]\npruner = { kind = 'wilcoxon', level = 0.3 }", ["give at least 3 seeds"]),
        ("seeds = [1, 1]", ["given twice"]),
        ("seeds = []", ["seeds"]),
        ("changes.optimizer.lr = 0.1", ["optimizer.lr", "[changes]"]),
        ("limits = { min_megabytes = 3, max_megabytes = 2 }", ["nothing lies between"]),
        ("sede = 3", ["sede", "did you mean seed?"]),
    ],
)
def test_a_faulty_search_is_one_line(tmp_path: Path, line: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        space_of(tmp_path, LR, more=line)
    message = str(caught.value)
    assert "\n" not in message
    assert not [word for word in words if word not in message], message


def test_no_budget_and_no_space(tmp_path: Path) -> None:
    furnish(tmp_path, 'recipe = "small.toml"\n[space]\n' + LR)
    with pytest.raises(UserError, match="budget"):
        read(str(tmp_path / "s.toml"), Recipe)
    furnish(tmp_path, 'recipe = "small.toml"\n[space]\n[budget]\ntrials = 1')
    with pytest.raises(UserError, match="name at least one parameter"):
        read(str(tmp_path / "s.toml"), Recipe)


def test_a_missing_search_and_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such search file; did you mean study-c\?"):
        find_file("searches/study-cc.toml", "search")
    with pytest.raises(UserError, match="nowhere"):
        asked(tmp_path, SEARCH.replace("small.toml", "nowhere.toml"))


def test_overrides_are_for_the_recipe_or_with_a_prefix_for_the_search(tmp_path: Path) -> None:
    found = asked(tmp_path, overrides=["budget.steps=3", "search.budget.trials=7"])
    assert config.flatten(found.space.base)["budget.steps"] == 3
    assert found.search.budget.trials == 7
    with pytest.raises(UserError, match="command line"):
        asked(tmp_path, overrides=["optimizer.lr=3"])


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["evaluate.legacy=titles", "budget.steps=3", "budget.steps=4"],
        ["budget.steps=none", "budget.epochs=2", "search.budget.trials=7"],
        ["optimizer.kind=muon"],  # which the file changes to sgd, and the recipe has
        ["optimizer.kind=sgd", "optimizer.momentum=0.2"],
    ],
)
def test_what_a_folder_keeps_means_the_same_search_by_itself(tmp_path: Path, overrides: list[str]) -> None:
    text = SEARCH.replace("[tied]\n", "").replace(
        '"optimizer.weight_decay" = { of = "optimizer.lr", times = 0.1 }\n', ""
    )
    furnish(tmp_path, text.replace("[space]", "[changes]\n'optimizer.kind' = 'sgd'\noptimizer.momentum = 0.7\n[space]"))
    recipe = (tmp_path / "small.toml").read_text("utf-8")
    (tmp_path / "small.toml").write_text(recipe.replace('kind = "adamw"', 'kind = "muon"\nmomentum = 0.83'), "utf-8")
    found = read(str(tmp_path / "s.toml"), Recipe, overrides)
    folder = tmp_path / "runs" / "s"
    folder.mkdir(parents=True)
    (folder / "search.toml").write_text(found.as_toml(folder), "utf-8")
    again = read(str(folder / "search.toml"), Recipe)
    assert again.space.base == found.space.base and again.space.dimensions == found.space.dimensions
    assert again.search.model_copy(update={"changes": {}, "recipe": ""}) == found.search.model_copy(
        update={"changes": {}, "recipe": ""}
    )
    assert again.as_toml(folder) == found.as_toml(folder)


def test_quoted_paths_and_tables_are_the_same(tmp_path: Path) -> None:
    tables = '[space.optimizer]\nlr = { kind = "float", low = 1e-4, high = 1e-1, log = true }'
    assert space_of(tmp_path, tables).dimensions == space_of(tmp_path, LR).dimensions


@pytest.mark.parametrize("name", shipped("search"))
def test_shipped_searches_are_sound(name: str) -> None:
    found = read(name, Recipe)
    assert found.path.read_text("utf-8").startswith("# Study")
    made = found.space.propose(lambda name, path, domain: domain.at(0.3))
    assert made.parameters.keys() == found.space.dimensions.keys()
