"""Golden losses: what a change that should change nothing must leave alone (CONTRIBUTING.md, "Proof of value").

To accept new numbers on purpose: FARTHING_GOLDEN=write pytest tests/golden, and say in the commit why they moved.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from farthing import api, config
from farthing.recipe import Recipe

GOLDEN = Path(__file__).with_name("losses.json")
STEPS = 12
# Other processors round otherwise; a change of the mathematics moves these losses by far more.
TOLERANCE = 1e-4

SMALL: dict[str, Any] = {
    "data.kind": "text",
    "data.path": "text.txt",
    "data.documents": "line",
    "tokenizer.vocab_size": 320,
    "model.n_layer": 2,
    "model.d_model": 48,
    "model.n_head": 4,
    "model.context_length": 32,
    "train.batch_size": 8,
    "train.micro_batch": 4,
    "train.precision": "fp32",
    "train.attention": "sdpa",
    "train.compile": "off",
    "train.threads": 1,
    "evaluate.every": "end",
    "evaluate.references": False,
    "checkpoint.every": "end",
    "sample.tokens": 0,
    "budget.steps": STEPS,
}
RECIPES = ["default", "titles-best", "studies/c-smallest"]


def text() -> str:
    """Lines of made-up words, some much more frequent than others; the same on every machine."""
    syllables = [first + second for first in "bdfglmnprst" for second in "aeiou"]
    words = [syllables[7 * k % 55] + syllables[(3 * k + k // 5) % 55] + "n" * (k % 2) for k in range(150)]
    lines = [
        " ".join(
            words[(line * line + 31 * place * line + place * place) % (10 + 140 * (place % 2))] for place in range(8)
        )
        for line in range(240)
    ]
    return "\n".join(lines) + "\n"


def losses(name: str, folder: Path) -> dict[str, Any]:
    recipe = config.load(Recipe, name)
    changes = SMALL | {f"budget.{limit}": None for limit in recipe.budget.limits() if limit != "steps"}
    run = api.train(name, changes, runs=folder / "runs", device="cpu", quiet=True)
    steps = [round(event["loss"], 6) for event in run.events if event["kind"] == "step"]
    return {"losses": steps, "bits_per_byte": round(run.validation["bits_per_byte"], 6)}


@pytest.mark.parametrize("name", RECIPES)
def test_losses_are_what_they_were(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(text(), "utf-8")
    found = losses(name, tmp_path)
    golden = json.loads(GOLDEN.read_text("utf-8")) if GOLDEN.exists() else {}
    if os.environ.get("FARTHING_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(golden | {name: found}, indent=2) + "\n", "utf-8")
        return
    assert len(found["losses"]) == STEPS
    assert found["losses"] == pytest.approx(golden[name]["losses"], rel=TOLERANCE)
    assert found["bits_per_byte"] == pytest.approx(golden[name]["bits_per_byte"], rel=TOLERANCE)
