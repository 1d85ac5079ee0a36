"""WinoGrande (Sakaguchi et al. 2020): who is meant, by which name makes the rest of the sentence likelier.

The two contexts differ and the continuation is the same, so its length says nothing (Trinh and Le 2018).
"""

from __future__ import annotations

from farthing.evals.choices import Question
from farthing.evals.tasks.records import HubSet, Record
from farthing.evals.tasks.task import QuestionTask


def _question(record: Record) -> Question:
    if record.has("context_options", "continuation"):
        contexts, rest = record.texts("context_options"), record.text("continuation")
        return _after(contexts, rest, record.place_among("gold", len(contexts)), record.place)
    if not record.has("sentence", "option1", "option2", "answer"):
        raise record.lacks("context_options, continuation and gold, or sentence, option1, option2 and answer")
    sentence = record.text("sentence")
    before, gap, rest = sentence.partition("_")
    if not (gap and rest.strip()):
        raise record.wrong("sentence", sentence, "a sentence that goes on after its gap, _")
    contexts = tuple(before + record.text(name) for name in ("option1", "option2"))
    return _after(contexts, rest.strip(), record.place_among("answer", 2, first=1), record.place)


def _after(contexts: tuple[str, ...], rest: str, gold: int, place: str) -> Question:
    return Question(tuple((context, " " + rest) for context in contexts), contexts, gold, place)


TASK = QuestionTask(
    name="winogrande",
    version=1,
    about="which of two names makes the rest of a sentence likelier",
    metrics=("accuracy",),
    question=_question,
    files=("winogrande*.jsonl*",),
    hub=HubSet("allenai/winogrande", "winogrande_xl", "validation"),
)
