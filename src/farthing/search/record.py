"""One trial as its file tells it, and the folder of a search: this file alone knows the names in there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tomli_w

from farthing.errors import UserError
from farthing.forms import shaped
from farthing.rundir import RunDir
from farthing.search.asked import Value
from farthing.storage import new_folder, read_json, write_json, write_text

VERSION = 1
"""Version of trial.json; readers refuse a newer one."""
State = Literal["running", "complete", "pruned", "failed", "refused"]
Role = Literal["trial", "confirmation"]
BASE = "base"
"""what a confirmation run of the base recipe is a run of"""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A candidate that never ran."""

    parameters: dict[str, Value]
    reason: str
    generation: int | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """A trial, or one run that confirms a trial.

    Args:
        id: the name of its folder, and the beginning of its runs' names.
        number: of a trial, in the order in which they were begun.
        role: trial, or confirmation of one.
        of: the trial that is confirmed, or "base".
        attempt: which sitting of it this is; a late report of an earlier one is refused.
        worker: who works on it.
        process: the process id of the run that was started last, for whoever finds it still running.
        parameters: by path.
        recipe: resolved; the seed in it is the base's.
        seeds: of its runs.
        state: running (or stopped and to be continued), complete, pruned, failed, or refused by `train` itself.
        scores: validation bits per byte of finished runs, by seed.
        curve: bits per byte of the first seed's run, by percent of its budget.
        score: the mean over seeds; of a pruned trial the last that was known.
        reason: why it failed, was pruned or refused.
        spent: flops, seconds the machine was held, money; over all attempts.
        planned: the same as planned, and parameters.
        text: fingerprint of the validation text.
        refused: candidates that were refused since the trial before this one.
        generation: of an evolution strategy.
        rungs: what the pruner remembers of it.
        saved: steps that its runs had saved when this sitting began.
        fruitless: sittings in a row that have saved nothing more.
    """

    id: str
    number: int
    role: Role = "trial"
    of: str | None = None
    attempt: int = 1
    worker: str = ""
    process: int | None = None
    parameters: dict[str, Value]
    recipe: dict[str, Any]
    seeds: list[int]
    state: State = "running"
    scores: dict[str, float] = field(default_factory=dict)
    curve: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    reason: str = ""
    spent: dict[str, float] = field(default_factory=dict)
    planned: dict[str, float] = field(default_factory=dict)
    text: str = ""
    refused: list[Refused] = field(default_factory=list)
    generation: int | None = None
    rungs: dict[str, float] = field(default_factory=dict)
    saved: int = 0
    fruitless: int = 0
    version: int = VERSION

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.state != "running"

    @property
    def counts(self) -> bool:
        """Whether it is one of the budget's trials."""
        return self.role == "trial" and self.state != "refused"

    @property
    def cost(self) -> Mapping[str, float]:
        """What it has spent, or while it runs what it is planned to spend where that is more."""
        if self.ended:
            return self.spent
        return {
            name: max(self.spent.get(name, 0.0), self.planned.get(name, 0.0)) for name in ("flops", "seconds", "money")
        }

    def with_score(self, seed: int, score: float, text: str) -> Record:
        """With one more seed's score; complete once every seed has one.

        Args:
            seed: of the run that has ended.
            score: its bits per byte.
            text: fingerprint of the text that it was scored on.
        """
        return replace(self, scores={**self.scores, str(seed): score}, text=text).completed()

    def completed(self) -> Record:
        """Complete, with the mean over its seeds, if each of them has a score; else as it is."""
        if any(str(seed) not in self.scores for seed in self.seeds):
            return self
        return replace(self, state="complete", score=sum(self.scores.values()) / len(self.scores))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def of_table(cls, table: Any, where: str) -> Record:
        """The record that `as_dict` described.

        Raises:
            UserError: it is damaged or of a newer version.
        """
        try:
            if table["version"] > VERSION:
                raise UserError(f"{where}: a trial of version {table['version']}; this farthing reads {VERSION}")
            made = shaped(cls, table)
            if Path(made.id).name != made.id or made.id.startswith("."):
                raise ValueError(f"id: {made.id[:80]!r} is the name of no trial")
            return made
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where}: damaged: {error}; take its folder away to go on without this trial") from None


def trial_id(number: int) -> str:
    """What a trial is called."""
    return f"trial-{number:05d}"


def this_worker() -> str:
    """Who works here: process and machine."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Folder:
    """The folder of a search: run folders, and beside them what is known of each trial.

    `search.toml` is what was asked last. `trials/ID` holds what became of a trial (`trial.json`), what it was asked to
    train (`asked.toml`) and what its process printed (`output.txt`); `ID-seed-N` are its runs, and a confirmation's only
    run is `ID`. `refused.json` holds candidates that no trial has come after. `best.toml` and `findings.json` are the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked = path / "search.toml"
        self.best = path / "best.toml"
        self.findings = path / "findings.json"
        self._refused = path / "refused.json"
        self._trials = path / "trials"

    @classmethod
    def open(cls, path: Path) -> Folder:
        """An existing search.

        Raises:
            UserError: it is none.
        """
        folder = cls(path)
        if not folder.asked.is_file():
            what = "is not the folder of a search: it has no search.toml" if path.is_dir() else "no such folder"
            raise UserError(f"{path}: {what}")
        return folder

    def make(self, asked: str) -> None:
        """The folder itself; with what was asked, unless it holds a search already.

        Raises:
            UserError: it cannot be written, or is something else's.
        """
        try:
            # Another worker may be making it at this moment.
            others = {one.name for one in self.path.iterdir()} if self.path.exists() else set()
            if not self.asked.is_file() and any(name != "trials" and name[0] != "." for name in others):
                raise UserError(f"{self.path}: is there already and is no search; choose another --name")
            self._trials.mkdir(parents=True, exist_ok=True)
            if not self.asked.is_file():
                write_text(self.asked, asked)
        except OSError as error:
            raise UserError(f"{self.path}: the search's folder cannot be written: {error.strerror or error}") from None

    def note_asked(self, asked: str) -> None:
        """Keep what is asked from now on; the search must be held, so that one that is refused changes nothing."""
        if self.asked.read_text("utf-8") != asked:
            write_text(self.asked, asked)

    def locked(self) -> AbstractContextManager[None]:
        """Hold this search against other processes.

        Raises:
            RunLockedError: another one holds it.
        """
        return RunDir(self.path).locked()

    def records(self) -> list[Record]:
        """Every trial and confirmation, in order of their numbers.

        Raises:
            UserError: one of them is damaged.
        """
        return sorted(self._records(), key=lambda one: (one.role, one.number, one.id))

    def _records(self) -> Iterator[Record]:
        for file in self._trials.glob("*/trial.json"):
            if file.parent.name.startswith("."):
                continue  # some process has not finished making it
            try:
                table = read_json(file)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                raise UserError(f"{file}: damaged: {error}; take its folder away to go on without this trial") from None
            yield Record.of_table(table, str(file))

    def create(self, record: Record) -> bool:
        """Keep a new trial, in one rename; False where the id is taken."""
        try:
            with new_folder(self._trials / record.id, exclusive=True) as folder:
                write_text(folder / "asked.toml", tomli_w.dumps(record.recipe))
                write_json(folder / "trial.json", record.as_dict())
        except FileExistsError:
            return False
        return True

    def taken(self, number: int) -> bool:
        """Whether a trial of that number is here."""
        return (self._trials / trial_id(number)).exists()

    def write(self, record: Record) -> None:
        """Replace what is known of a trial."""
        write_json(self._trials / record.id / "trial.json", record.as_dict())

    def keep(self, record: Record) -> None:
        """The same for a trial that may have been begun elsewhere."""
        if (self._trials / record.id).is_dir():
            self.write(record)
        else:
            self.create(record)

    def refused(self) -> list[Refused]:
        """Candidates that were refused since the last trial began."""
        if not self._refused.is_file():
            return []
        try:
            return [shaped(Refused, one) for one in read_json(self._refused)]
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self._refused}: damaged: {error}; it may be taken away") from None

    def keep_refused(self, refused: Sequence[Refused]) -> None:
        """Keep them for the next sitting; none takes the file away."""
        if refused:
            write_json(self._refused, [asdict(one) for one in refused])
        else:
            self._refused.unlink(missing_ok=True)

    def recipe(self, record: Record) -> Path:
        """What a trial trains."""
        return self._trials / record.id / "asked.toml"

    def output(self, record: Record) -> Path:
        """What its process prints."""
        return self._trials / record.id / "output.txt"

    def run(self, record: Record, seed: int) -> RunDir:
        """The run folder of one seed; a confirmation has only one, which its id tells."""
        return RunDir(self.path / (record.id if record.role == "confirmation" else f"{record.id}-seed-{seed}"))
