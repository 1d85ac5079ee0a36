"""Batches: every token once, whatever the shape, the order, the ranks and the micro-batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.data.batches import IGNORED, Batch, Batches, Order
from farthing.data.split import TokenSplit
from farthing.errors import UserError

SEPARATOR = 0
ORDERS: list[Order] = ["sequential", "shuffled", "random_offset"]


def split_of(tokens_N: np.ndarray, documents: int = 0) -> TokenSplit:
    return TokenSplit("train", tokens_N, SEPARATOR, documents, 1, 1, "", lambda: iter(()))


def numbered(N: int) -> TokenSplit:
    """A stream in which a token tells its own place: 1, 2, ..., N - 1, separator."""
    return split_of(np.roll(np.arange(N, dtype=np.uint32), -1), 1)


def make(split: TokenSplit, T: int, B: int, order: Order = "sequential", seed: int = 0, **kwargs: bool) -> Batches:
    return Batches(
        split, context_length=T, batch_size=B, order=order, seed=seed, segments=kwargs.get("segments", False)
    )


def same(left: Batch, right: Batch) -> bool:
    pairs = [(left.inputs_BT, right.inputs_BT), (left.targets_BT, right.targets_BT)]
    if left.segments_BT is not None or right.segments_BT is not None:
        assert left.segments_BT is not None
        assert right.segments_BT is not None
        pairs.append((left.segments_BT, right.segments_BT))
    equal = all(np.array_equal(a, b) for a, b in pairs)
    return equal and left.tokens == right.tokens and left.windows == right.windows


def served(batches: Batches, last_window: int) -> list[Batch]:
    steps = -(-last_window // batches.batch(0).windows)
    return [batches.batch(step, last_window=last_window) for step in range(steps)]


shapes = {
    "N": st.integers(1, 60),
    "T": st.integers(1, 20),
    "B": st.integers(1, 9),
    "seed": st.integers(-5, 2**70),
    "order": st.sampled_from(ORDERS),
}


@given(**shapes, epochs=st.integers(1, 3))
def test_each_token_is_a_target_once_an_epoch(N: int, T: int, B: int, seed: int, order: Order, epochs: int) -> None:
    batches = make(numbered(N), T, B, order, seed)
    assert batches.windows_per_epoch == -(-N // T)
    targets: list[int] = []
    for batch in served(batches, epochs * batches.windows_per_epoch):
        counted_BT = batch.targets_BT != IGNORED
        assert batch.inputs_BT.dtype == batch.targets_BT.dtype == np.int64
        assert batch.tokens == counted_BT.sum()
        # Along the circle, a token's predecessor is the number before it.
        assert (batch.inputs_BT[counted_BT] == (batch.targets_BT[counted_BT] - 1) % N).all()
        assert (batch.inputs_BT[~counted_BT] == SEPARATOR).all()
        assert (np.diff(counted_BT.astype(int), axis=1) <= 0).all(), "padding comes last"
        targets += batch.targets_BT[counted_BT].tolist()
    for epoch in range(epochs):
        assert sorted(targets[epoch * N : (epoch + 1) * N]) == list(range(N))


@given(**shapes, ranks=st.integers(1, 5), micro=st.integers(1, 4), step=st.integers(0, 30), cut=st.integers(0, 9))
def test_ranks_and_micro_batches_together_are_the_batch(
    N: int, T: int, B: int, seed: int, order: Order, ranks: int, micro: int, step: int, cut: int
) -> None:
    last_window = step * B + min(cut, B)
    whole = make(numbered(N), T, B, order, seed, segments=True).batch(step, last_window=last_window)
    share = -(-B // ranks)
    parts: list[Batch] = []
    for rank in range(ranks):
        own = make(numbered(N), T, B, order, seed, segments=True)
        mine = own.rows(step, rank * share, (rank + 1) * share, last_window=last_window)
        assert same(mine, whole.rows(rank * share, (rank + 1) * share))
        parts += mine.split(micro)
    assert sum(part.tokens for part in parts) == whole.tokens
    assert sum(part.windows for part in parts) == whole.windows == min(cut, B)
    for name in ("inputs_BT", "targets_BT", "segments_BT"):
        together = [getattr(part, name) for part in parts] or [np.empty((0, T), np.int64)]
        assert np.array_equal(np.concatenate(together), getattr(whole, name))


@given(**shapes, steps=st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_a_batch_depends_on_its_number_only(N: int, T: int, B: int, seed: int, order: Order, steps: list[int]) -> None:
    old = make(numbered(N), T, B, order, seed)
    for step in steps:
        assert same(old.batch(step), make(numbered(N), T, B, order, seed).batch(step))


@given(**shapes, last=st.integers(1, 80))
def test_last_window_cuts_the_endless_sequence(N: int, T: int, B: int, seed: int, order: Order, last: int) -> None:
    batches = make(numbered(N), T, B, order, seed)
    cut = served(batches, last)
    assert sum(batch.windows for batch in cut) == last
    assert sum(batch.tokens for batch in cut) == batches.tokens_before(last)
    assert batches.windows(len(cut), last_window=last) == 0
    for step, batch in enumerate(cut):
        assert same(batch, batches.batch(step).rows(0, batch.windows))


@given(T=st.integers(1, 6), B=st.integers(1, 6), step=st.integers(0, 50))
def test_one_batch_serves_the_first_one_for_ever(T: int, B: int, step: int) -> None:
    batches = make(numbered(13), T, B, "one_batch")
    first = make(numbered(13), T, B, "sequential").batch(0)
    assert same(batches.batch(step), first)
    assert same(batches.batch(step, last_window=step * B + 1), first.rows(0, 1))
    assert batches.tokens_before(step * B + 1) == step * first.tokens + first.rows(0, 1).tokens


def test_sequential_keeps_the_order_of_the_text() -> None:
    batches = make(numbered(10), 4, 2)
    assert batches.batch(0).targets_BT.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert batches.batch(1).targets_BT.tolist() == [[9, 0, IGNORED, IGNORED], [1, 2, 3, 4]]
    assert batches.batch(1).inputs_BT.tolist() == [[8, 9, SEPARATOR, SEPARATOR], [0, 1, 2, 3]]


def test_epochs_and_seeds_bring_new_orders() -> None:
    def epoch(order: Order, seed: int, number: int) -> np.ndarray:
        return make(numbered(1000), 10, 100, order, seed).batch(number).targets_BT

    for order in ("shuffled", "random_offset"):
        assert not np.array_equal(epoch(order, 1, 0), epoch(order, 1, 1))
        assert not np.array_equal(epoch(order, 1, 0), epoch(order, 2, 0))
    starts = {int(make(numbered(1000), 1000, 1, "random_offset", 1).batch(i).targets_BT[0, 0]) for i in range(20)}
    assert len(starts) > 15
    # A shuffled epoch reorders the windows of the sequential one; a new offset makes new windows.
    windows = {tuple(row) for row in epoch("sequential", 1, 0).tolist()}
    assert {tuple(row) for row in epoch("shuffled", 1, 0).tolist()} == windows
    assert {tuple(row) for row in epoch("random_offset", 3, 1).tolist()} != windows


def test_orders_are_the_same_in_every_release() -> None:
    # Resuming under another NumPy must go on with the same data: these numbers may never change.
    first = make(numbered(50), 5, 10, "shuffled", 1337).batch(0).targets_BT[:, 0]
    offset = make(numbered(50), 5, 10, "random_offset", 1337).batch(3).targets_BT[:, 0]
    assert first.tolist() == [6, 16, 21, 26, 41, 31, 46, 11, 36, 1]
    assert offset.tolist() == [28, 13, 23, 48, 3, 8, 18, 43, 38, 33]


documents_lists = st.lists(st.lists(st.integers(1, 9), max_size=7), min_size=1, max_size=12)


@given(documents=documents_lists, T=st.integers(1, 12), B=st.integers(1, 4), order=st.sampled_from(ORDERS))
def test_segments_tell_documents_apart(documents: list[list[int]], T: int, B: int, order: Order) -> None:
    tokens_N = np.array([token for document in documents for token in [*document, SEPARATOR]], dtype=np.uint16)
    batches = make(split_of(tokens_N, len(documents)), T, B, order, segments=True)
    for step in range(4):
        batch = batches.batch(step)
        assert batch.segments_BT is not None
        for inputs_T, segments_T in zip(batch.inputs_BT.tolist(), batch.segments_BT.tolist(), strict=True):
            opened = [sum(token == SEPARATOR for token in inputs_T[: i + 1]) for i in range(T)]
            assert segments_T == opened
    assert make(split_of(tokens_N), T, B).batch(0).segments_BT is None


@given(documents=documents_lists, T=st.integers(1, 12), B=st.integers(1, 4), order=st.sampled_from(ORDERS))
def test_documents_of_a_step(documents: list[list[int]], T: int, B: int, order: Order) -> None:
    tokens_N = np.array([token for document in documents for token in [*document, SEPARATOR]], dtype=np.uint16)
    owner_N = np.repeat(np.arange(len(documents)), [len(document) + 1 for document in documents])
    batches = make(split_of(tokens_N, len(documents)), T, B, order)
    places = make(numbered(len(tokens_N)), T, B, order)
    last_window = 2 * batches.windows_per_epoch
    for step in range(-(-last_window // B)):
        targets_BT = places.batch(step, last_window=last_window).targets_BT
        position = (targets_BT[targets_BT != IGNORED] - 1) % len(tokens_N)
        assert np.array_equal(batches.documents(step, last_window=last_window), np.unique(owner_N[position]))


def test_documents_across_the_border_of_an_epoch() -> None:
    tokens_N = np.array([5, 0, 6, 7, 0, 8, 0], dtype=np.uint16)
    batches = make(split_of(tokens_N, 3), 3, 2)
    assert batches.documents(0).tolist() == [0, 1, 2]  # 5 0 6 | 7 0 8
    assert batches.documents(1).tolist() == [0, 1, 2]  # 0 (ends the third) | 5 0 6
    assert batches.documents(0, last_window=1).tolist() == [0, 1]
    assert batches.documents(1, last_window=3).tolist() == [2]


def test_a_memory_map_serves_as_well(tmp_path: Path) -> None:
    N = 5000
    numbered(N).tokens_N.astype("<u2").tofile(tmp_path / "shard")
    mapped = split_of(np.memmap(tmp_path / "shard", dtype="<u2", mode="r"))
    for step in range(6):
        left, right = (make(split, 32, 30, "random_offset", 7).batch(step) for split in (mapped, numbered(N)))
        assert same(left, right)
        assert type(left.inputs_BT) is np.ndarray


def test_nothing_to_serve_is_an_error() -> None:
    with pytest.raises(UserError, match="train split has no tokens"):
        make(split_of(np.empty(0, np.uint16)), 8, 4)
