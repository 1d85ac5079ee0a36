"""The head's objective as a compiler is given it: the numbers of the plain one, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from farthing.recipe.optimization import Objective
from farthing.training import head_objective as module
from farthing.training.head_objective import head_objective
from farthing.training.objective import IGNORED

N, D, V = 22, 6, 11
SECTIONS = [
    Objective(),
    Objective(label_smoothing=0.2),
    Objective(z_loss=0.1),
    Objective(label_smoothing=0.1, z_loss=0.05),
]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On the CPU all of torch.compile but the last stage, which takes half a minute; on a GPU the whole."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    module._compiled_chunk.cache_clear()
    torch._dynamo.reset()
    yield
    module._compiled_chunk.cache_clear()


def taken(compiled: bool, section: Objective, dtype: torch.dtype, device: str, **more: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    x_ND = torch.randn(N, D, generator=generator).to(device, dtype).requires_grad_()
    weight_VD = torch.randn(V, D, generator=generator).to(device).requires_grad_()
    targets_N = torch.randint(V, (N,), generator=generator)
    targets_N[torch.rand(N, generator=generator) < 0.3] = IGNORED
    low_VD = weight_VD.detach().to(dtype)
    loss = head_objective(x_ND, weight_VD, low_VD, targets_N.to(device), section, tokens=5, compiled=compiled, **more)
    loss.total.backward()
    assert x_ND.grad is not None and weight_VD.grad is not None
    return [loss.total.detach(), loss.nats, x_ND.grad, weight_VD.grad]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: f"{section.label_smoothing},{section.z_loss}")
def test_compiled_is_plain(section: Objective, dtype: torch.dtype, softcap: float | None, device: str) -> None:
    # In one chunk, and in several of which the last is smaller.
    for chunk_logits in (None, 5 * V):
        options: dict[str, Any] = {"softcap": softcap, "chunk_logits": chunk_logits}
        plain, compiled = (taken(which, section, dtype, device, **options) for which in (False, True))
        for one, other in zip(compiled, plain, strict=True):
            assert one.dtype == other.dtype
            close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(one, other, **close)


def test_what_is_not_scored_does_not_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_CV = torch.randn(3, V)
    logits_CV[1] = torch.inf
    targets_C = torch.tensor([4, IGNORED, 2])
    total, nats, gradient_CV = module._fusible(logits_CV, targets_C, 0.1, 0.01, None)
    assert total.isfinite() and nats.isfinite() and gradient_CV.isfinite().all()
    assert not gradient_CV[1].any()
