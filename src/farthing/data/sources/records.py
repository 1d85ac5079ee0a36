"""Documents of records: a named field of JSON lines, CSV, Parquet or a dataset of the Hugging Face hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from farthing.data.hub import reach
from farthing.data.sources.stream import Progress, text_pieces
from farthing.data.sources.text import split_on
from farthing.errors import UserError, need
from farthing.recipe.data import Csv, Hub, Jsonl, Parquet

_SHOWN = 8
_LONGEST_CELL = 2**31 - 1


def jsonl_documents(section: Jsonl, files: Iterable[Path], progress: Progress) -> Iterator[bytes]:
    """The field of each JSON line; blank lines are passed over."""
    for path in files:
        for number, line in enumerate(split_on(text_pieces(path, progress), b"\n"), start=1):
            if not line.strip():
                continue
            place = f"{path}: line {number:,}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{place} is not JSON ({_one_line(error)}): {line[:60].decode('utf-8', 'replace')!r}"
                ) from None
            if not isinstance(record, dict):
                raise UserError(
                    f"{place} is a JSON {type(record).__name__}, not an object with the field {section.field!r}"
                )
            yield _encoded(_field(record, section.field, place), place)


def csv_documents(section: Csv, files: Iterable[Path], progress: Progress) -> Iterator[bytes]:
    """The column of each row; the first line names the columns."""
    csv.field_size_limit(_LONGEST_CELL)
    for path in files:
        lines = (line.decode("utf-8") + "\n" for line in split_on(text_pieces(path, progress), b"\n"))
        rows = csv.reader(lines, delimiter=section.delimiter, strict=True)
        try:
            header = next(rows, [])
            if section.field not in header:
                if not header:
                    continue
                raise UserError(
                    f"{path}: no column {section.field!r}; {_columns(header)}; set data.field or data.delimiter"
                )
            column = header.index(section.field)
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"{path}: line {rows.line_num:,} has {len(row)} columns where the header has {len(header)}"
                    )
                yield row[column].encode("utf-8")
        except csv.Error as error:
            raise UserError(f"{path}: line {rows.line_num:,} is not CSV ({_one_line(error)})") from None


def parquet_documents(section: Parquet, files: Iterable[Path], progress: Progress) -> Iterator[bytes]:
    """The column of each row, a thousand rows at a time; a null is an empty document."""
    need("pyarrow", extra="hf", why='data.kind = "parquet"')
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                if section.field not in names:
                    raise UserError(f"{path}: no column {section.field!r}; {_columns(names)}; set data.field")
                kind = file.schema_arrow.field(section.field).type
                if pa.types.is_dictionary(kind):
                    kind = kind.value_type
                if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                    raise UserError(f"{path}: column {section.field!r} holds {kind}, not text; set data.field")
                rows, size = max(1, file.metadata.num_rows), path.stat().st_size
                for batch in file.iter_batches(batch_size=1000, columns=[section.field]):
                    progress(size * batch.num_rows // rows)
                    for text in batch.column(0).to_pylist():
                        yield (text or "").encode("utf-8")
        except (pa.ArrowException, OSError) as error:  # a damaged page is an OSError to it
            raise UserError(f"{path}: not a readable Parquet file ({_one_line(error)})") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: column {section.field!r} holds text that is not UTF-8 ({error.reason})") from None


def hub_documents(section: Hub, take: int | None) -> Iterator[bytes]:
    """The field of each row of a dataset, streamed from the hub in its own order; the first `take` rows if given."""
    datasets = need("datasets", extra="hf", why='data.kind = "hub"')
    named = section.path + (f" ({section.name})" if section.name else "")
    try:
        if not Path(section.path).exists():
            reach()
        rows = datasets.load_dataset(
            section.path, section.name, split=section.hub_split, revision=section.revision, streaming=True
        )
        for number, record in enumerate(rows):
            if number == take:
                return
            place = f"hub dataset {named}, row {number:,}"
            yield _encoded(_field(record, section.field, place), place)
    except UserError:
        raise
    # The library has no common base: not found, offline, a time-out and a wrong split each come as another class.
    except Exception as error:
        raise UserError(
            f"the hub dataset {named}, split {section.hub_split!r}, cannot be read ({_one_line(error)}); check "
            'data.path, data.name, data.hub_split and the network, or use files of your own with data.kind = "text"'
        ) from error


def _field(record: dict[str, Any], name: str, place: str) -> str:
    if name not in record:
        raise UserError(f"{place} has no field {name!r}; {_columns(list(record))}; set data.field")
    text = record[name]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(
            f"{place}: field {name!r} holds {type(text).__name__} {str(text)[:40]}, not text; set data.field"
        )
    return text


def _encoded(text: str, place: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{place} holds half a surrogate pair, {text[error.start]!r}, which is no character") from None


def _columns(names: list[str]) -> str:
    shown = ", ".join(map(str, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    return f"there are: {shown}" if names else "there are none"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
