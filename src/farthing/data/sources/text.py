"""Documents of plain text: whole files, lines, paragraphs, or what a marker separates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from farthing.data.sources.stream import Progress, text_pieces
from farthing.recipe.data import Text

Document = bytes | Iterator[bytes]
"""A document's UTF-8 text; as pieces, to be used up before the next document, where it may be large."""


def text_documents(section: Text, files: Iterable[Path], progress: Progress) -> Iterator[Document]:
    """The documents of `files`, in order; empty ones included."""
    for path in files:
        pieces = text_pieces(path, progress)
        match section.documents:
            case "file":
                yield pieces
            case "line":
                yield from lines(pieces)
            case "paragraph":
                yield from paragraphs(pieces)
            case "marker":
                assert section.marker is not None
                yield from between(pieces, section.marker.encode("utf-8"))


def lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends, which are LF or CR LF; a last line need not have one."""
    last = b""
    for number, line in enumerate(split_on(pieces, b"\n")):
        if number:
            yield last
        last = line.removesuffix(b"\r")
    if last:
        yield last


def paragraphs(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Runs of lines between blank lines (empty or white space only), without the end of their last line."""
    paragraph: list[bytes] = []
    for line in split_on(pieces, b"\n"):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield b"\n".join(paragraph).removesuffix(b"\r")
            paragraph = []
    if paragraph:
        yield b"\n".join(paragraph).removesuffix(b"\r")


def between(pieces: Iterable[bytes], marker: bytes) -> Iterator[bytes]:
    """What lies between markers; a line break directly before or after a marker, or at the end, belongs to it."""
    for number, document in enumerate(split_on(pieces, marker)):
        if number:
            document = document[_break_at_start(document) :]
        yield document.removesuffix(b"\n").removesuffix(b"\r") if document.endswith(b"\n") else document


def _break_at_start(document: bytes) -> int:
    return 1 if document.startswith(b"\n") else 2 if document.startswith(b"\r\n") else 0


def split_on(pieces: Iterable[bytes], separator: bytes) -> Iterator[bytes]:
    """bytes.split over a stream: memory holds one piece and the part not yet ended."""
    held = bytearray()
    for piece in pieces:
        searched = max(0, len(held) - len(separator) + 1)
        held += piece
        if held.find(separator, searched) < 0:
            continue
        *whole, rest = bytes(held).split(separator)
        yield from whole
        held = bytearray(rest)
    yield bytes(held)
