"""compare, noise; and what `train --seeds` and `plan --predict` add."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from farthing.cli.options import (
    RUNS,
    Baseline,
    By,
    Deadline,
    Device,
    Json,
    Level,
    Quiet,
    Runs,
    Words,
    add,
    say_json,
    split_words,
)
from farthing.errors import UserError

ArmName = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="The runs are NAME-seed1 and so on; none: the recipe's name."),
]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    add(
        app,
        compare,
        name="compare",
        short="Compare runs: what differs, what it bought, how sure that is.",
        example="farthing compare base-seed* wide-seed* --baseline base-seed1",
    )
    add(
        app,
        noise,
        name="noise",
        short="Measure how far a recipe's runs lie apart for no reason but the seed.",
        example="farthing noise default --seeds 5",
    )


def compare(
    named: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, names of runs, folders of runs, or globs of these; the first is the baseline.",
        ),
    ],
    baseline: Baseline = None,
    level: Level = 0.05,
    by: By = "bits_per_byte",
    curves: Annotated[
        Path | None,
        typer.Option("--curves", metavar="FILE", help="Write loss and score over the runs' course to this CSV file."),
    ] = None,
    runs: Runs = RUNS,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The verdicts only, one a line.")] = False,
    as_json: Json = False,
) -> None:
    """Compare runs: what differs, what it bought, how sure that is, and what it cost.

    Runs that share a recipe but not a seed are one arm. Arms are held against the baseline by a paired t test where they
    share seeds, by Welch's otherwise, corrected for their number (Holm). A difference within the noise is none.
    """
    from farthing.compare.comparison import compare_runs
    from farthing.compare.runs import gather
    from farthing.recipe import Recipe

    if curves is not None:
        _check_target(curves)
    found = gather(named, runs=runs, recipe=Recipe)
    compared = compare_runs(found.runs, level=level, baseline=baseline, by=by, left_out=found.left_out)
    if curves is not None:
        from farthing.compare.curves import write_csv

        write_csv(curves, [one.arm for one in compared.arms], by=by, level=level)
    if as_json:
        say_json(compared.as_dict())
        return
    from farthing.cli import verdicts

    verdicts.show(compared, quiet=quiet)


def _check_target(path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder; name a file" if path.is_dir() else f"no such folder as {path.parent}"
        raise UserError(f"--curves {path}: {what}")


def noise(
    words: Words = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="How many runs, with the seeds 1 to N.")] = 5,
    name: ArmName = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    deadline: Deadline = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a recipe with several seeds, and say how far its runs lie apart and what difference so many could tell.

    Runs that are there already are not trained again. The result is kept beside the runs: `compare` judges arms of a
    single run by it.
    """
    from farthing import config
    from farthing.recipe import Recipe

    recipe, overrides = split_words(words)
    config.load(Recipe, recipe, overrides)
    from farthing import api

    floor = api.noise(
        recipe, overrides, seeds=seeds, name=name, runs=runs, device=device, deadline=deadline, quiet=quiet
    )
    if as_json:
        say_json(floor.as_dict())
    elif not quiet:
        from farthing.cli import verdicts

        verdicts.show_noise(floor)


def parse_seeds(text: str) -> list[int]:
    """`1,2,3` as numbers.

    Raises:
        UserError: something else.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [-1]
    if min(found) < 0:
        raise UserError(f"--seeds {text!r}: write whole numbers with commas between them, for example 1,2,3")
    return found


def train_seeds(
    recipe: str,
    overrides: list[str],
    seeds: str,
    *,
    name: str | None,
    runs: Path,
    device: str,
    deadline: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """`farthing train R --seeds 1,2,3`: one arm, run after run."""
    asked = parse_seeds(seeds)
    from farthing import api

    found = api.train_seeds(
        recipe, overrides, seeds=asked, name=name, runs=runs, device=device, deadline=deadline, quiet=quiet
    )
    if as_json:
        arm = found.baseline.as_dict(found.by)
        say_json({**arm, "level": found.level, "by": found.by, "notes": found.notes})
    elif not quiet:
        from farthing.cli import verdicts

        verdicts.show_arm(found)


def predict(planned: Any, named: str, *, runs: Path) -> dict[str, Any]:
    """What finished runs let one expect of a plan: bits per byte with an interval, and the fit it rests on.

    Raises:
        UserError: the plan knows no tokens yet, the runs are too few or too alike, or were scored on other text.
    """
    from farthing.compare.arms import group
    from farthing.compare.prediction import expect, points_of
    from farthing.compare.runs import gather
    from farthing.compare.scaling import fit
    from farthing.recipe import Recipe

    plan = planned.plan
    if plan.tokens is None or plan.flops is None:
        raise UserError(f"--predict {named}: without its text this plan knows no tokens: {planned.missing_text}")
    arms, notes = group(gather([named], runs=runs, recipe=Recipe).runs)
    points, more = points_of(arms)
    return expect(
        fit(points, notes=[*notes, *more]),
        arms[0].recipe,
        planned.recipe,
        parameters=plan.parameters,
        tokens=plan.tokens,
        flops=plan.flops,
    )
