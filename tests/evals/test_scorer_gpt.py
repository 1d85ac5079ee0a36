"""Scoring of the model we ship: batch, context, documents, and a training step afterwards."""

from __future__ import annotations

import pytest
import torch

from evals.small import SEPARATOR, VOCAB, WholeLogits, brute_force, byte_split
from farthing.evals.scorer import score
from farthing.model.gpt import GPT, build_model
from farthing.recipe.model import Attention, LearnedPosition, Model, Rope

TEXTS = ["To be, or not to be", "", "that is the question:", "é 漢 🙂", "Whether 'tis nobler in the mind to suffer"]
HOW = {"context_length": 16, "stride": 16, "batch_size": 4, "device": "cpu"}


def build(**settings: object) -> GPT:
    section = Model(n_layer=2, n_head=2, d_model=32, context_length=16, dropout=0.3, **settings)  # type: ignore
    return build_model(section, VOCAB, seed=3)


@pytest.mark.parametrize("position", [Rope(), LearnedPosition()])
@pytest.mark.parametrize("stride", [5, 16])
def test_gpt_equals_brute_force_at_every_batch_size(position: Rope | LearnedPosition, stride: int) -> None:
    split, model = byte_split(TEXTS), build(position=position)
    expected = brute_force(model, split, context_length=16, stride=stride).sum()
    found = [score(model, split, **(HOW | {"stride": stride, "batch_size": size})).nats for size in (1, 7, 64)]
    assert found[0] == pytest.approx(expected, rel=1e-5)
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-6)
    assert score(WholeLogits(model), split, **(HOW | {"stride": stride})).nats == pytest.approx(found[0], rel=1e-6)


def test_attention_within_documents_is_blind_to_the_documents_before() -> None:
    model = build(attention=Attention(scope="document"))
    last = "the rest"
    found = [
        score(model, byte_split(texts), **HOW, segments=True, documents=True).document_nats_M
        for texts in ([last], ["six by", last], ["SIX BY", last])
    ]
    assert found[0] is not None and found[1] is not None and found[2] is not None
    assert found[1][1] == pytest.approx(found[2][1], rel=1e-6)
    # Its first token follows the separator, and with relative positions its place in the window does not matter.
    assert found[1][1] == pytest.approx(found[0][0], rel=1e-5)


def test_training_goes_on_as_if_nothing_had_been_scored() -> None:
    def step(*, scored: bool) -> torch.Tensor:
        model = build().train()
        torch.manual_seed(11)
        for _ in range(2):
            if scored:
                score(model, byte_split(TEXTS), **HOW)
            model(torch.tensor([[SEPARATOR, *b"to be or not"]])).logsumexp(-1).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    assert torch.equal(step(scored=True), step(scored=False))
