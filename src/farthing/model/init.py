"""Initial weights, parameter by parameter and by name."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

from farthing.recipe.model import Gpt2Init, Model, NormalInit, RunInit, ZeroInit


@torch.no_grad()
def initialize(parameters: Mapping[str, Tensor], section: Model, *, seed: int) -> None:
    """Fill a model's parameters, in the order given, from a random generator of their own.

    Matrices are normal with mean 0 and standard deviation init.std, or as `section.init` says for the projections back
    into the residual stream; biases are 0, norm scales 1, layer scales their recipe's value.

    Raises:
        ValueError: no rule covers a parameter.
    """
    generator, init = torch.Generator().manual_seed(seed), section.init
    assert not isinstance(init, RunInit), "the weights of a run are read, not drawn"
    for name, parameter in parameters.items():
        match name.split("."):
            case ["embed" | "position" | "unembed", "weight"]:
                parameter.normal_(0.0, init.std, generator=generator)
            case ["blocks", _, "attention" | "mlp", "output" | "down", "weight"]:
                parameter.normal_(0.0, _projection_std(init, section.n_layer), generator=generator)
            case ["blocks", _, "attention" | "mlp", "query" | "key" | "value" | "gate" | "up", "weight"]:
                parameter.normal_(0.0, init.std, generator=generator)
            case [*_, "norm" | "attention_norm" | "mlp_norm" | "query_norm" | "key_norm", "weight"]:
                parameter.fill_(1.0)
            case [*_, "bias"]:
                parameter.zero_()
            case ["blocks", _, "attention_scale" | "mlp_scale"] if section.layer_scale is not None:
                parameter.fill_(section.layer_scale)
            case _:
                raise ValueError(f"the parameter {name!r} has no initial value; give it one in model/init.py")


def _projection_std(init: NormalInit | Gpt2Init | ZeroInit, n_layer: int) -> float:
    match init:
        case NormalInit():
            return init.std
        case Gpt2Init():
            return init.std / sqrt(2 * n_layer)
        case ZeroInit():
            return 0.0
