"""Choices: what is taken by each metric, draws that repeat, and worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.small import VOCAB
from evals.test_continuations import Letters
from farthing.data.tokenizer_codec import Tokenizer
from farthing.data.tokenizer_train import SEPARATOR as SEPARATOR_TEXT
from farthing.data.tokenizer_train import byte_tokenizer
from farthing.errors import UserError
from farthing.evals.choices import Answer, Metric, Question, answer, drawn, readings, with_shots
from farthing.evals.continuations import ContinuationScorer
from farthing.evals.tasks.task import choose
from farthing.model.gpt import build_model
from farthing.recipe.model import Model

ALL: tuple[Metric, ...] = ("accuracy", "accuracy_per_character", "accuracy_per_byte", "accuracy_per_token")


def byte_level() -> Tokenizer:
    return Tokenizer.from_json(byte_tokenizer(), separator=SEPARATOR_TEXT)


def answered(nats: list[float], *, gold: int = 0, choices: tuple[str, ...] = ("a", "bb"), **more: object) -> Answer:
    fields = {"tokens": (1,) * len(nats), "greedy": (False,) * len(nats), "cut": False} | more
    return Answer(
        nats=tuple(nats),
        characters=tuple(map(len, choices)),
        bytes=tuple(len(choice.encode()) for choice in choices),
        gold=gold,
        **fields,  # type: ignore[arg-type]
    )


def test_each_metric_divides_by_what_it_says() -> None:
    one = answered([4.0, 6.0, 8.0], choices=("ab", "abcd", "éé"), tokens=(1, 1, 4))
    # 4, 6, 8 nats; per character 2, 1.5, 4; per byte 2, 1.5, 2; per token 4, 6, 2.
    assert [one.chosen(metric) for metric in ALL] == [0, 1, 1, 2]
    assert answered([5.0, 5.0]).chosen("accuracy") == 0, "of equals the first"


def test_readings_count_who_is_right() -> None:
    answers = [answered([1.0, 2.0]), answered([1.0, 2.0], gold=1), answered([3.0, 2.0], gold=1)]
    found = readings(answers, ALL)
    assert found["accuracy"].value == pytest.approx(2 / 3)
    assert found["accuracy"].chance == 0.5
    # Per character the second choice costs 1.0: equal to the first's, or less.
    assert found["accuracy_per_character"].value == pytest.approx(2 / 3)


def test_perplexity_is_that_of_the_mean_cost() -> None:
    costs = [1.0, 2.0, 4.0]
    answers = [answered([nats], choices=("word",), greedy=(nats < 2,)) for nats in costs]
    found = readings(answers, ("greedy_accuracy", "perplexity"))
    assert found["greedy_accuracy"].value == pytest.approx(1 / 3)
    assert found["greedy_accuracy"].verdict is None
    assert found["perplexity"].value == pytest.approx(math.exp(7 / 3))
    error = np.std(costs, ddof=1) / math.sqrt(3)
    assert found["perplexity"].standard_error == pytest.approx(math.exp(7 / 3) * error)
    low, high = found["perplexity"].low, found["perplexity"].high
    assert low is not None and high is not None and low < math.exp(7 / 3) < high


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_that_has_diverged_has_no_score(bad: float) -> None:
    answers = [answered([1.0, 2.0]), answered([bad, 2.0])]
    assert {reading.value for reading in readings(answers, ALL).values()} == {None}
    assert answers[1].as_dict(ALL)["nats"] == [None, 2.0]


def test_answers_follow_their_questions() -> None:
    model = build_model(Model(n_layer=1, n_head=2, d_model=16, context_length=24), VOCAB, seed=1)
    tokenizer = byte_level()
    scorer = ContinuationScorer(model, tokenizer, device="cpu")
    questions = [
        choose("What is", ["é", "this thing"], 1, "a"),
        Question((("He", " went"), ("She", " went")), ("He", "She"), 0, "b"),
        choose("A context that is much longer than the model can read", ["x"], 0, "c"),
    ]
    found = answer(scorer, tokenizer, questions)
    assert [len(one.nats) for one in found] == [2, 2, 1]
    assert found[0].characters == (1, 10) and found[0].bytes == (2, 10) and found[0].tokens == (3, 11)
    assert [one.gold for one in found] == [1, 0, 0]
    assert [one.cut for one in found] == [False, False, True]
    for question, one in zip(questions, found, strict=True):
        assert answer(scorer, tokenizer, [question])[0].nats == pytest.approx(one.nats, abs=1e-4)


def test_a_choice_without_a_token_of_its_own_is_refused() -> None:
    model = build_model(Model(n_layer=1, n_head=2, d_model=16, context_length=8), 303, seed=1)
    scorer = ContinuationScorer(model, Letters(), device="cpu")
    question = choose("a", ["xx", "bc"], 0, "own.jsonl:7", between="")
    with pytest.raises(UserError, match=r"own\.jsonl:7: after its question, the choice 'bc' makes no token"):
        answer(scorer, Letters(), [question])


@given(count=st.integers(1, 200), limit=st.integers(1, 250), seed=st.integers(0, 5))
def test_a_draw_is_a_part_in_order_and_repeats(count: int, limit: int, seed: int) -> None:
    found = drawn(count, limit, seed=seed)
    assert found == sorted(set(found)) and len(found) == min(count, limit)
    assert set(found) <= set(range(count))
    assert drawn(count, limit, seed=seed) == found
    assert drawn(count, None, seed=seed) == list(range(count))


def test_a_draw_is_not_the_beginning() -> None:
    assert max(drawn(10_000, 100, seed=0)) > 8000
    assert drawn(10_000, 100, seed=0) != drawn(10_000, 100, seed=1)


QUESTIONS = [choose(f"Question {n}", [f"no {n}", f"yes {n}"], 1, str(n)) for n in range(12)]


def test_examples_are_solved_others_and_repeat() -> None:
    made = with_shots(QUESTIONS, range(12), QUESTIONS, shots=3, seed=0)
    for number, one in enumerate(made):
        context = one.pairs[0][0]
        *examples, last = context.split("\n\n")
        assert last == f"Question {number}" and len(set(examples)) == 3
        for example in examples:
            _, other, word, again = example.split()
            assert word == "yes" and other == again != str(number)
        assert [pair[1] for pair in one.pairs] == [f" no {number}", f" yes {number}"]
        assert {pair[0] for pair in one.pairs} == {context}
    assert with_shots(QUESTIONS, [7], QUESTIONS, shots=3, seed=0) == [made[7]], "whoever else is asked"
    assert with_shots(QUESTIONS, [7], QUESTIONS, shots=3, seed=1) != [made[7]]
    assert with_shots(QUESTIONS, [7], QUESTIONS, shots=0, seed=0) == [QUESTIONS[7]]


def test_examples_of_two_contexts_show_the_right_one() -> None:
    names = [Question(((f"He{n}", " went"), (f"She{n}", " went")), ("He", "She"), 1, str(n)) for n in range(3)]
    (made,) = with_shots(names, [0], names, shots=1, seed=0)
    assert made.pairs[0][0].startswith("She") and made.pairs[0][0].endswith(" went\n\nHe0")


def test_too_few_examples_are_told() -> None:
    with pytest.raises(UserError, match="--shots 12: there are only 11 other questions"):
        with_shots(QUESTIONS, [0], QUESTIONS, shots=12, seed=0)
