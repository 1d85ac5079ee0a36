"""Points from real folders, and what a recipe is told to expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compare.folders import arms_in, recipe_of, write_arm, write_run
from compare.test_scaling import SIZES, TRUTH
from farthing.compare.prediction import expect, points_of
from farthing.compare.scaling import fit
from farthing.errors import UserError


def train(runs: Path, **others: Any) -> None:
    """Arms of five sizes at one length."""
    for number, n in enumerate(SIZES):
        bits = TRUTH.loss(parameters=n, tokens=20 * 1024.0)
        recipe = {"model.d_model": 64 * (number + 1), "model.n_head": 2, **others}
        per_step = {"flops": 6 * n * 1024}
        write_arm(runs, f"size{'abcde'[number]}", {1: bits - 0.01, 2: bits + 0.01}, recipe=recipe,
                  parameters=int(n), per_step=per_step)  # fmt: skip


def test_points_are_arms(tmp_path: Path) -> None:
    train(tmp_path)
    write_run(tmp_path, "failed", stopped="diverged", recipe={"model.n_layer": 9}, parameters=9)
    worse = {"model.d_model": 64, "model.n_head": 2, "optimizer.lr": 0.5}
    write_run(tmp_path, "worse", 9.0, recipe=worse, parameters=200_000)
    found, notes = points_of(list(arms_in(tmp_path).values()))
    assert sorted(point.parameters for point in found) == list(SIZES)
    smallest = min(found, key=lambda point: point.parameters)
    assert smallest.loss == pytest.approx(TRUTH.loss(parameters=2e5, tokens=20480))
    assert notes == [
        "failed has no finished run and is left out",
        "1 recipes were left out: another of the same size and tokens was better",
        "the runs differ in more than size and budget: optimizer.lr",
    ]


def test_whatever_is_no_size_and_no_budget_is_told(tmp_path: Path) -> None:
    train(tmp_path)
    other = {"model.d_model": 96, "model.n_head": 2, "model.position.kind": "learned", "train.batch_size": 7}
    same = {"train.threads": 3, "train.precision": "fp32", "evaluate.every": "end", "budget.steps": 21}
    write_run(tmp_path, "others", 2.0, recipe={**other, **same, "seed": 3, "schedule.warmup": 0.3}, parameters=300_000)
    _, notes = points_of(list(arms_in(tmp_path).values()))
    (told,) = [note for note in notes if "more than size" in note]
    assert told.partition(": ")[2] == "model.position.base, model.position.kind, schedule.warmup, train.batch_size"


def test_what_a_recipe_may_expect(tmp_path: Path) -> None:
    train(tmp_path)
    arms = list(arms_in(tmp_path).values())
    found = fit(points_of(arms)[0], replicates=20)
    ahead = expect(found, arms[0].recipe, recipe_of({"optimizer.lr": 0.5}), parameters=10**7, tokens=20480, flops=1e15)
    assert ahead["bits_per_byte"]["value"] == pytest.approx(TRUTH.loss(parameters=1e7, tokens=20480), rel=0.02)
    assert any("differs from the runs in optimizer.lr" in note for note in ahead["notes"])
    assert any("times the largest run" in note for note in ahead["notes"])
    for factor, words in ((1.2, ""), (5, "5 times the largest run: the interval is that of the law"), (20, "vouches")):
        near = expect(
            found, arms[0].recipe, recipe_of({}), parameters=10**7, tokens=20480, flops=factor * found.largest
        )
        told = [note for note in near["notes"] if "times the largest" in note]
        assert len(told) == bool(words) and all(words in note for note in told)
    with pytest.raises(UserError, match=r"data.validation=.*they say nothing about a score on other text"):
        expect(found, arms[0].recipe, recipe_of({"data.validation": 0.3}), parameters=1, tokens=1, flops=1.0)
