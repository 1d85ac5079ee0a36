"""What is known of a climb, in files: decisions beside the run folders that they rest on."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from farthing import config
from farthing.errors import UserError
from farthing.forms import shaped
from farthing.rundir import RunDir
from farthing.section import Section
from farthing.storage import read_json, write_json, write_text

VERSION = 1
Outcome = Literal["kept", "rolled back", "refused"]


@dataclass(frozen=True)
class Decision:
    """What was decided about one change, and on what grounds.

    Args:
        name: the change's.
        outcome: kept, rolled back or refused.
        reason: in words: the verdict, or why it was refused.
        arm: the name of its runs; empty where it was not trained.
        against: the name of the runs of the best until then.
        seeds: how many seeds were looked at.
        difference: its mean score minus that of the best until then, bits per byte; None where that is not known.
        low: lower end of the difference's 95 % interval.
        high: upper end.
        p: two-sided, of the last look.
        cost: its cost as a multiple of that of the best until then.
        margin: bits per byte that it had to win.
        round: in a free climb, which round.
    """

    name: str
    outcome: Outcome
    reason: str
    arm: str = ""
    against: str = ""
    seeds: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    cost: float | None = None
    margin: float = 0.0
    round: int = 1


@dataclass
class Standing:
    """Where a climb stands; climb.json holds it.

    Args:
        decisions: in order.
        arms: names of runs by the fingerprint of their recipe without its seed.
        ended: why the climb of changes is over; empty while it is not.
        confirmation: the final recipe against the base over fresh seeds.
        ablation: for each kept change, the final recipe without it.
        held_out: scores on the test text, which nothing else has looked at.
    """

    decisions: list[Decision] = field(default_factory=list)
    arms: dict[str, str] = field(default_factory=dict)
    ended: str = ""
    confirmation: dict[str, Any] | None = None
    ablation: list[dict[str, Any]] = field(default_factory=list)
    held_out: dict[str, Any] | None = None

    @property
    def kept(self) -> list[str]:
        """Names of the changes that were kept, in order."""
        return [one.name for one in self.decisions if one.outcome == "kept"]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"version": VERSION, **asdict(self)}


class ClimbFolder:
    """The folder of a climb: its run folders, `climb.toml` as asked, `climb.json` as it stands, `final.toml` at the end.

    `asked/NAME.toml` is what an arm's runs train, `asked/NAME.txt` what their processes printed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked = path / "climb.toml"
        self.standing = path / "climb.json"
        self.final = path / "final.toml"
        self._arms = path / "asked"

    @classmethod
    def open(cls, path: Path) -> ClimbFolder:
        """An existing climb.

        Raises:
            UserError: it is none.
        """
        folder = cls(path)
        if not folder._is_one():
            what = "is not the folder of a climb: it has no climb.toml" if path.is_dir() else "no such folder"
            raise UserError(f"{path}: {what}")
        return folder

    def _is_one(self) -> bool:
        # A folder in which somebody keeps a climb.toml of their own is none.
        return self.asked.is_file() and self._arms.is_dir()

    def make(self, asked: str) -> None:
        """The folder itself, with what was asked.

        Raises:
            UserError: it holds another climb, or cannot be written.
        """
        if self._is_one():
            return self._check(asked)
        if self.path.exists() and any(self.path.iterdir()):
            raise UserError(f"{self.path}: is there already and is no climb; choose another --name")
        try:
            self._arms.mkdir(parents=True, exist_ok=True)
            write_text(self.asked, asked)
        except OSError as error:
            raise UserError(f"{self.path}: the climb's folder cannot be written: {error.strerror or error}") from None

    def take_over(self, asked: str) -> None:
        """Note what is asked from now on, which may differ in what no verdict rests on; the climb must be held.

        Raises:
            UserError: it has become another climb.
        """
        self._check(asked)
        if self.asked.read_text("utf-8") != asked:
            write_text(self.asked, asked)

    def _check(self, asked: str) -> None:
        standing = self.read()
        if _deciding(config.read_toml(self.asked), standing) != _deciding(tomllib.loads(asked), standing):
            raise UserError(f"{self.path}: holds another climb than this file asks for; choose another --name")

    def locked(self) -> AbstractContextManager[None]:
        """Hold this climb against other processes.

        Raises:
            RunLockedError: another one holds it.
        """
        return RunDir(self.path).locked()

    def read(self) -> Standing:
        """Where it stands.

        Raises:
            UserError: climb.json is damaged or of a newer version.
        """
        if not self.standing.is_file():
            return Standing()
        try:
            table = dict(read_json(self.standing))
            if table.pop("version") > VERSION:
                raise UserError(f"{self.standing}: written by a newer farthing")
            standing = shaped(Standing, table)
            if strange := [arm for arm in standing.arms.values() if not re.fullmatch(r"[a-z0-9-]{1,60}", arm)]:
                raise ValueError(f"arms: {strange[0][:80]!r} is the name of no runs")
            return standing
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.standing}: damaged: {error}; take it away and its runs are judged anew") from None

    def write(self, standing: Standing) -> None:
        """Keep where it stands."""
        write_json(self.standing, standing.as_dict())

    def arm(self, standing: Standing, recipe: Section, name: str) -> str:
        """The name of a recipe's runs: that of an arm with the same recipe, or a new one; what it trains is written."""
        key = _key(type(recipe), config.to_table(recipe))
        if key not in standing.arms:
            slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "change"
            names = (_numbered(slug, number) for number in itertools.count())
            standing.arms[key] = next(name for name in names if self._free(standing, name, type(recipe), key))
        file = self.recipe(standing.arms[key])
        if not file.is_file():
            write_text(file, config.to_toml(recipe))
        return standing.arms[key]

    def _free(self, standing: Standing, name: str, schema: type[Section], key: str) -> bool:
        """Whether runs of that recipe may have that name: none has it, or an interrupted sitting gave it to the same one."""
        if name in standing.arms.values():
            return False
        file = self.recipe(name)
        if not file.is_file():
            return not any(self.path.glob(f"{name}-seed*"))
        try:
            return _key(schema, config.read_toml(file)) == key
        except UserError:
            return False

    def recipe(self, arm: str) -> Path:
        """What an arm's runs train, but for the seed."""
        return self._arms / f"{arm}.toml"

    def output(self, arm: str, seed: int) -> Path:
        """What a run's process prints."""
        return self._arms / f"{arm}-seed{seed}.txt"

    def run(self, arm: str, seed: int) -> RunDir:
        """The run folder of one seed of an arm."""
        return RunDir(self.path / f"{arm}-seed{seed}")

    def runs(self, arms: Sequence[str]) -> list[RunDir]:
        """Every run folder of these arms that is there."""
        found = [RunDir(path) for arm in arms for path in sorted(self.path.glob(f"{arm}-seed*"))]
        return [run for run in found if run.recipe.is_file()]


def _key(schema: type[Section], table: Mapping[str, Any]) -> str:
    """A recipe's fingerprint without its seed."""
    return config.fingerprint(config.build(schema, {**table, "seed": 0}))


def _numbered(slug: str, number: int) -> str:
    return slug if number == 0 else f"{slug}-{number + 1}"


def _deciding(asked: Mapping[str, Any], standing: Standing) -> Mapping[str, Any]:
    """What verdicts rest on.

    Not the budget; of the changes only those that have been decided, until the end has been confirmed: then all, and the
    confirmation's seeds.
    """
    climb = asked.get("climb")
    if not isinstance(climb, dict):
        return asked
    confirmed, decided = standing.confirmation is not None, {one.name for one in standing.decisions}
    kept = {name: value for name, value in climb.items() if name not in ("budget", "confirm", "step")}
    steps = {
        step["name"]: step.get("changes") for step in climb.get("step", []) if confirmed or step["name"] in decided
    }
    proof = climb.get("confirm")
    seeds = proof.get("seeds") if confirmed and isinstance(proof, dict) else None
    return {**asked, "climb": kept, "steps": steps, "seeds": seeds}
