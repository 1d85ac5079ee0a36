"""CLIMB.toml: a base recipe, changes to it with the reason for each, and what it takes to keep one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from farthing import config
from farthing.errors import UserError, nearest
from farthing.search.asked import SearchLimits
from farthing.search.file import base_recipe, find_file, paths_in
from farthing.section import Section

Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
OWN = "climb."
"""how an override begins that is for CLIMB.toml and not for the recipe"""
FRESH = 20_001
"""the first seed of the confirmation"""


class Step(Section):
    """One change to the recipe as it stands by then."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    """what the tables call it"""
    reason: str = ""
    """why it might help"""
    changes: Annotated[dict[str, Any], Field(min_length=1)]
    """settings of the recipe, as tables or paths"""


class Judge(Section):
    """When a change is kept. Scores of the same seeds are compared in pairs, at a few looks while seeds come in."""

    looks: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)] = [2, 3, 5]
    """numbers of seeds after which to look; the last is the most that one change may take"""
    level: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """the chance of a false verdict on one change, over all its looks"""
    spending: Literal["obrien-fleming", "pocock"] = "pocock"
    """how the level is spent over the looks: nearly all of it at the last, or evenly"""
    hopeless_below: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """a change whose chance to end as better, by the trend so far, is under this is given up; 0 gives none up"""
    cost: Literal["flops", "seconds", "money"] = "flops"
    """what a change's cost is counted in, against the best so far"""
    per_doubling: Annotated[float, Field(ge=0)] = 0.0
    """bits per byte that a change must win, beyond noise, for each doubling of the cost; 0 takes any gain"""
    least: Annotated[float, Field(ge=0)] = 0.0
    """bits per byte that any change must win, beyond noise"""

    @model_validator(mode="after")
    def _rising(self) -> Judge:
        if any(b <= a for a, b in zip(self.looks, self.looks[1:], strict=False)):
            raise ValueError(f"looks={self.looks}: the numbers of seeds must rise")
        return self


class ClimbBudget(Section):
    """What the whole climb may spend, its confirmation included. What is not given has no limit: the list is finite."""

    runs: Annotated[int, Field(ge=1)] | None = None
    """training runs"""
    flops: Positive | None = None
    """training operations"""
    minutes: Positive | None = None
    """minutes that runs hold the machine, added up"""
    money: Positive | None = None
    """what runs may cost, by the recipe's budget.price_per_hour"""


class Proof(Section):
    """The end: the final recipe against the base, and against itself without each kept change, over fresh seeds."""

    seeds: Annotated[int, Field(ge=0)] = 3
    """fresh seeds for each; 0 confirms nothing"""
    ablation: bool = True
    """take each kept change away again, alone"""


class Climb(Section):
    """One climb."""

    recipe: str = "default"
    """the base recipe: a file (beside this one or where you are) or a shipped one's name"""
    changes: dict[str, Any] = {}
    """settings of the recipe that hold throughout, as tables or paths"""
    order: Literal["listed", "free"] = "listed"
    """listed: each change once, on the best so far; free: all that are left in each round, of which the best is kept"""
    seed: Seed = 1
    """the first of the seeds that changes are judged by; the others follow"""
    judge: Judge = Judge()
    """when a change is kept"""
    limits: SearchLimits = SearchLimits()
    """what refuses a change before it is trained"""
    budget: ClimbBudget = ClimbBudget()
    """what the climb may spend"""
    confirm: Proof = Proof()
    """what the end is checked by"""
    step: Annotated[list[Step], Field(min_length=1)]
    """the changes"""

    @model_validator(mode="after")
    def _named_once(self) -> Climb:
        names = [step.name for step in self.step]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"step: {twice!r} is the name of two changes")
        return self

    @property
    def seeds(self) -> list[int]:
        """The seeds that changes are judged by."""
        return [self.seed + index for index in range(self.judge.looks[-1])]


@dataclass(frozen=True)
class Asked:
    """A climb that has been read and checked.

    Args:
        climb: its sections.
        schema: the model of a recipe.
        base: the base recipe as a table, with [changes] and overrides in it.
        path: the file.
    """

    climb: Climb
    schema: type[Section]
    base: config.Table
    path: Path

    def recipe(self, kept: Sequence[str]) -> Section:
        """The base recipe with these changes, in the order given.

        Raises:
            UserError: they do not go together.
        """
        table, steps = self.base, {step.name: step for step in self.climb.step}
        for name in kept:
            table = config.override(config.with_kinds(self.schema, table), steps[name].changes)
        return config.build(self.schema, table)


def read(name: str, schema: type[Section], overrides: Sequence[str] = ()) -> Asked:
    """Read CLIMB.toml and its base recipe, and refuse what could never run.

    Args:
        name: a file or a shipped climb's name.
        schema: the model of a recipe.
        overrides: `path=value` for the base recipe, `climb.path=value` for the climb itself.

    Raises:
        UserError: anything wrong, in one line with file and key.
    """
    path = find_file(name, "climb")
    own = [one.removeprefix(OWN) for one in overrides if one.startswith(OWN)]
    table = config.override(config.with_kinds(Climb, config.read_toml(path)), own)
    climb = config.build(Climb, table, source=path)
    recipe, _ = config.load_table(schema, base_recipe(path, climb.recipe))
    base = config.override(config.with_kinds(schema, recipe), climb.changes)
    base = config.override(base, [one for one in overrides if not one.startswith(OWN)])
    config.build(schema, base, source=None if climb.changes or overrides else path)
    asked = Asked(climb, schema, base, path)
    known = set(config.paths_of(schema))
    for step in climb.step:
        for setting in paths_in(step.changes):
            if setting == "seed":
                raise _fault(asked, step, "seed is no change; climb.seed sets the first of the seeds")
            if setting not in known and not any(setting == one.rpartition(".")[0] for one in known):
                raise _fault(asked, step, f"{setting}: no such setting{nearest(setting, known)}")
        try:
            asked.recipe([step.name])
        except UserError as error:
            if not any(_possible(asked, [*before, step.name]) for before in _before(climb, step)):
                raise _fault(asked, step, str(error)) from None
    return asked


def _before(climb: Climb, step: Step) -> Iterator[list[str]]:
    """What may have been kept before a change that does not go with the base alone: one change, or all there are."""
    earlier = climb.step[: climb.step.index(step)] if climb.order == "listed" else climb.step
    others = [one.name for one in earlier if one is not step]
    yield others
    yield from ([other] for other in others)


def _possible(asked: Asked, names: Sequence[str]) -> bool:
    try:
        asked.recipe(names)
    except UserError:
        return False
    return True


def _fault(asked: Asked, step: Step, message: str) -> UserError:
    return UserError(f"{asked.path}: step {step.name!r}: {message}")
