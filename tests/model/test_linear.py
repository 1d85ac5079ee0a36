"""Linear layers below fp32: copies of weights that are never stale and never made twice, and the products with them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from farthing.model.linear import Embedding, Linear, WeightGradient
from farthing.optim.build import build_optimizer
from farthing.optim.roles import Role
from farthing.optim.sharpness import perturbed
from farthing.recipe.optimization import AdamW, AdaptiveSam, AnyOptimizer, Sam
from farthing.training.averaging import Averaged

LAYOUTS: tuple[WeightGradient, ...] = get_args(WeightGradient)
KINDS = {cls.model_fields["kind"].default: cls for cls in get_args(get_args(AnyOptimizer)[0])}
ROLES: dict[str, Role] = {"inner.weight": "matrix", "inner.bias": "vector", "head.weight": "head"}
BF16 = 2.0**-8
"""distance from 1 to the next bf16 number, twice the worst rounding"""


class Two(nn.Module):
    """The least network with linear layers of two roles."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = Linear(6, 8, bias=True), Linear(8, 5, bias=False)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x).relu())

    def low(self) -> list[Tensor]:
        """What the layers compute with, in the format of the moment."""
        return [layer.low.of(layer.weight) for layer in (self.inner, self.head)]


def low_precision(dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    return torch.autocast("cpu", dtype)


def rows(seed: int = 2) -> Tensor:
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(seed))


def used(model: Two) -> Two:
    """The same after a training pass below fp32, so that copies of its weights are there."""
    with low_precision():
        loss = model(rows()).square().sum()
    loss.backward()
    return model


def assert_fresh(model: Two, dtype: torch.dtype = torch.bfloat16) -> None:
    with low_precision(dtype):
        found = model.low()
    for low, layer in zip(found, (model.inner, model.head), strict=True):
        assert torch.equal(low, layer.weight.to(dtype))
        assert not low.requires_grad


@contextmanager
def casts() -> Iterator[list[torch.Size]]:
    """The shapes of what is cast to a lower precision inside."""
    made: list[torch.Size] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.copy_.default:
                source, target = args[1], args[0]
            elif func is torch.ops.aten._to_copy.default:
                source, target = args[0], out
            else:
                return out
            if source.is_floating_point() and source.element_size() > target.element_size():
                made.append(target.shape)
            return out

    with Watch():
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_follows_every_optimizer(kind: str) -> None:
    model = used(Two())
    optimizer = build_optimizer(KINDS[kind](), model.named_parameters(), ROLES)
    optimizer.set_factor(1.0)
    before = [low.clone() for low in model.low()]
    for _ in range(3):
        optimizer.step()
        assert_fresh(model)
        optimizer.zero_grad()
        used(model)
    assert not any(torch.equal(old, new) for old, new in zip(before, model.low(), strict=True)), "nothing was moved"


def test_fused_optimizers_do_not_tell_that_they_moved_a_weight() -> None:
    # Why OptimizerSet.step does. If torch comes to tell by itself, that line can go.
    model = used(Two())
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()
    with low_precision():
        assert not torch.equal(model.inner.low.of(model.inner.weight), model.inner.weight.bfloat16())


@pytest.mark.parametrize("section", [Sam(rho=0.5), AdaptiveSam(rho=0.5)], ids=["sam", "asam"])
def test_a_copy_follows_a_perturbation_and_back(section: Sam | AdaptiveSam) -> None:
    model = used(Two())
    with low_precision():
        before = [low.clone() for low in model.low()]
    with perturbed(model.parameters(), section) as moved:
        assert moved
        assert_fresh(model)
        with low_precision():
            assert not any(torch.equal(old, new) for old, new in zip(before, model.low(), strict=True))
    assert_fresh(model)


def test_a_copy_follows_an_averages_swap_and_back() -> None:
    model = Two()
    average = Averaged(model.named_parameters(), 0.5)
    optimizer = build_optimizer(AdamW(lr=0.5), model.named_parameters(), ROLES)
    used(model)
    optimizer.step()
    used(model)
    with average.swapped():
        assert_fresh(model)
        average_low = [low.clone() for low in model.low()]
    assert_fresh(model)
    assert not any(torch.equal(old, new) for old, new in zip(average_low, model.low(), strict=True))


@pytest.mark.parametrize("assign", [False, True])
def test_a_copy_follows_a_loaded_state(assign: bool) -> None:
    model, other = used(Two()), Two()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(3.0)
    model.load_state_dict(other.state_dict(), assign=assign)
    assert_fresh(model)
    assert torch.equal(model.inner.weight, other.inner.weight)


def test_a_copy_follows_a_parameter_that_is_put_in_its_place() -> None:
    model = used(Two())
    for _ in range(3):
        replacement = nn.Parameter(torch.randn(8, 6))
        # Of the same age as the old one: only which tensor it is tells them apart.
        while replacement._version < model.inner.weight._version:
            with torch.no_grad():
                replacement.add_(1.0)
        model.inner.weight = replacement
        assert_fresh(model)


def test_a_copy_follows_a_move_to_another_format() -> None:
    model = used(Two())
    model.double()
    used(model)
    assert_fresh(model)
    with torch.no_grad():
        model.inner.weight.add_(1.0)
    model.float()
    assert_fresh(model)
    assert_fresh(model, torch.float16)
    assert_fresh(model)


def test_a_copy_that_was_made_for_inference_serves_training() -> None:
    model, expected = Two(), used(Two())
    with torch.inference_mode(), low_precision():
        assert model(rows()).is_inference()
    used(model)
    assert_fresh(model)
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, other.grad)
    # And one that was made in training is brought up to date in inference.
    with torch.no_grad():
        model.inner.weight.add_(1.0)
    with torch.inference_mode():
        assert_fresh(model)
    used(model)


def test_weights_are_cast_once_for_all_micro_batches_of_a_step() -> None:
    model = Two()
    optimizer = build_optimizer(AdamW(), model.named_parameters(), ROLES)
    weights = [model.inner.weight.shape, model.head.weight.shape]
    for _ in range(3):
        with casts() as made:
            for seed in range(4):
                with low_precision():
                    loss = model(rows(seed)).square().sum()
                loss.backward()
        assert [shape for shape in made if shape in weights] == weights
        optimizer.step()
        optimizer.zero_grad()


def test_where_nothing_has_changed_the_copy_is_the_same_tensor_untouched() -> None:
    model = used(Two())
    with low_precision():
        first = model.low()
        versions = [low._version for low in first]
        again = model.low()
    assert all(old is new for old, new in zip(first, again, strict=True))
    assert [low._version for low in again] == versions
    with torch.no_grad():
        model.head.weight.add_(1.0)
    with low_precision():
        inner, head = model.low()
    # Changed in place: the memory is that of one copy for good.
    assert inner._version == versions[0]
    assert (head is first[1], head._version > versions[1]) == (True, True)


def test_without_autocast_the_parameter_itself_is_used() -> None:
    model = Two()
    assert model.inner.low.of(model.inner.weight) is model.inner.weight
    x = rows()
    assert torch.equal(model.inner(x), F.linear(x, model.inner.weight, model.inner.bias))
    with torch.autocast("cpu", torch.bfloat16, enabled=False), casts() as made:
        model(x)
    assert made == []
    model.bfloat16()
    with low_precision():
        assert model.inner.low.of(model.inner.weight) is model.inner.weight


def test_a_backward_with_a_weight_that_has_changed_since_is_refused() -> None:
    model = used(Two())
    with low_precision():
        loss = model(rows()).sum()
    with torch.no_grad():
        model.head.weight.add_(1.0)
    assert_fresh(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_copies_are_no_part_of_a_models_state() -> None:
    plain, model = Two(), used(Two())
    assert model.state_dict().keys() == plain.state_dict().keys() == dict(model.named_parameters()).keys()
    assert list(model.buffers()) == []
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in model.state_dict().items())
    table = Embedding(4, 3)
    assert list(table.state_dict()) == ["weight"]
    assert sum(parameter.numel() for parameter in [*model.parameters(), *table.parameters()]) == 8 * 6 + 8 + 40 + 12


def test_a_copied_model_has_copies_of_its_own() -> None:
    model = used(Two())
    twin = copy.deepcopy(model)
    assert_fresh(twin)
    with torch.no_grad():
        twin.inner.weight.add_(1.0)
    assert_fresh(twin)
    assert_fresh(model)
    assert twin.inner.low.of(twin.inner.weight).data_ptr() != model.inner.low.of(model.inner.weight).data_ptr()


def test_a_copied_models_weights_may_change_before_its_first_use() -> None:
    model = Two()
    while model.inner.weight._version < 3:
        with torch.no_grad():
            model.inner.weight.add_(1.0)
    twin = copy.deepcopy(used(model))
    # A new parameter counts its changes from 0, so it comes to be as old as the other was.
    while twin.inner.weight._version < model.inner.weight._version:
        with torch.no_grad():
            twin.inner.weight.add_(1.0)
    assert_fresh(twin)


shapes = st.lists(st.integers(1, 9), min_size=1, max_size=2)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    before=shapes, inputs=st.integers(1, 24), outputs=st.integers(1, 24), bias=st.booleans(), seed=st.integers(0, 99)
)
def test_products_are_those_of_torch_under_autocast(
    layout: WeightGradient, before: list[int], inputs: int, outputs: int, bias: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = Linear(inputs, outputs, bias=bias, weight_gradient=layout)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    x = torch.randn(*before, inputs, generator=generator)
    dy = torch.randn(*before, outputs, generator=generator)

    def both(ours: bool, low: bool) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            y = layer(leaf) if ours else F.linear(leaf, layer.weight, layer.bias)
        layer.zero_grad()
        y.backward(dy.to(y.dtype))
        gradients = [leaf.grad, *(parameter.grad for parameter in layer.parameters())]
        assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)
        return [y.detach(), *(gradient.clone() for gradient in gradients if gradient is not None)]

    exact, torchs, ours = both(False, False), both(False, True), both(True, True)
    assert (ours[0].dtype, ours[0].shape) == (torch.bfloat16, (*before, outputs))
    assert torch.equal(ours[0], torchs[0])
    for reference, theirs, found in zip(exact, torchs, ours, strict=True):
        # Both factors and the product are rounded once, each by half of BF16 at most; a sum of such products may
        # cancel, so its size is that of its terms, and that is what normal numbers are.
        terms = max(before[0] * (before[1] if len(before) > 1 else 1), inputs, outputs) ** 0.5
        torch.testing.assert_close(found.float(), reference, rtol=2 * BF16, atol=4 * BF16 * terms)
        torch.testing.assert_close(found.float(), theirs.float(), rtol=2 * BF16, atol=4 * BF16 * terms)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_gradients_that_are_wanted_are_computed(layout: WeightGradient) -> None:
    layer = Linear(6, 8, bias=True, weight_gradient=layout)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    x = rows().requires_grad_()
    layer.weight.requires_grad_(False)
    with low_precision():
        # The gradient of a sum is one number, seen at every place.
        layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None and torch.equal(layer.bias.grad, torch.full((8,), 7.0))
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(7, 6), rtol=2 * BF16, atol=8 * BF16)
    layer.weight.requires_grad_(True)
    with low_precision():
        layer(rows()).sum().backward()
    torch.testing.assert_close(layer.weight.grad, rows().sum(0).expand(8, 6), rtol=2 * BF16, atol=8 * BF16)
