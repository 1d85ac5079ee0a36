"""Files of strangers, examined before they are believed: safetensors, config.json and tokenizer.json of a folder.

Nothing here can run code: no pickle, no class named by a file, no library that would look for either.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from farthing.data.tokenizer import Tokenizer
from farthing.data.tokenizer_json import parse, special_names, token_names
from farthing.errors import UserError, first_line

Config = Mapping[str, Any]
"""config.json with its plain values only"""

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MAX_JSON = 10_000_000
_MAX_TOKENIZER = 256_000_000
_MAX_HEADER = 100_000_000
_MAX_SHARDS, _MAX_TENSORS = 1000, 100_000
_DTYPES = {"F64", "F32", "F16", "BF16"}
_UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read_config(folder: Path) -> Config:
    """config.json without whatever could name code: numbers, strings, booleans, and tables and lists of these.

    Keys that begin with an underscore, and those that tell a library what to load or how to compute, are dropped.

    Raises:
        UserError: it is missing, too large, or no JSON object.
    """
    table = _json(folder / CONFIG)
    told = {"auto_map", "trust_remote_code", "attn_implementation", "experts_implementation", "custom_pipelines"}
    return {key: value for key, value in table.items() if not key.startswith("_") and key not in told}


def read_tokenizer(folder: Path, config: Config) -> Tokenizer:
    """The folder's tokenizer.json; the separator is the token that config.json, or the tokenizer's own, ends a text with.

    Raises:
        UserError: it is missing or damaged, or which token ends a document cannot be told.
    """
    path = folder / TOKENIZER
    try:
        if path.stat().st_size > _MAX_TOKENIZER:
            raise UserError(f"{path}: {path.stat().st_size / 1e6:,.0f} MB, more than any tokenizer")
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no {TOKENIZER} in it; write one with transformers: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
    return Tokenizer.from_json(text, separator=_separator(text, folder, config), where=str(path))


def _separator(text: str, folder: Path, config: Config) -> str | None:
    """The text of the token that ends a document; None leaves it to what the tokenizer.json itself says."""
    if (folder / _TOKENIZER_CONFIG).is_file():
        named = _json(folder / _TOKENIZER_CONFIG).get("eos_token")
        named = named.get("content") if isinstance(named, dict) else named
        if isinstance(named, str):
            return named
    number = config.get("eos_token_id")
    number = number[0] if isinstance(number, list) and number else number
    if not isinstance(number, int) or isinstance(number, bool):
        return None
    specification = parse(text, where=str(folder / TOKENIZER))
    known = token_names(specification)
    # Of a vocabulary that was replaced, config.json may still have the number of the old one's token.
    named = known[number] if 0 <= number < len(known) else None
    return named if named in special_names(specification) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes; such a file has at most {_MAX_JSON:,}")
        table = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({first_line(error)})") from None
    if not isinstance(table, dict):
        raise UserError(f"{path}: not a JSON object, but {type(table).__name__}")
    return table


@dataclass(frozen=True)
class Stored:
    """A tensor as its file's header tells of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Tensors:
    """The tensors of some safetensors files by name: their headers examined, their values read one at a time."""

    def __init__(self, stored: Mapping[str, Stored], handles: Mapping[Path, Any]) -> None:
        self._stored, self._handles = stored, handles

    @property
    def names(self) -> set[str]:
        """What there is."""
        return set(self._stored)

    def __getitem__(self, name: str) -> Stored:
        return self._stored[name]

    def read(self, name: str) -> Tensor:
        """A tensor's values in the format they are stored in, mapped from the file: copy what is to be kept.

        Raises:
            UserError: a value is not finite.
        """
        stored = self._stored[name]
        values: Tensor = self._handles[stored.file].get_tensor(name)
        if not bool(torch.isfinite(values).all()):
            raise UserError(f"{stored.file}: tensor {name!r} holds values that are not finite; the weights are damaged")
        return values


@contextmanager
def open_tensors(folder: Path) -> Iterator[Tensors]:
    """The tensors of model.safetensors, or of the shards that its index names.

    Raises:
        UserError: a file is missing, damaged, or of a kind that can run code.
    """
    files, wanted = _files(folder)
    with ExitStack() as stack:
        stored: dict[str, Stored] = {}
        handles: dict[Path, Any] = {}
        for file in files:
            handles[file] = stack.enter_context(_opened(file))
            for name, one in _headers(file, handles[file]):
                if name in stored:
                    raise UserError(
                        f"{file}: tensor {name!r} is also in {stored[name].file.name}; one of them is wrong"
                    )
                stored[name] = one
        for name, file in wanted.items():
            if name not in stored or stored[name].file != file:
                raise UserError(f"{folder / _INDEX}: says that {name!r} is in {file.name}, which does not hold it")
        yield Tensors(stored, handles)


def _files(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """The files to read, and where an index says that each tensor is."""
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE], {}
    if not (folder / _INDEX).is_file():
        unsafe = sorted(path.name for pattern in _UNSAFE for path in folder.glob(pattern))
        if unsafe:
            raise UserError(
                f"{folder / unsafe[0]}: such files can run code when opened, so only *.safetensors are read; have "
                "transformers write them: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)"
            )
        raise UserError(f"{folder}: no {_WHOLE} in it, nor {_INDEX}")
    table = _json(folder / _INDEX).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UserError(f"{folder / _INDEX}: no weight_map in it; the index is damaged")
    wanted = {}
    for name, file in table.items():
        plain = isinstance(file, str) and re.fullmatch(r"[\w.-]{1,200}\.safetensors", file) is not None
        if not plain or not (folder / file).is_file():
            raise UserError(f"{folder / _INDEX}: {str(file)[:80]!r} is not a safetensors file beside it")
        wanted[name] = folder / file
    files = sorted(set(wanted.values()))
    if len(files) > _MAX_SHARDS:
        raise UserError(f"{folder / _INDEX}: names {len(files):,} files; at most {_MAX_SHARDS:,} are read")
    return files, wanted


def _opened(file: Path) -> Any:
    """The library's handle, after the one check that it would fail without a readable reason."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
        if len(start) < 8:
            raise UserError(f"{file}: {size:,} bytes are too few for a safetensors file; fetch it again")
        (header,) = struct.unpack("<Q", start)
        if header > min(_MAX_HEADER, size - 8):
            raise UserError(
                f"{file}: says that its header has {header:,} bytes, where the file has {size:,} and "
                f"{_MAX_HEADER:,} are the most; it is damaged, or no safetensors file"
            )
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{file}: damaged: {_reason(error)}; fetch it again") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None


def _reason(error: SafetensorError) -> str:
    return first_line(error).removeprefix("Error while deserializing header: ")


def _headers(file: Path, handle: Any) -> Iterator[tuple[str, Stored]]:
    names = list(handle.keys())
    if len(names) > _MAX_TENSORS:
        raise UserError(f"{file}: {len(names):,} tensors; a model has at most {_MAX_TENSORS:,}")
    for name in names:
        if not name.isprintable() or len(name) > 200 or "/" in name or "\\" in name or ".." in name:
            raise UserError(f"{file}: {name[:80]!r} is no tensor's name; the file is damaged, or made to do harm")
        part = handle.get_slice(name)
        stored = Stored(file, tuple(part.get_shape()), str(part.get_dtype()))
        if stored.dtype not in _DTYPES:
            raise UserError(
                f"{file}: tensor {name!r} is stored as {stored.dtype}; only {', '.join(sorted(_DTYPES))} are read, so "
                "undo the quantization first"
            )
        yield name, stored
