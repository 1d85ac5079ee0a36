"""All tasks by name."""

from __future__ import annotations

from farthing.errors import UserError, nearest
from farthing.evals.tasks import arc, hellaswag, lambada, own, piqa, wikitext, winogrande
from farthing.evals.tasks.task import Task

_ALL: tuple[Task, ...] = (
    hellaswag.TASK,
    lambada.TASK,
    arc.EASY,
    arc.CHALLENGE,
    piqa.TASK,
    winogrande.TASK,
    wikitext.TASK,
    own.CHOICES,
    own.PERPLEXITY,
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def find_task(name: str) -> Task:
    """A task by its name.

    Raises:
        UserError: there is none; the nearest name is in the message.
    """
    if name not in TASKS:
        raise UserError(f"--task {name!r}: no such task{nearest(name, TASKS)} (there are: {', '.join(TASKS)})")
    return TASKS[name]
