"""A report put together: which sections it has, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from farthing.errors import UserError
from farthing.report import ladder, sections
from farthing.report.advice import Diagnosis
from farthing.report.blocks import Diagnosed, Document, Findings, Section, Tone
from farthing.report.material import Material

_TONES: dict[str, Tone] = {
    "diverged": "bad",
    "learning rate too high": "bad",
    "over-fitting": "bad",
    "data-limited": "flat",
    "still descending": "flat",
    "noise too large to tell": "flat",
    "nothing to complain of": "good",
}


def compose(material: Material, found: Sequence[Diagnosis]) -> Document:
    """The whole report.

    Args:
        material: what it shows.
        found: the diagnosis.

    Raises:
        UserError: the findings of a search or a climb are damaged.
    """
    kinds = {"run": "a run", "runs": "runs", "search": "a search", "climb": "a climb"}
    arms, runs = len(material.arms), len(material.runs)
    count = "" if runs == 1 else f": {runs} runs of {arms} recipe{'' if arms == 1 else 's'}"
    results = {"search": ladder.of_search, "climb": ladder.of_climb}.get(material.question.kind, ladder.of_runs)
    try:
        lead, told = list(ladder.headline(material)), list(results(material))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if not material.question.found:
            raise
        # A search's or a climb's own file has come from elsewhere, or was changed by hand.
        what = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{material.question.title}: its findings are damaged ({what}); a next sitting writes them again"
        ) from None
    return Document(
        title=material.question.title,
        subtitle=f"Report on {kinds[material.question.kind]}{count}, by Farthing",
        lead=lead,
        sections=[sections.asked(material), *told, *_later(material, found)],
    )


def _later(material: Material, found: Sequence[Diagnosis]) -> Iterator[Section]:
    """What every report has after its results."""
    later = (
        sections.curves(material),
        Section("Diagnosis", [Findings([_told(one) for one in found])]) if found else None,
        sections.scaling(material),
        sections.settings(material),
        sections.held_out(material),
        sections.tasks(material),
        sections.samples(material),
        sections.network(material),
        sections.tokenizer(material),
        sections.checkpoints(material),
        sections.cost(material),
        sections.receipts(material),
        sections.remarks(material),
    )
    yield from (section for section in later if section is not None)


def _told(one: Diagnosis) -> Diagnosed:
    finding = one.finding
    evidence = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in finding.evidence.items())
    if one.of > 1:
        evidence = f"{one.runs} of {one.of} runs; {evidence}" if evidence else f"{one.runs} of {one.of} runs"
    return Diagnosed(
        arm=one.arm,
        ailment=finding.ailment,
        tone=_TONES[finding.ailment],
        words=finding.words,
        evidence=evidence,
        advice=finding.advice,
        commands=one.commands,
    )
