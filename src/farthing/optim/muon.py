"""Muon with the matrices of one shape orthogonalised together, in fewer operations and in the device's own format.

Shapes: N matrices of one shape, R rows, C columns, S the smaller of R and C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from farthing.runtime import hardware

Coefficients = tuple[float, float, float]

STACKED = 1 << 24
"""elements that are orthogonalised together, at most: 32 MB in bfloat16"""
STACKED_BY_A_CORE = 3 << 18
"""the same for each thread of a CPU, whose cache holds no more"""
STEPS_BY_GRAM = {torch.bfloat16: 2, torch.float32: 3}
"""steps that an oblong matrix takes with one Gram matrix; the error stays within twice the plain iteration's"""
_OBLONG = 1.5
"""ratio of the sides from which several steps with one Gram matrix take fewer operations"""


class Muon(torch.optim.Muon):
    """Muon (Jordan 2024): what torch.optim.Muon computes, but for rounding.

    torch iterates matrix by matrix and in bfloat16. That is 20 times slower than float32 on a CPU which only emulates
    it, keeps a GPU waiting between small products, and copies tall matrices into other layouts. A group's `bf16` says
    what to iterate in; without it, the device decides.

    Where `found_inf` is set, a tensor that is 1 or 0, a step of 1 changes nothing, as with torch's fused optimizers:
    the host need not wait for it.
    """

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        assert closure is None
        skip: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameters in _stacks(group["params"]):
                self._move(parameters, group, skip)

    def _move(self, parameters: list[nn.Parameter], group: dict[str, Any], skip: Tensor | None) -> None:
        weights: list[Tensor] = list(parameters)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        momenta = [self._momentum(parameter) for parameter in parameters]
        rows, columns = weights[0].shape
        with _undone(momenta, skip), _undone(weights, skip):
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
            bf16 = group["bf16"] if "bf16" in group else native_bf16(weights[0].device)
            x_NRC = weights[0].new_empty(len(weights), rows, columns, dtype=torch.bfloat16 if bf16 else torch.float32)
            torch._foreach_copy_(x_NRC.unbind(), updates)
            x_NRC = orthogonalised(x_NRC, group["ns_coefficients"], group["ns_steps"], group["eps"])
            if group["adjust_lr_fn"] == "match_rms_adamw":
                adjustment = 0.2 * max(rows, columns) ** 0.5
            else:
                adjustment = max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, x_NRC.to(weights[0].dtype).unbind(), alpha=-group["lr"] * adjustment)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


def _stacks(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters that have a gradient, those of one shape together, no more at once than may be stacked."""
    by_shape: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_shape.setdefault(parameter.shape, []).append(parameter)
    for alike in by_shape.values():
        fit = min(STACKED, STACKED_BY_A_CORE * torch.get_num_threads()) if alike[0].is_cpu else STACKED
        # Not one by one: a batched product of one matrix is slower than any.
        most = max(2, fit // alike[0].numel())
        yield from (alike[start : start + most] for start in range(0, len(alike), most))


@contextmanager
def _undone(tensors: list[Tensor], skip: Tensor | None) -> Iterator[None]:
    """Leave the tensors, all of one shape, as they were where `skip` is 1; nobody waits to see whether it is."""
    if skip is None:
        yield
        return
    before = torch.stack(tensors)
    yield
    torch._foreach_copy_(tensors, torch.where(skip > 0, before, torch.stack(tensors)).unbind())


def orthogonalised(x_NRC: Tensor, coefficients: Coefficients, steps: int, eps: float) -> Tensor:
    """Push the singular values of each matrix towards 1, by the quintic Newton-Schulz iteration of Jordan (2024).

    A step multiplies X by P = a + b G + c G^2, where G = X X^T has the smaller side (X^T X, from the right, for tall
    matrices). Everything is a polynomial of the first G, symmetric and commuting; so the next G is P G P, and an oblong
    matrix need not itself take part in every step: it is multiplied once by the product Q of a few steps' P.

    That cannot go on for long. Rounding makes noise of the smallest eigenvalues of such a G, and each step multiplies
    it by up to a^2 = 12: five bfloat16 steps on one G end in singular values of 1000 where there should be none above
    1.2. See STEPS_BY_GRAM.
    """
    a = coefficients[0]
    x_NRC = x_NRC / torch.linalg.vector_norm(x_NRC, dim=(1, 2), keepdim=True).clamp(min=eps)
    rows, columns = x_NRC.shape[1:]
    tall, oblong = rows > columns, max(rows, columns) > _OBLONG * min(rows, columns)
    at_once = STEPS_BY_GRAM[x_NRC.dtype] if oblong else 1
    for done in range(0, steps, at_once):
        gram_NSS = x_NRC.mT @ x_NRC if tall else x_NRC @ x_NRC.mT
        if min(at_once, steps - done) == 1:
            p_NSS = _less_identity(gram_NSS, coefficients)
            x_NRC = torch.baddbmm(x_NRC, *((x_NRC, p_NSS) if tall else (p_NSS, x_NRC)), beta=a)
        else:
            q_NSS = _several_steps(gram_NSS, coefficients, min(at_once, steps - done))
            x_NRC = x_NRC @ q_NSS if tall else q_NSS @ x_NRC
    return x_NRC


def _less_identity(gram_NSS: Tensor, coefficients: Coefficients) -> Tensor:
    """P - a: what a step multiplies by, but for the identity's part, which the caller adds without rounding."""
    _, b, c = coefficients
    return torch.baddbmm(gram_NSS, gram_NSS, gram_NSS, beta=b, alpha=c)


def _several_steps(gram_NSS: Tensor, coefficients: Coefficients, steps: int) -> Tensor:
    """The product of the P of so many steps, from a matrix with this Gram matrix."""
    a = coefficients[0]
    p_NSS = _less_identity(gram_NSS, coefficients)
    q_NSS = p_NSS.clone()
    q_NSS.diagonal(dim1=1, dim2=2).add_(a)
    for _ in range(steps - 1):
        half_NSS = torch.baddbmm(gram_NSS, p_NSS, gram_NSS, beta=a)
        gram_NSS = torch.baddbmm(half_NSS, half_NSS, p_NSS, beta=a)
        p_NSS = _less_identity(gram_NSS, coefficients)
        q_NSS = torch.baddbmm(q_NSS, p_NSS, q_NSS, beta=a)
    return q_NSS


def native_bf16(device: torch.device) -> bool:
    """Whether the device is known to have instructions of its own for bfloat16 matrix products."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool({"AVX-512 BF16", "AMX BF16"} & set(hardware.instruction_sets()))
