"""From a recipe's section to optimizers: one case for each kind, with what its weight decay really does.

To add an optimizer: a class in the union of farthing/recipe/optimization.py, a case in `_optimizers` here and one in
memory.py. The contract tests (tests/contracts/test_optimizers.py) read the union and need no change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, assert_never

import torch
from torch import nn

from farthing.optim.muon import Muon as BatchedMuon
from farthing.optim.muon import native_bf16
from farthing.optim.optimizer_set import OptimizerSet
from farthing.optim.roles import Role, decayed_roles, group_by_role
from farthing.recipe.optimization import Adafactor, AdamW, AnyOptimizer, Lion, Muon, MuonRest, RmsProp, Sgd

Groups = dict[Role, dict[str, nn.Parameter]]

# Fused AdamW also takes its square roots itself: the vector library's first call from two threads at once may round
# one thread's half differently, which would break bit-for-bit repetition on a CPU.
_FUSED = frozenset({"cpu", "cuda", "mps"})


def build_optimizer(
    section: AnyOptimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    roles: Mapping[str, Role],
    *,
    bf16: bool | None = None,
) -> OptimizerSet:
    """Build what a recipe's `[optimizer]` asks for, with one group a role and the rates at their peak.

    `roles` names the role of each parameter, as the model publishes it; the parameters are on their device already.
    `bf16` says whether that device is fast at bfloat16 (Muon orthogonalises in it, or else in float32); None goes by
    the instruction set. Raises ValueError, with the names, if a parameter is not in exactly one group, or if Muon is
    given a hidden matrix that does not have two dimensions.
    """
    groups = group_by_role(named_parameters, roles)
    if not groups:
        raise ValueError("the model has no parameters to train")
    return OptimizerSet(section.kind, _optimizers(section, groups, bf16))


def _optimizers(section: AnyOptimizer, groups: Groups, bf16: bool | None) -> list[torch.optim.Optimizer]:
    decays = {role: section.weight_decay if role in decayed_roles(section) else 0.0 for role in groups}
    match section:
        case Sgd():
            return [_sgd(section, groups, decays)]
        case AdamW():
            return [_adamw(section, groups, decays)]
        case Adafactor():
            return [_adafactor(section, groups, decays)]
        case RmsProp():
            return [_rmsprop(section, groups, decays)]
        case Lion():
            return [_lion(section, groups, decays)]
        case Muon():
            return _muon(section, groups, bf16)
        case _:
            assert_never(section)


def _sgd(section: Sgd, groups: Groups, decays: Mapping[Role, float]) -> torch.optim.Optimizer:
    """SGD; weight decay is coupled: `weight_decay * w` joins the gradient, and with it the momentum."""
    return torch.optim.SGD(
        _torch_groups(groups, section.lr, decays), lr=section.lr, momentum=section.momentum, nesterov=section.nesterov
    )


def _adamw(section: AdamW | MuonRest, groups: Groups, decays: Mapping[Role, float]) -> torch.optim.Optimizer:
    """AdamW; weight decay is decoupled: w shrinks by `lr * weight_decay * w`, with the present, scheduled rate."""
    devices = {parameter.device.type for group in groups.values() for parameter in group.values()}
    return torch.optim.AdamW(
        _torch_groups(groups, section.lr, decays),
        lr=section.lr,
        betas=(section.beta1, section.beta2),
        eps=section.eps,
        fused=devices <= _FUSED,
    )


def _adafactor(section: Adafactor, groups: Groups, decays: Mapping[Role, float]) -> torch.optim.Optimizer:
    """Adafactor; weight decay is decoupled: w shrinks by `lr * weight_decay * w`.

    torch caps the rate of the update (not of the decay) at `1 / sqrt(step)`, and multiplies it by the tensor's own
    root mean square, at least 1e-3.
    """
    return torch.optim.Adafactor(
        _torch_groups(groups, section.lr, decays),
        lr=section.lr,
        beta2_decay=section.beta2_decay,
        d=section.clip_threshold,
    )


def _rmsprop(section: RmsProp, groups: Groups, decays: Mapping[Role, float]) -> torch.optim.Optimizer:
    """RMSprop; weight decay is coupled: `weight_decay * w` joins the gradient before it is scaled."""
    return torch.optim.RMSprop(
        _torch_groups(groups, section.lr, decays),
        lr=section.lr,
        alpha=section.alpha,
        momentum=section.momentum,
        eps=section.eps,
    )


def _lion(section: Lion, groups: Groups, decays: Mapping[Role, float]) -> torch.optim.Optimizer:
    """Lion; weight decay is decoupled: w shrinks by `lr * weight_decay * w` before the signed step."""
    # Imported here because it takes about a second.
    from pytorch_optimizer import Lion as LionOptimizer

    return LionOptimizer(_torch_groups(groups, section.lr, decays), lr=section.lr, betas=(section.beta1, section.beta2))


def _muon(section: Muon, groups: Groups, bf16: bool | None) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices and AdamW for the rest; weight decay is decoupled in both.

    A matrix shrinks by `lr * weight_decay * w` with the rate before its adjustment to the matrix's shape.
    """
    for name, parameter in groups.get("matrix", {}).items():
        if parameter.dim() != 2:
            raise ValueError(f"muon moves 2-D matrices only, but {name!r} has shape {tuple(parameter.shape)}")
    optimizers: list[torch.optim.Optimizer] = []
    if "matrix" in groups:
        matrices: Groups = {"matrix": groups["matrix"]}
        fast = native_bf16(next(iter(groups["matrix"].values())).device) if bf16 is None else bf16
        muon = BatchedMuon(
            [
                {**group, "bf16": fast}
                for group in _torch_groups(matrices, section.lr, {"matrix": section.weight_decay})
            ],
            lr=section.lr,
            momentum=section.momentum,
            nesterov=section.nesterov,
            ns_steps=section.newton_schulz_steps,
            adjust_lr_fn=section.adjust_lr,
        )
        optimizers.append(muon)
    rest: Groups = {role: group for role, group in groups.items() if role != "matrix"}
    if rest:
        decays: dict[Role, float] = {
            role: section.rest.weight_decay if role in decayed_roles(section) else 0.0 for role in rest
        }
        optimizers.append(_adamw(section.rest, rest, decays))
    return optimizers


def _torch_groups(groups: Groups, lr: float, decays: Mapping[Role, float]) -> list[dict[str, Any]]:
    return [
        {
            "params": list(group.values()),
            "names": list(group),
            "role": role,
            "lr": lr,
            "base_lr": lr,
            "weight_decay": decays[role],
        }
        for role, group in groups.items()
    ]
