"""publish-check: an exported folder looked through before it is shown to anybody."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from farthing import assemble, config
from farthing.data.store import Report, silent
from farthing.errors import FarthingError, UserError, first_line
from farthing.events import Evaluated, read_events
from farthing.export.checklist import Point, Recorded, check, failures
from farthing.export.leaks import Private
from farthing.export.push import Pushed, push
from farthing.recipe import Recipe
from farthing.rundir import RunDir, find_run, read_receipt, read_result
from farthing.sinks.reading import Reading
from farthing.storage import cache_folder


def publish_check(
    folder: str | Path, *, run: str | Path | None = None, runs: str | Path = "runs", quiet: bool = True
) -> list[Point]:
    """Look an exported folder through: licence, card, secrets, files, weights, scores.

    Args:
        folder: an exported model.
        run: the run it came from, on whose validation text the score is taken again; None leaves that out.
        runs: the folder of run folders.
        quiet: show no progress.

    Raises:
        farthing.UserError: there is no such folder or run.
    """
    found = None if run is None else find_run(str(run), Path(runs))
    path = Path(folder)
    with Reading(quiet=quiet) as reading:
        score: Recorded | str = "the run is not at hand" if found is None else recorded(found, reading)
        return check(path, private=private_to(path, found), recorded=score, report=lambda stage: reading(stage, 0, 0))


def push_checked(
    folder: str | Path,
    repository: str,
    points: Sequence[Point],
    *,
    public: bool = False,
    anyway: bool = False,
    quiet: bool = True,
) -> Pushed:
    """Upload a folder that has been looked through.

    Args:
        folder: an exported model.
        repository: NAME or OWNER/NAME on the hub.
        points: what was found in it.
        public: whether everybody may see it.
        anyway: also where a point has failed.
        quiet: show no progress.

    Raises:
        farthing.UserError: a point has failed, or the hub refuses; one line says what is there now.
    """
    if (wrong := failures(points)) and not anyway:
        first = wrong[0]
        raise UserError(
            f"--push {repository}: nothing was uploaded: {first.name}: {first.told}; {first.todo}; then: farthing "
            f"publish-check {shlex.quote(str(folder))} --push {repository} (or say --anyway)"
        )
    with Reading(quiet=quiet) as reading:
        return push(Path(folder), repository, public=public, report=lambda stage: reading(stage, 0, 0))


def private_to(folder: Path, run: RunDir | None) -> Private:
    """What must not be published of this machine, this folder's place and the run's."""
    places = [folder.absolute(), *([] if run is None else [run.path.absolute()])]
    if run is not None:
        with suppress(FarthingError):
            places.append(Path(read_receipt(run)["directory"]))
    return Private.here(places)


def recorded(run: RunDir, report: Report = silent) -> Recorded | str:
    """A run's own scores and the text they were taken on, or why they cannot be had."""
    scores = {one["step"]: one["validation"] for one in read_events(run.events) if one["kind"] == Evaluated.kind}
    if result := read_result(run):
        scores[result["spent"]["steps"]] = result["validation"]
    if not any(scores.values()):
        return "the run was never scored"
    try:
        recipe, receipt = config.load(Recipe, str(run.recipe)), read_receipt(run)
        text = assemble.read_text(recipe, directory=Path(receipt["directory"]), cache=cache_folder(), report=report)
    except (FarthingError, OSError) as error:
        return f"the run's text cannot be read any more: {first_line(error)}"
    return Recorded(
        recipe=receipt["recipe"],
        validation=scores,
        split=text.validation,
        document=recipe.model.attention.scope == "document",
    )
