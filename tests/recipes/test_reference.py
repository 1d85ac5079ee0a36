"""The reference and the schema say what the fields say."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from farthing import config
from farthing.recipe import Recipe, reference

ROOT = Path(__file__).parents[2]
SCHEMA = jsonschema.Draft202012Validator(reference.json_schema())


def test_the_committed_reference_is_current() -> None:
    assert (ROOT / "docs" / "recipe.md").read_text("utf-8") == reference.markdown(), "run: make docs"


def test_every_field_is_in_the_reference_with_its_documentation() -> None:
    text = reference.markdown()
    missing = [path for path in config.paths_of(Recipe) if f"`{path}`" not in text and not path.endswith("kind")]
    assert not missing
    assert "|  |" not in text


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(reference.json_schema())


@pytest.mark.parametrize(
    "table",
    [
        {"model": {"n_layers": 6}},
        {"model": {"n_layer": 0}},
        {"optimizer": {"kind": "adamm"}},
        {"optimizer": {"kind": "sgd", "beta1": 0.9}},
        {"budget": {"epochs": -1}},
        {"budgets": {"epochs": 1}},
    ],
)
def test_the_schema_refuses_what_cannot_be(table: dict[str, object]) -> None:
    assert not SCHEMA.is_valid(table)


@pytest.mark.parametrize(
    "table",
    [{}, {"base": "default"}, {"schedule": {"warmup": 0.1}}, {"train": {"ema": "none"}}, {"train": {"ema": 0.9}}],
)
def test_the_schema_lets_a_file_lean_on_its_base(table: dict[str, object]) -> None:
    SCHEMA.validate(table)
