"""doctor: what this machine can do."""

from __future__ import annotations

from typing import Annotated

import typer

from farthing.cli.options import RUNS, Device, Json, Quiet, Runs, add, say_json


def register(app: typer.Typer) -> None:
    """Add this verb to the command."""
    add(
        app,
        doctor,
        name="doctor",
        short="Say what this machine can do, and what auto chooses.",
        example="farthing doctor --fast",
    )


def doctor(
    fast: Annotated[bool, typer.Option("--fast", help="Leave out what takes more than a few seconds.")] = False,
    runs: Runs = RUNS,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what this machine can do, and what `auto` would choose here and why."""
    from farthing.cli import tables
    from farthing.runtime.doctor import examine
    from farthing.sinks.reading import Reading

    with Reading(quiet=quiet) as reading:
        found = examine(quick=fast, device_name=device, runs=runs, report=lambda what: reading(what, 0, 0))
    if as_json:
        say_json(found.as_dict())
    else:
        tables.print_doctor(found.as_dict())
