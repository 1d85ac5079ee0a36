"""ARC (Clark et al. 2018): school science questions, the easy ones and those that look-up does not answer."""

from __future__ import annotations

from typing import Any

from farthing.evals.choices import Metric, Question
from farthing.evals.tasks.records import HubSet, Record
from farthing.evals.tasks.task import BY_LENGTH, QuestionTask, choose

ANSWER = "\nAnswer:"


def _question(record: Record) -> Question:
    if record.has("query", "gold"):
        choices = record.texts("choices")
        gold = record.place_among("gold", len(choices))
        return choose(record.text("query").removesuffix("\n") + ANSWER, choices, gold, record.place)
    if not record.has("question", "choices", "answerKey"):
        raise record.lacks("query, choices and gold, or question, choices and answerKey")
    found: Any = record.fields["choices"]
    if not isinstance(found, dict):
        raise record.wrong("choices", found, "texts and their labels, by those names")
    parts = Record(found, f"{record.place}, choices")
    texts, labels, key = parts.texts("text"), parts.texts("label"), record.text("answerKey")
    if len(labels) != len(texts) or key not in labels:
        raise record.wrong("answerKey", key, f"one of the {len(texts)} choices' labels, {', '.join(labels)}")
    return choose(f"Question: {record.text('question')}{ANSWER}", texts, labels.index(key), record.place)


def _task(name: str, config: str, metrics: tuple[Metric, ...], about: str) -> QuestionTask:
    return QuestionTask(
        name=name,
        version=1,
        about=about,
        metrics=metrics,
        question=_question,
        files=(f"{name}*.jsonl*",),
        hub=HubSet("allenai/ai2_arc", config, "test"),
    )


EASY = _task("arc_easy", "ARC-Easy", ("accuracy", *BY_LENGTH), "easy science questions from school")
CHALLENGE = _task(
    "arc_challenge",
    "ARC-Challenge",
    (BY_LENGTH[0], "accuracy", *BY_LENGTH[1:]),
    "science questions that look-up does not answer",
)
