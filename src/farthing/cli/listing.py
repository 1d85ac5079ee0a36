"""The list of runs, from their files alone; no torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from farthing.errors import FarthingError
from farthing.events import Evaluated, Step, read_events
from farthing.rundir import RunDir, list_runs, read_result
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
    except (OSError, ValueError, KeyError, TypeError, FarthingError) as error:
        # One damaged run must not hide the others.
        return {"run": run.name, "status": "damaged", "error": str(error)}


def show(folder: Path, found: list[dict[str, Any]], *, quiet: bool) -> None:
    """Print the rows as a table, or just the names."""
    if quiet:
        for row in found:
            print(row["run"])
        return
    if not found:
        print(f"no runs in {folder} yet; start one with: farthing train")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "status"):
        table.add_column(name)
    for name in ("bits/byte", "parameters", "steps", "tokens", "minutes", "money"):
        table.add_column(name, justify="right")
    for row in found:
        if row["status"] == "damaged":
            table.add_row(row["run"], "damaged", row["error"])
            continue
        bits = row["bits_per_byte"]
        table.add_row(
            row["run"],
            row["status"],
            "" if bits is None else f"{bits:.4f}",
            f"{row['parameters']:,}",
            f"{row['steps']:,}/{row['steps_planned'] or 0:,}",
            f"{row['tokens']:,}",
            f"{row['seconds'] / 60:.1f}",
            f"{row['money']:.2f}" if row["money"] else "",
        )
    Console(soft_wrap=True).print(table)
