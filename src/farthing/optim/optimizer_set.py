"""Several torch optimizers that step as one, and whose state is named tensors and plain values, never pickle."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from farthing.optim.roles import Role

# How a step is computed, not what it computes: these follow the machine, so a checkpoint may move to another device.
_IMPLEMENTATION = frozenset({"foreach", "fused", "capturable", "differentiable", "bf16"})
_IDENTITY = frozenset({"params", "names", "role"})


@dataclass(frozen=True)
class Group:
    """The parameters of one role and how they are moved at present."""

    role: Role
    names: tuple[str, ...]
    lr: float
    base_lr: float
    weight_decay: float
    optimizer: str


class _Slot(NamedTuple):
    """What belongs under one key of a parameter's state; all None for a value that is not a tensor."""

    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    device: torch.device | None

    @property
    def is_large(self) -> bool:
        """Whether it is stored as a tensor; a tensor without dimensions is stored as a number."""
        return bool(self.shape)


class OptimizerSet:
    """One or more torch optimizers that step as one.

    Every group keeps its base rate; `set_factor` scales all of them together. `torch.amp.GradScaler` may be given the
    set in place of an optimizer (`scaler.unscale_(optimizers)`, `scaler.step(optimizers)`): it sees all parameters at
    once, so that an overflow in any of them skips the step of all.
    """

    def __init__(self, kind: str, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Bundle optimizers whose groups carry `role`, `names` and `base_lr`, as `build_optimizer` makes them."""
        assert optimizers, "an optimizer set without optimizers"
        self.kind = kind
        self._optimizers = tuple(optimizers)
        roles = [group["role"] for group in self.param_groups]
        assert len(set(roles)) == len(roles), f"roles come twice: {roles}"

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The torch parameter groups of all optimizers, in order."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    @property
    def lr(self) -> float:
        """The present rate of the first group: the hidden matrices wherever there are any."""
        return float(self.param_groups[0]["lr"])

    def groups(self) -> tuple[Group, ...]:
        """What is moved how, one entry a role."""
        return tuple(
            Group(
                role=group["role"],
                names=tuple(group["names"]),
                lr=float(group["lr"]),
                base_lr=float(group["base_lr"]),
                weight_decay=float(group["weight_decay"]),
                optimizer=type(optimizer).__name__,
            )
            for optimizer in self._optimizers
            for group in optimizer.param_groups
        )

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter once, in an order that depends on names and roles only (for clipping and sharpness)."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def set_factor(self, factor: float) -> None:
        """Set every group's rate to `factor` times its base rate, until the next call."""
        assert math.isfinite(factor) and factor >= 0, f"learning-rate factor {factor}"
        for group in self.param_groups:
            group["lr"] = group["base_lr"] * factor

    def step(self, skip: Tensor | None = None) -> None:
        """Move every parameter that has a gradient, once.

        Where `skip` is given, a scalar float32 tensor on the parameters' device, nothing at all is changed if it is 1.
        Muon and fused AdamW go by it there. The host waits for it and looks before the step of any other kind, and
        before the first, since an optimizer that has not moved yet has no state to leave alone.
        """
        looked: bool | None = None
        for optimizer in self._optimizers:
            if skip is None:
                optimizer.step()
            elif optimizer.state and getattr(optimizer, "_step_supports_amp_scaling", False):
                _step_unless(optimizer, skip)
            else:
                looked = bool(skip) if looked is None else looked
                if not looked:
                    optimizer.step()
        # Fused kernels change weights without telling autograd, and copies of weights go by its counters.
        torch.autograd.graph.increment_version(self.parameters())

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that training has changed here: tensors by "<parameter>/<state key>", and a JSON-ready dict of the rest.

        The tensors are the optimizers' own, not copies: write them out before the next step.
        """
        tensors: dict[str, Tensor] = {}
        parameters: dict[str, dict[str, Any] | None] = {}
        for optimizer, _, name, parameter in self._each():
            state = optimizer.state.get(parameter)
            if not state:
                parameters[name] = None
                continue
            scalars: dict[str, Any] = {}
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim() > 0:
                    tensors[f"{name}/{key}"] = value.detach().contiguous()
                else:
                    scalars[key] = value.item() if isinstance(value, Tensor) else value
            parameters[name] = scalars
        groups = {group["role"]: _options(group) for group in self.param_groups}
        return tensors, {"kind": self.kind, "groups": groups, "parameters": parameters}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Become the set that `state` described, bit for bit; rates and other settings come back as they were saved.

        Raises ValueError, with names, before anything is changed: another kind of optimizer; groups, settings,
        parameters or tensors that are missing or surplus; a shape or dtype that does not fit.
        """
        _same("optimizer state", {"kind", "groups", "parameters"}, values)
        if values["kind"] != self.kind:
            raise ValueError(f"the saved optimizer is {values['kind']!r}, this one is {self.kind!r}")
        _same("optimizer groups", [group["role"] for group in self.param_groups], values["groups"])
        counters = self._counters(values["groups"])
        _same("optimizer parameters", [name for _, _, name, _ in self._each()], values["parameters"])
        restored = self._restored(tensors, values)
        for group in self.param_groups:
            saved = values["groups"][group["role"]]
            for key in counters:
                group.pop(key, None)
            group.update({key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()})
        for optimizer, _, name, parameter in self._each():
            optimizer.state.pop(parameter, None)
            if (state := restored[name]) is not None:
                optimizer.state[parameter] = state

    def _counters(self, saved_groups: Mapping[str, Mapping[str, Any]]) -> set[str]:
        """The settings that optimizers add to their groups at the first step, after a check of all settings."""
        counters: set[str] = set()
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                stepped = _twin(optimizer, group, torch.zeros(2, 2)).param_groups[0]
                added = stepped.keys() - optimizer.defaults.keys() - _IDENTITY - _IMPLEMENTATION - {"base_lr"}
                saved = saved_groups[group["role"]].keys()
                # A state from before the first step has none of them, one from after it may have all.
                _same(f"optimizer group {group['role']!r}", _options(stepped).keys() - (added - saved), saved)
                counters |= added
        return counters

    def _restored(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
        restored: dict[str, dict[str, Any] | None] = {}
        expected: set[str] = set()
        templates: dict[tuple[Any, ...], dict[str, _Slot]] = {}
        for optimizer, group, name, parameter in self._each():
            scalars = values["parameters"][name]
            if scalars is None:
                restored[name] = None
                continue
            shape = (group["role"], parameter.shape, parameter.dtype, parameter.device)
            if shape not in templates:
                templates[shape] = _template(optimizer, group, parameter)
            template = templates[shape]
            large = {key for key, slot in template.items() if slot.is_large}
            expected |= {f"{name}/{key}" for key in large}
            _same(f"optimizer state of {name!r}", template.keys() - large, scalars)
            restored[name] = {
                key: _filled(f"{name}/{key}", slot, tensors.get(f"{name}/{key}"), scalars.get(key))
                for key, slot in template.items()
            }
        _same("optimizer tensors", expected, tensors)
        return restored

    def _each(self) -> Iterator[tuple[torch.optim.Optimizer, dict[str, Any], str, nn.Parameter]]:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                for name, parameter in zip(group["names"], group["params"], strict=True):
                    yield optimizer, group, name, parameter


def _step_unless(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    # By the attribute through which torch.amp.GradScaler tells a fused optimizer of an overflow.
    flagged = cast(Any, optimizer)
    flagged.found_inf = skip
    try:
        flagged.step()
    finally:
        del flagged.found_inf


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in group.items()
        if key not in _IDENTITY | _IMPLEMENTATION
    }


def _twin(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], like: Tensor) -> torch.optim.Optimizer:
    """Such an optimizer after one step on a parameter of zeros: what it keeps is asked of the optimizer itself."""
    stand_in = nn.Parameter(torch.zeros_like(like))
    stand_in.grad = torch.zeros_like(like)
    make = cast(Any, type(optimizer))
    twin: torch.optim.Optimizer = make([{**group, "params": [stand_in]}])
    twin.step()
    return twin


def _template(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameter: nn.Parameter) -> dict[str, _Slot]:
    twin = _twin(optimizer, group, parameter)
    [stand_in] = twin.param_groups[0]["params"]
    state = twin.state.get(stand_in, {})
    return {key: _slot(value) for key, value in state.items()}


def _slot(value: object) -> _Slot:
    if isinstance(value, Tensor):
        return _Slot(tuple(value.shape), value.dtype, value.device)
    return _Slot(None, None, None)


def _filled(name: str, slot: _Slot, tensor: Tensor | None, scalar: object) -> object:
    if slot.dtype is None:
        return scalar
    if not slot.is_large:
        return torch.tensor(scalar, dtype=slot.dtype, device=slot.device)
    if tensor is None:
        return None  # told later, together with all other missing names
    if tuple(tensor.shape) != slot.shape or tensor.dtype != slot.dtype:
        raise ValueError(
            f"optimizer tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}, expected {slot.dtype} {slot.shape}"
        )
    return tensor.to(device=slot.device, copy=True)


def _same(what: str, expected: Iterable[str], found: Iterable[str]) -> None:
    wanted, present = set(expected), set(found)
    faults = []
    if missing := sorted(wanted - present):
        faults.append(
            f"missing {', '.join(missing[:5])}" + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        )
    if surplus := sorted(present - wanted):
        faults.append(
            f"surplus {', '.join(surplus[:5])}" + (f" and {len(surplus) - 5} more" if len(surplus) > 5 else "")
        )
    if faults:
        raise ValueError(f"{what}: {'; '.join(faults)}")
