"""What an optimizer keeps in memory between steps, for the plan. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from farthing.optim.roles import Role
from farthing.recipe.optimization import (
    Adafactor,
    AdamW,
    AnyOptimizer,
    Lion,
    Muon,
    NoSharpness,
    RmsProp,
    Sgd,
    Sharpness,
)

_FLOAT32 = 4
# One row and one column of each matrix: 1/rows + 1/columns of an element for each parameter. Widths of 128 to 512
# with their usual ratios lie between 1/256 and 1/64; the upper end is taken, a small number either way.
_FACTORED = 1 / 64


def bytes_per_parameter(section: AnyOptimizer, role: Role) -> float:
    """Bytes of optimizer state for one float32 parameter of a role.

    Exact for every kind but Adafactor, whose state depends on the shape of each matrix: an estimate from above for
    matrices that are at least 128 wide. Step counters (4 bytes a tensor) are left out.
    """
    match section:
        case Sgd():
            return _FLOAT32 if section.momentum > 0 else 0
        case AdamW():
            return 2 * _FLOAT32
        case Adafactor():
            return _FLOAT32 if role == "vector" else _FLOAT32 * _FACTORED
        case RmsProp():
            return 2 * _FLOAT32 if section.momentum > 0 else _FLOAT32
        case Lion():
            return _FLOAT32
        case Muon():
            return _FLOAT32 if role == "matrix" else 2 * _FLOAT32
        case _:
            assert_never(section)


def state_bytes(section: AnyOptimizer, parameters_by_role: Mapping[Role, int]) -> int:
    """Bytes that the optimizer keeps between steps, given the number of parameters of each role."""
    return round(sum(bytes_per_parameter(section, role) * count for role, count in parameters_by_role.items()))


def sharpness_bytes(sharpness: Sharpness, parameters_by_role: Mapping[Role, int]) -> int:
    """Bytes of the saved weights during the second pass of a sharpness-aware step: one float32 copy of everything."""
    return 0 if isinstance(sharpness, NoSharpness) else _FLOAT32 * sum(parameters_by_role.values())
