"""The cache: folders addressed by what they were made from, and verified whenever they are opened.

An entry is a folder with an `entry.json` that lists every file's size and SHA-256. Anything missing, torn or altered is
built again, never used. Entries appear in one rename; processes that want the same entry at once build it one by one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from farthing.errors import UserError
from farthing.storage import new_folder, read_json, sha256_of, write_json

_ENTRY = "entry.json"
_FORMAT = 1

Report = Callable[[str, float, float], None]
"""Hears how far a stage has come: its name, what is done and the total (0 where it is not known), mostly in bytes."""


def silent(stage: str, done: float, total: float) -> None:
    """A report that nobody reads."""


def address(**made_from: Any) -> str:
    """SHA-256, in hexadecimal, of the JSON-ready things that something is made from."""
    canonical = json.dumps(made_from, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def hashes(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of each file; several files are read at once."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(sha256_of, paths))


def open_entry(folder: Path) -> dict[str, Any] | None:
    """What `build` said of the entry, or None if it is not there or not whole."""
    try:
        entry = read_json(folder / _ENTRY)
        if entry["format"] != _FORMAT:
            return None
        files = {folder / name: facts for name, facts in entry["files"].items()}
        if any(path.stat().st_size != facts["bytes"] for path, facts in files.items()):
            return None
        if hashes(files) != [facts["sha256"] for facts in files.values()]:
            return None
        facts = entry["facts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return facts if isinstance(facts, dict) and entry.get("facts_sha256") == address(facts=facts) else None


def entry(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Open the entry at `folder`, or let `build` fill a new one and return its JSON-ready facts.

    Raises:
        UserError: the cache cannot be written, or its disk is full.
    """
    facts = open_entry(folder)
    if facts is not None:
        return facts
    with _writing(folder), _alone(folder):
        facts = open_entry(folder)
        if facts is not None:
            return facts
        for stale in folder.parent.glob(f".tmp-{folder.name}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(folder)
        with new_folder(folder) as temporary:
            facts = build(temporary)
            names = sorted(path.name for path in temporary.iterdir())
            sums = hashes(temporary / name for name in names)
            sizes = [(temporary / name).stat().st_size for name in names]
            files = {
                name: {"bytes": size, "sha256": sha256} for name, size, sha256 in zip(names, sizes, sums, strict=True)
            }
            signed = {"format": _FORMAT, "files": files, "facts": facts, "facts_sha256": address(facts=facts)}
            write_json(temporary / _ENTRY, signed)
        return facts


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    # A lock of the operating system: it ends with the process that holds it, however that ends.
    import filelock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f".lock-{folder.name}")):
        yield


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    elsewhere = "point FARTHING_CACHE at another folder"
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = 0
            with suppress(OSError):
                free = shutil.disk_usage(folder.parent).free
            raise UserError(
                f"the cache {folder.parent} cannot grow: the disk is full ({free:,} bytes free); free some "
                f"or {elsewhere}"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"the cache {folder.parent} cannot be written ({error.strerror}); make it writable, or {elsewhere}"
            ) from error
        raise
