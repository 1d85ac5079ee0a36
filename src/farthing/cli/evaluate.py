"""eval: a trained model scored, by a text or by tasks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from farthing.cli.harness import HarnessFolder, HarnessNames, ask_harness
from farthing.cli.options import RUNS, Checkpoint, Device, Json, Quiet, RunName, Runs, add, say_json
from farthing.errors import UserError
from farthing.rundir import find_model

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[evaluate.X=VALUE]...", help="Settings of [evaluate] to change, such as evaluate.stride=128."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Score this text, cut into documents as the run's own was. With --task or --harness, where the questions "
        "are: a file, a folder of such files, or hub (the default).",
    ),
]
Split = Annotated[
    str | None,
    typer.Option("--split", metavar="PART", help="Which of the run's parts: validation (the default), test or train."),
]
Task = Annotated[
    str | None,
    typer.Option("--task", metavar="NAME", help="Ask these tasks instead, such as hellaswag or arc_easy,piqa."),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        metavar="N",
        help="Ask N of a task's questions only, the same ones each time: drawn ones; with --harness, the first ones.",
    ),
]
Shots = Annotated[int | None, typer.Option("--shots", metavar="K", help="Put K worked examples before each question.")]
ShotsData = Annotated[
    str | None,
    typer.Option("--shots-data", metavar="FILE", help="Where those come from; none: the task's other questions."),
]
Answers = Annotated[
    Path | None,
    typer.Option("--answers", metavar="FILE", help="Write every question's decision to this file, a JSON line each."),
]


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    add(
        app,
        evaluate,
        name="eval",
        short="Score a trained model, by a text or by tasks.",
        example="farthing eval default-1 --task hellaswag --data hellaswag_val.jsonl",
    )


def evaluate(
    run: RunName,
    overrides: Overrides = None,
    data: Data = None,
    split: Split = None,
    task: Task = None,
    harness: HarnessNames = None,
    harness_tasks: HarnessFolder = False,
    limit: Limit = None,
    shots: Shots = None,
    shots_data: ShotsData = None,
    answers: Answers = None,
    checkpoint: Checkpoint = "last",
    runs: Runs = RUNS,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score a trained model: a text in bits per byte, every token once; or tasks, by the share of right answers."""
    find_model(run, runs)
    if harness is not None:
        unfit = {"--task": task, "--split": split, "--shots-data": shots_data}
        if given := [name for name, value in unfit.items() if value is not None]:
            raise UserError(f"{given[0]}: does not go with --harness, whose tasks bring their own; leave one out")
        asked = _Asked(harness, data or "hub", limit, shots, None, answers, _precision(overrides or []))
        asked.check()
        _ask_harness(asked, run, checkpoint, runs, device, quiet=quiet, as_json=as_json)
        return
    if task is not None:
        asked = _Asked(task, data or "hub", limit, shots, shots_data, answers, _precision(overrides or []))
        if split is not None:
            raise UserError(f"--split {split}: a task has its own questions; leave out --split or --task")
        asked.check()
        _ask(asked, run, checkpoint, runs, device, quiet=quiet, as_json=as_json)
        return
    of_tasks = {"--limit": limit, "--shots": shots, "--shots-data": shots_data, "--answers": answers}
    if given := [name for name, value in of_tasks.items() if value is not None]:
        raise UserError(f"{given[0]}: is for tasks; name one with --task")
    from farthing import api
    from farthing.cli import tables

    model = api.open_model(run, runs=runs, checkpoint=checkpoint, device=device)
    part = split or "validation"
    found = model.evaluate(data, overrides or [], split=part, references=not as_json, quiet=quiet)
    # Only the score that the run's own recipe asks for is the run's; docs/compare.md says why it is kept.
    own = part == "test" and data is None and not overrides and checkpoint == "last"
    kept = own and model.run is not None and api.keep_held_out(model.run, found)
    if as_json:
        say_json(found.validation)
        return
    tables.print_score(model.name, data or part, found)
    if kept:
        typer.echo("kept beside the run: compare and report show it next to the validation score")


@dataclass(frozen=True)
class _Asked:
    """What is asked of tasks."""

    task: str
    data: str
    limit: int | None
    shots: int | None
    shots_data: str | None
    answers: Path | None
    precision: Literal["fp32", "train"]

    def check(self) -> None:
        """Refuse early where the answers could not be written late."""
        if self.answers is None:
            return
        if self.answers.exists():
            raise UserError(f"--answers {self.answers}: is there already; name a new file")
        if not self.answers.absolute().parent.is_dir():
            raise UserError(f"--answers {self.answers}: there is no folder {self.answers.parent}")


def _precision(overrides: list[str]) -> Literal["fp32", "train"]:
    precision = "fp32"
    for word in overrides:
        name, _, precision = word.partition("=")
        if name != "evaluate.precision" or precision not in ("fp32", "train"):
            raise UserError(f"{word}: tasks take only evaluate.precision=fp32 or evaluate.precision=train")
    return "train" if precision == "train" else "fp32"


def _ask(asked: _Asked, run: str, checkpoint: str, runs: Path, device: str, *, quiet: bool, as_json: bool) -> None:
    from farthing import api
    from farthing.cli.scores import print_tasks
    from farthing.storage import write_text

    # A slip in the questions is told before the weights are read.
    loaded = api.load_tasks(asked.task, asked.data, shots_data=asked.shots_data)
    model = api.open_model(run, runs=runs, checkpoint=checkpoint, device=device)
    found = api.ask(
        model,
        loaded,
        limit=asked.limit,
        shots=asked.shots or 0,
        precision=asked.precision,
        quiet=quiet,
    )
    if asked.answers is not None:
        lines = [json.dumps(line, ensure_ascii=False) for one in found for line in one.answer_lines()]
        write_text(asked.answers, "\n".join(lines) + "\n")
    kept = []
    if model.run is not None and asked.precision == "fp32":
        kept = api.keep_tasks(model.run, model.step, found)
    if as_json:
        say_json({"model": model.name, "step": model.step, "tasks": [one.result for one in found]})
        return
    print_tasks(model.title, found)
    if kept:
        typer.echo("kept beside the run: its report and its model card show it")


def _ask_harness(
    asked: _Asked, run: str, checkpoint: str, runs: Path, device: str, *, quiet: bool, as_json: bool
) -> None:
    from farthing.api import open_model

    ask_harness(
        open_model(run, runs=runs, checkpoint=checkpoint, device=device),
        asked.task,
        asked.data,
        limit=asked.limit,
        shots=asked.shots,
        answers=asked.answers,
        precision=asked.precision,
        quiet=quiet,
        as_json=as_json,
    )
