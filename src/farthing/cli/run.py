"""plan, train, resume."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from farthing.cli.options import Deadline, Device, Json, Quiet, RunName, Runs, Words, say_json, split_words
from farthing.errors import UserError

RUNS = "runs"


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    app.command(context_settings={"ignore_unknown_options": False})(plan)
    app.command()(train)
    app.command()(resume)


def plan(
    words: Words = None,
    runs: Runs = RUNS,  # type: ignore[assignment]
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what a run will take (parameters, memory, steps, FLOPs, minutes, money) before anything is spent."""
    from farthing import api
    from farthing.cli import tables

    recipe, overrides = split_words(words)
    planned = api.plan(recipe, overrides, runs=runs, device=device, quiet=quiet or as_json)
    refusals = [*planned.plan.refusals, *([planned.missing_text] if planned.missing_text else [])]
    if as_json:
        table = planned.plan.as_dict()
        say_json({**table, "refusals": refusals, "missing_text": planned.missing_text})
    else:
        tables.print_plan(recipe, planned)
    if refusals:
        raise UserError(f"{recipe}: this run would be refused: {'; '.join(refusals)}")


def train(
    words: Words = None,
    name: Annotated[str | None, typer.Option("--name", help="The run folder's name.")] = None,
    runs: Runs = RUNS,  # type: ignore[assignment]
    device: Device = "auto",
    deadline: Deadline = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a recipe to the end of its budget; without a recipe, the default one on Python's own sources."""
    from farthing.rundir import check_name, new_run_path

    recipe, overrides = split_words(words)
    if name is not None:
        # Before the seconds that importing torch takes.
        check_name(name)
        new_run_path(runs, name, "run")
    from farthing import api

    done = api.train(recipe, overrides, name=name, runs=runs, device=device, deadline=deadline, quiet=quiet or as_json)
    _conclude(done, as_json)


def resume(
    run: RunName,
    runs: Runs = RUNS,  # type: ignore[assignment]
    device: Device = "auto",
    deadline: Deadline = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Continue a stopped run from its newest valid checkpoint, to the same end as if it had never stopped."""
    from farthing.rundir import find_run

    find_run(run, runs)
    from farthing import api

    done = api.resume(run, runs=runs, device=device, deadline=deadline, quiet=quiet or as_json)
    _conclude(done, as_json)


def _conclude(done: Any, as_json: bool) -> None:
    result = done.result
    if as_json:
        contract = ("run", "status", "validation", "best", "references", "spent", "wall_seconds", "parameters")
        say_json({key: result[key] for key in contract})
    else:
        from farthing.cli import tables

        tables.print_result(result)
