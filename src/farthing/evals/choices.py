"""Questions with choices: what each choice costs a model, which one it takes, and how often that is the right one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import numpy as np

from farthing.errors import UserError
from farthing.evals.chance import Reading, accuracy
from farthing.evals.continuations import ContinuationScorer, TextTokenizer, encode_pairs

Metric = Literal[
    "accuracy", "accuracy_per_character", "accuracy_per_byte", "accuracy_per_token", "greedy_accuracy", "perplexity"
]
"""What a task may be read by.

accuracy: the choice of the highest probability is the right one (lm-evaluation-harness: acc)
accuracy_per_character: the same, of log-probability over the choice's characters (lm-evaluation-harness: acc_norm)
accuracy_per_byte: the same, over its UTF-8 bytes (lm-evaluation-harness: acc_bytes); differs where text is not ASCII
accuracy_per_token: the same, over its tokens (llm.c)
greedy_accuracy: every token of the one continuation is the likeliest (LAMBADA's acc)
perplexity: of the one continuation as a whole
"""

SHOT_END = "\n\n"
"""what parts worked examples, as in lm-evaluation-harness"""


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        pairs: context and continuation of each choice; contexts may be the same, or continuations.
        choices: the choices as the data has them: their length is what costs are divided by.
        gold: which one is right, from 0.
        place: where it stands, for messages: "file.jsonl:12".
    """

    pairs: tuple[tuple[str, str], ...]
    choices: tuple[str, ...]
    gold: int
    place: str

    @property
    def solved(self) -> str:
        """The question with its right answer, as an example to go by."""
        return "".join(self.pairs[self.gold])


@dataclass(frozen=True)
class Answer:
    """What the choices of a question cost a model.

    Args:
        nats: of each choice.
        tokens: of each choice.
        characters: of each choice, as the data has it.
        bytes: of each choice, in UTF-8.
        greedy: whether each choice is what the model would write.
        gold: which one is right.
        cut: whether the question was too long to be read whole.
    """

    nats: tuple[float, ...]
    tokens: tuple[int, ...]
    characters: tuple[int, ...]
    bytes: tuple[int, ...]
    greedy: tuple[bool, ...]
    gold: int
    cut: bool

    def chosen(self, metric: Metric) -> int:
        """The choice that a metric takes, the first of equals; -1 for a lone continuation that is not greedy."""
        nats_C = np.array(self.nats)
        match metric:
            case "accuracy":
                return int(nats_C.argmin())
            case "accuracy_per_character":
                return int((nats_C / self.characters).argmin())
            case "accuracy_per_byte":
                return int((nats_C / self.bytes).argmin())
            case "accuracy_per_token":
                return int((nats_C / self.tokens).argmin())
            case _:
                return 0 if self.greedy[0] else -1

    def as_dict(self, metrics: Sequence[Metric]) -> dict[str, Any]:
        """A line of `--answers`, JSON-ready: costs and what each metric takes."""
        return {
            "gold": self.gold,
            "chosen": {metric: self.chosen(metric) for metric in metrics if metric != "perplexity"},
            "nats": [nats if math.isfinite(nats) else None for nats in self.nats],
            "tokens": list(self.tokens),
            "characters": list(self.characters),
            "bytes": list(self.bytes),
            "greedy": list(self.greedy),
            "cut": self.cut,
        }


def encoded(tokenizer: TextTokenizer, questions: Sequence[Question]) -> list[tuple[list[int], list[int]]]:
    """Context and continuation of every choice of every question, in order.

    Raises:
        UserError: a choice has no token of its own after its context.
    """
    pairs = encode_pairs(tokenizer, [pair for question in questions for pair in question.pairs])
    rest = iter(pairs)
    for question in questions:
        for (_, continuation), (_, tokens) in zip(question.pairs, rest, strict=False):
            if not tokens:
                raise UserError(
                    f"{question.place}: after its question, the choice {continuation!r} makes no token of its own with "
                    "this tokenizer; begin it with a space or a line of its own"
                )
    return pairs


def answer(
    scorer: ContinuationScorer,
    tokenizer: TextTokenizer,
    questions: Sequence[Question],
    *,
    report: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """What the choices of each question cost, in order; `report` hears (choices done, choices in all).

    Raises:
        UserError: a choice has no token of its own after its context.
        ResourceError: not even one choice fits into memory.
    """
    pairs = encoded(tokenizer, questions)
    found = iter(zip(pairs, scorer.costs(pairs, report=report), strict=True))
    answers = []
    for question in questions:
        costs = [next(found) for _ in question.pairs]
        answers.append(
            Answer(
                nats=tuple(cost.nats for _, cost in costs),
                tokens=tuple(cost.tokens for _, cost in costs),
                characters=tuple(map(len, question.choices)),
                bytes=tuple(len(choice.encode()) for choice in question.choices),
                greedy=tuple(cost.greedy for _, cost in costs),
                gold=question.gold,
                cut=any(len(before) + len(after) > scorer.context_length + 1 for (before, after), _ in costs),
            )
        )
    return answers


def readings(answers: Sequence[Answer], metrics: Sequence[Metric]) -> dict[str, Reading]:
    """What the answers come to by each metric; nothing but None where a cost is not finite (a diverged model)."""
    if not all(math.isfinite(nats) for answer in answers for nats in answer.nats):
        return {metric: Reading(None) for metric in metrics}
    return {metric: _reading(answers, metric) for metric in metrics}


def _reading(answers: Sequence[Answer], metric: Metric) -> Reading:
    if metric == "perplexity":
        return _perplexity([answer.nats[0] for answer in answers])
    right = sum(answer.chosen(metric) == answer.gold for answer in answers)
    choices = None if metric == "greedy_accuracy" else [len(answer.nats) for answer in answers]
    return accuracy(right, len(answers), choices=choices)


def _perplexity(nats: Sequence[float]) -> Reading:
    mean = float(np.mean(nats))
    if len(nats) == 1:
        return Reading(_exp(mean))
    error = float(np.std(nats, ddof=1)) / math.sqrt(len(nats))
    value = _exp(mean)
    low, high = _exp(mean - 1.96 * error), _exp(mean + 1.96 * error)
    return Reading(value, None if value is None else value * error, low, high)


def _exp(nats: float) -> float | None:
    return math.exp(nats) if nats < 700 else None


def drawn(count: int, limit: int | None, *, seed: int) -> list[int]:
    """Which of `count` are taken where `limit` of them are asked for: the same ones each time, in their order.

    Drawn rather than the first ones, since files are often sorted: HellaSwag's begins with the easier of its two halves.
    """
    if limit is None or limit >= count:
        return list(range(count))
    return sorted(Random(f"{seed}: {limit} of {count}").sample(range(count), limit))


def with_shots(
    questions: Sequence[Question], numbers: Sequence[int], pool: Sequence[Question], *, shots: int, seed: int
) -> list[Question]:
    """Some of the questions, each after `shots` solved ones, drawn for it from the pool, never the question itself.

    Args:
        questions: all of them.
        numbers: which are to be asked.
        pool: where the examples come from; may be the questions themselves.
        shots: examples before each.
        seed: of the draws; which other questions are asked does not move them.

    Raises:
        UserError: the pool is too small.
    """
    if shots == 0:
        return [questions[number] for number in numbers]
    made = []
    for number in numbers:
        question = questions[number]
        others = [one for one in Random(f"{seed}: {number}").sample(pool, min(len(pool), shots + 1)) if one != question]
        if len(others) < shots:
            raise UserError(f"--shots {shots}: there are only {len(others)} other questions to take examples from")
        before = "".join(one.solved + SHOT_END for one in others[:shots])
        pairs = tuple((before + context, continuation) for context, continuation in question.pairs)
        made.append(Question(pairs, question.choices, question.gold, question.place))
    return made
