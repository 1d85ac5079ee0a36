"""Memory by term: what autograd keeps, counted; and the peak of a real training step, measured."""

from __future__ import annotations

import pytest
import torch

from farthing.model.cost import count_parameters
from farthing.model.gpt import build_model
from farthing.model.memory import lowered_weights, memory, saved
from farthing.recipe.model import Model
from model.combinations import CHOICES, section

V, B = 101, 3
MODELS = [section(choice, n_head=2, n_kv_head=1, d_model=64, context_length=48) for choice in CHOICES]
COMMON = {"optimizer_bytes_per_parameter": 8.0, "ema": False}


def kept_by_autograd(model: Model, *, precision: str, attention: str) -> int:
    gpt = build_model(model, V, seed=0, attention=attention)
    own = {parameter.untyped_storage().data_ptr() for parameter in gpt.parameters()}
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
        gpt(rows, segments)
    return sum(storage.nbytes() for place, storage in storages.items() if place not in own)


@pytest.mark.parametrize("model", MODELS, ids=[str(number) for number in range(len(MODELS))])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["sdpa", "math"])
def test_what_forward_keeps_is_counted(model: Model, precision: str, attention: str) -> None:
    kept = saved(model, V, micro_batch=B, precision=precision, attention=attention, device="cpu")
    told = kept.activations + kept.attention + kept.logits + lowered_weights(model, V, precision=precision)
    assert told == pytest.approx(kept_by_autograd(model, precision=precision, attention=attention), rel=0.02)


def test_terms_answer_to_what_they_are_of() -> None:
    def terms(**changes: object) -> dict[str, int]:
        request = {"micro_batch": 8, "precision": "fp32", "attention": "sdpa", "device": "cuda", **COMMON, **changes}
        return memory(Model(), 4000, **request)  # type: ignore[arg-type]

    base, parameters = terms(), count_parameters(Model(), 4000)
    assert set(base) == {"weights", "gradients", "optimizer", "activations", "attention", "logits", "workspace"}
    assert (base["weights"], base["optimizer"]) == (4 * parameters, 8 * parameters)
    assert terms(micro_batch=16)["activations"] == 2 * base["activations"]
    assert terms(micro_batch=16)["logits"] == 2 * base["logits"] == 2 * 3 * 4 * 8 * 256 * 4000
    assert terms(ema=True)["weights"] == 2 * base["weights"]
    assert terms(accumulate=True)["gradients"] == 4 * parameters
    assert terms(precision="bf16")["activations"] < base["activations"] < 2 * terms(precision="bf16")["activations"]
    # Explicit attention keeps a score for each pair of positions instead of a sum for each position.
    scores, sums = 6 * 4 * 8 * 6 * 256 * 256, 6 * 4 * 8 * 6 * 256
    assert terms(attention="math")["attention"] == base["attention"] + scores - sums
    # With next to nothing kept, the peak is at the end of backward, where all gradients are.
    tiny = memory(
        Model(context_length=8), 4000, micro_batch=1, precision="fp32", attention="sdpa", device="cuda", **COMMON
    )
    assert (tiny["gradients"], tiny["activations"]) == (4 * count_parameters(Model(context_length=8), 4000), 0)
