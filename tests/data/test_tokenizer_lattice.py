"""Lattices: against every way to cut a word, enumerated."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from farthing.data.tokenizer_lattice import Lattice

WORDS = st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=5, unique=True)


def cuts(word: str, pieces: list[str]) -> list[list[str]]:
    """Every way to cut a word into known pieces."""
    ways = []
    for borders in itertools.product([False, True], repeat=len(word) - 1):
        ends = [i + 1 for i, border in enumerate(borders) if border]
        parts = [word[a:b] for a, b in zip([0, *ends], [*ends, len(word)], strict=True)]
        if all(part in pieces for part in parts):
            ways.append(parts)
    return ways


def lattice_of(words: list[str], weights: list[int], pieces: list[str]) -> Lattice:
    edges = []
    node = 0
    for word in words:
        for at in range(len(word)):
            edges += [(node + at, len(p), i) for i, p in enumerate(pieces) if word.startswith(p, at)]
        node += len(word) + 1
    source, length, piece = (np.array(column) for column in zip(*edges, strict=True))
    lengths = np.array([len(word) for word in words])
    return Lattice.of(lengths, np.array(weights, dtype=float), source, length, piece, pieces=len(pieces))


pieces_and_scores = st.lists(st.text("ab", min_size=2, max_size=4), max_size=6, unique=True).flatmap(
    lambda longer: st.tuples(
        st.just(["a", "b", *longer]),
        st.lists(st.floats(-9, -0.1), min_size=len(longer) + 2, max_size=len(longer) + 2),
    )
)


@given(words=WORDS, known=pieces_and_scores, seed=st.integers(0, 9))
@settings(max_examples=100)
def test_counts_and_scores_are_those_of_all_cuts(
    words: list[str], known: tuple[list[str], list[float]], seed: int
) -> None:
    pieces, scores = known
    weights = [1 + (seed + i) % 4 for i in range(len(words))]
    score = dict(zip(pieces, scores, strict=True))
    expected = dict.fromkeys(pieces, 0.0)
    best = []
    for word, weight in zip(words, weights, strict=True):
        ways = cuts(word, pieces)
        odds = [math.exp(sum(score[part] for part in way)) for way in ways]
        best.append(math.log(max(odds)))
        for way, odd in zip(ways, odds, strict=True):
            for part in way:
                expected[part] += weight * odd / sum(odds)
    lattice = lattice_of(words, weights, pieces)
    score_P = np.array(scores)
    np.testing.assert_allclose(lattice.expected_counts(score_P), list(expected.values()), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(lattice.best_scores(score_P), best, rtol=1e-9)
    # Without some of the pieces it is the lattice of the others.
    keep = np.array([0, 1, *range(2, len(pieces), 2)])
    fewer = lattice_of(words, weights, [pieces[i] for i in keep])
    left = lattice.only(keep)
    np.testing.assert_allclose(left.expected_counts(score_P[keep]), fewer.expected_counts(score_P[keep]), rtol=1e-9)
    one = lattice.only(keep, words=np.array([len(words) - 1]))
    np.testing.assert_allclose(one.best_scores(score_P[keep]), fewer.best_scores(score_P[keep])[-1:], rtol=1e-9)


@given(word=st.text("ab", min_size=4, max_size=8), known=pieces_and_scores, at=st.integers(0, 2))
@settings(max_examples=100)
def test_a_part_without_itself_is_cut_in_its_best_other_way(
    word: str, known: tuple[list[str], list[float]], at: int
) -> None:
    pieces, scores = known
    part = word[at : at + 3] if len(word[at : at + 3]) > 1 else word[:2]
    start = word.index(part)
    lattice = lattice_of(["ab", word], [1, 1], pieces).within(np.array([3 + start]), np.array([len(part)]))
    score = dict(zip(pieces, scores, strict=True))
    others = [way for way in cuts(part, pieces) if way != [part]]
    best = max(sum(score[p] for p in way) for way in others)
    np.testing.assert_allclose(lattice.best_scores(np.array(scores)), [best], rtol=1e-9)


def test_long_words_of_rare_pieces_stay_within_floats() -> None:
    lattice = lattice_of(["ab" * 16], [7], ["a", "b"])
    for score in (-18.0, -0.01):
        np.testing.assert_allclose(lattice.expected_counts(np.array([score, score])), [112, 112])
