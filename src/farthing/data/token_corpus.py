"""TokenCorpus: text that comes as token ids (llm.c shards, NumPy arrays), with documents found by their separators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from farthing.data.sources.tokens import TokenFile, open_tokens
from farthing.data.store import Report, address, entry, hashes, silent
from farthing.errors import UserError
from farthing.recipe.data import Bin, Npz

_TOKENS = "tokens.bin"
_STARTS = "starts.npy"
_READER = 1
_CHUNK = 1 << 22


@dataclass(frozen=True)
class TokenCorpus:
    """Documents of token ids in one stream, each followed by the separator, none of them empty.

    Args:
        tokens_N: 1-D uint16 or uint32, a memory map.
        starts_N: where each document begins, and one past the last separator: one number more than documents.
        separator: the token that ends a document.
        fingerprint: SHA-256 of the stream.
        dropped: how many empty documents were left out.
        files: what it was read from: name, bytes and sha256 of each file.
        in_place: the file that holds the stream as it is, if there is one.
    """

    tokens_N: np.ndarray
    starts_N: np.ndarray
    separator: int
    fingerprint: str
    dropped: int
    files: tuple[dict[str, Any], ...]
    in_place: bool
    one_per_file: bool = False

    def __len__(self) -> int:
        return len(self.starts_N) - 1

    def document(self, number: int) -> np.ndarray:
        """The token ids of a document, without its separator; numbers begin at 0."""
        return self.tokens_N[int(self.starts_N[number]) : int(self.starts_N[number + 1]) - 1]

    def documents(self, numbers_N: np.ndarray) -> Iterator[bytes]:
        """The token ids of these documents as bytes, to compare and to hash them."""
        return (self.document(int(number)).tobytes() for number in numbers_N)

    def sizes(self, numbers_N: np.ndarray) -> np.ndarray:
        """Tokens of each of these documents, separator included."""
        return self.starts_N[numbers_N + 1] - self.starts_N[numbers_N]

    def runs(self, numbers_N: np.ndarray) -> Iterator[np.ndarray]:
        """These documents with their separators, as few slices of the stream."""
        breaks_K = np.flatnonzero(np.diff(numbers_N) != 1) + 1
        for run in np.split(numbers_N, breaks_K):
            if len(run):
                yield self.tokens_N[int(self.starts_N[run[0]]) : int(self.starts_N[run[-1] + 1])]


def open_token_corpus(
    section: Bin | Npz,
    *,
    directory: Path,
    cache: Path,
    vocab_size: int,
    separator: int,
    what: str = "data.path",
    report: Report = silent,
) -> TokenCorpus:
    """The documents of a token source; the stream stays where it is if it is one file in this form, else it is copied.

    Raises:
        UserError: a file is missing or damaged, or holds a token that the tokenizer does not have.
    """
    files = open_tokens(section, directory=directory, what=what)
    sums = hashes(file.path for file in files)
    key = address(
        reader=_READER,
        files=sums,
        options=section.model_dump(include={"kind", "array"}),
        separator=separator,
        vocab=vocab_size,
    )
    folder = cache / "corpora" / key
    facts = entry(folder, lambda temporary: _build(temporary, files, vocab_size, separator, report))
    stream_N: np.ndarray
    if facts["in_place"]:
        stream_N = files[0].tokens()[facts["skipped"] :]
    else:
        stream_N = np.memmap(folder / _TOKENS, dtype=facts["dtype"], mode="r")
    starts_N = np.load(folder / _STARTS, mmap_mode="r", allow_pickle=False)
    receipt = tuple(
        {"name": str(file.path), "bytes": file.path.stat().st_size, "sha256": sha256}
        for file, sha256 in zip(files, sums, strict=True)
    )
    return TokenCorpus(
        stream_N, starts_N, separator, facts["fingerprint"], facts["dropped"], receipt, facts["in_place"]
    )


def _build(folder: Path, files: list[TokenFile], vocab_size: int, separator: int, report: Report) -> dict[str, Any]:
    total = sum(file.count for file in files)
    dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
    ends: list[np.ndarray] = []
    position = dropped = done = 0
    after_separator = True
    with (folder / _TOKENS).open("wb") as out:
        for file in files:
            index = 0
            for chunk_N, row_ends_K in file.chunks(_CHUNK):
                _within(chunk_N, vocab_size, file, index)
                stream_N, empty = _normalised(chunk_N, row_ends_K, separator, after_separator)
                # A separator before everything else opens the first document; it ends no empty one.
                dropped += empty - int(not done + index and int(chunk_N[0]) == separator)
                out.write(stream_N.astype(dtype).tobytes())
                ends.append(np.flatnonzero(stream_N == separator) + 1 + position)
                position += len(stream_N)
                index += len(chunk_N)
                if len(stream_N):
                    after_separator = int(stream_N[-1]) == separator
                report("reading", done + index, total)
            done += index
        if not after_separator:
            out.write(np.array([separator], dtype).tobytes())
            ends.append(np.array([position + 1]))
    ends_N = np.concatenate([np.array([0]), *ends])
    if len(ends_N) == 1:
        raise UserError(f"{files[0].path}: no document in it (separator {separator}, {total:,} tokens)")
    np.save(folder / _STARTS, ends_N.astype(np.uint64), allow_pickle=False)
    fingerprint = hashes([folder / _TOKENS])[0]
    skipped = _place(files, folder / _TOKENS, dtype)
    if skipped is not None:
        (folder / _TOKENS).unlink()
    return {
        "fingerprint": fingerprint, "dropped": dropped, "documents": len(ends_N) - 1,
        "dtype": dtype.str, "in_place": skipped is not None, "skipped": skipped or 0,
    }  # fmt: skip


def _normalised(
    chunk_N: np.ndarray, row_ends_K: np.ndarray, separator: int, after_separator: bool
) -> tuple[np.ndarray, int]:
    """The chunk with a separator where a row ends and none that follows another, and how many it thereby loses."""
    if len(row_ends_K):
        chunk_N = np.insert(chunk_N, row_ends_K, separator)
    marks_N = chunk_N == separator
    extra_N = marks_N & np.concatenate(([after_separator], marks_N[:-1]))
    return chunk_N[~extra_N], int(extra_N.sum())


def _within(chunk_N: np.ndarray, vocab_size: int, file: TokenFile, before: int) -> None:
    wrong_N = (chunk_N < 0) | (chunk_N >= vocab_size)
    if wrong_N.any():
        at = int(wrong_N.argmax())
        raise UserError(
            f"{file.path}: token {int(chunk_N[at]):,} at index {before + at:,} is not in the tokenizer's vocabulary of "
            f"{vocab_size:,}; choose the tokenizer that these tokens were made with"
        )


def _place(files: list[TokenFile], copy: Path, dtype: np.dtype) -> int | None:
    """How many tokens of the only file come before a stream equal to the copy, if they are all that differs."""
    if len(files) != 1 or not files[0].mapped:
        return None
    there_N = files[0].tokens()
    here_N = np.memmap(copy, dtype=dtype, mode="r")
    skipped = len(there_N) - len(here_N)
    if there_N.dtype != dtype or skipped not in (0, 1):
        return None
    same = all(
        np.array_equal(there_N[skipped + first : skipped + first + _CHUNK], here_N[first : first + _CHUNK])
        for first in range(0, len(here_N), _CHUNK)
    )
    return skipped if same else None
