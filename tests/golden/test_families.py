"""Golden losses of a GPT-2-like and a Llama-like model and the titles baseline: what should change nothing does not.

Fixed text, fp32, one thread, attention as plain matrix products. Across processors and torch releases sums come in
other orders; ten steps carry such differences (1e-7 each) to about 1e-6, while the smallest change of meaning, a beta
in its third digit or a weight left out of decay, moves a loss by 1e-4 and more: hence the tolerance.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farthing import assemble
from golden.families import FOLDER, RECIPES, losses

EXPECTED = json.loads((FOLDER / "families.json").read_text("utf-8"))
TOLERANCE = 1e-4


def test_each_recipe_has_its_losses() -> None:
    assert EXPECTED.keys() == RECIPES.keys()
    assert all(len(kept["losses"]) == 10 for kept in EXPECTED.values())


@pytest.mark.parametrize("name", RECIPES)
def test_the_losses_are_those_of_before(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(assemble, "CALIBRATION_SECONDS", 0.0)
    found, kept = losses(name, tmp_path), EXPECTED[name]
    assert found["parameters"] == kept["parameters"]
    assert found["losses"] == pytest.approx(kept["losses"], rel=TOLERANCE)
    assert found["validation"] == pytest.approx(kept["validation"], rel=TOLERANCE)
    # They fall, so that a run that learns nothing cannot pass for long.
    assert found["losses"][-1] < found["losses"][0]
