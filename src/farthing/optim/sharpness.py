"""Sharpness-aware minimisation around any optimizer: the gradient is taken where the loss is nearly worst nearby."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from farthing.recipe.optimization import AdaptiveSam, NoSharpness, Sam, Sharpness


@contextmanager
def perturbed(parameters: Iterable[nn.Parameter], section: Sharpness) -> Iterator[bool]:
    """Move the weights uphill by the gradients that they hold; put them back, bit for bit, at the end, come what may.

    The perturbation has the norm rho over all parameters together: sam adds `rho g / |g|` (Foret et al. 2021); asam
    adds `rho T^2 g / |T g|` with `T = |w| + eta`, element by element (Kwon et al. 2021). Yields whether the weights
    were moved: not for kind "none", nor when the norm is zero or not finite.

    A step is: accumulate gradients; enter; zero the gradients; accumulate again; leave; clip; step. The second
    gradients, taken at the moved weights, are then applied to the original ones. The direction does not depend on the
    gradients' scale, so a loss scaler's scaled gradients may be used as they are. With several ranks the gradients
    must be reduced before entering, so that all ranks move alike. Costs one copy of the weights.
    """
    moved = [] if isinstance(section, NoSharpness) else [p for p in parameters if p.grad is not None]
    norm = _norm(moved, section)
    if norm == 0 or not math.isfinite(norm):
        yield False
        return
    assert not isinstance(section, NoSharpness)
    saved = [parameter.detach().clone() for parameter in moved]
    try:
        with torch.no_grad():
            for parameter in moved:
                # Divided by the norm first: neither a tiny nor a huge norm can leave float32 on the way.
                direction = _stretched(parameter, parameter.grad, section) / norm
                parameter.add_(_stretched(parameter, direction, section), alpha=section.rho)
        yield True
    finally:
        with torch.no_grad():
            for parameter, original in zip(moved, saved, strict=True):
                parameter.copy_(original)


@torch.no_grad()
def _norm(parameters: list[nn.Parameter], section: Sharpness) -> float:
    if not parameters or isinstance(section, NoSharpness):
        return 0.0
    norms = [torch.linalg.vector_norm(_stretched(p, p.grad, section)) for p in parameters]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _stretched(parameter: nn.Parameter, direction: Tensor | None, section: Sam | AdaptiveSam) -> Tensor:
    assert direction is not None
    if isinstance(section, Sam):
        return direction
    return direction * (parameter.abs() + section.eta)
