"""Number formats: what autocast computes in, and a loss scaler whose state survives a stop."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from farthing.optim.build import build_optimizer
from farthing.optim.optimizer_set import OptimizerSet
from farthing.recipe.optimization import Sgd
from farthing.training.precision import Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_products_are_in_the_format_and_weights_are_not(name: Any, dtype: torch.dtype) -> None:
    layer = nn.Linear(3, 2)
    with Precision(name, CPU).autocast():
        assert layer(torch.ones(1, 3)).dtype == dtype
    assert layer.weight.dtype == torch.float32


def one_weight() -> tuple[nn.Linear, OptimizerSet]:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimizer = build_optimizer(Sgd(lr=1.0), layer.named_parameters(), {"weight": "matrix"})
    optimizer.set_factor(1.0)
    return layer, optimizer


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_the_update_does_not_depend_on_the_scale(name: Any) -> None:
    layer, optimizer = one_weight()
    precision = Precision(name, CPU)
    precision.scale(3 * layer(torch.full((1, 1), 0.25)).sum()).backward()
    precision.unscale(optimizer)
    assert layer.weight.grad is not None and layer.weight.grad.item() == pytest.approx(0.75)


def test_fp16_halves_its_scale_after_an_overflow_and_remembers_it() -> None:
    layer, optimizer = one_weight()
    precision = Precision("fp16", CPU)
    precision.scale(layer(torch.ones(1, 1)).sum()).backward()
    before = precision.state()["scale"]
    assert layer.weight.grad is not None
    layer.weight.grad.fill_(float("inf"))
    precision.unscale(optimizer)
    precision.update()
    saved = json.loads(json.dumps(precision.state()))
    assert saved["scale"] == before / 2
    again = Precision("fp16", CPU)
    again.load_state(saved)
    assert again.state() == saved
    # The factor at work is the saved one, not only the one that is told.
    assert again.scale(torch.ones(())).item() == before / 2


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_without_a_scaler_there_is_no_state(name: Any) -> None:
    precision = Precision(name, CPU)
    assert precision.state() == {}
    precision.load_state({})
    assert precision.scale(torch.tensor(2.0)).item() == 2.0
