"""Comparisons, arms and noise floors on the terminal; no torch here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.text import Text

from farthing.cli.listing import print_columns, write
from farthing.compare.comparison import Compared, Comparison
from farthing.compare.noise import NoiseFloor
from farthing.sinks.legible import duration, legible, money, quantity

_UNIT = {"bits_per_byte": "bits/byte", "nats_per_character": "nats/char", "nats_per_token": "nats/token"}


def _clean(text: str) -> str:
    return legible(text, encoding=sys.stdout.encoding or "utf-8")


def _say(text: str, style: str = "") -> None:
    write(Text(_clean(text), style))


def show(found: Comparison, *, quiet: bool) -> None:
    """The table of arms, what differs, the verdicts, and what should be known."""
    verdicts = [one for one in found.arms if one.verdict is not None]
    if not quiet:
        _table(found)
        for one in found.arms[1:]:
            changed = ", ".join(f"{each.path} {_value(each.old)} -> {_value(each.new)}" for each in one.changes)
            if changed:
                _say(f"{one.arm.name} differs from {found.baseline.arm.name}: {changed}")
        if verdicts:
            _say(f"against {found.baseline.arm.name}, at a level of {found.level:g}:", "bold")
    for one in verdicts:
        assert one.verdict is not None
        _say(found.words(one), {"better": "green", "worse": "red"}.get(one.verdict.verdict, ""))
    if not quiet:
        _notes([*found.notes, *(f"left out: {one}" for one in found.left_out)])


def _table(found: Comparison) -> None:
    columns: dict[str, Callable[[Compared], str]] = {
        "run": lambda one: one.arm.name,
        "runs": lambda one: f"{one.summary.n}" + (f" +{one.summary.failed} failed" if one.summary.failed else ""),
        _UNIT.get(found.by, found.by): lambda one: _digits(one.summary.mean),
        "±": lambda one: _half(one.summary.mean, one.summary.high),
        "held out": lambda one: _digits(one.held_out.mean if one.held_out else None),
        "parameters": lambda one: quantity(one.arm.runs[0].parameters),
        "tokens": lambda one: _spent(one, "tokens", quantity),
        "FLOPs": lambda one: _spent(one, "flops", quantity),
        "training": lambda one: _spent(one, "seconds", duration),
        "money": lambda one: _spent(one, "money", money),
    }
    cells = {name: [shown(one) for one in found.arms] for name, shown in columns.items()}
    # What is the same for all needs no column, and what nobody has none at all.
    alike = {name for name in ("parameters", "tokens", "FLOPs") if len(found.arms) > 1 and len(set(cells[name])) == 1}
    empty = {name for name in ("held out", "money") if not set(cells[name]) - {"", "0.00"}}
    names = [name for name in columns if name not in alike | empty]
    print_columns(names, [[cells[name][row] for name in names] for row in range(len(found.arms))])
    if alike:
        _say("the same for all: " + ", ".join(f"{cells[name][0]} {name}" for name in columns if name in alike))


def show_arm(found: Comparison) -> None:
    """One arm: a line a run, then what they come to together."""
    arm, summary = found.baseline.arm, found.baseline.summary
    scores = arm.scores(found.by)
    rows = [
        (run.name, run.status, _digits(scores[run.seed]), duration(run.spent.get("seconds", 0.0))) for run in arm.runs
    ]
    print_columns(("run", "status", _UNIT.get(found.by, found.by), "training"), rows)
    told = f"{arm.name}: {_digits(summary.mean)}"
    if summary.sd is not None and summary.low is not None and summary.high is not None:
        told += (
            f" ± {_half(summary.mean, summary.high)} bits per byte (mean of {summary.n} seeds, "
            f"{1 - found.level:.0%} interval), standard deviation {summary.sd:.4f}"
        )
    else:
        told += " bits per byte, one seed: it shows no noise"
    _say(told, "bold")
    _notes(found.notes)


def show_noise(floor: NoiseFloor) -> None:
    """A noise floor, and what it leaves visible."""
    found = floor.as_dict()
    share = 1 - found["level"]
    _say(
        f"{floor.name}: runs that differ in the seed alone lie {found['sd']:.4f} bits per byte apart (standard deviation "
        f"over {found['n']} seeds; {share:.0%} interval {found['sd_low']:.4f} to {found['sd_high']:.4f}); "
        f"their mean is {found['mean']:.4f}"
    )
    rows = [(n, f"{least:.4f}") for n, least in found["smallest_difference"].items()]
    _say("the smallest difference between two arms that is told four times in five:")
    print_columns(("seeds an arm", "bits/byte"), rows)
    if found["failed"]:
        _notes([f"{found['failed']} more runs failed, and are not in this"])


def show_prediction(found: Mapping[str, Any]) -> None:
    """What finished runs let one expect of a plan."""
    fit, at = found["fit"], found["bits_per_byte"]
    share = f"{1 - found['level']:.0%} interval"
    _say(f"expected: {at['value']:.4f} bits per byte ({share} {at['low']:.4f} to {at['high']:.4f})", "bold")
    terms = [
        f"{fit['scale'][name]['value']:.4g} / {name}^{fit['exponent'][name]['value']:.3f}" for name in fit["scale"]
    ]
    law = " + ".join([f"{fit['floor']['value']:.4f}", *terms] if fit["floor"]["value"] else terms)
    _say(f"by the law {law}, fitted to {fit['runs']} recipes")
    if found["best_parameters"]:
        best, tokens = found["best_parameters"], found["best_tokens"]
        _say(
            f"best for these FLOPs: {quantity(best['value'])} parameters ({quantity(best['low'])} to "
            f"{quantity(best['high'])}) on {quantity(tokens['value'])} tokens"
        )
    ten = fit["ten_times"]
    low, high = ten["bits_per_byte"]["low"], ten["bits_per_byte"]["high"]
    size = "" if ten["parameters"] is None else f", with {quantity(ten['parameters']['value'])} parameters"
    _say(
        f"ten times the largest run ({quantity(ten['flops'])} FLOPs) would buy "
        f"{ten['bits_per_byte']['value']:.4f} ({low:.4f} to {high:.4f}){size}"
    )
    _notes(found["notes"])


def _notes(notes: Sequence[str]) -> None:
    for note in notes:
        _say(f"note: {note}", "yellow")


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _half(mean: float | None, high: float | None) -> str:
    return "" if mean is None or high is None else f"{high - mean:.4f}"


def _spent(one: Compared, name: str, shown: Callable[[float], str]) -> str:
    spent = one.arm.spent()
    return shown(spent[name]) if name in spent else ""


def _value(value: object) -> str:
    return "(not set)" if value is None else str(value)
