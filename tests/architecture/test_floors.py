"""Who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from architecture.source import FLOOR_OF, FLOORS, Import, Module, dotted, modules

TORCH_FREE = {name for names in FLOORS[:5] for name in names} | {"data"}
TORCH = {"torch", "transformers", "pytorch_optimizer", "torchao", "accelerate", "lm_eval"}
SEES_A_WHOLE_RECIPE = {"recipe", "config", "planning", "assemble", "session", "api", "cli", "", "__main__"}


def _inner(module: Module) -> Iterator[tuple[Import, str]]:
    """The module's imports from this package, each with the package it reaches for."""
    for one in module.imports():
        if one.full.partition(".")[0] == "farthing" and one.full != "farthing.__version__":
            yield one, one.full.removeprefix("farthing").lstrip(".").partition(".")[0]


def test_every_module_lives_on_a_floor() -> None:
    homeless = [module.name for module in modules() if module.package not in FLOOR_OF]
    assert not homeless, f"give these a floor: {homeless}"


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_imports_only_from_lower_floors(module: Module) -> None:
    wrong = [
        f"{module.where(one.line)} imports {one.full}"
        for one, target in _inner(module)
        if target != module.package and FLOOR_OF.get(target, 99) >= FLOOR_OF[module.package]
    ]
    assert not wrong, "\n".join(wrong)


def test_torch_stays_off_the_lower_floors() -> None:
    wrong = [
        f"{module.where(one.line)} imports {one.full}"
        for module in modules()
        if module.package in TORCH_FREE or module.name == "farthing.optim.schedules"
        for one in module.imports()
        if one.module.partition(".")[0] in TORCH or one.full.startswith("safetensors.torch")
    ]
    assert not wrong, "\n".join(wrong)


def test_only_runtime_distributed_touches_torch_distributed() -> None:
    wrong = [
        module.where(line)
        for module in modules()
        if module.name != "farthing.runtime.distributed"
        for line in [
            *(one.line for one in module.imports() if one.full.startswith("torch.distributed")),
            *(n.lineno for n in ast.walk(module.tree) if isinstance(n, ast.Attribute) and _is_distributed(n)),
        ]
    ]
    assert not wrong, "\n".join(wrong)


def _is_distributed(node: ast.Attribute) -> bool:
    return dotted(node) == "torch.distributed"


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("training", {"evals", "sinks", "report", "search", "compare", "web"}),
        ("model", {"optim", "training"}),
        ("search", {"training"}),
        ("evals", {"training", "sinks"}),
    ],
)
def test_strangers_stay_strangers(package: str, forbidden: set[str]) -> None:
    wrong = [
        f"{module.where(one.line)} imports {one.full}"
        for module in modules()
        if module.package == package
        for one, target in _inner(module)
        if target in forbidden
    ]
    assert not wrong, "\n".join(wrong)


def test_a_whole_recipe_is_seen_only_where_it_is_taken_apart() -> None:
    wrong = [
        module.where(one.line)
        for module in modules()
        if module.package not in SEES_A_WHOLE_RECIPE
        for one, _ in _inner(module)
        if one.full == "farthing.recipe.Recipe"
    ]
    assert not wrong, "these take the section they need, not the Recipe: " + ", ".join(wrong)


RUN_FILES = {"recipe.toml", "plan.json", "receipt.json", "events.jsonl", "result.json", "samples.txt", "checkpoints"}


def test_only_rundir_knows_the_files_of_a_run() -> None:
    wrong = [
        f"{module.where(node.lineno)}: {node.value!r}"
        for module in modules()
        if module.package != "rundir"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and node.value in RUN_FILES
    ]
    assert not wrong, "ask farthing.rundir for the path: " + ", ".join(wrong)
