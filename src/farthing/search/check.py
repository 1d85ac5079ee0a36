"""A SEARCH.toml held against the recipe's schema before anything runs: from file to a space that can be drawn from."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from farthing import config
from farthing.errors import nearest
from farthing.search.asked import AnyDimension, Choice, Search, Tie, Value
from farthing.search.file import base_recipe, dimensions, fault, find_file, paths_in, read_search, ties
from farthing.search.space import Candidate, Conflict, Domain, Options, Range, Space, needs
from farthing.section import Section

PROBES = 64
"""random candidates of which one must be accepted, for each choice and for each end of a range"""
OWN = "search."
"""how an override begins that is for SEARCH.toml and not for the recipe"""


@dataclass(frozen=True)
class Asked:
    """A search that has been read and checked.

    Args:
        search: its sections.
        space: what may be proposed.
        path: the file.
        base: the base recipe as best.toml should name it: a shipped name, or a file.
        overrides: `path=value` for the base recipe, as they were given beside the file.
    """

    search: Search
    space: Space
    path: Path
    base: str
    overrides: Sequence[str] = ()

    def as_toml(self, folder: Path) -> str:
        """The search as a SEARCH.toml in this folder that means the same by itself: overrides are among its changes."""
        schema, base = self.space.schema, self.space.base
        table, _ = config.load_table(schema, self.base)
        changes = config.override(config.override({}, self.search.changes), self.overrides)
        again = config.build(schema, config.override(config.with_kinds(schema, table), changes))
        # A kind that the file changes and an override changes back has lost what the recipe said of it.
        lost = {one.path: one.new for one in config.diff(again, base) if one.path not in self.space.order}
        asked = {"changes": config.override(changes, lost), "recipe": self._named(folder)}
        return config.to_toml(self.search.model_copy(update=asked))

    def difference(self, recipe: Section, folder: Path) -> str:
        """A recipe as a TOML file in this folder that says what differs from the base recipe."""
        changed: config.Table = {}
        for change in config.diff(config.load(self.space.schema, self.base), recipe):
            patch: Any = "none" if change.new is None else change.new
            if change.path in config.flatten(recipe):
                for key in reversed(change.path.split(".")):
                    patch = {key: patch}
                changed = config.merge(changed, patch)
        return tomli_w.dumps({"base": self._named(folder), **changed})

    def _named(self, folder: Path) -> str:
        """The base recipe as a file in this folder names it."""
        return os.path.relpath(self.base, folder) if Path(self.base).is_file() else self.base


def read(name: str, schema: type[Section], overrides: Sequence[str] = ()) -> Asked:
    """Read SEARCH.toml, its base recipe and its space, and refuse what could never run.

    Args:
        name: a file or a shipped search's name.
        schema: the model of a recipe.
        overrides: `path=value` for the base recipe, `search.path=value` for the search itself.

    Raises:
        UserError: anything wrong, in one line with file and key.
    """
    path = find_file(name, "search")
    own = [one.removeprefix(OWN) for one in overrides if one.startswith(OWN)]
    others = [one for one in overrides if not one.startswith(OWN)]
    search = read_search(path, own)
    base = base_recipe(path, search.recipe)
    table, _ = config.load_table(schema, base)
    changed = config.override(config.with_kinds(schema, table), dict(search.changes))
    changed = config.override(changed, others)
    recipe = config.build(schema, changed, source=None if search.changes or overrides else path)
    space = Space(schema, recipe, dimensions(search, path), ties(search, path), path)
    fixed = [*paths_in(search.changes), *(one.partition("=")[0].strip() for one in overrides)]
    _check_paths(space, fixed)
    _check_values(space)
    return Asked(search, space, path, base, others)


def _check_paths(space: Space, fixed: Sequence[str]) -> None:
    known = set(config.paths_of(space.schema))
    entries: list[tuple[str, str, AnyDimension | Tie]] = [
        *(("space", path, one) for path, one in space.dimensions.items()),
        *(("tied", path, one) for path, one in space.ties.items()),
    ]
    for table, path, entry in entries:
        if path == "seed":
            raise fault("is no parameter; write seeds = [...] for the seeds of each trial", table, path, space.source)
        for name in (path, *needs(entry)):
            if name not in known:
                what = "no such setting" if name == path else f"{name}: no such setting"
                raise fault(f"{what}{_close(name, known)}", table, path, space.source)
        if path in fixed:
            raise fault("is also set by [changes] or on the command line; take one away", table, path, space.source)
    for path in space.ties:
        if path in space.dimensions:
            raise fault("is searched in [space] too; take one away", "tied", path, space.source)


def _close(name: str, known: set[str]) -> str:
    same = sorted(path for path in known if path.rpartition(".")[2] == name.rpartition(".")[2])
    return nearest(name, known) or (f"; did you mean {same[0]}?" if same else "")


def _check_values(space: Space) -> None:
    """Every choice and both ends of every range must be accepted in some candidate."""
    for path, dimension in space.dimensions.items():
        if isinstance(dimension, Choice):
            wanted: list[tuple[str, Value | float]] = [(repr(value), value) for value in dimension.choices]
        else:
            wanted = [("low", 0.0), ("high", 1.0)]
        for told, value in wanted:
            reason = _refused(space, path, dimension, value)
            if reason is not None:
                what = f"{told}: {reason}" if reason else "its condition (when) never holds"
                raise fault(what, "space", path, space.source)


def _refused(space: Space, path: str, dimension: AnyDimension, wanted: Value | float) -> str | None:
    """None where some candidate has this value, else why the first one without it was refused; empty: never active."""
    reason = ""
    for probe in range(PROBES):
        chance = random.Random(probe)

        def choose(name: str, at: str, domain: Domain, chance: random.Random = chance) -> Value:
            if at == path:
                return _end(domain, dimension, wanted)
            if at in dimension.when and (kept := _kept(domain, dimension.when[at])):
                return kept[0]
            return domain.at(chance.random())

        try:
            candidate = space.propose(choose)
        except Conflict as conflict:
            reason = reason or str(conflict)
            continue
        if _has(candidate, path, dimension, wanted):
            return None
        if path in candidate.settings:
            reason = reason or f"never goes together with {_rest(candidate, path)}"
    return reason


def _end(domain: Domain, dimension: AnyDimension, wanted: Value | float) -> Value:
    if not isinstance(dimension, Choice):
        values = [] if isinstance(domain, Range) else list(domain.values())
        if isinstance(domain, Range):
            return domain.at(float(wanted))
        return values[0] if wanted == 0.0 else values[-1]
    return wanted if domain.holds(wanted) else domain.at(0.0)


def _kept(domain: Domain, allowed: Any) -> list[Value]:
    if isinstance(domain, Options):
        listed = allowed if isinstance(allowed, list) else [allowed]
        return [value for value in domain.choices if value in listed]
    return []


def _has(candidate: Candidate, path: str, dimension: AnyDimension, wanted: Value | float) -> bool:
    if path not in candidate.settings:
        return False
    return not isinstance(dimension, Choice) or candidate.settings[path] == wanted


def _rest(candidate: Candidate, path: str) -> str:
    return ", ".join(f"{one.path}={one.value}" for one in candidate.drawn if one.path != path) or "the base recipe"
