"""Numbers and settings as a report writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from farthing.compare.statistics import Summary
from farthing.config import Change
from farthing.report.blocks import Cell, Tone
from farthing.sinks.legible import duration, money, quantity

NONE = "–"
"""what is not there"""
_LONGEST = 120
TONES: dict[str, Tone] = {
    "better": "good", "worse": "bad", "cannot tell": "flat", "kept": "good", "rolled back": "flat", "refused": "quiet",
    "needed": "good", "in the way": "bad",
}  # fmt: skip
"""how verdicts and outcomes look"""


def fixed(value: object, digits: int = 4) -> str:
    """A number with so many digits after the point; what is none is not there."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return NONE
    return f"{value:.{digits}f}" if math.isfinite(value) else "not finite"


def signed(value: float | None, digits: int = 4) -> str:
    """The same with its sign."""
    return NONE if value is None else f"{value:+.{digits}f}"


def interval(low: float | None, high: float | None, *, sign: bool = False) -> str:
    """Two ends."""
    if low is None or high is None:
        return NONE
    show = signed if sign else fixed
    return f"{show(low)} to {show(high)}"


def mean_with_interval(summary: Summary) -> str:
    """An arm's mean, with half its interval where there is one."""
    if summary.mean is None or summary.low is None or summary.high is None:
        return fixed(summary.mean)
    return f"{summary.mean:.4f} ± {(summary.high - summary.low) / 2:.4f}"


def setting(value: Any) -> str:
    """A setting as a recipe file would have it."""
    if value is None:
        return "none"
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        text = f"{value:g}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def changes(found: Sequence[Change], *, most: int = 12) -> Cell:
    """Settings that differ, a line each; what only came or went with another `kind` goes without saying."""
    kinds = tuple(one.path.removesuffix("kind") for one in found if one.path.endswith(".kind"))
    found = [one for one in found if not (one.path.startswith(kinds) and None in (one.old, one.new))]
    if not found:
        return Cell(NONE, "quiet")
    lines = [f"{one.path}: {setting(one.old)} → {setting(one.new)}" for one in found[:most]]
    if len(found) > most:
        lines.append(f"and {len(found) - most} more")
    return Cell("\n".join(lines), "code")


def verdict(word: str) -> Cell:
    """A verdict or an outcome."""
    return Cell(word, TONES.get(word, ""))


def spent(name: str, value: float | None) -> str:
    """Steps, tokens, epochs, FLOPs, seconds or money."""
    if value is None:
        return NONE
    if name == "seconds":
        return duration(value)
    if name == "money":
        return money(value)
    if name == "flops":
        return f"{value:.3g}".replace("e+", "e")
    return f"{value:.3g}" if name == "epochs" else quantity(value)


def share(value: float | None) -> str:
    """As a percentage."""
    return NONE if value is None else f"{value:.1%}"
