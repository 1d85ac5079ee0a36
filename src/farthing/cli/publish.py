"""export, publish-check: a trained model for others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farthing.cli.options import RUNS, Checkpoint, Json, Quiet, RunName, Runs, add, say_json

if TYPE_CHECKING:
    from farthing.export.checklist import Point

Format = Annotated[str, typer.Option("--format", metavar="NAME", help="huggingface, llmc (llm.c's .bin) or gguf.")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="NAME", help="Number format of the weights: fp32 or bf16.")]
License = Annotated[
    str | None, typer.Option("--license", metavar="NAME", help="Of the model, as the hub names it: mit, cc-by-4.0.")
]
DataLicense = Annotated[
    str | None, typer.Option("--data-license", metavar="TEXT", help="Of the training text, in words.")
]
Language = Annotated[
    list[str] | None, typer.Option("--language", metavar="CODE", help="Of the text: en, de; may be repeated.")
]
Watts = Annotated[float | None, typer.Option("--watts", metavar="W", help="What the machine drew while it trained.")]
Grams = Annotated[
    float | None, typer.Option("--grams-per-kwh", metavar="G", help="CO2 of a kilowatt-hour where it trained.")
]
Push = Annotated[
    str | None, typer.Option("--push", metavar="REPO", help="Also upload it to the Hugging Face hub: OWNER/NAME.")
]
Public = Annotated[bool, typer.Option("--public", help="With --push: everybody may see it.")]
Anyway = Annotated[bool, typer.Option("--anyway", help="With --push: also where publish-check finds fault.")]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    add(
        app,
        export,
        name="export",
        short="Write a trained model as a folder that others load.",
        example="farthing export default-1 my-model --license mit",
    )
    add(
        app,
        publish_check,
        name="publish-check",
        short="Look an exported model through before others see it.",
        example="farthing publish-check my-model --run default-1",
    )


def export(
    run: RunName,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make; it must not exist.")],
    format: Format = "huggingface",
    checkpoint: Checkpoint = "last",
    dtype: Dtype = "fp32",
    license: License = None,
    data_license: DataLicense = None,
    language: Language = None,
    watts: Watts = None,
    grams_per_kwh: Grams = None,
    push: Push = None,
    public: Public = False,
    anyway: Anyway = False,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a trained model as a folder that others load, with its tokenizer and a model card.

    The folder is loaded back and compared with the run before it gets its name; if it is not the same, there is none.
    """
    from farthing.rundir import find_run

    find_run(run, runs)
    from farthing.api.publish import export_run
    from farthing.export.card import Stated

    stated = Stated(
        license=license,
        data_license=data_license,
        language=language or (),
        watts=watts,
        grams_per_kwh=grams_per_kwh,
        repository=push,
    )
    done = export_run(
        run,
        folder,
        runs=runs,
        format=format,
        checkpoint=checkpoint,
        dtype=dtype,
        stated=stated,
        repository=push,
        public=public,
        anyway=anyway,
        quiet=quiet,
    )
    if as_json:
        say_json(_as_json(done))
    elif not quiet:
        _tell(done)


def publish_check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An exported model.")],
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="The run it came from: its score is taken again.")
    ] = None,
    push: Push = None,
    public: Public = False,
    anyway: Anyway = False,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Look an exported model through before others see it: licence, card, secrets, files, weights, scores.

    Exit code 0: every point was checked and passed, or the folder was uploaded; 2: some point was not.
    """
    from farthing.api import checking
    from farthing.export.checklist import passed
    from farthing.export.push import check_repository

    if push is not None:
        check_repository(push)
    points = checking.publish_check(folder, run=run, runs=runs, quiet=quiet)
    if not as_json:
        _tell_points(points, quiet=quiet)
    done = None
    if push is not None:
        done = checking.push_checked(folder, push, points, public=public, anyway=anyway, quiet=quiet)
        if not as_json and not quiet:
            typer.echo(f"{done.url} ({'public' if done.public else 'private'})")
    if as_json:
        table = {"folder": str(folder), "passed": passed(points), "points": [asdict(point) for point in points]}
        say_json({**table, "pushed": None if done is None else done.url})
    if done is None and not passed(points):
        raise typer.Exit(2)


def _tell_points(points: Sequence[Point], *, quiet: bool) -> None:
    from farthing.cli import tables

    for point in points:
        if not quiet or point.status == "fail":
            todo = f" -> {point.todo}" if point.todo else ""
            typer.echo(f"{point.status:<11}  {tables.clean(f'{point.name}: {point.told}{todo}')}")


def _as_json(done: Any) -> dict[str, Any]:
    table = {
        name: getattr(done, name)
        for name in ("run", "step", "form", "dtype", "parameters", "bytes", "remote_code", "proof")
    }
    return {
        "folder": str(done.folder),
        **table,
        "notes": list(done.notes),
        "pushed": None if done.pushed is None else done.pushed.url,
    }


def _tell(done: Any) -> None:
    from farthing.cli import tables
    from farthing.sinks.legible import quantity

    rows = [
        ("form", f"{done.form}, {done.dtype}, {done.bytes / 1e6:,.1f} MB"),
        ("model", f"step {done.step:,} of {done.run}, {quantity(done.parameters)} parameters"),
    ]
    if {"difference", "scale", "tokens", "texts"} <= done.proof.keys():
        proof = done.proof
        rows.append(
            (
                "proof",
                f"loaded back: logits of {proof['tokens']:,} tokens differ by {proof['difference']:.1e} at most "
                f"(the largest is {proof['scale']:.1f}), ids of {proof['texts']} texts by nothing",
            )
        )
    if done.pushed is not None:
        rows.append(("hub", f"{done.pushed.url} ({'public' if done.pushed.public else 'private'})"))
    tables.print_rows(str(done.folder), rows)
    tables.print_notes(done.notes)
