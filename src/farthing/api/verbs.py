"""plan, train, resume: what the command does, as functions that return objects."""

from __future__ import annotations

from pathlib import Path

from farthing import assemble, config, session
from farthing.api.continuing import with_start
from farthing.api.recipes import Overrides, resolve
from farthing.api.run import Run
from farthing.errors import UserError
from farthing.evals.tasks import Loaded
from farthing.evals.tasks.action import load_asked
from farthing.evals.tasks.scoring import HUB
from farthing.planning import Plan
from farthing.planning import Planned as Planned
from farthing.recipe import Recipe
from farthing.rundir import RunDir, find_run, new_run_path
from farthing.sinks.console import Outlook
from farthing.sinks.reading import Following, Reading
from farthing.storage import cache_folder
from farthing.training.interruption import parse_deadline, slurm_deadline


def train(
    recipe: str | Recipe = "default",
    overrides: Overrides = (),
    *,
    name: str | None = None,
    runs: str | Path = "runs",
    device: str = "auto",
    deadline: str | None = None,
    quiet: bool = False,
) -> Run:
    """Train a recipe to the end of its budget.

    Args:
        recipe: a recipe file, a shipped recipe's name, or a Recipe.
        overrides: `{"model.n_layer": 8}` or `["model.n_layer=8"]`.
        name: the run folder's name; by default the recipe's with the first free number.
        runs: the folder of run folders.
        device: auto, cpu, cuda or mps.
        deadline: stop with a checkpoint by then: a duration ("90m") or a time ("2026-11-22T18:00").
        quiet: show nothing on the way.

    Raises:
        farthing.UserError: the request cannot be carried out; nothing has been written.
        farthing.Preempted: a signal or the deadline stopped it; `resume` continues.
    """
    resolved = with_start(resolve(recipe, overrides), Path(runs))
    stem = "run" if isinstance(recipe, Recipe) else Path(recipe).name.removesuffix(".toml")
    path = new_run_path(Path(runs), name, stem)
    until = _until(deadline)
    with Reading(quiet=quiet) as reading:
        session.new_run(resolved, path, device=device, deadline=until, watcher=_watcher(reading, quiet))
    return Run(RunDir(path))


def resume(
    run: str | Path,
    *,
    runs: str | Path = "runs",
    device: str = "auto",
    deadline: str | None = None,
    quiet: bool = False,
) -> Run:
    """Continue a stopped run from its newest valid checkpoint; a finished one is returned as it is."""
    found = find_run(str(run), Path(runs))
    until = _until(deadline)
    with Reading(quiet=quiet) as reading:
        session.resume(found, device=device, deadline=until, watcher=_watcher(reading, quiet))
    return Run(found)


def plan(
    recipe: str | Recipe = "default",
    overrides: Overrides = (),
    *,
    runs: str | Path = "runs",
    device: str = "auto",
    quiet: bool = True,
) -> Planned:
    """What a recipe comes to on this machine, before anything is spent.

    Without its text there is still a plan, with `missing_text` saying why the text cannot be read.
    """
    resolved = with_start(resolve(recipe, overrides), Path(runs))
    machine = session.prepare_machine(resolved, device)
    missing, text, tasks = None, None, list[Loaded]()
    with Reading(quiet=quiet) as reading:
        try:
            text = assemble.read_text(resolved, directory=Path.cwd(), cache=cache_folder(), report=reading)
            local = all(not one.path.startswith(HUB) for one in resolved.evaluate.tasks)
            tasks = load_asked(resolved.evaluate, directory=Path.cwd()) if local else []
        except UserError as error:
            missing = str(error)
        try:
            free, saving = session.disk_free(Path(runs)), session.disk_speed(resolved, Path(runs))
            made = assemble.plan_run(
                resolved, machine, text, disk_free=free, saving=saving, tasks=tasks, report=reading
            )
        except UserError as error:
            raise UserError(missing or str(error)) from None
    return Planned(resolved, made, missing)


def _until(deadline: str | None) -> float | None:
    asked = None if deadline is None else parse_deadline(deadline)
    given = [at for at in (asked, slurm_deadline()) if at is not None]
    return min(given, default=None)


def _watcher(reading: Reading, quiet: bool) -> session.Watcher:
    """Show a run to a person: the preparation's bars, then its events."""

    def planned(name: str, recipe: Recipe, plan: Plan) -> Following:
        reading.close()
        outlook = Outlook(
            run=name,
            steps=plan.steps or 0,
            tokens=plan.tokens or 0,
            parameters=plan.parameters,
            seconds=plan.seconds,
            price_per_hour=recipe.budget.price_per_hour,
            settings=plan.told(),
        )
        return Following(outlook, recipe=config.fingerprint(recipe), quiet=quiet)

    return session.Watcher(reading=reading, planned=planned)
