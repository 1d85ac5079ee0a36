"""Questions and texts of one's own."""

from __future__ import annotations

from farthing.evals.choices import Question
from farthing.evals.perplexity import Document
from farthing.evals.tasks.records import Record
from farthing.evals.tasks.task import BY_LENGTH, QuestionTask, TextTask, choose


def _question(record: Record) -> Question:
    if not record.has("query", "choices", "gold"):
        raise record.lacks("query, choices and gold")
    choices = record.texts("choices")
    gold = record.place_among("gold", len(choices))
    return choose(record.text("query", empty=True), choices, gold, record.place)


def _document(text: str) -> Document:
    return Document(text, len(text.split()), len(text.encode()))


CHOICES = QuestionTask(
    name="choices",
    version=1,
    about="questions of your own: query, choices and gold, one JSON object a line",
    metrics=("accuracy", *BY_LENGTH),
    question=_question,
    files=("choices*.jsonl*",),
    hub=None,
)

PERPLEXITY = TextTask(
    name="perplexity",
    version=1,
    about="any text: a file as one document, or the field text of each of its JSON lines",
    metrics=("bits_per_byte", "word_perplexity", "byte_perplexity", "token_perplexity"),
    documents=lambda text: [_document(text)],
    document=lambda record: _document(record.text("text", empty=True)),
    files=("perplexity*",),
    hub=None,
)
