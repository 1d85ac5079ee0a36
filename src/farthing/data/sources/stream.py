"""A text file as pieces of valid UTF-8: decompressed, without a byte order mark, in bounded memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import zstandard

from farthing.errors import UserError

CHUNK = 1 << 20
_ZSTD_CHUNK = 1 << 14  # compressed: a hostile file expands at most some ten thousand times, so a piece stays bounded
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

Progress = Callable[[int], None]
"""Hears how many further bytes of the file, as it lies on disk, have been read."""


def text_pieces(path: Path, progress: Progress) -> Iterator[bytes]:
    """The text of a plain, gzip or zstd file as UTF-8, in pieces of about a megabyte that end between characters.

    Raises:
        UserError: it is binary, not UTF-8, a damaged archive, or cannot be read; the message names the byte.
    """
    held = b""
    offset = 0
    for number, raw in enumerate(_decompressed(path, progress)):
        piece = held + raw
        if number == 0:
            if piece.startswith(_UTF16_MARKS):
                raise UserError(f"{path}: the text is UTF-16, not UTF-8; convert it with: iconv -f UTF-16 -t UTF-8")
            if piece.startswith(_UTF8_MARK):
                piece, offset = piece[len(_UTF8_MARK) :], len(_UTF8_MARK)
        whole = _valid_length(piece, path, offset, last=False)
        if b"\0" in piece:
            raise UserError(f"{path}: a binary file, not text: zero byte at offset {offset + piece.index(0):,}")
        held = piece[whole:]
        offset += whole
        if whole:
            yield piece[:whole]
    _valid_length(held, path, offset, last=True)


def _valid_length(piece: bytes, path: Path, offset: int, *, last: bool) -> int:
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError as error:
        if not last and error.reason == "unexpected end of data":
            return error.start
        raise UserError(
            f"{path}: not UTF-8: byte 0x{piece[error.start]:02x} at offset {offset + error.start:,} ({error.reason}); "
            "convert the file to UTF-8"
        ) from None
    return len(piece)


def _decompressed(path: Path, progress: Progress) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
            stream.seek(0)
            if head.startswith(_GZIP):
                pieces = _gunzipped(stream)
            elif head == _ZSTD:
                pieces = _unzstd(stream)
            else:
                pieces = iter(lambda: stream.read(CHUNK), b"")
            place = 0
            for piece in pieces:
                progress(stream.tell() - place)
                place = stream.tell()
                yield piece
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise UserError(f"{path}: a damaged compressed file ({error}); fetch or compress it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _gunzipped(stream: IO[bytes]) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=stream) as unzipped:
        while piece := unzipped.read(CHUNK):
            yield piece


def _unzstd(stream: IO[bytes]) -> Iterator[bytes]:
    # zstandard's own stream reader takes a file that breaks off for one that ends; a frame's `eof` tells them apart.
    machine = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = None
    while raw := stream.read(_ZSTD_CHUNK):
        while raw:
            frame = frame or machine.decompressobj()
            piece = frame.decompress(raw)
            if piece:
                yield piece
            raw = b""
            if frame.eof:
                raw, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("it ends in the middle of a zstd frame")
