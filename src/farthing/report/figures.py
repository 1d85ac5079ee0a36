"""Figures as SVG: by Altair through vl-convert, without a browser and without a network; legible on white and on black.

Text and axes are mid-grey on nothing, so that a figure can stand alone; where it stands in a page, the page's style sheet
gives it the page's own ink.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from farthing.report.course import Floats
from farthing.sinks.legible import legible

if TYPE_CHECKING:
    import altair

FONT = "Helvetica, Arial, sans-serif"
"""what vl-convert measures text by is as wide as these"""
INK = "#7a7a7a"
GRID = "#c8c8c8"
PALETTE = ("#3b82c4", "#e07b1a", "#2f9e6e", "#c0559b", "#8a6fd1", "#b8942a", "#d1495b", "#4aa8b5")
"""read on white and on black, and most of them apart by those who do not see red and green"""
REST = "#9a9a9a"
"""the colour of what has none of its own"""
NAME = 36
"""letters of a name in a figure"""

DASHES = ((1, 0), (6, 3))
"""unbroken for as many names as there are colours, and then dashed in the same colours"""
NAMED = 12
"""names that have a line of their own"""

PREFIXED = "datum.value === 0 ? '0' : format(datum.value, '~s')"
"""how an axis writes large numbers: 50k, 1.5M"""
POWERS = "datum.value === 0 ? '0' : replace(format(datum.value, '~e'), '+', '')"
"""how an axis writes numbers beyond all prefixes that people know: 3e13"""

Row = dict[str, Any]

_UNPLEASANT = re.compile(r"<(script|foreignObject|image|a|iframe|use)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Figure:
    """A picture with what it shows.

    Args:
        name: a file name without its ending.
        svg: the picture.
        caption: a sentence or two.
    """

    name: str
    svg: str
    caption: str


def short(name: str) -> str:
    """A name as figures show it: legible, in one line, the middle left out where it is long."""
    text = " ".join(legible(name).split())
    return text if len(text) <= NAME else f"{text[: NAME // 2 - 1]}…{text[-(NAME // 2 - 1) :]}"


def distinct(names: Sequence[str]) -> dict[str, str]:
    """`short` for each name; those that would look alike are numbered."""
    found: dict[str, str] = {}
    for name in names:
        shown, number = short(name), 2
        while shown in found.values():
            shown, number = f"{short(name)} ({number})", number + 1
        found[name] = shown
    return found


@dataclass(frozen=True)
class Line:
    """How the line of a name is drawn."""

    colour: str
    dash: tuple[int, int]


def lines_of(names: Sequence[str]) -> dict[str, Line]:
    """A line for each of the first few names, told apart by colour and dash, and one for all others."""
    own = [Line(colour, dash) for dash in DASHES for colour in PALETTE][:NAMED]
    return {name: own[at] if at < NAMED else Line(REST, DASHES[0]) for at, name in enumerate(names)}


def points(**columns: Any) -> list[Row]:
    """Rows of a chart from columns; numbers are rounded to what can be seen, and what is not finite becomes a gap."""
    length = max(len(column) for column in columns.values() if not isinstance(column, str))
    filled = {key: [column] * length if isinstance(column, str) else column for key, column in columns.items()}
    return [{key: _cell(column[at]) for key, column in filled.items()} for at in range(length)]


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return float(f"{float(value):.6g}") if np.isfinite(value) else None


def window(values: Sequence[Floats], *, skip: float = 0.1) -> tuple[float, float] | None:
    """Where a y axis should begin and end, so that the end of curves is seen and not only their fall.

    Args:
        values: curves, each in the order of its course; what is not finite is passed over.
        skip: the share of a course at its beginning that need not be in the picture.
    """
    whole = [curve[np.isfinite(curve)] for curve in values]
    whole = [curve for curve in whole if len(curve)]
    if not whole:
        return None
    low = min(float(curve.min()) for curve in whole)
    tops = sorted(float(_without_spikes(curve[int(len(curve) * skip) :]).max()) for curve in whole)
    # A curve that ran away must not press all others flat; three times what the middle one falls is room enough.
    middle = tops[(len(tops) - 1) // 2]
    high = max((top for top in tops if top - low <= 3 * (middle - low)), default=middle)
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _without_spikes(curve: Floats) -> Floats:
    """Each point but the first and the last as the middle one of itself and its neighbours."""
    if len(curve) < 3:
        return curve
    middle = np.median(np.stack([curve[:-2], curve[1:-1], curve[2:]]), axis=0)
    return np.concatenate([curve[:1], middle, curve[-1:]])


def around(values: Sequence[float]) -> tuple[float, float]:
    """The values with room on both sides, without those that lie far above the middle of them."""
    ordered = sorted(values)
    low, middle = ordered[0], ordered[len(ordered) // 2]
    near = [value for value in ordered if value - low <= 6 * (middle - low)] or ordered[:1]
    pad = 0.15 * (near[-1] - low) or 0.02 * abs(low) or 1.0
    return low - pad, near[-1] + pad


class Canvas:
    """A figure in the making: its rows are kept apart from its charts, since Altair checks and copies what it is given."""

    def __init__(self) -> None:
        self._datasets: dict[str, list[Row]] = {}

    def chart(self, rows: Sequence[Row]) -> altair.Chart:
        """A chart of these rows."""
        import altair

        name = f"rows-{len(self._datasets)}"
        self._datasets[name] = list(rows)
        return altair.Chart(altair.NamedData(name=name))

    def render(self, chart: altair.TopLevelMixin, name: str, caption: str) -> Figure:
        """The chart as a figure."""
        import altair
        import vl_convert

        spec = chart.to_dict(validate=False)
        spec["config"] = _THEME
        spec["datasets"] = self._datasets
        version = altair.SCHEMA_VERSION.rpartition(".")[0]
        svg = vl_convert.vegalite_to_svg(spec, vl_version=version, allowed_base_urls=[])
        return Figure(name, own_ids(svg, name), caption)


def own_ids(svg: str, name: str) -> str:
    """The picture with ids that no other picture on the page has, and nothing in it but a picture.

    Raises:
        ValueError: there is more in it.
    """
    if _UNPLEASANT.search(svg):
        raise ValueError(f"figure {name} holds more than a picture")
    svg = re.sub(r'\bid="([\w-]+)"', rf'id="{name}-\1"', svg)
    return re.sub(r"url\(#([\w-]+)\)", rf"url(#{name}-\1)", svg)


_THEME: dict[str, Any] = {
    "aria": False,
    "background": "transparent",
    "font": FONT,
    "padding": 8,
    "view": {"stroke": "transparent", "continuousWidth": 340, "continuousHeight": 240},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "domainColor": INK,
        "tickColor": INK,
        "gridColor": GRID,
        "gridOpacity": 0.45,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelLimit": 260,
        "tickCount": 5,
    },
    "legend": {
        "labelColor": INK,
        "titleColor": INK,
        "labelFontSize": 12,
        "labelLimit": 300,
        "orient": "top",
        "columns": 4,
        "title": None,
        "columnPadding": 30,
        "symbolStrokeWidth": 3,
        "symbolSize": 160,
        "symbolOpacity": 1,
    },
    "title": {"color": INK, "fontSize": 12, "fontWeight": "bold", "anchor": "start"},
    "header": {"labelColor": INK, "titleColor": INK},
    "concat": {"spacing": 28},
}
