"""The head and its loss in chunks: the objective of whole logits and its gradients, with never more logits than allowed.

Shapes: N rows (tokens), D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from farthing.recipe.optimization import Objective
from farthing.training.head_objective import head_objective
from farthing.training.objective import IGNORED, objective

PLAIN, EVERYTHING = Objective(), Objective(label_smoothing=0.1, z_loss=0.01)


@dataclass(frozen=True)
class Case:
    """A residual stream, a head and targets, of which a share is not scored."""

    rows: int
    width: int
    vocabulary: int
    section: Objective = PLAIN
    softcap: float | None = None
    unscored: float = 0.3
    seed: int = 0

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, nn.Parameter, Tensor]:
        """x_ND with a gradient, weight_VD, targets_N."""
        generator = torch.Generator().manual_seed(self.seed)
        x_ND = torch.randn(self.rows, self.width, generator=generator, dtype=torch.float64)
        weight_VD = torch.randn(self.vocabulary, self.width, generator=generator, dtype=torch.float64)
        targets_N = torch.randint(self.vocabulary, (self.rows,), generator=generator)
        targets_N[torch.rand(self.rows, generator=generator) < self.unscored] = IGNORED
        return x_ND.to(dtype).requires_grad_(), nn.Parameter(weight_VD.to(dtype)), targets_N


@dataclass(frozen=True)
class Found:
    """Loss, plain cross-entropy, and the gradients of the loss by x_ND and weight_VD."""

    total: Tensor
    nats: Tensor
    dx_ND: Tensor
    dweight_VD: Tensor


objectives = st.builds(
    Objective, label_smoothing=st.sampled_from([0.0, 0.0, 0.1, 0.7]), z_loss=st.sampled_from([0.0, 0.0, 1e-3, 0.5])
)
cases = st.builds(
    Case,
    rows=st.integers(1, 23),
    width=st.integers(1, 6),
    vocabulary=st.integers(1, 30),
    section=objectives,
    softcap=st.sampled_from([None, None, 0.5, 8.0]),
    unscored=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)


def gradients(total: Tensor, nats: Tensor, x_ND: Tensor, weight_VD: Tensor, *, scale: float = 1.0) -> Found:
    (total * scale).backward()
    assert x_ND.grad is not None and weight_VD.grad is not None
    return Found(total.detach(), nats, x_ND.grad, weight_VD.grad)


def chunked(case: Case, *, tokens: int = 5, chunk_logits: int | None = None) -> Found:
    """In double precision, but for the softmax, which is always in single."""
    x_ND, weight_VD, targets_N = case.tensors()
    loss = head_objective(
        x_ND,
        weight_VD,
        weight_VD,
        targets_N,
        case.section,
        tokens=tokens,
        softcap=case.softcap,
        chunk_logits=chunk_logits,
    )
    assert loss.total.dtype == loss.nats.dtype == torch.float32
    assert not loss.nats.requires_grad
    return gradients(loss.total, loss.nats, x_ND, weight_VD)


def by_definition(case: Case, *, tokens: int = 5) -> Found:
    """The same in double precision throughout, from whole logits, with autograd's gradients."""
    x_ND, weight_VD, targets_N = case.tensors()
    logits_NV = x_ND @ weight_VD.t()
    if case.softcap is not None:
        logits_NV = case.softcap * torch.tanh(logits_NV / case.softcap)
    scored_N = targets_N != IGNORED
    log_p_NV, z_N = logits_NV.log_softmax(-1)[scored_N], logits_NV.logsumexp(-1)[scored_N]
    nats = F.nll_loss(log_p_NV, targets_N[scored_N], reduction="sum")
    smoothing = case.section.label_smoothing
    total = (1 - smoothing) * nats - smoothing * log_p_NV.mean(-1).sum() + case.section.z_loss * z_N.square().sum()
    return gradients(total / tokens, nats.detach(), x_ND, weight_VD)


def assert_same(found: Found, expected: Found, *, rtol: float, atol: float) -> None:
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(found, name).double(), value.double(), rtol=rtol, atol=atol, msg=name)


@given(case=cases, chunk_logits=st.none() | st.integers(1, 800))
@example(case=Case(rows=7, width=3, vocabulary=5, unscored=1.0), chunk_logits=10)
def test_it_is_the_objective_with_its_gradients_however_it_is_cut(case: Case, chunk_logits: int | None) -> None:
    # Single precision's rounding of probabilities (6e-8 of each) in sums of up to 23 rows, weighed by numbers below 5.
    assert_same(chunked(case, chunk_logits=chunk_logits), by_definition(case), rtol=1e-5, atol=2e-5)


@given(case=cases, chunk_logits=st.none() | st.integers(1, 800))
def test_it_is_what_objective_makes_of_the_heads_logits(case: Case, chunk_logits: int | None) -> None:
    x_ND, weight_VD, targets_N = case.tensors(torch.float32)
    loss = head_objective(
        x_ND, weight_VD, weight_VD, targets_N, case.section, tokens=3, softcap=case.softcap, chunk_logits=chunk_logits
    )
    found = gradients(loss.total, loss.nats, x_ND, weight_VD)
    x_ND, weight_VD, targets_N = case.tensors(torch.float32)
    logits_NV = x_ND @ weight_VD.t()
    if case.softcap is not None:
        logits_NV = case.softcap * torch.tanh(logits_NV / case.softcap)
    loss = objective(logits_NV, targets_N, case.section, tokens=3)
    assert_same(found, gradients(loss.total, loss.nats, x_ND, weight_VD), rtol=1e-4, atol=5e-5)


@given(case=cases, cuts=st.lists(st.integers(1, 22), max_size=4), chunk_logits=st.none() | st.integers(1, 200))
def test_micro_batches_add_up_to_the_whole_batch(case: Case, cuts: list[int], chunk_logits: int | None) -> None:
    whole = chunked(case, tokens=9)
    x_ND, weight_VD, targets_N = case.tensors()
    total = nats = torch.zeros(())
    for start, stop in pairwise(sorted({0, case.rows, *(cut for cut in cuts if cut < case.rows)})):
        part = slice(start, stop)
        loss = head_objective(
            x_ND[part],
            weight_VD,
            weight_VD,
            targets_N[part],
            case.section,
            tokens=9,
            softcap=case.softcap,
            chunk_logits=chunk_logits,
        )
        loss.total.backward()
        total, nats = total + loss.total.detach(), nats + loss.nats
    assert x_ND.grad is not None and weight_VD.grad is not None
    assert_same(Found(total, nats, x_ND.grad, weight_VD.grad), whole, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("chunk_logits", [None, 20])
def test_nothing_to_score_costs_nothing(chunk_logits: int | None) -> None:
    found = chunked(Case(rows=9, width=4, vocabulary=11, section=EVERYTHING, unscored=1.0), chunk_logits=chunk_logits)
    assert found.total.item() == found.nats.item() == 0.0
    assert not found.dx_ND.any() and not found.dweight_VD.any()


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk_logits", [None, 20])
def test_infinite_logits_of_rows_that_are_not_scored_do_not_leak(
    softcap: float | None, chunk_logits: int | None
) -> None:
    case = Case(rows=8, width=4, vocabulary=11, section=EVERYTHING, softcap=softcap, unscored=0.0)
    x_ND, weight_VD, targets_N = (tensor.detach() for tensor in case.tensors(torch.float32))
    targets_N[[0, 5]] = IGNORED
    results = []
    for huge in (1.0, 1e38):
        x, weight = x_ND.clone(), nn.Parameter(100 * weight_VD)
        x[[0, 5]] *= huge
        x.requires_grad_()
        assert bool((x @ weight.t()).isinf().any()) == (huge > 1)
        loss = head_objective(
            x, weight, weight, targets_N, case.section, tokens=6, softcap=softcap, chunk_logits=chunk_logits
        )
        results.append(gradients(loss.total, loss.nats, x, weight))
    for name, value in vars(results[0]).items():
        assert value.isfinite().all()
        assert torch.equal(getattr(results[1], name), value), name
    assert not results[1].dx_ND[[0, 5]].any()


def distance(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def low_and_truth(case: Case, dtype: torch.dtype, *, chunk_logits: int | None, scale: float, tokens: int) -> Any:
    """Ours below fp32, autograd's on whole logits in the same format, and the truth in double for the same numbers."""
    x_ND, weight_VD, targets_N = case.tensors(torch.float32)
    x, low = x_ND.detach().to(dtype), weight_VD.detach().to(dtype)

    def fresh(to: torch.dtype) -> tuple[Tensor, nn.Parameter]:
        return x.to(to, copy=True).requires_grad_(), nn.Parameter(low.to(to, copy=True))

    leaf, weight = fresh(torch.float32)
    loss = head_objective(
        leaf, weight, low, targets_N, case.section, tokens=tokens, softcap=case.softcap, chunk_logits=chunk_logits
    )
    ours = gradients(loss.total, loss.nats, leaf, weight, scale=scale)
    assert ours.dx_ND.dtype == ours.dweight_VD.dtype == torch.float32

    leaf, weight = fresh(dtype)
    logits_NV = leaf @ weight.t()
    if case.softcap is not None:
        logits_NV = case.softcap * torch.tanh(logits_NV.float() / case.softcap)
    loss = objective(logits_NV, targets_N, case.section, tokens=tokens)
    plain = gradients(loss.total, loss.nats, leaf, weight, scale=scale)

    leaf, weight = fresh(torch.float64)
    logits_NV = leaf @ weight.t()
    if case.softcap is not None:
        logits_NV = case.softcap * torch.tanh(logits_NV / case.softcap)
    log_p_NV = logits_NV.log_softmax(-1)
    nats = F.nll_loss(log_p_NV, targets_N, ignore_index=IGNORED, reduction="sum")
    assert case.section == PLAIN
    truth = gradients(nats / tokens, nats.detach(), leaf, weight, scale=scale)
    return ours, plain, truth


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("chunk_logits", [None, 3000, 400])
def test_in_bf16_it_is_as_close_to_the_truth_as_whole_logits(softcap: float | None, chunk_logits: int | None) -> None:
    case = Case(rows=60, width=32, vocabulary=200, softcap=softcap)
    ours, plain, truth = low_and_truth(case, torch.bfloat16, chunk_logits=chunk_logits, scale=1.0, tokens=60)
    assert abs(float(ours.nats / truth.nats) - 1) < 1e-3
    for name in ("dx_ND", "dweight_VD"):
        theirs = distance(getattr(plain, name), getattr(truth, name))
        assert distance(getattr(ours, name), getattr(truth, name)) <= 1.2 * theirs < 0.02


@pytest.mark.parametrize("chunk_logits", [None, 3000])
def test_in_fp16_a_scaled_loss_of_a_large_batch_loses_no_gradient(chunk_logits: int | None) -> None:
    # Of a step of a million tokens: 1 / tokens alone would leave nothing of what is below 6e-8.
    case = Case(rows=60, width=32, vocabulary=200)
    scale, tokens = 2.0**22, 1 << 20
    ours, plain, truth = low_and_truth(case, torch.float16, chunk_logits=chunk_logits, scale=scale, tokens=tokens)
    for name in ("dx_ND", "dweight_VD"):
        theirs = distance(getattr(plain, name), getattr(truth, name))
        assert distance(getattr(ours, name), getattr(truth, name)) <= 1.2 * theirs < 0.002
    unscaled, _, small = low_and_truth(case, torch.float16, chunk_logits=chunk_logits, scale=1.0, tokens=tokens)
    # The head's gradient is widened first; the stream's is in the format of the pass, which is what scaling is for.
    assert distance(unscaled.dweight_VD, small.dweight_VD) < 0.002
    assert distance(unscaled.dx_ND, small.dx_ND) > 0.01


class Logits(TorchDispatchMode):
    """Notes how many logits the largest tensor with a column for each token has."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.most = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and tensor.ndim and tensor.shape[-1] == self.vocabulary:
                self.most = max(self.most, tensor.numel())
        return out


@given(rows=st.integers(1, 40), chunk_logits=st.integers(31, 1500), softcap=st.sampled_from([None, 2.0]))
@example(rows=3, chunk_logits=46, softcap=None)  # two chunks of two rows would be more
def test_never_more_logits_at_once_than_asked_for(rows: int, chunk_logits: int, softcap: float | None) -> None:
    vocabulary = 31
    case = Case(rows=rows, width=1, vocabulary=vocabulary, section=EVERYTHING, softcap=softcap)
    with Logits(vocabulary) as logits:
        chunked(case, chunk_logits=chunk_logits)
    # A column of the head's weights is as long as a row of logits.
    assert vocabulary <= logits.most <= chunk_logits


@pytest.mark.parametrize("tied", [False, True])
def test_the_heads_gradient_joins_what_its_parameter_has_already(tied: bool) -> None:
    x_ND, weight_VD, targets_N = Case(rows=6, width=3, vocabulary=9).tensors()
    stream_ND = x_ND + F.embedding(torch.arange(6), weight_VD) if tied else x_ND
    for _ in range(2):
        loss = head_objective(stream_ND, weight_VD, weight_VD, targets_N, EVERYTHING, tokens=6, chunk_logits=20)
        loss.total.backward(retain_graph=tied)
    assert weight_VD.grad is not None
    twice = weight_VD.grad.clone()
    weight_VD.grad = None
    loss = head_objective(stream_ND, weight_VD, weight_VD, targets_N, EVERYTHING, tokens=6)
    loss.total.backward()
    torch.testing.assert_close(twice, 2 * weight_VD.grad, rtol=1e-6, atol=1e-7)


def test_autocast_changes_nothing_but_what_the_head_reads() -> None:
    case = Case(rows=6, width=3, vocabulary=9, section=EVERYTHING, softcap=3.0)
    x_ND, weight_VD, targets_N = case.tensors(torch.float32)

    def total() -> Tensor:
        return head_objective(x_ND, weight_VD, weight_VD, targets_N, case.section, tokens=6, softcap=3.0).total

    outside = total()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(total(), outside)


def test_what_it_cannot_do_is_refused() -> None:
    x_ND, weight_VD, targets_N = Case(rows=6, width=3, vocabulary=9).tensors()
    with pytest.raises(AssertionError, match="r_drop"):
        head_objective(x_ND, weight_VD, weight_VD, targets_N, Objective(r_drop=1.0), tokens=6)
    with pytest.raises(AssertionError, match="tokens = 0"):
        head_objective(x_ND, weight_VD, weight_VD, targets_N, Objective(), tokens=0)
