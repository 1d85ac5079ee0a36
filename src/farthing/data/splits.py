"""Which documents train and which are held out: whole documents, by a seeded draw, from the tail or from own files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from farthing.data.store import address
from farthing.errors import UserError
from farthing.recipe.data import Source as SourceSection

LEAK_SHARE = 0.01
"""Held-out documents that also stand in the training text: above this share there is a warning."""


_BLOCK = 1 << 18


class Documents(Protocol):
    """Text or tokens as numbered documents: a Corpus or a TokenCorpus."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all documents, in hexadecimal."""
        ...

    @property
    def one_per_file(self) -> bool:
        """Whether a document is a whole file."""
        ...

    def __len__(self) -> int: ...

    def documents(self, numbers_N: np.ndarray) -> Iterator[bytes]:
        """The content of these documents."""
        ...

    def sizes(self, numbers_N: np.ndarray) -> np.ndarray:
        """The size of each of these documents."""
        ...


D = TypeVar("D", bound=Documents)


@dataclass(frozen=True)
class Part(Generic[D]):
    """Some documents of a corpus, in the corpus's order.

    Args:
        name: train, validation or test.
        corpus: what they are taken from.
        numbers_N: their numbers in the corpus, rising.
    """

    name: str
    corpus: D
    numbers_N: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers_N)

    def documents(self) -> Iterator[bytes]:
        """The content of each document, in order."""
        return self.corpus.documents(self.numbers_N)

    def texts(self) -> Iterator[str]:
        """The text of each document, in order."""
        return (document.decode("utf-8") for document in self.documents())

    def size(self) -> int:
        """The documents' sizes, added up."""
        return int(self.corpus.sizes(self.numbers_N).sum(dtype=np.int64))


def rule(section: SourceSection) -> dict[str, Any]:
    """Everything in the recipe that decides which documents are held out, JSON-ready."""
    return section.model_dump(mode="json", include={"validation", "test", "split", "split_seed", "limit"})


def split_documents(section: SourceSection, corpus: D, own: dict[str, D]) -> dict[str, Part[D]]:
    """Divide `corpus` into train, validation and, where asked for, test.

    Documents keep the corpus's order within their part.

    Args:
        section: the recipe's `data`.
        corpus: all documents of `data.path`.
        own: corpora of held-out parts that have files of their own, by name.

    Raises:
        UserError: a part would have no document, or a held-out file is the training text itself.
    """
    _distinct(corpus, own)
    count = min(len(corpus), section.limit or len(corpus))
    asked = {"validation": section.validation} | ({} if section.test is None else {"test": section.test})
    held_out = {name: _count(share, count) for name, share in asked.items() if not isinstance(share, str)}
    _enough(section, count, held_out, corpus)
    left = count - sum(held_out.values())
    drawn: dict[str, np.ndarray] = {}
    if section.split == "shuffle":
        order_N = np.random.Generator(np.random.PCG64(section.split_seed)).permutation(len(corpus))[:count]
        for name, size in held_out.items():
            drawn[name], order_N = np.sort(order_N[:size]), order_N[size:]
        drawn["train"] = np.sort(order_N)
    else:
        first = left
        drawn["train"] = np.arange(left, dtype=np.int64)
        for name, size in held_out.items():
            drawn[name] = np.arange(first, first + size, dtype=np.int64)
            first += size
    parts = {"train": Part("train", corpus, drawn["train"])}
    for name in asked:
        parts[name] = whole(name, own[name]) if name in own else Part(name, corpus, drawn[name])
    return parts


def whole(name: str, corpus: D) -> Part[D]:
    """All documents of a corpus."""
    return Part(name, corpus, np.arange(len(corpus), dtype=np.int64))


def _count(share: int | float, documents: int) -> int:
    return share if isinstance(share, int) else math.floor(share * documents + 0.5)


def _enough(section: SourceSection, count: int, held_out: dict[str, int], corpus: Documents) -> None:
    left = count - sum(held_out.values())
    if left >= 1 and all(held_out.values()):
        return
    shares = {"validation": section.validation, "test": section.test}
    asked = ", ".join(f"data.{name} = {shares[name]} is {size:,} of them" for name, size in held_out.items())
    numbers = (
        f"data has {count:,} document{'s' if count != 1 else ''}; {asked}, which leaves {max(left, 0):,} to train on"
    )
    if corpus.one_per_file:
        remedy = (
            'a document is a whole file here and is never cut: set data.documents = "line" or "paragraph", '
            "or data.validation = FILE"
        )
    else:
        remedy = "every part needs a whole document: change the share, give more text, or set data.validation = FILE"
    raise UserError(f"{numbers}; {remedy}")


def _distinct(corpus: Documents, own: dict[str, Any]) -> None:
    seen = {corpus.fingerprint: "the training text"}
    for name, other in own.items():
        if other.fingerprint in seen:
            raise UserError(
                f"data.{name} is identical to {seen[other.fingerprint]}: a score on it would prove nothing; "
                "give text that is held out"
            )
        seen[other.fingerprint] = f"data.{name}"


def overlap(train: Part[Any], held_out: Sequence[Part[Any]]) -> dict[str, int]:
    """For each held-out part: how many of its documents also stand, word for word, in the training part."""
    digests = {part.name: [hash(document) for document in part.documents()] for part in held_out}
    wanted = set().union(*digests.values())
    sizes_K = np.unique(np.concatenate([np.empty(0, int), *(part.corpus.sizes(part.numbers_N) for part in held_out)]))
    common: set[int] = set()
    for first in range(0, len(train), _BLOCK):
        block_N = train.numbers_N[first : first + _BLOCK]
        alike_N = block_N[np.isin(train.corpus.sizes(block_N), sizes_K)]
        common |= {digest for document in train.corpus.documents(alike_N) if (digest := hash(document)) in wanted}
    return {name: sum(digest in common for digest in found) for name, found in digests.items()}


def part_address(part: Part[Any], section: SourceSection | None) -> str:
    """SHA-256 of what a part is made from; cheaper than its content's, and as good an address."""
    if section is None or len(part) == len(part.corpus):
        return address(corpus=part.corpus.fingerprint, part="whole")
    return address(corpus=part.corpus.fingerprint, part=part.name, rule=rule(section))
