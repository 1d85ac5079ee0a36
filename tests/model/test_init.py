"""Initial weights are what the recipe says, parameter by parameter."""

from __future__ import annotations

import pytest
import torch

from farthing.model.gpt import GPT, build_model
from farthing.model.init import initialize
from farthing.model.roles import role_of
from farthing.recipe.model import Model
from model.combinations import shaken, tokens

BIG = {
    "n_layer": 3,
    "n_head": 4,
    "d_model": 128,
    "context_length": 128,
    "bias": True,
    "layer_scale": 0.25,
    "tie_embeddings": False,
    "norm": {"kind": "layernorm"},
    "position": {"kind": "learned"},
    "attention": {"qk_norm": "layernorm", "gate": "head"},
    "mlp": {"kind": "swiglu"},
}


@pytest.mark.parametrize(("kind", "projection"), [("normal", 0.03), ("gpt2", 0.03 / 6**0.5), ("zero_projections", 0.0)])
def test_statistics(kind: str, projection: float) -> None:
    section = Model.model_validate({**BIG, "init": {"kind": kind, "std": 0.03}})
    for name, parameter in build_model(section, 500, seed=11).named_parameters():
        values = parameter.detach()
        if name.endswith("bias"):
            assert not values.any(), name
        elif "norm" in name:
            assert (values == 1).all(), name
        elif name.endswith("_scale"):
            assert (values == 0.25).all(), name
        else:
            expected = projection if name.endswith(("output.weight", "down.weight")) else 0.03
            assert float(values.std()) == pytest.approx(expected, rel=0.1), name
            assert abs(float(values.mean())) <= 5 * expected / values.numel() ** 0.5, name


def test_no_two_matrices_are_alike() -> None:
    matrices = [
        p.flatten()[:16] for p in build_model(Model.model_validate(BIG), 500, seed=0).parameters() if p.ndim == 2
    ]
    assert len({tuple(values.tolist()) for values in matrices}) == len(matrices)


def test_zero_projections_start_as_the_identity() -> None:
    section = Model.model_validate({**BIG, "init": {"kind": "zero_projections"}})
    gpt, rows = build_model(section, 61, seed=0), tokens(2, 9)
    assert gpt.norm is not None
    assert gpt.position is not None
    torch.testing.assert_close(gpt.hidden(rows), gpt.norm(gpt.embed(rows) + gpt.position.weight[:9]))


def test_a_parameter_that_nobody_initialises_or_gives_a_role_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"blocks\.0\.attention\.sink.*model/init\.py"):
        initialize({"blocks.0.attention.sink": torch.zeros(4)}, Model(), seed=0)
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.experts\.weight.*model/roles\.py"):
        role_of("blocks.0.mlp.experts.weight", 3)


@pytest.mark.parametrize(
    ("layers", "heads", "width", "context", "vocabulary", "published"),
    [
        (6, 8, 512, 128, 16_000, 27_172_864),
        (6, 6, 384, 64, 4_000, 12_208_128),
        (4, 3, 192, 64, 4_000, 2_560_128),
    ],
)
def test_the_titles_models_have_their_published_size(
    layers: int, heads: int, width: int, context: int, vocabulary: int, published: int
) -> None:
    shape = {"n_layer": layers, "n_head": heads, "d_model": width, "context_length": context}
    slots = {"norm": {"kind": "layernorm"}, "position": {"kind": "learned"}, "mlp": {"kind": "gelu"}, "bias": True}
    with torch.device("meta"):
        gpt = GPT(Model.model_validate({**shape, **slots}), vocabulary)
    assert sum(parameter.numel() for parameter in gpt.parameters()) == published


def test_gpt2_has_its_published_size() -> None:
    shape = {"n_layer": 12, "n_head": 12, "d_model": 768, "context_length": 1024, "bias": True}
    slots = {"norm": {"kind": "layernorm"}, "position": {"kind": "learned"}}
    with torch.device("meta"):
        gpt = GPT(Model.model_validate({**shape, **slots}), 50_257)
    assert sum(parameter.numel() for parameter in gpt.parameters()) == 124_439_808


def test_a_window_longer_than_the_context_is_refused() -> None:
    gpt = shaken(Model(n_layer=1, n_head=1, d_model=4, context_length=6))
    with pytest.raises(ValueError, match="7 positions do not fit into context_length=6"):
        gpt(tokens(1, 7))


def test_an_empty_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=0"):
        GPT(Model(), 0)
