"""The drawing of a network: valid, complete, and with the plan's own counts."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farthing.model.cost import parameter_table
from farthing.recipe.model import Model
from farthing.report.architecture import draw

SVG = "{http://www.w3.org/2000/svg}"


def texts(model: Model, vocabulary: int = 1000) -> list[str]:
    figure = draw(model, vocabulary, parameter_table(model, vocabulary))
    return [element.text or "" for element in ElementTree.fromstring(figure.svg).iter(f"{SVG}text")]


def model(**changes: object) -> Model:
    return Model.model_validate({"n_layer": 3, "n_head": 4, "d_model": 32, "context_length": 16, **changes})


def test_it_says_what_the_recipe_asks_for() -> None:
    asked = model(n_kv_head=2, mlp={"kind": "swiglu"}, norm={"kind": "layernorm"}, dropout=0.1, tie_embeddings=False)
    found = " | ".join(texts(asked))
    for word in (
        "SwiGLU",
        "LayerNorm",
        "grouped-query",
        "4 query heads, 2 key/value heads",
        "dropout 0.1",
        "× 3",
        "RoPE",
    ):
        assert word in found
    assert "tied" not in found


def test_counts_are_those_of_the_plan() -> None:
    asked = model()
    table = parameter_table(asked, 1000)
    found = texts(asked)
    assert f"{table['embedding']:,}" in found
    assert f"{table['attention'] // 3:,}" in found
    assert f"{table['mlp'] // 3:,}" in found


def test_norms_stand_where_they_are() -> None:
    def order(placement: str) -> list[str]:
        return [
            one
            for one in texts(model(norm={"kind": "rmsnorm", "placement": placement}))
            if one in ("RMSNorm", "attention", "+")
        ]

    assert order("pre") == ["RMSNorm", "attention", "+", "RMSNorm", "+", "RMSNorm"]
    assert order("post") == ["attention", "+", "RMSNorm", "+", "RMSNorm"]


@settings(deadline=None)
@given(
    st.sampled_from(["pre", "post"]),
    st.sampled_from(["gelu", "relu2", "swiglu", "geglu"]),
    st.sampled_from(["learned", "rope", "none"]),
    st.sampled_from(["none", "rmsnorm", "layernorm"]),
    st.booleans(),
    st.integers(1, 96),
)
def test_nothing_lies_outside_the_picture(
    placement: str, mlp: str, position: str, qk_norm: str, tied: bool, layers: int
) -> None:
    asked = model(
        norm={"kind": "rmsnorm", "placement": placement}, mlp={"kind": mlp}, position={"kind": position},
        attention={"qk_norm": qk_norm, "gate": "head", "scope": "document"}, tie_embeddings=tied, n_layer=layers,
        layer_scale=0.1, logit_softcap=30.0,
    )  # fmt: skip
    root = ElementTree.fromstring(draw(asked, 50_257, parameter_table(asked, 50_257)).svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for element in root.iter(f"{SVG}text"):
        assert 0 <= float(element.attrib["x"]) <= width
        assert 0 <= float(element.attrib["y"]) <= height
    for element in root.iter(f"{SVG}rect"):
        assert float(element.attrib["x"]) + float(element.attrib["width"]) <= width
        assert float(element.attrib["y"]) + float(element.attrib["height"]) <= height


@pytest.mark.parametrize("count", [1, 2, 12])
def test_the_frame_says_how_often_the_block_is_repeated(count: int) -> None:
    assert f"× {count}" in texts(model(n_layer=count))
