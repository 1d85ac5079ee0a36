"""Curves of runs and of arms."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare.folders import arms_in, records, write_arm, write_run
from farthing.compare.curves import AXES, Curve, band, read_curves, write_csv
from farthing.compare.statistics import t_quantile
from farthing.errors import UserError


def test_every_step_is_in_a_short_curve(tmp_path: Path) -> None:
    write_run(tmp_path, "one", 1.5)
    found = read_curves(records(tmp_path)[0])
    assert found.loss.axes.keys() == set(AXES)
    assert found.loss.axes["steps"].tolist() == list(range(1, 21))
    assert found.loss.value_P == pytest.approx([8 / (1 + step) for step in range(1, 21)])
    assert found.loss.axes["seconds"][-1] == 10.0
    assert found.score.axes["steps"].tolist() == [5, 10, 15, 20]
    assert found.score.value_P[-1] == 1.5


@pytest.mark.parametrize("points", [1, 3, 7, 20, 100])
def test_a_long_one_is_brought_down_to_means_of_all_steps(tmp_path: Path, points: int) -> None:
    write_run(tmp_path, "one")
    found = read_curves(records(tmp_path)[0], points=points).loss
    assert len(found.value_P) == min(points, 20)
    ends = found.axes["steps"]
    assert ends[-1] == 20
    sizes = np.diff(np.concatenate([[0], ends]))
    assert (found.value_P * sizes).sum() == pytest.approx(sum(8 / (1 + step) for step in range(1, 21)))


def test_losses_that_are_not_finite_are_left_out_of_the_means(tmp_path: Path) -> None:
    run = write_run(tmp_path, "one")
    text = run.events.read_text("utf-8")
    run.events.write_text(text.replace('"loss": 4.0', '"loss": null'), "utf-8")
    whole = read_curves(records(tmp_path)[0]).loss.value_P
    assert math.isnan(whole[0]) and np.isfinite(whole[1:]).all()
    halved = read_curves(records(tmp_path)[0], points=10).loss.value_P
    assert halved[0] == pytest.approx(whole[1])


def test_a_failed_run_has_a_curve_as_far_as_it_came(tmp_path: Path) -> None:
    write_run(tmp_path, "one", stopped="diverged")
    assert read_curves(records(tmp_path)[0]).loss.axes["steps"][-1] == 10


def test_events_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, "one")
    run.events.write_text(run.events.read_text("utf-8").replace('"version": 1}\n', '"version": 9}\n', 1), "utf-8")
    with pytest.raises(UserError, match="version 9"):
        read_curves(records(tmp_path)[0])


def curve(tokens: list[float], values: list[float]) -> Curve:
    axes = {name: np.array(tokens) * (1 + index) for index, name in enumerate(AXES)}
    return Curve({**axes, "tokens": np.array(tokens)}, np.array(values))


def test_the_band_of_an_arm_is_the_mean_with_its_t_interval() -> None:
    several = [curve([0, 10, 20], values) for values in ([3.0, 2.0, 1.0], [3.2, 2.4, 1.3], [2.8, 1.9, 1.1])]
    found = band(several, level=0.1)
    assert found is not None and found.n == 3
    stacked = np.stack([one.value_P for one in several])
    assert found.mean_P == pytest.approx(stacked.mean(axis=0))
    half = t_quantile(0.1, 2) * stacked.std(axis=0, ddof=1) / math.sqrt(3)
    assert found.high_P - found.mean_P == pytest.approx(half)
    assert found.mean_P - found.low_P == pytest.approx(half)


def test_the_band_reaches_as_far_as_all_runs_do() -> None:
    found = band([curve([0, 10, 20], [3, 2, 1]), curve([0, 10], [3, 2])])
    assert found is not None and found.axes["tokens"].tolist() == [0, 10]
    assert band([curve([0, 1], [3, 2]), curve([5, 6], [1, 1])]) is None
    assert band([]) is None
    assert band([curve([0, 1], [3, 2]), curve([], [])]) is None


@given(st.integers(1, 50), st.integers(1, 30), st.integers(1, 4))
def test_equal_runs_have_a_band_without_width(length: int, points: int, runs: int) -> None:
    one = curve([float(step) for step in range(length)], [1.0 / (1 + step) for step in range(length)])
    found = band([one] * runs, points=points)
    assert found is not None
    assert len(found.mean_P) <= max(points, 1)
    assert found.mean_P == pytest.approx(np.interp(found.axes["tokens"], one.axes["tokens"], one.value_P))
    if runs > 1:
        assert found.high_P == pytest.approx(found.mean_P)
    else:
        assert np.isnan(found.high_P).all()


def test_the_table_holds_every_run_and_every_arm(tmp_path: Path) -> None:
    write_arm(tmp_path / "runs", "base", {1: 1.2, 2: 1.3})
    write_csv(tmp_path / "curves.csv", list(arms_in(tmp_path / "runs").values()))
    with (tmp_path / "curves.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["arm"], row["run"], row["what"]) for row in rows} == {
        ("base", run, what) for run in ("base-seed1", "base-seed2", "") for what in ("loss", "bits_per_byte")
    }
    last = [row for row in rows if row["what"] == "bits_per_byte" and row["run"] == ""][-1]
    assert float(last["value"]) == pytest.approx(1.25)
    assert float(last["low"]) < 1.25 < float(last["high"])
    assert all(row["low"] == "" for row in rows if row["run"])
