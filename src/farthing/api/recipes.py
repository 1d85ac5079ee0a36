"""A recipe from whatever a caller names it by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from farthing import config
from farthing.recipe import Recipe

Overrides = Sequence[str] | Mapping[str, Any]
"""`["model.n_layer=8"]` or `{"model.n_layer": 8}`"""


def resolve(recipe: str | Recipe, overrides: Overrides) -> Recipe:
    """A recipe file, a shipped recipe's name or a Recipe, with overrides."""
    if isinstance(recipe, Recipe):
        return config.build(Recipe, config.override(config.to_table(recipe), overrides))
    return config.load(Recipe, recipe, overrides)
