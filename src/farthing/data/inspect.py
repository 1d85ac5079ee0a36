"""What a tokenizer does to a text: how tightly it packs, which of its tokens are used, what it costs the model."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from farthing.data.tokenizer_codec import LONG, Tokenizer
from farthing.errors import UserError

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


@dataclass(frozen=True)
class TokenUse:
    """One token of the vocabulary, as people read it, and how often the text uses it."""

    token: int
    text: str
    count: int
    share: float


@dataclass(frozen=True)
class TokenizerReport:
    """What `inspect` found. Separators are counted nowhere but in `vocab_size`.

    Attributes:
        fingerprint: the tokenizer's.
        vocab_size: tokens of the vocabulary, the separator included.
        documents: how many were read.
        tokens: how many they became.
        bytes: their UTF-8 bytes.
        characters: their code points.
        bytes_per_token: the higher, the fewer steps a text costs.
        characters_per_token: likewise.
        unigram_bits_per_byte: bits a byte if each token were drawn by its frequency alone: what is left to a model.
        tokens_seen: different tokens that the text uses.
        coverage: tokens_seen / vocab_size.
        unknown_rate: share of the tokens that stand for what the vocabulary lacks.
        lossy: None if every text survives, else what does not.
        length_percentiles: (percentile, tokens) of the documents' lengths.
        most_used: the most frequent tokens.
        least_used: of the tokens longer than a byte, those that the text uses least, or not at all.
        frequency_curve: (rank, count) at ranks 1, 2, 4, ... and the last.
        embedding_parameters: vocab_size * d_model; None without d_model.
        parameter_share: embedding_parameters / the model's parameters; None without these.
    """

    fingerprint: str
    vocab_size: int
    documents: int
    tokens: int
    bytes: int
    characters: int
    bytes_per_token: float
    characters_per_token: float
    unigram_bits_per_byte: float
    tokens_seen: int
    coverage: float
    unknown_rate: float
    lossy: str | None
    length_percentiles: tuple[tuple[int, int], ...]
    most_used: tuple[TokenUse, ...]
    least_used: tuple[TokenUse, ...]
    frequency_curve: tuple[tuple[int, int], ...]
    embedding_parameters: int | None
    parameter_share: float | None

    def as_dict(self) -> dict[str, Any]:
        """The report as plain tables and lists, ready for JSON."""
        return asdict(self)


def inspect(
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    d_model: int | None = None,
    parameters: int | None = None,
    show: int = 20,
) -> TokenizerReport:
    """Encode a text and report on it, in one pass and bounded memory.

    Args:
        tokenizer: the tokenizer.
        texts: documents.
        d_model: the model's width, to tell what the vocabulary costs it.
        parameters: the model's parameters in all, a tied embedding counted once.
        show: how many of the most and least used tokens to list.

    Raises:
        UserError: there is no text.
    """
    count_V = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    lengths = array("q")
    characters = size = 0
    for text, pieces in _encoded(tokenizer, texts):
        lengths.append(sum(len(piece) for piece in pieces))
        for piece in pieces:
            np.add.at(count_V, piece, 1)
        characters += len(text)
        size += len(text.encode())
    tokens = int(count_V.sum())
    if tokens == 0:
        raise UserError("tokenizer: there is no text to inspect; give documents with text")
    ranked = np.sort(count_V[count_V > 0])[::-1]
    share = ranked / tokens
    embedding = None if d_model is None else tokenizer.vocab_size * d_model
    return TokenizerReport(
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        documents=len(lengths),
        tokens=tokens,
        bytes=size,
        characters=characters,
        bytes_per_token=size / tokens,
        characters_per_token=characters / tokens,
        unigram_bits_per_byte=float(-(share * np.log2(share)).sum() * tokens / size),
        tokens_seen=len(ranked),
        coverage=len(ranked) / tokenizer.vocab_size,
        unknown_rate=0.0 if tokenizer.unknown is None else int(count_V[tokenizer.unknown]) / tokens,
        lossy=tokenizer.lossy,
        length_percentiles=_percentiles(np.frombuffer(lengths, dtype=np.int64)),
        most_used=_uses(tokenizer, count_V, np.argsort(-count_V, kind="stable")[: min(show, len(ranked))]),
        least_used=_uses(tokenizer, count_V, _least_used(tokenizer, count_V, show)),
        frequency_curve=_curve(ranked),
        embedding_parameters=embedding,
        parameter_share=None if embedding is None or not parameters else embedding / parameters,
    )


def compare(reports: Mapping[str, TokenizerReport]) -> list[dict[str, Any]]:
    """One row of numbers for each named report, in the order given; `relative_tokens` is against the first.

    Token counts compare only over the same text.

    Raises:
        UserError: the reports are of different texts.
    """
    texts = {(report.documents, report.bytes) for report in reports.values()}
    if len(texts) > 1:
        raise UserError(f"tokenizer compare: the reports are of different texts ({sorted(texts)} documents and bytes)")
    first = next(iter(reports.values())).tokens if reports else 1
    return [
        {
            "name": name,
            "vocab_size": report.vocab_size,
            "tokens": report.tokens,
            "relative_tokens": report.tokens / first,
            "bytes_per_token": report.bytes_per_token,
            "characters_per_token": report.characters_per_token,
            "unigram_bits_per_byte": report.unigram_bits_per_byte,
            "coverage": report.coverage,
            "unknown_rate": report.unknown_rate,
            "lossy": report.lossy,
            "median_length": dict(report.length_percentiles)[50],
            "parameter_share": report.parameter_share,
        }
        for name, report in reports.items()
    ]


def _encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Each text with its tokens in pieces, encoded some at a time."""
    waiting: list[str] = []
    size = 0
    for text in texts:
        if len(text) > LONG:
            yield text, list(tokenizer.encode_long(text))
            continue
        waiting.append(text)
        size += len(text)
        if size > LONG or len(waiting) > LONG // 16:
            yield from ((done, [tokens]) for done, tokens in _together(tokenizer, waiting))
            waiting, size = [], 0
    yield from ((done, [tokens]) for done, tokens in _together(tokenizer, waiting))


def _together(tokenizer: Tokenizer, texts: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    return zip(texts, tokenizer.encode_batch_arrays(texts), strict=True)


def _percentiles(lengths: np.ndarray) -> tuple[tuple[int, int], ...]:
    # "lower" gives a length that some document has.
    values = np.percentile(lengths, PERCENTILES, method="lower")
    return tuple((percentile, int(value)) for percentile, value in zip(PERCENTILES, values, strict=True))


def _least_used(tokenizer: Tokenizer, count_V: np.ndarray, show: int) -> np.ndarray:
    order = np.lexsort((-np.arange(len(count_V)), count_V))
    long = [token for token in order.tolist() if len(tokenizer.token_bytes(token)) > 1]
    return np.array(long[:show], dtype=np.int64)


def _uses(tokenizer: Tokenizer, count_V: np.ndarray, chosen: np.ndarray) -> tuple[TokenUse, ...]:
    total = int(count_V.sum())
    return tuple(
        TokenUse(token, tokenizer.token_text(token), int(count_V[token]), int(count_V[token]) / total)
        for token in chosen.tolist()
    )


def _curve(ranked: np.ndarray) -> tuple[tuple[int, int], ...]:
    ranks = [1 << power for power in range(len(ranked).bit_length()) if 1 << power < len(ranked)]
    return tuple((rank, int(ranked[rank - 1])) for rank in [*ranks, len(ranked)])
