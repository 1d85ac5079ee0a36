"""Every combination of slots that a stock class computes gives that class's logits; the others give those of our own code."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from export.small import every_section, exportable, tokens
from farthing import config
from farthing.export.huggingface import OWN_CLASS, lay_out, own_config
from farthing.export.modeling_farthing import FarthingConfig, FarthingForCausalLM
from farthing.export.stock import STOCK, Match, Stock, stock_class
from farthing.model.gpt import GPT
from farthing.recipe import Recipe
from farthing.recipe.model import Model
from model.combinations import MODELS, shaken

VOCABULARY = 29
LENGTH = 10


@cache
def by_class() -> dict[str, list[Model]]:
    """Every section by the name of the class that computes it."""
    found = defaultdict(list)
    for section in every_section():
        if (stock := stock_class(section).stock) is not None:
            found[stock.name].append(section)
    return found


def ours(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(ids)


def theirs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(ids).logits.float()


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max())))


def loaded(stock: Stock, section: Model, model: GPT) -> Any:
    """The stock class with the model's weights, made without files."""
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    settings = AutoConfig.for_model(stock.model_type, vocab_size=VOCABULARY, **stock.config(section), **ids)
    other = getattr(transformers, stock.name)(settings)
    weights = stock.weights(section, model.state_dict())
    missing, unexpected = other.load_state_dict(weights, strict=False)
    assert not unexpected
    assert not missing or (section.tie_embeddings and missing == ["lm_head.weight"])
    return other


@pytest.mark.parametrize("stock", STOCK, ids=lambda stock: stock.name)
def test_every_combination_of_a_class_has_its_logits(stock: Stock) -> None:
    ids = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(5))
    sections = by_class()[stock.name]
    assert len(sections) >= 12
    for section in sections:
        model = shaken(section, vocab_size=VOCABULARY)
        assert close(theirs(loaded(stock, section, model), ids), ours(model, ids)), section


@pytest.mark.parametrize("stock", STOCK, ids=lambda stock: stock.name)
def test_a_folder_of_each_class_loads_and_writes_with_and_without_its_cache(stock: Stock, tmp_path: Path) -> None:
    section = by_class()[stock.name][-1]
    made = exportable(section)
    lay_out(tmp_path, made, Match(stock))
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False, dtype=torch.float32)
    assert type(model).__name__ == stock.name
    agrees(model, section)


@pytest.mark.parametrize("number", range(len(MODELS)))
def test_our_own_code_has_the_logits_of_any_model(number: int) -> None:
    section = MODELS[number]
    made = exportable(section)
    settings = own_config(made.section)
    model = FarthingForCausalLM(FarthingConfig(vocab_size=made.vocab_size, **settings))
    missing, unexpected = model.load_state_dict(dict(made.weights), strict=False)
    assert not unexpected
    assert missing == (["unembed.weight"] if section.tie_embeddings else [])
    model.tie_weights()
    model.generation_config.eos_token_id = None
    agrees(model, section)


def agrees(model: Any, section: Model) -> None:
    """Logits of a full pass, of a padded one, and text with the cache and without."""
    model.eval()
    mine = shaken(section, vocab_size=model.config.vocab_size)
    ids = tokens(2, LENGTH)
    expected = ours(mine, ids)
    assert close(theirs(model, ids), expected)
    short = ids[:, :6]
    padded = torch.cat((torch.full((2, 3), 256), short), dim=1)
    mask = torch.cat((torch.zeros(2, 3, dtype=torch.int64), torch.ones_like(short)), dim=1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        seen = model(padded, attention_mask=mask, position_ids=places).logits.float()
    assert close(seen[:, 3:], expected[:, :6])
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 256, "eos_token_id": None}
    ones = torch.ones_like(short)
    with_cache = model.generate(short, attention_mask=ones, use_cache=True, **settings)
    assert torch.equal(with_cache, model.generate(short, attention_mask=ones, use_cache=False, **settings))
    greedy = short
    for _ in range(5):
        greedy = torch.cat((greedy, ours(mine, greedy)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(with_cache, greedy)


def test_the_shipped_recipes_need_no_code_of_their_own() -> None:
    own = {}
    for name in config.shipped_recipes():
        match = stock_class(config.load(Recipe, name).model)
        if match.stock is None:
            own[name] = match.reason
    assert "default" not in own
    assert all(reason.startswith("the nearest, ") for reason in own.values())


def test_a_model_without_a_class_is_told_what_stands_in_the_way() -> None:
    gated = stock_class(Model.model_validate({"attention": {"gate": "head"}}))
    assert gated.stock is None
    assert gated.reason == "the nearest, ArceeForCausalLM, cannot do: an output gate in attention"
    squeezed = stock_class(Model.model_validate({"norm": {"kind": "rmsnorm", "placement": "post"}}))
    assert "rmsnorm after each branch" in squeezed.reason


def test_documents_kept_apart_are_a_note_not_an_obstacle() -> None:
    match = stock_class(Model.model_validate({"attention": {"scope": "document"}}))
    assert match.stock is not None
    assert "one document at a time" in match.notes[0]


@pytest.mark.parametrize("stock", STOCK, ids=lambda stock: stock.name)
def test_config_holds_nothing_that_its_class_does_not_read(stock: Stock, tmp_path: Path) -> None:
    lay_out(tmp_path, exportable(by_class()[stock.name][0]), Match(stock))
    written = json.loads((tmp_path / "config.json").read_text("utf-8"))
    known = set(AutoConfig.for_model(stock.model_type).to_dict()) | {"architectures", "dtype"}
    known |= set(AutoConfig.for_model(stock.model_type).attribute_map.values())
    assert written.keys() <= known
    assert written["architectures"] == [stock.name]


def test_our_own_config_holds_nothing_that_its_class_does_not_read(tmp_path: Path) -> None:
    section = Model.model_validate({"n_layer": 1, "n_head": 2, "d_model": 16, "attention": {"gate": "head"}})
    lay_out(tmp_path, exportable(section), Match(None, "no reason"))
    written = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert written.keys() <= set(FarthingConfig().to_dict()) | {"architectures", "auto_map", "dtype"}
    assert written["architectures"] == [OWN_CLASS]
