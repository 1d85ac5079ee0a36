"""The output head's matrix product and the objective together, some rows at a time, so that few logits ever exist.

At a vocabulary of 50,257 the logits of 2,048 tokens and what a loss makes of them are 1.6 GB in fp32; here they are an
eighth of that, and the gradients are ready when forward ends.

Shapes: N rows (tokens), C rows of a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from farthing.model.memory import CHUNK_LOGITS, rows_of_a_chunk
from farthing.recipe.optimization import Objective
from farthing.training.objective import IGNORED, Loss


def head_objective(
    x_ND: Tensor,
    weight_VD: Tensor,
    low_VD: Tensor,
    targets_N: Tensor,
    section: Objective,
    *,
    tokens: int,
    softcap: float | None = None,
    chunk_logits: int | None = None,
    compiled: bool = False,
) -> Loss:
    """`objective` of the head's logits, without r_drop; the same numbers but for the order of sums.

    Gradients are computed together with the loss and kept until backward.

    Args:
        x_ND: the residual stream as the head reads it.
        weight_VD: the head's parameter, which the gradient belongs to.
        low_VD: the same in the format to compute in; the parameter itself for fp32.
        targets_N: token numbers; -100 is not scored.
        section: the recipe's objective; r_drop must be 0.
        tokens: scored tokens of the whole step, in all micro-batches together.
        softcap: bounds the logits by softcap * tanh(logits / softcap).
        chunk_logits: bound on C V; None takes what suits the device.
        compiled: whether to have torch compile what lies between the matrix products: for one size of the rows, since
            each size is compiled anew.
    """
    assert tokens > 0, f"tokens = {tokens}"
    assert section.r_drop == 0, "r_drop needs the logits of two passes"
    rows = rows_of_a_chunk(len(x_ND), len(weight_VD), chunk_logits or CHUNK_LOGITS[x_ND.device.type])
    chunk = _compiled_chunk() if compiled else _chunk
    total, nats = _HeadObjective.apply(
        x_ND.to(low_VD.dtype), weight_VD, low_VD, targets_N, section, softcap, rows, chunk
    )
    return Loss(total=total / tokens, nats=nats)


_Chunk = Callable[[Tensor, Tensor, Tensor, Objective, float | None], tuple[Tensor, Tensor, Tensor]]


class _HeadObjective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        low_VD: Tensor,
        targets_N: Tensor,
        section: Objective,
        softcap: float | None,
        rows: int,
        chunk: _Chunk,
    ) -> tuple[Tensor, Tensor]:
        dx_ND = torch.empty_like(x_ND)
        # A step of several chunks adds up in the parameter's own precision.
        dweight_VD = None
        total, nats = x_ND.new_zeros((), dtype=torch.float32), x_ND.new_zeros((), dtype=torch.float32)
        with torch.autocast(x_ND.device.type, enabled=False):
            for start in range(0, len(x_ND), rows):
                x_CD, targets_C = x_ND[start : start + rows], targets_N[start : start + rows]
                # The last chunk may be smaller, and is not worth compiling for.
                made = (chunk if len(x_CD) == rows else _chunk)(x_CD, low_VD, targets_C, section, softcap)
                chunk_total, chunk_nats, dlogits_CV = made
                total += chunk_total
                nats += chunk_nats
                torch.mm(dlogits_CV, low_VD, out=dx_ND[start : start + rows])
                part_VD = dlogits_CV.t() @ x_CD
                # Nothing of a chunk is to be there beside the next one's logits.
                del made, dlogits_CV
                if dweight_VD is None:
                    dweight_VD = part_VD if rows >= len(x_ND) else part_VD.to(weight_VD.dtype)
                else:
                    dweight_VD += part_VD
                del part_VD
        ctx.save_for_backward(dx_ND, dweight_VD)
        ctx.mark_non_differentiable(nats)
        ctx.set_materialize_grads(False)
        ctx.weight_dtype = weight_VD.dtype
        return total, nats

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        dx_ND, dweight_VD = ctx.saved_tensors
        gradient = gradients[0]
        if gradient is None:
            return (None,) * 8
        # Only now: in fp16 what is multiplied by 1 / tokens too early is lost.
        dx_ND = dx_ND * gradient
        return dx_ND, dweight_VD.to(ctx.weight_dtype).mul_(gradient), None, None, None, None, None, None


def _chunk(
    x_CD: Tensor, low_VD: Tensor, targets_C: Tensor, section: Objective, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the objective and of plain cross-entropy over a chunk, and the first's gradient by the logits."""
    scored_C = targets_C != IGNORED
    index_C1 = targets_C.clamp(min=0).unsqueeze(1)
    logits_CV = x_CD @ low_VD.t()
    if softcap is not None:
        logits_CV = logits_CV.float().div_(softcap).tanh_().mul_(softcap)
    elif x_CD.is_cpu:
        # softmax would do it there itself, beside the narrow ones.
        logits_CV = logits_CV.float()
    # One pass makes the probabilities; the largest of each row gives the logarithm of the sum, exactly and for ever:
    # log sum exp(l) = max l - log(max p).
    p_CV = logits_CV.softmax(-1, dtype=torch.float32)
    log_sum_C = logits_CV.amax(-1).float() - p_CV.amax(-1).log()
    nats_C = log_sum_C - logits_CV.gather(1, index_C1).squeeze(1).float()
    smoothing, z_loss = section.label_smoothing, section.z_loss
    total_C = nats_C
    gradient_CV = p_CV
    if smoothing > 0:
        spread_C = log_sum_C - logits_CV.mean(-1, dtype=torch.float32)
        total_C = (1 - smoothing) * nats_C + smoothing * spread_C
    if z_loss > 0:
        total_C = total_C + z_loss * log_sum_C.square()
        gradient_CV *= (1 + 2 * z_loss * log_sum_C).unsqueeze(1)
    if smoothing > 0:
        gradient_CV -= smoothing / len(low_VD)
    gradient_CV.scatter_add_(1, index_C1, gradient_CV.new_full((len(index_C1), 1), smoothing - 1))
    if softcap is not None:
        gradient_CV *= logits_CV.div_(softcap).square_().neg_().add_(1)
    del logits_CV  # two arrays at once are enough; model/memory.py counts on it
    # Filled, not multiplied: what an unscored position holds, be it infinite, must not leak.
    if not x_CD.is_cpu or not bool(scored_C.all()):
        gradient_CV.masked_fill_(~scored_C.unsqueeze(1), 0.0)
        total_C, nats_C = (torch.where(scored_C, values_C, 0.0) for values_C in (total_C, nats_C))
    return total_C.sum(), nats_C.sum(), gradient_CV.to(x_CD.dtype)


@cache
def _compiled_chunk() -> _Chunk:
    fused = torch.compile(_fusible, dynamic=False)

    def chunk(
        x_CD: Tensor, low_VD: Tensor, targets_C: Tensor, section: Objective, softcap: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits_CV = x_CD @ low_VD.t()
        found: tuple[Tensor, Tensor, Tensor] = fused(
            logits_CV, targets_C, section.label_smoothing, section.z_loss, softcap
        )
        return found

    return chunk


def _fusible(
    logits_CV: Tensor, targets_C: Tensor, smoothing: float, z_loss: float, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What _chunk makes of the logits, without steps in place: a compiler makes two passes over them of it."""
    l_CV = logits_CV.float() if softcap is None else softcap * torch.tanh(logits_CV.float() / softcap)
    log_sum_C = l_CV.logsumexp(-1)
    # Compared, not scattered: a scatter would be a pass of its own.
    is_target_CV = torch.arange(l_CV.shape[-1], device=l_CV.device) == targets_C.unsqueeze(1)
    nats_C = log_sum_C - torch.where(is_target_CV, l_CV, 0.0).sum(-1)
    spread_C = log_sum_C - l_CV.mean(-1)
    total_C = (1 - smoothing) * nats_C + smoothing * spread_C + z_loss * log_sum_C.square()
    gradient_CV = (l_CV - log_sum_C.unsqueeze(1)).exp() * (1 + 2 * z_loss * log_sum_C).unsqueeze(1)
    gradient_CV = gradient_CV - smoothing / l_CV.shape[-1] - torch.where(is_target_CV, 1 - smoothing, 0.0)
    if softcap is not None:
        gradient_CV = gradient_CV * (1 - (l_CV / softcap).square())
    scored_C = targets_C != IGNORED
    gradient_CV = torch.where(scored_C.unsqueeze(1), gradient_CV, 0.0)
    total_C, nats_C = (torch.where(scored_C, values_C, 0.0) for values_C in (total_C, nats_C))
    return total_C.sum(), nats_C.sum(), gradient_CV.to(logits_CV.dtype)
