"""Which parameter is treated how: groups by the role that the model publishes. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar, get_args

from farthing.recipe.optimization import Optimizer

Role = Literal["embedding", "head", "matrix", "vector"]
"""matrix: a hidden weight; head: an untied output layer (a tied one is an embedding); vector: biases, norms, scales"""

# The hidden matrices come first: their rate is the one that is shown and logged for a set with several rates.
ORDER: tuple[Role, ...] = ("matrix", "head", "embedding", "vector")

ParameterT = TypeVar("ParameterT")


def group_by_role(
    named_parameters: Iterable[tuple[str, ParameterT]], roles: Mapping[str, Role]
) -> dict[Role, dict[str, ParameterT]]:
    """Put every parameter into the one group of its role; groups without parameters are left out.

    Inside a group parameters are sorted by name, so that the order in which they arrive changes nothing.

    Raises ValueError, with the names: a parameter without a role, a role without a parameter, an unknown role, a
    name or a parameter (a tied weight under two names) that comes twice.
    """
    parameters: dict[str, ParameterT] = {}
    owner: dict[int, str] = {}
    for name, parameter in named_parameters:
        if name in parameters:
            raise ValueError(f"parameter {name!r} comes twice; every parameter belongs to exactly one group")
        if id(parameter) in owner:
            raise ValueError(f"{owner[id(parameter)]!r} and {name!r} are one parameter; pass a tied weight once")
        parameters[name] = parameter
        owner[id(parameter)] = name
    if missing := sorted(parameters.keys() - roles.keys()):
        raise ValueError(f"no role for {_listed(missing)}; every parameter belongs to exactly one group")
    if surplus := sorted(roles.keys() - parameters.keys()):
        raise ValueError(f"roles name {_listed(surplus)}, which the model does not have")
    if unknown := sorted(name for name in parameters if roles[name] not in get_args(Role)):
        raise ValueError(
            f"role {roles[unknown[0]]!r} of {_listed(unknown)}: known roles are {', '.join(get_args(Role))}"
        )
    groups: dict[Role, dict[str, ParameterT]] = {}
    for role in ORDER:
        names = sorted(name for name in parameters if roles[name] == role)
        if names:
            groups[role] = {name: parameters[name] for name in names}
    return groups


def decayed_roles(section: Optimizer) -> frozenset[Role]:
    """The roles whose parameters `weight_decay` shrinks, by `weight_decay_on`."""
    match section.weight_decay_on:
        case "matrices":
            return frozenset({"matrix", "head"})
        case "two_dimensional":
            return frozenset({"matrix", "head", "embedding"})
        case "all":
            return frozenset({"matrix", "head", "embedding", "vector"})


def _listed(names: list[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
