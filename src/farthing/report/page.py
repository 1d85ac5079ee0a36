"""A report as one HTML file that needs nothing else, and as Markdown with its figures in a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from farthing.errors import UserError
from farthing.report.blocks import Cell, Document, Section
from farthing.report.figures import Figure
from farthing.sinks.legible import legible
from farthing.sinks.markdown import Markdown, code, escape, fill
from farthing.storage import write_bytes, write_text

if TYPE_CHECKING:
    from jinja2 import Environment

MARK = "<!-- farthing report -->"
"""stands near the beginning of whatever a report has written, so that nothing else is ever overwritten"""
_HEAD = 400
_FOLDER = Path(__file__).parent
_SCALE = 2.0


def write_html(document: Document, path: Path) -> None:
    """Write a report as one file.

    Raises:
        UserError: something else is there, or it cannot be written.
    """
    check_target(path)
    _write(path, html(document))


def write_markdown(document: Document, path: Path) -> list[Path]:
    """Write a report as Markdown; its figures go into a folder beside it, as SVG and as PNG. Returns all files.

    Raises:
        UserError: something else is there, or it cannot be written.
    """
    folder = figures_folder(path)
    check_target(path)
    check_folder(folder)
    files: dict[Path, str | bytes] = {}
    for figure in document.figures:
        files[folder / f"{figure.name}.svg"] = _standalone(figure)
        files[folder / f"{figure.name}.png"] = png(figure)
    files[folder / _OURS] = f"{MARK}\n"
    files[path] = markdown(document, folder.name)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror or error}") from None
    for file, content in files.items():
        _write(file, content)
    return list(files)


_OURS = ".farthing-report"


def figures_folder(path: Path) -> Path:
    """Where the figures of a Markdown file go."""
    return path.with_name(f"{path.stem}-figures")


def check_target(path: Path) -> None:
    """Refuse a place where a report cannot go.

    Raises:
        UserError: it is a folder, its folder is not there, or a file is there that is no report.
    """
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: no such folder as {path.parent}")
    if path.exists():
        try:
            with path.open("rb") as stream:
                begins = stream.read(_HEAD)
        except OSError as error:
            raise UserError(f"--out {path}: cannot be read: {error.strerror}") from None
        if MARK.encode() not in begins:
            raise UserError(f"--out {path}: is there already and is no report; name another file, or move it away")


def check_folder(folder: Path) -> None:
    """Refuse a folder for figures that holds anything else.

    Raises:
        UserError: it is there and no report has made it.
    """
    if folder.exists() and not (folder / _OURS).is_file():
        raise UserError(f"{folder}: is there already and holds no report's figures; choose another --out")


def _write(path: Path, content: str | bytes) -> None:
    try:
        write_text(path, content) if isinstance(content, str) else write_bytes(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def html(document: Document) -> str:
    """A report as HTML: styles and figures inside, no script, nothing fetched."""
    style = (_FOLDER / "style.css").read_text("utf-8")
    return _environment().get_template("page.html.jinja").render(document=document, style=style, mark=MARK, cell=Cell)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
        # What is not marked as HTML is a user's or a model's word: its control characters go, autoescape does the rest.
        finalize=lambda value: value if hasattr(value, "__html__") else legible(str(value), lines=True),
    )
    environment.filters["tone"] = lambda cell: cell.tone if isinstance(cell, Cell) else ""
    return environment


def markdown(document: Document, figures: str) -> str:
    """A report as Markdown.

    Args:
        document: the report.
        figures: the folder of its figures, as the text reaches it.
    """

    def row(cells: Sequence[str | Cell]) -> list[Markdown]:
        return [_cell(cell) for cell in cells]

    body = fill(
        _FOLDER / "page.md.jinja",
        document=document,
        sections=[Section("", document.lead), *document.sections],
        figures=Markdown(quote(figures)),
        row=row,
    )
    # A table is one only while no empty line stands between its rows.
    body = re.sub(r"(?m)(^\|.*\|)\n\n(?=\|)", r"\1\n", body)
    # And two are two only where one stands: a head is what a line of dashes follows.
    return f"{MARK}\n\n" + re.sub(r"(?m)(^\|.*\|)\n(?=\|.*\|\n\|(?:---:?\|)+$)", r"\1\n\n", body)


def _cell(cell: str | Cell) -> Markdown:
    """A cell of a table, which has one line."""
    # What a damaged file holds in the place of a word is shown as it is.
    tone, lines = (cell.tone, str(cell.text)) if isinstance(cell, Cell) else ("", str(cell))
    show: Any = code if tone == "code" else escape
    text = "<br>".join(show(line).replace("|", "\\|") if tone == "code" else show(line) for line in lines.split("\n"))
    return Markdown(f"**{text}**" if tone in ("good", "bad", "flat") and text else text)


def _standalone(figure: Figure) -> str:
    return figure.svg.replace(">", f">{MARK}", 1)


def png(figure: Figure) -> bytes:
    """A figure as a picture on white, twice the size."""
    import vl_convert

    size = re.search(r'width="([\d.]+)" height="([\d.]+)"', figure.svg)
    white = '<rect width="100%" height="100%" fill="#ffffff"/>'
    assert size is not None
    svg = re.sub(r"(<svg[^>]*>)", rf"\1{white}", figure.svg, count=1)
    return bytes(vl_convert.svg_to_png(svg, scale=_SCALE))
