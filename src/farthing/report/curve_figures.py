"""Figures of how runs went and where they ended: loss, score, final scores, held-out scores, scaling.

Letters: P points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from farthing.compare.comparison import Compared, Comparison
from farthing.compare.curves import Curve, band, thinned
from farthing.compare.scaling import Fit
from farthing.compare.statistics import t_quantile
from farthing.report.course import Rates, Story
from farthing.report.figures import (
    INK,
    NAMED,
    PALETTE,
    POWERS,
    PREFIXED,
    Canvas,
    Figure,
    Row,
    around,
    distinct,
    lines_of,
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
_AXES = {
    "tokens": ("training tokens", PREFIXED),
    "flops": ("training FLOPs", POWERS),
    "seconds": ("seconds of training", ""),
    "money": ("money, by the recipes' price", "format(datum.value, '~g')"),
}
"""what a curve may be drawn against: its name, and how its numbers are written"""
_LEGEND = 780
"""how wide a legend may be"""
_PANELS = {2: (2, 330, 5), 3: (3, 230, 4), 4: (2, 330, 5)}
"""of so many panels: how many stand side by side, how wide each is, and how many ticks its axis has"""
_APART = 1.05
"""arms of which one spends so many times as much for the same as another are told apart by it"""
_STRETCHES = 80
"""points of a training curve at most: more would show the noise of single batches"""
_FEW = 4
"""arms in whose midst single runs can be told apart; of more, half as many points and taller panels"""
_BANDED = 3
"""runs that an interval takes: of two it is too wide to tell anything"""


@dataclass(frozen=True)
class _Lot:
    """The curves of an arm's runs: of those that finished, and of the others."""

    finished: Sequence[Curve]
    failed: Sequence[Curve]

    @property
    def every(self) -> list[Curve]:
        """Of all runs."""
        return [*self.finished, *self.failed]

    @property
    def counted(self) -> Sequence[Curve]:
        """Those whose mean is drawn."""
        return self.finished or self.failed

    def spent(self, axis: str) -> float:
        """What these had spent in the end, on average."""
        return float(np.mean([curve.axes[axis][-1] for curve in self.counted]))


def _lot(found: Sequence[tuple[Curve, Story]]) -> _Lot:
    shown = [(curve, story.run.status) for curve, story in found if np.isfinite(curve.value_P).any()]
    return _Lot(*([curve for curve, one in shown if one == status] for status in ("finished", "failed")))


def loss_figure(arms: Mapping[str, Sequence[Story]], *, level: float, points_a_run: int) -> Figure | None:
    """Training loss of all runs against what was spent, a line an arm, with the interval of each arm's mean."""
    steps = max((int(one.run.spent.get("steps", 0)) for several in arms.values() for one in several), default=0)
    most = min(points_a_run, _STRETCHES if len(arms) <= _FEW else _STRETCHES // 2, max(20, steps // 4))
    lots = {name: _lot([(thinned(one.curves.loss, most), one) for one in several]) for name, several in arms.items()}
    return _curves(
        lots,
        name="loss",
        title="training loss, nats per token",
        caption="Training loss, averaged over stretches of steps. {how} Values above the frame are cut off.",
        most=most,
        level=level,
    )


def score_figure(arms: Mapping[str, Sequence[Story]], *, by: str, level: float, points_a_run: int) -> Figure | None:
    """Validation score of all runs against what was spent, with the interval of each arm's mean."""
    lots = {name: _lot([(one.curves.score, one) for one in several]) for name, several in arms.items()}
    if not any(len(curve.value_P) > 1 for lot in lots.values() for curve in lot.every):
        return None
    return _curves(
        lots,
        name="score",
        title=f"validation, {UNITS[by]}",
        caption="Validation score on the way; lower is better. {how}",
        most=points_a_run,
        level=level,
    )


def _curves(lots: Mapping[str, _Lot], *, name: str, title: str, caption: str, most: int, level: float) -> Figure | None:
    """Curves side by side, against everything that was spent and tells something of its own."""
    import altair as alt

    canvas = Canvas()
    lots = {arm: lot for arm, lot in lots.items() if lot.every}
    span = window([one.value_P for lot in lots.values() for one in lot.every])
    if span is None:
        return None
    shown = distinct(list(lots))
    stroke = _strokes(list(shown.values()))
    axes = _axes_of(lots)
    abreast, width, ticks = _PANELS[len(axes)]
    height, shade = (240, 0.2) if len(lots) <= _FEW else (300, 0.15)
    panels: list[Any] = []
    for at, axis in enumerate(axes):
        rows = _rows({arm: lot for arm, lot in lots.items() if lot.spent(axis)}, shown, axis, span[1], most, level)
        label, written = _AXES[axis]
        x = alt.X("x:Q", title=label, axis=alt.Axis(labelExpr=written or alt.Undefined, tickCount=ticks))
        frame = alt.Scale(domain=span, zero=False, nice=False)
        y = alt.Y("y:Q", title=None if at % abreast else title, scale=frame)
        area, thin, thick = canvas.chart(rows.bands), canvas.chart(rows.runs), canvas.chart(rows.means)
        low, colour = alt.Y("low:Q", scale=frame), stroke["color"]
        layers = [
            area.mark_area(clip=True, opacity=shade).encode(x=x, y=low, y2="high:Q", color=colour, detail="arm:N"),
            thin.mark_line(clip=True, strokeWidth=1, opacity=0.4).encode(x=x, y=y, color=colour, detail="run:N"),
            thick.mark_line(clip=True, strokeWidth=2.2).encode(x=x, y=y, detail="arm:N", **stroke),
        ]
        panels.append(alt.layer(*layers).properties(width=width, height=height))
    how = " ".join([*_drawn(list(lots.values()), level), *_price(lots, shown, axes)])
    above = [shown[arm] for arm, lot in lots.items() if not any(_inside(one, span) for one in lot.every)]
    if above:
        how += f" Above the frame, and so not seen: {', '.join(above)}."
    return canvas.render(alt.concat(*panels, columns=abreast), name, caption.format(how=how))


def _axes_of(lots: Mapping[str, _Lot]) -> list[str]:
    """Tokens and seconds; and FLOPs and money where they do not only repeat these."""

    def apart(axis: str, other: str) -> bool:
        spent = [(lot.spent(axis), lot.spent(other)) for lot in lots.values()]
        rates = [one / same for one, same in spent if one > 0 and same > 0]
        return bool(rates) and max(rates) > _APART * min(rates)

    return [
        "tokens",
        *(["flops"] if apart("flops", "tokens") else []),
        "seconds",
        *(["money"] if apart("money", "seconds") else []),
    ]


def _drawn(lots: Sequence[_Lot], level: float) -> Iterator[str]:
    """What is to be seen, in sentences."""
    if all(len(lot.every) == 1 for lot in lots):
        yield "A line a run."
    else:
        rest = "a run" if len(lots) <= _FEW else "a run of an arm without a band"
        yield f"A thick line is the mean of an arm's finished runs, a thin one {rest}."
    own = [len(lot.finished) for lot in lots[:NAMED]]
    if any(runs >= _BANDED for runs in own):
        yield f"Shaded: the {1 - level:.0%} t interval of that mean over the seeds, where there are three or more."
    if 2 in own:
        times = f"{t_quantile(level, 1):.0f}"
        yield f"Two seeds have no such band: it would be {times} times as wide as they lie apart."
    if len(lots) > NAMED:
        yield f"The first {NAMED} arms have a line of their own, the others are grey."


def _price(lots: Mapping[str, _Lot], shown: Mapping[str, str], axes: Sequence[str]) -> Iterator[str]:
    """What is to be known of money, in sentences."""
    priced = [arm for arm, lot in lots.items() if lot.spent("money") > 0 < lot.spent("seconds")]
    if not priced:
        return
    if "money" not in axes:
        rate = 3600 * lots[priced[0]].spent("money") / lots[priced[0]].spent("seconds")
        yield f"Money would look like the seconds: {rate:.3g} an hour of training."
    if free := [shown[arm] for arm in lots if arm not in priced]:
        yield f"Without a price: {', '.join(free)}."


def _inside(curve: Curve, span: tuple[float, float]) -> bool:
    """Whether the end of a curve is in the frame."""
    later = curve.value_P[len(curve.value_P) // 2 :]
    return bool((later[np.isfinite(later)] <= span[1]).any())


def _strokes(names: Sequence[str]) -> dict[str, Any]:
    """Colours and dashes, with one legend for both."""
    import altair as alt

    lines = lines_of(names)
    own = list(names[:NAMED])
    columns = max(1, min(4, _LEGEND // (50 + 6 * max(map(len, own)))))
    legend = alt.Legend(values=own, symbolOpacity=1, symbolType="stroke", columns=columns) if len(names) > 1 else None
    domain = list(lines)

    def scale(values: list[Any]) -> Any:
        return alt.Scale(domain=domain, range=values)

    found: dict[str, Any] = {
        "color": alt.Color("arm:N", scale=scale([line.colour for line in lines.values()]), legend=legend)
    }
    if len({line.dash for line in lines.values()}) > 1:
        dashes = [list(line.dash) for line in lines.values()]
        found["strokeDash"] = alt.StrokeDash("arm:N", scale=scale(dashes), legend=legend)
    return found


@dataclass(frozen=True)
class _Rows:
    """Points of every run, of every arm's mean, and of its interval."""

    runs: list[Row]
    means: list[Row]
    bands: list[Row]


def _rows(lots: Mapping[str, _Lot], shown: Mapping[str, str], axis: str, top: float, most: int, level: float) -> _Rows:
    rows = _Rows([], [], [])
    own = set(list(shown.values())[:NAMED])
    for arm, lot in lots.items():
        name = shown[arm]
        mean = band(lot.counted, points=most, level=level) if name in own else None
        banded = mean is not None and len(lot.finished) >= _BANDED
        # A band can stand for its runs, and the mean of one run is that run.
        single = lot.failed if banded and len(shown) > _FEW else lot.every
        for number, one in enumerate(single if mean is None or len(lot.every) > 1 else []):
            keep = np.unique(np.linspace(0, len(one.value_P) - 1, most).round().astype(int))
            rows.runs.extend(points(x=one.axes[axis][keep], y=one.value_P[keep], arm=name, run=f"{name} {number}"))
        if mean is None:
            continue  # thin lines are enough of arms that share a colour
        rows.means.extend(points(x=mean.axes[axis], y=mean.mean_P, arm=name))
        # Where the mean is above the frame, an interval that reaches down into it would say nothing.
        seen = mean.mean_P <= top
        if banded and seen.any():
            ends = {"low": mean.low_P[seen], "high": mean.high_P[seen]}
            rows.bands.extend(points(x=mean.axes[axis][seen], arm=name, **ends))
    return rows


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
    span = around([one["score"] for one in runs])
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
