"""Shards: the parts of a corpus as token streams, in memory-mapped files that are verified whenever they are opened."""

from __future__ import annotations

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from farthing.data.corpus import Corpus
from farthing.data.encoders import Encoders, encoders
from farthing.data.split import TokenSplit
from farthing.data.splits import Part, overlap, part_address
from farthing.data.store import Report, address, entry, silent
from farthing.data.token_corpus import TokenCorpus
from farthing.data.tokenizer import Tokenizer
from farthing.data.tokenizer_json import is_bytes, parse, splits_like_gpt2
from farthing.errors import UserError
from farthing.recipe.data import Source as SourceSection

_LONGEST = 1 << 20
_BATCH_BYTES = 1 << 20
_BATCH_TEXTS = 1 << 14
_CHUNK_TOKENS = 1 << 22
_WRITER = 1
"""Raised when the same text and tokenizer come to give another stream."""


@dataclass(frozen=True)
class Shards:
    """Tokenised parts and what was learnt while tokenising them.

    Args:
        splits: by name: train, validation and perhaps test.
        facts: by name: tokens, documents, bytes, characters, fingerprint, seen (tokens of the vocabulary that occur)
            and for held-out parts in_train (documents that also stand in the training part).
    """

    splits: dict[str, TokenSplit]
    facts: dict[str, dict[str, Any]]


def open_shards(
    parts: dict[str, Part[Any]],
    tokenizer: Tokenizer,
    *,
    section: SourceSection | None,
    cache: Path,
    report: Report = silent,
) -> Shards:
    """The parts as tokens: from the cache if they are there and whole, else encoded now.

    Args:
        parts: text or token documents by name; all but "train" are held out and must survive the tokenizer.
        tokenizer: encodes text; for token sources it only counts bytes.
        section: the recipe's `data`, whose rule drew the parts; None for a whole file.
        cache: where shards are kept.
        report: hears "tokenising" in bytes.

    Raises:
        UserError: decode(encode(text)) is not text for a held-out document.
    """
    made_from = {name: part_address(part, section) for name, part in parts.items()}
    key = address(writer=_WRITER, parts=made_from, tokenizer=tokenizer.fingerprint)
    folder = cache / "shards" / key
    facts = entry(folder, lambda temporary: _build(temporary, parts, tokenizer, report))["parts"]
    splits = {name: _split(folder, part, tokenizer, facts[name]) for name, part in parts.items()}
    return Shards(splits, facts)


def _split(folder: Path, part: Part[Any], tokenizer: Tokenizer, facts: dict[str, Any]) -> TokenSplit:
    corpus = part.corpus
    if isinstance(corpus, TokenCorpus):
        texts: Callable[[], Iterator[str]] = functools.partial(_decoded, part, tokenizer)
    else:
        texts = part.texts
    if facts["in_place"]:
        (tokens_N,) = corpus.runs(part.numbers_N)
    else:
        tokens_N = np.memmap(folder / f"{part.name}.tokens", dtype=facts["dtype"], mode="r")
    return TokenSplit(
        name=part.name,
        tokens_N=tokens_N,
        separator=tokenizer.separator,
        documents=len(part),
        bytes=facts["bytes"],
        characters=facts["characters"],
        fingerprint=facts["fingerprint"],
        texts=texts,
    )


def _decoded(part: Part[TokenCorpus], tokenizer: Tokenizer) -> Iterator[str]:
    return (tokenizer.decode(part.corpus.document(int(number)).tolist()) for number in part.numbers_N)


def _build(folder: Path, parts: dict[str, Part[Any]], tokenizer: Tokenizer, report: Report) -> dict[str, Any]:
    total = sum(part.size() for part in parts.values())
    facts: dict[str, dict[str, Any]] = {}
    before = 0
    for name, part in sorted(parts.items(), key=lambda item: item[0] == "train"):  # refuse a lossy tokenizer early

        def progress(done: int, before: int = before) -> None:
            report("tokenising", before + done, total)

        write = _copied if isinstance(part.corpus, TokenCorpus) else _encoded
        facts[name] = write(folder, part, tokenizer, progress)
        before += part.size()
    if "train" in parts:
        held_out = [part for name, part in parts.items() if name != "train"]
        for name, common in overlap(parts["train"], held_out).items():
            facts[name]["in_train"] = common
    return {"parts": facts}


def _encoded(folder: Path, part: Part[Corpus], tokenizer: Tokenizer, progress: Callable[[int], None]) -> dict[str, Any]:
    dtype = _dtype(tokenizer)
    counts_V = np.zeros(tokenizer.vocab_size, np.int64)
    digest = hashlib.sha256()
    starts = [np.zeros(1, np.int64)]
    tokens = size = characters = documents = 0
    with (folder / f"{part.name}.tokens").open("wb") as out, encoders(tokenizer, part.size()) as ready:
        for batch, encoded in _ahead(_batches(part, tokenizer, digest), ready):
            if part.name != "train":
                _survives(batch, encoded, tokenizer, part.name, documents)
            stream_N, ends_N = _with_separators(encoded, batch, tokenizer.separator, dtype)
            out.write(stream_N.tobytes())
            counts_V += np.bincount(stream_N, minlength=tokenizer.vocab_size)
            starts.append(ends_N + tokens)
            tokens += len(stream_N)
            documents += len(ends_N)
            characters += sum(map(len, batch.texts))
            size += batch.bytes
            progress(size)
    np.save(folder / f"{part.name}.starts.npy", np.concatenate(starts).astype(np.uint64), allow_pickle=False)
    return {
        "tokens": tokens, "documents": documents, "bytes": size, "characters": characters, "dtype": dtype.str,
        "fingerprint": digest.hexdigest(), "seen": int(np.count_nonzero(counts_V)), "in_place": False,
    }  # fmt: skip


def _copied(
    folder: Path, part: Part[TokenCorpus], tokenizer: Tokenizer, progress: Callable[[int], None]
) -> dict[str, Any]:
    corpus = part.corpus
    counts_V = np.zeros(tokenizer.vocab_size, np.int64)
    digest = hashlib.sha256()
    runs = list(corpus.runs(part.numbers_N))
    tokens = 0
    with (folder / f"{part.name}.tokens").open("wb") as out:
        for run_N in runs:
            for first in range(0, len(run_N), _CHUNK_TOKENS):
                chunk_N = run_N[first : first + _CHUNK_TOKENS]
                raw = chunk_N.tobytes()
                digest.update(raw)
                if len(runs) > 1:
                    out.write(raw)
                counts_V += np.bincount(chunk_N, minlength=tokenizer.vocab_size)
                tokens += len(chunk_N)
                progress(tokens)
    if len(runs) == 1:
        (folder / f"{part.name}.tokens").unlink()
    texts = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    # Every byte of UTF-8 begins a character except those of the form 10xxxxxx.
    characters_V = np.array([sum(byte & 0xC0 != 0x80 for byte in text) for text in texts], np.int64)
    return {
        "tokens": tokens, "documents": len(part), "dtype": corpus.tokens_N.dtype.str,
        "bytes": int(counts_V @ np.array([len(text) for text in texts], np.int64)),
        "characters": int(counts_V @ characters_V),
        "fingerprint": digest.hexdigest(), "seen": int(np.count_nonzero(counts_V)), "in_place": len(runs) == 1,
    }  # fmt: skip


@dataclass(frozen=True)
class _Batch:
    """Texts for one call of the tokenizer, their UTF-8 bytes, and which of them end a document."""

    texts: list[str]
    ends: list[bool]
    bytes: int


def _batches(part: Part[Corpus], tokenizer: Tokenizer, digest: hashlib._Hash) -> Iterator[_Batch]:
    texts: list[str] = []
    ends: list[bool] = []
    size = 0
    specification = parse(tokenizer.to_json())
    cut = is_bytes(specification) or splits_like_gpt2(specification)
    for raw, end in part.corpus.pieces(part.numbers_N, longest=_LONGEST if cut else None):
        digest.update(raw)
        if end:
            digest.update(b"\xff")  # a byte that UTF-8 never has
        texts.append(raw.decode("utf-8"))
        ends.append(end)
        size += len(raw)
        if size >= _BATCH_BYTES or len(texts) >= _BATCH_TEXTS:
            yield _Batch(texts, ends, size)
            texts, ends, size = [], [], 0
    if texts:
        yield _Batch(texts, ends, size)


def _ahead(batches: Iterator[_Batch], encoders: Encoders) -> Iterator[tuple[_Batch, list[np.ndarray]]]:
    """Each batch with its encoding, in order, while the next ones are being encoded."""
    waiting: deque[tuple[_Batch, Future[list[np.ndarray]]]] = deque()
    for batch in batches:
        waiting.append((batch, encoders.submit(batch.texts)))
        if len(waiting) > encoders.under_way:
            ready, encoding = waiting.popleft()
            yield ready, encoding.result()
    for ready, encoding in waiting:
        yield ready, encoding.result()


def _with_separators(
    encoded: list[np.ndarray], batch: _Batch, separator: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """The batch's part of the stream, and where in it each document has ended (one past its separator)."""
    ends_K = np.cumsum([len(ids) for ids in encoded])[np.array(batch.ends, bool)]
    stream_N = np.insert(np.concatenate(encoded), ends_K, np.array(separator, dtype))
    return stream_N, ends_K + np.arange(1, len(ends_K) + 1)


def _survives(batch: _Batch, encoded: list[np.ndarray], tokenizer: Tokenizer, part: str, before: int) -> None:
    for number, (text, ids) in enumerate(zip(batch.texts, encoded, strict=True)):
        back = tokenizer.decode(ids.tolist())
        if back != text:
            at = next(
                (i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back))
            )
            document = before + sum(batch.ends[:number]) + 1
            raise UserError(
                f"the tokenizer loses text: document {document:,} of the {part} part comes back as "
                f"{back[at : at + 20]!r} where it has {text[at : at + 20]!r} (character {at + 1:,}), so no score on it "
                "would be true; use tokenizer.kind = bpe, unigram, byte or gpt2"
            )


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
