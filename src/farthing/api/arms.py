"""A recipe over several seeds: trained as one arm, its noise floor, and a run's one score on the held-out test text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from farthing import config
from farthing.api import verbs
from farthing.api.continuing import with_start
from farthing.api.recipes import Overrides, resolve
from farthing.api.run import Run
from farthing.api.trained import Scored
from farthing.compare import noise as floors
from farthing.compare.comparison import Comparison, compare_runs
from farthing.compare.noise import NoiseFloor
from farthing.compare.runs import failure, gather, read_held_out
from farthing.errors import DivergedError, Preempted, ResourceError, UserError
from farthing.recipe import Recipe
from farthing.rundir import HELD_OUT_VERSION, RunDir, check_name, read_receipt
from farthing.storage import write_json
from farthing.training.interruption import parse_deadline


def train_seeds(
    recipe: str | Recipe = "default",
    overrides: Overrides = (),
    *,
    seeds: Sequence[int],
    name: str | None = None,
    runs: str | Path = "runs",
    device: str = "auto",
    deadline: str | None = None,
    quiet: bool = False,
) -> Comparison:
    """Train a recipe with several seeds, one run after another, as an arm of an experiment.

    The same call continues what is unfinished and leaves alone what is done. A run that diverges or runs out of memory is
    one of the arm's failures; the others are trained all the same, and it is not tried again.

    Args:
        recipe: a recipe file, a shipped recipe's name, or a Recipe.
        overrides: `{"model.n_layer": 8}` or `["model.n_layer=8"]`; not of the seed.
        seeds: one or more; each has a run folder of its own, NAME-seed1 and so on.
        name: the arm's name; by default the recipe's.
        runs: the folder of run folders.
        device: auto, cpu, cuda or mps.
        deadline: stop with a checkpoint by then.
        quiet: show nothing on the way.

    Returns:
        The arm alone, as `compare` would show it.

    Raises:
        farthing.UserError: the request cannot be carried out, or a folder of that name is of another recipe.
        farthing.Preempted: a signal or the deadline stopped it; the same call goes on.
        farthing.DivergedError: not one of the runs came to a score.
    """
    recipes = _recipes(recipe, overrides, seeds, Path(runs))
    stem = name or ("run" if isinstance(recipe, Recipe) else Path(recipe).name.removesuffix(".toml"))
    for seed in recipes:
        check_name(f"{stem}-seed{seed}")
    folders = {seed: RunDir(Path(runs) / f"{stem}-seed{seed}") for seed in recipes}
    for seed, folder in folders.items():
        _same_recipe(folder, recipes[seed])
    # One deadline for all of them: "90m" counts from here, not from each run's start.
    until = None if deadline is None else parse_deadline(deadline)
    for seed, folder in folders.items():
        try:
            _finish(folder, recipes[seed], device=device, until=until, quiet=quiet)
        except Preempted as stop:
            raise Preempted(f"{stop}; or the whole arm with the same command") from None
        except (DivergedError, ResourceError):
            if failure(folder) is None:
                raise
    paths = [str(folder.path) for folder in folders.values()]
    found = compare_runs(gather(paths, runs=Path(runs), recipe=Recipe).runs)
    if found.baseline.summary.n == 0:
        raise DivergedError(f"{stem}: none of {len(recipes)} runs came to a score: {'; '.join(found.notes)}")
    return found


def noise(
    recipe: str | Recipe = "default",
    overrides: Overrides = (),
    *,
    seeds: int = 5,
    name: str | None = None,
    runs: str | Path = "runs",
    device: str = "auto",
    deadline: str | None = None,
    quiet: bool = False,
) -> NoiseFloor:
    """The noise floor of a recipe: train it with the seeds 1 to `seeds`, and keep how far they lie apart.

    It is kept in the folder of runs, where comparisons find it for arms of a single run.

    Args:
        recipe: as for `train_seeds`.
        overrides: likewise.
        seeds: how many; two or more.
        name: the arm's name; by default the recipe's.
        runs: the folder of run folders.
        device: auto, cpu, cuda or mps.
        deadline: stop with a checkpoint by then.
        quiet: show nothing on the way.

    Raises:
        farthing.UserError: fewer than two seeds, or fewer than two runs came to a score.
    """
    if seeds < 2:
        raise UserError(f"--seeds {seeds}: noise shows between runs; it takes two or more")
    arm = train_seeds(
        recipe,
        overrides,
        seeds=range(1, seeds + 1),
        name=name,
        runs=runs,
        device=device,
        deadline=deadline,
        quiet=quiet,
    ).baseline.arm
    floor = floors.measure(arm)
    floors.keep(floor, Path(runs))
    return floor


def held_out(run: Run, *, device: str = "auto", quiet: bool = True) -> dict[str, Any]:
    """The yardsticks of a finished run's last weights on its test text: taken once, kept, and read back from then on.

    Raises:
        farthing.UserError: the run is not finished, or its recipe holds out no test text (data.test).
    """
    found = read_held_out(RunDir(run.path))
    if found is None:
        scored = run.evaluate(split="test", device=device, references=False, quiet=quiet)
        keep_held_out(RunDir(run.path), scored)
        found = scored.validation
    return dict(found)


def keep_held_out(run: RunDir, scored: Scored) -> bool:
    """Keep a score of the test text beside a finished run, unless one has been kept before; whether it was.

    Args:
        run: whose.
        scored: its last weights on the whole test text, as its own recipe scores.
    """
    if not run.result.is_file() or run.held_out.exists():
        return False
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    kept = {"version": HELD_OUT_VERSION, "step": scored.step, "test": scored.validation, "when": when}
    write_json(run.held_out, kept)
    return True


def _recipes(recipe: str | Recipe, overrides: Overrides, seeds: Sequence[int], runs: Path) -> dict[int, Recipe]:
    """The recipe with each of the seeds, every one checked before anything is trained."""
    base = with_start(resolve(recipe, overrides), runs)
    given = overrides if isinstance(overrides, Mapping) else {str(text).partition("=")[0].strip() for text in overrides}
    if "seed" in given:
        raise UserError("seed=... and --seeds: give one of them")
    if not seeds:
        raise UserError("--seeds: give one seed or more, for example 1,2,3")
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed in seeds if list(seeds).count(seed) > 1)
        raise UserError(f"--seeds: {twice} is given twice; a seed counts once")
    return {seed: resolve(base, {"seed": seed}) for seed in seeds}


def _same_recipe(folder: RunDir, recipe: Recipe) -> None:
    """Refuse a folder that is there already and holds something else than this recipe with this seed."""
    if not folder.path.exists():
        return
    RunDir.open(folder.path)
    if read_receipt(folder)["recipe"] == config.fingerprint(recipe):
        return
    changes = config.diff(config.load(Recipe, str(folder.recipe)), recipe)
    what = (
        f"{changes[0].path} was {changes[0].old!r}, is {changes[0].new!r}" if changes else "its recipe has been edited"
    )
    raise UserError(f"{folder.path}: is a run of another recipe ({what}); choose another --name")


def _finish(folder: RunDir, recipe: Recipe, *, device: str, until: float | None, quiet: bool) -> None:
    """Bring one run of an arm to its end: new, continued, or left as it is."""
    if folder.path.exists() and (folder.result.is_file() or failure(folder) is not None):
        return
    if until is not None and until <= time.time():
        raise Preempted(f"the deadline came before {folder.name} was finished")
    deadline = None if until is None else datetime.fromtimestamp(until).astimezone().isoformat()
    if not folder.path.exists():
        verbs.train(recipe, name=folder.name, runs=folder.path.parent, device=device, deadline=deadline, quiet=quiet)
    else:
        verbs.resume(folder.path, device=device, deadline=deadline, quiet=quiet)
