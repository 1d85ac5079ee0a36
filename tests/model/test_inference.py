"""Inference: what it leaves alone, what it refuses, and that it does without the products it prefers.

That it is the model's own function, whatever stands in the slots, is in tests/contracts/test_model.py.
"""

from __future__ import annotations

import pytest
import torch

from farthing.model import inference as module
from farthing.model.gpt import GPT
from farthing.model.inference import Inference
from farthing.recipe.model import Attention, Model
from model.combinations import MODELS, shaken, tokens

SECTION = Model(n_layer=2, n_head=2, d_model=16, context_length=8, dropout=0.5)


@pytest.fixture
def gpt() -> GPT:
    return shaken(SECTION)


@pytest.mark.parametrize("layout", ["windows", "rows", "tokens"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("number", range(0, len(MODELS), 3))
def test_where_torch_lacks_the_products_it_uses_its_plain_ones(
    layout: str, precision: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_onednn", lambda dtype: None)
    model = MODELS[number]
    gpt, rows = shaken(model), tokens(2, model.context_length)
    inference = Inference(gpt, precision=precision, layout=layout)
    with torch.no_grad():
        exact = gpt(rows)
    near = 1e-5 if precision == "fp32" or layout == "tokens" else 0.05 * float(exact.abs().max())
    torch.testing.assert_close(inference.head(inference.hidden(rows)).float(), exact, rtol=0, atol=near)


@pytest.mark.parametrize("layout", ["windows", "rows", "tokens"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_is_left_as_it_was_and_learns_as_before(gpt: GPT, layout: str, precision: str) -> None:
    untouched = shaken(SECTION).train()
    rows = tokens(2, 8)
    gpt.train()
    torch.manual_seed(0)
    expected = untouched(rows)
    expected.logsumexp(-1).sum().backward()
    inference = Inference(gpt, precision=precision, layout=layout)
    state = torch.get_rng_state()
    logits = inference.head(inference.hidden(rows))
    assert not logits.requires_grad and torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in gpt.modules())
    torch.manual_seed(0)
    gpt(rows).logsumexp(-1).sum().backward()
    for one, other in zip(gpt.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(one, other) and one.grad is not None and other.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_rows_come_out_the_same_in_any_company(gpt: GPT) -> None:
    rows = tokens(5, 8)
    inference = Inference(gpt)
    together = inference.head(inference.hidden(rows))
    for row in range(5):
        alone = inference.head(inference.hidden(rows[row : row + 1]))
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-6)


def test_more_positions_than_the_context_are_refused(gpt: GPT) -> None:
    with pytest.raises(ValueError, match="9 positions do not fit into context_length=8"):
        Inference(gpt).hidden(tokens(1, 9))


def test_segments_are_for_models_that_attend_within_documents(gpt: GPT) -> None:
    rows = tokens(1, 8)
    with pytest.raises(AssertionError):
        Inference(gpt).hidden(rows, torch.zeros_like(rows))
    within = shaken(SECTION.model_copy(update={"attention": Attention(scope="document")}))
    segments = (rows == rows[0, 3]).cumsum(1)
    expected = within.hidden(rows, segments)
    torch.testing.assert_close(Inference(within).hidden(rows, segments), expected.detach(), rtol=0, atol=1e-5)


def test_weights_in_double_precision_are_used_as_they_are(gpt: GPT) -> None:
    double, rows = gpt.double(), tokens(2, 8)
    for layout in ("windows", "rows", "tokens"):
        inference = Inference(double, layout=layout)
        with torch.no_grad():
            expected = double(rows)
        torch.testing.assert_close(inference.head(inference.hidden(rows)), expected, rtol=0, atol=1e-7)
