"""The same arithmetic: with equal weights and tokens, Farthing's step and GPT2LMHeadModel give equal losses and gradients.

    python benchmarks/parity.py            (under a minute)

Our step is taken whole, as in training (stepper.take), and its gradients are read where the optimizer would use them.
In fp32 both must agree to rounding, whatever the attention path. With the settings that auto picks, where that is bf16,
the yardstick is what bf16 autocast does to transformers' own gradients: ours must not lie further from fp32 than that,
by more than half. Ends with exit code 1 if anything disagrees.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import bench
import torch
import torch.nn.functional as F
from shapes import GPT2_ARCHITECTURE, HEADLINE, SHAPES
from sides.ours import Built, build
from torch import Tensor
from transformers import GPT2LMHeadModel
from weights import as_gpt2, gpt2_with

from farthing.data.batches import Batch

FP32_LOSS, FP32_GRADIENT = 1e-5, 1e-4
"""relative"""
STEPS_BEFORE = 10
"""steps taken first, so that weights and gradients are not those of a fresh model"""
VARIANTS = {
    "fp32, sdpa": ["train.precision=fp32", "train.attention=sdpa", "train.compile=off"],
    "fp32, math": ["train.precision=fp32", "train.attention=math", "train.compile=off"],
    "auto": [],
}


def our_step(built: Built, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """Loss in nats per token and the gradients of one step, whose update is left out."""
    found: dict[str, Tensor] = {}

    def keep() -> None:
        found.update({name: p.grad.clone() for name, p in built.stepper.model.named_parameters() if p.grad is not None})

    step = built.stepper.optimizer.step
    built.stepper.optimizer.step = keep  # type: ignore[method-assign]
    try:
        taken = built.stepper.take(batch)
    finally:
        built.stepper.optimizer.step = step  # type: ignore[method-assign]
    return taken.loss, found


def their_step(model: GPT2LMHeadModel, batch: Batch, *, bf16: bool) -> tuple[float, dict[str, Tensor]]:
    """The same of GPT2LMHeadModel, in fp32 or under bf16 autocast as its Trainer does it."""
    model.train()
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits_BTV = model(torch.from_numpy(batch.inputs_BT)).logits
    loss = F.cross_entropy(logits_BTV.float().flatten(0, 1), torch.from_numpy(batch.targets_BT).flatten())
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Any]:
    """Norm of the difference relative to the norm, over all gradients and of the worst tensor."""
    assert found.keys() >= expected.keys(), sorted(expected.keys() - found.keys())
    off = {name: float((found[name] - expected[name]).norm()) for name in expected}
    size = {name: float(expected[name].norm()) for name in expected}
    total = sum(value**2 for value in size.values()) ** 0.5
    # A key's bias has no gradient but rounding (softmax does not see it), so a tensor is measured against its kind too.
    relative = {name: off[name] / max(size[name], 1e-3 * total) for name in expected}
    worst = max(relative, key=lambda name: relative[name])
    overall = sum(value**2 for value in off.values()) ** 0.5 / total
    return {"overall": overall, "worst": relative[worst], "worst_tensor": worst}


def compare(name: str, overrides: list[str], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """One variant of our settings against GPT2LMHeadModel with the same weights."""
    shape = SHAPES[HEADLINE]
    built = build([*shape.recipe(), *GPT2_ARCHITECTURE, "optimizer.kind=adamw", "train.gradient_clip=none", *overrides])
    built.stepper.model.load_state_dict(weights)
    model, batch = gpt2_with(weights, shape), built.batches.batch(STEPS_BEFORE)
    our_loss, our_gradients = our_step(built, batch)
    their_loss, their_gradients = their_step(model, batch, bf16=False)
    lowered_loss, lowered_gradients = their_step(model, batch, bf16=True)
    gradients = distance(as_gpt2(our_gradients, shape.n_layer), their_gradients)
    lowered = distance(lowered_gradients, their_gradients)
    precision = built.plan.settings.precision
    loss_off, lowered_off = abs(our_loss / their_loss - 1), abs(lowered_loss / their_loss - 1)
    if precision == "fp32":
        agrees = loss_off <= FP32_LOSS and gradients["worst"] <= FP32_GRADIENT
    else:
        agrees = loss_off <= max(1e-3, 1.5 * lowered_off) and gradients["overall"] <= 1.5 * lowered["overall"]
    return {
        "variant": name,
        "precision": precision,
        "settings": built.plan.settings.told(),
        "loss": our_loss,
        "loss_of_gpt2_fp32": their_loss,
        "loss_off": loss_off,
        "gradients_off": gradients,
        "loss_off_of_gpt2_bf16": lowered_off,
        "gradients_off_of_gpt2_bf16": lowered,
        "agrees": agrees,
    }


def trained_weights() -> dict[str, Tensor]:
    """Weights a few steps into training."""
    built = build([*SHAPES[HEADLINE].recipe(), *GPT2_ARCHITECTURE, "optimizer.kind=adamw", "optimizer.lr=1e-3"])
    for step in range(STEPS_BEFORE):
        built.stepper.take(built.batches.batch(step))
    return {name: tensor.detach().clone() for name, tensor in built.stepper.model.state_dict().items()}


def main() -> None:
    """Compare every variant, print a row each and keep them."""
    weights = trained_weights()
    rows = [compare(name, overrides, weights) for name, overrides in VARIANTS.items()]
    print(
        f"{'ours':<14}{'settings':<64}{'loss off':>10}{'gradients off':>15}{'worst':>10}   GPT-2 in bf16: loss, gradients"
    )
    for row in rows:
        gradients, lowered = row["gradients_off"], row["gradients_off_of_gpt2_bf16"]
        print(
            f"{row['variant']:<14}{row['settings']:<64}{row['loss_off']:>10.1e}{gradients['overall']:>15.1e}"
            f"{gradients['worst']:>10.1e}   {row['loss_off_of_gpt2_bf16']:.1e}, {lowered['overall']:.1e}"
            f"{'' if row['agrees'] else '   DISAGREES'}"
        )
    bench.write("parity", {"shape": HEADLINE, "rows": rows, "agrees": all(row["agrees"] for row in rows)})
    sys.exit(not all(row["agrees"] for row in rows))


if __name__ == "__main__":
    main()
