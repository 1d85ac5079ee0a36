"""The reference of every field, written from the fields themselves: docs/recipe.md and a JSON Schema for editors."""

from __future__ import annotations

import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from farthing.recipe import Recipe
from farthing.section import Section
from farthing.storage import write_text

INTRODUCTION = """\
# Recipe reference

Every field of a recipe, with its unit, its values and its default. This file is written from the fields themselves
(`make docs`); a test keeps it current.

A recipe is a TOML file. `base = "NAME"` starts from another one, a shipped name or a path beside the file, and only
what differs is written. On the command line `path=value` overrides a field: `farthing train titles-best
model.n_layer=8`. Where a table has a `kind`, the kind decides which fields it has, and a table whose kind differs from
its base's starts afresh. `none` takes back an optional field that a base has set. Unknown names are refused.

`farthing recipe show R` prints a recipe with everything filled in, `farthing recipe diff A B` what tells two apart.
"""


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe file, for editors: what the file itself may say, before its base is known."""
    schema = _before_its_base(Recipe.model_json_schema())
    schema["properties"] = {
        "base": {
            "type": "string",
            "description": "the recipe to start from: a shipped name or a path beside this file",
        },
        **schema["properties"],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Farthing recipe"}


def _before_its_base(part: Any) -> Any:
    """Nothing is required, a table may leave out its kind, and what has no value is written "none"."""
    if isinstance(part, list):
        return [_before_its_base(one) for one in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "null":
        return {"const": "none"}
    left = {key: value for key, value in part.items() if key not in {"required", "discriminator"}}
    return {"anyOf" if key == "oneOf" else key: _before_its_base(value) for key, value in left.items()}


def markdown() -> str:
    """docs/recipe.md: a table for each section and each kind of it."""
    top = [name for name, field in Recipe.model_fields.items() if not sections_in(field.annotation)]
    lines = [INTRODUCTION, *_table(Recipe, top)]
    for name, field in Recipe.model_fields.items():
        lines += _chapter(name, field, level=2)
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def sections_in(annotation: Any) -> list[type[Section]]:
    """The section classes that a field's annotation admits, in their order."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in sections_in(part)]


def _chapter(path: str, field: FieldInfo, *, level: int) -> Iterator[str]:
    sections = sections_in(field.annotation)
    if not sections:
        return
    yield f"\n{'#' * level} {path}\n\n{_sentence(field.description)}\n"
    if len(sections) > 1:
        default = getattr(field.get_default(), "kind", None)
        chosen = f"The default is `{default}`." if default else "There is no default."
        yield f"One of the kinds below, as `{path}.kind`. {chosen}\n"
        shared = [name for name in sections[0].model_fields if all(name in one.model_fields for one in sections)]
        shared = [name for name in shared if name != "kind" and _same_everywhere(sections, name)]
        if shared:
            yield "Whatever the kind:\n"
            yield from _table(sections[0], shared, prefix=path)
        for section in sections:
            kind = section.model_fields["kind"].default
            yield f"\n{'#' * (level + 1)} {path}.kind = {json.dumps(kind)}\n\n{' '.join((section.__doc__ or '').split())}\n"
            yield from _table(section, [n for n in section.model_fields if n not in {*shared, "kind"}], prefix=path)
    else:
        yield from _table(sections[0], list(sections[0].model_fields), prefix=path)
    inner = {name: info for one in sections for name, info in one.model_fields.items() if sections_in(info.annotation)}
    for name, info in inner.items():
        yield from _chapter(f"{path}.{name}", info, level=level + 1)


def _table(section: type[Section], names: list[str], *, prefix: str = "") -> Iterator[str]:
    rows = [(name, section.model_fields[name]) for name in names]
    rows = [(name, field) for name, field in rows if not sections_in(field.annotation) or _is_list(field)]
    if not rows:
        return
    yield "| field | values | default | what it is |"
    yield "|---|---|---|---|"
    for name, field in rows:
        path = f"{prefix}.{name}" if prefix else name
        cells = (f"`{path}`", _values(field), _default(field), " ".join((field.description or "").split()))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(field: FieldInfo) -> str:
    alternatives = _alternatives(field.annotation, field.metadata)
    return ", ".join(dict.fromkeys(one for one in alternatives if one))


def _alternatives(annotation: Any, metadata: list[Any]) -> list[str]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = [item for part in arguments[1:] for item in getattr(part, "metadata", [part])]
        return _alternatives(arguments[0], [*inner, *metadata])
    if origin in (typing.Union, types.UnionType):
        return [one for part in arguments for one in _alternatives(part, metadata)]
    if origin is typing.Literal:
        return [f"`{json.dumps(value)}`" for value in arguments]
    if origin is list and sections_in(arguments[0]):
        return ["list of tables, below"]
    if origin is list:
        return ["list of " + " or ".join(_alternatives(arguments[0], []))]
    if annotation is types.NoneType:
        return ["`none`"]
    named = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text"}[annotation]
    return [named + (_bounds(metadata) if annotation in (int, float) else "")]


def _is_list(field: FieldInfo) -> bool:
    return typing.get_origin(field.annotation) is list


def _bounds(metadata: list[Any]) -> str:
    signs = {"gt": "> ", "ge": "≥ ", "lt": "< ", "le": "≤ "}
    found = [
        f"{sign}{_number(value)}"
        for name, sign in signs.items()
        for item in metadata
        if (value := getattr(item, name, None)) is not None
    ]
    return f" ({', '.join(found)})" if found else ""


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.default
    return "`none`" if value is None else f"`{json.dumps(value)}`"


def _same_everywhere(sections: list[type[Section]], name: str) -> bool:
    first = sections[0].model_fields[name]
    return all(
        (one.model_fields[name].description, one.model_fields[name].default) == (first.description, first.default)
        for one in sections
    )


def _sentence(text: str | None) -> str:
    assert text, "every field is documented"
    return text[0].upper() + text[1:] + "."


def main(folder: Path) -> None:
    """Write recipe.md into `folder`."""
    folder.mkdir(exist_ok=True)
    write_text(folder / "recipe.md", markdown())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
