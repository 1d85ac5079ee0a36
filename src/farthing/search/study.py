"""The state of a search: what has been tried, by whom, and what nobody works on any more.

On one machine it is the trials' files (`Files`); on many it is a database that all workers meet in (shared.py), with
the same files beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Protocol

from farthing import config
from farthing.errors import UserError
from farthing.search.record import BASE, Folder, Record, Refused, this_worker
from farthing.search.sampling import Tried
from farthing.search.space import Drawn, Space


class Ledger(Protocol):
    """Who works on what; every method may raise a FarthingError where the state cannot be reached."""

    def records(self) -> list[Record]:
        """Every trial and confirmation run, each as its last attempt has left it, in order of their numbers."""

    def next_number(self) -> int:
        """A number that no other trial has."""

    def begin(self, record: Record, drawn: Sequence[Drawn], *, most: int | None) -> bool:
        """Put a new one in the books; False where another worker was faster or `most` trials have begun before it."""

    def update(self, record: Record) -> bool:
        """Tell how it stands or has ended; False where it has been taken from us, and nothing was told."""

    def unfinished(self) -> list[Record]:
        """What was begun and nobody works on."""

    def take_over(self, record: Record) -> Record | None:
        """Make one of those ours, as its next attempt; None where another worker was faster."""

    def leave(self, id: str) -> None:
        """Nobody works on this one any more: it waits for a sitting that has room for it."""

    def lost(self) -> set[str]:
        """Ids that we worked on and that have been taken from us."""

    def others_work(self, *, but: Collection[str] = ()) -> bool:
        """Whether other workers have something running, apart from what has these ids."""

    def give_back(self, number: int) -> None:
        """Nothing has come of this number."""

    def close(self) -> None:
        """Let go."""


class Files:
    """The ledger of one process alone: trial.json of each trial, in a folder that it holds the lock of.

    Args:
        folder: of the search.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._records = {record.id: record for record in folder.records()}
        self._ours: set[str] = set()

    def records(self) -> list[Record]:
        """Every trial and confirmation run."""
        return sorted(self._records.values(), key=lambda one: one.number)

    def next_number(self) -> int:
        """One more than the highest."""
        return max((record.number for record in self._records.values()), default=-1) + 1

    def begin(self, record: Record, drawn: Sequence[Drawn], *, most: int | None) -> bool:
        """Keep its file."""
        if not self._folder.create(record):
            return False
        self._records[record.id] = record
        self._ours.add(record.id)
        return True

    def update(self, record: Record) -> bool:
        """Replace its file."""
        if record != self._records.get(record.id):
            self._folder.write(record)
            self._records[record.id] = record
        if record.ended:
            self._ours.discard(record.id)
        return True

    def unfinished(self) -> list[Record]:
        """What an earlier sitting has left."""
        return [record for record in self.records() if not record.ended and record.id not in self._ours]

    def take_over(self, record: Record) -> Record | None:
        """The next attempt."""
        taken = replace(record, attempt=record.attempt + 1, worker=this_worker())
        self._ours.add(record.id)
        self.update(taken)
        return taken

    def leave(self, id: str) -> None:
        """It is nobody's."""
        self._ours.discard(id)

    def lost(self) -> set[str]:
        """None, ever: there is nobody else."""
        return set()

    def others_work(self, *, but: Collection[str] = ()) -> bool:
        """Nobody else works here."""
        return False

    def give_back(self, number: int) -> None:
        """Numbers are free."""

    def close(self) -> None:
        """The lock is the caller's."""


class History:
    """The past as today's space sees it: what does not fit in it any more is left out.

    Args:
        space: of today.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._places: dict[str, list[Drawn] | None] = {}
        self._bases: dict[str, bool] = {}

    def of(self, records: Sequence[Record], refused: Sequence[Refused] = ()) -> list[Tried]:
        """What a sampler learns from: trials in order, before each what was refused for it, and what has been just now."""
        found = []
        for record in records:
            if record.role != "trial":
                continue
            found += self._refusals(record.id, record.refused)
            drawn = self.place(record)
            if drawn is not None:
                found.append(_tried(record, drawn))
        return found + self._refusals("", refused)

    def place(self, record: Record) -> list[Drawn] | None:
        """A trial's parameters, or None where this space could not have proposed it."""
        if record.id not in self._places:
            self._places[record.id] = self._space.fits(record.recipe)
        return self._places[record.id]

    def belong(self, records: Sequence[Record]) -> list[Record]:
        """What is of the search as it is asked today: trials that still fit, and the runs that confirm these or the base."""
        return [one for one in records if (self._is_base(one) if one.of == BASE else self.place(one) is not None)]

    def left_out(self, records: Sequence[Record]) -> list[Record]:
        """The trials that do not fit any more, in order."""
        return [one for one in records if one.role == "trial" and self.place(one) is None]

    def why_left_out(self, records: Sequence[Record]) -> str:
        """Which setting keeps the first of those from fitting; empty where all fit."""
        left_out = self.left_out(records)
        return f"{left_out[0].id} has {self._space.misfit(left_out[0].recipe)}" if left_out else ""

    def _is_base(self, record: Record) -> bool:
        """Whether a run that confirms the base is of today's base recipe."""
        if record.id not in self._bases:
            try:
                recipe = config.build(self._space.schema, record.recipe)
                self._bases[record.id] = config.fingerprint(recipe) == config.fingerprint(self._space.base)
            except UserError:  # of a version whose recipes had other fields
                self._bases[record.id] = False
        return self._bases[record.id]

    def _refusals(self, id: str, refused: Sequence[Refused]) -> list[Tried]:
        found = []
        for index, one in enumerate(refused):
            key = f"{id}/{index}"
            if not id or key not in self._places:
                self._places[key] = self._space.place(one.parameters)
            drawn = self._places[key]
            if drawn is not None:
                found.append(Tried(drawn, None, {}, generation=one.generation))
        return found


def _tried(record: Record, drawn: list[Drawn]) -> Tried:
    curve = {int(percent): value for percent, value in record.curve.items()}
    running = record.state == "running"
    stopped = curve if record.state in ("pruned", "running") else {}
    return Tried(drawn, record.score, stopped, running=running, generation=record.generation)
