"""The noise floor: measured, kept, found again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compare.folders import arms_in, write_arm, write_run
from farthing.compare import noise as floors
from farthing.errors import UserError
from farthing.rundir import list_runs

SCORES = {1: 1.30, 2: 1.31, 3: 1.29, 4: 1.315, 5: 1.302}


def test_a_noise_floor_is_found_again_as_it_was_kept(tmp_path: Path) -> None:
    write_arm(tmp_path, "base", {**SCORES, 6: None})
    arm = arms_in(tmp_path)["base"]
    measured = floors.measure(arm)
    path = floors.keep(measured, tmp_path)
    assert floors.find(tmp_path, arm.fingerprint) == measured
    assert floors.find(tmp_path, "0" * 64) is None
    assert measured.fits(arm)
    assert json.loads(path.read_text("utf-8"))["failed"] == 1
    assert "base-seed1" in [run.name for run in list_runs(tmp_path)], "and is no run itself"
    assert len(list_runs(tmp_path)) == 6


def test_what_it_says(tmp_path: Path) -> None:
    write_arm(tmp_path, "base", SCORES)
    measured = floors.measure(arms_in(tmp_path)["base"])
    assert measured.noise().sd == pytest.approx(np.std(list(SCORES.values()), ddof=1))
    assert measured.noise().degrees_of_freedom == 4
    found = measured.as_dict()
    assert found["sd_low"] < found["sd"] < found["sd_high"]
    least = list(found["smallest_difference"].values())
    assert least == sorted(least, reverse=True), "more seeds tell less"


def test_one_run_has_no_noise(tmp_path: Path) -> None:
    write_run(tmp_path, "one")
    write_run(tmp_path, "two", seed=2, stopped="diverged")
    with pytest.raises(UserError, match="1 of 2 runs has a score; noise takes two or more"):
        floors.measure(next(iter(arms_in(tmp_path).values())))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"version": 1}', '{"version": 9}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    write_arm(tmp_path, "base", SCORES)
    arm = arms_in(tmp_path)["base"]
    path = floors.keep(floors.measure(arm), tmp_path)
    path.write_text(content, "utf-8")
    with pytest.raises(UserError, match=str(path)):
        floors.find(tmp_path, arm.fingerprint)
