"""Figures of curves: what they are drawn against, whose interval is shaded, and that many arms can be told apart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compare import folders
from compare.folders import write_arm, write_run
from farthing.compare.curves import AXES, Curve, thinned
from farthing.compare.runs import gather
from farthing.recipe import Recipe
from farthing.report.curve_figures import loss_figure, score_figure
from farthing.report.figures import NAMED, PALETTE, REST, Figure, lines_of, window
from farthing.report.material import Material, Question, collect

AXIS = ("training tokens", "training FLOPs", "seconds of training", "money, by")


def material_of(runs: Path) -> Material:
    found = gather([str(runs)], runs=runs, recipe=Recipe)
    return collect(Question("runs", "some runs"), found, baseline=None, by="bits_per_byte", level=0.05)


def loss_of(runs: Path) -> Figure:
    material = material_of(runs)
    named = {arm.name: material.stories_of(arm) for arm in material.ranked}
    figure = loss_figure(named, level=material.level, points_a_run=material.points_a_run)
    assert figure is not None
    return figure


def score_of(runs: Path) -> Figure | None:
    material = material_of(runs)
    named = {arm.name: material.stories_of(arm) for arm in material.ranked}
    return score_figure(named, by="bits_per_byte", level=material.level, points_a_run=material.points_a_run)


def marks(figure: Figure, kind: str, panel: int, layer: int) -> int:
    """How many marks of a kind a layer of a panel has."""
    return len(re.findall(rf"mark-{kind} role-mark concat_{panel}_layer_{layer}_marks", figure.svg))


def drawn_against(figure: Figure) -> list[str]:
    return [axis for axis in AXIS if axis in figure.svg]


def shaken(run: Path, times: float) -> None:
    """Losses that differ from those of other runs, as those of other seeds do."""
    path = run / "events.jsonl"
    pieces = re.split(r'(?<="loss": )([\d.]+)', path.read_text("utf-8"))
    path.write_text("".join(str(float(one) * times) if at % 2 else one for at, one in enumerate(pieces)), "utf-8")


def without_scores(runs: Path) -> None:
    """Only the last score is left, as with evaluate.every = "end"."""
    for path in runs.glob("*/events.jsonl"):
        lines = path.read_text("utf-8").splitlines(keepends=True)
        scored = [line for line in lines if '"kind": "evaluation"' in line]
        path.write_text("".join(line for line in lines if line not in scored[:-1]), "utf-8")


def test_the_loss_has_the_interval_over_seeds_though_nothing_was_scored_on_the_way(tmp_path: Path) -> None:
    write_arm(tmp_path, "base", {1: 1.5, 2: 1.51, 3: 1.49})
    write_arm(tmp_path, "deep", {1: 1.4, 2: 1.42, 3: 1.395}, recipe={"model.n_layer": 8})
    without_scores(tmp_path)
    shaken(tmp_path / "base-seed2", 1.1)
    shaken(tmp_path / "deep-seed3", 0.9)
    assert score_of(tmp_path) is None
    figure = loss_of(tmp_path)
    assert [marks(figure, "area", panel, 0) for panel in (0, 1)] == [2, 2]
    assert [marks(figure, "line", panel, 2) for panel in (0, 1)] == [2, 2]
    assert "95% t interval of that mean over the seeds" in figure.caption


def test_two_seeds_have_a_mean_and_no_band_and_the_caption_says_why(tmp_path: Path) -> None:
    write_arm(tmp_path, "base", {1: 1.5, 2: 1.51})
    for figure in (loss_of(tmp_path), score_of(tmp_path)):
        assert figure is not None
        assert marks(figure, "area", 0, 0) == 0 and "Shaded" not in figure.caption
        assert (marks(figure, "line", 0, 1), marks(figure, "line", 0, 2)) == (2, 1)
        assert "Two seeds have no such band: it would be 13 times as wide as they lie apart" in figure.caption


def test_a_failed_run_is_drawn_and_counts_for_no_mean(tmp_path: Path) -> None:
    write_arm(tmp_path, "base", {1: 1.5, 2: 1.51, 3: 1.49})
    write_run(tmp_path, "base-seed4", seed=4, stopped="diverged")
    figure = loss_of(tmp_path)
    assert (marks(figure, "area", 0, 0), marks(figure, "line", 0, 1), marks(figure, "line", 0, 2)) == (1, 4, 1)
    ends = re.findall(r'role-mark concat_0_layer_2_marks".*? d="[^"]*L([\d.]+),', figure.svg)
    whole = re.findall(r'role-mark concat_0_layer_1_marks".*? d="[^"]*L([\d.]+),', figure.svg)
    assert float(ends[0]) == max(map(float, whole)) > min(map(float, whole))


def test_of_many_arms_bands_stand_for_the_runs_but_not_for_the_failed_ones(tmp_path: Path) -> None:
    for number in range(6):
        write_arm(tmp_path, f"arm{chr(97 + number)}", {1: 1.5, 2: 1.6, 3: 1.7}, recipe={"optimizer.lr": 0.1 + number})
    write_run(tmp_path, "arma-seed4", seed=4, stopped="diverged", recipe={"optimizer.lr": 0.1})
    figure = loss_of(tmp_path)
    assert (marks(figure, "area", 0, 0), marks(figure, "line", 0, 1), marks(figure, "line", 0, 2)) == (6, 1, 6)
    assert "a thin one a run of an arm without a band" in figure.caption


def test_twelve_arms_have_twelve_lines_and_the_others_are_grey(tmp_path: Path) -> None:
    for number in range(14):
        write_run(tmp_path, f"arm{chr(97 + number)}", 1.5 + number / 100, recipe={"optimizer.lr": 0.001 * (number + 1)})
    figure = loss_of(tmp_path)
    drawn = re.findall(r'stroke="(#\w+)" stroke-width="2.2" stroke-dasharray="([\d,]+)"', figure.svg)
    assert len(drawn) == 2 * NAMED and len(set(drawn)) == NAMED
    assert {colour for colour, _ in drawn} == set(PALETTE)
    assert marks(figure, "line", 0, 1) == 2 and REST in figure.svg
    assert all(f">arm{chr(97 + number)}<" in figure.svg for number in range(NAMED))
    assert f"The first {NAMED} arms have a line of their own" in figure.caption


def test_lines_are_told_apart() -> None:
    lines = lines_of([str(number) for number in range(20)])
    assert len({(line.colour, line.dash) for line in lines.values()}) == NAMED + 1


def test_operations_are_an_axis_only_where_they_tell_more_than_tokens(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 1.5)
    write_run(tmp_path, "deep", 1.5, recipe={"model.n_layer": 8}, per_step={"flops": 6.2e9})
    assert drawn_against(loss_of(tmp_path)) == ["training tokens", "seconds of training"]
    write_run(tmp_path, "sam", 1.4, recipe={"optimizer.sharpness.kind": "sam"}, per_step={"flops": 12e9})
    expected = ["training tokens", "training FLOPs", "seconds of training"]
    assert drawn_against(loss_of(tmp_path)) == expected
    scored = score_of(tmp_path)
    assert scored is not None and drawn_against(scored) == expected
    assert "e10" in scored.svg or "e11" in scored.svg


@pytest.mark.parametrize(("prices", "drawn", "told"), [
    ((0.0, 0.0), False, ""),
    ((1.8, 1.8), False, "Money would look like the seconds: 1.8 an hour of training."),
    ((1.8, 3.6), True, ""),
    ((1.8, 0.0), False, "Without a price: b."),
])  # fmt: skip
def test_money_is_an_axis_only_where_it_tells_more_than_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prices: tuple[float, float], drawn: bool, told: str
) -> None:
    plain = folders.spent
    for name, price in zip("ab", prices, strict=True):

        def priced(step: int, *, price: float = price, **cost: float) -> dict[str, Any]:
            spent = plain(step, **cost)
            return {**spent, "money": spent["seconds"] * price / 3600}

        monkeypatch.setattr(folders, "spent", priced)
        write_run(tmp_path, name, 1.5, recipe={"model.n_layer": 4 if name == "a" else 8})
    for figure in (loss_of(tmp_path), score_of(tmp_path)):
        assert figure is not None
        assert ("money, by" in figure.svg) is drawn
        assert told in figure.caption and (told or "rice" not in figure.caption)


def test_the_frame_does_not_stretch_for_a_single_spike() -> None:
    falling = np.linspace(8.0, 6.0, 40)
    spiked = falling.copy()
    spiked[15] = 90.0
    assert window([falling]) == window([spiked])
    lost = falling.copy()
    lost[-5:] = 9.0
    assert (window([lost]) or (0, 0))[1] > 9


def test_a_thinned_curve_has_means_of_all_that_is_finite() -> None:
    values = np.array([4.0, 2.0, np.nan, 1.0, np.nan, np.nan])
    found = thinned(Curve({name: np.arange(1.0, 7.0) for name in AXES}, values), 3)
    assert found.value_P[:2].tolist() == [3.0, 1.0] and np.isnan(found.value_P[2])
    assert found.axes["tokens"].tolist() == [2.0, 4.0, 6.0]
