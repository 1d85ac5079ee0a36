"""import: models from elsewhere."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farthing.cli.options import RUNS, Json, Quiet, Runs, add, group, say_json

if TYPE_CHECKING:
    from farthing.api.importing import Imported

Name = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="The new run's name; none: the source's and a number.")
]
TextOf = Annotated[
    str | None,
    typer.Option("--text-of", metavar="RUN", help="Score it on this run's validation text, to compare the two."),
]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    importing = group(app, name="import", about="Take in models from elsewhere: huggingface, llmc.")
    add(
        importing,
        huggingface,
        name="huggingface",
        short="Take in a folder as transformers writes it.",
        example="farthing import huggingface models/gpt2 --name gpt2",
    )
    add(
        importing,
        llmc,
        name="llmc",
        short="Take in a model checkpoint of llm.c.",
        example="farthing import llmc gpt2_124M.bin --tokenizer gpt2_bpe",
    )


def huggingface(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder with config.json, *.safetensors and tokenizer.json.")
    ],
    text_of: TextOf = None,
    name: Name = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Take in a folder as transformers writes it, as a run: to score, to compare with, to train on from.

    None of its code is run and nothing is fetched. What this model cannot compute is refused, by the name of its key.
    """
    _check_name(name, runs)
    from farthing.api.importing import import_huggingface

    _tell(import_huggingface(folder, text_of=text_of, name=name, runs=runs), quiet=quiet, as_json=as_json)


def llmc(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model checkpoint, for example gpt2_124M.bin.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="PATH",
            help="Its tokenizer.json, or a folder with GPT-2's encoder.json and vocab.bpe; none: GPT-2's, from the hub.",
        ),
    ] = None,
    text_of: TextOf = None,
    name: Name = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Take in a model checkpoint of llm.c (version 3, fp32, or 5, bf16), as a run."""
    _check_name(name, runs)
    from farthing.api.importing import import_llmc

    _tell(import_llmc(file, tokenizer=tokenizer, text_of=text_of, name=name, runs=runs), quiet=quiet, as_json=as_json)


def _check_name(name: str | None, runs: Path) -> None:
    """Refuse a name before the seconds that importing torch takes."""
    from farthing.rundir import new_run_path

    new_run_path(runs, name, "run")


def _tell(done: Imported, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        answer = {"run": str(done.run.path), "kind": done.kind, "parameters": done.parameters, "notes": done.notes}
        say_json(answer)
    elif not quiet:
        from farthing.cli import tables

        run, bits = shlex.quote(str(done.run.path)), done.run.validation.get("bits_per_byte")
        rows = [("was", done.kind), ("parameters", f"{done.parameters:,}")]
        rows += [] if bits is None else [("bits per byte", f"{bits:.4f}")]
        rows += [
            ("score it", f"farthing eval {run} --data FILE"),
            ("let it write", f"farthing sample {run}"),
            (
                "train on",
                f"farthing train {run}/recipe.toml model.init.kind=run model.init.run={run} data.kind=text data.path=FILE",
            ),
        ]
        tables.print_rows(f"{done.run.path}: imported", rows)
        for note in done.notes:
            typer.echo(f"note: {tables.clean(note)}")
