"""What each optimizer does to one parameter, against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from farthing.optim.build import build_optimizer
from farthing.optim.memory import sharpness_bytes, state_bytes
from farthing.optim.optimizer_set import OptimizerSet
from farthing.recipe.optimization import (
    Adafactor,
    AdamW,
    AnyOptimizer,
    Lion,
    Muon,
    MuonRest,
    NoSharpness,
    RmsProp,
    Sam,
    Sgd,
)


def one(section: AnyOptimizer, weight: Tensor, **options: Any) -> tuple[nn.Parameter, OptimizerSet]:
    parameter = nn.Parameter(weight.clone())
    return parameter, build_optimizer(section, [("w", parameter)], {"w": "matrix"}, **options)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def gradient() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", [AdamW, Adafactor, Lion, Muon])
def test_decoupled_decay_shrinks_by_the_scheduled_rate_times_the_decay(kind: Any, weight: Tensor) -> None:
    parameter, optimizers = one(kind(lr=0.5, weight_decay=0.2), weight)
    optimizers.set_factor(0.5)
    parameter.grad = torch.zeros_like(weight)
    optimizers.step()
    torch.testing.assert_close(parameter.detach(), weight * (1 - 0.25 * 0.2))


def test_sgd_adds_decay_to_the_gradient(weight: Tensor, gradient: Tensor) -> None:
    parameter, optimizers = one(Sgd(lr=0.5, weight_decay=0.2, momentum=0.9), weight)
    for _ in range(2):
        parameter.grad = gradient.clone()
        optimizers.step()
    first = weight - 0.5 * (gradient + 0.2 * weight)
    momentum = 0.9 * (gradient + 0.2 * weight) + gradient + 0.2 * first
    torch.testing.assert_close(parameter.detach(), first - 0.5 * momentum)


def test_rmsprop_adds_decay_to_the_gradient(weight: Tensor, gradient: Tensor) -> None:
    parameter, optimizers = one(RmsProp(lr=0.5, weight_decay=0.2, alpha=0.9), weight)
    parameter.grad = gradient.clone()
    optimizers.step()
    full = gradient + 0.2 * weight
    torch.testing.assert_close(parameter.detach(), weight - 0.5 * full / ((0.1 * full**2).sqrt() + 1e-8))


def test_adamw_is_fused_and_follows_its_definition(weight: Tensor, gradient: Tensor) -> None:
    parameter, optimizers = one(AdamW(lr=0.1, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.5), weight)
    assert all(group["fused"] for group in optimizers.param_groups)
    expected, m, v = weight, torch.zeros(6, 4), torch.zeros(6, 4)
    for t in (1, 2, 3):
        parameter.grad = gradient * t
        optimizers.step()
        m, v = 0.8 * m + 0.2 * gradient * t, 0.9 * v + 0.1 * (gradient * t) ** 2
        expected = expected * (1 - 0.1 * 0.5)
        expected = expected - 0.1 * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-3)
    torch.testing.assert_close(parameter.detach(), expected)


def test_lion_follows_its_definition(weight: Tensor, gradient: Tensor) -> None:
    parameter, optimizers = one(Lion(lr=0.1, beta1=0.6, beta2=0.9, weight_decay=0.5), weight)
    expected, m = weight, torch.zeros(6, 4)
    for turn in (gradient, -0.5 * gradient):
        parameter.grad = turn.clone()
        optimizers.step()
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * torch.sign(0.6 * m + 0.4 * turn)
        m = 0.9 * m + 0.1 * turn
    torch.testing.assert_close(parameter.detach(), expected)


def test_muon_leaves_everything_but_matrices_to_adamw_with_its_own_rate_and_decay(weight: Tensor) -> None:
    named = [(name, nn.Parameter(weight.clone())) for name in ("a", "b", "c")]
    section = Muon(weight_decay=0.1, rest=MuonRest(lr=3e-4, weight_decay=0.2))
    groups = build_optimizer(section, named, {"a": "embedding", "b": "head", "c": "matrix"}).groups()
    assert [(g.role, g.optimizer, g.lr, g.weight_decay) for g in groups] == [
        ("matrix", "Muon", 0.02, 0.1),
        ("head", "AdamW", 3e-4, 0.2),
        ("embedding", "AdamW", 3e-4, 0.0),
    ]


def test_muon_refuses_a_matrix_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"'conv' has shape \(2, 3, 4\)"):
        build_optimizer(Muon(), [("conv", nn.Parameter(torch.zeros(2, 3, 4)))], {"conv": "matrix"})


def test_model_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameters"):
        build_optimizer(Sgd(), [], {})


def test_parameter_without_a_gradient_keeps_still_and_stateless(weight: Tensor, gradient: Tensor) -> None:
    used, unused = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    roles: dict[str, Any] = {"used": "matrix", "unused": "matrix"}
    optimizers = build_optimizer(AdamW(weight_decay=0.1), [("used", used), ("unused", unused)], roles)
    used.grad = gradient
    optimizers.step()
    assert torch.equal(unused.detach(), weight)
    tensors, values = optimizers.state()
    assert set(tensors) == {"used/exp_avg", "used/exp_avg_sq"}
    assert values["parameters"] == {"unused": None, "used": {"step": 1.0}}
    optimizers.load_state(tensors, values)
    assert optimizers.state()[1] == values


def test_adafactor_memory_is_close_for_ordinary_widths() -> None:
    parameter = nn.Parameter(torch.zeros(256, 1024))
    optimizers = build_optimizer(Adafactor(), [("w", parameter)], {"w": "matrix"})
    parameter.grad = torch.zeros_like(parameter)
    optimizers.step()
    taken = sum(tensor.nbytes for tensor in optimizers.state()[0].values())
    assert taken <= state_bytes(Adafactor(), {"matrix": 256 * 1024}) < 4 * taken


def test_sharpness_memory_is_one_copy_of_the_weights() -> None:
    assert sharpness_bytes(Sam(), {"matrix": 10, "vector": 2}) == 48
    assert sharpness_bytes(NoSharpness(), {"matrix": 10}) == 0
