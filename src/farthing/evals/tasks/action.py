"""Tasks asked between training steps: some questions at a cadence, all of them at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from farthing.evals.actions import Moment
from farthing.evals.continuations import TextTokenizer
from farthing.evals.forward import Precision
from farthing.evals.tasks.scoring import Loaded, check, load, score
from farthing.evals.tasks.table import find_task
from farthing.events import Asking, Event, TaskScored
from farthing.model.gpt import GPT
from farthing.recipe.running import Asked, Evaluate


@dataclass(frozen=True)
class TaskAction:
    """The action that asks the model a task's questions.

    Args:
        loaded: the task.
        tokenizer: the model's.
        every: steps between two askings; one more at the end always, with all questions.
        limit: questions asked before the end, the same ones each time; None asks all.
        shots: worked examples before each question.
        precision: number format of the forward pass.
        device: where the model is.
    """

    loaded: Loaded
    tokenizer: TextTokenizer
    every: int
    limit: int | None
    shots: int
    precision: Precision
    device: torch.device

    def due(self, moment: Moment) -> bool:
        """At the cadence and at the end."""
        return moment.step % self.every == 0 or moment.step == moment.steps

    def run(self, moment: Moment, model: nn.Module) -> Iterator[Event]:
        """Ask; the model and torch's random state are left as they were."""
        assert isinstance(model, GPT)
        start, at_end = time.monotonic(), moment.step == moment.steps
        if at_end:
            yield Asking(step=moment.step, task=self.loaded.task.name, items=len(self.loaded.items))
        found = score(
            self.loaded,
            model,
            self.tokenizer,
            device=self.device,
            precision=self.precision,
            limit=None if at_end else self.limit,
            shots=self.shots,
        )
        yield TaskScored(
            step=moment.step,
            task=self.loaded.task.name,
            value=found.result["scores"][found.result["metric"]]["value"],
            result=found.result,
            spent=moment.spent.as_dict(),
            seconds=round(time.monotonic() - start, 3),
        )


def load_asked(section: Evaluate, *, directory: Path) -> list[Loaded]:
    """The questions of all tasks that a recipe asks for.

    Raises:
        UserError: something is missing or not as it should be; the message names the line.
    """
    return [_load(asked, directory) for asked in section.tasks]


def check_asked(section: Evaluate, loaded: Sequence[Loaded], tokenizer: TextTokenizer) -> None:
    """Refuse tasks that could not be asked, which would otherwise be known in mid-run only.

    Raises:
        UserError: see `scoring.check`.
    """
    for asked, one in zip(section.tasks, loaded, strict=False):
        check(one, tokenizer, shots=asked.shots)


def task_actions(
    section: Evaluate,
    loaded: Sequence[Loaded],
    *,
    every: int,
    steps: int,
    tokenizer: TextTokenizer,
    train_precision: Precision,
    device: torch.device,
) -> list[TaskAction]:
    """The actions of a recipe's tasks, whose questions are `loaded`; `every` is the plan's cadence of evaluations."""
    precision: Precision = "fp32" if section.precision == "fp32" else train_precision
    cadences = {"auto": every, "end": steps}

    def action(asked: Asked, one: Loaded) -> TaskAction:
        cadence = cadences[asked.every] if isinstance(asked.every, str) else asked.every
        return TaskAction(one, tokenizer, cadence, asked.limit, asked.shots, precision, device)

    return [action(asked, one) for asked, one in zip(section.tasks, loaded, strict=True)]


def _load(asked: Asked, directory: Path) -> Loaded:
    return load(find_task(asked.task), asked.path, directory=directory, what="evaluate.tasks.path")
