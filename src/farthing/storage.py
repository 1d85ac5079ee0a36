"""Durable writes: every file that must survive a crash goes through these few primitives.

Protocol: write under a temporary name beside the target, flush, fsync, rename, fsync the folder. A failed fsync
condemns its file; it is never retried on the same descriptor. `crashpoint` marks the moments that tests cut.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def crashpoint(name: str) -> None:
    """Kill this process here when FARTHING_CRASHPOINT is `name` or `name:k` (the k-th passage, from 1)."""
    armed = os.environ.get("FARTHING_CRASHPOINT")
    if not armed:
        return
    wanted, _, count = armed.partition(":")
    if wanted != name:
        return
    left = int(count or 1) - 1
    os.environ["FARTHING_CRASHPOINT"] = f"{wanted}:{left}" if left else "spent"
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def fsync_folder(folder: Path) -> None:
    """Make renames and new names inside `folder` durable (a no-op where folders cannot be opened, as on Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the contents of `path` durable."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def temporary_beside(path: Path) -> Path:
    """A hidden sibling of `path` on the same file system; the process id tells whose it is."""
    return path.with_name(f".tmp-{path.name}-{os.getpid()}")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, atomically and durably."""
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        crashpoint("storage.before_rename")
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)


def write_text(path: Path, content: str) -> None:
    """Replace `path` by `content` in UTF-8, atomically and durably."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as strict JSON (NaN and infinity are refused), atomically and durably."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read strict JSON: duplicate keys, NaN, infinity and nesting without end raise ValueError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError(f"{path}: a key is given twice")
        return table

    def refuse(word: str) -> Any:
        raise ValueError(f"{path}: {word} is not a number")

    try:
        return json.loads(path.read_text("utf-8"), object_pairs_hook=once, parse_constant=refuse)
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None


@contextmanager
def new_folder(path: Path, *, exclusive: bool = False) -> Iterator[Path]:
    """Fill a temporary folder that becomes `path` in one rename, or vanishes if the block fails.

    If another process finished the same folder first, its result is kept and ours is dropped; where that would be
    wrong, `exclusive` raises FileExistsError instead.
    """
    temporary = temporary_beside(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                fsync_file(file)
        fsync_folder(temporary)
        crashpoint("storage.before_folder_rename")
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
            if exclusive:
                raise FileExistsError(f"{path} exists") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_folder(path.parent)


def leads_to(kind: Callable[[Path], bool], path: Path) -> bool:
    """Whether a path that a person gave is one of `kind` (Path.is_file, Path.is_dir); False where none can be."""
    try:
        return kind(path)
    except OSError:
        return False  # too long a name, or a folder that may not be looked into


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, read in one-megabyte pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where token shards, trained tokenizers and machine probes are kept: FARTHING_CACHE, else the XDG cache."""
    explicit = os.environ.get("FARTHING_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "farthing"
