"""Training a unigram vocabulary over bytes (Kudo 2018): the likeliest pieces, found by EM and pruned by their worth.

Our own, since the tokenizers library's trainer looks for pieces among distinct words without their counts: it misses
common words that are part of no other (" and"), needs a fourth more tokens, and gives other scores each time.

Shapes: P pieces, the 256 bytes first; N bytes of all distinct words laid end to end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import pre_tokenizers

from farthing.data import tokenizer_json
from farthing.data.tokenizer_lattice import Lattice
from farthing.data.tokenizer_train import assemble
from farthing.data.tokenizer_words import roughly_words_of, words_of

_BYTES = 256
_LONGEST_PIECE = 24
_LONGEST_WORD = 32
_MOST_WORDS = 1_000_000
_MOST_BYTES = 1 << 20
_SEEDS_PER_TOKEN = 8
_FEWEST_SEEDS = 100_000
_SHRINK = 0.75
_LEAST_SCORE = -18.0


def train_unigram(texts: Iterator[str], *, vocab_size: int) -> str:
    """Learn a unigram vocabulary over bytes, within GPT-2's words; every byte is a piece, so nothing is unknown.

    Args:
        texts: what to learn from: its most frequent words, a megabyte of different ones.
        vocab_size: most tokens, the 256 bytes and the separator included; fewer if the text supports no more.

    Returns:
        The contents of a tokenizer.json.
    """
    corpus = _Corpus.of(_count_words(texts))
    names, lattice, inside = _seeds(corpus, max(_FEWEST_SEEDS, _SEEDS_PER_TOKEN * vocab_size))
    wanted = vocab_size - 1
    score_P = np.full(len(names), -np.log(len(names)))
    count_P = np.zeros(len(names))
    while True:
        for _ in range(2):
            count_P = lattice.expected_counts(score_P)
            # The digamma function is EM's exp(E[log p]) under a sparse prior: rare pieces lose more than their share.
            floor_P = np.maximum(count_P, 0.5)
            score_P = np.maximum(_digamma(floor_P) - _digamma(floor_P.sum(keepdims=True)), _LEAST_SCORE)
        if len(names) <= wanted:
            break
        loss_P = np.full(len(names), np.inf)
        loss_P[_BYTES:] = count_P[_BYTES:] * (score_P[_BYTES:] - inside.best_scores(score_P))
        keep = np.sort(np.argsort(-loss_P, kind="stable")[: max(wanted, int(_SHRINK * len(names)))])
        names, score_P = [names[i] for i in keep.tolist()], score_P[keep]
        lattice, inside = lattice.only(keep), inside.only(keep, words=keep[_BYTES:] - _BYTES)
    return assemble({"type": "Unigram", "unk_id": None, "vocab": _written(names, score_P), "byte_fallback": False})


def _count_words(texts: Iterator[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(roughly_words_of(text))
        if len(counts) > _MOST_WORDS:
            counts = Counter({word: n for word, n in counts.items() if n > 1})
        if len(counts) > _MOST_WORDS:
            counts = Counter(dict(counts.most_common(_MOST_WORDS // 2)))
    return counts


@dataclass(frozen=True)
class _Corpus:
    """Distinct words laid end to end: their bytes, each byte's word, how many bytes of the word are left there."""

    byte_N: np.ndarray
    word_N: np.ndarray
    left_N: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, words: Counter[str]) -> _Corpus:
        parts: Counter[bytes] = Counter()
        split = pre_tokenizers.ByteLevel(add_prefix_space=False)
        for rough, count in words.items():
            exact = words_of(rough) or [rough[a:b] for _, (a, b) in split.pre_tokenize_str(rough)]
            for word in exact:
                data = word.encode("utf-8", "replace")
                for start in range(0, len(data), _LONGEST_WORD):
                    parts[data[start : start + _LONGEST_WORD]] += count
        ranked = sorted(parts.items(), key=lambda item: (-item[1], item[0]))
        ends = np.cumsum([len(word) for word, _ in ranked], dtype=np.int64)
        ranked = ranked[: int(np.searchsorted(ends, _MOST_BYTES, side="right"))]
        lengths = np.array([len(word) for word, _ in ranked], dtype=np.int64)
        word_N = np.repeat(np.arange(len(ranked)), lengths)
        left_N = np.repeat(np.cumsum(lengths), lengths) - np.arange(lengths.sum())
        byte_N = np.frombuffer(b"".join(word for word, _ in ranked), dtype=np.uint8)
        return cls(byte_N, word_N, left_N, lengths, np.array([count for _, count in ranked], dtype=np.float64))


def _seeds(corpus: _Corpus, most: int) -> tuple[list[bytes], Lattice, Lattice]:
    """The first pieces: bytes, and the substrings that cover most of the text.

    Returns:
        The pieces; where they occur in the words; where they occur in each other.
    """
    levels = list(_substrings(corpus))
    weight = np.concatenate([(length + 2) * level.counts for length, level in enumerate(levels)] or [np.empty(0)])
    eligible = np.concatenate([level.seed for level in levels] or [np.empty(0, bool)])
    chosen = np.argsort(np.where(eligible, -weight, np.inf), kind="stable")[: min(most, int(eligible.sum()))]
    piece_of = np.full(len(weight), -1)
    piece_of[chosen] = np.arange(len(chosen)) + _BYTES
    # One byte longer than its word, each word has a node before every byte and one after the last.
    node_N = np.arange(len(corpus.byte_N)) + corpus.word_N
    sources, lengths, pieces = [node_N], [np.ones_like(node_N)], [corpus.byte_N.astype(np.int64)]
    at = np.zeros(len(chosen), dtype=np.int64)
    size = np.zeros(len(chosen), dtype=np.int64)
    offset = 0
    for length, level in enumerate(levels, start=2):
        piece = piece_of[offset : offset + len(level.counts)][level.substring]
        here, piece = level.position[piece >= 0], piece[piece >= 0]
        sources.append(node_N[here])
        lengths.append(np.full(len(here), length))
        pieces.append(piece)
        at[piece - _BYTES], size[piece - _BYTES] = here, length
        offset += len(level.counts)
    edges = (np.concatenate(sources), np.concatenate(lengths), np.concatenate(pieces))
    names = [bytes([value]) for value in range(_BYTES)]
    data = corpus.byte_N.tobytes()
    names += [data[start : start + length] for start, length in zip(at.tolist(), size.tolist(), strict=True)]
    lattice = Lattice.of(corpus.lengths, corpus.counts, *edges, pieces=len(names))
    return names, lattice, lattice.within(node_N[at], size)


@dataclass(frozen=True)
class _Level:
    """The substrings of one length: where they occur, which they are there, how often, and which may be seeds."""

    position: np.ndarray
    substring: np.ndarray
    counts: np.ndarray
    seed: np.ndarray


def _substrings(corpus: _Corpus) -> Iterator[_Level]:
    """Repeated substrings of words by length, from 2; numbered in the order of their bytes."""
    count_N = corpus.counts[corpus.word_N]
    position = np.arange(len(corpus.byte_N))
    substring = corpus.byte_N.astype(np.int64)
    counts = np.bincount(substring, weights=count_N, minlength=_BYTES)
    pending: _Level | None = None
    for length in range(2, _LONGEST_PIECE + 2):
        go_on = (corpus.left_N[position] >= length) & (counts[substring] >= 2)
        position, before = position[go_on], substring[go_on]
        keys, substring = np.unique(before * _BYTES + corpus.byte_N[position + length - 1], return_inverse=True)
        shorter, counts = counts, np.bincount(substring, weights=count_N[position], minlength=len(keys))
        if pending is not None:
            # What is always followed by the same byte is no piece of its own; the longer one is.
            longest = np.zeros(len(shorter))
            np.maximum.at(longest, keys // _BYTES, counts)
            yield _Level(pending.position, pending.substring, shorter, (shorter >= 2) & (longest < shorter))
        if not len(position):
            return
        pending = _Level(position, substring, counts, counts >= 2)


def _written(names: list[bytes], score_P: np.ndarray) -> list[tuple[str, float]]:
    """Pieces as tokenizer.json has them, likeliest first; rounded, so that a last digit cannot change the file."""
    letters = {value: letter for letter, value in tokenizer_json.byte_alphabet().items()}
    rounded = [round(score, 6) for score in score_P.tolist()]
    ranked = sorted(zip(names, rounded, strict=True), key=lambda item: (-item[1], item[0]))
    return [("".join(letters[value] for value in name), score) for name, score in ranked]


def _digamma(x: np.ndarray) -> np.ndarray:
    """The digamma function for x >= 0.5, to 1e-9: its recurrence up to 6 more, then its asymptotic series."""
    shifted = x + 6
    inverse = 1 / shifted**2
    series = np.log(shifted) - 0.5 / shifted - inverse * (1 / 12 - inverse * (1 / 120 - inverse * (1 / 252)))
    return np.asarray(series - sum(1 / (x + i) for i in range(6)))
