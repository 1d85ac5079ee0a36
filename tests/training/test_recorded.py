"""Recorded passes: when there may be any, what becomes of one that fails, and that steps stay what they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from farthing.data.batches import IGNORED, Batch
from farthing.model.gpt import GPT, build_model
from farthing.optim.build import build_optimizer
from farthing.recipe import Model
from farthing.recipe.optimization import AdamW, NoSharpness, Objective, Sam
from farthing.training import recorded
from farthing.training.precision import Precision
from farthing.training.recorded import Recorder, Recording, Run, obstacle
from farthing.training.step import Stepper

VOCABULARY, T = 19, 8
GPU, CPU = torch.device("cuda"), torch.device("cpu")


def section(**changes: Any) -> Model:
    return Model.model_validate({"n_layer": 2, "n_head": 2, "d_model": 16, "context_length": T, **changes})


def stepper(device: torch.device, *, precision: Any = "bf16", **more: Any) -> Stepper:
    model = build_model(section(), VOCABULARY, seed=3).to(device)
    optimizer = build_optimizer(AdamW(lr=1e-2), model.named_parameters(), model.roles())
    return Stepper(
        model=model,
        hidden=model.hidden,
        optimizer=optimizer,
        section=Objective(),
        sharpness=NoSharpness(),
        precision=Precision(precision, device),
        device=device,
        batch_size=12,
        micro_batch=4,
        gradient_clip=1.0,
        **more,
    )


def batch(seed: int, windows: int = 12, short: int = 0) -> Batch:
    random = np.random.default_rng(seed)
    inputs_BT, targets_BT = (random.integers(0, VOCABULARY, (windows, T)) for _ in range(2))
    targets_BT[-1, T - short :] = IGNORED
    return Batch(inputs_BT, targets_BT, None, windows * T - short, windows)


def test_what_may_be_recorded() -> None:
    plain: tuple[Any, ...] = (section(), Objective(), NoSharpness(), "bf16", GPU)
    assert obstacle(*plain) is None
    for place, other in [
        (0, section(dropout=0.1)),
        (0, section(attention={"scope": "document"})),
        (1, Objective(r_drop=1.0)),
        (2, Sam()),
        (3, "fp16"),
        (4, CPU),
        (4, torch.device("mps")),
    ]:
        changed = list(plain)
        changed[place] = other
        assert obstacle(*changed), other


def test_a_processor_records_nothing() -> None:
    assert stepper(CPU, graphs=True)._recorder is None


# Steps of which some are short in tokens, in windows, or cut otherwise because memory ran out.
STORY = [(batch(1), 4), (batch(2), 4), (batch(3), 4), (batch(4, short=3), 4), (batch(5), 4), (batch(6), 5), (batch(7), 5),
         (batch(8), 5), (batch(9, windows=3), 5), (batch(10), 5)]  # fmt: skip


def story(made: Stepper) -> tuple[list[Any], list[Tensor]]:
    told = []
    for part, micro_batch in STORY:
        made.micro_batch = micro_batch
        told.append(made.take(part))
        assert all(parameter.grad is None for parameter in made.model.parameters())
    return told, [parameter.detach().cpu() for parameter in made.model.parameters()]


def install(made: Stepper, lines: list[str]) -> None:
    def run(inputs_BT: Tensor, targets_BT: Tensor, tokens: int) -> Tensor:
        return made._pass(inputs_BT, targets_BT, None, tokens)

    made._recorder = Recorder(run, made.model, autocast=made.precision.autocast, tell=lines.append)


def test_where_recording_fails_training_goes_on_plain_and_says_so_once() -> None:
    lines: list[str] = []
    made = stepper(CPU)
    install(made, lines)  # as if this were a GPU
    told, weights = story(made)
    expected_told, expected = story(stepper(CPU))
    assert told == expected_told
    assert all(torch.equal(one, other) for one, other in zip(weights, expected, strict=True))
    [line] = lines
    assert line.startswith("a step's pass could not be recorded as a CUDA graph (")


class Rerun(Recording):
    """A recording's bookkeeping without a graph: it takes the pass again, on the same gradients."""

    made: list[tuple[int, int]] = []

    def __init__(self, run: Run, model: GPT, inputs_BT: Tensor, targets_BT: Tensor, tokens: int) -> None:
        self._parameters = list(model.parameters())
        self._gradients = [torch.full_like(parameter, torch.nan) for parameter in self._parameters]
        self.places = recorded._places(model)
        self._run, self._tokens = run, tokens
        self.made.append((len(inputs_BT), tokens))

    def replay(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return self._run(inputs_BT, targets_BT, self._tokens)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_with_gradients_that_stay_are_the_same_steps(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "Recording", Rerun)
    monkeypatch.setattr(Rerun, "made", [])
    made = stepper(CPU, precision=precision)
    lines: list[str] = []
    install(made, lines)
    told, weights = story(made)
    expected_told, expected = story(stepper(CPU, precision=precision))
    assert not lines
    assert told == expected_told
    assert all(torch.equal(one, other) for one, other in zip(weights, expected, strict=True))
    # Once for each size of micro-batch: an odd step in between costs no second recording.
    assert Rerun.made == [(4, 96), (5, 96)]


def test_a_recording_is_made_anew_when_a_tensor_that_it_reads_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "Recording", Rerun)
    monkeypatch.setattr(Rerun, "made", [])
    made = stepper(CPU)
    install(made, [])
    for number in range(3):
        made.take(batch(number))
    made.model.embed.weight.data = made.model.embed.weight.detach().clone()
    for number in range(3):
        made.take(batch(number))
    assert len(Rerun.made) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_recorded_steps_are_plain_steps_bit_for_bit(precision: Any) -> None:
    lines: list[Any] = []
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        told, weights = story(
            stepper(GPU, precision=precision, graphs=True, tell=lambda code, line: lines.append((code, line)))
        )
        expected_told, expected = story(stepper(GPU, precision=precision))
    finally:
        torch.use_deterministic_algorithms(False)
    assert not lines
    assert told == expected_told
    assert all(torch.equal(one, other) for one, other in zip(weights, expected, strict=True))
