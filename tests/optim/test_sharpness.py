"""Sharpness-aware minimisation: where the weights go, and that they come back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from farthing.optim.build import build_optimizer
from farthing.optim.sharpness import perturbed
from farthing.recipe.optimization import AdamW, AdaptiveSam, NoSharpness, Sam, Sharpness

KINDS: list[Sharpness] = [Sam(rho=0.3), AdaptiveSam(rho=0.7, eta=0.05)]
both = pytest.mark.parametrize("section", KINDS, ids=lambda section: section.kind)


def parameters(scale: float = 1.0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,), (2, 2))]
    for parameter in made[:2]:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
    return made


def copies(made: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in made]


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_sam_moves_by_rho_along_the_whole_gradient() -> None:
    made = parameters()
    before = copies(made)
    gradient = flat([p.grad if p.grad is not None else torch.zeros_like(p) for p in made])
    with perturbed(made, Sam(rho=0.3)) as moved:
        assert moved
        shift = flat(copies(made)) - flat(before)
    torch.testing.assert_close(shift, 0.3 * gradient / gradient.norm())


def test_adaptive_sam_moves_as_in_its_paper() -> None:
    made = parameters()
    before = copies(made)
    w = flat(before)
    gradient = flat([p.grad if p.grad is not None else torch.zeros_like(p) for p in made])
    stretch = w.abs() + 0.05
    with perturbed(made, AdaptiveSam(rho=0.7, eta=0.05)):
        shift = flat(copies(made)) - w
    torch.testing.assert_close(shift, 0.7 * stretch**2 * gradient / (stretch * gradient).norm())


@both
@given(exponent=st.integers(-30, 14))
def test_scaled_gradients_move_the_weights_alike(section: Sharpness, exponent: int) -> None:
    places = []
    for scale in (1.0, 2.0**exponent):
        made = parameters(scale)
        with perturbed(made, section):
            places.append(flat(copies(made)))
    torch.testing.assert_close(places[0], places[1])


@both
def test_weights_come_back_bit_for_bit_even_from_an_exception(section: Sharpness) -> None:
    made = parameters()
    before = copies(made)
    with perturbed(made, section):
        assert not torch.equal(made[0], before[0])
        for parameter in made:
            parameter.grad = None
    assert all(torch.equal(p, b) for p, b in zip(made, before, strict=True))
    made = parameters()
    with pytest.raises(RuntimeError, match="out of memory"), perturbed(made, section):
        raise RuntimeError("out of memory")
    assert all(torch.equal(p, b) for p, b in zip(made, before, strict=True))


@both
@pytest.mark.parametrize("scale", [0.0, float("inf"), float("nan")])
def test_gradients_without_a_direction_move_nothing(section: Sharpness, scale: float) -> None:
    made = parameters(scale)
    before = copies(made)
    with perturbed(made, section) as moved:
        assert not moved
        assert all(torch.equal(p, b) for p, b in zip(made, before, strict=True))


def test_none_and_no_gradients_move_nothing() -> None:
    with perturbed(parameters(), NoSharpness()) as moved:
        assert not moved
    with perturbed([nn.Parameter(torch.ones(2))], Sam()) as moved:
        assert not moved


@both
def test_step_applies_the_second_gradients_to_the_original_weights(section: Sharpness) -> None:
    """Over two accumulated micro-batches, on f(w) = sum of w^4, whose gradient is known at every place."""
    w = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    start = w.detach().clone()
    optimizers = build_optimizer(AdamW(lr=0.1, weight_decay=0.0), [("w", w)], {"w": "matrix"})

    def accumulate() -> None:
        for _ in range(2):
            (0.5 * w.pow(4).sum()).backward()

    accumulate()
    with perturbed(optimizers.parameters(), section):
        there = w.detach().clone()
        optimizers.zero_grad()
        accumulate()
    assert torch.equal(w, start)
    assert w.grad is not None
    torch.testing.assert_close(w.grad, 4 * there**3)
    optimizers.step()
    torch.testing.assert_close(w.detach(), start - 0.1 * torch.sign(there))
