"""What the same text costs without a neural network, for scale: xz, zstd and a unigram model, in bits per byte."""

from __future__ import annotations

import lzma
import math
from typing import Any

import numpy as np
import zstandard

from farthing.data.split import TokenSplit

MAX_BYTES = 64_000_000
"""No references are taken of a longer text: at level 9 and 19 a compressor manages 1 to 3 MB a second."""

_CHUNK = 1 << 22
_DOCUMENT_END = b"\n"


def references(
    split: TokenSplit, *, training: TokenSplit | None, vocab_size: int, max_bytes: int = MAX_BYTES
) -> dict[str, Any]:
    """Return {"xz", "zstd", "unigram", "bytes"}: bits per byte of the split's text under each, JSON-ready.

    xz and zstd compress, at preset 9 and level 19, the documents in order as UTF-8, one newline byte after each. Like
    the model they pay for where documents end, and the divisor is the text's bytes alone. They begin knowing nothing,
    where a model has seen the training text.

    unigram is the token frequencies of the training text (at most its first 2^26 tokens) with half a count added to
    every token of the vocabulary, charged for every token of the split, separators included; None without `training`.

    A text longer than `max_bytes` (or an empty one) gets {"reason": why not} instead.
    """
    if split.bytes == 0:
        return {"reason": f"the {split.name} text is empty"}
    if split.bytes > max_bytes:
        size = f"{split.bytes / 1e6:,.0f} MB"
        return {"reason": f"the {split.name} text has {size}, above the {max_bytes / 1e6:,.0f} MB of this comparison"}
    text = b"".join(document.encode("utf-8") + _DOCUMENT_END for document in split.texts())
    return {
        "xz": 8 * _xz_bytes(text) / split.bytes,
        "zstd": 8 * len(zstandard.ZstdCompressor(level=19).compress(text)) / split.bytes,
        "unigram": None if training is None else _unigram_bits(split, training, vocab_size) / split.bytes,
        "bytes": split.bytes,
    }


def _xz_bytes(text: bytes) -> int:
    # Preset 9 takes 674 MB for its 64 MiB dictionary; one no larger than the text finds the same matches in less.
    dictionary = min(64 << 20, max(4096, len(text)))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary}]
    return len(lzma.compress(text, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=filters))


def _unigram_bits(split: TokenSplit, training: TokenSplit, vocab_size: int) -> float:
    counts_V = _counts(training.tokens_N[: 1 << 26], vocab_size) + 0.5
    bits_V = np.log2(counts_V.sum()) - np.log2(counts_V)
    return math.fsum(_counts(split.tokens_N, vocab_size) * bits_V)


def _counts(tokens_N: np.ndarray, vocab_size: int) -> np.ndarray:
    counts_V = np.zeros(vocab_size)
    for start in range(0, len(tokens_N), _CHUNK):
        counts_V += np.bincount(tokens_N[start : start + _CHUNK], minlength=vocab_size)
    return counts_V
