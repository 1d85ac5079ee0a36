"""Tokenizers by kind: bytes, trained here, GPT-2's own, or any tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, assert_never

from farthing.data.hub import reach
from farthing.data.tokenizer_codec import LONG, Tokenizer
from farthing.data.tokenizer_train import SEPARATOR, assemble, byte_tokenizer, sample, train_bpe
from farthing.data.tokenizer_unigram import train_unigram
from farthing.errors import UserError
from farthing.recipe.data import Bpe, ByteTokenizer, Gpt2Tokenizer, TokenizerFile, Unigram

__all__ = ["LONG", "SEPARATOR", "Tokenizer", "build_tokenizer"]

GPT2_SEPARATOR = "<|endoftext|>"
_GPT2_REPOSITORY = "openai-community/gpt2"
_GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
_LARGEST_FILE = 256_000_000


def build_tokenizer(
    section: ByteTokenizer | Bpe | Unigram | Gpt2Tokenizer | TokenizerFile,
    texts: Callable[[], Iterator[str]],
    *,
    directory: Path,
) -> Tokenizer:
    """Train or load the tokenizer that a recipe asks for.

    Args:
        section: the recipe's `tokenizer` table.
        texts: yields the text to learn from, document by document; each call starts anew. Only bpe and unigram look.
        directory: the folder that relative paths start from.

    Raises:
        UserError: a file is missing or damaged, or there is no text to learn from.
    """
    match section:
        case ByteTokenizer():
            return Tokenizer.from_json(byte_tokenizer(), separator=SEPARATOR)
        case Bpe():
            made = train_bpe(sample(texts, section.sample_bytes), vocab_size=section.vocab_size)
            return Tokenizer.from_json(made, separator=SEPARATOR)
        case Unigram():
            made = train_unigram(sample(texts, section.sample_bytes), vocab_size=section.vocab_size)
            return Tokenizer.from_json(made, separator=SEPARATOR)
        case Gpt2Tokenizer():
            return _gpt2(_gpt2_from_hub() if section.path is None else _gpt2_from_folder(section.path, directory))
        case TokenizerFile():
            return _file(section, directory)
        case _:
            assert_never(section)


def _file(section: TokenizerFile, directory: Path) -> Tokenizer:
    text = _read(directory / Path(section.path).expanduser())
    separator = None if section.separator == "auto" else section.separator
    return Tokenizer.from_json(text, separator=separator, where=f"tokenizer.path: {section.path}")


def _gpt2_from_folder(path: str, directory: Path) -> tuple[Path, Path]:
    folder = directory / Path(path).expanduser()
    for vocabulary, merges in _GPT2_FILES:
        if (folder / vocabulary).is_file() and (folder / merges).is_file():
            return folder / vocabulary, folder / merges
    raise UserError(f"tokenizer.path: no encoder.json with vocab.bpe (or vocab.json with merges.txt) in {folder}")


def _gpt2_from_hub() -> tuple[Path, Path]:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    vocabulary, merges = _GPT2_FILES[1]
    try:
        if not all(isinstance(try_to_load_from_cache(_GPT2_REPOSITORY, name), str) for name in (vocabulary, merges)):
            reach()
        return Path(hf_hub_download(_GPT2_REPOSITORY, vocabulary)), Path(hf_hub_download(_GPT2_REPOSITORY, merges))
    except Exception as error:  # httpx, requests, hub and file errors, by version: all of them mean "not fetched"
        raise UserError(
            f"tokenizer: GPT-2's files could not be fetched from the hub's {_GPT2_REPOSITORY} "
            f"({type(error).__name__}); go online once, or set tokenizer.path to a folder with encoder.json and vocab.bpe"
        ) from error


def _gpt2(files: tuple[Path, Path]) -> Tokenizer:
    vocabulary_file, merges_file = files
    where = f"tokenizer.path: {vocabulary_file}"
    try:
        vocabulary: Any = json.loads(_read(vocabulary_file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); give GPT-2's {vocabulary_file.name}") from error
    if not isinstance(vocabulary, dict) or GPT2_SEPARATOR not in vocabulary:
        raise UserError(f"{where}: no {GPT2_SEPARATOR} in it; give GPT-2's {vocabulary_file.name}")
    lines = _read(merges_file).split("\n")
    merges = [line.rstrip("\r").split(" ") for line in lines if line and not line.startswith("#version")]
    made = assemble({"type": "BPE", "vocab": vocabulary, "merges": merges}, separator=GPT2_SEPARATOR)
    return Tokenizer.from_json(made, separator=GPT2_SEPARATOR, where=where)


def _read(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            raise UserError(
                f"tokenizer.path: {path} has {size / 1e6:,.0f} MB, more than any tokenizer ({_LARGEST_FILE / 1e6:,.0f} MB)"
            )
        return path.read_text("utf-8")
    except OSError as error:
        raise UserError(f"tokenizer.path: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"tokenizer.path: {path} is not text in UTF-8 (byte {error.start})") from error
