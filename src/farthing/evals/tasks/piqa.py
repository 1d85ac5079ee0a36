"""PIQA (Bisk et al. 2020): which of two ways to do something works."""

from __future__ import annotations

from farthing.evals.choices import Question
from farthing.evals.tasks.records import HubSet, Record
from farthing.evals.tasks.task import BY_LENGTH, QuestionTask, choose

ANSWER = "\nAnswer:"


def _question(record: Record) -> Question:
    if record.has("query", "gold"):
        choices = record.texts("choices")
        gold = record.place_among("gold", len(choices))
        return choose(record.text("query").removesuffix("\n") + ANSWER, choices, gold, record.place)
    if not record.has("goal", "sol1", "sol2", "label"):
        raise record.lacks("query, choices and gold, or goal, sol1, sol2 and label")
    choices = (record.text("sol1"), record.text("sol2"))
    gold = record.place_among("label", 2)
    return choose(f"Question: {record.text('goal')}{ANSWER}", choices, gold, record.place)


TASK = QuestionTask(
    name="piqa",
    version=1,
    about="which of two ways to do something works",
    metrics=("accuracy", *BY_LENGTH),
    question=_question,
    files=("piqa*.jsonl*",),
    hub=HubSet("baber/piqa", None, "validation"),
)
