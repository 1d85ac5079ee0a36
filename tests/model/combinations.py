"""A covering set of models: every pair of choices of every two slots occurs in at least one of them."""

from __future__ import annotations

from itertools import combinations, product
from random import Random

import torch
from torch import Tensor

from farthing.model.gpt import GPT, build_model
from farthing.recipe.model import Model

VOCABULARY = 29
SHAPE = {"n_layer": 2, "n_head": 4, "d_model": 32, "context_length": 12}
SLOTS: dict[str, list[object]] = {
    "norm": [{"kind": k, "placement": p} for k, p in product(("layernorm", "rmsnorm"), ("pre", "post"))],
    "position": [{"kind": "learned"}, {"kind": "rope", "base": 1000.0}, {"kind": "none"}],
    "mlp": [
        {"kind": "gelu"},
        {"kind": "gelu", "approximate": "tanh", "ratio": 3.3},
        {"kind": "relu2", "ratio": 1},
        {"kind": "swiglu", "ratio": 8 / 3, "multiple_of": 8},
        {"kind": "geglu", "ratio": 2},
        {"kind": "geglu", "approximate": "tanh"},
    ],
    "init": [{"kind": "normal"}, {"kind": "gpt2"}, {"kind": "zero_projections"}],
    "n_kv_head": ["n_head", 2, 1],
    "qk_norm": ["none", "rmsnorm", "layernorm"],
    "gate": ["none", "head"],
    "scope": ["window", "document"],
    "bias": [False, True],
    "tie_embeddings": [True, False],
    "dropout": [0.0, 0.3],
    "layer_scale": [None, 0.1],
    "logit_softcap": [None, 2.0],
}


def section(choice: dict[str, object], **changes: object) -> Model:
    """The [model] section of one choice for each slot."""
    attention = {name: choice[name] for name in ("qk_norm", "gate", "scope")}
    rest = {name: value for name, value in choice.items() if name not in attention}
    return Model.model_validate({**SHAPE, **rest, "attention": attention, **changes})


def _covering() -> list[dict[str, int]]:
    # Greedy: of 40 random models, take the one with the most pairs not seen yet.
    random = Random(0)
    left = {(a, i, b, j) for a, b in combinations(SLOTS, 2) for i in range(len(SLOTS[a])) for j in range(len(SLOTS[b]))}
    chosen: list[dict[str, int]] = []
    while left:
        candidates = [{name: random.randrange(len(values)) for name, values in SLOTS.items()} for _ in range(40)]
        best = max(candidates, key=lambda one: len(left & _pairs(one)))
        left -= _pairs(best)
        chosen.append(best)
    return chosen


def _pairs(one: dict[str, int]) -> set[tuple[str, int, str, int]]:
    return {(a, one[a], b, one[b]) for a, b in combinations(one, 2)}


CHOICES = [{name: SLOTS[name][i] for name, i in one.items()} for one in _covering()]
MODELS = [section(choice) for choice in CHOICES]


def shaken(model_section: Model, *, attention: str = "sdpa", vocab_size: int = VOCABULARY) -> GPT:
    """A model in evaluation mode whose every parameter matters, whatever its initial value is."""
    model = build_model(model_section, vocab_size, seed=3, attention=attention)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def tokens(batch: int, length: int, *, seed: int = 5, vocab_size: int = VOCABULARY) -> Tensor:
    """Random tokens [B, T]."""
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))
