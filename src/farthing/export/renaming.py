"""Weights under other names, with biases, without LayerScale: what several of the stock classes ask for.

Shapes: D model width, P positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def without_layer_scale(ours: Mapping[str, Tensor]) -> Weights:
    """The same model without LayerScale: a scale on a branch's output is one on the rows of its last projection."""
    folded = dict(ours)
    for branch, projection in (("attention_scale", "attention.output"), ("mlp_scale", "mlp.down")):
        for name in [name for name in ours if name.endswith(f".{branch}")]:
            scale_D = folded.pop(name)
            module = name.removesuffix(branch) + projection
            folded[f"{module}.weight"] = folded[f"{module}.weight"] * scale_D.unsqueeze(1)
            if f"{module}.bias" in folded:
                folded[f"{module}.bias"] = folded[f"{module}.bias"] * scale_D
    return folded


def with_biases(ours: Weights, modules: tuple[str, ...]) -> Weights:
    """With zeros for the biases that some modules (of a block, or of the model) always have there."""
    added = {}
    for name, weight in ours.items():
        module, _, leaf = name.rpartition(".")
        bare = module.split(".", 2)[2] if module.startswith("blocks.") else module
        if leaf == "weight" and bare in modules and f"{module}.bias" not in ours:
            added[f"{module}.bias"] = weight.new_zeros(weight.shape[0])
    return {**ours, **added}


def with_positions(weights: Weights, name: str, shape_PD: tuple[int, int], *, unused: int) -> Weights:
    """With the table of positions, whose first rows are not used there; zeros where we have no positions."""
    like = next(iter(weights.values()))
    table_PD = weights[name] if name in weights else like.new_zeros(shape_PD)
    return {**weights, name: torch.cat((like.new_zeros(unused, shape_PD[1]), table_PD))}


def fused(weights: Weights, parts: tuple[str, ...], whole: str, join: Callable[[list[Tensor]], Tensor]) -> Weights:
    """The parts (modules of one parent) joined into one module, weights and biases alike."""
    theirs = {}
    for name, tensor in weights.items():
        module, _, leaf = name.rpartition(".")
        parent, _, last = module.rpartition(".")
        if last == parts[0]:
            theirs[f"{parent}.{whole}.{leaf}"] = join([weights[f"{parent}.{part}.{leaf}"] for part in parts])
        elif last not in parts:
            theirs[name] = tensor
    return theirs
