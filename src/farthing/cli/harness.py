"""eval --harness: tasks of lm-evaluation-harness's own, on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from farthing.cli.options import say_json

if TYPE_CHECKING:
    from farthing.api import TrainedModel
    from farthing.evals.harness import HarnessScore


def _show_folder(asked: bool) -> None:
    if asked:
        from farthing.evals.harness import TASKS

        typer.echo(TASKS)
        raise typer.Exit


HarnessNames = Annotated[
    str | None,
    typer.Option(
        "--harness", metavar="NAME", help="Let lm-evaluation-harness ask its own tasks, such as hellaswag,piqa."
    ),
]
HarnessFolder = Annotated[
    bool,
    typer.Option(
        "--harness-tasks", callback=_show_folder, is_eager=True, help="Print the folder for lm_eval's --include_path."
    ),
]


def ask_harness(
    opened: TrainedModel,
    names: str,
    data: str | None,
    *,
    limit: int | None,
    shots: int | None,
    answers: Path | None,
    precision: Literal["fp32", "train"],
    quiet: bool,
    as_json: bool,
) -> None:
    """Ask, and print what came of it."""
    from farthing import api
    from farthing.evals.harness import harness_version
    from farthing.storage import write_text

    found = api.ask_harness(opened, names, data, limit=limit, shots=shots, precision=precision, quiet=quiet)
    if answers is not None:
        lines = [json.dumps(line, ensure_ascii=False) for one in found for line in one.answer_lines()]
        write_text(answers, "\n".join(lines) + "\n")
    version = harness_version()
    if as_json:
        tasks = [one.as_dict() for one in found]
        say_json(
            {"model": opened.name, "step": opened.step, "harness": version, "precision": precision, "tasks": tasks}
        )
    else:
        _show(f"{opened.title}, by lm-evaluation-harness {version}", found)


def _show(title: str, found: Sequence[HarnessScore]) -> None:
    from rich.table import Table
    from rich.text import Text

    from farthing.cli.listing import write

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "version", "shots", "questions", "metric", "value", "±"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right", no_wrap=True)
    for one in found:
        first = [one.task, one.version, str(one.shots), f"{one.questions:,}"]
        for number, (metric, value) in enumerate(one.metrics.items()):
            error = one.standard_errors.get(metric)
            numbers = [_number(value), "" if error is None else _number(error)]
            cells = [*(first if number == 0 else [""] * 4), metric, *numbers]
            table.add_row(*map(_clean, cells))
    write(Text(_clean(title), "bold"), table)


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.3e}"


def _clean(text: str) -> str:
    from farthing.sinks.legible import legible

    return legible(text, encoding=sys.stdout.encoding or "utf-8")
