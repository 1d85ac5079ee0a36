"""Figures of how runs went and where they ended: loss, score, final scores, held-out scores, scaling.

Letters: P points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from farthing.compare.comparison import Compared, Comparison
from farthing.compare.curves import Curve, band
from farthing.compare.scaling import Fit
from farthing.report.course import Rates, Story
from farthing.report.figures import (
    INK,
    PALETTE,
    PREFIXED,
    REST,
    Canvas,
    Figure,
    Row,
    distinct,
    points,
    short,
    window,
)

UNITS = {
    "bits_per_byte": "bits per byte",
    "nats_per_character": "nats per character",
    "nats_per_token": "nats per token",
    "perplexity": "perplexity",
    "legacy_titles": "legacy reading",
}
_AXES = {"tokens": "training tokens", "seconds": "seconds of training"}
_MOST = len(PALETTE)
_STRETCHES = 80
"""points of a training curve at most: more would show the noise of single batches"""


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each of the first few names, and one for all others."""
    return {name: PALETTE[at] if at < _MOST else REST for at, name in enumerate(names)}


def loss_figure(arms: Mapping[str, Sequence[Story]], *, points_a_run: int) -> Figure | None:
    """Training loss of all runs against tokens and seconds, a colour an arm; a thin line a run, a thick one their mean."""
    curves = {name: [story.curves.loss for story in several] for name, several in arms.items()}
    return _two_axes(
        curves,
        name="loss",
        title="training loss, nats per token",
        caption="Training loss, averaged over stretches of steps. {how} Values above the frame are cut off.",
        most=points_a_run,
        banded=False,
    )


def score_figure(arms: Mapping[str, Sequence[Story]], *, by: str, level: float, points_a_run: int) -> Figure | None:
    """Validation score of all runs against tokens and seconds, with the interval of each arm's mean."""
    curves = {name: [story.curves.score for story in several] for name, several in arms.items()}
    if not any(len(curve.value_P) > 1 for several in curves.values() for curve in several):
        return None
    return _two_axes(
        curves,
        name="score",
        title=f"validation, {UNITS[by]}",
        caption="Validation score on the way; lower is better. {how}",
        most=points_a_run,
        banded=True,
        level=level,
    )


def _two_axes(
    curves: Mapping[str, Sequence[Curve]],
    *,
    name: str,
    title: str,
    caption: str,
    most: int,
    banded: bool,
    level: float = 0.05,
) -> Figure | None:
    """Curves against tokens and against seconds, side by side."""
    import altair as alt

    canvas = Canvas()
    curves = {arm: [one for one in several if np.isfinite(one.value_P).any()] for arm, several in curves.items()}
    curves = {arm: several for arm, several in curves.items() if several}
    span = window([one.value_P for several in curves.values() for one in several])
    if span is None:
        return None
    shown = distinct(list(curves))
    paint = _scale([shown[arm] for arm in curves])
    several_runs = any(len(several) > 1 for several in curves.values())
    panels: list[Any] = []
    shaded = False
    for axis, label in _AXES.items():
        lines, means, bands = _rows(curves, shown, axis, span, most=most, level=level if banded else None)
        x = alt.X("x:Q", title=label, axis=alt.Axis(labelExpr=PREFIXED if axis == "tokens" else alt.Undefined))
        y = alt.Y("y:Q", title=title if axis == "tokens" else None, scale=alt.Scale(domain=span, zero=False))
        base = canvas.chart(lines).mark_line(
            clip=True, strokeWidth=1 if several_runs else 2, opacity=0.4 if several_runs else 1
        )
        layers = [base.encode(x=x, y=y, color=paint, detail="run:N")]
        if several_runs:
            thick = canvas.chart(means).mark_line(clip=True, strokeWidth=2.4)
            layers.append(thick.encode(x=x, y=y, color=paint, detail="arm:N"))
        shaded = shaded or bool(bands)
        if bands:
            area = canvas.chart(bands).mark_area(clip=True, opacity=0.16)
            layers.insert(0, area.encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=paint, detail="arm:N"))
        panels.append(alt.layer(*layers).properties(width=330, height=240))
    how = "A thin line a run, a thick one the mean of an arm's runs." if several_runs else "A line a run."
    if len(curves) > _MOST:
        how += f" The first {_MOST} arms have a colour, the others are grey."
    if shaded:
        how += f" Shaded: the {1 - level:.0%} t interval of an arm's mean, where it has three runs or more."
    above = [shown[arm] for arm, several in curves.items() if not any(_inside(one, span) for one in several)]
    if above:
        how += f" Above the frame, and so not seen: {', '.join(above)}."
    return canvas.render(alt.hconcat(*panels), name, caption.format(how=how))


def _inside(curve: Curve, span: tuple[float, float]) -> bool:
    """Whether the end of a curve is in the frame."""
    later = curve.value_P[len(curve.value_P) // 2 :]
    return bool((later[np.isfinite(later)] <= span[1]).any())


def _thinned(curve: Curve, most: int) -> Curve:
    """The means of equal stretches of points, so many at most."""
    length = len(curve.value_P)
    ends = np.unique(np.linspace(0, length, min(most, length) + 1).round().astype(int))
    pieces = [curve.value_P[first:last] for first, last in pairwise(ends)]
    finite = [piece[np.isfinite(piece)] for piece in pieces]
    value_P = np.array([piece.mean() if len(piece) else math.nan for piece in finite])
    return Curve({name: values[ends[1:] - 1] for name, values in curve.axes.items()}, value_P)


def _scale(names: Sequence[str]) -> Any:
    import altair as alt

    paint = colours(names)
    legend = None if len(names) == 1 else alt.Legend(values=list(names[:_MOST]), symbolOpacity=1, symbolType="stroke")
    return alt.Color("arm:N", scale=alt.Scale(domain=list(paint), range=list(paint.values())), legend=legend)


def _rows(
    curves: Mapping[str, Sequence[Curve]],
    shown: Mapping[str, str],
    axis: str,
    span: tuple[float, float],
    *,
    most: int,
    level: float | None,
) -> tuple[list[Row], list[Row], list[Row]]:
    """Points of every run, of every arm's mean, and with a level of its interval."""
    lines: list[Row] = []
    means: list[Row] = []
    bands: list[Row] = []
    coloured = set(list(shown.values())[:_MOST])
    for arm, several in curves.items():
        # A reading is a point; of the training loss, which is taken at each step, stretches are averaged.
        several = several if level is not None else [_thinned(one, min(most, _STRETCHES)) for one in several]
        for number, one in enumerate(several):
            keep = np.unique(np.linspace(0, len(one.value_P) - 1, most).round().astype(int))
            lines += points(x=one.axes[axis][keep], y=one.value_P[keep], arm=shown[arm], run=f"{shown[arm]} {number}")
        if (mean := band(several, points=most, level=level or 0.05)) is None:
            continue
        if shown[arm] not in coloured:
            continue  # thin lines are enough of arms that share a colour
        means += points(x=mean.axes[axis], y=mean.mean_P, arm=shown[arm])
        # Where the mean is above the frame, an interval that reaches down into it would say nothing.
        seen = mean.mean_P <= span[1]
        if level is not None and mean.n > 2 and seen.any():
            bands += points(x=mean.axes[axis][seen], low=mean.low_P[seen], high=mean.high_P[seen], arm=shown[arm])
    return lines, means, bands


def final_figure(compared: Comparison) -> Figure | None:
    """The final score of every run, and of every arm the mean with its interval; best arm first."""
    import altair as alt

    canvas = Canvas()
    arms = [one for one in compared.arms if one.summary.mean is not None]
    if len(arms) < 2 and all(one.summary.n < 2 for one in arms):
        return None
    arms = sorted(arms, key=lambda one: one.summary.mean or math.inf)
    shown = distinct([one.arm.name for one in arms])
    runs: list[Row] = [
        {"arm": shown[one.arm.name], "score": score, "verdict": _word(one)}
        for one in arms
        for score in one.arm.scores(compared.by).values()
        if score is not None
    ]
    middle: list[Row] = [
        {
            "arm": shown[one.arm.name], "score": one.summary.mean, "low": one.summary.low, "high": one.summary.high,
            "verdict": _word(one),
        }
        for one in arms
    ]  # fmt: skip
    span = _span([one["score"] for one in runs])
    y = alt.Y("arm:N", sort=list(shown.values()), title=None, axis=alt.Axis(grid=True))
    x = alt.X("score:Q", title=f"validation, {UNITS[compared.by]}", scale=alt.Scale(domain=span, zero=False))
    words = {"baseline": INK, "better": "#2f9e6e", "cannot tell": "#b8942a", "worse": "#d1495b"}
    used = [word for word in words if any(one["verdict"] == word for one in middle)]
    paint = alt.Color(
        "verdict:N",
        scale=alt.Scale(domain=used, range=[words[word] for word in used]),
        legend=alt.Legend() if len(used) > 1 else None,
    )
    whiskers = [one for one in middle if one["low"] is not None]
    layers = [
        canvas.chart(whiskers)
        .mark_rule(strokeWidth=2, clip=True)
        .encode(y=y, x=alt.X("low:Q"), x2="high:Q", color=paint),
        canvas.chart(runs).mark_circle(size=34, opacity=0.55, clip=True).encode(y=y, x=x, color=paint),
        canvas.chart(middle).mark_tick(thickness=3, size=16, clip=True).encode(y=y, x=x, color=paint),
    ]
    if outside := [{**one, "text": f"{one['score']:.4g} ▸"} for one in middle if one["score"] > span[1]]:
        text = canvas.chart(outside).mark_text(align="right", dx=-4, fontSize=11)
        layers.append(text.encode(y=y, x=alt.value(560), text="text:N", color=paint))
    chart = alt.layer(*layers).properties(width=560, height=max(60, 22 * len(arms)))
    caption = (
        f"Where the runs ended: a dot a run, a bar the mean of an arm, a line its {1 - compared.level:.0%} t interval "
        "(cut off where it is wider than the frame)."
    )
    if len(arms) > 1:
        caption += " The verdict is that of the test, which pairs runs by seed; it cannot be read off these intervals."
    return canvas.render(chart, "final", caption)


def _word(one: Compared) -> str:
    return "baseline" if one.verdict is None else one.verdict.verdict


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The values with room on both sides, without those that lie far above the middle of them."""
    ordered = sorted(values)
    low, middle = ordered[0], ordered[len(ordered) // 2]
    near = [value for value in ordered if value - low <= 6 * (middle - low)] or ordered[:1]
    pad = 0.15 * (near[-1] - low) or 0.02 * abs(low) or 1.0
    return low - pad, near[-1] + pad


def one_run_figure(story: Story) -> Figure | None:
    """Training and validation loss of one run, in one unit: what tells over-fitting."""
    import altair as alt

    canvas = Canvas()
    course = story.course
    if len(course.loss_P) == 0:
        return None
    rows = points(x=course.tokens_P, y=course.loss_P, what="training")
    rows += points(x=course.tokens_E, y=course.validation_E, what="validation") if len(course.tokens_E) else []
    span = window([course.loss_P, course.validation_E])
    if span is None:
        return None
    colour = alt.Color(
        "what:N", scale=alt.Scale(domain=["training", "validation"], range=list(PALETTE[:2])), legend=alt.Legend()
    )
    x = alt.X("x:Q", title="training tokens", axis=alt.Axis(labelExpr=PREFIXED))
    y = alt.Y("y:Q", title="nats per token", scale=alt.Scale(domain=span, zero=False))
    line = canvas.chart(rows).mark_line(clip=True, strokeWidth=1.8).encode(x=x, y=y, color=colour)
    dots = (
        canvas.chart([row for row in rows if row["what"] == "validation"])
        .mark_circle(clip=True, size=26)
        .encode(x=x, y=y, color=colour)
    )
    chart = alt.layer(line, dots).properties(width=640, height=260)
    caption = (
        f"Training loss (averaged over stretches of steps, with dropout where the recipe has it) and validation loss of "
        f"{short(story.run.name)}, in the same unit. Validation that turns upward while training falls is over-fitting."
    )
    return canvas.render(chart, "training-and-validation", caption)


def rates_figure(rates: Rates) -> Figure | None:
    """Learning rate and gradient norm over the steps of one run."""
    import altair as alt

    canvas = Canvas()
    if len(rates.steps_P) < 2:
        return None
    panels: list[Any] = []
    for values_P, title in ((rates.lr_P, "learning rate"), (rates.gradient_P, "gradient norm before clipping")):
        if not np.isfinite(values_P).any():
            continue
        x = alt.X("x:Q", title="optimizer step", axis=alt.Axis(labelExpr=PREFIXED))
        wide = title != "learning rate" and bool((values_P[np.isfinite(values_P)] > 0).all())
        y = alt.Y("y:Q", title=title, scale=alt.Scale(type="log" if wide else "linear"), axis=alt.Axis(format="~g"))
        rows = points(x=rates.steps_P, y=values_P)
        line = canvas.chart(rows).mark_line(strokeWidth=1.8, color=PALETTE[0])
        panels.append(line.encode(x=x, y=y).properties(width=320, height=160))
    return canvas.render(
        alt.hconcat(*panels), "rates", "Learning rate of the first group of parameters, and the median gradient norm."
    )


def scaling_figure(found: Fit) -> Figure:
    """Score against operations, a point a recipe, with the fitted law up to ten times further."""
    import altair as alt

    canvas = Canvas()
    flops_P = np.geomspace(min(point.flops for point in found.points), 10 * found.largest, 40)
    intervals = [found.at_budget(float(flops)) for flops in flops_P]
    law = points(
        flops=flops_P,
        loss=np.array([one.value for one in intervals]),
        low=np.array([one.low for one in intervals]),
        high=np.array([one.high for one in intervals]),
    )
    runs = points(
        flops=np.array([point.flops for point in found.points]), loss=np.array([point.loss for point in found.points])
    )
    x = alt.X("flops:Q", title="training FLOPs", scale=alt.Scale(type="log"), axis=alt.Axis(format="~e"))
    y = alt.Y("loss:Q", title="validation, bits per byte", scale=alt.Scale(zero=False))
    area = canvas.chart(law).mark_area(opacity=0.16, color=PALETTE[0]).encode(x=x, y="low:Q", y2="high:Q")
    line = canvas.chart(law).mark_line(color=PALETTE[0]).encode(x=x, y=y)
    dots = canvas.chart(runs).mark_circle(size=48, color=PALETTE[1]).encode(x=x, y=y)
    caption = (
        "A dot a recipe; the line is what the fitted law says a budget buys, up to ten times the largest, with its bootstrap "
        "interval for one run."
    )
    return canvas.render(alt.layer(area, line, dots).properties(width=560, height=260), "scaling", caption)
