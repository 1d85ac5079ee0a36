"""What a report is made of: sections of paragraphs, tables, figures, samples and findings, before they become a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from farthing.report.figures import Figure

Tone = Literal["", "good", "bad", "flat", "code", "quiet"]


@dataclass(frozen=True)
class Cell:
    """A cell that is more than plain text.

    Args:
        text: what it says.
        tone: how; good, bad and flat for verdicts, code for what can be typed.
    """

    text: str
    tone: Tone = ""

    def __str__(self) -> str:
        """What it says."""
        return self.text


@dataclass(frozen=True)
class Paragraph:
    """A sentence or several."""

    text: str
    tone: Tone = ""
    kind: str = "paragraph"


@dataclass(frozen=True)
class Table:
    """Rows under a head.

    Args:
        head: names of the columns.
        rows: a cell for each column.
        numbers: which columns hold numbers, and stand to the right.
        caption: a sentence, or empty.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    numbers: frozenset[int] = frozenset()
    caption: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Listing:
    """Lines, one below the other."""

    items: Sequence[str]
    kind: str = "listing"


@dataclass(frozen=True)
class Sample:
    """Text that a model wrote."""

    title: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Samples:
    """Samples side by side."""

    items: Sequence[Sample]
    kind: str = "samples"


@dataclass(frozen=True)
class Diagnosed:
    """A finding as it is told: of whom, what, on what evidence, and what to try next."""

    arm: str
    ailment: str
    tone: Tone
    words: str
    evidence: str
    advice: str
    commands: Sequence[str] = ()


@dataclass(frozen=True)
class Findings:
    """Findings, one below the other."""

    items: Sequence[Diagnosed]
    kind: str = "findings"


@dataclass(frozen=True)
class Picture:
    """A figure in its place."""

    figure: Figure
    kind: str = "picture"


Block = Paragraph | Table | Listing | Samples | Findings | Picture


@dataclass(frozen=True)
class Section:
    """A headed part of a report."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """What a link to it says."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


@dataclass(frozen=True)
class Document:
    """A whole report.

    Args:
        title: what it is of.
        subtitle: a line below it.
        lead: what a reader should know who reads nothing else.
        sections: in order.
    """

    title: str
    subtitle: str
    lead: Sequence[Block] = ()
    sections: Sequence[Section] = field(default_factory=tuple)

    @property
    def figures(self) -> list[Figure]:
        """Every figure, in order."""
        blocks = [*self.lead, *(block for section in self.sections for block in section.blocks)]
        return [block.figure for block in blocks if isinstance(block, Picture)]
