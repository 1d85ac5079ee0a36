"""A folder as transformers writes it, read as one of our models: config.json, *.safetensors and tokenizer.json.

Read as data: no class is named by the folder, no code in it is run, and nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from farthing.data.tokenizer import Tokenizer
from farthing.errors import UserError
from farthing.export.config_json import Settings, kind_of, section_of
from farthing.export.reading import CONFIG, TOKENIZER, Tensors, open_tensors, read_config, read_tokenizer
from farthing.export.unpacking import Layout, Shape, is_no_parameter, layout_of
from farthing.model.gpt import GPT
from farthing.recipe.model import Model

_LISTED = 10
_ROWS = ("embed.weight", "unembed.weight")
"""parameters with a row for each token"""


@dataclass(frozen=True)
class Foreign:
    """A model from elsewhere.

    Args:
        kind: what it was stored as, for example "llama".
        section: the same architecture as a recipe's [model].
        weights: fp32 on the CPU, under the names of GPT's state dictionary.
        tokenizer: its own.
        notes: what was not taken over as it was, a sentence each.
    """

    kind: str
    section: Model
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()


def read_folder(folder: Path) -> Foreign:
    """The model of a folder.

    Raises:
        UserError: a file is missing or damaged, or the model has what this one has not; one line names the file and
            the key or the tensors.
    """
    settings = Settings(folder / CONFIG, read_config(folder))
    section, kind = section_of(settings), kind_of(settings)
    tokenizer = read_tokenizer(folder, settings.table)
    rows = settings.whole("vocab_size")
    if rows < tokenizer.vocab_size:
        raise UserError(
            f"{folder}: {TOKENIZER} has {tokenizer.vocab_size:,} tokens, the weights only {rows:,}; put the model's "
            "own tokenizer there"
        )
    with open_tensors(folder) as tensors:
        shapes = shapes_of(section, rows)
        layout = _as_stored(layout_of(kind, section, shapes), tensors)
        _check(folder, layout, tensors, tied=section.tie_embeddings)
        weights = dict(_weights(layout, tensors, kept=tokenizer.vocab_size))
        _check_surplus(folder, layout, tensors)
    notes: tuple[str, ...] = ()
    if rows > tokenizer.vocab_size:
        notes = (f"{rows - tokenizer.vocab_size:,} rows of the embedding that no token uses were left out",)
    return Foreign(kind, section, weights, tokenizer, notes)


def shapes_of(section: Model, vocab_size: int) -> dict[str, Shape]:
    """The shape of every parameter of a model by its name; nothing is allocated."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in GPT(section, vocab_size).state_dict().items()}


def _as_stored(layout: Layout, tensors: Tensors) -> Layout:
    """The layout without the prefix (transformer. or model.) that a model saved without its head does not have."""
    embed = layout.places["embed.weight"].name
    prefix = embed.partition(".")[0] + "."
    if embed in tensors.names or embed.removeprefix(prefix) not in tensors.names:
        return layout
    places = {
        name: type(place)(place.name.removeprefix(prefix), place.shape, place.take)
        for name, place in layout.places.items()
    }
    same = {one.removeprefix(prefix): other.removeprefix(prefix) for one, other in layout.same.items()}
    return Layout(places, same, frozenset(name.removeprefix(prefix) for name in layout.zero))


def _weights(layout: Layout, tensors: Tensors, *, kept: int) -> Iterator[tuple[str, Tensor]]:
    """Each parameter of ours with its values, one stored tensor after the other."""
    last, values = "", torch.empty(0)
    for name, place in sorted(layout.places.items(), key=lambda item: item[1].name):
        if place.name != last:
            last, values = place.name, tensors.read(place.name)
        taken = place.take(values)
        taken = taken[:kept] if name in _ROWS else taken
        yield name, taken.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _check(folder: Path, layout: Layout, tensors: Tensors, *, tied: bool) -> None:
    """Refuse missing and surplus tensors, and those of another shape than config.json says, before any is read."""
    wrong = []
    for place in {place.name: place for place in layout.places.values()}.values():
        if place.name not in tensors.names:
            wrong.append(f"{place.name} is missing")
        elif (found := tensors[place.name].shape) != place.shape:
            wrong.append(f"{place.name} has the shape {list(found)}, not {list(place.shape)}")
    # A tied head may be stored all the same; transformers does not read it either.
    known = {place.name for place in layout.places.values()} | set(layout.same) | layout.zero
    known |= {"lm_head.weight"} if tied else set()
    wrong += [f"{name} belongs to no part of it" for name in sorted(tensors.names - known) if not is_no_parameter(name)]
    if wrong:
        more = f"; and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise UserError(f"{folder}: the tensors are not those of its {CONFIG}: {'; '.join(wrong[:_LISTED])}{more}")


def _check_surplus(folder: Path, layout: Layout, tensors: Tensors) -> None:
    """Refuse a tensor that we have no parameter for unless it says nothing of its own."""
    for name in sorted(layout.zero & tensors.names):
        if bool(tensors.read(name).any()):
            raise UserError(f"{folder}: {name} is a bias that is not zero, in a model that is said to have none")
    for name, other in layout.same.items():
        if name in tensors.names and not torch.equal(tensors.read(name), tensors.read(other)):
            raise UserError(f"{folder}: {name} differs from {other}; here the heads share one scale")
