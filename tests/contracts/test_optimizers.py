"""What every optimizer of the recipe's union must do, on every device at hand.

The union is read, not copied: a kind that is added to it and to build.py is tested here without a change. If it has
options that are off by default and keep state (momentum, say), name them in SWITCHED_ON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from farthing.optim.build import build_optimizer
from farthing.optim.memory import state_bytes
from farthing.optim.optimizer_set import OptimizerSet
from farthing.optim.roles import Role, decayed_roles
from farthing.recipe.optimization import AnyOptimizer

SECTIONS = {cls.model_fields["kind"].default: cls for cls in get_args(get_args(AnyOptimizer)[0])}
SWITCHED_ON: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True},
    "rmsprop": {"momentum": 0.9},
    "muon": {"rest": {"weight_decay": 0.1}},
}
# Both ways in which Muon may orthogonalise; other kinds do not care.
VARIANTS = [(kind, bf16) for kind in SECTIONS for bf16 in ((False, True) if kind == "muon" else (False,))]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

every_optimizer = pytest.mark.parametrize(("kind", "bf16"), VARIANTS, ids=[f"{k}{'-bf16' * b}" for k, b in VARIANTS])
every_device = pytest.mark.parametrize("device", DEVICES)

ROLES: dict[str, Role] = {
    "embed.weight": "embedding",
    "norm.weight": "vector",
    "up.weight": "matrix",
    "up.bias": "vector",
    "down.weight": "matrix",
    "head.weight": "head",
}
VOCABULARY, WIDTH = 11, 6
INPUTS = torch.arange(44) % VOCABULARY
TARGETS = (INPUTS * 3 + 1) % VOCABULARY


class Toy(nn.Module):
    """The least model that has a parameter of every role, with both tall and wide matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.05)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))))


def section(kind: str, **options: Any) -> AnyOptimizer:
    return SECTIONS[kind](**{"weight_decay": 0.1, "weight_decay_on": "all"} | SWITCHED_ON.get(kind, {}) | options)


def build(model: nn.Module, kind: str, bf16: bool = False, **options: Any) -> OptimizerSet:
    return build_optimizer(section(kind, **options), model.named_parameters(), ROLES, bf16=bf16)


def loss(model: Toy) -> Tensor:
    device = model.head.weight.device
    return F.cross_entropy(model(INPUTS.to(device)), TARGETS.to(device))


def train(model: Toy, optimizers: OptimizerSet, steps: Iterable[int]) -> None:
    for step in steps:
        optimizers.set_factor(1.0 - step / 100)
        optimizers.zero_grad()
        loss(model).backward()
        optimizers.step()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def save(optimizers: OptimizerSet, model: nn.Module, folder: Path, name: str) -> None:
    tensors, values = optimizers.state()
    save_file(tensors, folder / f"{name}.optimizer.safetensors")
    save_file(weights(model), folder / f"{name}.model.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(values))


def load(optimizers: OptimizerSet, model: nn.Module, folder: Path, name: str) -> None:
    model.load_state_dict(load_file(folder / f"{name}.model.safetensors"))
    tensors = load_file(folder / f"{name}.optimizer.safetensors")
    optimizers.load_state(tensors, json.loads((folder / f"{name}.json").read_text()))


@every_device
@every_optimizer
def test_loss_falls_and_every_parameter_moves(kind: str, bf16: bool, device: str) -> None:
    model = Toy().to(device)
    optimizers = build(model, kind, bf16)
    first, before = loss(model).item(), weights(model)
    train(model, optimizers, range(30))
    assert loss(model).item() < 0.999 * first
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all()
        assert (parameter != before[name]).float().mean() > 0.9, name


@every_optimizer
def test_weight_decay_touches_what_was_asked_and_nothing_else(kind: str, bf16: bool) -> None:
    for where in ("matrices", "two_dimensional", "all"):
        moved = {}
        for decay in (0.0, 0.1):
            model = Toy()
            options: dict[str, Any] = {"weight_decay": decay, "weight_decay_on": where}
            if kind == "muon":
                options["rest"] = {"weight_decay": decay}
            train(model, build(model, kind, bf16, **options), range(1))
            moved[decay] = weights(model)
        decayed = decayed_roles(section(kind, weight_decay_on=where))
        for name, role in ROLES.items():
            assert torch.equal(moved[0.0][name], moved[0.1][name]) == (role not in decayed), f"{where}: {name}"


@every_optimizer
def test_rate_is_the_base_rate_times_the_factor(kind: str, bf16: bool) -> None:
    model = Toy()
    optimizers = build(model, kind, bf16)
    assert optimizers.lr == section(kind).lr
    assert {group.role for group in optimizers.groups()} == set(ROLES.values())
    optimizers.set_factor(0.5)
    optimizers.set_factor(0.25)
    assert all(group.lr == 0.25 * group.base_lr for group in optimizers.groups())
    assert optimizers.lr == 0.25 * section(kind).lr
    optimizers.set_factor(0.0)
    before = weights(model)
    loss(model).backward()
    optimizers.step()
    assert same(before, weights(model)), "a rate of 0 moves nothing, not even by weight decay"


@every_optimizer
def test_zero_grad_forgets_the_gradients(kind: str, bf16: bool) -> None:
    model = Toy()
    optimizers = build(model, kind, bf16)
    loss(model).backward()
    optimizers.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    before = weights(model)
    optimizers.step()
    assert same(before, weights(model))


@every_optimizer
def test_order_of_the_parameters_is_irrelevant(kind: str, bf16: bool) -> None:
    ends = []
    for turn in (1, -1):
        model = Toy()
        named = list(model.named_parameters())[::turn]
        optimizers = build_optimizer(section(kind), named, dict(list(ROLES.items())[::turn]), bf16=bf16)
        assert [id(p) for p in optimizers.parameters()] == [
            id(model.get_parameter(name)) for group in optimizers.groups() for name in group.names
        ]
        train(model, optimizers, range(3))
        ends.append((weights(model), [group.names for group in optimizers.groups()]))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


@every_optimizer
def test_parameter_without_a_role_is_named(kind: str, bf16: bool) -> None:
    roles = {name: role for name, role in ROLES.items() if name != "up.bias"}
    with pytest.raises(ValueError, match=r"no role for 'up\.bias'"):
        build_optimizer(section(kind), Toy().named_parameters(), roles, bf16=bf16)


@every_device
@every_optimizer
def test_state_survives_a_round_trip_and_the_run_goes_on_the_same(
    kind: str, bf16: bool, device: str, tmp_path: Path
) -> None:
    model = Toy().to(device)
    optimizers = build(model, kind, bf16)
    train(model, optimizers, range(4))
    save(optimizers, model, tmp_path, "half")
    train(model, optimizers, range(4, 8))

    other = Toy().to(device)
    resumed = build(other, kind, bf16)
    load(resumed, other, tmp_path, "half")
    assert resumed.lr == (1.0 - 3 / 100) * section(kind).lr
    train(other, resumed, range(4, 8))
    assert same(weights(model), weights(other))
    (tensors, values), (expected, expected_values) = resumed.state(), optimizers.state()
    assert same(tensors, expected)
    assert json.dumps(values, sort_keys=True) == json.dumps(expected_values, sort_keys=True)


@every_optimizer
def test_state_before_the_first_step_can_be_returned_to(kind: str, bf16: bool, tmp_path: Path) -> None:
    model = Toy()
    optimizers = build(model, kind, bf16)
    save(optimizers, model, tmp_path, "start")
    train(model, optimizers, range(3))
    once = weights(model)
    load(optimizers, model, tmp_path, "start")
    assert optimizers.state() == ({}, json.loads((tmp_path / "start.json").read_text()))
    train(model, optimizers, range(3))
    assert same(once, weights(model))


@every_optimizer
def test_loaded_state_is_a_copy(kind: str, bf16: bool) -> None:
    model = Toy()
    optimizers = build(model, kind, bf16)
    train(model, optimizers, range(2))
    tensors, values = optimizers.state()
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    other = Toy()
    resumed = build(other, kind, bf16)
    resumed.load_state(kept, values)
    train(other, resumed, range(2))
    assert same(kept, tensors)


@every_optimizer
def test_state_that_does_not_fit_is_refused_by_name_and_changes_nothing(kind: str, bf16: bool) -> None:
    model = Toy()
    optimizers = build(model, kind, bf16)
    train(model, optimizers, range(2))
    tensors, values = optimizers.state()
    name = next(name for name, tensor in tensors.items() if tensor.numel() > WIDTH)

    def refused(message: str, tensors: dict[str, Tensor] = tensors, **changed: Any) -> None:
        fresh = build(Toy(), kind, bf16)
        before = json.dumps(fresh.state()[1])
        with pytest.raises(ValueError, match=message):
            fresh.load_state(tensors, {**values, **changed})
        assert json.dumps(fresh.state()[1]) == before

    def without(mapping: dict[str, Any], key: str) -> dict[str, Any]:
        return {each: value for each, value in mapping.items() if each != key}

    role = optimizers.groups()[0].role
    refused(f"missing {name}", without(tensors, name))
    refused("surplus extra/exp_avg", {**tensors, "extra/exp_avg": torch.zeros(2)})
    refused(f"{name}.*expected", {**tensors, name: tensors[name][:-1]})
    refused(f"{name}.*float64", {**tensors, name: tensors[name].double()})
    refused("missing up.bias", parameters=without(values["parameters"], "up.bias"))
    refused("surplus extra", parameters={**values["parameters"], "extra": None})
    refused(f"missing {role}", groups=without(values["groups"], role))
    refused("missing lr", groups={**values["groups"], role: without(values["groups"][role], "lr")})
    refused("surplus heat", groups={**values["groups"], role: {**values["groups"][role], "heat": 1}})
    refused("saved optimizer is 'other'", kind="other")


@every_optimizer
def test_planned_memory_is_what_the_state_takes(kind: str, bf16: bool) -> None:
    model = Toy()
    optimizers = build(model, kind, bf16)
    train(model, optimizers, range(1))
    counts: dict[Role, int] = {}
    for name, parameter in model.named_parameters():
        counts[ROLES[name]] = counts.get(ROLES[name], 0) + parameter.numel()
    taken = sum(tensor.nbytes for tensor in optimizers.state()[0].values())
    if kind == "adafactor":
        assert taken >= state_bytes(section(kind), counts) > 0, "the estimate is for wide matrices, these are not"
    else:
        assert state_bytes(section(kind), counts) == taken


@every_device
@every_optimizer
def test_a_flagged_step_changes_nothing_and_an_unflagged_one_what_any_step_does(
    kind: str, bf16: bool, device: str
) -> None:
    """The flag stays on the device where the optimizer can go by it there; gradients may hold anything."""
    yes, no = torch.ones((), device=device), torch.zeros((), device=device)
    ends = []
    for flags in ((None, None, None, None), (no, yes, no, yes, no, no), (yes, no, no, yes, no, no)):
        model = Toy().to(device)
        optimizers = build(model, kind, bf16)
        for flag in flags:
            optimizers.set_factor(0.5)
            optimizers.zero_grad()
            loss(model).backward()
            before, (tensors, values) = weights(model), optimizers.state()
            kept, scalars = {name: tensor.clone() for name, tensor in tensors.items()}, json.dumps(values)
            if flag is yes:
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.grad[..., 0] = torch.nan
            optimizers.step(flag)
            if flag is yes:
                assert same(before, weights(model))
                assert same(kept, optimizers.state()[0])
                assert scalars == json.dumps(optimizers.state()[1])
        ends.append((weights(model), *optimizers.state()))
    for moved, tensors, values in ends[1:]:
        assert same(moved, ends[0][0])
        assert same(tensors, ends[0][1])
        assert json.dumps(values) == json.dumps(ends[0][2])


@every_optimizer
def test_loss_scaler_takes_the_set_for_one_optimizer(kind: str, bf16: bool) -> None:
    plain, scaled = Toy(), Toy()
    plain_set, scaled_set = build(plain, kind, bf16), build(scaled, kind, bf16)
    train(plain, plain_set, range(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled_set.set_factor(1.0)
    scaler.scale(loss(scaled)).backward()
    scaler.unscale_(scaled_set)
    scaler.step(scaled_set)
    scaler.update()
    for name, weight in weights(scaled).items():
        torch.testing.assert_close(weight, weights(plain)[name])

    before = weights(scaled)
    scaled_set.zero_grad()
    scaler.scale(loss(scaled)).backward()
    scaled.embed.weight.grad[0, 0] = torch.inf
    scaler.unscale_(scaled_set)
    scaler.step(scaled_set)
    scaler.update()
    assert same(before, weights(scaled)), "an overflow in one parameter skips the step of all"
    assert scaler.get_scale() == 512.0


def test_every_kind_goes_on_bit_for_bit_in_a_new_process(tmp_path: Path) -> None:
    expected = {}
    for kind, bf16 in VARIANTS:
        model = Toy()
        optimizers = build(model, kind, bf16)
        train(model, optimizers, range(4))
        save(optimizers, model, tmp_path, f"{kind}-{bf16}")
        train(model, optimizers, range(4, 8))
        expected[f"{kind}-{bf16}"] = weights(model)
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, timeout=300)
    for name, weight in expected.items():
        assert same(weight, load_file(tmp_path / f"{name}.end.safetensors")), name


def go_on(folder: Path) -> None:
    """What the new process does."""
    torch.set_num_threads(1)
    for kind, bf16 in VARIANTS:
        model = Toy()
        optimizers = build(model, kind, bf16)
        load(optimizers, model, folder, f"{kind}-{bf16}")
        train(model, optimizers, range(4, 8))
        save_file(weights(model), folder / f"{kind}-{bf16}.end.safetensors")


if __name__ == "__main__":
    go_on(Path(sys.argv[1]))
