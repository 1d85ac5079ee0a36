"""What is minimised: cross-entropy in nats per token, and what the recipe may add to it.

Shapes: B sequences, T tokens of a sequence, V vocabulary; N = B * T.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from farthing.recipe.optimization import Objective

IGNORED = -100
"""the target of a position that is not scored"""


@dataclass(frozen=True)
class Loss:
    """One micro-batch's share of a step's objective, and what is told about it."""

    total: Tensor
    """scalar to call backward on: this micro-batch's share of the step's mean over all its tokens"""
    nats: Tensor
    """detached scalar: plain cross-entropy in nats, summed over the micro-batch; never smoothed or regularised"""


def objective(
    logits_BTV: Tensor,
    targets_BT: Tensor,
    section: Objective,
    *,
    tokens: int,
    again_BTV: Tensor | None = None,
) -> Loss:
    """The objective of one micro-batch, of a step that scores `tokens` tokens in all its micro-batches together.

    Everything is summed over the scored tokens and divided by `tokens`, so the gradients of the micro-batches add up
    to those of the whole batch, whatever each holds. Targets of -100 are not scored; a micro-batch of nothing else
    gives zero. Logits of any dtype are read as float32. (Ranks whose gradients are averaged rather than summed pass
    the whole step's `tokens` divided by the number of ranks.)

    Per token: `(1 - s) CE + s * mean over V of -log p` with s = label_smoothing (Szegedy et al. 2016), plus
    `z_loss * log(sum exp(logits))^2` (Chowdhery et al. 2022). With `r_drop > 0` the same inputs must have been passed
    twice with different dropout, `again_BTV` being the second logits: the mean of the two passes' losses, plus
    `r_drop * (KL(p1||p2) + KL(p2||p1)) / 2`, as in the authors' code (Wu et al. 2021; the paper sums the two
    cross-entropies, so its alpha is twice this weight). `nats` is then the mean of the two passes.
    """
    assert tokens > 0, f"tokens = {tokens}"
    assert (again_BTV is not None) == (section.r_drop > 0), "r_drop takes two passes, anything else takes one"
    targets_N = targets_BT.reshape(-1)
    logits_NV = _rows(logits_BTV)
    total, nats = _pass(logits_NV, targets_N, section)
    if again_BTV is not None:
        again_NV = _rows(again_BTV)
        again_total, again_nats = _pass(again_NV, targets_N, section)
        total, nats = (total + again_total) / 2, (nats + again_nats) / 2
        total = total + section.r_drop * _symmetric_divergence(logits_NV, again_NV, targets_N)
    return Loss(total=total / tokens, nats=nats)


def _rows(logits_BTV: Tensor) -> Tensor:
    return logits_BTV.reshape(-1, logits_BTV.shape[-1]).float()


def _pass(logits_NV: Tensor, targets_N: Tensor, section: Objective) -> tuple[Tensor, Tensor]:
    log_p_NV = F.log_softmax(logits_NV, dim=-1)
    cross_entropy = F.nll_loss(log_p_NV, targets_N, ignore_index=IGNORED, reduction="sum")
    total = cross_entropy
    scored_N = targets_N != IGNORED
    if section.label_smoothing > 0:
        spread_N = -log_p_NV.mean(dim=-1)
        total = (1 - section.label_smoothing) * total + section.label_smoothing * _sum(spread_N, scored_N)
    if section.z_loss > 0:
        total = total + section.z_loss * _sum(torch.logsumexp(logits_NV, dim=-1).square(), scored_N)
    return total, cross_entropy.detach()


def _symmetric_divergence(first_NV: Tensor, second_NV: Tensor, targets_N: Tensor) -> Tensor:
    # KL(p||q) + KL(q||p) = sum (p - q)(log p - log q): no term is negative, and nothing is lost to cancellation.
    log_p_NV, log_q_NV = F.log_softmax(first_NV, dim=-1), F.log_softmax(second_NV, dim=-1)
    divergence_N = ((log_p_NV.exp() - log_q_NV.exp()) * (log_p_NV - log_q_NV)).sum(dim=-1)
    return _sum(divergence_N, targets_N != IGNORED) / 2


def _sum(values_N: Tensor, scored_N: Tensor) -> Tensor:
    # where, not a product: what an unscored position holds, be it infinite, must not leak.
    return torch.where(scored_N, values_N, 0.0).sum()
