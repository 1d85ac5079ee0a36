"""C06: one optimizer step is the same however it is cut into micro-batches, also where they differ in tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from farthing.data.batches import IGNORED, Batch
from farthing.model.gpt import build_model
from farthing.optim.build import build_optimizer
from farthing.recipe import Model
from farthing.recipe.optimization import AdamW, AdaptiveSam, AnyOptimizer, Muon, NoSharpness, Objective, Sam, Sgd
from farthing.runtime.device import is_out_of_memory
from farthing.training.objective import Loss
from farthing.training.precision import Precision
from farthing.training.step import Abandoned, OutOfMemory, Stepper

VOCABULARY, T = 19, 8
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def stepper(
    micro_batch: int,
    *,
    sharpness: Any = None,
    dtype: torch.dtype = torch.float32,
    optimized: AnyOptimizer | None = None,
    precision: Any = "fp32",
    clip: float | None = None,
    unseen: bool | None = None,
    device: str = "cpu",
    **objective: Any,
) -> Stepper:
    section = Model(n_layer=2, n_head=2, d_model=16, context_length=T)
    model = build_model(section, VOCABULARY, seed=3, attention="math").to(device, dtype)
    optimizer = build_optimizer(optimized or Sgd(lr=0.5), model.named_parameters(), model.roles())
    optimizer.set_factor(1.0)
    return Stepper(
        model=model,
        hidden=model.hidden,
        optimizer=optimizer,
        section=Objective(**objective),
        sharpness=sharpness or NoSharpness(),
        precision=Precision(precision, torch.device(device)),
        device=torch.device(device),
        batch_size=12,
        micro_batch=micro_batch,
        gradient_clip=clip,
        unseen=unseen,
    )


def ragged(windows: int = 12) -> Batch:
    """Windows of very different numbers of targets, as the last ones of an epoch and masked ones are."""
    random = np.random.default_rng(5)
    inputs_BT = random.integers(0, VOCABULARY, (windows, T))
    targets_BT = random.integers(0, VOCABULARY, (windows, T))
    for row in range(windows):
        targets_BT[row, 1 + (5 * row) % T :] = IGNORED
    return Batch(inputs_BT, targets_BT, None, int((targets_BT != IGNORED).sum()), windows)


def moved(micro_batch: int, batch: Batch, **more: Any) -> tuple[torch.Tensor, Any]:
    made = stepper(micro_batch, **more)
    taken = made.take(batch)
    return torch.cat([parameter.detach().flatten() for parameter in made.model.parameters()]), taken


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 5, 6, 7, 11])
@pytest.mark.parametrize(
    "more", [{}, {"label_smoothing": 0.1, "z_loss": 1e-2}, {"r_drop": 1.0}, {"sharpness": Sam()}, {"sharpness": AdaptiveSam()}]
)  # fmt: skip
def test_C06_accumulation_is_exact(micro_batch: int, more: dict[str, Any]) -> None:
    batch = ragged()
    whole, told = moved(12, batch, dtype=torch.float64, **more)
    cut, told_cut = moved(micro_batch, batch, dtype=torch.float64, **more)
    start = torch.cat([p.detach().flatten() for p in stepper(12, dtype=torch.float64).model.parameters()])
    step = (whole - start).norm()
    assert step > 1e-3
    # The objective is in float32 whatever the model's format; beyond its rounding there is no difference.
    assert (whole - cut).norm() / step < 1e-6
    assert told_cut.loss == pytest.approx(told.loss, rel=1e-6)
    assert told_cut.gradient_norm == pytest.approx(told.gradient_norm, rel=1e-5)
    assert told_cut.tokens == told.tokens == batch.tokens


def test_C06_in_float32_too() -> None:
    whole, _ = moved(12, ragged())
    for micro_batch in (3, 6):
        cut, _ = moved(micro_batch, ragged())
        torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-7)


def test_a_batch_of_ragged_micro_batches_with_one_that_scores_nothing() -> None:
    batch = ragged()
    batch.targets_BT[:3] = IGNORED
    batch = batch.rows(0, 12)
    whole, _ = moved(12, batch, dtype=torch.float64)
    cut, _ = moved(3, batch, dtype=torch.float64)
    torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-9)


def test_the_gradients_norm_is_told_before_clipping_and_bounded_after() -> None:
    free, told = moved(12, ragged())
    clipped = stepper(12)
    clipped._clip = told.gradient_norm / 4
    start = torch.cat([p.detach().flatten() for p in clipped.model.parameters()])
    again = clipped.take(ragged())
    end = torch.cat([p.detach().flatten() for p in clipped.model.parameters()])
    assert again.gradient_norm == told.gradient_norm
    torch.testing.assert_close(4 * (end - start), free - start, rtol=1e-3, atol=1e-5)


def everything(made: Stepper) -> dict[str, torch.Tensor]:
    """Weights and optimizer state, copied."""
    tensors, values = made.optimizer.state()
    counters = torch.tensor([state["step"] for state in values["parameters"].values() if state and "step" in state])
    return {
        name: x.detach().clone() for name, x in {**made.model.state_dict(), **tensors, "counters": counters}.items()
    }


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("clip", [None, 1e-3, 1e3])
@pytest.mark.parametrize("optimized", [Sgd(lr=0.5, momentum=0.9), AdamW(lr=1e-2, weight_decay=0.1), Muon(lr=1e-2)])
def test_a_step_is_the_same_whether_or_not_the_host_looks_before_the_update(
    optimized: AnyOptimizer, clip: float | None, precision: Any
) -> None:
    """Also where a gradient is not finite, in the first step or later: nothing moves then."""
    stories = []
    for unseen in (False, True):
        made = stepper(5, optimized=optimized, clip=clip, precision=precision, unseen=unseen)
        genuine, told = made._loss, []
        for spoilt in (True, False, False, True, False):

            def loss(*rest: Any, spoilt: bool = spoilt, genuine: Any = genuine) -> Loss:
                found = genuine(*rest)
                return Loss(found.total * (torch.inf if spoilt else 1.0), found.nats)

            made._loss = loss  # type: ignore[method-assign]
            before = everything(made)
            taken = made.take(ragged())
            assert taken.skipped == spoilt or precision == "fp16"
            assert equal(before, everything(made)) == taken.skipped
            told.append((taken.loss, repr(taken.gradient_norm), taken.tokens, taken.lr, taken.skipped))
        stories.append((told, everything(made), made.precision.state()))
    assert stories[0][0] == stories[1][0]
    assert equal(stories[0][1], stories[1][1])
    assert stories[0][2] == stories[1][2]


def test_a_loss_that_is_not_finite_is_told_and_leaves_everything_as_it_was() -> None:
    for unseen in (False, True):
        made = stepper(12, optimized=AdamW(), unseen=unseen)
        made.take(ragged())
        before = everything(made)
        with torch.no_grad():
            made.model.embed.weight[0, 0] = torch.nan
        before["embed.weight"] = made.model.embed.weight.detach().clone()
        taken = made.take(ragged())
        assert taken.skipped and taken.loss != taken.loss
        after = everything(made)
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


@needs_cuda
@pytest.mark.parametrize("optimized", [AdamW(), Muon()])
def test_nothing_in_a_step_on_a_gpu_waits_before_all_of_it_is_queued(optimized: AnyOptimizer) -> None:
    made = stepper(5, optimized=optimized, clip=1.0, precision="bf16", device="cuda")
    batch = ragged()
    for _ in range(2):  # the first allocates, and looks
        made.take(batch)
    stacked = torch.stack

    def last(tensors: Any, *rest: Any, **more: Any) -> Any:
        if len(tensors) == 3 and tensors[0].dtype == torch.float64:
            torch.cuda.set_sync_debug_mode("default")
        return stacked(tensors, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "stack", last)
        torch.cuda.set_sync_debug_mode("error")
        try:
            taken = made.take(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert not taken.skipped


@pytest.mark.parametrize("sharpness", [NoSharpness(), Sam(), AdaptiveSam()])
@pytest.mark.parametrize("how", ["abandoned", "out of memory", "another error"])
def test_a_step_that_does_not_come_to_its_end_leaves_everything_as_it_was(sharpness: Any, how: str) -> None:
    passes = 1 if isinstance(sharpness, NoSharpness) else 2
    for at in range(1, 4 * passes):
        made = stepper(3, sharpness=sharpness)
        before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
        count = [0]
        genuine = made._loss

        def loss(*rest: Any, count: list[int] = count, at: int = at, genuine: Any = genuine) -> Loss:
            count[0] += 1
            if count[0] == at and how == "out of memory":
                raise torch.OutOfMemoryError("full")
            if count[0] == at and how == "another error":
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
            return genuine(*rest)

        made._loss = loss  # type: ignore[method-assign]
        made._stop_asked = lambda count=count, at=at: how == "abandoned" and count[0] >= at
        expected = {"abandoned": Abandoned, "out of memory": OutOfMemory, "another error": RuntimeError}[how]
        with pytest.raises(expected):
            made.take(ragged())
        after = made.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert all(parameter.grad is None for parameter in made.model.parameters())
        assert made.optimizer.state()[0] == {}


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (MemoryError(), True),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"
            ),
            True,
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: BaseException, full: bool) -> None:
    assert is_out_of_memory(error) == full
