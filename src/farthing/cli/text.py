"""data get; tokenizer train, inspect, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from farthing.cli.options import Json, Quiet, Words, say_json, split_words


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    data = typer.Typer(help="Fetch known corpora: get.", no_args_is_help=True, rich_markup_mode=None)
    data.callback()(_data)
    data.command()(get)
    app.add_typer(data, name="data")
    tokenizer = typer.Typer(help="Train, inspect and compare tokenizers.", no_args_is_help=True, rich_markup_mode=None)
    tokenizer.command("train")(train)
    tokenizer.command()(inspect)
    tokenizer.command()(compare)
    app.add_typer(tokenizer, name="tokenizer")


def _data() -> None:
    """Fetch known corpora."""


def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="hn-titles, fineweb-10b, fineweb-edu, tinystories, ...")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where the files go.")] = Path(),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fetch a known corpus through the hub: resumable and verified."""
    from farthing.data.known import fetch
    from farthing.sinks.reading import Reading

    with Reading(quiet=quiet or as_json) as reading:
        path = fetch(name, to, report=reading)
    if as_json:
        say_json({"name": name, "path": str(path)})
    else:
        typer.echo(f"{name} is at {path}")


def train(
    words: Words = None,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Where tokenizer.json goes.")] = Path(
        "tokenizer.json"
    ),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train the tokenizer of a recipe on its training documents, and write it to a file."""
    from farthing.cli import tokenizers
    from farthing.storage import write_text

    recipe, overrides = split_words(words)
    built, report = tokenizers.of_recipe(recipe, overrides, quiet=quiet or as_json)
    write_text(to, built.to_json())
    if as_json:
        say_json({**report, "path": str(to)})
    else:
        tokenizers.show([(recipe, report)])
        typer.echo(f"written to {to}")


def inspect(
    words: Words = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say how well a recipe's tokenizer fits its validation text: bytes per token, coverage, lengths, cost."""
    from farthing.cli import tokenizers

    recipe, overrides = split_words(words)
    _, report = tokenizers.of_recipe(recipe, overrides, quiet=quiet or as_json)
    if as_json:
        say_json(report)
    else:
        tokenizers.show_one(recipe, report)


def compare(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="The recipe whose text is used.")],
    candidates: Annotated[
        list[str],
        typer.Argument(metavar="KIND[:SIZE]...", help="Tokenizers to compare, such as bpe:8192 unigram:8192 byte."),
    ],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare tokenizers on the validation text of one recipe."""
    from farthing.cli import tokenizers

    found = []
    for candidate in candidates:
        overrides = tokenizers.overrides_of(candidate)
        found.append((candidate, tokenizers.of_recipe(recipe, overrides, quiet=quiet or as_json)[1]))
    if as_json:
        say_json([{"tokenizer": name, **report} for name, report in found])
    else:
        tokenizers.show(found)
