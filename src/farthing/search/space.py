"""The space of a search: which recipes may be proposed, and which of the old trials it could have proposed.

Parameters are settled in an order in which each comes after those that it depends on. Whoever draws the values is
handed in, so that samplers, the check of a SEARCH.toml and the reading of an old trial all take the same walk.
"""

from __future__ import annotations

import graphlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farthing import config
from farthing.errors import UserError
from farthing.search.asked import AnyDimension, Choice, Float, Tie, Value
from farthing.search.file import fault
from farthing.section import Section

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        assert self.low <= self.high and not (self.log and self.low <= 0)

    @property
    def count(self) -> int | None:
        """How many values there are; None where they are not counted."""
        step = self.step or (1 if self.whole else None)
        return None if step is None else int((self.high - self.low) / step + _ROUNDING) + 1

    def at(self, unit: float) -> float | int:
        """The value at a place between 0 and 1; evenly spread places give evenly drawn values."""
        if self.log:
            low, high = self._edges()
            value = math.exp(low + unit * (high - low))
        elif self.count is not None:
            value = self.low + min(int(unit * self.count), self.count - 1) * (self.step or 1)
        else:
            value = self.low + unit * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    def unit(self, value: float) -> float:
        """The place of a value, so that `at` gives it back."""
        if self.low == self.high:
            return 0.5
        if self.log:
            low, high = self._edges()
            return (math.log(value) - low) / (high - low)
        if self.count is not None:
            return (round((value - self.low) / (self.step or 1)) + 0.5) / self.count
        return (value - self.low) / (self.high - self.low)

    def holds(self, value: object) -> bool:
        """Whether the value is one of these."""
        if isinstance(value, bool) or not isinstance(value, int | float) or (self.whole and value != int(value)):
            return False
        slack = _ROUNDING * max(1.0, abs(self.high))
        if not self.low - slack <= value <= self.high + slack:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-6

    def values(self) -> Iterator[float | int]:
        """Every value, where they are counted."""
        assert self.count is not None
        for index in range(self.count):
            value = self.low + index * (self.step or 1)
            yield round(value) if self.whole else value

    def _edges(self) -> tuple[float, float]:
        # Whole numbers own the half unit around them, or the ends would be drawn half as often.
        half = 0.5 if self.whole else 0.0
        return math.log(self.low - half), math.log(self.high + half)


@dataclass(frozen=True)
class Options:
    """A few values."""

    choices: tuple[Value, ...]

    def at(self, unit: float) -> Value:
        """The value at a place between 0 and 1."""
        return self.choices[min(int(unit * len(self.choices)), len(self.choices) - 1)]

    def holds(self, value: object) -> bool:
        """Whether the value is one of these; 1, 1.0 and true are three values but for 1 and 1.0."""
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.choices)

    def values(self) -> Iterator[Value]:
        """Every value."""
        yield from self.choices


Domain = Range | Options


@dataclass(frozen=True)
class Drawn:
    """One parameter as it was settled.

    Args:
        name: its own where the values to draw from depend on other parameters, else the path.
        path: the setting.
        domain: what it was drawn from.
        value: what came of it.
    """

    name: str
    path: str
    domain: Domain
    value: Value


Choose = Callable[[str, str, Domain], Value]
"""Draws a value: from a name, a path and a domain."""


class Conflict(Exception):
    """These values make no recipe; says why, and what had been drawn by then."""

    def __init__(self, reason: str, drawn: Sequence[Drawn]) -> None:
        super().__init__(reason)
        self.drawn = list(drawn)


class Misfit(Exception):
    """What the space could not have proposed, and in words why."""


@dataclass(frozen=True)
class Candidate:
    """A recipe that may be tried."""

    drawn: list[Drawn]
    settings: dict[str, Value]
    """what was drawn and what is tied to it, by path"""
    recipe: Section

    @property
    def parameters(self) -> dict[str, Value]:
        """What was drawn, by path."""
        return {one.path: one.value for one in self.drawn}


@dataclass(frozen=True)
class Space:
    """What may be proposed.

    Args:
        schema: the model of a recipe.
        base: the recipe that everything is a change of, resolved.
        dimensions: by path.
        ties: by path.
        source: the file to name in errors.
    """

    schema: type[Section]
    base: Section
    dimensions: Mapping[str, AnyDimension]
    ties: Mapping[str, Tie]
    source: Path | None = None
    order: tuple[str, ...] = field(init=False)
    _table: config.Table = field(init=False, repr=False)
    _flat: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", self._ordered())
        object.__setattr__(self, "_table", config.to_table(self.base))
        object.__setattr__(self, "_flat", flat(config.flatten(self.base)))

    def propose(self, choose: Choose) -> Candidate:
        """The recipe that the chosen values make.

        Raises:
            Conflict: they make none.
        """
        drawn, settings = self._walk(choose)
        try:
            recipe = config.build(self.schema, config.override(self._table, settings))
        except UserError as error:
            raise Conflict(str(error), drawn) from None
        return Candidate(drawn, settings, recipe)

    def place(self, values: Mapping[str, Any]) -> list[Drawn] | None:
        """The parameters read off settings by path, or None where this space does not hold them.

        Where they contradict each other: those up to there.
        """
        try:
            return self._read(values)
        except Misfit:
            return None

    def fits(self, recipe: config.Table) -> list[Drawn] | None:
        """The parameters of a recipe that this space could have proposed, else None."""
        try:
            return self._fit(recipe)
        except Misfit:
            return None

    def misfit(self, recipe: config.Table) -> str:
        """The first setting for which this space could not have proposed a recipe, in words; empty if it could."""
        try:
            self._fit(recipe)
        except Misfit as misfit:
            return str(misfit)
        return ""

    def _read(self, values: Mapping[str, Any]) -> list[Drawn]:
        def read(name: str, path: str, domain: Domain) -> Value:
            if path not in values:
                raise Misfit(f"{path} is not set")
            if not domain.holds(values[path]):
                raise Misfit(f"{path}={values[path]}, which the space does not hold")
            value: Value = values[path]
            return value

        try:
            return self._walk(read)[0]
        except Conflict as conflict:
            return conflict.drawn

    def _fit(self, recipe: config.Table) -> list[Drawn]:
        try:
            asked = config.build(self.schema, recipe)
            drawn = self._read(flat(config.flatten(asked)))
            values = {one.path: one.value for one in drawn}
            same = self.propose(lambda name, path, domain: values[path]).recipe
        except (UserError, Conflict) as error:
            raise Misfit(str(error)) from None
        except KeyError as error:
            raise Misfit(f"{error.args[0]} cannot be settled") from None
        if config.fingerprint(same) != config.fingerprint(asked):
            first = config.diff(same, asked)[0]
            then, now = ("none" if value is None else value for value in (first.new, first.old))
            raise Misfit(f"{first.path}={then}, now {now}")
        return drawn

    def _walk(self, choose: Choose) -> tuple[list[Drawn], dict[str, Value]]:
        drawn: list[Drawn] = []
        settings: dict[str, Value] = {}
        for path in self.order:
            if path in self.ties:
                settings[path] = self._tied(self.ties[path], settings, drawn)
                continue
            dimension = self.dimensions[path]
            if not self._holds(dimension.when, settings, drawn):
                continue
            name, domain = self._domain(path, dimension, settings, drawn)
            value = choose(name, path, domain)
            settings[path] = value
            drawn.append(Drawn(name, path, domain, value))
        return drawn, settings

    def _holds(self, conditions: Mapping[str, Any], settings: Mapping[str, Value], drawn: list[Drawn]) -> bool:
        for path, wanted in conditions.items():
            value = self._look(path, settings)
            if value not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def _look(self, path: str, settings: Mapping[str, Value]) -> Any:
        """A setting's value so far: settled, or the base's, unless a kind above it has changed; else None."""
        if path in settings:
            return settings[path]
        keys = path.split(".")
        for depth in range(1, len(keys)):
            kind = ".".join([*keys[:depth], "kind"])
            if kind != path and settings.get(kind, self._flat.get(kind)) != self._flat.get(kind):
                return None
        return self._flat.get(path)

    def _number(self, path: str, settings: Mapping[str, Value], drawn: list[Drawn]) -> float:
        value = self._look(path, settings)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Conflict(f"{path} is {'not set' if value is None else repr(value)}: a number is needed there", drawn)
        return value

    def _tied(self, tie: Tie, settings: Mapping[str, Value], drawn: list[Drawn]) -> Value:
        of = self._number(tie.of, settings, drawn)
        if tie.inverse and of == 0:
            raise Conflict(f"{tie.of} is 0: nothing can be divided by it", drawn)
        value = (tie.times / of if tie.inverse else tie.times * of) + tie.plus
        return round(value) if tie.whole or value == int(value) else value

    def _domain(
        self, path: str, dimension: AnyDimension, settings: Mapping[str, Value], drawn: list[Drawn]
    ) -> tuple[str, Domain]:
        if isinstance(dimension, Choice):
            domain: Domain = Options(tuple(dimension.choices))
        else:
            low, high = (
                self._tied(end, settings, drawn) if isinstance(end, Tie) else end
                for end in (dimension.low, dimension.high)
            )
            assert isinstance(low, int | float) and isinstance(high, int | float)
            if low > high:
                raise Conflict(f"{path}: nothing lies between {low:g} and {high:g}", drawn)
            if dimension.log and low <= 0:
                raise Conflict(f"{path}: low={low:g}: a logarithm needs it above 0", drawn)
            if isinstance(dimension, Float):
                domain = Range(low, high, log=dimension.log, step=dimension.step)
            else:
                low, high = math.ceil(low), math.floor(high)
                if low > high:
                    raise Conflict(f"{path}: no whole number lies between the ends of its range", drawn)
                step = None if dimension.step == 1 else dimension.step
                domain = Range(low, high, log=dimension.log, step=step, whole=True)
        if isinstance(dimension, Float) or dimension.divides is dimension.multiple_of is None:
            return path, domain
        every = list(domain.values())
        left = [value for value in every if self._divides(dimension, value, settings, drawn)]
        if not left:
            whom = dimension.divides or dimension.multiple_of
            relation = "divides" if dimension.divides else "is a multiple of"
            listed = ", ".join(str(value) for value in every[:8])
            raise Conflict(f"{path}: none of {listed} {relation} {whom}={self._look(str(whom), settings)}", drawn)
        if len(left) == len(every):
            return path, domain
        return f"{path} of {', '.join(str(value) for value in left)}", Options(tuple(left))

    def _divides(
        self, dimension: AnyDimension, value: Value, settings: Mapping[str, Value], drawn: list[Drawn]
    ) -> bool:
        assert not isinstance(dimension, Float)
        if isinstance(value, bool) or not isinstance(value, int | float) or value == 0:
            return False
        fits = dimension.divides is None or self._number(dimension.divides, settings, drawn) % value == 0
        if dimension.multiple_of is None or not fits:
            return fits
        other = self._number(dimension.multiple_of, settings, drawn)
        return other != 0 and value % other == 0

    def _ordered(self) -> tuple[str, ...]:
        graph = {path: [one for one in needs(entry) if one in self.dimensions or one in self.ties]
                 for path, entry in [*self.dimensions.items(), *self.ties.items()]}  # fmt: skip
        try:
            return tuple(graphlib.TopologicalSorter(graph).static_order())
        except graphlib.CycleError as error:
            circle = " -> ".join(error.args[1])
            table = "space" if error.args[1][0] in self.dimensions else "tied"
            raise fault(f"depends on itself: {circle}", table, error.args[1][0], self.source) from None


def needs(entry: AnyDimension | Tie) -> list[str]:
    """The paths that must be settled before this one."""
    if isinstance(entry, Tie):
        return [entry.of]
    found = list(entry.when)
    if isinstance(entry, Choice):
        ends: list[Any] = []
    else:
        ends = [entry.low, entry.high]
    found += [end.of for end in ends if isinstance(end, Tie)]
    if not isinstance(entry, Float):
        found += [path for path in (entry.divides, entry.multiple_of) if path is not None]
    return found


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by path, what is not set as the word that unsets it."""
    return {path: "none" if value is None else value for path, value in settings.items()}
