"""doctor: what this machine can do."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import typer

from farthing.cli.options import Json, Runs, say_json


def register(app: typer.Typer) -> None:
    """Add this verb to the command."""
    app.command()(doctor)


def doctor(
    runs: Runs = "runs",  # type: ignore[assignment]
    fast: Annotated[bool, typer.Option("--fast", help="Leave out what takes more than a second.")] = False,
    as_json: Json = False,
) -> None:
    """Say what this machine can do, and what `auto` would choose here and why."""
    from farthing.cli import tables
    from farthing.runtime.doctor import examine

    found: Any = examine(quick=fast)
    table = asdict(found) if is_dataclass(found) and not isinstance(found, type) else found
    if as_json:
        say_json(table)
    else:
        tables.print_doctor(table)
