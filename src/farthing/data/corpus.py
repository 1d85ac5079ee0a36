"""Corpus: documents in the cache, addressed by the content they were read from, each within reach by its number."""

from __future__ import annotations

import mmap
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from farthing.data.sources import Source
from farthing.data.store import Report, address, entry, hashes, silent
from farthing.errors import DataError, UserError

_TEXT = "documents.utf8"
_OFFSETS = "offsets.npy"
_BLOCK = 1 << 16
_CUT = re.compile(rb"(?<=[!-~])\n(?=[!-~])")
_RELEASE_AFTER = 1 << 26
_STRIDE = 1 << 20
_READER = 1
"""Raised when the same files and options come to mean other documents."""


@dataclass(frozen=True)
class Corpus:
    """Documents of UTF-8 text, none of them empty.

    Args:
        content: all documents, one after the other, as a memory map.
        offsets_N: where each document begins in `content`, and the end of the last: one number more than documents.
        fingerprint: SHA-256 that depends on the documents alone, not on how they were stored or compressed.
        dropped: how many empty documents were left out.
        files: what they were read from: name, bytes and sha256 of each file.
        one_per_file: whether a document is a whole file.
    """

    content: mmap.mmap
    offsets_N: np.ndarray
    fingerprint: str
    dropped: int
    files: tuple[dict[str, Any], ...]
    one_per_file: bool

    def __len__(self) -> int:
        return len(self.offsets_N) - 1

    def document(self, number: int) -> bytes:
        """The UTF-8 text of a document; numbers begin at 0."""
        return self.content[int(self.offsets_N[number]) : int(self.offsets_N[number + 1])]

    def documents(self, numbers_N: np.ndarray) -> Iterator[bytes]:
        """The UTF-8 text of these documents; pages already read do not pile up in this process's memory."""
        return (document for document, _ in self.pieces(numbers_N, longest=None))

    def pieces(self, numbers_N: np.ndarray, *, longest: int | None) -> Iterator[tuple[bytes, bool]]:
        """These documents, those over `longest` bytes cut after single line breaks, and whether a piece ends one.

        GPT-2's words begin and end at a line break between two visible characters, whatever stands around it.
        """
        read = 0
        for first in range(0, len(numbers_N), _BLOCK):
            block = numbers_N[first : first + _BLOCK]
            starts, ends = self.offsets_N[block].tolist(), self.offsets_N[block + 1].tolist()
            for start, end in zip(starts, ends, strict=True):
                while longest is not None and end - start > longest:
                    cut = _CUT.search(self.content, start + longest, end)
                    if cut is None:
                        break
                    yield self.content[start : cut.end()], False
                    start = cut.end()
                    self._release()
                yield self.content[start:end], True
                read += end - start
                if read > _RELEASE_AFTER:
                    self._release()
                    read = 0

    def sizes(self, numbers_N: np.ndarray) -> np.ndarray:
        """UTF-8 bytes of each of these documents."""
        return self.offsets_N[numbers_N + 1] - self.offsets_N[numbers_N]

    def _release(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            self.content.madvise(mmap.MADV_DONTNEED)


def open_corpus(source: Source, *, cache: Path, report: Report = silent) -> Corpus:
    """The documents of `source`, read once and kept in `cache`; the same content is never read twice.

    Raises:
        UserError: the source holds no text, or cannot be read as text.
        DataError: a file changed while it was being read.
    """
    sums = _sums(source)
    key = address(reader=_READER, options=source.options, files=sums)
    folder = cache / "corpora" / key
    facts = entry(folder, lambda temporary: _build(temporary, source, sums, report))
    files = tuple(
        {"name": name, "bytes": path.stat().st_size, "sha256": sha256}
        for name, path, sha256 in zip(source.names, source.files, sums, strict=False)
    )
    with (folder / _TEXT).open("rb") as stream:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    offsets_N = np.load(folder / _OFFSETS, mmap_mode="r", allow_pickle=False)
    return Corpus(content, offsets_N, facts["fingerprint"], facts["dropped"], files, source.one_per_file)


def _sums(source: Source) -> list[str]:
    try:
        return hashes(source.files)
    except OSError as error:
        # An error of reading, unlike one of opening, does not say of which file.
        raise UserError(f"{error.filename or _named(source)}: cannot be read ({error.strerror})") from error


def _build(folder: Path, source: Source, sums: list[str], report: Report) -> dict[str, Any]:
    total = sum(path.stat().st_size for path in source.files)
    done = dropped = 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        report("reading", done, total)

    offsets = array("Q", [0])
    with (folder / _TEXT).open("wb", buffering=1 << 20) as out:
        for document in source.documents(progress):
            before = end = offsets[-1]
            for piece in (document,) if isinstance(document, bytes) else document:
                out.write(piece)
                end += len(piece)
            if not source.files and end // _STRIDE > before // _STRIDE:
                report("reading", end, 0)
            if end == before:
                dropped += 1
            else:
                offsets.append(end)
    if len(offsets) == 1:
        raise UserError(f"{_named(source)}: no text in it ({dropped:,} empty documents)")
    if hashes(source.files) != sums:
        raise DataError(f"{_named(source)}: changed while it was being read; start again when it is finished")
    np.save(folder / _OFFSETS, np.frombuffer(offsets, dtype=np.uint64), allow_pickle=False)
    text, places = hashes([folder / _TEXT, folder / _OFFSETS])
    return {"fingerprint": address(text=text, offsets=places), "documents": len(offsets) - 1, "dropped": dropped}


def _named(source: Source) -> str:
    first = source.names[0] if source.names else "the source"
    return first if len(source.names) <= 1 else f"{first} and {len(source.names) - 1:,} more files"
