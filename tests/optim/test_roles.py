"""Every parameter in exactly one group."""

from __future__ import annotations

import pytest

from farthing.optim.roles import decayed_roles, group_by_role
from farthing.recipe.optimization import AdamW

A, B, C = object(), object(), object()


def test_groups_hold_each_parameter_once_sorted_with_the_matrices_first() -> None:
    named = [("b", B), ("c", C), ("a", A)]
    groups = group_by_role(named, {"a": "matrix", "b": "matrix", "c": "embedding"})
    assert [(role, list(group.items())) for role, group in groups.items()] == [
        ("matrix", [("a", A), ("b", B)]),
        ("embedding", [("c", C)]),
    ]


def test_what_is_in_no_group_or_in_two_is_named() -> None:
    with pytest.raises(ValueError, match="no role for 'b'"):
        group_by_role([("a", A), ("b", B)], {"a": "matrix"})
    with pytest.raises(ValueError, match="'ghost', which the model does not have"):
        group_by_role([("a", A)], {"a": "matrix", "ghost": "vector"})
    with pytest.raises(ValueError, match="'a' comes twice"):
        group_by_role([("a", A), ("a", B)], {"a": "matrix"})
    with pytest.raises(ValueError, match="'wte' and 'head' are one parameter"):
        group_by_role([("wte", A), ("head", A)], {"wte": "embedding", "head": "head"})
    with pytest.raises(ValueError, match=r"role 'bias' of 'a'.*embedding, head, matrix, vector"):
        group_by_role([("a", A)], {"a": "bias"})  # type: ignore[dict-item]


def test_long_lists_of_names_are_cut_short() -> None:
    with pytest.raises(ValueError, match="and 4 more"):
        group_by_role([(f"p{i}", object()) for i in range(9)], {})


def test_weight_decay_goes_where_the_recipe_says() -> None:
    assert decayed_roles(AdamW()) == {"matrix", "head"}
    assert decayed_roles(AdamW(weight_decay_on="two_dimensional")) == {"matrix", "head", "embedding"}
    assert decayed_roles(AdamW(weight_decay_on="all")) == {"matrix", "head", "embedding", "vector"}
