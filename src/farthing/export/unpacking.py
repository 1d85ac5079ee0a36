"""Tensors as transformers' classes store them, as the parameters of ours: stock.py the other way round.

Shapes: D model width, H query heads, K width of a head, R rows of a linear layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from farthing.export.stock import STOCK
from farthing.recipe.model import Model

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where one parameter lies.

    Args:
        name: the stored tensor.
        shape: that it must have.
        take: the parameter, of that tensor.
    """

    name: str
    shape: Shape
    take: Callable[[Tensor], Tensor] = lambda stored: stored


@dataclass(frozen=True)
class Layout:
    """Where everything lies.

    Args:
        places: by the name of our parameter.
        same: stored tensors that must equal another one.
        zero: stored tensors that must be zero: biases that we do not have.
    """

    places: Mapping[str, Place]
    same: Mapping[str, str] = field(default_factory=dict)
    zero: frozenset[str] = frozenset()


_IGNORED = re.compile(r"(.*\.)?(h\.\d+\.attn\.(bias|masked_bias)|rotary_emb\.inv_freq)")
"""what older versions stored that is no parameter"""


def is_no_parameter(name: str) -> bool:
    """Whether a stored tensor is a mask or a table that can be computed."""
    return _IGNORED.fullmatch(name) is not None


def layout_of(kind: str, section: Model, shapes: Mapping[str, Shape]) -> Layout:
    """Where an architecture stores what.

    Args:
        kind: the architecture's model_type.
        section: the model.
        shapes: of our parameters, by name.
    """
    if kind == "farthing":
        return Layout({name: Place(name, shape) for name, shape in shapes.items()})
    stock = next(one for one in STOCK if one.model_type == kind)
    places: dict[str, Place] = {}
    same: dict[str, str] = {}
    for name, shape in shapes.items():
        module, leaf, number = _bare(name)
        stored = stock.names[module]
        if number is not None:
            stored = f"{stock.names['blocks'].format(number)}.{stored}"
        place = Place(f"{stored}.{leaf}", shape)
        places[name] = _ADAPTED[kind](section, module, place) if kind in _ADAPTED else place
        if kind == "stablelm" and module.endswith(("query_norm", "key_norm")):
            heads = section.n_head if "query" in module else section.kv_heads
            first = places[name].name
            same |= {first.replace(".norms.0.", f".norms.{head}."): first for head in range(1, heads)}
    missing = frozenset() if section.bias else _zero_biases(stock.biased, places)
    return Layout(places, same, missing)


def _bare(name: str) -> tuple[str, str, int | None]:
    """`blocks.3.mlp.up.weight` as mlp.up, weight, 3."""
    module, _, leaf = name.rpartition(".")
    if not module.startswith("blocks."):
        return module, leaf, None
    _, number, inner = module.split(".", 2)
    return inner, leaf, int(number)


def _zero_biases(biased: tuple[str, ...], places: Mapping[str, Place]) -> frozenset[str]:
    """Biases that are always stored, of modules that have none here."""
    weights = [(_bare(name), place.name) for name, place in places.items()]
    return frozenset(
        f"{stored.removesuffix('.weight')}.bias"
        for (module, leaf, _), stored in weights
        if leaf == "weight" and module in biased
    )


def _gpt2(section: Model, module: str, place: Place) -> Place:
    """Linear layers are [in, out], and query, key and value are one."""
    parts = {"attention.query": 0, "attention.key": 1, "attention.value": 2}
    linear = module in parts or module in ("attention.output", "mlp.up", "mlp.down")
    if not linear:
        return place
    name, shape, matrix = place.name, place.shape, len(place.shape) == 2
    if module in parts:
        name = re.sub(r"\.attn\.[qkv]\.", ".attn.c_attn.", name)
        shape = (3 * shape[0], *shape[1:])

    def take(stored: Tensor) -> Tensor:
        rows = stored.t() if matrix else stored
        return rows.chunk(3)[parts[module]] if module in parts else rows

    return Place(name, shape[::-1], take)


def _persimmon(section: Model, module: str, place: Place) -> Place:
    """Query, key and value of a head lie together: [H, 3, K, ...]."""
    parts = ("attention.query", "attention.key", "attention.value")
    if module not in parts:
        return place
    name = re.sub(r"\.[qkv]_proj\.", ".query_key_value.", place.name)

    def take(stored: Tensor) -> Tensor:
        by_head = stored.reshape(section.n_head, 3, section.head_dim, *stored.shape[1:])
        return by_head[:, parts.index(module)].flatten(0, 1)

    return Place(name, (3 * place.shape[0], *place.shape[1:]), take)


def _stablelm(section: Model, module: str, place: Place) -> Place:
    """A scale for each head; ours is shared, so they must all be the same."""
    if not module.endswith(("query_norm", "key_norm")):
        return place
    return Place(place.name.replace("_norm.", "_layernorm.norms.0."), place.shape)


def _vaultgemma(section: Model, module: str, place: Place) -> Place:
    """Embeddings are multiplied by sqrt(D), and norms by 1 + weight; the last norm makes up for it in a tied head."""
    root = section.d_model**0.5
    if module == "embed":
        return Place(place.name, place.shape, lambda stored: stored.double() * root)
    if module == "norm" and section.tie_embeddings:
        return Place(place.name, place.shape, lambda stored: (stored.double() + 1) / root)
    if module.endswith("norm"):
        return Place(place.name, place.shape, lambda stored: stored.double() + 1)
    return place


def _opt(section: Model, module: str, place: Place) -> Place:
    """The first two rows of the table of positions are not used."""
    if module != "position":
        return place
    return Place(place.name, (place.shape[0] + 2, place.shape[1]), lambda stored: stored[2:])


_ADAPTED: dict[str, Callable[[Model, str, Place], Place]] = {
    "gpt2": _gpt2,
    "persimmon": _persimmon,
    "stablelm": _stablelm,
    "vaultgemma": _vaultgemma,
    "opt": _opt,
}
"""how an architecture stores a parameter where that is more than another name"""
