"""Tokens as files for other programs: llm.c's shards, the ones that data.kind = "bin" reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from farthing.data.sources.tokens import bin_header
from farthing.data.split import TokenSplit
from farthing.errors import UserError

SHARD_TOKENS = 100_000_000
"""tokens of a shard, as llm.c's own scripts cut them"""
_CHUNK = 1 << 22
_LARGEST_ID = (1 << 16) - 1


def write_shards(split: TokenSplit, folder: Path, *, stem: str, shard_tokens: int = SHARD_TOKENS) -> list[Path]:
    """Write one part of a text as llm.c's shards of uint16 tokens: STEM_000000.bin and so on.

    Each document begins with the separator, as llm.c's own data do; a document may go on in the next shard.

    Args:
        split: the part.
        folder: an existing folder.
        stem: how the names begin.
        shard_tokens: tokens of a shard; the last one has what is left.

    Returns:
        the files, in order.

    Raises:
        UserError: a token does not fit into 16 bits.
    """
    count, paths = len(split.tokens_N), []
    for number, first in enumerate(range(0, count, shard_tokens)):
        path = folder / f"{stem}_{number:06d}.bin"
        last = min(first + shard_tokens, count)
        with path.open("wb") as stream:
            stream.write(bin_header(last - first))
            for chunk_N in _chunks(split, first, last):
                stream.write(chunk_N.astype("<u2").tobytes())
        paths.append(path)
    return paths


def _chunks(split: TokenSplit, first: int, last: int) -> Iterator[np.ndarray]:
    """The stream with each separator before its document instead of after it, from `first` up to `last`."""
    for start in range(first, last, _CHUNK):
        chunk_N = split.tokens_N[max(0, start - 1) : min(start + _CHUNK, last) - 1]
        if start == 0:
            chunk_N = np.concatenate((np.array([split.separator], chunk_N.dtype), chunk_N))
        if len(chunk_N) and int(chunk_N.max()) > _LARGEST_ID:
            raise UserError(
                f"token {int(chunk_N.max()):,} does not fit into llm.c's 16 bits; use a tokenizer of at most 65,536 tokens"
            )
        yield chunk_N
