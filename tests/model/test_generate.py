"""Generation: what is drawn, from which window, and what is left as it was."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from farthing.errors import DivergedError
from farthing.model.generate import draw, generate, generate_texts
from farthing.model.gpt import GPT
from farthing.recipe.model import Attention, Model
from model.combinations import MODELS, VOCABULARY, shaken, tokens

SECTION = Model(n_layer=2, n_head=2, d_model=16, context_length=8, dropout=0.5)


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return shaken(SECTION)


def test_greedy_takes_the_likeliest_token_of_the_full_forward(gpt: GPT) -> None:
    text = tokens(1, 3)[0].tolist()
    for token in generate(gpt, text, tokens=5, temperature=0):
        expected = gpt(torch.tensor([text]))[0, -1].argmax()
        assert token == expected
        text.append(token)
    assert len(text) == 8


def test_the_same_seed_gives_the_same_text_and_the_global_state_is_left_alone(gpt: GPT) -> None:
    state = torch.get_rng_state()
    texts = [list(generate(gpt, [1, 2], tokens=40, seed=seed)) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 40
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-320}], ids=str)
def test_the_narrowest_draw_is_greedy(gpt: GPT, narrow: dict[str, Any]) -> None:
    greedy = list(generate(gpt, [3], tokens=20, temperature=0))
    assert list(generate(gpt, [3], tokens=20, **narrow)) == greedy


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(gpt: GPT) -> None:
    text = list(generate(gpt, [3], tokens=30, seed=2))
    stop = text[10]
    assert list(generate(gpt, [3], tokens=30, seed=2, stop=stop)) == text[: text.index(stop)]


def test_the_model_stays_in_its_own_mode_and_dropout_is_off(gpt: GPT) -> None:
    quiet = list(generate(gpt, [3], tokens=6, seed=2))
    gpt.train()
    try:
        loud = []
        for token in generate(gpt, [3], tokens=6, seed=2):
            assert all(module.training for module in gpt.modules())
            loud.append(token)
        assert all(module.training for module in gpt.modules())
    finally:
        gpt.eval()
    assert loud == quiet


def test_autocast_around_it_changes_nothing(gpt: GPT) -> None:
    plain = list(generate(gpt, [3], tokens=20, temperature=0))
    with torch.autocast("cpu", torch.bfloat16):
        assert list(generate(gpt, [3], tokens=20, temperature=0)) == plain


def test_low_precision_follows_the_full_forward_closely(gpt: GPT) -> None:
    text = tokens(1, 3)[0].tolist()
    for token in generate(gpt, text, tokens=5, temperature=0, precision="bf16"):
        logits = gpt(torch.tensor([text]))[0, -1].detach()
        assert logits.max() - logits[token] < 0.05 * logits.abs().max()
        text.append(token)


@pytest.mark.parametrize("scope", ["window", "document"])
def test_texts_written_together_are_those_written_alone(scope: str) -> None:
    gpt = shaken(SECTION.model_copy(update={"attention": Attention(scope=scope)}))  # type: ignore[arg-type]
    how: dict[str, Any] = {"tokens": 30, "stop": 4, "separator": 0, "top_k": 20}
    together = generate_texts(gpt, [0, 3], seeds=range(12), **how)
    assert together == [list(generate(gpt, [0, 3], seed=seed, **how)) for seed in range(12)]
    assert len({len(text) for text in together}) > 2, "no text ended before another"
    assert generate_texts(gpt, [0, 3], seeds=[5], **how) == [together[5]]
    assert generate_texts(gpt, [0, 3], seeds=[], **how) == []


def test_a_model_that_has_diverged_says_so() -> None:
    gpt = shaken(SECTION)
    with torch.no_grad():
        gpt.embed.weight[1] = torch.nan
    with pytest.raises(DivergedError, match="not numbers"):
        list(generate(gpt, [1], tokens=3))


def test_tokens_stream(gpt: GPT) -> None:
    endless = generate(gpt, [3], tokens=10**12)
    assert len([next(endless) for _ in range(5)]) == 5


def test_only_the_end_of_a_long_prompt_counts(gpt: GPT) -> None:
    prompt = tokens(1, 50)[0].tolist()
    assert list(generate(gpt, prompt, tokens=9)) == list(generate(gpt, prompt[-8:], tokens=9))


@pytest.mark.parametrize("kind", ["learned", "rope", "none"])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_shortest_contexts_never_fail(length: int, kind: str) -> None:
    section = Model.model_validate(
        {"n_layer": 1, "n_head": 1, "d_model": 4, "context_length": length, "position": {"kind": kind}}
    )
    assert len(list(generate(shaken(section), [0, 1, 2, 3], tokens=7))) == 7


def test_a_separator_shuts_out_the_documents_before_it() -> None:
    section = next(m for m in MODELS if m.attention.scope == "document" and m.position.kind == "rope")
    gpt = shaken(section)
    one, other = (list(generate(gpt, [*before, 0, 5], tokens=4, seed=1, separator=0)) for before in ([1, 2], [3, 4]))
    assert one == other
    assert list(generate(gpt, [0, 5], tokens=4, seed=1, separator=0)) == one


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ({"top_k": 2}, [3, 1]),
        ({"top_p": 0.49}, [3]),
        ({"top_p": 0.51}, [3, 1]),
        ({"top_p": 0.81}, [3, 1, 0]),
        ({"top_k": 3, "top_p": 1.0}, [3, 1, 0]),
        ({}, [3, 1, 0, 2]),
    ],
    ids=str,
)
def test_draws_follow_the_distribution_that_is_left(cut: dict[str, Any], kept: list[int]) -> None:
    probabilities = torch.tensor([0.15, 0.3, 0.05, 0.5], dtype=torch.float64)
    generator = Random(0)
    options = {"temperature": 1.0, "top_k": None, "top_p": None, **cut}
    counts = torch.zeros(4, dtype=torch.float64)
    for _ in range(3000):
        counts[draw(probabilities.log()[None], [generator], **options)] += 1
    expected = torch.zeros(4, dtype=torch.float64)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    torch.testing.assert_close(counts / 3000, expected, rtol=0, atol=0.04)
    assert counts[expected == 0].sum() == 0


def test_temperature_divides_the_logits() -> None:
    generator = Random(0)
    logits = torch.tensor([0.0, 2.0])
    drawn = [draw(logits[None], [generator], temperature=2.0, top_k=None, top_p=None)[0] for _ in range(3000)]
    assert sum(drawn) / 3000 == pytest.approx(float(torch.sigmoid(torch.tensor(1.0))), abs=0.04)


@pytest.mark.parametrize("cut", [{}, {"top_k": 3}, {"top_p": 0.7}], ids=str)
def test_a_rows_draw_does_not_depend_on_the_other_rows(cut: dict[str, Any]) -> None:
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    options = {"temperature": 0.7, "top_k": None, "top_p": None, **cut}
    alone = [draw(row[None], [Random(seed)], **options)[0] for seed, row in enumerate(logits)]
    assert draw(logits, [Random(seed) for seed in range(6)], **options) == alone


@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_how_many_candidates_are_tried_for_top_p_changes_nothing(top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))

    def drawn() -> list[list[int]]:
        generators = [Random(seed) for seed in range(4)]
        return [draw(logits, generators, temperature=1.0, top_k=None, top_p=top_p) for _ in range(50)]

    expected = drawn()
    monkeypatch.setattr("farthing.model.generate._NUCLEUS", 3)
    assert drawn() == expected


def test_what_has_no_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    generator = Random(0)
    drawn = {draw(logits, [generator], temperature=1.0, top_k=None, top_p=None)[0] for _ in range(300)}
    assert drawn == {1, 3}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [VOCABULARY]}, str(VOCABULARY)),
        ({"prompt": [-1]}, "-1"),
        ({"tokens": -2}, "tokens=-2"),
        ({"temperature": -0.5}, "temperature=-0.5"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0"),
        ({"top_p": 1.5}, "top_p=1.5"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_at_the_call(gpt: GPT, wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        generate(gpt, **{"prompt": [1], "tokens": 1, **wrong})
