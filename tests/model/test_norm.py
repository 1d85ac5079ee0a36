"""RMS normalisation on the CPU is torch's own function, in value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from farthing.model.norm import Normalize


def rms(width: int, eps: float, *, dtype: torch.dtype = torch.float32) -> Normalize:
    norm = Normalize("rmsnorm", width, eps=eps, bias=False).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(width, generator=torch.Generator().manual_seed(1)) + 0.5)
    return norm


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    width=st.integers(1, 33),
    size=st.sampled_from([0.0, 1e-4, 1.0, 1e4]),
    eps=st.sampled_from([1e-5, 1e-2]),
)
def test_it_equals_torchs(shape: list[int], width: int, size: float, eps: float) -> None:
    norm, generator = rms(width, eps, dtype=torch.float64), torch.Generator().manual_seed(0)
    x = (size * torch.randn(*shape, width, generator=generator, dtype=torch.float64)).requires_grad_()
    target = torch.randn(*shape, width, generator=generator, dtype=torch.float64)
    ours = norm(x)
    found = torch.autograd.grad(ours, (x, norm.weight), target)
    theirs = F.rms_norm(x, (width,), norm.weight, eps)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found, torch.autograd.grad(theirs, (x, norm.weight), target))


def test_gradients_pass_through_an_expanded_gradient_and_a_strided_input() -> None:
    norm = rms(8, 1e-5, dtype=torch.float64)
    x = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).permute(1, 2, 0)
    assert torch.autograd.gradcheck(lambda x: norm(x).sum(), x.detach().requires_grad_())


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_statistics_of_a_low_precision_input_are_exact(kind: str) -> None:
    norm = Normalize(kind, 64, eps=1e-5, bias=False)
    torch.nn.init.ones_(norm.weight)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert norm(x).dtype == torch.float32
    torch.testing.assert_close(norm(x), norm(x.float()), rtol=0, atol=0)
