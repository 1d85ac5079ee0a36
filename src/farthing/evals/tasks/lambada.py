"""LAMBADA (Paperno et al. 2016) in OpenAI's cut: the last word of a passage, which only its whole gives away."""

from __future__ import annotations

from farthing.evals.choices import Question
from farthing.evals.tasks.records import HubSet, Record
from farthing.evals.tasks.task import QuestionTask, choose


def _question(record: Record) -> Question:
    if record.has("context", "continuation"):
        return choose(record.text("context"), [record.text("continuation")], 0, record.place)
    if not record.has("text"):
        raise record.lacks("context and continuation, or text")
    context, _, word = record.text("text").rpartition(" ")
    if not (context and word):
        raise record.wrong("text", record.text("text"), "a text of several words that ends in one")
    return choose(context, [word], 0, record.place)


TASK = QuestionTask(
    name="lambada",
    version=1,
    about="the last word of a passage",
    metrics=("greedy_accuracy", "perplexity"),
    question=_question,
    files=("lambada*.jsonl*",),
    hub=HubSet("EleutherAI/lambada_openai", "default", "test"),
)
