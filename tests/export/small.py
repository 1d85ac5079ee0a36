"""Tiny models to export: every combination of slots, and what a run would bring along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product

import torch

from farthing.data.tokenizer import Tokenizer
from farthing.data.tokenizer_train import SEPARATOR, byte_tokenizer
from farthing.export import Exportable
from farthing.recipe.model import Model
from farthing.recipe.running import Sample
from model.combinations import SLOTS, section, shaken

SHARED = {"init": {"kind": "normal"}, "dropout": 0.0, "scope": "window"}
"""slots that do not change what a model computes when it is evaluated"""
TEXTS = ("The farthing was the smallest coin.", "Zwei Kreuzer\n\tund ein Heller – 3½ ½d.", "def f(x): return x")


def every_section() -> Iterator[Model]:
    """Every combination of the slots that change a model's arithmetic."""
    names = [name for name in SLOTS if name not in SHARED and name != "n_kv_head"]
    for values in product(*(SLOTS[name] for name in names), ["n_head", 2]):
        yield section({**SHARED, **dict(zip([*names, "n_kv_head"], values, strict=True))})


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_json(byte_tokenizer(), separator=SEPARATOR)


def exportable(model_section: Model, *, texts: Sequence[str] = TEXTS, sample: Sample | None = None) -> Exportable:
    """A model whose every parameter matters, as a writer takes it."""
    made = shaken(model_section, vocab_size=tokenizer().vocab_size)
    return Exportable(
        section=model_section,
        vocab_size=tokenizer().vocab_size,
        weights={name: tensor.detach().clone() for name, tensor in made.state_dict().items()},
        tokenizer=tokenizer(),
        sample=sample or Sample(),
        texts=texts,
        name="small",
        step=7,
    )


def tokens(batch: int, length: int, *, seed: int = 5) -> torch.Tensor:
    """Random bytes [B, T]."""
    return torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(seed))
