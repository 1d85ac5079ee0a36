"""Role: what a parameter is for, which is all that an optimizer may know of a model."""

from __future__ import annotations

from typing import Literal

Role = Literal["embedding", "head", "matrix", "vector"]
"""embedding: a row per token or position; head: the untied output matrix; matrix: any other linear map's weight;
vector: biases, norm scales, layer scales. A tied head is one parameter, and an embedding."""


def role_of(name: str, dimensions: int) -> Role:
    """The role of the parameter `name`, which has so many dimensions.

    Raises:
        ValueError: no rule covers the parameter; a new kind of parameter must be given a role here.
    """
    if name in ("embed.weight", "position.weight"):
        return "embedding"
    if name == "unembed.weight":
        return "head"
    if name.startswith("blocks.") and name.endswith(".weight") and dimensions == 2:
        return "matrix"
    if name.startswith(("blocks.", "norm.")) and dimensions == 1:
        return "vector"
    raise ValueError(f"the parameter {name!r} with {dimensions} dimensions has no role; give it one in model/roles.py")
