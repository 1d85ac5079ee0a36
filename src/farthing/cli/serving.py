"""serve, chat: a trained model to try."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from farthing.cli.options import RUNS, Checkpoint, Device, Json, Quiet, Runs, Temperature, TopK, TopP, add, say_json

if TYPE_CHECKING:
    from farthing.serving.server import Listener

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A run folder, the name of one in the --runs folder, or an exported folder."),
]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    add(
        app,
        chat,
        name="chat",
        short="Write a text in turns with a trained model.",
        example="farthing chat default-1 --temperature 0.7",
    )
    add(
        app,
        serve,
        name="serve",
        short="Serve a trained model as OpenAI's completions are.",
        example="farthing serve default-1 --port 8000",
    )


def chat(
    model: Model,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", help="How many tokens to write at most, each time.")
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Of the first text; each one after it takes the next.")
    ] = None,
    checkpoint: Checkpoint = "last",
    runs: Runs = RUNS,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a text in turns with a trained model: it goes on with what you type. With --json, a line for each text."""
    from farthing import api
    from farthing.api.trained import with_drawing
    from farthing.cli.terminal import Terminal
    from farthing.serving.chat import Chat

    opened = api.open_model(model, runs=runs, checkpoint=checkpoint, device=device)
    recipe = with_drawing(
        opened.recipe, {"tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    )
    terminal = Terminal(quiet=quiet, as_json=as_json)
    terminal.converse(
        Chat(
            opened.model,
            opened.tokenizer,
            precision=opened.precision,
            drawing=recipe.sample,
            seed=recipe.seed,
            write=terminal.write,
            note=terminal.note,
        ),
        name=opened.name,
    )


def serve(
    model: Model,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; anything but this machine needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes any free one.")] = 8000,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="The longest text that a client may ask for.")
    ] = 2048,
    concurrency: Annotated[
        int, typer.Option("--concurrency", metavar="N", min=1, max=64, help="Requests worked on at a time.")
    ] = 1,
    queue: Annotated[
        int, typer.Option("--queue", metavar="N", min=0, help="Requests that may wait behind those; more get 429.")
    ] = 16,
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long a client may take to send a request."),
    ] = 10.0,
    checkpoint: Checkpoint = "last",
    runs: Runs = RUNS,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Serve a trained model over HTTP, as OpenAI's /v1/completions is.

    Other addresses than this machine's own need a token: FARTHING_TOKEN from the environment, or a new one, which is
    printed once. With --json, a line that says where it listens.
    """
    from farthing.errors import need

    need("fastapi", extra="web", why="farthing serve")
    need("uvicorn", extra="web", why="farthing serve")
    from farthing.rundir import find_model

    find_model(model, runs)
    from farthing import api
    from farthing.serving.engine import Engine
    from farthing.serving.server import Limits, Listener, serve

    listener = Listener(host, port)
    opened = api.open_model(model, runs=runs, checkpoint=checkpoint, device=device)
    engine = Engine(opened.model, opened.tokenizer, precision=opened.precision, max_tokens=max_tokens)
    _announce(listener, opened.name, quiet=quiet)
    if as_json:
        say_json({"url": listener.url, "model": opened.name, "context_length": opened.context_length})
    limits = Limits(concurrency=concurrency, waiting=queue, seconds=timeout)
    with suppress(KeyboardInterrupt):  # Ctrl-C is how a server is meant to end
        serve(engine, name=opened.name, listener=listener, limits=limits, log=_silent if quiet else _tell)


def _announce(listener: Listener, name: str, *, quiet: bool) -> None:
    if not quiet:
        _tell(f"serving {name} at {listener.url} (Ctrl-C ends)")
    if not listener.loopback:
        red, plain = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
        _tell(f"{red}warning: everyone on the network can reach this address, and nothing is encrypted{plain}")
    if listener.made_token:
        _tell(f"token: {listener.token} (printed this once; clients send it as their OPENAI_API_KEY)")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    pass
