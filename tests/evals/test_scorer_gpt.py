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


@pytest.mark.parametrize("scored", ["fp32", "bf16"])
@pytest.mark.parametrize("trained", ["fp32", "bf16"])
def test_training_goes_on_as_if_nothing_had_been_scored(trained: str, scored: str) -> None:
    def weights(*, scoring: bool) -> torch.Tensor:
        model = build().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(11)
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=trained == "bf16"):
                model(torch.tensor([[SEPARATOR, *b"to be or not"]])).float().logsumexp(-1).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if scoring:
                score(model, byte_split(TEXTS), **(HOW | {"precision": scored}))
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(weights(scoring=True), weights(scoring=False))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_score_is_of_the_weights_of_its_moment(precision: str) -> None:
    model, split = build(), byte_split(TEXTS)
    before = score(model, split, **HOW, precision=precision)
    assert score(model, split, **HOW, precision=precision) == before
    with torch.no_grad():
        model.blocks[1].mlp.down.weight.mul_(3.0)  # type: ignore[union-attr]
    after = score(model, split, **HOW, precision=precision)
    assert after.nats != before.nats
    assert after.nats == pytest.approx(
        score(WholeLogits(model), split, **HOW).nats, rel=1e-6 if precision == "fp32" else 0.02
    )


@pytest.mark.parametrize("surrounded", [False, True])
def test_low_precision_is_close_and_the_same_in_any_surroundings(surrounded: bool) -> None:
    model, split = build(), byte_split(TEXTS)
    exact = score(model, split, **HOW)
    with torch.autocast("cpu", torch.bfloat16, enabled=surrounded):
        rough = [score(model, split, **(HOW | {"batch_size": size}), precision="bf16").nats for size in (1, 64)]
        assert score(model, split, **HOW) == exact
    assert rough[0] == pytest.approx(exact.nats, rel=0.01) and rough[0] != exact.nats
    assert rough[1] == pytest.approx(rough[0], rel=1e-3)
