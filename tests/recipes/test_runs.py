"""Every shipped recipe plans as it is, and trains when its text, its model and its budget are made small."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farthing import api, config
from farthing.model.memory import memory
from farthing.recipe import Recipe

SHIPPED = config.shipped_recipes()
SENTENCES = [f"Show HN: the {word} that counts {number}\n" for number in range(40) for word in ("farthing", "penny")]


def byte_tokens(count: int) -> np.ndarray:
    """Documents of the byte tokenizer, each opened by its separator."""
    documents = ([256, *text.encode()] for text in SENTENCES[:count])
    return np.array([token for document in documents for token in document], dtype=np.uint16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text in each of the forms that the recipes read."""
    made = tmp_path_factory.mktemp("texts")
    (made / "hn_titles.txt").write_text("".join(SENTENCES), "utf-8")
    np.savez(made / "tokens.npz", tokens=byte_tokens(60))
    (made / "fineweb10B").mkdir()
    for name, count in (("train_000001", 60), ("val_000000", 10)):
        tokens = byte_tokens(count)
        header = np.zeros(256, dtype=np.int32)
        header[:3] = 20240520, 1, len(tokens)
        (made / "fineweb10B" / f"fineweb_{name}.bin").write_bytes(header.tobytes() + tokens.tobytes())
    return made


def smaller(recipe: Recipe) -> dict[str, Any]:
    """Overrides that leave the kind of everything as it is and make its size that of a test."""
    grouped = recipe.model.kv_heads < recipe.model.n_head
    small: dict[str, Any] = {
        "model.n_layer": 2,
        "model.n_head": 4,
        "model.n_kv_head": 2 if grouped else "n_head",
        "model.d_model": 32,
        "model.context_length": 16,
        "train.batch_size": 4,
        "train.compile": "off",
        "evaluate.every": "end",
        "checkpoint.every": "end",
        "sample.tokens": 4,
        "limits.min_megabytes": None,
        "budget.steps": 2,
    }
    small |= {f"budget.{limit}": None for limit in recipe.budget.limits() if limit != "steps"}
    match recipe.tokenizer.kind:
        case "gpt2":  # its two files are not at hand everywhere
            small["tokenizer.kind"] = "byte"
        case "bpe" | "unigram":
            small["tokenizer.vocab_size"] = 300
    if recipe.data.kind == "pystdlib":
        small["data.limit"] = 20
    return small


@pytest.mark.parametrize("name", SHIPPED)
def test_it_trains(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run = api.train(name, smaller(config.load(Recipe, name)), runs=tmp_path, device="cpu", quiet=True)
    assert run.status == "finished"
    assert run.spent["steps"] == 2
    assert 0 < run.validation["bits_per_byte"] < 16
    assert math.isfinite(run.validation["nats_per_token"])
    if name.startswith(("titles", "studies/a", "studies/c")):
        assert 0 < run.validation["legacy_coverage"] <= 1


@pytest.mark.parametrize("name", SHIPPED)
def test_it_plans_as_shipped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = config.load(Recipe, name)
    # Only the default's text is on every machine; a plan is made without it too, and says what is missing.
    at_hand = recipe.data.kind == "pystdlib"
    less = {"data.limit": 20, "tokenizer.vocab_size": 300, "train.compile": "off", "train.batch_size": 1}
    planned = api.plan(recipe, less if at_hand else {}, device="cpu")
    assert (planned.missing_text is None) == at_hand
    assert planned.plan.parameters == sum(planned.plan.parameters_by_part.values()) > 0
    assert planned.plan.memory_bytes == sum(planned.plan.memory.values()) > 0
    parts = planned.plan.parameters_by_part
    assert planned.plan.flops_per_token > 6 * (parts["attention"] + parts["mlp"])
    if not at_hand and recipe.tokenizer.kind == "gpt2":
        assert planned.plan.vocab_size == 50_257


def test_study_a_runs_out_of_its_twelve_gigabytes_at_step_six_unless_attention_is_fused() -> None:
    def gigabytes(name: str, attention: Any) -> float:
        recipe = config.load(Recipe, name)
        terms = memory(
            recipe.model,
            16_000,
            micro_batch=recipe.train.batch_size,
            precision="fp32",
            attention=attention,
            optimizer_bytes_per_parameter=8,
            ema=False,
            device="cuda",
        )
        return sum(terms.values()) / 2**30

    recipe = config.load(Recipe, "studies/a6")
    assert (recipe.train.precision, recipe.train.micro_batch) == ("fp32", recipe.train.batch_size)
    assert gigabytes("studies/a5", "math") < 12 < gigabytes("studies/a6", "math")
    assert gigabytes("studies/a6", "sdpa") < 12
