"""How likely tokens are said to be: what a full forward pass says, while texts are drawn as ever."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from farthing.errors import DivergedError
from farthing.model.generate import generate, generate_texts, generate_together
from farthing.model.gpt import GPT
from farthing.model.inference import Inference
from farthing.model.likelihood import Likelihood, likelihoods, text_likelihoods
from farthing.recipe.model import Attention, Model
from model.combinations import VOCABULARY, shaken, tokens

SECTION = Model(n_layer=2, n_head=2, d_model=16, context_length=100)
DRAWING: list[dict[str, Any]] = [{}, {"temperature": 0.0}, {"temperature": 0.5, "top_k": 7}, {"top_p": 0.8}]


@pytest.fixture(scope="module", params=["window", "document"])
def gpt(request: pytest.FixtureRequest) -> GPT:
    return shaken(SECTION.model_copy(update={"attention": Attention(scope=request.param)}))


def logprobs(gpt: GPT, text: list[int]) -> torch.Tensor:
    tokens_BT = torch.tensor([text[:-1]])
    segments_BT = tokens_BT.eq(0).cumsum(1) if gpt.section.attention.scope == "document" else None
    with torch.no_grad():
        return gpt(tokens_BT, segments_BT)[0].double().log_softmax(-1)


def agrees(found: list[Likelihood], gpt: GPT, text: list[int], *, top: int) -> None:
    expected_TV = logprobs(gpt, text)[-len(found) :]
    for one, row, token in zip(found, expected_TV, text[-len(found) :], strict=True):
        assert one.logprob == pytest.approx(float(row[token]), abs=1e-5)
        likeliest = row.topk(top)
        assert [logprob for _, logprob in one.top] == pytest.approx(likeliest.values.tolist(), abs=1e-5)
        assert all(one.logprob == logprob for other, logprob in one.top if other == token), "told two ways"


@pytest.mark.parametrize("drawing", DRAWING, ids=str)
def test_texts_are_drawn_as_ever_and_scored_as_the_model_sees_them(gpt: GPT, drawing: dict[str, Any]) -> None:
    prompt, how = [0, 5, 0, 3], {"tokens": 40, "separator": 0, **drawing}
    steps = list(generate_together(gpt, prompt, seeds=[1, 2, 3], top=4, **how))
    assert all(len(step) == 3 for step in steps)
    for number, text in enumerate(generate_texts(gpt, prompt, seeds=[1, 2, 3], **how)):
        assert [step[number].token for step in steps] == text
        agrees([one for step in steps if (one := step[number].likelihood)], gpt, [*prompt, *text], top=4)
    plain = list(generate_together(gpt, prompt, seeds=[1, 2, 3], **how))
    assert [[one.token for one in step] for step in plain] == [[one.token for one in step] for step in steps]
    assert all(one.likelihood is None for step in plain for one in step)


def test_a_prepared_model_writes_what_the_model_writes(gpt: GPT) -> None:
    prepared = Inference(gpt, layout="tokens")
    for seed in range(3):
        how: dict[str, Any] = {"tokens": 150, "separator": 0, "seed": seed, "stop": 0}
        assert list(generate(prepared, [0, 3], **how)) == list(generate(gpt, [0, 3], **how))
    with pytest.raises(ValueError, match=str(VOCABULARY)):
        generate(prepared, [VOCABULARY], tokens=1)


def test_every_token_of_a_text_but_the_first_is_scored(gpt: GPT) -> None:
    text = [*tokens(1, 99)[0].tolist(), 0, 7]
    assert len(text) == SECTION.context_length + 1
    found = list(text_likelihoods(Inference(gpt, layout="tokens"), text, top=3, separator=0))
    assert len(found) == 100
    agrees(found, gpt, text, top=3)
    assert list(text_likelihoods(Inference(gpt), text[:1], top=3)) == []
    with pytest.raises(ValueError, match="context_length=100"):
        list(text_likelihoods(Inference(gpt), [*text, 1], top=3, separator=0))


def test_no_more_candidates_than_tokens_and_none_if_none_are_wanted() -> None:
    logits_TV = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert [len(one.top) for one in likelihoods(logits_TV, [0, 1, 2], top=9)] == [5, 5, 5]
    assert [one.top for one in likelihoods(logits_TV, [0, 1, 2], top=0)] == [(), (), ()]


def test_a_model_that_has_diverged_says_so() -> None:
    with pytest.raises(DivergedError, match="not numbers"):
        likelihoods(torch.full((1, 5), torch.nan), [0], top=1)
