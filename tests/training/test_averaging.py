"""The moving average of the weights against its definition, its exact swap and its exact return."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from farthing.training.averaging import Averaged


def model() -> nn.Linear:
    made = nn.Linear(3, 2)
    with torch.no_grad():
        made.weight.fill_(1.0)
        made.bias.fill_(-1.0)
    return made


def walk(made: nn.Module, steps: range) -> list[float]:
    """Set the weights to the step's number; enough to know what the average must be."""
    with torch.no_grad():
        for step in steps:
            for parameter in made.parameters():
                parameter.fill_(float(step))
    return [float(step) for step in steps]


def average_of(averaged: Averaged) -> Tensor:
    return averaged.state()[0]["weight"]


def test_average_follows_its_definition_with_the_decay_warmed_up() -> None:
    made = model()
    averaged = Averaged(made.named_parameters(), 0.9)
    expected = 1.0
    for t in range(200):
        walk(made, range(t, t + 1))
        averaged.update()
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * t
        torch.testing.assert_close(average_of(averaged), torch.full((2, 3), expected))
    assert averaged.updates == 200


def test_initial_weights_are_forgotten_early() -> None:
    made = model()
    averaged = Averaged(made.named_parameters(), 0.9999)
    walk(made, range(5, 6))
    for _ in range(20):
        averaged.update()
    assert (average_of(averaged) - 5).abs().max() < 0.01


def test_swap_shows_the_average_and_returns_the_weights_bit_for_bit() -> None:
    made = nn.Linear(3, 2)
    averaged = Averaged(made.named_parameters(), 0.9)
    with torch.no_grad():
        made.weight.add_(torch.randn(2, 3))
    averaged.update()
    own, average = made.weight.detach().clone(), average_of(averaged).clone()
    place = made.weight.data_ptr()
    with averaged.swapped():
        assert torch.equal(made.weight, average)
    assert torch.equal(made.weight, own)
    assert torch.equal(average_of(averaged), average)
    assert made.weight.data_ptr() == place
    with pytest.raises(RuntimeError, match="stop"), averaged.swapped():
        raise RuntimeError("stop")
    assert torch.equal(made.weight, own)


def test_swapped_model_cannot_be_mistaken_for_its_own() -> None:
    averaged = Averaged(model().named_parameters(), 0.9)
    with averaged.swapped():
        for forbidden in (averaged.update, averaged.state, lambda: averaged.swapped().__enter__()):
            with pytest.raises(AssertionError):
                forbidden()


def test_resumed_average_is_bit_for_bit_the_uninterrupted_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    moves = torch.randn(20, 2, 3)

    def run(made: nn.Linear, averaged: Averaged, steps: range) -> None:
        for step in steps:
            with torch.no_grad():
                made.weight.add_(moves[step])
            averaged.update()

    whole, made = model(), model()
    whole_average = Averaged(whole.named_parameters(), 0.8)
    run(whole, whole_average, range(20))
    first = Averaged(made.named_parameters(), 0.8)
    run(made, first, range(9))
    tensors, values = first.state()
    save_file(tensors, tmp_path / "average.safetensors")
    (tmp_path / "average.json").write_text(json.dumps(values))
    second = Averaged(made.named_parameters(), 0.8)
    second.load_state(load_file(tmp_path / "average.safetensors"), json.loads((tmp_path / "average.json").read_text()))
    run(made, second, range(9, 20))
    assert torch.equal(average_of(second), average_of(whole_average))
    assert second.updates == 20


def test_average_that_does_not_fit_is_refused_by_name() -> None:
    averaged = Averaged(model().named_parameters(), 0.9)
    tensors, values = averaged.state()
    bias = {"bias": tensors["bias"]}
    for saved, message in (
        (bias, "missing weight"),
        ({**tensors, "scale": torch.ones(1)}, "surplus scale"),
        ({**bias, "weight": torch.ones(3, 2)}, "'weight'.*expected"),
        ({**bias, "weight": torch.ones(2, 3, dtype=torch.float64)}, "'weight'.*expected"),
    ):
        with pytest.raises(ValueError, match=message):
            averaged.load_state(saved, values)
    with pytest.raises(ValueError, match="number of updates"):
        averaged.load_state(tensors, {})


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_decay_must_lie_between(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        Averaged(model().named_parameters(), decay)
