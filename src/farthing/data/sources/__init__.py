"""Sources of text: each kind of `data` in a recipe as a stream of documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farthing.data.sources.files import resolve
from farthing.data.sources.pystdlib import stdlib_files
from farthing.data.sources.records import csv_documents, hub_documents, jsonl_documents, parquet_documents
from farthing.data.sources.stream import Progress
from farthing.data.sources.text import Document, text_documents
from farthing.recipe.data import Csv, Hub, Jsonl, Parquet, PyStdlib, Text

TextSection = PyStdlib | Text | Jsonl | Parquet | Csv | Hub


@dataclass(frozen=True)
class Source:
    """Text to be read: where it lies and how it is cut into documents.

    Args:
        files: the files it is read from, in order; none for the hub.
        names: how a person knows these files.
        options: everything besides the files' content that decides what the documents are, JSON-ready.
        documents: reads them, in order, empty ones included.
        one_per_file: whether a document is a whole file.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...]
    options: dict[str, Any]
    documents: Callable[[Progress], Iterator[Document]]
    one_per_file: bool = False


def open_source(section: TextSection, *, directory: Path, what: str = "data.path") -> Source:
    """Find the text that `section` names; paths are relative to `directory`. Nothing is read yet.

    Raises:
        UserError: a file is not there or cannot be read.
    """
    match section:
        case PyStdlib():
            root, files = stdlib_files()
            names = tuple(path.relative_to(root).as_posix() for path in files)
            whole = Text(path=[])
            return Source(
                files, names, {"kind": "text", "documents": "file"}, lambda p: text_documents(whole, files, p), True
            )
        case Hub():
            # A shuffled limit is drawn from all documents; only the first ones can be had without reading the rest.
            take = section.limit if section.split == "tail" else None
            options = section.model_dump(include={"kind", "path", "name", "hub_split", "revision", "field"})
            return Source((), (section.path,), options | {"take": take}, lambda p: hub_documents(section, take))
    files = resolve(section.path, directory=directory, what=what)
    names = tuple(map(str, files))
    match section:
        case Text():
            options = section.model_dump(include={"kind", "documents", "marker"})
            one = section.documents == "file"
            return Source(files, names, options, lambda p: text_documents(section, files, p), one)
        case Jsonl():
            options = section.model_dump(include={"kind", "field"})
            return Source(files, names, options, lambda p: jsonl_documents(section, files, p))
        case Parquet():
            options = section.model_dump(include={"kind", "field"})
            return Source(files, names, options, lambda p: parquet_documents(section, files, p))
        case Csv():
            options = section.model_dump(include={"kind", "field", "delimiter"})
            return Source(files, names, options, lambda p: csv_documents(section, files, p))
