"""lm-evaluation-harness asked of a trained model (docs/harness.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from farthing.api.trained import TrainedModel
from farthing.evals.harness import HarnessScore, run_harness
from farthing.evals.tasks.scoring import HUB
from farthing.sinks.reading import Reading


def ask_harness(
    trained: TrainedModel,
    tasks: str | Sequence[str],
    data: str | Path | None = None,
    *,
    limit: int | None = None,
    shots: int | None = None,
    precision: Literal["fp32", "train"] = "fp32",
    quiet: bool = True,
) -> list[HarnessScore]:
    """Score a model by lm-evaluation-harness's own code (needs farthing[eval]).

    Args:
        trained: the model.
        tasks: the harness's names: "hellaswag,lambada_openai", or a list of them.
        data: a folder with question files, or one file; None or "hub" lets the harness fetch its questions.
        limit: ask only the first so many questions of each task, as lm_eval does.
        shots: worked examples before each question; None leaves that to the task.
        precision: fp32 is the one to publish; train: as the model computes elsewhere.
        quiet: show no progress.

    Raises:
        farthing.UserError: the harness is missing, a task is unknown, or its questions are not to be had.
    """
    names = tasks.split(",") if isinstance(tasks, str) else tasks
    with Reading(quiet=quiet) as reading:
        return run_harness(
            trained.model,
            trained.tokenizer,
            [name.strip() for name in names if name.strip()],
            device=str(trained.model.embed.weight.device),
            precision="fp32" if precision == "fp32" else trained.precision,
            data=None if data is None or data == HUB else Path(data).expanduser(),
            limit=limit,
            shots=shots,
            report=reading,
        )
