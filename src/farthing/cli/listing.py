"""The list of runs, from their files alone; no torch here."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.table import Table

from farthing.errors import FarthingError
from farthing.events import Evaluated, Step, read_events
from farthing.rundir import RunDir, list_runs, read_result
from farthing.sinks.legible import duration, legible, money
from farthing.sinks.summary import terminal
from farthing.storage import read_json


def rows(folder: Path) -> list[dict[str, Any]]:
    """One row a run: name, status, bits per byte, parameters, and what it has spent."""
    return [_row(run) for run in list_runs(folder)]


def _row(run: RunDir) -> dict[str, Any]:
    try:
        result = read_result(run)
        validation, spent = result.get("validation", {}), result.get("spent", {})
        if not result:
            for event in read_events(run.events):
                if event["kind"] == Step.kind:
                    spent = event["spent"]
                elif event["kind"] == Evaluated.kind:
                    validation = event["validation"]
        plan = read_json(run.plan)
        return {
            "run": run.name,
            "status": run.status(),
            "bits_per_byte": validation.get("bits_per_byte"),
            "parameters": plan["parameters"],
            "steps": spent.get("steps", 0),
            "steps_planned": plan["steps"],
            "tokens": spent.get("tokens", 0),
            "seconds": spent.get("seconds", 0.0),
            "money": spent.get("money", 0.0),
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, FarthingError) as error:
        # One damaged run must not hide the others.
        return {"run": run.name, "status": "damaged", "error": _reason(error)}


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{Path(error.filename or '?').name}: {error.strerror}"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def show(folder: Path, found: list[dict[str, Any]], *, quiet: bool) -> None:
    """Print the rows as a table, or just the names."""
    if quiet:
        for row in found:
            print(_clean(row["run"]))
        return
    if not found:
        print(f"no runs in {_clean(str(folder))} yet; start one with: farthing train")
        return
    sound = [row for row in found if row["status"] != "damaged"]
    names = ["run", "status", "bits/byte", "parameters", "steps", "tokens", "training"]
    paid = any(row["money"] for row in sound)
    if sound:
        print_columns([*names, "money"] if paid else names, (_cells(row, paid) for row in sound))
    for row in found:
        if row["status"] == "damaged":
            print(f"{_clean(row['run'])} is damaged: {_clean(row['error'])}")


def _cells(row: dict[str, Any], paid: bool) -> list[str]:
    bits, done, planned = row["bits_per_byte"], row["steps"], row["steps_planned"]
    cells = [
        row["run"],
        row["status"],
        "" if bits is None else f"{bits:.4f}",
        f"{row['parameters']:,}",
        f"{done:,}" if done == planned or not planned or row["status"] == "finished" else f"{done:,}/{planned:,}",
        f"{row['tokens']:,}",
        duration(row["seconds"]),
    ]
    return [*cells, money(row["money"])] if paid else cells


def print_columns(names: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """A table on standard output: words to the left, numbers to the right; narrow screens wrap the first column."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [[_clean(cell) for cell in line] for line in lines]
    for index, name in enumerate(names):
        table.add_column(
            name,
            justify="left" if name in ("run", "status", "tokenizer") else "right",
            overflow="fold",
            no_wrap=index > 0,
            # However narrow the screen, enough of a name to tell it by.
            min_width=min(20, max(cell_len(line[0]) for line in shown)) if index == 0 else None,
        )
    for line in shown:
        table.add_row(*line)
    write(table)


def write(*renderables: Any) -> None:
    """Print on standard output, in colour where it is a terminal, without spaces at the ends of lines."""
    screen = terminal(sys.stdout)
    with screen.capture() as captured:
        for one in renderables:
            screen.print(one)
    sys.stdout.write("\n".join(line.rstrip(" ") for line in captured.get().split("\n")))
    sys.stdout.flush()


def _clean(text: str) -> str:
    return legible(text, encoding=sys.stdout.encoding or "utf-8")
