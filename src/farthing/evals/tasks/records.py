"""The questions of a task as they lie in a file of JSON lines or on the hub, with every fault told by its place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farthing.data.hub import reach
from farthing.data.sources.files import resolve
from farthing.data.sources.stream import text_pieces
from farthing.errors import UserError, first_line, need

_SHOWN = 60
"""characters of a wrong value in a message"""


@dataclass(frozen=True)
class Record:
    """One line of a file, or row of a data set.

    Args:
        fields: its values by name.
        place: where it stands: "file.jsonl:12".
    """

    fields: Mapping[str, Any]
    place: str

    def has(self, *names: str) -> bool:
        """Whether all these fields are there."""
        return all(name in self.fields for name in names)

    def text(self, name: str, *, empty: bool = False) -> str:
        """A text, not empty unless `empty` allows it.

        Raises:
            UserError: it is missing or is no such text; so for all that follow.
        """
        value = self._value(name)
        if not isinstance(value, str):
            raise self.wrong(name, value, "a text")
        if not (value or empty):
            raise self.wrong(name, value, "a text that is not empty")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.wrong(name, value, "a text without half a surrogate pair") from None
        return value

    def texts(self, name: str, *, least: int = 2) -> tuple[str, ...]:
        """A list of texts, none of them empty."""
        value = self._value(name)
        if not isinstance(value, list) or len(value) < least:
            raise self.wrong(name, value, f"a list of {least} texts or more")
        return tuple(Record({f"{name}[{i}]": one}, self.place).text(f"{name}[{i}]") for i, one in enumerate(value))

    def place_among(self, name: str, choices: int, *, first: int = 0) -> int:
        """The place of the right choice, from 0; in the data it is a whole number, counted from `first`."""
        value = self._value(name)
        number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value
        if isinstance(number, bool) or not isinstance(number, int) or not first <= number < first + choices:
            raise self.wrong(name, value, f"the place of the right one of {choices}: {first} to {first + choices - 1}")
        return number - first

    def wrong(self, name: str, value: Any, expected: str) -> UserError:
        """The error for a value that is not what it should be."""
        told = json.dumps(value, ensure_ascii=False, default=str)
        told = told if len(told) <= _SHOWN else told[: _SHOWN - 3] + "..."
        return UserError(f"{self.place}: {name}={told} should be {expected}")

    def lacks(self, expected: str) -> UserError:
        """The error for a record that has none of the forms a task knows."""
        there = ", ".join(map(str, self.fields)) or "none"
        return UserError(f"{self.place}: needs the fields {expected}; there are: {there[:200]}")

    def _value(self, name: str) -> Any:
        if name not in self.fields:
            raise self.lacks(name)
        return self.fields[name]


@dataclass(frozen=True)
class HubSet:
    """Where a task's questions are on the hub."""

    path: str
    name: str | None
    split: str


@dataclass(frozen=True)
class Records:
    """All records of a source.

    Args:
        records: in the source's order, at least one.
        source: what a person calls it.
        sha256: of the file, or of the rows as JSON.
    """

    records: Sequence[Record]
    source: str
    sha256: str


def read_file(path: str, *, directory: Path, what: str) -> Records:
    """The records of a file of JSON lines, plain, gzip or zstd; empty lines are passed over.

    Raises:
        UserError: it cannot be read, has no record, or a line is no JSON object; the message names the line.
    """
    text, file, sha256 = read_text(path, directory=directory, what=what)
    records = []
    # Not splitlines: JSON may hold U+2028 and its like inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            records.append(Record(_json_object(line, f"{file}:{number}"), f"{file}:{number}"))
    if not records:
        raise UserError(f"{file}: there is no question in it; it should have one JSON object a line")
    return Records(records, str(file), sha256)


def read_text(path: str, *, directory: Path, what: str) -> tuple[str, Path, str]:
    """The text of one file, the file, and its SHA-256.

    Raises:
        UserError: it cannot be read, is not UTF-8 text, or `path` names several.
    """
    files = resolve(path, directory=directory, what=what)
    if len(files) > 1:
        raise UserError(f"{what} = {path!r} names {len(files)} files; give one")
    text = b"".join(text_pieces(files[0], lambda done: None))
    return text.decode(), files[0], hashlib.sha256(files[0].read_bytes()).hexdigest()


def read_hub(where: HubSet, *, why: str) -> Records:
    """The rows of a data set on the hub, or in a folder that the datasets library can read.

    Raises:
        UserError: it cannot be had, or the library is not installed.
    """
    datasets = need("datasets", extra="hf", why=why)
    named = where.path + (f" ({where.name})" if where.name else "")
    try:
        if not Path(where.path).exists():
            reach()
        rows = list(datasets.load_dataset(where.path, where.name, split=where.split))
    # The library has no common base: not found, offline, a time-out and a wrong split each come as another class.
    except Exception as error:
        raise UserError(
            f"{why}: the hub's data set {named}, split {where.split!r}, cannot be read ({first_line(error)}); "
            "give a file instead: --data FILE"
        ) from error
    records = [Record(dict(row), f"{named}, row {number}") for number, row in enumerate(rows)]
    if not records:
        raise UserError(f"{why}: the hub's data set {named}, split {where.split!r}, is empty")
    told = json.dumps([dict(row) for row in rows], sort_keys=True, ensure_ascii=False, default=str)
    return Records(records, f"{named}, {where.split}", hashlib.sha256(told.encode("utf-8", "replace")).hexdigest())


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: no JSON object ({first_line(error)}): {line[:_SHOWN]!r}") from None
    if not isinstance(found, dict):
        raise UserError(f"{place}: a JSON object is expected, not {line[:_SHOWN]!r}")
    return found
