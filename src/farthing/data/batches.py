"""Batches: windows of a token stream, each a pure function of (seed, epoch, index) and of nothing else.

Shapes: B windows of a batch, T context_length, N tokens of the stream, W windows of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from farthing.data.split import TokenSplit
from farthing.errors import UserError

Order = Literal["sequential", "shuffled", "random_offset", "one_batch"]

IGNORED = -100
"""the target of a position that does not count: torch's cross_entropy skips it by default"""

_WORD = 1 << 64
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Batch:
    """What one optimizer step, or a part of it, is trained on.

    Args:
        inputs_BT: tokens, int64.
        targets_BT: the token after each input, int64; -100 where there is none to predict.
        segments_BT: equal numbers for positions of one document within a row, int64; None when attention may cross.
        tokens: how many targets count.
        windows: how many rows there are.
    """

    inputs_BT: np.ndarray
    targets_BT: np.ndarray
    segments_BT: np.ndarray | None
    tokens: int
    windows: int

    def rows(self, start: int, stop: int) -> Batch:
        """Rows start to stop as a batch of their own (views); a stop beyond the end is the end."""
        assert 0 <= start <= stop, (start, stop)
        targets_BT = self.targets_BT[start:stop]
        segments_BT = None if self.segments_BT is None else self.segments_BT[start:stop]
        counted = int(np.count_nonzero(targets_BT != IGNORED))
        return Batch(self.inputs_BT[start:stop], targets_BT, segments_BT, counted, len(targets_BT))

    def split(self, size: int) -> Iterator[Batch]:
        """Cut into micro-batches of `size` rows, the last one smaller where it does not divide."""
        assert size > 0, size
        return (self.rows(start, start + size) for start in range(0, self.windows, size))


class Batches:
    """An endless sequence of windows over a token stream that is seen as a circle.

    Every token is a target exactly once an epoch, its input being the token before it; the first token's is the last
    separator. An epoch has W = ceil(N / T) windows, the last of which is ragged. Step i takes windows i * batch_size to
    (i + 1) * batch_size of epoch 0, epoch 1, ..., across their borders. Nothing is remembered between calls but a
    cached order, so any step can be asked for at any time, by any number of processes.

    Args:
        split: the tokens.
        context_length: T, targets of a window.
        batch_size: windows of a step, over all ranks and micro-batches together.
        order: sequential; shuffled anew each epoch; shuffled from a new starting offset each epoch; or one_batch,
            which is step 0 of the sequential order for ever.
        seed: of the orders and offsets.
        segments: also number the documents of each row.

    Raises:
        UserError: the split has no tokens.
    """

    def __init__(
        self, split: TokenSplit, *, context_length: int, batch_size: int, order: Order, seed: int, segments: bool
    ) -> None:
        assert context_length > 0, context_length
        assert batch_size > 0, batch_size
        if len(split.tokens_N) == 0:
            raise UserError(f"the {split.name} split has no tokens; give it at least one document with text")
        self._tokens_N = np.asarray(split.tokens_N)
        self._separator = split.separator
        self._T = context_length
        self._batch_size = batch_size
        self._order = order
        self._seed = seed
        self._segments = segments
        self._orders: dict[int, tuple[int, np.ndarray | None]] = {}
        self._separators_before: np.ndarray | None = None

    @property
    def tokens_per_epoch(self) -> int:
        """N: every token of the stream is a target once."""
        return len(self._tokens_N)

    @property
    def windows_per_epoch(self) -> int:
        """W = ceil(N / T)."""
        return -(-len(self._tokens_N) // self._T)

    def windows(self, step: int, *, last_window: int | None = None) -> int:
        """How many windows step `step` serves: batch_size, or what remains before `last_window` (exclusive)."""
        assert step >= 0, step
        if last_window is None:
            return self._batch_size
        return max(0, min(self._batch_size, last_window - step * self._batch_size))

    def tokens_before(self, window: int) -> int:
        """How many targets the first `window` windows of the endless sequence have, exactly."""
        if self._order == "one_batch":
            steps, rows = divmod(window, self._batch_size)
            return steps * self.batch(0).tokens + self.rows(0, 0, rows).tokens
        epoch, index = divmod(window, self.windows_per_epoch)
        served = epoch * self.tokens_per_epoch
        if index == 0:
            return served
        _, order_W = self._epoch(epoch)
        ragged = self.windows_per_epoch - 1
        passed_ragged = order_W is not None and bool((order_W[:index] == ragged).any())
        missing = self.windows_per_epoch * self._T - self.tokens_per_epoch
        return served + index * self._T - (missing if passed_ragged else 0)

    def batch(self, step: int, *, last_window: int | None = None) -> Batch:
        """All windows of step `step`, cut off at `last_window` of the endless sequence (exclusive)."""
        return self.rows(step, 0, self._batch_size, last_window=last_window)

    def rows(self, step: int, start: int, stop: int, *, last_window: int | None = None) -> Batch:
        """Rows start to stop of `batch(step)`, gathered alone: one rank's or one micro-batch's part.

        Rows beyond the end are left out, so a rank that a short last step does not reach gets no rows.
        """
        assert 0 <= start <= stop, (start, stop)
        end = self.windows(step, last_window=last_window)
        offset_B, index_B = self._locate(step, min(start, end), min(stop, end))
        begin_B = index_B * self._T
        position_BT = begin_B[:, None] + np.arange(-1, self._T)  # one more: the first target's input
        tokens_BT = self._tokens_N[(position_BT + offset_B[:, None]) % len(self._tokens_N)].astype(np.int64)
        inputs_BT, targets_BT = tokens_BT[:, :-1].copy(), tokens_BT[:, 1:].copy()
        length_B = np.minimum(self._T, self.tokens_per_epoch - begin_B)
        counted = int(length_B.sum())
        if counted < targets_BT.size:
            padding_BT = np.arange(self._T) >= length_B[:, None]
            inputs_BT[padding_BT] = self._separator
            targets_BT[padding_BT] = IGNORED
        segments_BT = np.cumsum(inputs_BT == self._separator, axis=1, dtype=np.int64) if self._segments else None
        return Batch(inputs_BT, targets_BT, segments_BT, counted, len(index_B))

    def documents(self, step: int, *, last_window: int | None = None) -> np.ndarray:
        """Indices of the documents whose tokens are targets of step `step`, sorted (int64).

        For reports of trouble, not for the loop: the first call reads the whole stream to count separators.
        """
        offset_B, index_B = self._locate(step, 0, self.windows(step, last_window=last_window))
        N = self.tokens_per_epoch
        touched: list[np.ndarray] = []
        for offset, index in zip(offset_B.tolist(), index_B.tolist(), strict=True):
            begin = offset + index * self._T
            end = offset + min((index + 1) * self._T, N)
            for low, high in ((begin, min(end, N)), (max(begin, N) - N, end - N)):
                if low < high:
                    touched.append(np.arange(self._document_of(low), self._document_of(high - 1) + 1))
        return np.unique(np.concatenate(touched)) if touched else np.empty(0, np.int64)

    def _locate(self, step: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """For rows start to stop: their epoch's offset, and which window of the epoch's circle they are."""
        first = 0 if self._order == "one_batch" else step * self._batch_size
        window_B = np.arange(first + start, first + stop, dtype=np.int64)
        epoch_B, index_B = np.divmod(window_B, self.windows_per_epoch)
        offset_B = np.zeros_like(index_B)
        if self._order in ("shuffled", "random_offset") and len(window_B):
            for epoch in range(int(epoch_B[0]), int(epoch_B[-1]) + 1):
                offset, order_W = self._epoch(epoch)
                assert order_W is not None
                here_B = epoch_B == epoch
                offset_B[here_B] = offset
                index_B[here_B] = order_W[index_B[here_B]]
        return offset_B, index_B

    def _epoch(self, epoch: int) -> tuple[int, np.ndarray | None]:
        """The epoch's starting offset, and its order of windows (None: as they come)."""
        if self._order not in ("shuffled", "random_offset"):
            return 0, None
        if epoch not in self._orders:
            # Raw words of Philox are the same in every NumPy release; Generator.permutation promises no such thing.
            words = np.random.Philox(key=np.array([self._seed % _WORD, epoch], dtype=np.uint64))
            drawn = int(words.random_raw())
            offset = drawn % self.tokens_per_epoch if self._order == "random_offset" else 0
            order_W = np.argsort(words.random_raw(self.windows_per_epoch), kind="stable")
            # A step across a border needs two epochs; older ones would only take memory.
            self._orders = {kept: self._orders[kept] for kept in self._orders if abs(kept - epoch) == 1}
            self._orders[epoch] = (offset, order_W)
        return self._orders[epoch]

    def _document_of(self, position: int) -> int:
        """The document that a stream position belongs to; a separator belongs to the document it ends."""
        if self._separators_before is None:
            starts = range(0, self.tokens_per_epoch, _BLOCK)
            counts = [np.count_nonzero(self._tokens_N[at : at + _BLOCK] == self._separator) for at in starts]
            self._separators_before = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        block = position // _BLOCK
        within = np.count_nonzero(self._tokens_N[block * _BLOCK : position] == self._separator)
        return int(self._separators_before[block]) + int(within)
