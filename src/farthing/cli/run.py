"""plan, train, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from farthing.cli.options import RUNS, Deadline, Device, Json, Quiet, Runs, Words, add, say_json, split_words
from farthing.errors import UserError

_RESULT = ("run", "status", "validation", "best", "references", "spent", "startup", "wall_seconds", "parameters")


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    add(
        app,
        plan,
        name="plan",
        short="Say what a run will take before anything is spent.",
        example="farthing plan default model.n_layer=8 budget.minutes=30",
    )
    add(
        app,
        train,
        name="train",
        short="Train a model, to the end of its budget.",
        example="farthing train default data.kind=text data.path=book.txt budget.minutes=5",
    )
    add(app, resume, name="resume", short="Continue a stopped run.", example="farthing resume default-1")


def plan(
    words: Words = None,
    predict: Annotated[
        str | None,
        typer.Option(
            "--predict", metavar="RUNS", help="Predict the score from these finished runs: a folder or a glob."
        ),
    ] = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what a run will take (parameters, memory, steps, FLOPs, minutes, money) before anything is spent.

    A few steps are measured on this machine if the text is there. Exit code 2 if the run would be refused.
    """
    recipe, overrides = _checked(words)
    from farthing import api
    from farthing.cli import experiments, tables, verdicts

    planned = api.plan(recipe, overrides, runs=runs, device=device, quiet=quiet)
    predicted = None if predict is None else experiments.predict(planned, predict, runs=runs)
    if as_json:
        say_json(_as_json(planned) | ({} if predicted is None else {"predicted": predicted}))
    else:
        tables.print_plan(recipe, planned)
        if predicted is not None:
            verdicts.show_prediction(predicted)
    if planned.refusals:
        raise UserError(f"{recipe}: this run would be refused: {'; '.join(planned.refusals)}")


def _as_json(planned: Any) -> dict[str, Any]:
    table = planned.plan.as_dict()
    if planned.recipe.budget.price_per_hour is None:
        # As in `spent`: what has no price costs nothing.
        table["money"] = 0.0
    return {**table, "refusals": planned.refusals, "missing_text": planned.missing_text}


def train(
    words: Words = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The new run's name; none: the recipe's and a number.")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds", metavar="N,N", help="A run for each seed, in NAME-seed1 and so on; compared as one arm."
        ),
    ] = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    deadline: Deadline = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a model to the end of its budget, score it, and keep everything in a run folder.

    Without a recipe: the default one, on Python's own sources, in about five minutes. Ctrl-C saves and stops.
    """
    from farthing.rundir import check_name, new_run_path

    recipe, overrides = _checked(words)
    if seeds is not None:
        from farthing.cli import experiments

        experiments.train_seeds(
            recipe, overrides, seeds,
            name=name, runs=runs, device=device, deadline=deadline, quiet=quiet, as_json=as_json,
        )  # fmt: skip
        return
    if name is not None:
        check_name(name)
        new_run_path(runs, name, "run")
    from farthing import api

    done = api.train(recipe, overrides, name=name, runs=runs, device=device, deadline=deadline, quiet=quiet)
    _conclude(done, quiet=quiet, as_json=as_json)


def resume(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run folder, or the name of one in the --runs folder.")
    ] = None,
    everything: Annotated[
        Path | None,
        typer.Option("--all", metavar="DIR", help="Continue every unfinished run in this folder, one after another."),
    ] = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    deadline: Deadline = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Continue a stopped run from its newest valid checkpoint.

    On the same machine the model comes out bit for bit as if the run had never stopped.
    """
    if (run is None) == (everything is None):
        raise UserError("name a run to continue, or a folder of runs with --all DIR")
    if everything is not None:
        from farthing.cli import resuming

        resuming.resume_all(everything, device=device, deadline=deadline, quiet=quiet, as_json=as_json)
        return
    assert run is not None
    from farthing.rundir import find_run

    find_run(run, runs)
    from farthing import api

    done = api.resume(run, runs=runs, device=device, deadline=deadline, quiet=quiet)
    _conclude(done, quiet=quiet, as_json=as_json)


def _checked(words: list[str] | None) -> tuple[str, list[str]]:
    """The recipe and its overrides, known to be sound before the seconds that importing torch takes."""
    from farthing import config
    from farthing.recipe import Recipe

    recipe, overrides = split_words(words)
    config.load(Recipe, recipe, overrides)
    return recipe, overrides


def _conclude(done: Any, *, quiet: bool, as_json: bool) -> None:
    result = done.result
    if as_json:
        say_json({key: result[key] for key in _RESULT if key in result})
    elif not quiet:
        from farthing.cli import tables

        tables.print_result(result)
