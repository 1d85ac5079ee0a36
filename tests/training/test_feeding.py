"""Feeding ahead: the same batches in whatever order they are asked for, and a thread that is in nobody's way."""

from __future__ import annotations

import gc
import os
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farthing.data.batches import Batch, Batches
from farthing.data.split import TokenSplit
from farthing.training.feeding import Feeder, fed

CPU = torch.device("cpu")
DEVICES = [CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def batches(**more: Any) -> Batches:
    tokens_N = np.random.default_rng(2).integers(0, 9, 173).astype(np.uint16)
    split = TokenSplit("train", tokens_N, 0, 1, 1, 1, "", lambda: iter(()))
    options: dict[str, Any] = {"order": "random_offset", "seed": 4, "segments": True} | more
    return Batches(split, context_length=8, batch_size=5, **options)


def same(left: Batch, right: Batch) -> bool:
    assert left.segments_BT is not None and right.segments_BT is not None
    arrays = [(left.inputs_BT, right.inputs_BT), (left.targets_BT, right.targets_BT)]
    arrays.append((left.segments_BT, right.segments_BT))
    equal = all(np.array_equal(*pair) for pair in arrays)
    return equal and (left.tokens, left.windows) == (right.tokens, right.windows)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("farthing-feeder")}


@pytest.mark.parametrize("device", DEVICES, ids=str)
@given(asked=st.lists(st.tuples(st.integers(0, 20), st.sampled_from([None, 52, 103])), min_size=1, max_size=12))
def test_whatever_is_asked_for_comes_as_it_would_have_without(
    device: torch.device, asked: list[tuple[int, int | None]]
) -> None:
    plain, feeder = batches(), Feeder(batches(), device)
    for step, last_window in asked:
        for ahead in range(3):
            expected = plain.batch(step + ahead, last_window=last_window)
            assert same(feeder.batch(step + ahead, last_window=last_window), expected)
            if expected.windows:
                assert np.array_equal(feeder.documents(step + ahead), plain.documents(step + ahead))
    assert feeder.tokens_per_epoch == plain.tokens_per_epoch
    feeder.close()


def noted(source: Batches) -> list[tuple[int, str]]:
    """Which steps are gathered from now on, and by which thread."""
    genuine, found = source.batch, []

    def batch(step: int, **more: Any) -> Batch:
        found.append((step, threading.current_thread().name))
        return genuine(step, **more)

    source.batch = batch  # type: ignore[method-assign]
    return found


def test_the_next_batch_is_gathered_before_it_is_asked_for() -> None:
    source = batches()
    gathered, feeder = noted(source), Feeder(source, CPU)
    feeder.batch(3)
    for _ in range(1000):
        if len(gathered) == 2:
            break
        time.sleep(0.01)
    assert [step for step, _ in gathered] == [3, 4]
    assert all(name.startswith("farthing-feeder") for _, name in gathered)
    feeder.batch(4)
    feeder.batch(9)
    feeder.close()
    assert [step for step, _ in gathered].count(4) == 1


def test_nothing_is_gathered_beyond_the_last_window() -> None:
    source = batches()
    gathered, feeder = noted(source), Feeder(source, CPU)
    assert feeder.batch(2, last_window=12).windows == 2
    feeder.close()
    assert [step for step, _ in gathered] == [2]


def test_what_goes_wrong_is_raised_for_the_batch_that_it_belongs_to_and_can_be_tried_again() -> None:
    source, broken = batches(), {5}
    genuine = source.batch

    def batch(step: int, **more: Any) -> Batch:
        if step in broken:
            raise OSError("the file has gone")
        return genuine(step, **more)

    source.batch = batch  # type: ignore[method-assign]
    feeder = Feeder(source, CPU)
    feeder.batch(4)
    for _ in range(2):
        with pytest.raises(OSError, match="the file has gone"):
            feeder.batch(5)
    assert same(feeder.batch(6), genuine(6))
    broken.clear()
    assert same(feeder.batch(5), genuine(5))
    feeder.close()


def test_the_thread_ends_with_its_feeder() -> None:
    before = threads()
    feeder = Feeder(batches(), CPU)
    feeder.batch(0)
    assert threads() - before
    feeder.close()
    assert threads() == before
    feeder = Feeder(batches(), CPU)
    feeder.batch(0)
    del feeder
    gc.collect()
    for _ in range(1000):
        if threads() == before:
            break
        time.sleep(0.01)
    assert threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_is_fed_too() -> None:
    feeder = Feeder(batches(), CPU)
    expected = feeder.batch(1)
    child = os.fork()
    if child == 0:
        os._exit(0 if same(feeder.batch(1), expected) and len(feeder.documents(1)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    feeder.close()


def test_a_processor_is_fed_without_a_thread_and_without_copies() -> None:
    source = batches()
    assert fed(source, CPU) is source
    array = source.batch(0).inputs_BT
    assert torch.from_numpy(array).to(CPU, non_blocking=True).data_ptr() == array.ctypes.data


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_fed_from_pinned_memory() -> None:
    feeder = fed(batches(), torch.device("cuda"))
    for step in range(3):
        assert torch.from_numpy(feeder.batch(step).inputs_BT).is_pinned()
