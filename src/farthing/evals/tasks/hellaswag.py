"""HellaSwag (Zellers et al. 2019): which of four endings goes on from a description."""

from __future__ import annotations

import re

from farthing.evals.choices import Question
from farthing.evals.tasks.records import HubSet, Record
from farthing.evals.tasks.task import BY_LENGTH, QuestionTask, choose

_TAG = re.compile(r"\[[^\]\n]*(\])?")
"""a tag, or what is left of one on a line without its end: [.*?] looks for that end again from every bracket"""


def _question(record: Record) -> Question:
    endings = record.texts("endings")
    gold = record.place_among("label", len(endings))
    if record.has("query"):
        return choose(record.text("query"), endings, gold, record.place)
    if not record.has("ctx_a", "ctx_b", "activity_label"):
        raise record.lacks("query, endings and label, or ctx_a, ctx_b, activity_label, endings and label")
    # ctx_b begins the ending's own sentence and is empty for WikiHow's texts.
    context = f"{record.text('ctx_a')} {record.text('ctx_b', empty=True).capitalize()}"
    query = without_tags(f"{record.text('activity_label')}: {context}")
    choices = [without_tags(ending) for ending in endings]
    if empty := [ending for ending, choice in zip(endings, choices, strict=True) if not choice]:
        raise record.wrong("endings", empty[0], "more than a tag in brackets")
    return choose(query, choices, gold, record.place)


def without_tags(text: str) -> str:
    """The data set's text without WikiHow's tags in brackets, as lm-evaluation-harness's hellaswag 1.0 has it."""
    text = _TAG.sub(lambda found: found[0] if found[1] is None else "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


TASK = QuestionTask(
    name="hellaswag",
    version=1,
    about="which of four endings goes on from a description",
    metrics=(BY_LENGTH[0], "accuracy", *BY_LENGTH[1:]),
    question=_question,
    files=("hellaswag*.jsonl*",),
    hub=HubSet("Rowan/hellaswag", None, "validation"),
)
