"""report: runs, a search or a climb as one page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farthing.cli.options import RUNS, Baseline, By, Json, Level, Quiet, Runs, add, say_json
from farthing.errors import FarthingError, UserError

if TYPE_CHECKING:
    from farthing.compare.arms import Arm
    from farthing.compare.runs import Gathered
    from farthing.report.material import Material, Question, Tokens

_NAME = "report"
_NAMED = 5
"""arms in a title"""


def register(app: typer.Typer) -> None:
    """Add this verb to the command."""
    add(
        app,
        report,
        name="report",
        short="Write runs, a search or a climb up as one page: results, curves, diagnosis.",
        example="farthing report base-seed* wide-seed* --baseline base-seed1 --out report.html",
    )


def report(
    named: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|FOLDER|SEARCH|CLIMB...",
            help="A run, folders of runs, globs of these, or the folder of a search or of a climb.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where it goes; none: report.html in the folder that it is of."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Markdown with its figures in a folder, as SVG and PNG, instead of HTML.")
    ] = False,
    baseline: Baseline = None,
    level: Level = 0.05,
    by: By = "bits_per_byte",
    runs: Runs = RUNS,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a report: what was asked, what came of it, how sure that is, what it cost, and what to try next.

    One HTML file that needs no network. Files are only read; an older report of the same name is replaced, and nothing else.
    """
    from farthing.report import page
    from farthing.report.advice import diagnose_all
    from farthing.report.contents import compose

    question, folder, found = _question(named, runs)
    target = out if out is not None else folder / f"{_NAME}{'.md' if markdown else '.html'}"
    page.check_target(target)
    if markdown:
        page.check_folder(page.figures_folder(target))
    material = _material(question, found, baseline=baseline, level=level, by=by)
    diagnosis = diagnose_all(material)
    document = compose(material, diagnosis)
    if markdown:
        files = page.write_markdown(document, target)
    else:
        page.write_html(document, target)
        files = [target]
    if as_json:
        say_json(
            {
                "report": str(target),
                "files": [str(file) for file in files],
                "of": question.kind,
                "runs": len(material.runs),
                "arms": [arm.name for arm in material.arms],
                "diagnosis": [one.as_dict() for one in diagnosis],
                "left_out": [{"run": one.run, "why": one.why} for one in material.left_out],
                "notes": material.remarks,
            }
        )
    elif not quiet:
        _say(target, material, [f"{one.arm}: {one.finding.ailment}: {one.finding.words}" for one in diagnosis])


def _say(target: Path, material: Material, lines: Sequence[str]) -> None:
    from farthing.cli.listing import write
    from farthing.sinks.legible import legible

    for line in lines:
        write(legible(line))
    if material.why_not:
        write(legible(f"not compared: {material.why_not}"))
    for one in material.left_out:
        write(legible(f"left out: {one}"))
    write(f"written to {target}")


def _question(named: Sequence[str], runs: Path) -> tuple[Question, Path, Gathered]:
    """What the report is of, the folder that it belongs to, and its runs.

    Raises:
        UserError: a name leads nowhere, or not one run can be read.
    """
    from farthing.compare.runs import gather
    from farthing.recipe import Recipe
    from farthing.report.material import Question

    if len(named) == 1:
        place = next((path for path in (runs / named[0], Path(named[0])) if path.is_dir()), None)
        if place is not None and (question := _of_folder(place)) is not None:
            return question, place, gather([str(place)], runs=runs, recipe=Recipe)
    found = gather(named, runs=runs, recipe=Recipe)
    if len(found.runs) == 1 and len(named) == 1 and found.runs[0].path.name == Path(named[0]).name:
        return Question("run", found.runs[0].name), found.runs[0].path, found
    parents = list(dict.fromkeys(run.path.parent for run in found.runs))
    return Question("runs", _title(named)), parents[0], found


def _title(named: Sequence[str]) -> str:
    """What was named, each arm once: a shell makes twelve names of `base-* deeper-*`."""
    arms = list(dict.fromkeys(re.sub(r"-seed\d+$", "", Path(name).name or name) for name in named))
    more = len(arms) - _NAMED
    return ", ".join(arms[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _of_folder(place: Path) -> Question | None:
    """The search or the climb that a folder holds, if it holds one."""
    from farthing import config
    from farthing.report.material import Question
    from farthing.search.climb_record import ClimbFolder
    from farthing.search.record import Folder
    from farthing.storage import read_json

    climb, search = ClimbFolder(place), Folder(place)
    if climb.asked.is_file():
        return Question("climb", place.name, config.read_toml(climb.asked), climb.read().as_dict())
    if not search.asked.is_file():
        return None
    if not search.findings.is_file():
        raise UserError(f"{place}: this search has found nothing yet; when a sitting of it ends, it can be reported on")
    try:
        findings = dict(read_json(search.findings))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{search.findings}: damaged: {error}; the search's next sitting writes it again") from None
    if findings.get("version") != 1:
        raise UserError(f"{search.findings}: of version {findings.get('version')}; this farthing reads 1")
    return Question("search", place.name, config.read_toml(search.asked), findings)


def _material(question: Question, found: Gathered, *, baseline: str | None, level: float, by: str) -> Material:
    from dataclasses import replace

    from farthing.budget import Budget
    from farthing.compare.arms import check_by
    from farthing.compare.statistics import check_level
    from farthing.recipe import Recipe
    from farthing.report.material import collect

    check_by(by)
    try:
        check_level(level)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    defaults = Recipe(budget=Budget(steps=1))
    material = collect(question, found, baseline=baseline, by=by, level=level, defaults=defaults)
    return replace(material, tokens=list(_tokens(material.arms)))


_LARGEST = 100_000_000
"""bytes of text that are read again for a report"""


def _tokens(arms: Sequence[Arm]) -> Iterator[Tokens]:
    """What each tokenizer of the arms makes of the validation text."""
    from farthing.report.material import Tokens

    seen: dict[str, list[Arm]] = {}
    for arm in arms:
        seen.setdefault(arm.runs[0].tokenizer, []).append(arm)
    for several in list(seen.values())[:4]:
        names = [arm.name for arm in several]
        try:
            yield Tokens(names, _inspected(several[0]))
        except (FarthingError, OSError, ValueError, LookupError, TypeError) as error:
            yield Tokens(names, None, f"what it makes of the text cannot be told here: {error}")


def _inspected(arm: Arm) -> dict[str, Any]:
    """A tokenizer measured on the validation text of a run, which is read from where the run read it.

    Raises:
        UserError: the text or the tokenizer is gone, has changed, or is too large to be read again.
    """
    from farthing import config
    from farthing.data.inspect import inspect
    from farthing.data.prepare import prepare
    from farthing.recipe import Recipe
    from farthing.rundir import RunDir
    from farthing.storage import cache_folder, read_json

    run = arm.runs[0]
    folder = RunDir(run.path)
    receipt = read_json(folder.receipt)
    recipe = config.load(Recipe, str(folder.recipe))
    if receipt["data"]["kind"] == "hub":
        raise UserError("nothing is fetched for a report (farthing tokenizer inspect does that)")
    if (size := receipt["data"]["files_bytes"]) > _LARGEST:
        raise UserError(f"{size:,} bytes are too many to be read again (farthing tokenizer inspect does that)")
    text = prepare(
        recipe.data,
        recipe.tokenizer,
        directory=Path(receipt["directory"]),
        cache=cache_folder(),
        context_length=recipe.model.context_length,
    )
    if text.validation.fingerprint != run.texts["validation"] or text.tokenizer.fingerprint != run.tokenizer:
        raise UserError("the text or the tokenizer has changed since the run")
    width = recipe.model.d_model
    return inspect(text.tokenizer, text.validation.texts(), d_model=width, parameters=run.parameters).as_dict()
