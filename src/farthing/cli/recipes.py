"""recipe list, show, diff, schema."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from farthing.cli.options import Json, Words, add, group, say_json, split_words
from farthing.config import Change


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    recipe = group(app, name="recipe", about="Look at recipes: list, show, diff, schema.")
    add(
        recipe,
        list_shipped,
        name="list",
        short="The recipes that come with Farthing.",
        example="farthing recipe list",
    )
    add(
        recipe,
        show,
        name="show",
        short="A recipe with every setting given.",
        example="farthing recipe show default optimizer.kind=adamw",
    )
    add(
        recipe,
        diff,
        name="diff",
        short="The settings in which two recipes differ.",
        example="farthing recipe diff default titles-best",
    )
    add(
        recipe,
        schema,
        name="schema",
        short="The JSON Schema of recipes, for editors.",
        example="farthing recipe schema > farthing.schema.json",
    )


def list_shipped(as_json: Json = False) -> None:
    """The recipes that come with Farthing. Any of them can be named where a RECIPE is asked for."""
    from farthing.config import shipped_recipes

    names = shipped_recipes()
    if as_json:
        say_json(names)
    else:
        typer.echo("\n".join(names))


def show(words: Words = None, as_json: Json = False) -> None:
    """The resolved recipe as TOML: bases merged in, changes made, every setting given."""
    from farthing.config import load, to_toml
    from farthing.recipe import Recipe

    name, overrides = split_words(words)
    recipe = load(Recipe, name, overrides)
    if as_json:
        say_json(recipe.model_dump(mode="json"))
    else:
        typer.echo(to_toml(recipe), nl=False)


def diff(
    old: Annotated[str, typer.Argument(metavar="A", help="A recipe.")],
    new: Annotated[str, typer.Argument(metavar="B", help="Another; a run's recipe.toml will do, too.")],
    as_json: Json = False,
) -> None:
    """The settings in which two recipes differ, a line each: what A has -> what B has."""
    from farthing import config
    from farthing.recipe import Recipe

    changes = config.diff(config.load(Recipe, old), config.load(Recipe, new))
    if as_json:
        say_json([{"path": change.path, "old": change.old, "new": change.new} for change in changes])
        return
    for change in changes:
        typer.echo(_line(change))
    if not changes:
        typer.echo("no difference")


def schema() -> None:
    """The JSON Schema of recipes, with which an editor completes and checks them."""
    from farthing.recipe.reference import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _line(change: Change) -> str:
    def shown(value: object) -> str:
        return "(not set)" if value is None else json.dumps(value, ensure_ascii=False)

    return f"{change.path}: {shown(change.old)} -> {shown(change.new)}"
