"""sample, runs: looking at what has been trained."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from farthing.cli.options import (
    RUNS,
    Checkpoint,
    Device,
    Json,
    ModelName,
    Quiet,
    Runs,
    Temperature,
    Tokens,
    TopK,
    TopP,
    add,
    say_json,
)


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    add(
        app,
        sample,
        name="sample",
        short="Let a trained model write.",
        example='farthing sample default-1 "def main(" --tokens 100 --temperature 0.7',
    )
    add(
        app,
        list_all,
        name="runs",
        short="List runs: status, score and cost.",
        example="farthing runs --runs /data/runs",
    )


def sample(
    run: ModelName,
    prompt: Annotated[
        str, typer.Argument(metavar="[PROMPT]", help="Where the text starts; none: at the start of a document.")
    ] = "",
    tokens: Tokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="The same seed writes the same text; none: the run's.")
    ] = None,
    checkpoint: Checkpoint = "last",
    runs: Runs = RUNS,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Let a trained model write, as it thinks of it. What is not given is as in the run's recipe, [sample]."""
    from farthing.rundir import find_model

    find_model(run, runs)
    from farthing import api
    from farthing.cli.tables import clean

    opened = api.open_model(run, runs=runs, checkpoint=checkpoint, device=device)
    written = opened.stream(prompt, seed=seed, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    if as_json:
        text = "".join(written)
        say_json({"prompt": prompt, "text": text, "tokens": written.tokens})
        return
    sys.stdout.write(clean(prompt))
    for piece in written:
        sys.stdout.write(clean(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")


def list_all(
    runs: Runs = RUNS,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Names only, one a line.")] = False,
    as_json: Json = False,
) -> None:
    """List the runs of a folder, the oldest first: status, score and cost."""
    from farthing.cli import listing

    rows = listing.rows(runs)
    if as_json:
        say_json(rows)
    else:
        listing.show(runs, rows, quiet=quiet)
