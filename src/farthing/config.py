"""TOML to frozen models and back: one base, then overrides, unknown names refused with the nearest one.

A table whose `kind` differs from its base's starts afresh: the numbers of a kind belong to that kind.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import ValidationError

from farthing.errors import UserError, nearest
from farthing.section import Section, recorded
from farthing.storage import leads_to

S = TypeVar("S", bound=Section)
Table = dict[str, Any]

MAX_BYTES = 1_000_000  # a recipe is a page of text; a larger file is not one
MAX_BASES = 20
MAX_DEPTH = 10
_ALTERNATIVES = ("literal[", "constrained-", "list[", "function-")
_ENDLESS_NAME = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){64}""")  # tomllib takes its square in memory
_NO_BUDGET = "no budget: set one of budget.epochs, steps, tokens, flops, minutes or money"


@dataclass(frozen=True)
class Change:
    """One setting that differs between two recipes; None where one of them does not have it."""

    path: str
    old: Any
    new: Any


def shipped_folder(kind: str = "recipes") -> Path:
    """Where the recipes (searches, climbs) that come with Farthing lie, in a checkout as in an installed package."""
    packaged = Path(__file__).parent / kind
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / kind


def shipped_recipes() -> list[str]:
    """Names of the shipped recipes, for example `default` and `studies/a1`."""
    root = shipped_folder()
    return sorted(str(file.relative_to(root).with_suffix("").as_posix()) for file in root.rglob("*.toml"))


def find_recipe(name: str, *, beside: Path | None = None) -> Path:
    """The file that `name` means: a path (relative to `beside` if given), else a shipped recipe's name.

    Raises:
        UserError: there is no such file and no shipped recipe of that name.
    """
    asked = Path(name)
    for place in [beside / asked, asked] if beside else [asked]:
        for candidate in (place, Path(f"{place}.toml")):
            if leads_to(Path.is_file, candidate):
                return candidate
    # In a wheel there is no recipes/ folder in the current directory, yet README commands name it.
    stem = name.removeprefix("recipes/").removesuffix(".toml")
    shipped = shipped_folder() / f"{stem}.toml"
    if stem in shipped_recipes():
        return shipped
    where = "(farthing recipe list shows the shipped ones)"
    if name and leads_to(Path.is_dir, asked):
        raise UserError(f"{name}: is a folder, not a recipe {where}")
    said = name[:100] or "''"
    raise UserError(
        f"{said}: no such recipe file, nor a shipped recipe of that name{nearest(stem[:100], shipped_recipes())} {where}"
    )


def load_table(model: type[Section], name: str) -> tuple[Table, Path]:
    """A recipe file with its bases merged in, as a plain dictionary, and where it was found."""
    path = find_recipe(name)
    return _with_bases(model, path, seen=()), path


def load(model: type[S], name: str | None, overrides: Sequence[str] | Mapping[str, Any] = ()) -> S:
    """Read, merge and validate a recipe.

    Args:
        model: the model of a whole file.
        name: a file or a shipped name; None starts from nothing.
        overrides: `path=value` strings, or a mapping from path to value (None takes an optional value back).

    Raises:
        UserError: anything that the recipe's author or the command line got wrong, in one line.
    """
    table, path = load_table(model, name) if name is not None else ({}, None)
    return build(model, override(with_kinds(model, table), overrides), source=path)


def build(model: type[S], table: Table, *, source: Path | None = None) -> S:
    """Validate a plain dictionary; `source` is the file to name in an error."""
    try:
        return model.model_validate(with_kinds(model, table))
    except ValidationError as error:
        raise UserError(_explain(model, error, source)) from None


def override(table: Table, overrides: Sequence[str] | Mapping[str, Any]) -> Table:
    """`table` with overrides applied, kinds first, so that their order does not matter."""
    if isinstance(overrides, Mapping):
        pairs = list(overrides.items())
        if strange := [path for path in overrides if not isinstance(path, str)]:
            raise UserError(f"{strange[0]!r} is not a setting's path; write for example {{'model.n_layer': 8}}")
    else:
        pairs = [_split_override(str(text)) for text in overrides]
    if "base" in dict(pairs):
        raise UserError("base: belongs into the recipe file, not among the overrides; name that recipe instead")
    result, leaves = _copy(table), [leaf for path, value in pairs for leaf in _leaves(value, path)]
    for path, value in sorted(leaves, key=_kinds_first):
        keys = path.split(".")
        if len(keys) > MAX_DEPTH:
            raise UserError(f"{path:.40}...: no such field")
        patch: Table = {keys[-1]: "none" if value is None else value}
        for key in reversed(keys[:-1]):
            patch = {key: patch}
        result = merge(result, patch)
    return result


def merge(base: Table, patch: Table) -> Table:
    """`patch` laid over `base`, table by table; a table of another `kind` replaces the base's."""
    if "kind" in patch and "kind" in base and patch["kind"] != base["kind"]:
        return _copy(patch)
    merged = _copy(base)
    for key, value in patch.items():
        old = merged.get(key)
        merged[key] = merge(old if isinstance(old, dict) else {}, value) if isinstance(value, dict) else value
    return merged


def with_kinds(model: type[Section], table: Table) -> Table:
    """`table` with the default `kind` written into every union's table that leaves it out."""
    filled = dict(table)
    for name, field in model.model_fields.items():
        given = filled.get(name)
        choices = _sections_in(field.annotation)
        if not choices or not isinstance(given, dict | None):
            continue
        if len(choices) > 1 and (given is None or "kind" not in given):
            default = getattr(field.default, "kind", None)
            if default is not None:
                given = {"kind": default, **(given or {})}
        if given is not None:
            chosen = choices if len(choices) == 1 else [one for one in choices if _kind_of(one) == given.get("kind")]
            filled[name] = with_kinds(chosen[0], given) if chosen else given
    return filled


def to_table(section: Section) -> Table:
    """The section as a plain dictionary that `build` makes into an equal section."""
    return _without_nulls(section, section.model_dump(mode="json"))


def to_toml(section: Section) -> str:
    """The section as TOML text that reads back to an equal section."""
    return tomli_w.dumps(to_table(section))


def fingerprint(section: Section) -> str:
    """SHA-256 of the section's canonical JSON, in hexadecimal: equal exactly when two sections are."""
    canonical = json.dumps(recorded(section), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def flatten(section: Section) -> dict[str, Any]:
    """Every setting by its dotted path."""
    return dict(_leaves(section.model_dump(mode="json"), ""))


def diff(old: Section, new: Section) -> list[Change]:
    """The settings that differ, in the order of the recipe."""
    before, after = flatten(old), flatten(new)
    paths = [*after, *(path for path in before if path not in after)]
    return [Change(path, before.get(path), after.get(path)) for path in paths if before.get(path) != after.get(path)]


def paths_of(model: type[Section], prefix: str = "") -> Iterator[str]:
    """Every dotted path that a file of this model may set, over all kinds."""
    for name, field in model.model_fields.items():
        sections = _sections_in(field.annotation)
        if not sections:
            yield prefix + name
        for section in sections:
            yield from paths_of(section, f"{prefix}{name}.")


def read_toml(path: Path) -> Table:
    """Parse a TOML file, refusing what cannot be a recipe.

    Raises:
        UserError: unreadable, too large, not UTF-8, or not TOML; the line is in the message.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes; a recipe has at most {MAX_BYTES:,}")
        text = path.read_bytes().decode("utf-8-sig")
        if _ENDLESS_NAME.search(text):
            raise ValueError("a name of more than 64 parts")
        return tomllib.loads(text)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: byte {error.object[error.start]:#04x} at {error.start}") from None
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: a number of thousands of digits
        raise UserError(f"{path}: not TOML: {error}") from None


def _with_bases(model: type[Section], path: Path, seen: tuple[Path, ...]) -> Table:
    if path.resolve() in seen:
        raise UserError(f"{path}: its bases go in a circle: {' -> '.join(str(one) for one in (*seen, path.resolve()))}")
    if len(seen) >= MAX_BASES:
        raise UserError(f"{path}: more than {MAX_BASES} bases deep")
    table = read_toml(path)
    base = table.pop("base", None)
    if base is None:
        return with_kinds(model, table)
    if not isinstance(base, str):
        raise UserError(f"{path}: base = {base!r}: must be one recipe's name or path")
    return merge(_with_bases(model, find_recipe(base, beside=path.parent), (*seen, path.resolve())), table)


def _split_override(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not path or not all(path.split(".")):
        raise UserError(f"{text!r} is not an override; write path=value, for example model.n_layer=8")
    return path, _parse_value(value.strip())


def _parse_value(text: str) -> Any:
    with suppress(ValueError, RecursionError):
        if _ENDLESS_NAME.search(text):
            return text
        return tomllib.loads(f"value = {text}")["value"]
    # Not TOML: a bare word or path is a string, and 1_000k-style slips are caught by validation.
    return {"true": True, "false": False}.get(text.lower(), text)


def _kinds_first(pair: tuple[str, Any]) -> tuple[bool, int]:
    # An outer kind before an inner one: a table of another kind starts afresh.
    keys = pair[0].split(".")
    return keys[-1] != "kind", len(keys) if keys[-1] == "kind" else 0


def _without_nulls(section: Section, dumped: Table) -> Table:
    table: Table = {}
    for name, field in type(section).model_fields.items():
        value = dumped[name]
        inner = getattr(section, name)
        if isinstance(inner, Section):
            table[name] = _without_nulls(inner, value)
        elif value is not None:
            table[name] = value
        elif field.default is not None:
            # TOML has no null, and leaving it out would bring the default back.
            table[name] = "none"
    return table


def _copy(table: Table) -> Table:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in table.items()}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _sections_in(annotation: Any) -> list[type[Section]]:
    """The section classes that an annotation admits: one, a union of kinds, or none."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [section for part in typing.get_args(annotation) for section in _sections_in(part)]
    return []


def _kind_of(section: type[Section]) -> str | None:
    field = section.model_fields.get("kind")
    return None if field is None else str(field.default)


def _explain(model: type[Section], error: ValidationError, source: Path | None) -> str:
    """One line for the first faulty setting; how many more there are."""
    problems = error.errors(include_url=False)
    # An unknown name is the likeliest cause of whatever else is wrong.
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    placed = [(*_follow(model, problem["loc"]), problem) for problem in problems]
    section, path, first = placed[0]
    same = [problem for _, other, problem in placed if other == path]
    others = len({other for _, other, _ in placed}) - 1
    where = f" ({source}{_line_of(source, path)})" if source else ""
    return _say(model, section, path, first, same) + where + (f" [and {others} more]" if others else "")


def _say(model: type[Section], section: type[Section], path: str, first: Any, same: list[Any]) -> str:
    match first["type"]:
        case "extra_forbidden":
            prefix, _, name = path.rpartition(".")
            close = nearest(name, section.model_fields)
            if close and prefix:
                close = close.replace("did you mean ", f"did you mean {prefix}.")
            kind = _kind_of(section)
            with_kind = f" with {prefix}.kind={kind}" if kind and not close else ""
            return f"{path}: no such field{with_kind}{close or _elsewhere(model, name, path)}"
        case "missing":
            return f"{path}: must be given" if path != "budget" else _NO_BUDGET
        case "union_tag_invalid" | "union_tag_not_found":
            expected = first["ctx"].get("expected_tags") or ", ".join(
                str(_kind_of(one)) for one in _sections_in(section.model_fields[path.rpartition(".")[2]].annotation)
            )
            expected = expected.replace("'", "")
            given = first["ctx"].get("tag")
            if given is None:
                return f"{path}.kind: must be given; it may be {expected}"
            return (
                f"{path}.kind={given!r}: no such kind{nearest(str(given), expected.split(', '))}; it may be {expected}"
            )
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{path}={first.get('input')!r:.80}: is a table; set a field of it, for example {path}.kind"
        case "value_error":
            message = str(first["ctx"]["error"])
            return f"{path}: {message}" if path and not message.startswith(path) and path != "budget" else message
    expected = ", or ".join(dict.fromkeys(problem["msg"].removeprefix("Input ") for problem in same))
    return f"{path}={first.get('input')!r:.80}: {expected}"


def _elsewhere(model: type[Section], name: str, refused: str) -> str:
    paths = [path for path in dict.fromkeys(paths_of(model)) if path != refused]
    same = [path for path in paths if path.rpartition(".")[2] == name]
    return f"; did you mean {same[0]}?" if same else nearest(name, [path.rpartition(".")[2] for path in paths])


def _follow(model: type[Section], loc: tuple[int | str, ...]) -> tuple[type[Section], str]:
    """The section an error lies in, and its dotted path without the tags that pydantic puts in."""
    section = model
    names: list[str] = []
    choices: list[type[Section]] = []
    for part in loc:
        tagged = next((choice for choice in choices if _kind_of(choice) == part), None)
        if tagged is not None:
            section, choices = tagged, []
            continue
        if len(choices) == 1:
            section = choices[0]
        field = section.model_fields.get(str(part))
        # Inside a plain union such as `int | "auto"` pydantic adds the alternative it tried.
        tried = str(part).startswith(_ALTERNATIVES) or part in ("int", "float", "str", "bool")
        if field is None and names and not choices and part == loc[-1] and tried:
            continue
        names.append(str(part))
        choices = _sections_in(field.annotation) if field else []
    if len(choices) == 1:
        section = choices[0]
    return section, ".".join(names)


def _line_of(source: Path, path: str) -> str:
    """ ":7" if the setting stands in that file itself, else nothing (it comes from a base or an override)."""
    table = ""
    try:
        lines = source.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text.startswith("[") and not text.startswith("[["):
            table = text.strip("[] ")
            if table == path:
                return f":{number}"
        elif "=" in text and not text.startswith("#"):
            key = text.partition("=")[0].strip()
            if (f"{table}.{key}" if table else key) == path:
                return f":{number}"
    return ""
