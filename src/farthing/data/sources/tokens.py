"""Files of token ids: llm.c's .bin shards and NumPy's .npy and .npz arrays."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from farthing.data.sources.files import resolve
from farthing.errors import UserError
from farthing.recipe.data import Bin, Npz

_HEADER = 256
_MAGIC = 20240520
_VERSION = 1
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error, NotImplementedError, RuntimeError)
"""what zipfile and the libraries it uses raise at a bad archive, or at one that needs a password"""


@dataclass(frozen=True)
class TokenFile:
    """One file of token ids, its header checked.

    Args:
        path: where it lies.
        dtype: how a token is stored.
        count: how many tokens there are.
        row: tokens of a row, each row a document, or None where separators alone part documents.
        offset: bytes before the first token.
        member: name inside a .npz archive, which is read as a stream; None for what can be memory-mapped.
    """

    path: Path
    dtype: np.dtype
    count: int
    row: int | None
    offset: int
    member: str | None = None

    @property
    def mapped(self) -> bool:
        """Whether the tokens lie in the file one after the other, as they are."""
        return self.member is None

    def tokens(self) -> np.ndarray:
        """All tokens as a memory map."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=(self.count,))

    def chunks(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The tokens, about `size` at a time and never none, with the places in each chunk where a row has ended."""
        size = size if self.row is None else max(1, size // self.row) * self.row
        for chunk_N in self._stored(size):
            ends_K = np.arange(self.row, len(chunk_N) + 1, self.row) if self.row else np.empty(0, np.int64)
            yield chunk_N, ends_K

    def _stored(self, size: int) -> Iterator[np.ndarray]:
        if self.member is None:
            tokens_N = self.tokens()
            yield from (tokens_N[first : first + size] for first in range(0, self.count, size))
            return
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
            _array_header(stream, self.path)
            for first in range(0, self.count, size):
                wanted = min(size, self.count - first) * self.dtype.itemsize
                try:
                    raw = stream.read(wanted)
                except _DAMAGED as error:
                    raise UserError(f"{self.path}: a damaged .npz archive ({error})") from error
                if len(raw) != wanted:
                    raise UserError(f"{self.path}: array {self.member!r} breaks off; fetch or write it again")
                yield np.frombuffer(raw, dtype=self.dtype)


def open_tokens(section: Bin | Npz, *, directory: Path, what: str) -> list[TokenFile]:
    """Find the files of a token source and check their headers; no token is read.

    Raises:
        UserError: a file is missing, damaged or of another format.
    """
    paths = resolve(section.path, directory=directory, what=what)
    try:
        if isinstance(section, Bin):
            return [_bin(path) for path in paths]
        return [_numpy(path, section.array) for path in paths]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


def bin_header(count: int) -> bytes:
    """What stands before `count` tokens in an llm.c shard."""
    numbers = np.zeros(_HEADER, dtype="<i4")
    numbers[:3] = _MAGIC, _VERSION, count
    return numbers.tobytes()


def _bin(path: Path) -> TokenFile:
    size = path.stat().st_size
    header_K = np.fromfile(path, dtype="<i4", count=_HEADER)
    if len(header_K) < _HEADER:
        raise UserError(
            f"{path}: {size:,} bytes are too few for an llm.c shard, whose header alone has {4 * _HEADER:,}"
        )
    magic, version, count = (int(number) for number in header_K[:3])
    if magic != _MAGIC:
        raise UserError(f"{path}: not an llm.c shard of uint16 tokens: magic {magic} where {_MAGIC} belongs")
    if version != _VERSION:
        raise UserError(f"{path}: llm.c shard of version {version}; only version {_VERSION} (uint16 tokens) is read")
    body = size - 4 * _HEADER
    if count < 1 or body != 2 * count:
        raise UserError(
            f"{path}: the header counts {count:,} tokens ({2 * count:,} bytes), but {body:,} bytes follow it; "
            "the shard is damaged, fetch it again"
        )
    return TokenFile(path, np.dtype("<u2"), count, None, 4 * _HEADER)


def _numpy(path: Path, array: str | None) -> TokenFile:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            shape, dtype = _array_header(stream, path)
            offset = stream.tell()
        expected = offset + math.prod(shape) * dtype.itemsize
        if path.stat().st_size != expected:
            raise UserError(
                f"{path}: {path.stat().st_size:,} bytes where its header asks for {expected:,}; the file is damaged"
            )
        return _token_file(path, shape, dtype, offset, None)
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
            if array is None and len(names) != 1:
                raise UserError(
                    f"{path} holds {len(names)} arrays ({', '.join(names) or 'none'}); set data.array to one"
                )
            chosen = array if array is not None else next(iter(names))
            if chosen not in names:
                raise UserError(f"{path}: no array {chosen!r}; there are: {', '.join(names) or 'none'}; set data.array")
            with archive.open(names[chosen]) as stream:
                shape, dtype = _array_header(stream, path)
            return _token_file(path, shape, dtype, 0, names[chosen])
    except _DAMAGED as error:
        raise UserError(f"{path}: a damaged .npz archive ({error})") from error


def _array_header(stream: IO[bytes], path: Path) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = np.lib.format.read_magic(stream)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(stream)
    # NumPy reads the header with Python's own tokenizer, which has errors of its own.
    except (ValueError, EOFError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError) as error:
        raise UserError(f"{path}: not a NumPy array ({' '.join(str(error).split())[:120]})") from error
    if dtype.hasobject:
        raise UserError(
            f"{path}: the array holds Python objects (a ragged list, or a pickle, which is never loaded); store one "
            "flat array of integers with separators between documents"
        )
    if dtype.kind not in "iu":
        raise UserError(f"{path}: the array holds {dtype}, not whole numbers: token ids are integers")
    if len(shape) not in (1, 2) or min(shape) < 0 or (fortran and len(shape) == 2):
        raise UserError(
            f"{path}: an array of shape {shape}{' in Fortran order' if fortran else ''}; give 1-D, or 2-D in C order"
        )
    return shape, dtype


def _token_file(path: Path, shape: tuple[int, ...], dtype: np.dtype, offset: int, member: str | None) -> TokenFile:
    count = math.prod(shape)
    if not count:
        raise UserError(f"{path}: an empty array of shape {shape}")
    return TokenFile(path, dtype, count, shape[1] if len(shape) == 2 else None, offset, member)
