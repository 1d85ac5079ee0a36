"""A task carried out: its questions or texts loaded, some or all of them asked, and what came of it as one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from farthing.errors import UserError
from farthing.evals.chance import Reading
from farthing.evals.choices import Answer, Question, answer, drawn, encoded, readings, with_shots
from farthing.evals.continuations import ContinuationScorer, TextTokenizer
from farthing.evals.forward import Precision
from farthing.evals.perplexity import Document, read
from farthing.evals.tasks.records import HubSet, Records, read_file, read_hub, read_text
from farthing.evals.tasks.task import QuestionTask, Task, TextTask
from farthing.model.gpt import GPT

HUB = "hub"
"""where questions come from if no file is named; hub:OWNER/NAME names another data set of the same fields"""

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Loaded:
    """A task with its questions or texts.

    Args:
        task: the task.
        items: all its questions, or all its documents.
        pool: where worked examples are taken from.
        source: what a person calls the file, or the data set.
        sha256: of the file, or of the data set's rows.
    """

    task: Task
    items: Sequence[Question] | Sequence[Document]
    pool: Sequence[Question]
    source: str
    sha256: str

    @property
    def characters(self) -> int:
        """About how much there is to read, each context once."""
        total = 0
        for item in self.items:
            if isinstance(item, Question):
                total += sum(map(len, {context for context, _ in item.pairs})) + sum(
                    len(after) for _, after in item.pairs
                )
            else:
                total += len(item.text)
        return total


@dataclass(frozen=True)
class Scored:
    """What a task came to.

    Args:
        result: JSON-ready (docs/tasks.md).
        readings: by metric, the one that people compare by first.
        answers: each question asked, by its number in the file, and what its choices cost; none for texts.
    """

    result: dict[str, Any]
    readings: dict[str, Reading]
    answers: list[tuple[int, Answer]] = field(repr=False)

    def answer_lines(self) -> list[dict[str, Any]]:
        """Every question's decision, JSON-ready."""
        name, metrics = self.result["task"], list(self.readings)
        return [{"task": name, "question": number, **one.as_dict(metrics)} for number, one in self.answers]  # type: ignore[arg-type]


def load(task: Task, data: str, *, directory: Path, shots_data: str | None = None, what: str = "--data") -> Loaded:
    """Read a task's questions or texts; nothing is asked of a model yet.

    Args:
        task: the task.
        data: a file, a folder that holds it under one of its usual names, "hub", or "hub:" and a data set's name.
        directory: the folder that relative paths start from.
        shots_data: where worked examples come from: as `data`; None takes the questions themselves.
        what: what a person calls `data`, for messages.

    Raises:
        UserError: something is missing or not as it should be; the message names the line.
    """
    if isinstance(task, TextTask):
        if shots_data is not None:
            raise UserError(f"--shots-data: {task.name} is read as it stands, without worked examples")
        documents, source, sha256 = _documents(task, data, directory, what)
        return Loaded(task, documents, (), source, sha256)
    found = _records(task, data, directory, what)
    questions = [task.question(record) for record in found.records]
    pool = questions
    if shots_data is not None:
        pool = [task.question(record) for record in _records(task, shots_data, directory, "--shots-data").records]
    return Loaded(task, questions, pool, found.source, found.sha256)


def check(loaded: Loaded, tokenizer: TextTokenizer, *, shots: int) -> None:
    """Refuse what `score` would refuse, before anything is spent.

    Raises:
        UserError: there are too few questions to take examples from, or a choice has no token of its own.
    """
    if not isinstance(loaded.task, QuestionTask):
        if shots:
            raise UserError(f"--shots {shots}: {loaded.task.name} is read as it stands, without worked examples")
        return
    questions = [item for item in loaded.items if isinstance(item, Question)]
    with_shots(questions, range(len(questions)), loaded.pool, shots=shots, seed=0)
    encoded(tokenizer, questions)


def score(
    loaded: Loaded,
    model: GPT,
    tokenizer: TextTokenizer,
    *,
    device: torch.device | str,
    precision: Precision = "fp32",
    limit: int | None = None,
    shots: int = 0,
    seed: int = 0,
    report: Report | None = None,
) -> Scored:
    """Ask a model a task's questions, or let it read its texts.

    The model comes back in the modes it had, and no random state moves.

    Args:
        loaded: the task.
        model: on `device`.
        tokenizer: the model's.
        device: where the model is.
        precision: fp32 is the one to publish.
        limit: ask this many questions, drawn by `seed`, the same ones each time; None asks all.
        shots: worked examples before each question, drawn by `seed`.
        seed: of both draws.
        report: called with (choices done, choices in all) after every batch.

    Raises:
        UserError: there are too few questions to take examples from, or a choice has no token of its own.
        ResourceError: not even one choice fits into memory.
    """
    start = time.monotonic()
    task, numbers = loaded.task, drawn(len(loaded.items), limit, seed=seed)
    scorer = ContinuationScorer(model, tokenizer, device=device, precision=precision)
    answers: list[Answer] = []
    counted: dict[str, int] = {}
    if isinstance(task, QuestionTask):
        questions = [item for item in loaded.items if isinstance(item, Question)]
        asked = with_shots(questions, numbers, loaded.pool, shots=shots, seed=seed)
        answers = answer(scorer, tokenizer, asked, report=report)
        found = readings(answers, task.metrics)
        counted["cut"] = sum(one.cut for one in answers)
    else:
        check(loaded, tokenizer, shots=shots)
        documents = [item for item in loaded.items if isinstance(item, Document)]
        told, counted["tokens"] = read(scorer, tokenizer, [documents[number] for number in numbers], report=report)
        found = {metric: told[metric] for metric in task.metrics if metric in told}
    result = {
        "task": task.name,
        "version": task.version,
        "items": len(numbers),
        "of": len(loaded.items),
        "shots": shots,
        "seed": seed,
        **counted,
        "metric": next(iter(found)),
        "scores": {metric: asdict(reading) for metric, reading in found.items()},
        "source": loaded.source,
        "sha256": loaded.sha256,
        "context_length": scorer.context_length,
        "precision": precision,
        "seconds": round(time.monotonic() - start, 3),
    }
    return Scored(result, found, list(zip(numbers, answers, strict=True)) if answers else [])


def _records(task: Task, data: str, directory: Path, what: str) -> Records:
    if where := _hub(task, data, what):
        return read_hub(where, why=f"--task {task.name}")
    return read_file(_file(task, data, directory, what), directory=directory, what=what)


def _documents(task: TextTask, data: str, directory: Path, what: str) -> tuple[Sequence[Document], str, str]:
    path = None if _hub(task, data, what) else _file(task, data, directory, what)
    if path is None or ".jsonl" in Path(path).suffixes:
        found = _records(task, data, directory, what)
        return [task.document(record) for record in found.records], found.source, found.sha256
    text, file, sha256 = read_text(path, directory=directory, what=what)
    if not text.strip():
        raise UserError(f"{file}: there is no text in it")
    return task.documents(text), str(file), sha256


def _hub(task: Task, data: str, what: str) -> HubSet | None:
    kind, _, name = data.partition(":")
    if kind != HUB:
        return None
    if task.hub is None:
        raise UserError(f"{what} {data}: {task.name} is for text of your own; give a file")
    # Another data set has its own configurations; the first is the one it is known by.
    return HubSet(name, None, task.hub.split) if name else task.hub


def _file(task: Task, data: str, directory: Path, what: str) -> str:
    folder = directory / Path(data).expanduser()
    if not folder.is_dir():
        return data
    found = sorted({str(path) for pattern in task.files for path in folder.glob(pattern) if path.is_file()})
    if len(found) == 1:
        return found[0]
    seen = f"there are {', '.join(Path(path).name for path in found[:5])}" if found else "there is none"
    raise UserError(f"{what} {data}: for {task.name} it should hold one file {' or '.join(task.files)}; {seen}")
