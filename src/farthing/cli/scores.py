"""Tasks on the terminal: scores with their intervals, and in words whether they say anything."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from farthing.cli.listing import write
from farthing.evals.chance import Reading
from farthing.evals.tasks import TASKS, Scored
from farthing.sinks.legible import duration, legible, quantity

_COLUMNS = {"measured by": 22, "score": 13, "95 % interval": 15, "chance": 6, "verdict": 12}
"""with their least widths, so that the tables of several tasks stand below one another"""
_TO_THE_LEFT = ("measured by", "verdict")
_STYLES = {"above chance": "green", "below chance": "red", "at chance": "yellow"}


def print_tasks(title: str, found: Sequence[Scored]) -> None:
    """What tasks came to: a row for each way of measuring, the usual one first, and what there is to know of them."""
    write(Text(_clean(title), "bold"))
    for one in found:
        write(Text(""), Text(_clean(_heading(one)), "bold"), Text(_clean(_circumstances(one)), "dim"), _table(one))
    if any(next(iter(one.readings.values())).verdict == "at chance" for one in found):
        told = "at chance: no more right answers than guessing gives; the model has not learnt what this task asks"
        write(Text(""), Text(told, "yellow"))


def _heading(one: Scored) -> str:
    return f"{one.result['task']}: {TASKS[one.result['task']].about}"


def _circumstances(one: Scored) -> str:
    result = one.result
    what = "document" if "tokens" in result else "question"
    count = f"{result['of']:,} {what}{'' if result['of'] == 1 else 's'}"
    count = f"all {count}" if result["items"] == result["of"] else f"{result['items']:,} of {count}"
    shots = {0: "", 1: ", each after 1 example"}.get(result["shots"], f", each after {result['shots']} examples")
    told = f"{count}{shots}, in {result['precision']}, {duration(result['seconds'])}"
    if result.get("cut"):
        told += f"; {result['cut']:,} lost their beginning: this model reads {result['context_length']:,} tokens"
    return told


def _table(one: Scored) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, width in _COLUMNS.items():
        justify = "left" if name in _TO_THE_LEFT else "right"
        table.add_column(name, justify=justify, min_width=width, no_wrap=True)  # type: ignore[arg-type]
    for number, (metric, reading) in enumerate(one.readings.items()):
        verdict = reading.verdict or ("" if reading.value is not None else "not finite")
        cells = map(_clean, (metric.replace("_", " "), *_told(reading, share="accuracy" in metric)))
        table.add_row(*cells, Text(verdict, _STYLES.get(verdict, "")), style="" if number == 0 else "dim")
    return table


def _told(reading: Reading, *, share: bool) -> tuple[str, str, str]:
    """The score with its standard error, the interval and chance."""
    unit = " %" if share else ""
    value, error, low, high, chance = (
        _number(one, share)
        for one in (reading.value, reading.standard_error, reading.low, reading.high, reading.chance)
    )
    return (
        f"{value} ± {error}{unit}" if error else f"{value}{unit}" if value else "",
        f"{low} to {high}{unit}" if low else "",
        f"{chance}{unit}" if chance else "",
    )


def _number(value: float | None, share: bool) -> str:
    if value is None:
        return ""
    if share:
        return f"{100 * value:.1f}"
    return quantity(value) if value >= 1000 else f"{value:.4g}"


def _clean(text: str) -> str:
    return legible(text, encoding=sys.stdout.encoding or "utf-8")
