"""data get, export; tokenizer train, inspect, compare."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from farthing.cli.options import Json, Quiet, Words, add, group, say_json, split_words


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    data = group(app, name="data", about="Fetch known corpora, write token files: get, export.")
    add(data, get, name="get", short="Fetch a known corpus.", example="farthing data get tinystories --to corpora")
    add(
        data,
        export,
        name="export",
        short="Write a recipe's text as llm.c's token shards.",
        example="farthing data export default tokenizer.kind=gpt2 --to shards",
    )
    tokenizer = group(app, name="tokenizer", about="Train, inspect and compare tokenizers.")
    add(
        tokenizer,
        train,
        name="train",
        short="Train a recipe's tokenizer and keep it.",
        example="farthing tokenizer train default tokenizer.vocab_size=2048 --to small.json",
    )
    add(
        tokenizer,
        inspect,
        name="inspect",
        short="Say how well a recipe's tokenizer fits its text.",
        example="farthing tokenizer inspect default data.kind=text data.path=book.txt",
    )
    add(
        tokenizer,
        compare,
        name="compare",
        short="Compare tokenizers on the text of a recipe.",
        example="farthing tokenizer compare default bpe:1024 bpe:4096 unigram:4096 byte",
    )


def get(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="hn-titles, fineweb-10b, fineweb-edu, tinystories, wikitext-103 or tinyshakespeare."
        ),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where the files go.")] = Path(),
    shards: Annotated[
        int | None, typer.Option("--shards", metavar="N", help="At most N training files, of corpora that have many.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fetch a known corpus from the Hugging Face hub, verified. Run it again to go on where it broke off."""
    from farthing.data.known import KNOWN, fetch
    from farthing.sinks.reading import Reading

    with Reading(quiet=quiet) as reading:
        path = fetch(name, to, report=reading, shards=shards)
    if as_json:
        say_json({"name": name, "path": str(path)})
    elif not quiet:
        typer.echo(f"{name} is in {path}")
        typer.echo(f"train on it with: farthing train default {KNOWN[name].recipe.format(path=shlex.quote(str(path)))}")


def export(
    words: Words = None,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to make; it must not exist.")] = Path(
        "shards"
    ),
    shard_tokens: Annotated[
        int, typer.Option("--shard-tokens", metavar="N", help="Tokens of a file at most.")
    ] = 100_000_000,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the training, validation and test text of a recipe as shards of 16-bit tokens, which llm.c trains on.

    The tokenizer.json lies beside them; Farthing reads such shards as data.kind=bin.
    """
    recipe, overrides = split_words(words)
    from farthing.api.token_files import export_tokens

    done = export_tokens(recipe, overrides, to=to, shard_tokens=shard_tokens, quiet=quiet)
    if as_json:
        answer = {
            "folder": str(done.folder),
            "tokens": done.tokens,
            "shards": done.shards,
            "vocab_size": done.vocab_size,
        }
        say_json(answer)
    elif not quiet:
        for part, tokens in done.tokens.items():
            files = done.shards[part]
            typer.echo(f"{part}: {tokens:,} tokens in {files} file{'' if files == 1 else 's'}")
        where = shlex.quote(str(done.folder))
        typer.echo(
            f"train on them with: farthing train default data.kind=bin 'data.path={where}/train_*.bin' "
            f"'data.validation={where}/val_*.bin' tokenizer.kind=file tokenizer.path={where}/tokenizer.json"
        )


def train(
    words: Words = None,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Where it goes.")] = Path("tokenizer.json"),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train the tokenizer of a recipe on its training documents, and write it to a file."""
    from farthing.cli import tokenizers
    from farthing.storage import write_text

    recipe, overrides = split_words(words)
    tokenizers.check_target(to)
    built, report = tokenizers.of_recipe(recipe, overrides, quiet=quiet)
    write_text(to, built.to_json())
    if as_json:
        say_json({**report.as_dict(), "path": str(to)})
    elif not quiet:
        tokenizers.show({recipe: report})
        typer.echo(f"written to {to}; train with it by adding: {tokenizers.usage(to)}")


def inspect(
    words: Words = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say how well a recipe's tokenizer fits its validation text: bytes per token, coverage, lengths, cost."""
    from farthing.cli import tokenizers

    recipe, overrides = split_words(words)
    _, report = tokenizers.of_recipe(recipe, overrides, quiet=quiet)
    if as_json:
        say_json(report.as_dict())
    else:
        tokenizers.show_one(recipe, report)


def compare(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="The recipe whose text and model are used.")],
    candidates: Annotated[
        list[str],
        typer.Argument(
            metavar="TOKENIZER...", help="bpe:SIZE, unigram:SIZE, byte, gpt2, or file:PATH of a tokenizer.json."
        ),
    ],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare tokenizers on the validation text of a recipe: how tightly they pack it, and what they cost."""
    from farthing.cli import tokenizers
    from farthing.data.inspect import compare as compare_reports

    overrides = {candidate: tokenizers.overrides_of(candidate) for candidate in candidates}
    found = {name: tokenizers.of_recipe(recipe, changes, quiet=quiet)[1] for name, changes in overrides.items()}
    rows = compare_reports(found)
    if as_json:
        say_json(rows)
    else:
        tokenizers.show(found)
