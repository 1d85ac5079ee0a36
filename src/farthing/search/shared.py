"""The ledger of workers on many machines: an Optuna study in PostgreSQL, and each worker's files beside it.

Each attempt at a trial is an Optuna trial of its own, whose `record` is trial.json's content. A worker that is silent
for two heartbeats loses its attempts: they fail, and whoever is free begins the next attempt at the same trial. Since
Optuna never changes a trial that has ended, whatever the silent worker tells later is refused.

Two workers may want to begin the same attempt, or one trial too many, however long ago they took their numbers. So
whoever begins looks at what there is, and adds to it, under one lock: the second one sees the first, and withdraws.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from farthing.errors import ResourceError, UserError, first_line, need
from farthing.search.record import Folder, Record, this_worker
from farthing.search.sampling import distribution
from farthing.search.space import Drawn

_RECORD = "record"
_GATE = 0xFA47
"""key of the lock that is held while the tables are made"""
_TURN = 0xFA48
"""key of the lock, one for each study, under which attempts are begun"""
_LONGEST_TURN = "60s"
"""to wait for that lock, which is held for some milliseconds"""
_PATIENCE = 10
"""seconds to wait for a connection"""


@dataclass(frozen=True)
class _Entry:
    """One attempt in the database."""

    trial: Any
    record: Record

    @property
    def order(self) -> tuple[bool, int, int]:
        """Which of a trial's attempts is the one that counts: what has ended, else the newest, the lowest number first."""
        return self.record.ended, self.record.attempt, -self.trial.number

    @property
    def dead(self) -> bool:
        """Whether it was given up before it had ended."""
        return bool(self.trial.state.is_finished()) and not self.record.ended


class Shared:
    """The ledger in a database.

    Args:
        url: postgresql://user:password@host/database.
        name: of the search; workers with one name and one database are one search.
        folder: of this worker's files.
        heartbeat_seconds: how often it says that it lives.

    Raises:
        UserError: the URL is of no such database, or the extra is missing.
        ResourceError: the database does not answer.
    """

    def __init__(self, url: str, name: str, folder: Folder, *, heartbeat_seconds: int) -> None:
        self._address = _address(url)
        self._where = shown(url)
        self._folder = folder
        self._ours: dict[str, Any] = {}
        self._taken: dict[int, Any] = {}
        self._lost: set[str] = set()
        self._silent: Exception | None = None
        self._guard = threading.Lock()
        self._over = threading.Event()
        self._seconds = heartbeat_seconds
        with self._answering():
            self._storage, self._study = _opened(url, name, heartbeat_seconds)
        self._bring_in()
        self._pulse = threading.Thread(target=self._beat, daemon=True)
        self._pulse.start()

    def records(self) -> list[Record]:
        """Every trial and confirmation run."""
        return [entry.record for entry in self._entries()]

    def next_number(self) -> int:
        """The number of a new Optuna trial, which is alive from now on."""
        with self._answering():
            while self._folder.taken((trial := self._new()).number):
                self._withdraw(trial)
        with self._guard:
            self._taken[trial.number] = trial
        return int(trial.number)

    def begin(self, record: Record, drawn: Sequence[Drawn], *, most: int | None) -> bool:
        """Write it into the trial of its number."""
        with self._guard:
            trial = self._taken.pop(record.number)
            self._ours[record.id] = trial
        with self._answering():
            for one in drawn:
                # For those who look at the study with Optuna's tools; the record is what counts.
                with suppress(ValueError):
                    words = distribution(one.domain)
                    self._storage.set_trial_param(trial._trial_id, one.name, words.to_internal_repr(one.value), words)
        if self._begins(trial, record, most):
            self._folder.keep(record)
            return True
        return False

    def update(self, record: Record) -> bool:
        """Write it, unless the attempt has been given up."""
        from optuna.exceptions import UpdateFinishedTrialError

        trial = self._ours.get(record.id)
        if trial is None:
            return False
        try:
            with self._answering():
                self._storage.set_trial_user_attr(trial._trial_id, _RECORD, record.as_dict())
                if record.ended:
                    self._end(trial, record)
        except UpdateFinishedTrialError:
            self._forget(record.id)
            return False
        if record.ended:
            self._forget(record.id)
        self._folder.keep(record)
        return True

    def unfinished(self) -> list[Record]:
        """What silent workers have left."""
        import optuna

        with self._answering(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        return [entry.record for entry in self._entries() if entry.dead and entry.record.id not in self._ours]

    def take_over(self, record: Record) -> Record | None:
        """Begin its next attempt."""
        with self._answering():
            trial = self._new()
        taken = replace(record, attempt=record.attempt + 1, worker=this_worker())
        with self._guard:
            self._ours[record.id] = trial
        if not self._begins(trial, taken, None):
            return None
        self._folder.keep(taken)
        return taken

    def leave(self, id: str) -> None:
        """Give up its attempt, so that no worker waits for ours."""
        with self._guard:
            trial = self._ours.pop(id, None)
        if trial is not None:
            with self._answering():
                self._withdraw(trial)

    def lost(self) -> set[str]:
        """What the heartbeat has found to be taken from us."""
        self._check_pulse()
        with self._guard:
            lost, self._lost = self._lost, set()
        for id in lost:
            self._forget(id)
        return lost

    def others_work(self, *, but: Collection[str] = ()) -> bool:
        """Whether another worker is alive and has something running, or has left something that will be taken over."""
        theirs = (entry.record for entry in self._entries() if entry.record.id not in self._ours)
        return any(not record.ended and record.id not in but for record in theirs)

    def give_back(self, number: int) -> None:
        """Close an Optuna trial that nothing has come of."""
        with self._guard:
            trial = self._taken.pop(number, None)
        if trial is not None:
            with self._answering():
                self._withdraw(trial)

    def close(self) -> None:
        """Stop the heartbeat."""
        self._over.set()
        self._pulse.join(timeout=self._seconds + 5)
        with suppress(Exception):
            self._storage.remove_session()
            self._storage.engine.dispose()

    def _new(self) -> Any:
        """An Optuna trial, alive from now on; whatever dies before its first heartbeat has no record, so it is nothing."""
        made = self._storage.create_new_trial(self._study._study_id)
        self._storage.record_heartbeat(made)
        return self._storage.get_trial(made)

    def _entries(self) -> list[_Entry]:
        """The attempt that counts of each trial, in order."""
        with self._answering():
            trials = self._storage.get_all_trials(self._study._study_id, deepcopy=False)
        found: dict[str, _Entry] = {}
        for trial in trials:
            table = trial.user_attrs.get(_RECORD)
            if table is None:
                continue
            entry = _Entry(trial, Record.of_table(table, f"{self._where}, trial {trial.number}"))
            known = found.get(entry.record.id)
            if known is None or entry.order > known.order:
                found[entry.record.id] = entry
        return sorted(found.values(), key=lambda entry: entry.record.number)

    def _begins(self, trial: Any, record: Record, most: int | None) -> bool:
        """Write the record if nobody has begun this attempt, or a later one, and the trial is within the budget."""
        with self._turn():
            entries = self._entries()
            others = sum(entry.record.counts and entry.record.id != record.id for entry in entries)
            begun = any(
                entry.record.id == record.id and (entry.record.ended or entry.record.attempt >= record.attempt)
                for entry in entries
            )
            if not begun and (most is None or others < most):
                self._storage.set_trial_user_attr(trial._trial_id, _RECORD, record.as_dict())
                return True
            self._withdraw(trial)
        self._forget(record.id)
        return False

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Alone among all workers of this study."""
        import psycopg

        with (
            self._answering(),
            psycopg.connect(f"postgresql://{self._address}", connect_timeout=_PATIENCE, autocommit=True) as gate,
        ):
            gate.execute("SELECT set_config('lock_timeout', %s, false)", (_LONGEST_TURN,))
            gate.execute("SELECT pg_advisory_lock(%s, %s)", (_TURN, self._study._study_id))
            yield

    def _withdraw(self, trial: Any) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _end(self, trial: Any, record: Record) -> None:
        from optuna.trial import TrialState

        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
        values = None if record.score is None else [record.score]
        for percent, value in record.curve.items():
            self._storage.set_trial_intermediate_value(trial._trial_id, int(percent), value)
        self._storage.set_trial_state_values(trial._trial_id, states.get(record.state, TrialState.FAIL), values)

    def _bring_in(self) -> None:
        """Put into the database what is only in the files: it is new, or has lost something."""
        from optuna.trial import TrialState, create_trial

        known = {record.id for record in self.records()}
        for record in self._folder.records():
            if record.id in known:
                continue
            attributes = {_RECORD: record.as_dict()}
            if record.state == "complete":
                made = create_trial(value=record.score, user_attrs=attributes)
            else:
                # Nobody works on it: what has not ended is to be taken over.
                made = create_trial(state=TrialState.FAIL, user_attrs=attributes)
            with self._answering():
                self._study.add_trial(made)

    def _forget(self, id: str) -> None:
        with self._guard:
            self._ours.pop(id, None)

    def _beat(self) -> None:
        """Say that we live, and hear what has been taken from us meanwhile."""
        while not self._over.wait(self._seconds / 2):
            with self._guard:
                ours = [*self._ours.items()]
                alive = [*(trial for _, trial in ours), *self._taken.values()]
            try:
                for trial in alive:
                    self._storage.record_heartbeat(trial._trial_id)
                gone = {id for id, trial in ours if self._storage.get_trial(trial._trial_id).state.is_finished()}
            except Exception as error:
                self._silent = error
                continue
            self._silent = None
            with self._guard:
                # What has ended by our own word in the meantime is nobody else's.
                self._lost |= {id for id in gone if id in self._ours}

    def _check_pulse(self) -> None:
        if self._silent is not None:
            raise self._gone(self._silent)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """What a database that does not answer is told as."""
        from optuna.exceptions import StorageInternalError
        from psycopg import Error as PostgresError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (StorageInternalError, SQLAlchemyError, PostgresError) as error:
            raise self._gone(error) from None

    def _gone(self, error: Exception) -> ResourceError:
        cause = error.__cause__ or error
        return ResourceError(
            f"{self._where}: the database does not answer ({first_line(cause)}); what has run is kept: when it is "
            "back, the same command goes on"
        )


def _opened(url: str, name: str, heartbeat_seconds: int) -> tuple[Any, Any]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    address = _address(url)
    import psycopg

    # Workers that begin together would make the same tables together.
    with psycopg.connect(f"postgresql://{address}", connect_timeout=_PATIENCE, autocommit=True) as gate:
        gate.execute("SELECT pg_advisory_lock(%s)", (_GATE,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = optuna.storages.RDBStorage(
                f"postgresql+psycopg://{address}",
                engine_kwargs={"pool_pre_ping": True, "connect_args": {"connect_timeout": _PATIENCE}},
                heartbeat_interval=heartbeat_seconds,
            )
        study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
    return storage, study


def _address(url: str) -> str:
    """What comes after postgresql:// or whatever driver was named.

    Raises:
        UserError: it is of another database, or psycopg is missing.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise UserError(f"--storage {shown(url)}: workers on many machines need postgresql://USER@HOST/DATABASE")
    need("psycopg", extra="postgres", why="--storage")
    return rest


def shown(url: str) -> str:
    """The URL without its password."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return url.partition("://")[0] + "://..."  # what cannot be taken apart may hold one anywhere
    return url if password is None else url.replace(f":{password}@", ":***@", 1)
