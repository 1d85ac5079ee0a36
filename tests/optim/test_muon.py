"""Muon against torch's own, and its iteration against exact arithmetic."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from farthing.optim import muon
from farthing.optim.build import build_optimizer
from farthing.optim.muon import orthogonalised
from farthing.recipe.optimization import Muon

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
FORMATS = {torch.float32: 0.002, torch.bfloat16: 0.03}
"""what an iteration may differ from another order of the same operations"""


def exact(matrix: Tensor, steps: int = 5) -> Tensor:
    a, b, c = COEFFICIENTS
    x = matrix.double() / matrix.double().norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def spectrum(rows: int, columns: int, values: Tensor, seed: int = 0) -> Tensor:
    """A matrix with these singular values and random singular vectors."""
    gaussian = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    u, _, v = torch.linalg.svd(gaussian, full_matrices=False)
    return u * values @ v


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_steps_are_torchs_but_for_rounding(bf16: bool, nesterov: bool, adjust_lr: Any) -> None:
    section = Muon(lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.3, adjust_lr=adjust_lr)
    generator = torch.Generator().manual_seed(3)
    shapes = [(24, 16), (16, 24), (16, 16), (64, 16), (24, 16), (16, 64), (24, 16)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([nn.Parameter(weight.clone()) for weight in start] for _ in range(2))
    names = [f"w{number}" for number in range(len(shapes))]
    our_set = build_optimizer(section, zip(names, ours, strict=True), dict.fromkeys(names, "matrix"), bf16=bf16)
    their = torch.optim.Muon(
        theirs, lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.3, adjust_lr_fn=adjust_lr, ns_steps=5
    )
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        our_set.step()
        their.step()
    for name, one, other, weight in zip(names, ours, theirs, start, strict=True):
        # torch always iterates in bfloat16.
        assert relative(one.detach() - weight, (other.detach() - weight).double()) < FORMATS[torch.bfloat16]
        assert torch.equal(our_set.state()[0][f"{name}/momentum_buffer"], their.state[other]["momentum_buffer"])


@pytest.mark.parametrize("dtype", FORMATS)
@given(
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    steps=st.integers(1, 8),
    exponent=st.integers(-6, 6),
    seed=st.integers(0, 1000),
)
def test_every_shape_is_iterated_as_in_exact_arithmetic(
    dtype: torch.dtype, sides: tuple[int, int], steps: int, exponent: int, seed: int
) -> None:
    smaller = min(sides)
    # Well above rounding: the iteration makes anything of a singular value that is not.
    values = torch.linspace(1, 0.3, smaller) * 10.0**exponent
    matrix = spectrum(*sides, values, seed=seed)
    found = orthogonalised(matrix.to(dtype).unsqueeze(0), COEFFICIENTS, steps, 1e-30)[0]
    assert found.shape == matrix.shape
    assert relative(found, exact(matrix, steps)) < 0.02 + 4 * FORMATS[dtype]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", [(48, 192), (192, 48), (64, 64)])
def test_no_spectrum_makes_it_leave_the_neighbourhood_of_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    smaller = min(shape)
    spectra = {
        "flat": torch.ones(smaller),
        "power law": 1 / torch.arange(1, smaller + 1).float().square(),
        "steep": torch.logspace(0, -6, smaller),
        "low rank": torch.cat([torch.ones(4), torch.zeros(smaller - 4)]),
        "rank one and noise": torch.cat([torch.ones(1), torch.full((smaller - 1,), 1e-4)]),
    }
    for name, values in spectra.items():
        matrix = spectrum(*shape, values)
        for steps in (5, 10):
            found = orthogonalised(matrix.to(dtype).unsqueeze(0), COEFFICIENTS, steps, 1e-7)[0]
            largest = torch.linalg.matrix_norm(found.double(), 2)
            bound = torch.linalg.matrix_norm(exact(matrix, steps), 2)
            assert largest < max(float(bound), 1.21) + 0.1, (name, steps)


def test_a_matrix_of_zeros_stays_one() -> None:
    assert not orthogonalised(torch.zeros(2, 3, 2), COEFFICIENTS, 5, 1e-7).any()


@pytest.mark.parametrize("bf16", [False, True])
def test_neighbours_in_a_stack_do_not_touch_each_other(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = [(12, 8)] * 5 + [(8, 8)] * 2
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    gradients = [torch.randn(shape, generator=generator) * 10.0**number for number, shape in enumerate(shapes)]
    ends = []
    for most in (2, 3, 100):
        monkeypatch.setattr(muon, "STACKED_BY_A_CORE", most * 96)
        parameters = [nn.Parameter(weight.clone()) for weight in weights]
        named = [(f"w{number}", parameter) for number, parameter in enumerate(parameters)]
        made = build_optimizer(Muon(), named, {name: "matrix" for name, _ in named}, bf16=bf16)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        made.step()
        ends.append([parameter.detach() for parameter in parameters])
    for end, other in product(ends[1:], [ends[0]]):
        for one, two in zip(end, other, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-3 if bf16 else 1e-6)


def test_a_step_of_a_matrix_alone_is_the_same_as_in_a_crowd_that_has_no_gradients() -> None:
    weight, gradient = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(2))
    ends = []
    for crowd in (0, 3):
        parameters = [nn.Parameter(weight.clone()) for _ in range(crowd + 1)]
        named = [(f"w{number}", parameter) for number, parameter in enumerate(parameters)]
        made = build_optimizer(Muon(weight_decay=0.1), named, {name: "matrix" for name, _ in named})
        parameters[0].grad = gradient.clone()
        made.step()
        ends.append(parameters[0].detach())
        assert all(torch.equal(parameter.detach(), weight) for parameter in parameters[1:])
        assert set(made.state()[0]) == {"w0/momentum_buffer"}
    assert torch.equal(*ends)
