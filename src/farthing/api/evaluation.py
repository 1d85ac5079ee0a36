"""Tasks asked of a trained model: questions with choices, last words, texts by the word (docs/tasks.md)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from farthing.api.trained import TrainedModel
from farthing.compare import task_results
from farthing.errors import UserError
from farthing.evals.tasks import Loaded, Scored, find_task, load, score
from farthing.evals.tasks.scoring import HUB
from farthing.rundir import RunDir
from farthing.sinks.reading import Reading


def load_tasks(names: str | Sequence[str], data: str = HUB, *, shots_data: str | None = None) -> list[Loaded]:
    """Read the questions of tasks; nothing is asked of a model yet.

    Args:
        names: "hellaswag", "arc_easy,piqa" or a list of names; docs/tasks.md has them all.
        data: a file, a folder in which each task's file is found by its name, "hub", or "hub:" and a data set's name.
        shots_data: where worked examples come from: as `data`; None takes the task's other questions.

    Raises:
        farthing.UserError: a task, a file, a field or a value that is not there or not as it should be.
    """
    asked = names.split(",") if isinstance(names, str) else list(names)
    tasks = [find_task(name.strip()) for name in dict.fromkeys(asked)]
    if len(tasks) > 1 and not (Path(data).expanduser().is_dir() or data == HUB):
        raise UserError(f"--data {data}: {len(tasks)} tasks need a folder that holds a file for each")
    return [load(task, data, directory=Path.cwd(), shots_data=shots_data) for task in tasks]


def keep_tasks(run: RunDir, step: int, found: Sequence[Scored]) -> list[str]:
    """Keep what tasks came to beside a finished run, for its reports and its model card; the names of those kept.

    Args:
        run: whose.
        step: optimizer steps of the weights that were asked.
        found: in fp32; a task of which only some questions were asked is not kept.
    """
    whole = [one.result for one in found if one.result["items"] == one.result["of"]]
    if not whole or not run.result.is_file():
        return []
    task_results.keep_tasks(run, step, whole)
    return [one["task"] for one in whole]


def ask(
    trained: TrainedModel,
    tasks: str | Sequence[str] | Sequence[Loaded],
    data: str = HUB,
    *,
    limit: int | None = None,
    shots: int = 0,
    seed: int = 0,
    precision: Literal["fp32", "train"] = "fp32",
    quiet: bool = True,
) -> list[Scored]:
    """Score a model by tasks, one after the other.

    Args:
        trained: the model.
        tasks: names, as in `load_tasks`, or what that has loaded.
        data: where their questions are, if they are given by name.
        limit: ask this many of a task's questions, the same ones each time; None asks all.
        shots: worked examples before each question.
        seed: of the draws of questions and examples.
        precision: fp32 is the one to publish; train: as the model computes elsewhere.
        quiet: show no progress.

    Raises:
        farthing.UserError: see load_tasks; too few questions to take examples from.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: at least 1 question")
    if shots < 0:
        raise UserError(f"--shots {shots}: 0 examples or more")
    loaded: list[Loaded] = []
    for one in [tasks] if isinstance(tasks, str) else tasks:
        loaded += load_tasks(one, data) if isinstance(one, str) else [one]
    found = []
    with Reading(quiet=quiet) as reading:
        for one in loaded:
            reading(one.task.name, 0, 0)
            found.append(
                score(
                    one,
                    trained.model,
                    trained.tokenizer,
                    device=trained.model.embed.weight.device,
                    precision="fp32" if precision == "fp32" else trained.precision,
                    limit=limit,
                    shots=shots,
                    seed=seed,
                    report=partial(reading, one.task.name),
                )
            )
    return found
