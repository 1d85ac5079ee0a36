"""eval, sample, runs: looking at what has been trained."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from farthing.cli.options import Checkpoint, Device, Json, Quiet, RunName, Runs, say_json

RUNS = "runs"


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    app.command("eval")(evaluate)
    app.command()(sample)
    app.command("runs")(list_all)


def evaluate(
    run: RunName,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[evaluate.PATH=VALUE]...", help="Settings of [evaluate] to change.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="FILE", help="Score this text instead.")] = None,
    split: Annotated[
        str, typer.Option("--split", help="Which of the run's parts: validation, test, train.")
    ] = "validation",
    checkpoint: Checkpoint = "last",
    runs: Runs = RUNS,  # type: ignore[assignment]
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score a text with a trained model: every token once, in bits per byte of the original text."""
    from farthing.rundir import find_run

    find_run(run, runs)
    from farthing import api
    from farthing.cli import tables

    opened = api.open_run(run, runs=runs)
    found = opened.evaluate(
        data, overrides or [], split=split, checkpoint=checkpoint, device=device, quiet=quiet or as_json
    )
    if as_json:
        say_json(found)
    else:
        tables.print_yardsticks(opened.name, data or split, found)


def sample(
    run: RunName,
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT]", help="Where the text starts.")] = "",
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, max=1_000_000, help="Tokens to write.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0 takes the likeliest token.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Draw from this many likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Draw from the likeliest that make up this share.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the draw; by default the run's.")] = None,
    checkpoint: Checkpoint = "last",
    runs: Runs = RUNS,  # type: ignore[assignment]
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Let a trained model write, as it thinks of it."""
    from farthing.rundir import find_run

    find_run(run, runs)
    from farthing import api
    from farthing.cli.tables import clean

    opened = api.open_run(run, runs=runs)
    settings = {"tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    if seed is not None:
        settings["seed"] = seed
    pieces = []
    if not as_json:
        sys.stdout.write(clean(prompt))
    for piece in opened.stream(prompt, checkpoint=checkpoint, device=device, **settings):
        pieces.append(piece)
        if not as_json:
            sys.stdout.write(clean(piece))
            sys.stdout.flush()
    text = "".join(pieces)
    if as_json:
        say_json({"prompt": prompt, "text": text, "tokens": len(opened.tokenizer.encode(text))})
    else:
        sys.stdout.write("\n")


def list_all(
    runs: Runs = RUNS,  # type: ignore[assignment]
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """List the runs of a folder: status, score and cost."""
    from farthing.cli import listing

    rows = listing.rows(runs)
    if as_json:
        say_json(rows)
    else:
        listing.show(runs, rows, quiet=quiet)
