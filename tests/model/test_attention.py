"""Explicit attention, written out with its backward: torch's own function, its derivative, and what it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from farthing.model import attention, memory
from farthing.model.attention import explicit_attention, fused_attention, visibility


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Iterator[None]:
    """Windows of a few positions already make several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "LEAST_BLOCK", 2)
        yield


@dataclass(frozen=True)
class Case:
    """Shapes of one call: S = cached + T positions are seen, G = heads / repeats key/value heads."""

    batch: int
    heads: int
    repeats: int
    width: int
    length: int
    cached: int
    documents: int
    """how many there are; 0: no mask is given"""

    def tensors(self, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, K], keys and values [B, G, S, K], leaves with gradients."""
        generator = torch.Generator().manual_seed(seed)
        groups, seen = self.heads // self.repeats, self.cached + self.length
        shapes = ((self.heads, self.length), (groups, seen), (groups, seen))
        made = (
            # As the model makes them: by position in memory, then by head.
            torch.randn(self.batch, count, heads, self.width, generator=generator, dtype=torch.float64)
            .to(dtype)
            .transpose(1, 2)
            .requires_grad_()
            for heads, count in shapes
        )
        query, key, value = made
        return query, key, value

    def visible(self, seed: int = 0) -> Tensor | None:
        """The mask [B, 1, T, S] of rows with different documents; None without any."""
        if not self.documents:
            return None
        seen = self.cached + self.length
        generator = torch.Generator().manual_seed(seed)
        segments_BS = torch.randint(self.documents, (self.batch, seen), generator=generator).sort(1).values
        return visibility(segments_BS[:, self.cached :], segments_BS)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    repeats = draw(st.sampled_from([1, 2, 3]))
    return Case(
        batch=draw(st.integers(1, 3)),
        heads=repeats * draw(st.integers(1, 2)),
        repeats=repeats,
        width=draw(st.integers(1, 5)),
        # Up to blocks of five, and lengths that do not divide into blocks of one size.
        length=draw(st.integers(1, 19)),
        cached=draw(st.sampled_from([0, 0, 1, 7])),
        documents=draw(st.sampled_from([0, 0, 1, 4])),
    )


def by_definition(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, visible_B1TS: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt K) V over what each position sees, in the plainest way."""
    repeats = q_BHTK.shape[1] // k_BGSK.shape[1]
    k_BHSK, v_BHSK = (x.repeat_interleave(repeats, 1) for x in (k_BGSK, v_BGSK))
    length, seen = q_BHTK.shape[2], k_BGSK.shape[2]
    if visible_B1TS is None:
        visible_B1TS = torch.ones(length, seen, dtype=torch.bool).tril(seen - length)
    scores_BHTS = q_BHTK @ k_BHSK.mT / q_BHTK.shape[-1] ** 0.5
    return scores_BHTS.masked_fill(~visible_B1TS, -torch.inf).softmax(-1) @ v_BHSK


def with_gradients(attend: Any, tensors: tuple[Tensor, ...], visible: Tensor | None, **more: Any) -> list[Tensor]:
    """What an attention function returns, and its gradients by its arguments for random ones by it."""
    y = attend(*tensors, visible, **more)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, tensors, dy)]


@given(case=cases(), seed=st.integers(0, 99))
def test_it_is_the_fused_function_with_its_gradients(case: Case, seed: int) -> None:
    tensors, visible = case.tensors(seed=seed), case.visible(seed)
    expected = with_gradients(by_definition, tensors, visible)
    explicit = with_gradients(explicit_attention, tensors, visible, dropout=0.0)
    fused = with_gradients(fused_attention, tensors, visible, dropout=0.0)
    for found in (explicit, fused):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


GRADCHECKED = [
    Case(batch=2, heads=2, repeats=1, width=3, length=4, cached=0, documents=0),
    Case(batch=1, heads=2, repeats=2, width=2, length=9, cached=0, documents=0),
    Case(batch=1, heads=2, repeats=2, width=2, length=5, cached=3, documents=0),
    Case(batch=2, heads=2, repeats=1, width=2, length=5, cached=0, documents=3),
    Case(batch=1, heads=4, repeats=2, width=2, length=3, cached=2, documents=2),
]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("case", GRADCHECKED, ids=str)
def test_its_backward_is_its_derivative(case: Case, dropout: float) -> None:
    visible = case.visible()

    def attend(*tensors: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same weights are dropped each time
        return explicit_attention(*tensors, visible, dropout=dropout)

    assert torch.autograd.gradcheck(attend, case.tensors())


def test_windows_are_cut_into_at_most_four_blocks_that_see_nothing_later() -> None:
    for length, cached in product(range(1, 40), (0, 5)):
        blocks = attention._blocks(length, length + cached)
        assert len(blocks) <= 4
        assert [position for block in blocks for position in range(length)[block.rows]] == list(range(length))
        assert [block.seen - block.rows.stop for block in blocks] == [cached] * len(blocks)
    assert len(attention._blocks(40, 40)) == 4


def test_dropout_drops_weights_at_its_rate_and_keeps_the_mean() -> None:
    case = Case(batch=1, heads=2, repeats=1, width=4, length=6, cached=0, documents=0)
    tensors = case.tensors()
    with torch.no_grad():
        whole = explicit_attention(*tensors, None, dropout=0.0)
        torch.manual_seed(0)
        draws = torch.stack([explicit_attention(*tensors, None, dropout=0.3) for _ in range(2000)])
        # The first position sees itself alone: all of its value, made larger, or nothing.
        first = draws[:, :, :, 0] / tensors[2][:, :, 0]
    torch.testing.assert_close(draws.mean(0), whole, rtol=0, atol=0.15)
    rate = (first == 0).double().mean()
    assert abs(rate - 0.3) < 0.03
    torch.testing.assert_close(first[first != 0], torch.full_like(first[first != 0], 1 / 0.7))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_below_fp32_it_is_as_close_to_the_truth_as_the_fused_function(dropout: float) -> None:
    case = Case(batch=2, heads=4, repeats=2, width=16, length=33, cached=0, documents=0)
    exact = case.tensors(dtype=torch.float64)
    low = tuple(tensor.detach().bfloat16().requires_grad_() for tensor in exact)

    def of(attend: Any, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        torch.manual_seed(1)
        return with_gradients(attend, tensors, None, dropout=dropout)

    expected, found = of(explicit_attention, exact), of(explicit_attention, low)
    if dropout:
        # The same weights are dropped in both formats, so the truth is known.
        bounds = [0.02] * 4
    else:
        theirs = of(fused_attention, low)
        bounds = [2 * float(distance(x, truth)) for x, truth in zip(theirs, expected, strict=True)]
        assert max(bounds) < 0.03
    for x, truth, bound in zip(found, expected, bounds, strict=True):
        assert x.dtype == torch.bfloat16
        assert distance(x, truth) <= bound


def distance(found: Tensor, truth: Tensor) -> Tensor:
    return (found.double() - truth).norm() / truth.norm()


class Shapes(TorchDispatchMode):
    """Notes the format and size of everything that is computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[torch.dtype, int]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.seen.add((tensor.dtype, tensor.numel()))
        return out


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("documents", [0, 3])
def test_below_fp32_no_scores_are_ever_in_fp32_and_later_keys_are_left_out(documents: int, dropout: float) -> None:
    case = Case(batch=2, heads=4, repeats=2, width=4, length=16, cached=0, documents=documents)
    tensors = case.tensors(dtype=torch.bfloat16)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with Shapes() as shapes, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = explicit_attention(*tensors, case.visible(), dropout=dropout)
    with shapes:
        y.sum().backward()
    # Four blocks of four positions see 4, 8, 12 and 16 keys: 160 of 256 pairs.
    pairs = case.batch * case.heads * (4 * 4 + 4 * 8 + 4 * 12 + 4 * 16)
    positions = case.batch * case.length * case.width
    weights = [tensor for tensor in kept if tensor.dtype == torch.bfloat16]
    assert sum(tensor.numel() for tensor in weights) == pairs + positions * (4 + 2 + 2)
    masks = [tensor for tensor in kept if tensor.dtype != torch.bfloat16]
    assert {tensor.dtype for tensor in masks} == ({torch.bool} if dropout else set())
    assert sum(tensor.numel() for tensor in masks) == (pairs if dropout else 0)
    smallest_block = case.batch * case.heads * 4 * 4
    wide = [size for dtype, size in shapes.seen if dtype in (torch.float32, torch.float64) and size >= smallest_block]
    assert wide == []


def test_autocast_does_not_change_what_it_computes_in() -> None:
    case = Case(batch=2, heads=2, repeats=1, width=4, length=9, cached=0, documents=0)
    tensors = case.tensors(dtype=torch.float32)
    outside = explicit_attention(*tensors, None, dropout=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = explicit_attention(*tensors, None, dropout=0.0)
    assert torch.equal(outside, inside)


def test_what_it_returns_is_in_memory_by_position() -> None:
    # Or the projection that reads it, and the layers that take its gradients, would copy.
    case = Case(batch=2, heads=4, repeats=2, width=4, length=9, cached=0, documents=0)
    y, *gradients = with_gradients(explicit_attention, case.tensors(), None, dropout=0.0)
    assert all(tensor.transpose(1, 2).is_contiguous() for tensor in (y, *gradients))
