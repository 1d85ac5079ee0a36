"""Markdown from a template, in which no word of a user can become anything but words.

What `{{ ... }}` puts into a template is escaped, unless a filter of this module has made Markdown of it.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farthing.sinks.legible import duration, legible

if TYPE_CHECKING:
    from jinja2 import Environment

_KEPT_LINE = "\0"
"""a line's end in a code block until all is rendered; `legible` lets no other through"""


class Markdown(str):
    """Text that is Markdown already."""


def fill(template: Path, **values: Any) -> str:
    """The text of a template with these values; a name that it lacks is an error."""
    text = _environment(template.parent).get_template(template.name).render(**values)
    # What the template leaves empty; a code block's own empty lines stay, since `block` has hidden them.
    return re.sub(r"\n{3,}", "\n\n", text).replace(_KEPT_LINE, "\n").strip() + "\n"


@cache
def _environment(folder: Path) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # HTML's escapes are not Markdown's: `finalize` does that for every value
        finalize=lambda value: value if isinstance(value, Markdown) else escape(value),
    )
    environment.filters.update(
        count=lambda value: Markdown(f"{value:,.0f}"),
        fixed=lambda value, digits: Markdown("not finite" if value is None else f"{value:,.{digits}f}"),
        percent=lambda value: Markdown(f"{100 * value:.1f} %"),
        plain=lambda value: Markdown(f"{value:g}"),
        seconds=lambda value: Markdown(duration(value)),
        setting=setting,
        code=code,
        block=block,
        literal=literal,
    )
    return environment


def clean(text: str) -> str:
    """One line without control characters or marks that turn its direction."""
    return " ".join(legible(text).split())


def escape(value: Any) -> Markdown:
    """Any value as Markdown that shows it, word for word, on one line: also within a table."""
    return Markdown(re.sub(r"([\\`*_\[\]<>#|!&~$@{}])", r"\\\1", clean(str(value))))


def code(text: str) -> Markdown:
    """One line as code, in a fence longer than any that it holds."""
    shown = clean(text)
    ticks = "`" * (_longest(shown) + 1)
    if not shown:
        return Markdown("nothing")
    return Markdown(f"{ticks} {shown} {ticks}" if "`" in shown else f"`{shown}`")


def block(text: str, language: str = "text") -> Markdown:
    """Lines as they are, in a fence longer than any that they hold."""
    fence = "`" * max(3, _longest(text) + 1)
    lines = legible(text, lines=True).rstrip().replace("\n", _KEPT_LINE)
    return Markdown(f"{fence}{language}\n{lines}\n{fence}")


def setting(value: Any) -> Markdown:
    """A value of a recipe as it would be written there."""
    if value is None:
        return Markdown("none")
    return escape(value if value and isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def literal(text: str) -> Markdown:
    """A string of Python that a code block may hold; JSON's strings are Python's too."""
    return Markdown(json.dumps(legible(text, lines=True)).replace("`", "\\u0060"))


def _longest(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
