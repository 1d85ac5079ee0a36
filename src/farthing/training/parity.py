"""Whether a model computed in some fast way has the loss and the gradients that plain fp32 gives.

A kernel that is wrong on one machine in a thousand would otherwise train a worse model there, and nobody would know.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from farthing.data.batches import IGNORED, Batch
from farthing.training.step import Stepper

TOKENS = 512
"""of the first batch: as many are compared"""
LOSS_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-3, "fp16": 5e-3}
"""difference of the losses as a share of the loss; rounding to bf16 makes 2e-4 at most in the recipes shipped"""
GRADIENT_TOLERANCE = {"fp32": 0.01, "bf16": 0.05, "fp16": 0.05}
"""norm of the difference of the gradients, all parameters together, as a share of the gradient's; rounding to bf16 makes
0.003 to 0.009 in the recipes shipped, fp16 0.0005, another order of sums in fp32 2e-7, and TF32 what fp16 does"""
MASKED_TOLERANCE = 0.2
"""the gradient's norm as a share of the other's, where dropout draws other masks"""
_NOISE = 0.02


@dataclass(frozen=True)
class Parity:
    """How far one way of computing is from another, on the same weights and tokens."""

    loss: float
    """difference of the losses, as a share of the reference's"""
    gradient: float
    """norm of the difference of the gradients, as a share of the reference's norm"""
    loss_tolerance: float
    gradient_tolerance: float

    @property
    def holds(self) -> bool:
        """Whether both are within what rounding explains; no if either is not a number."""
        return self.loss <= self.loss_tolerance and self.gradient <= self.gradient_tolerance

    def as_dict(self) -> dict[str, float]:
        """JSON-ready."""
        return asdict(self)

    def told(self) -> str:
        """The same in words."""
        return (
            f"loss off by {self.loss:.2g} of it (at most {self.loss_tolerance:g}), "
            f"gradients by {self.gradient:.2g} (at most {self.gradient_tolerance:g})"
        )


def few_tokens(batch: Batch) -> Batch:
    """Its first rows, cut short where one alone is longer than TOKENS; a causal model takes any beginning."""
    length = min(batch.inputs_BT.shape[1], TOKENS)
    rows = batch.rows(0, max(1, TOKENS // length))
    targets_BT = rows.targets_BT[:, :length]
    segments_BT = None if rows.segments_BT is None else rows.segments_BT[:, :length]
    return Batch(rows.inputs_BT[:, :length], targets_BT, segments_BT, int((targets_BT != IGNORED).sum()), rows.windows)


def compare(fast: Stepper, plain: Stepper, batch: Batch) -> Parity:
    """Take both through a forward and a backward pass without dropout, and without an update.

    Args:
        fast: the way to check.
        plain: the way to believe; its model has the same parameters, not copies of them.
        batch: what to compute.
    """
    loss, reference = _loss_and_gradients(plain, batch, training=False)
    found, gradients = _loss_and_gradients(fast, batch, training=False)
    format_ = fast.precision.name
    return _apart(found, gradients, loss, reference, LOSS_TOLERANCE[format_], GRADIENT_TOLERANCE[format_])


def compare_compiled(stepper: Stepper, batch: Batch) -> Parity:
    """Hold what a stepper calls against its model's plain code, as training does it and in the same precision."""
    compiled, stepper.hidden = stepper.hidden, stepper.model.hidden
    try:
        loss, reference = _loss_and_gradients(stepper, batch, training=True)
    finally:
        stepper.hidden = compiled
    found, gradients = _loss_and_gradients(stepper, batch, training=True)
    format_ = stepper.precision.name
    if stepper.model.section.dropout == 0:
        return _apart(found, gradients, loss, reference, LOSS_TOLERANCE[format_], GRADIENT_TOLERANCE[format_])
    size, other = _norm(gradients), _norm(reference)
    return Parity(_share(abs(found - loss), abs(loss)), _share(abs(size - other), other), 0.05, MASKED_TOLERANCE)


def fill_zeros(model: nn.Module) -> None:
    """Give matrices that start as zeros small random values: behind a zero, no gradient shows whether it is right."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and not bool(parameter.any()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * _NOISE)


def _apart(
    loss: float,
    gradients: list[Tensor],
    reference_loss: float,
    reference: list[Tensor],
    loss_tolerance: float,
    gradient_tolerance: float,
) -> Parity:
    difference = _norm([one - other for one, other in zip(gradients, reference, strict=True)])
    return Parity(
        _share(abs(loss - reference_loss), abs(reference_loss)),
        _share(difference, _norm(reference)),
        loss_tolerance,
        gradient_tolerance,
    )


def _loss_and_gradients(stepper: Stepper, batch: Batch, *, training: bool) -> tuple[float, list[Tensor]]:
    """Nats per token, and every parameter's gradient in fp32."""
    scaler = stepper.precision.scaler
    stepper.model.train(training)
    try:
        while True:
            nats = float(stepper.accumulate(batch))
            scale = 1.0 if scaler is None else scaler.get_scale()
            gradients = [
                torch.zeros_like(p) if p.grad is None else p.grad.detach().float() / scale
                for p in stepper.model.parameters()
            ]
            stepper.optimizer.zero_grad()
            # fp16 overflows at the scale that its scaler begins with; the first steps of a run bring it down.
            if scaler is None or scale <= 1 or all(bool(torch.isfinite(one).all()) for one in gradients):
                return nats / max(1, batch.tokens), gradients
            scaler.update(scale / 16)
    finally:
        stepper.optimizer.zero_grad()


def _norm(tensors: list[Tensor]) -> float:
    return float(nn.utils.get_total_norm(tensors))


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else (0.0 if part == 0 else float("inf"))
