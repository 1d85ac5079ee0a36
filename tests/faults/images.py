"""What a disk may hold after a power cut: every state that the operations so far allow, from a recording of them.

kill -9 loses nothing that was written, since the system keeps it; a power cut loses what was not synced. After LevelDB's
fault_injection_test and ALICE (Pillai et al. 2014): operations are recorded, and for each prefix of them images of the
folder are built in which data that was not synced is kept, lost, zeroed or cut in half, and names that were not synced
are kept or lost. Pure Python, no special file system.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

DATA = ("kept", "lost", "zeroed", "halved")
NAMES = ("kept", "lost")
RECORDED = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "ftruncate")
"""of the module os; a state is taken after each, and before each that removes a name"""


@dataclass(frozen=True)
class Folder:
    """A folder at some moment: what each name in it stands for."""

    entries: dict[str, int]


@dataclass(frozen=True)
class State:
    """The tree at some moment. Files and folders have numbers, which stay theirs under another name.

    Args:
        after: the operation that led here.
        top: number of the top folder.
        folders: by number.
        files: contents by number.
        synced_folders: what was last synced of each folder.
        synced_files: what was last synced of each file; nothing where it never was.
        promised: steps whose checkpoints have been reported as durable.
    """

    after: str
    top: int
    folders: dict[int, Folder]
    files: dict[int, bytes]
    synced_folders: dict[int, Folder]
    synced_files: dict[int, bytes]
    promised: tuple[int, ...]


@dataclass
class Recording:
    """The states of a folder, one for each operation on it."""

    top: Path
    states: list[State] = field(default_factory=list)
    promised: list[int] = field(default_factory=list)
    """steps of checkpoints that have been reported; whoever records appends to it"""
    _synced_folders: dict[int, Folder] = field(default_factory=dict)
    _synced_files: dict[int, bytes] = field(default_factory=dict)

    def take(self, after: str, *, synced: int | None = None) -> None:
        """Remember the folder as it is now; `synced` is the number of what has just been synced."""
        if not self.top.is_dir():
            return
        folders: dict[int, Folder] = {}
        files: dict[int, bytes] = {}
        waiting = [self.top]
        while waiting:
            here = waiting.pop()
            entries = {}
            for entry in os.scandir(here):
                number = entry.inode()
                entries[entry.name] = number
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                else:
                    files[number] = Path(entry.path).read_bytes()
            folders[here.stat().st_ino] = Folder(entries)
        if not self.states:
            # It got its name in one rename, after everything in it had been synced: test_storage.py.
            self._synced_folders, self._synced_files = dict(folders), dict(files)
        # A number may be given to another file once its own is gone.
        self._synced_folders = {n: f for n, f in self._synced_folders.items() if n in folders}
        self._synced_files = {n: c for n, c in self._synced_files.items() if n in files}
        if synced in folders:
            self._synced_folders[synced] = folders[synced]
        if synced in files:
            self._synced_files[synced] = files[synced]
        self.states.append(
            State(
                after,
                self.top.stat().st_ino,
                folders,
                files,
                dict(self._synced_folders),
                dict(self._synced_files),
                tuple(self.promised),
            )
        )


@contextmanager
def recording(top: Path) -> Iterator[Recording]:
    """Record what this process does below `top`. The folder's own name, and what is above it, is taken for durable."""
    record = Recording(top)
    genuine = {name: getattr(os, name) for name in RECORDED}

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if name in ("rename", "replace", "unlink", "rmdir"):
                record.take(f"before {name}")
            number = None
            if name == "fsync":
                number = os.fstat(arguments[0]).st_ino
            result = genuine[name](*arguments, **more)
            record.take(f"{name} {_called(arguments)}", synced=number)
            return result

        return call

    for name in RECORDED:
        setattr(os, name, wrapped(name))
    try:
        yield record
    finally:
        for name, function in genuine.items():
            setattr(os, name, function)


def _called(arguments: tuple[Any, ...]) -> str:
    return " ".join(Path(os.fspath(one)).name for one in arguments if isinstance(one, str | Path))


def images(state: State, random_ones: int, draw: random.Random) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Ways in which a power cut at this moment may leave the folder: a name, and what builds it in an empty place."""
    for data, names in product(DATA, NAMES):
        yield (
            f"{state.after}: data {data}, names {names}",
            lambda target, data=data, names=names: _build(state, target, lambda _: data, lambda _: names),
        )
    for number in range(random_ones):
        seed = draw.random()
        yield (
            f"{state.after}: mixed {number}",
            lambda target, seed=seed: _build(state, target, _mixed(DATA, seed), _mixed(NAMES, seed)),
        )


def _mixed(among: tuple[str, ...], seed: float) -> Callable[[int], str]:
    return lambda number: random.Random(f"{seed} {number} {among[1]} {len(among)}").choice(among)


def _build(state: State, target: Path, data: Callable[[int], str], names: Callable[[int], str]) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    waiting = [(state.top, target)]
    seen: set[int] = set()
    while waiting:
        number, here = waiting.pop()
        kept = names(number) == "kept"
        entries = state.folders[number].entries if kept else state.synced_folders.get(number, Folder({})).entries
        for name, inner in entries.items():
            if inner in state.folders and inner not in seen:
                seen.add(inner)
                (here / name).mkdir()
                waiting.append((inner, here / name))
            elif inner in state.files:
                (here / name).write_bytes(_content(state, inner, data(inner)))


def _content(state: State, number: int, how: str) -> bytes:
    now, synced = state.files[number], state.synced_files.get(number, b"")
    if how == "kept" or now == synced:
        return now
    # A file that has been cut shorter than what was synced has nothing that could be lost but the cut itself.
    fresh = len(now) - len(synced) if now.startswith(synced) else len(now)
    base = synced if now.startswith(synced) else b""
    if how == "lost":
        return synced
    if how == "zeroed":
        return base + bytes(fresh)
    return base + now[len(base) : len(base) + fresh // 2]
