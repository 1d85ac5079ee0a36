"""Tasks on the terminal: scores with their intervals, and in words whether they say anything."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from farthing.cli.listing import write
from farthing.evals.chance import Reading
from farthing.evals.tasks import Scored
from farthing.sinks.legible import duration, legible

_COLUMNS = ("task", "measured by", "score", "±", "95 % interval", "chance", "verdict")
_TO_THE_LEFT = ("task", "measured by", "verdict")
_STYLES = {"above chance": "green", "below chance": "red", "at chance": "yellow"}


def print_tasks(title: str, found: Sequence[Scored]) -> None:
    """What tasks came to: a row for each way of measuring, the usual one first, and what there is to know of them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS:
        table.add_column(
            name, justify="left" if name in _TO_THE_LEFT else "right", no_wrap=name != "task", overflow="fold"
        )
    for one in found:
        for number, (metric, reading) in enumerate(one.readings.items()):
            share = "accuracy" in metric
            name = one.result["task"] if number == 0 else ""
            verdict = reading.verdict or ("" if reading.value is not None else "not finite")
            low, high = _told(reading.low, share), _told(reading.high, share)
            interval = f"{low.removesuffix(' %')} to {high}" if reading.low is not None else ""
            cells = (
                _told(reading.value, share),
                _told(reading.standard_error, share),
                interval,
                _told(reading.chance, share),
            )
            row = [name, metric.replace("_", " "), *cells]
            table.add_row(
                *map(_clean, row), Text(verdict, _STYLES.get(verdict, "")), style="" if number == 0 else "dim"
            )
    write(Text(_clean(title), "bold"), table, *(Text(_clean(note), "dim") for one in found for note in _notes(one)))
    if any(one.verdict == "at chance" for one in _first(found)):
        write(
            Text(
                "at chance: no more right answers than blind guessing gives; the model has not learnt this task",
                "yellow",
            )
        )


def _notes(one: Scored) -> list[str]:
    result = one.result
    what = "documents" if "tokens" in result else "questions"
    part = f"all {result['of']:,}" if result["items"] == result["of"] else f"{result['items']:,} of {result['of']:,}"
    shots = {0: "", 1: ", each after 1 example"}.get(result["shots"], f", each after {result['shots']} examples")
    notes = [f"{result['task']}: {part} {what}{shots}, {result['precision']}, in {duration(result['seconds'])}"]
    if result.get("cut"):
        notes.append(
            f"{result['task']}: {result['cut']:,} questions are longer than the {result['context_length']:,} tokens this "
            "model reads, and lost their beginning"
        )
    return notes


def _first(found: Sequence[Scored]) -> list[Reading]:
    return [next(iter(one.readings.values())) for one in found]


def _told(value: float | None, share: bool) -> str:
    if value is None:
        return ""
    if share:
        return f"{value:.1%}".replace("%", " %")
    return f"{value:,.2f}" if value >= 10 else f"{value:.4f}"


def _clean(text: str) -> str:
    return legible(text, encoding=sys.stdout.encoding or "utf-8")
