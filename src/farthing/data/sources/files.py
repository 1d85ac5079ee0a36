"""From what a recipe names (files, globs, lists of these) to regular files that exist."""

from __future__ import annotations

import glob
import os
import re
import stat
from pathlib import Path

from farthing.errors import UserError, nearest

_KNOWN = (
    (re.compile(r"hn[-_ ]?titles|hacker[-_ ]?news", re.I), "hn-titles"),
    (re.compile(r"fine[-_ ]?web[-_ ]?edu", re.I), "fineweb-edu"),
    (re.compile(r"fine[-_ ]?web", re.I), "fineweb-10b"),
    (re.compile(r"tiny[-_ ]?stories", re.I), "tinystories"),
    (re.compile(r"wiki[-_ ]?text", re.I), "wikitext-103"),
    (re.compile(r"shakespeare", re.I), "tinyshakespeare"),
)


def known_corpus(path: str) -> str | None:
    """The corpus of `farthing data get` that a file's name speaks of, if any."""
    return next((name for pattern, name in _KNOWN if pattern.search(path)), None)


def resolve(paths: str | list[str], *, directory: Path, what: str) -> tuple[Path, ...]:
    """The files that `paths` names, each once: in the order given, a glob's matches sorted.

    Args:
        paths: a file, a glob or a list of these, relative to `directory`.
        directory: the recipe's folder.
        what: the recipe's name for it, for messages ("data.path").

    Raises:
        UserError: nothing is there, or it is a folder, a pipe, a device or not readable.
    """
    wanted = [paths] if isinstance(paths, str) else paths
    if not wanted:
        raise UserError(f"{what} = []: no file is named")
    found: dict[Path, None] = {}
    for pattern in wanted:
        for path in _matches(pattern, directory, what):
            found.setdefault(path)
    return tuple(found)


def _matches(pattern: str, directory: Path, what: str) -> list[Path]:
    literal = directory / Path(pattern).expanduser()
    try:
        status = literal.stat()
    except (OSError, ValueError):
        status = None
    if status is not None:
        _regular(literal, status, what)
        return [literal]
    if glob.has_magic(pattern):
        matches = (Path(match) for match in sorted(glob.glob(str(literal), recursive=True)))
        files = [path for path in matches if not path.is_dir()]
        for path in files:
            _regular(path, path.stat(), what)
        if files:
            return files
        raise UserError(f"{what} = {pattern!r} matches no file in {directory}{_advice(pattern, None)}")
    raise UserError(f"{what} = {pattern!r}: no such file ({literal}){_advice(pattern, literal)}")


def _regular(path: Path, status: os.stat_result, what: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{what}: {path} is a folder; name its files with a glob, for example {str(path / '*.txt')!r}")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{what}: {path} is a pipe or a device, not a file; write its text to a file first")
    if not os.access(path, os.R_OK):
        raise UserError(f"{what}: {path} may not be read by this user; change its permissions")


def _advice(pattern: str, literal: Path | None) -> str:
    name = known_corpus(pattern)
    if name:
        return f"; fetch it with: farthing data get {name}"
    if literal is None:
        return ""
    try:
        return nearest(literal.name, [entry.name for entry in literal.parent.iterdir()])
    except (OSError, ValueError):
        return ""
