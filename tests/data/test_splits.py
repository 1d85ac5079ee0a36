"""Splits partition whole documents, the same way for the same seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from farthing.data.splits import Part, overlap, split_documents, whole
from farthing.errors import UserError
from farthing.recipe.data import Text


@dataclass(frozen=True)
class Listed:
    """Documents in a list."""

    texts: tuple[str, ...]
    one_per_file: bool = False

    @property
    def fingerprint(self) -> str:
        return str(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def documents(self, numbers_N: np.ndarray) -> Iterator[bytes]:
        return (self.texts[int(number)].encode() for number in numbers_N)

    def sizes(self, numbers_N: np.ndarray) -> np.ndarray:
        return np.array([len(self.texts[int(number)]) for number in numbers_N])


def numbered(count: int) -> Listed:
    return Listed(tuple(f"document {number}" for number in range(count)))


def section(**fields: Any) -> Text:
    return Text.model_validate({"path": "x", **fields})


shares = st.one_of(st.integers(1, 20), st.floats(0.01, 0.6))


@given(st.integers(2, 200), shares, st.none() | shares, st.sampled_from(["shuffle", "tail"]), st.integers(0, 9))
def test_parts_are_disjoint_and_complete(
    count: int, validation: int | float, test: int | float | None, split: str, seed: int
) -> None:
    wanted = section(validation=validation, test=test, split=split, split_seed=seed)
    try:
        parts = split_documents(wanted, numbered(count), {})
    except UserError:
        assume(False)
    assert list(parts) == ["train", "validation"] + (["test"] if test is not None else [])
    numbers = np.concatenate([part.numbers_N for part in parts.values()])
    assert np.array_equal(np.sort(numbers), np.arange(count))
    assert all(np.all(np.diff(part.numbers_N) > 0) and len(part) for part in parts.values())
    for name, share in (("validation", validation), ("test", test)):
        if share is not None:
            expected = share if isinstance(share, int) else share * count
            assert abs(len(parts[name]) - expected) <= 0.5
    if split == "tail":
        assert np.array_equal(numbers, np.arange(count))
    again = split_documents(wanted, numbered(count), {})
    assert all(np.array_equal(again[name].numbers_N, parts[name].numbers_N) for name in parts)


@given(st.integers(10, 100), st.integers(4, 9))
def test_limit_draws_documents_before_the_split(count: int, limit: int) -> None:
    tail = split_documents(section(limit=limit, validation=2, split="tail"), numbered(count), {})
    assert tail["train"].numbers_N.tolist() == list(range(limit - 2))
    assert tail["validation"].numbers_N.tolist() == [limit - 2, limit - 1]
    drawn = split_documents(section(limit=limit, validation=2), numbered(count), {})
    everything = split_documents(section(validation=2), numbered(count), {})
    assert len(drawn["train"]) == limit - 2
    assert np.array_equal(drawn["validation"].numbers_N, everything["validation"].numbers_N)


def test_another_seed_holds_out_other_documents_and_the_draw_is_pinned() -> None:
    found = [
        split_documents(section(validation=3, split_seed=seed), numbered(20), {})["validation"].numbers_N.tolist()
        for seed in (1337, 1)
    ]
    order = np.random.Generator(np.random.PCG64(1337)).permutation(20)[:3]
    assert found[0] == sorted(order.tolist()) and found[0] != found[1]


def test_own_files_are_used_whole() -> None:
    own = {"validation": numbered(3)}
    parts = split_documents(section(validation="val.txt", test=2), Listed(tuple("abcdef")), own)
    assert {name: len(part) for name, part in parts.items()} == {"train": 4, "validation": 3, "test": 2}
    assert parts["validation"].corpus is own["validation"]


@pytest.mark.parametrize(
    ("fields", "documents", "expected"),
    [
        ({"validation": 0.1}, numbered(4), "data has 4 documents; data.validation = 0.1 is 0 of them"),
        ({"validation": 4}, numbered(4), "data.validation = 4 is 4 of them, which leaves 0 to train on"),
        ({"validation": 9}, numbered(4), "leaves 0 to train on"),
        ({"validation": 2, "test": 2}, numbered(4), "data.test = 2 is 2 of them"),
        ({"validation": 0.1}, Listed(("a big book",), True), 'data has 1 document;.*data.documents = "line"'),
        ({"validation": 1, "limit": 1}, numbered(4), "data has 1 document;"),
    ],
)
def test_too_few_documents_are_refused_with_the_numbers(
    fields: dict[str, Any], documents: Listed, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        split_documents(section(**fields), documents, {})


def test_a_held_out_file_that_is_the_training_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.validation is identical to the training text"):
        split_documents(section(validation="v"), numbered(5), {"validation": numbered(5)})
    with pytest.raises(UserError, match=r"data\.test is identical to data\.validation"):
        split_documents(
            section(validation="v", test="t"), numbered(5), {"validation": numbered(2), "test": numbered(2)}
        )


@given(st.lists(st.sampled_from("abcdef"), min_size=1), st.lists(st.sampled_from("abcdef"), min_size=1))
def test_overlap_counts_held_out_documents_that_stand_in_train(train: list[str], held_out: list[str]) -> None:
    parts: list[Part[Any]] = [whole("train", Listed(tuple(train))), whole("validation", Listed(tuple(held_out)))]
    assert overlap(parts[0], parts[1:]) == {"validation": sum(text in train for text in held_out)}
