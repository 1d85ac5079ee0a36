"""benchmarks/reliability.md: each command that measures puts its table into a section of its own."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent / "reliability.md"


def write(section: str, markdown: str) -> None:
    """Replace a section of the page by this.

    Raises:
        ValueError: the page has no such section.
    """
    before = PAGE.read_text("utf-8")
    begins, ends = f"<!-- {section}: written from here -->", f"<!-- {section}: to here -->"
    after, count = re.subn(
        f"{re.escape(begins)}.*?{re.escape(ends)}",
        lambda _: f"{begins}\n{markdown.strip()}\n{ends}",
        before,
        flags=re.S,
    )
    if count != 1:
        raise ValueError(f"{PAGE}: {count} sections named {section!r}")
    PAGE.write_text(after, "utf-8")
    print(f"written to {PAGE.name}: {section}")
