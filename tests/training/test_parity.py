"""Fast ways of computing are held against plain fp32: rounding passes, mistakes do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from farthing import assemble
from farthing.data.batches import IGNORED, Batch
from farthing.model import linear
from farthing.planning import Settings
from farthing.recipe import Recipe
from farthing.training import parity
from farthing.training.step import Stepper
from training.story import recipe

PLAIN = Settings("cpu", 1, "fp32", "sdpa", False, 8, 1, {})
VOCABULARY = 257


def batch(rows: int = 8, length: int = 16, *, segments: bool = False) -> Batch:
    draws = np.random.default_rng(0).integers(0, VOCABULARY, (rows, length + 1))
    numbers = np.cumsum(draws[:, :-1] < 20, axis=1) if segments else None
    return Batch(draws[:, :-1].copy(), draws[:, 1:].copy(), numbers, rows * length, rows)


def steppers(settings: Settings, *overrides: str) -> tuple[Stepper, Stepper]:
    """The fast and the plain way, with the same parameters."""
    made: Recipe = recipe(list(overrides))
    device = torch.device("cpu")
    plain = assemble.build_stepper(made, PLAIN, VOCABULARY, device)
    parity.fill_zeros(plain.model)
    return assemble.build_stepper(made, settings, VOCABULARY, device, like=plain), plain


def check(settings: Settings, *overrides: str) -> parity.Parity:
    return parity.compare(
        *steppers(settings, *overrides), batch(segments="model.attention.scope=document" in overrides)
    )


VARIANTS: dict[str, list[str]] = {
    "as it is": [],
    "post-norm": ["model.norm.placement=post"],
    "gated": ["model.attention.gate=head", "model.layer_scale=0.1", "model.mlp.kind=swiglu"],
    "documents": ["model.attention.scope=document"],
    "objective": ["objective.z_loss=1e-4", "objective.label_smoothing=0.1", "model.logit_softcap=15"],
    "r_drop": ["objective.r_drop=2"],
    "untied": ["model.tie_embeddings=false", "model.position.kind=learned", "model.init.kind=gpt2"],
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "settings",
    [
        replace(PLAIN, attention="math"),
        replace(PLAIN, precision="bf16"),
        replace(PLAIN, precision="bf16", attention="math", weight_gradient="copied", micro_batch=3),
        replace(PLAIN, precision="fp16", attention="math"),
    ],
    ids=lambda one: f"{one.precision} {one.attention}",
)
def test_rounding_is_no_mistake(settings: Settings, variant: str) -> None:
    found = check(settings, *VARIANTS[variant])
    assert found.holds, found.told()
    # Far enough from the tolerance that no other recipe trips over it.
    assert found.loss < 0.2 * found.loss_tolerance and found.gradient < 0.4 * found.gradient_tolerance


def scaled(genuine: Callable[..., Any], factor: float) -> Callable[..., Any]:
    def forward(self: linear.Linear, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = genuine(self, x)
        return y * factor if torch.is_autocast_enabled("cpu") else y

    return forward


@pytest.mark.parametrize("factor", [1.1, 0.9, float("nan"), float("inf")])
def test_a_product_that_is_wrong_in_bf16_is_found(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(linear.Linear, "forward", scaled(linear.Linear.forward, factor))
    found = check(replace(PLAIN, precision="bf16"))
    assert not found.holds
    assert "\n" not in found.told()


def test_a_wrong_gradient_is_found_behind_weights_that_begin_as_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    # Attention's own backward only matters once its output projection is not zero.
    genuine = torch.nn.functional.scaled_dot_product_attention

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradients[0] * 2

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **more: Any) -> Any:
        return genuine(q, k, Wrong.apply(v) if v.dtype == torch.bfloat16 else v, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    words = ["model.init.kind=zero_projections", "model.dropout=0"]
    assert not check(replace(PLAIN, precision="bf16"), *words).holds


def test_nothing_is_left_behind() -> None:
    fast, plain = steppers(replace(PLAIN, precision="bf16"))
    before = {name: value.clone() for name, value in plain.model.state_dict().items()}
    parity.compare(fast, plain, batch())
    assert all(parameter.grad is None for parameter in plain.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in plain.model.state_dict().items())
    assert not plain.optimizer.state()[0], "no update has been taken"


def test_steppers_made_alike_share_their_parameters() -> None:
    fast, plain = steppers(replace(PLAIN, precision="bf16", attention="math"))
    assert [id(one) for one in fast.model.parameters()] == [id(one) for one in plain.model.parameters()]
    assert fast.optimizer is plain.optimizer and fast.model is not plain.model


def test_zeros_are_filled_and_the_rest_is_left() -> None:
    model = assemble.build_stepper(
        recipe(["model.init.kind=zero_projections"]), PLAIN, VOCABULARY, torch.device("cpu")
    ).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    zeros = {name for name, value in before.items() if value.ndim == 2 and not bool(value.any())}
    parity.fill_zeros(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert zeros and changed == zeros


@pytest.mark.parametrize(("rows", "length", "expected"), [(8, 16, (8, 16)), (100, 16, (32, 16)), (3, 2000, (1, 512))])
def test_few_tokens_are_compared(rows: int, length: int, expected: tuple[int, int]) -> None:
    whole = batch(rows, length, segments=True)
    whole.targets_BT[0, 3] = IGNORED
    few = parity.few_tokens(whole)
    assert few.inputs_BT.shape == few.targets_BT.shape == expected
    assert few.segments_BT is not None and few.segments_BT.shape == expected
    assert (few.windows, few.tokens) == (expected[0], expected[0] * expected[1] - 1)


def test_no_gradient_at_all_is_the_same_in_both() -> None:
    assert parity._share(0.0, 0.0) == 0
    assert parity._share(1.0, 0.0) == float("inf")
