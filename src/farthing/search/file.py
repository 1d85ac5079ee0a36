"""SEARCH.toml as a file: where it is found, how it is read, and which line an error means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from farthing import config
from farthing.errors import UserError, nearest
from farthing.search.asked import AnyDimension, Choice, Float, Int, Search, Tie
from farthing.storage import leads_to

Kind = Literal["search", "climb"]
_FOLDERS: dict[Kind, str] = {"search": "searches", "climb": "climbs"}
_DIMENSIONS: dict[str, type[AnyDimension]] = {"float": Float, "int": Int, "choice": Choice}


def shipped(kind: Kind) -> list[str]:
    """Names of the searches or climbs that come with Farthing."""
    return sorted(file.stem for file in config.shipped_folder(_FOLDERS[kind]).glob("*.toml"))


def find_file(name: str, kind: Kind) -> Path:
    """The search or climb that `name` means: a path, else a shipped one's name.

    Raises:
        UserError: there is neither.
    """
    folder = _FOLDERS[kind]
    stem = name.removeprefix(f"{folder}/").removesuffix(".toml")
    for place in (Path(name), Path(f"{name}.toml"), config.shipped_folder(folder) / f"{stem}.toml"):
        try:
            if place.is_file():
                return place
        except OSError:
            continue
    known = shipped(kind)
    close = nearest(stem[:100], known)
    raise UserError(f"{name[:100] or repr('')}: no such {kind} file{close} (shipped ones: {', '.join(known)})")


def base_recipe(path: Path, recipe: str) -> str:
    """What a file means by its base recipe: one that lies beside it, else a path or a shipped recipe's name."""
    beside = path.parent / recipe
    found = next((one for one in (beside, Path(f"{beside}.toml")) if leads_to(Path.is_file, one)), None)
    return recipe if found is None else str(found)


def read_search(path: Path, overrides: Sequence[str] = ()) -> Search:
    """SEARCH.toml with overrides of its own settings, without the "search." before each.

    Raises:
        UserError: anything wrong in it, in one line that names the place.
    """
    table = config.override(config.with_kinds(Search, config.read_toml(path)), overrides)
    return config.build(Search, table, source=path)


def dimensions(search: Search, path: Path | None) -> dict[str, AnyDimension]:
    """The parameters of [space] by the recipe's path, in the file's order.

    Raises:
        UserError: one of them is not a parameter, or an empty range.
    """
    found: dict[str, AnyDimension] = {}
    for name, table in _tables(search.space, "", "kind"):
        kind = table.get("kind") if isinstance(table, Mapping) else None
        if not isinstance(kind, str) or kind not in _DIMENSIONS:
            given = "must be a table with a kind" if kind is None else f"kind={kind!r}: no such kind"
            close = nearest(str(kind), _DIMENSIONS) if kind is not None else ""
            raise fault(f"{given}{close}; it may be {', '.join(_DIMENSIONS)}", "space", name, path)
        if name in found:
            raise fault("is given twice", "space", name, path)
        try:
            found[name] = _range_of(config.build(_DIMENSIONS[kind], dict(table)))
        except ValueError as error:
            raise fault(str(error), "space", name, path) from None
    return found


def ties(search: Search, path: Path | None) -> dict[str, Tie]:
    """The settings of [tied] by the recipe's path.

    Raises:
        UserError: one of them is no tie.
    """
    found = {}
    for name, table in _tables(search.tied, "", "of"):
        if not isinstance(table, Mapping):
            raise fault('must be a table such as { of = "optimizer.lr", times = 0.1 }', "tied", name, path)
        try:
            found[name] = config.build(Tie, dict(table))
        except UserError as error:
            raise fault(str(error), "tied", name, path) from None
    return found


def fault(message: str, table: str, name: str, source: Path | None) -> UserError:
    """One line about one key of SEARCH.toml, with its place in the file."""
    where = "" if source is None else f" ({source}{_line_of(source, table, name)})"
    return UserError(f'{table}."{name}": {message}{where}')


def _range_of(dimension: AnyDimension) -> AnyDimension:
    """The dimension, if it holds any value.

    Raises:
        ValueError: it does not.
    """
    if isinstance(dimension, Choice):
        for index, value in enumerate(dimension.choices):
            if any(value == other and type(value) is type(other) for other in dimension.choices[:index]):
                raise ValueError(f"choices: {value!r} is given twice")
        return dimension
    low, high = dimension.low, dimension.high
    if not isinstance(low, Tie) and not isinstance(high, Tie) and low > high:
        raise ValueError(f"low={low:g} is more than high={high:g}: the range is empty")
    if dimension.log and not isinstance(low, Tie) and low <= 0:
        raise ValueError(f"low={low:g}: a logarithm needs it above 0")
    stepped = dimension.step is not None if isinstance(dimension, Float) else dimension.step != 1
    if dimension.log and stepped:
        raise ValueError("log and step exclude each other")
    return dimension


def _tables(table: Mapping[str, Any], prefix: str, mark: str) -> list[tuple[str, Any]]:
    """The entries by dotted path, whether the path was quoted or made of tables; `mark` tells where an entry begins."""
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        path = f"{prefix}{key}"
        inner = isinstance(value, Mapping) and not isinstance(value.get(mark), str)
        if inner and value and all(isinstance(one, Mapping) for one in value.values()):
            found += _tables(value, f"{path}.", mark)
        else:
            found.append((path, value))
    return found


def _line_of(source: Path, table: str, name: str) -> str:
    """ ":7" for the line that begins the entry, or nothing."""
    inside = ""
    try:
        lines = source.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text.startswith("["):
            inside = text.strip("[] ").replace('"', "").replace("'", "")
            if inside == f"{table}.{name}":
                return f":{number}"
        elif "=" in text and not text.startswith("#"):
            key = text.partition("=")[0].strip().replace('"', "").replace("'", "")
            if (f"{inside}.{key}" if inside else key) == f"{table}.{name}":
                return f":{number}"
    return ""


def paths_in(table: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted paths that a table of settings sets, whether written as tables or as paths."""
    found = []
    for key, value in table.items():
        inner = isinstance(value, Mapping)
        found += paths_in(value, f"{prefix}{key}.") if inner else [f"{prefix}{key}"]
    return found
