"""Figures of a search, a climb and a tokenizer, from what their files say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from farthing.report.figures import INK, PALETTE, REST, Canvas, Figure, Row, points, short

_STATES = {"complete": PALETTE[0], "pruned": PALETTE[5], "failed": PALETTE[6]}
_SLICES = 12
_FEW = 6
_WIDEST = 10


def history_figure(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Every trial's score in order, with the best so far; what was pruned or failed stands on the frame's edge."""
    import altair as alt

    canvas = Canvas()
    scored = [one for one in history if one["score"] is not None and one["state"] == "complete"]
    if not scored:
        return None
    rows: list[Row] = [
        {"number": at + 1, "score": one["score"], "best": one["best"], "state": one["state"]}
        for at, one in enumerate(history)
    ]
    values = sorted(one["score"] for one in scored)
    high = _ceiling(values)
    pad = 0.06 * (high - values[0]) or 0.02 * values[0]
    span = (values[0] - pad, high + pad)
    for row in rows:
        # A trial without a score, or far off, is shown where the frame ends.
        row["y"] = span[1] if row["score"] is None else min(row["score"], span[1])
    used = [state for state in _STATES if any(row["state"] == state for row in rows)]
    colour = alt.Color(
        "state:N", scale=alt.Scale(domain=used, range=[_STATES[state] for state in used]), legend=alt.Legend()
    )
    shape = alt.Shape("state:N", scale=alt.Scale(domain=used, range=["circle", "triangle-down", "cross"][: len(used)]))
    x = alt.X("number:Q", title="trial, in order", axis=alt.Axis(format="d", tickMinStep=1))
    y = alt.Y("y:Q", title="validation, bits per byte", scale=alt.Scale(domain=span, zero=False))
    dots = canvas.chart(rows).mark_point(filled=True, size=44, opacity=0.8).encode(x=x, y=y, color=colour, shape=shape)
    best = [row for row in rows if row["best"] is not None]
    line = canvas.chart(best).mark_line(interpolate="step-after", color=INK).encode(x=x, y="best:Q")
    caption = (
        "Trials in the order in which they were begun; the line is the best so far. What was pruned stands at its last "
        "score; what has none, or one far above the others, on the upper edge."
    )
    return canvas.render(alt.layer(line, dots).properties(width=640, height=240), "search-history", caption)


def _ceiling(ordered: Sequence[float]) -> float:
    """The highest value that is not far away from the lower half."""
    low, middle = ordered[0], ordered[len(ordered) // 2]
    return max(value for value in ordered if value - low <= 4 * (middle - low)) if middle > low else ordered[-1]


def importance_figure(importance: Mapping[str, float]) -> Figure | None:
    """Each parameter's share in what makes a trial one of the better ones."""
    import altair as alt

    canvas = Canvas()
    if len(importance) < 2:
        return None
    ordered = sorted(importance.items(), key=lambda pair: -pair[1])
    rows: list[Row] = [{"path": short(path), "share": share} for path, share in ordered]
    y = alt.Y("path:N", sort=[row["path"] for row in rows], title=None)
    x = alt.X("share:Q", title="importance (PED-ANOVA), shares of one", axis=alt.Axis(format="%"))
    bars = canvas.chart(rows).mark_bar(color=PALETTE[0], height=12).encode(y=y, x=x)
    text = bars.mark_text(align="left", dx=4, color=INK, fontSize=11).encode(text=alt.Text("share:Q", format=".0%"))
    caption = (
        "How much each parameter has to do with being one of the better trials. It does not say in which direction."
    )
    chart = alt.layer(bars, text).properties(width=480, height=max(50, 22 * len(rows)))
    return canvas.render(chart, "search-importance", caption)


def slices_figure(slices: Mapping[str, Sequence[Sequence[Any]]]) -> Figure | None:
    """The score against each parameter alone."""
    import altair as alt

    canvas = Canvas()
    panels: list[Any] = []
    for path, pairs in list(slices.items())[:_SLICES]:
        if len({_key(value) for value, _ in pairs}) < 2:
            continue
        high = _ceiling(sorted(score for _, score in pairs))
        numeric = all(_is_number(value) for value, _ in pairs)
        values = [float(value) for value, _ in pairs] if numeric else []
        wide = numeric and min(values) > 0 and max(values) / min(values) >= 20
        rows = [{"value": value if numeric else short(str(value)), "score": min(score, high)} for value, score in pairs]
        if numeric and len(set(values)) > _FEW:
            axis = alt.Axis(format="~g", tickCount=4)
            x: Any = alt.X(
                "value:Q", title=short(path), axis=axis, scale=alt.Scale(type="log" if wide else "linear", zero=False)
            )
        else:
            order = sorted({row["value"] for row in rows}, key=lambda value: (str(type(value)), value))
            x = alt.X(
                "value:O", title=short(path), sort=order, axis=alt.Axis(labelAngle=0, format="~g" if numeric else "")
            )
        y = alt.Y("score:Q", title="bits per byte" if len(panels) % 3 == 0 else None, scale=alt.Scale(zero=False))
        dots = canvas.chart(rows).mark_circle(size=38, opacity=0.7, color=PALETTE[0])
        panels.append(dots.encode(x=x, y=y).properties(width=190, height=130))
    if not panels:
        return None
    caption = (
        "The score of every complete trial against one parameter at a time; lower is better, and scores far above are cut to "
        "the edge."
    )
    return canvas.render(alt.concat(*panels, columns=3), "search-slices", caption)


def parallel_figure(trials: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Every complete trial as a line through its parameters; the darker, the better."""
    import altair as alt

    canvas = Canvas()
    paths = [path for path in dict.fromkeys(key for one in trials for key in one) if path not in ("trial", "score")]
    paths = [path for path in paths if len({_key(one.get(path)) for one in trials}) > 1][:_WIDEST]
    if len(paths) < 2 or len(trials) < 3:
        return None
    scores = [float(one["score"]) for one in trials]
    high = _ceiling(sorted(scores))
    places = {path: _places([one.get(path) for one in trials]) for path in paths}
    rows: list[Row] = []
    for number, one in enumerate(trials):
        for path in paths:
            place = places[path].get(_key(one.get(path)))
            if place is not None:
                rows.append({"trial": number, "path": short(path), "place": place, "score": min(scores[number], high)})
    ends = [
        {"path": short(path), "place": place, "text": _label(value)}
        for path in paths
        for value, place in _ends([one.get(path) for one in trials], places[path])
    ]
    x = alt.X(
        "path:N",
        sort=[short(path) for path in paths],
        title=None,
        axis=alt.Axis(labelAngle=-25, grid=True, domain=False),
    )
    y = alt.Y("place:Q", axis=None, scale=alt.Scale(domain=[-0.08, 1.08]))
    colour = alt.Color(
        "score:Q",
        title="bits per byte",
        scale=alt.Scale(range=[PALETTE[2], "#d9b44a", PALETTE[6]], zero=False),
        legend=alt.Legend(orient="right", format=".3f", gradientLength=140),
    )
    lines = canvas.chart(rows).mark_line(opacity=0.55, strokeWidth=1.4).encode(x=x, y=y, detail="trial:N", color=colour)
    text = canvas.chart(ends).mark_text(color=INK, fontSize=10, dx=6, align="left").encode(x=x, y=y, text="text:N")
    caption = (
        "A line a complete trial, through its parameters, each from its lowest value below to its highest above; green is "
        "the better end."
    )
    return canvas.render(alt.layer(lines, text).properties(width=620, height=250), "search-parallel", caption)


def _places(values: Sequence[Any]) -> dict[str, float]:
    """Where each value stands on its axis, from 0 to 1: by size, by its logarithm, or in the order of words."""
    known = [value for value in values if value is not None]
    if all(_is_number(value) for value in known):
        low, high = min(known), max(known)
        if low > 0 and high / low >= 20:
            return {_key(value): math.log(value / low) / math.log(high / low) for value in known}
        return {_key(value): (value - low) / (high - low) if high > low else 0.5 for value in known}
    words = sorted({str(value) for value in known})
    return {_key(value): words.index(str(value)) / max(1, len(words) - 1) for value in known}


def _ends(values: Sequence[Any], places: Mapping[str, float]) -> list[tuple[Any, float]]:
    """The values to be written on an axis: all of a few, otherwise the lowest and the highest."""
    known = {_key(value): value for value in values if value is not None}
    ordered = sorted(known, key=lambda key: places[key])
    chosen = ordered if len(ordered) <= _FEW else [ordered[0], ordered[-1]]
    return [(known[key], places[key]) for key in chosen]


def _label(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else short(str(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _key(value: Any) -> str:
    return f"{value!r}"


def climb_figure(decisions: Sequence[Mapping[str, Any]]) -> Figure | None:
    """What each change of a climb brought against the best until then, with its interval."""
    import altair as alt

    canvas = Canvas()
    rows: list[Row] = []
    for number, one in enumerate(decisions, start=1):
        if one["difference"] is None:
            continue
        rows.append(
            {
                "change": f"{number}. {short(one['name'])}", "difference": one["difference"], "low": one["low"],
                "high": one["high"], "outcome": one["outcome"],
            }
        )  # fmt: skip
    if not rows:
        return None
    ends = [abs(row["difference"]) for row in rows]
    reach = max(2.5 * sorted(ends)[len(ends) // 2], 1.2 * sorted(ends)[-1 if len(ends) < 4 else -2], 1e-4)
    y = alt.Y("change:N", sort=[row["change"] for row in rows], title=None, axis=alt.Axis(grid=True))
    x = alt.X("difference:Q", title="bits per byte against the best until then; below zero is better",
              scale=alt.Scale(domain=[-reach, reach], nice=False))  # fmt: skip
    colour = alt.Color(
        "outcome:N", scale=alt.Scale(domain=["kept", "rolled back"], range=[PALETTE[2], REST]), legend=alt.Legend()
    )
    whiskers = [row for row in rows if row["low"] is not None]
    layers = [
        canvas.chart([{"zero": 0}]).mark_rule(color=INK, strokeDash=[4, 3]).encode(x="zero:Q"),
        canvas.chart(whiskers).mark_rule(strokeWidth=2, clip=True).encode(y=y, x="low:Q", x2="high:Q", color=colour),
        canvas.chart(rows).mark_circle(size=60, clip=True).encode(y=y, x=x, color=colour),
    ]
    sides: tuple[tuple[int, Literal["left", "right"]], ...] = ((-1, "left"), (1, "right"))
    for side, arrow in sides:  # what lies outside the frame, with its number
        beyond = [
            {**row, "at": side * 0.98 * reach, "told": f"{row['difference']:+.3f}"}
            for row in rows
            if side * row["difference"] > reach
        ]
        pointed = canvas.chart(beyond)
        layers += [
            pointed.mark_point(shape=f"triangle-{arrow}", size=80, filled=True).encode(y=y, x="at:Q", color=colour),
            pointed.mark_text(align=arrow, dx=-10 * side, color=INK).encode(y=y, x="at:Q", text="told:N"),
        ]
    caption = (
        "What each change brought against the best until then, with the interval of its last look, cut off "
        "at the frame. An arrow points to what lies beyond it."
    )
    chart = alt.layer(*layers).properties(width=520, height=max(60, 24 * len(rows)))
    return canvas.render(chart, "climb-steps", caption)


def frequency_figure(curves: Mapping[str, Sequence[Sequence[float]]]) -> Figure | None:
    """How often tokens are used, by rank, on logarithmic axes: a line a tokenizer."""
    import altair as alt

    canvas = Canvas()
    rows: list[Row] = []
    for name, curve in curves.items():
        ranks = np.array([rank for rank, _ in curve], dtype=np.float64)
        counts = np.array([count for _, count in curve], dtype=np.float64)
        rows += points(rank=ranks, count=counts, name=short(name))
    if len(rows) < 2:
        return None
    names = list(dict.fromkeys(row["name"] for row in rows))
    colour = alt.Color(
        "name:N",
        scale=alt.Scale(domain=names, range=[PALETTE[at % len(PALETTE)] for at in range(len(names))]),
        legend=alt.Legend() if len(names) > 1 else None,
    )
    x = alt.X("rank:Q", title="rank of the token", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s"))
    y = alt.Y("count:Q", title="times used", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s"))
    line = canvas.chart(rows).mark_line(point=True, strokeWidth=1.8).encode(x=x, y=y, color=colour)
    caption = (
        "How often the tokens of the vocabulary are used, the most frequent first. A steep end is vocabulary that costs "
        "parameters and is hardly ever seen."
    )
    return canvas.render(line.properties(width=480, height=240), "tokenizer-frequency", caption)
