"""The objective against its definitions, and accumulation against the whole batch."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from farthing.recipe.optimization import Objective
from farthing.training.objective import IGNORED, objective

EVERYTHING = Objective(label_smoothing=0.1, z_loss=0.01, r_drop=2.0)
B, T, V = 6, 5, 7


def batch(seed: int = 0, rows: int = B) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_BTV = torch.randn(rows, T, V, generator=generator) * 3
    again_BTV = logits_BTV + torch.randn(rows, T, V, generator=generator)
    targets_BT = torch.randint(V, (rows, T), generator=generator)
    targets_BT[torch.rand(rows, T, generator=generator) < 0.3] = IGNORED
    return logits_BTV, again_BTV, targets_BT


def test_plain_objective_is_cross_entropy_in_nats_per_token() -> None:
    logits_BTV, _, targets_BT = batch()
    tokens = int((targets_BT != IGNORED).sum())
    loss = objective(logits_BTV, targets_BT, Objective(), tokens=tokens)
    expected = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.nats, expected * tokens)
    even = objective(torch.zeros(1, 1, V), torch.zeros(1, 1, dtype=torch.long), Objective(), tokens=1)
    assert even.nats.item() == pytest.approx(math.log(V))


def test_label_smoothing_is_torchs() -> None:
    logits_BTV, _, targets_BT = batch()
    loss = objective(logits_BTV, targets_BT, Objective(label_smoothing=0.2), tokens=1)
    expected = F.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, label_smoothing=0.2, reduction="sum"
    )
    torch.testing.assert_close(loss.total, expected)


def test_z_loss_is_the_squared_log_of_the_sum_of_exponentials() -> None:
    logits_BTV, _, targets_BT = batch()
    loss = objective(logits_BTV, targets_BT, Objective(z_loss=0.5), tokens=3)
    z = logits_BTV.exp().sum(-1).log()[targets_BT != IGNORED].square().sum()
    torch.testing.assert_close(loss.total, (loss.nats + 0.5 * z) / 3)


def test_r_drop_is_the_mean_loss_and_the_weighted_mean_of_both_divergences() -> None:
    logits_BTV, again_BTV, targets_BT = batch()
    loss = objective(logits_BTV, targets_BT, Objective(r_drop=2.0), tokens=1, again_BTV=again_BTV)
    scored = targets_BT != IGNORED
    log_p, log_q = logits_BTV.log_softmax(-1)[scored], again_BTV.log_softmax(-1)[scored]
    forward = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    backward = F.kl_div(log_p, log_q, log_target=True, reduction="sum")
    nats = -(log_p + log_q).gather(-1, targets_BT[scored][:, None]).sum() / 2
    torch.testing.assert_close(loss.nats, nats)
    torch.testing.assert_close(loss.total, nats + 2.0 * (forward + backward) / 2)


def test_r_drop_of_equal_passes_is_the_plain_objective() -> None:
    logits_BTV, _, targets_BT = batch()
    plain = objective(logits_BTV, targets_BT, Objective(), tokens=4)
    dropped = objective(logits_BTV, targets_BT, Objective(r_drop=3.0), tokens=4, again_BTV=logits_BTV.clone())
    torch.testing.assert_close(dropped.total, plain.total)


@pytest.mark.parametrize("section", [Objective(), EVERYTHING], ids=["plain", "everything"])
@given(cuts=st.lists(st.integers(1, B - 1), max_size=4), seed=st.integers(0, 1_000))
def test_micro_batches_of_any_sizes_add_up_to_the_whole_batch(section: Objective, cuts: list[int], seed: int) -> None:
    logits_BTV, again_BTV, targets_BT = batch(seed)
    targets_BT[0] = IGNORED  # some micro-batch may have nothing to score
    tokens = max(1, int((targets_BT != IGNORED).sum()))
    gradients, totals, nats = [], [], []
    for edges in ([0, B], sorted({0, B, *cuts})):
        logits, again = logits_BTV.clone().requires_grad_(), again_BTV.clone().requires_grad_()
        total = told = 0.0
        for start, end in pairwise(edges):
            loss = objective(
                logits[start:end],
                targets_BT[start:end],
                section,
                tokens=tokens,
                again_BTV=again[start:end] if section.r_drop else None,
            )
            loss.total.backward()
            total, told = total + loss.total.item(), told + loss.nats.item()
        gradients.append(logits.grad)
        totals.append(total)
        nats.append(told)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-6)
    assert totals[0] == pytest.approx(totals[1], rel=1e-5, abs=1e-6)
    assert nats[0] == pytest.approx(nats[1], rel=1e-5, abs=1e-6)


def test_told_nats_are_never_regularised_and_carry_no_gradient() -> None:
    logits_BTV, _, targets_BT = batch()
    logits_BTV.requires_grad_()
    plain = objective(logits_BTV, targets_BT, Objective(), tokens=9)
    other = objective(logits_BTV, targets_BT, Objective(label_smoothing=0.3, z_loss=0.1), tokens=9)
    assert torch.equal(plain.nats, other.nats)
    assert not other.nats.requires_grad
    assert other.total > plain.total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_read_as_float32(dtype: torch.dtype) -> None:
    logits_BTV, again_BTV, targets_BT = (x.to(dtype) if x.is_floating_point() else x for x in batch())
    low = objective(logits_BTV, targets_BT, EVERYTHING, tokens=9, again_BTV=again_BTV)
    full = objective(logits_BTV.float(), targets_BT, EVERYTHING, tokens=9, again_BTV=again_BTV.float())
    assert torch.equal(low.total, full.total)
    assert low.total.dtype == low.nats.dtype == torch.float32


def test_autocast_does_not_lower_the_precision() -> None:
    logits_BTV, again_BTV, targets_BT = batch()
    outside = objective(logits_BTV, targets_BT, EVERYTHING, tokens=9, again_BTV=again_BTV)
    with torch.autocast("cpu", torch.bfloat16):
        inside = objective(logits_BTV, targets_BT, EVERYTHING, tokens=9, again_BTV=again_BTV)
    assert torch.equal(outside.total, inside.total)


def test_nothing_to_score_costs_nothing() -> None:
    logits_BTV, again_BTV, _ = batch()
    logits_BTV.requires_grad_()
    nothing_BT = torch.full((B, T), IGNORED)
    loss = objective(logits_BTV, nothing_BT, EVERYTHING, tokens=1, again_BTV=again_BTV)
    loss.total.backward()
    assert loss.total.item() == loss.nats.item() == 0.0
    assert logits_BTV.grad is not None
    assert not logits_BTV.grad.any()


def test_second_pass_is_given_exactly_when_it_is_used() -> None:
    logits_BTV, again_BTV, targets_BT = batch()
    with pytest.raises(AssertionError):
        objective(logits_BTV, targets_BT, Objective(), tokens=1, again_BTV=again_BTV)
    with pytest.raises(AssertionError):
        objective(logits_BTV, targets_BT, EVERYTHING, tokens=1)
    with pytest.raises(AssertionError):
        objective(logits_BTV, targets_BT, Objective(), tokens=0)
