"""TokenSplit: one part of a corpus as a stream of tokens, with what honest scoring must know of its text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenSplit:
    """Training, validation or test text as tokens.

    Args:
        name: train, validation or test.
        tokens_N: 1-D uint16 or uint32, usually a memory map: documents in order, each followed by the separator.
        separator: the token that ends a document.
        documents: how many documents there are.
        bytes: UTF-8 bytes of the original text, separators not counted.
        characters: Unicode code points of the original text, separators not counted.
        fingerprint: SHA-256 of the documents' text (or of the tokens, where a source has only these), in hexadecimal.
        texts: yields the documents' original text in order; each call starts anew.
    """

    name: str
    tokens_N: np.ndarray
    separator: int
    documents: int
    bytes: int
    characters: int
    fingerprint: str
    texts: Callable[[], Iterator[str]]
