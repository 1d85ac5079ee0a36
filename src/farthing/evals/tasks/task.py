"""What a task is: how its records become questions or texts, and what it is read by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from farthing.evals.choices import Metric, Question
from farthing.evals.perplexity import Document
from farthing.evals.tasks.records import HubSet, Record

BY_LENGTH: tuple[Metric, ...] = ("accuracy_per_character", "accuracy_per_byte", "accuracy_per_token")


@dataclass(frozen=True)
class QuestionTask:
    """Questions with choices, or with one continuation that has to be guessed.

    Args:
        name: what the task is called.
        version: raised whenever the same model on the same file would come to another number.
        about: one line on what is asked.
        metrics: what it is read by, the one that people compare by first.
        question: a record as a question; raises UserError where it is none.
        files: patterns that its file is found by in a folder.
        hub: where the questions are on the hub, if they are.
    """

    name: str
    version: int
    about: str
    metrics: tuple[Metric, ...]
    question: Callable[[Record], Question]
    files: tuple[str, ...]
    hub: HubSet | None


@dataclass(frozen=True)
class TextTask:
    """Text to be read whole.

    Args:
        name: what the task is called.
        version: raised whenever the same model on the same file would come to another number.
        about: one line on what is read.
        metrics: what it is read by, the one that people compare by first.
        documents: the documents of a file's text.
        document: a record, of JSON lines or of the hub, as a document.
        files: patterns that its file is found by in a folder.
        hub: where the text is on the hub, if it is.
    """

    name: str
    version: int
    about: str
    metrics: tuple[str, ...]
    documents: Callable[[str], Sequence[Document]]
    document: Callable[[Record], Document]
    files: tuple[str, ...]
    hub: HubSet | None


Task = QuestionTask | TextTask


def choose(context: str, choices: Sequence[str], gold: int, place: str, *, between: str = " ") -> Question:
    """A question whose choices all follow one context."""
    return Question(tuple((context, between + choice) for choice in choices), tuple(choices), gold, place)
