"""All ways to cut many words into pieces, walked for all words at once.

Nodes lie between the bytes of a word, one more than it has bytes; an edge is a piece that occurs there. Step j handles
every word's edges that end (or begin) j bytes into it. Shapes: E edges, S nodes, W words, P pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

# Nats a byte by which probabilities are scaled up, so that those of whole words stay within float64.
_SCALE = 3.0


@dataclass(frozen=True)
class Lattice:
    """Words' nodes, and the edges between them, ordered by how far into its word an edge ends.

    Attributes:
        offset_S: how many bytes of its word lie before a node.
        word_S: the word that a node belongs to.
        last_W: each word's last node.
        weight_W: how often each word occurs.
        source_E: the node where an edge begins.
        length_E: its piece's bytes.
        piece_E: its piece's number.
        pieces: P.
    """

    offset_S: np.ndarray
    word_S: np.ndarray
    last_W: np.ndarray
    weight_W: np.ndarray
    source_E: np.ndarray
    length_E: np.ndarray
    piece_E: np.ndarray
    pieces: int

    @classmethod
    def of(
        cls,
        lengths: np.ndarray,
        weights: np.ndarray,
        source_E: np.ndarray,
        length_E: np.ndarray,
        piece_E: np.ndarray,
        *,
        pieces: int,
    ) -> Lattice:
        """Words of these lengths in bytes; word w's first node is at sum(lengths[:w]) + w."""
        ends = np.cumsum(lengths + 1)
        word_S = np.repeat(np.arange(len(lengths)), lengths + 1)
        offset_S = np.arange(len(word_S)) - np.repeat(ends - lengths - 1, lengths + 1)
        target_E = source_E + length_E
        order = np.lexsort((target_E, offset_S[target_E]))
        # 32 bits are enough for a megabyte of words, and take half the memory.
        source_E, length_E, piece_E = (array[order].astype(np.int32) for array in (source_E, length_E, piece_E))
        return cls(offset_S, word_S, ends - 1, weights, source_E, length_E, piece_E, pieces)

    def expected_counts(self, score_P: np.ndarray) -> np.ndarray:
        """How often each piece is expected to be used over all the words, given log probabilities."""
        factor_E = np.exp(score_P[self.piece_E] + _SCALE * self.length_E)
        target_E = self.source_E + self.length_E
        first = self.offset_S == 0
        forward_S = np.where(first, 1.0, 0.0)
        for step in self._steps(self.offset_S[target_E]):
            self._gather(np.add, forward_S, target_E[step], forward_S[self.source_E[step]] * factor_E[step])
        backward_S = np.zeros(len(self.offset_S))
        backward_S[self.last_W] = 1.0
        order = np.lexsort((self.source_E, -self.offset_S[self.source_E]))
        for step in self._steps(self.offset_S[self.source_E[order]]):
            edges = order[step]
            self._gather(np.add, backward_S, self.source_E[edges], backward_S[target_E[edges]] * factor_E[edges])
        share_W = self.weight_W / forward_S[self.last_W]
        used_E = forward_S[self.source_E] * factor_E * backward_S[target_E] * share_W[self.word_S[self.source_E]]
        return np.bincount(self.piece_E, weights=used_E, minlength=self.pieces)

    def best_scores(self, score_P: np.ndarray) -> np.ndarray:
        """The log probability of each word's likeliest cut, one number a word."""
        target_E = self.source_E + self.length_E
        best_S = np.where(self.offset_S == 0, 0.0, -np.inf)
        for step in self._steps(self.offset_S[target_E]):
            self._gather(np.maximum, best_S, target_E[step], best_S[self.source_E[step]] + score_P[self.piece_E[step]])
        return best_S[self.last_W]

    def only(self, keep: np.ndarray, *, words: np.ndarray | None = None) -> Lattice:
        """Keep these pieces, renumbered in their order, and, where given, these words."""
        number_P = _numbers(keep, self.pieces)
        words = np.arange(len(self.last_W)) if words is None else words
        # Nodes of dropped words stay, without edges.
        number_W = np.append(_numbers(words, len(self.last_W)), -1)
        word_S = number_W[self.word_S]
        kept_E = (number_P[self.piece_E] >= 0) & (word_S[self.source_E] >= 0)
        return replace(
            self,
            word_S=word_S,
            last_W=self.last_W[words],
            weight_W=self.weight_W[words],
            source_E=self.source_E[kept_E],
            length_E=self.length_E[kept_E],
            piece_E=number_P[self.piece_E[kept_E]],
            pieces=len(keep),
        )

    def within(self, node_W: np.ndarray, length_W: np.ndarray) -> Lattice:
        """Parts of these words as words of their own, each without the edge that is the whole part.

        Args:
            node_W: the node where each part begins.
            length_W: its bytes.
        """
        order = np.argsort(self.source_E, kind="stable")
        sorted_E = self.source_E[order]
        part_S = np.repeat(np.arange(len(node_W)), length_W)
        offset_S = _counting(length_W)
        low_S = np.searchsorted(sorted_E, node_W[part_S] + offset_S)
        many_S = np.searchsorted(sorted_E, node_W[part_S] + offset_S, side="right") - low_S
        edge_E = order[np.repeat(low_S, many_S) + _counting(many_S)]
        part_E, offset_E, length_E = np.repeat(part_S, many_S), np.repeat(offset_S, many_S), self.length_E[edge_E]
        inside_E = (offset_E + length_E <= length_W[part_E]) & (length_E < length_W[part_E])
        first_W = np.cumsum(length_W + 1) - length_W - 1
        source_E = (first_W[part_E] + offset_E)[inside_E]
        weights = np.zeros(len(node_W))
        pieces = self.piece_E[edge_E[inside_E]]
        return Lattice.of(length_W, weights, source_E, length_E[inside_E], pieces, pieces=self.pieces)

    @staticmethod
    def _steps(offset_E: np.ndarray) -> Iterator[slice]:
        """The stretches of edges with equal offsets."""
        borders = np.flatnonzero(np.diff(offset_E)) + 1
        for start, stop in zip([0, *borders.tolist()], [*borders.tolist(), len(offset_E)], strict=True):
            yield slice(start, stop)

    @staticmethod
    def _gather(reduce: np.ufunc, value_S: np.ndarray, node_E: np.ndarray, term_E: np.ndarray) -> None:
        """Put each node's terms, which lie side by side, together into its value."""
        if len(node_E):
            starts = np.concatenate([[0], np.flatnonzero(np.diff(node_E)) + 1])
            value_S[node_E[starts]] = reduce.reduceat(term_E, starts)


def _numbers(keep: np.ndarray, many: int) -> np.ndarray:
    """For each of `many` things its place among those kept, or -1."""
    numbers = np.full(many, -1, dtype=np.int32)
    numbers[keep] = np.arange(len(keep), dtype=np.int32)
    return numbers


def _counting(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ..., n - 1 for each n, end to end."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
