"""Memory by term: what autograd keeps, to the byte; and the most that torch allocates in a real training step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

import farthing.model.memory as memory_module
from farthing.data.batches import Batch
from farthing.model.cost import count_parameters
from farthing.model.gpt import GPT, build_model
from farthing.model.linear import Embedding, Linear
from farthing.model.memory import (
    CHUNK_LOGITS,
    CPU_SLACK,
    lowered_weights,
    memory,
    rows_of_a_chunk,
    saved,
)
from farthing.optim.build import build_optimizer
from farthing.recipe.model import Model
from farthing.recipe.optimization import NoSharpness, Objective, Sgd
from farthing.training.precision import Precision
from farthing.training.step import Stepper
from model.combinations import CHOICES, section

V, B = 101, 3
CPU = torch.device("cpu")
COMMON = {"optimizer_bytes_per_parameter": 8.0, "ema": False}
MODELS = [section(choice, n_head=2, n_kv_head=1, d_model=64, context_length=48) for choice in CHOICES]
LONG = [model.model_copy(update={"context_length": length}) for model in MODELS[::7] for length in (300, 600)]


def low_copies(gpt: GPT) -> list[torch.Tensor]:
    copies = [module.low._copy for module in gpt.modules() if isinstance(module, Linear | Embedding)]
    return [copy for copy in copies if copy is not None]


def kept_by_autograd(model: Model, *, precision: str, attention: Any) -> int:
    gpt = build_model(model, V, seed=0, attention=attention)
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    rows = torch.zeros(B, model.context_length, dtype=torch.int64)
    segments = rows if model.attention.scope == "document" else None
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        gpt.hidden(rows, segments)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*gpt.parameters(), *low_copies(gpt)]}
    return sum(storage.nbytes() for place, storage in storages.items() if place not in own)


@pytest.mark.parametrize(
    "model", MODELS + LONG, ids=[str(number) for number in range(len(MODELS))] + [f"long{n}" for n in range(len(LONG))]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["sdpa", "math"])
def test_what_forward_keeps_is_counted(model: Model, precision: Any, attention: Any) -> None:
    kept = saved(model, micro_batch=B, precision=precision, attention=attention, device="cpu")
    assert kept.activations + kept.attention == kept_by_autograd(model, precision=precision, attention=attention)


def stepper(
    model: Model, vocabulary: int, *, precision: Any, attention: Any, micro_batch: int, r_drop: float
) -> Stepper:
    gpt = build_model(model, vocabulary, seed=0, attention=attention)
    # Of the optimizers that are not fused: it takes a copy of the parameter that it moves.
    sgd = Sgd(momentum=0.9, weight_decay=0.1, weight_decay_on="all")
    return Stepper(
        model=gpt,
        hidden=gpt.hidden,
        optimizer=build_optimizer(sgd, gpt.named_parameters(), gpt.roles()),
        section=Objective(r_drop=r_drop),
        sharpness=NoSharpness(),
        precision=Precision(precision, CPU),
        device=CPU,
        batch_size=2,
        micro_batch=micro_batch,
        gradient_clip=1.0,
    )


def batch_of(model: Model, vocabulary: int) -> Batch:
    draw = np.random.default_rng(0)
    inputs_BT, targets_BT = draw.integers(0, vocabulary, (2, 2, model.context_length))
    segments_BT = (inputs_BT == 0).cumsum(1) if model.attention.scope == "document" else None
    return Batch(inputs_BT, targets_BT, segments_BT, targets_BT.size, len(targets_BT))


def allocated(made: Stepper, batch: Batch) -> int:
    """Bytes that torch holds at the worst moment of a step after the first: its parameters and state, and what comes."""
    made.take(batch)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        made.take(batch)
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    tensors = [*made.model.parameters(), *low_copies(made.model), *made.optimizer.state()[0].values()]
    return int(held.max()) + sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize(
    ("length", "vocabulary", "micro_batch", "rows", "r_drop"),
    [
        (64, 3000, 2, 128, 0.0),  # in the loss, of one chunk
        (64, 3000, 2, 32, 0.0),  # in the last of several
        (64, 3000, 1, 32, 0.0),  # the same with gradients of an earlier micro-batch
        (64, 3000, 2, 128, 1.0),  # in the loss of two passes
        (300, 101, 1, 300, 0.0),  # in the last block's backward
        (512, 101, 2, 1024, 0.0),
        (16, 3000, 2, 32, 0.0),  # at the end
        (16, 3000, 1, 32, 0.0),
    ],
)
@pytest.mark.parametrize("number", range(0, len(CHOICES), 6))
@pytest.mark.parametrize(("precision", "attention"), [("fp32", "sdpa"), ("bf16", "math")])
def test_the_peak_of_a_step_is_predicted(
    number: int,
    precision: Any,
    attention: Any,
    length: int,
    vocabulary: int,
    micro_batch: int,
    rows: int,
    r_drop: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What a process takes besides is measured in tests/planning/test_memory_peak.py.
    monkeypatch.setattr(memory_module, "CPU_PROCESS", 0)
    monkeypatch.setattr(memory_module, "CPU_SLACK", dict.fromkeys(CPU_SLACK, 0.0))
    monkeypatch.setitem(CHUNK_LOGITS, "cpu", rows * vocabulary)
    model = section(CHOICES[number], n_head=2, n_kv_head=1, d_model=64, context_length=length)
    terms = memory(
        model,
        vocabulary,
        micro_batch=micro_batch,
        precision=precision,
        attention=attention,
        optimizer_bytes_per_parameter=4.0,
        ema=False,
        device="cpu",
        accumulate=micro_batch < 2,
        r_drop=r_drop > 0,
    )
    made = stepper(model, vocabulary, precision=precision, attention=attention, micro_batch=micro_batch, r_drop=r_drop)
    assert sum(terms.values()) == pytest.approx(allocated(made, batch_of(model, vocabulary)), rel=0.06)


def test_terms_answer_to_what_they_are_of() -> None:
    def terms(**changes: Any) -> dict[str, int]:
        request = {"micro_batch": 8, "precision": "fp32", "attention": "sdpa", "device": "cuda", **COMMON, **changes}
        return memory(request.pop("section", Model()), 4000, **request)

    base, parameters = terms(), count_parameters(Model(), 4000)
    assert set(base) == {"weights", "gradients", "optimizer", "activations", "attention", "logits", "workspace"}
    assert (base["weights"], base["optimizer"]) == (4 * parameters, 8 * parameters)
    assert terms(micro_batch=16)["activations"] == 2 * base["activations"]
    assert terms(micro_batch=16)["logits"] == 2 * base["logits"] == 2 * 2 * 4 * 8 * 256 * 4000
    assert terms(ema=True)["weights"] == 2 * base["weights"]
    assert terms(accumulate=True)["gradients"] == 4 * parameters
    assert terms(precision="bf16")["activations"] < base["activations"] < 2 * terms(precision="bf16")["activations"]
    # The copies in a low format hold every matrix and the head once, and no vector.
    low = terms(precision="bf16")["weights"] - base["weights"]
    assert low == lowered_weights(Model(), 4000, precision="fp16") == 2 * (6 * 12 * 384**2 + 4000 * 384)
    # Explicit attention keeps a weight for each pair of positions of a block instead of a sum for each position.
    pairs, sums = 6 * 4 * 8 * 6 * (128 * 128 + 128 * 256), 6 * 4 * 8 * 6 * 256
    assert terms(attention="math")["attention"] == base["attention"] + pairs - sums
    # With next to nothing kept, the peak is at the end of backward, where all gradients are.
    short = Model(context_length=8)
    tiny = terms(section=short, micro_batch=1)
    assert (tiny["gradients"], tiny["activations"]) == (4 * count_parameters(short, 4000), 0)


def test_logits_are_bounded_whatever_the_batch_and_the_vocabulary() -> None:
    def logits(vocabulary: int, micro_batch: int, **more: Any) -> int:
        request = {"precision": "bf16", "attention": "sdpa", "device": "cuda", **COMMON, **more}
        return memory(Model(), vocabulary, micro_batch=micro_batch, **request)["logits"]

    for vocabulary in (50_257, 200_000):
        for micro_batch in (16, 64, 256):
            assert logits(vocabulary, micro_batch) <= 8 * CHUNK_LOGITS["cuda"]
    assert logits(50_257, 32, r_drop=True) == 2 * logits(50_257, 16, r_drop=True) > 8 * CHUNK_LOGITS["cuda"]


@given(count=st.integers(1, 10_000), vocabulary=st.integers(1, 500), most=st.integers(1, 5_000))
def test_chunks_are_few_and_of_one_size(count: int, vocabulary: int, most: int) -> None:
    rows = rows_of_a_chunk(count, vocabulary, most)
    assert rows == 1 or rows * vocabulary <= most
    chunks = -(-count // rows)
    # Fewer chunks would need larger ones, and as many could not be smaller.
    assert chunks == 1 or -(-count // (chunks - 1)) * vocabulary > most
    assert rows == 1 or (rows - 1) * chunks < count
