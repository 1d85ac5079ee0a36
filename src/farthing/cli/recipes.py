"""recipe list, show, diff, schema, reference."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from farthing.cli.options import Json, Words, say_json, split_words
from farthing.config import Change


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    group = typer.Typer(help="Look at recipes: list, show, diff, schema.", no_args_is_help=True, rich_markup_mode=None)
    group.command("list")(list_shipped)
    group.command()(show)
    group.command()(diff)
    group.command()(schema)
    app.add_typer(group, name="recipe")


def list_shipped(as_json: Json = False) -> None:
    """The recipes that come with Farthing."""
    from farthing.config import shipped_recipes

    names = shipped_recipes()
    if as_json:
        say_json(names)
    else:
        typer.echo("\n".join(names))


def show(words: Words = None, as_json: Json = False) -> None:
    """The resolved recipe: bases merged in, overrides applied, every setting given."""
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
    new: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    as_json: Json = False,
) -> None:
    """The settings in which two recipes differ."""
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
    """The JSON Schema of a recipe, for editors."""
    from farthing.recipe import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))


def _line(change: Change) -> str:
    def shown(value: object) -> str:
        return "-" if value is None else json.dumps(value, ensure_ascii=False)

    return f"{change.path}: {shown(change.old)} -> {shown(change.new)}"
