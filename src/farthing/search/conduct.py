"""A sitting of a search: propose, plan, launch, watch, prune, record, until the budget is spent, and confirm the best.

One loop and no threads: it looks at every run a few times a second. What it knows is written down before it acts on
it, so that it may be killed at any line.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import FrameType, TracebackType
from typing import Any, Protocol

from farthing import config
from farthing.errors import FarthingError, Preempted, UserError
from farthing.rundir import RunDir
from farthing.search import account, findings
from farthing.search.check import Asked
from farthing.search.launch import REFUSED, STOPPED, Job, Watch, score, shares, spent, take_every_held_out, wait
from farthing.search.plans import Planner
from farthing.search.proposing import Proposer
from farthing.search.pruning import judge, pruned
from farthing.search.record import Folder, Record, Refused
from farthing.search.study import Ledger

PAUSE_SECONDS = 0.1
LOOK_SECONDS = 1.0
"""pause before the ledger is asked again where it had nothing to do: it may be a database"""
MOST_FRUITLESS = 5
"""sittings of one trial in a row without a new checkpoint, after which it counts as failed"""
MOST_ALIKE = 3
"""trials in a row that a fault, the text or `train` itself has ended, after which the search stops: it would go on for ever"""
_FRUITLESS = f"given up: {MOST_FRUITLESS} sittings in a row ended before they could save anything"
TIME_TO_SAVE = 120.0
"""seconds that runs have to save themselves before they are killed"""


class Listener(Protocol):
    """Who is told what happens."""

    def began(self, record: Record) -> None:
        """A trial or a confirmation run begins or goes on."""

    def ended(self, record: Record, records: Sequence[Record]) -> None:
        """It has ended."""

    def refused(self, refused: Refused) -> None:
        """A candidate was refused."""

    def note(self, text: str) -> None:
        """Something else that a person should know."""


@dataclass
class _Active:
    """A run that is going on."""

    record: Record
    job: Job
    watch: Watch
    slot: int
    since: float = field(default_factory=time.monotonic)
    pruned: bool = False


class Signals:
    """SIGINT and SIGTERM ask for an orderly stop; a second SIGINT ends everything at once; SIGHUP is ignored."""

    def __init__(self) -> None:
        self.asked = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._stop)
        if (lost_terminal := getattr(signal, "SIGHUP", None)) is not None:
            self._before[lost_terminal] = signal.signal(lost_terminal, signal.SIG_IGN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.asked == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name


class Conductor:
    """One worker's part of a search.

    Args:
        asked: what is searched.
        folder: where everything is kept.
        ledger: who works on what.
        planner: what candidates come to.
        listener: who is told.
        workers: runs at a time.
        device: auto, cpu, cuda or mps.
    """

    def __init__(
        self,
        asked: Asked,
        folder: Folder,
        ledger: Ledger,
        planner: Planner,
        listener: Listener,
        *,
        workers: int = 1,
        device: str = "auto",
    ) -> None:
        self._asked, self._search = asked, asked.search
        self._folder, self._ledger, self._listener = folder, ledger, listener
        self._device = device
        self._cores = shares(workers)
        self._active: list[_Active] = []
        self._signals = Signals()
        self._looked = self._idle_until = self._weighed_at = -float("inf")
        self._alike = 0
        self._resting: set[str] = set()  # what was begun, and does not go on in this sitting
        price = config.flatten(asked.space.base).get("budget.price_per_hour") or 0.0
        self._rates = {"flops": 0.0, "seconds": 1.0, "money": price / 3600}  # of a second that a run holds the machine
        self._proposer = Proposer(
            asked, folder, ledger, planner, refused=listener.refused, stopping=lambda: bool(self._signals.asked)
        )

    def run(self) -> str:
        """Search until nothing may begin any more; returns why it ended.

        Raises:
            Preempted: a signal stopped it; runs have been saved and the same command goes on.
            FarthingError: the text cannot be read, the database is gone, every candidate is refused, or there was no trial.
        """
        with self._signals:
            try:
                while True:
                    for active in list(self._active):
                        self._attend(active)
                    self._drop_lost()
                    if self._signals.asked:
                        self._halt()
                        raise self._preempted()
                    self._keep_within_budget()
                    over = self._fill() and not self._active and not self._ledger.others_work(but=self._resting)
                    if over and not self._signals.asked:
                        return self._over()
                    time.sleep(PAUSE_SECONDS)
            except Preempted:
                raise
            except KeyboardInterrupt:
                self._end_now()
                raise
            except BaseException:
                self._halt(tell=False)
                raise

    # What comes next.

    def _fill(self) -> bool:
        """Give every free slot something to do; whether it was looked for and there was nothing."""
        if time.monotonic() < self._idle_until:
            return False
        for slot in sorted(set(range(len(self._cores))) - {active.slot for active in self._active}):
            record = self._left_over() or self._proposer.trial() or self._proposer.confirmation(self._resting)
            if record is None:
                self._idle_until = time.monotonic() + LOOK_SECONDS
                return True
            if self._signals.asked:
                return False
            self._listener.began(record)
            self._launch(record, slot)
        return False

    def _left_over(self) -> Record | None:
        """A trial that an earlier sitting, or a worker that is gone, has begun."""
        now = time.monotonic()
        if now - self._looked < min(self._search.heartbeat_seconds, 5):
            return None
        unfinished = self._ledger.unfinished()
        self._resting = {one.id for one in unfinished if not self._proposer.may_go_on(one, unfinished)}
        for record in unfinished:
            taken = None if record.id in self._resting else self._ledger.take_over(record)
            if taken is None:
                continue
            taken = self._weighed(taken)
            if taken.fruitless < MOST_FRUITLESS:
                return taken
            self._conclude(replace(taken, state="failed", reason=_FRUITLESS))
        self._looked = now
        return None

    def _weighed(self, record: Record) -> Record:
        """The record of a new sitting, and whether the one before has brought it any further."""
        runs = [self._folder.run(record, seed) for seed in record.seeds]
        saved = sum(max(run.checkpoint_steps(), default=0) for run in runs)
        fruitless = 0 if saved > record.saved else record.fruitless + 1
        return replace(record, saved=saved, fruitless=fruitless, spent=self._spent(record))

    # Runs.

    def _launch(self, record: Record, slot: int) -> None:
        """Start the first of the record's runs that has not ended."""
        for seed in record.seeds:
            run = self._folder.run(record, seed)
            if str(seed) in record.scores:
                continue
            if run.result.is_file():
                record = self._scored(record, run, seed)
                if record.ended:
                    break
                continue
            job = Job(
                run,
                recipe=self._folder.recipe(record),
                seed=seed,
                device=self._device,
                output=self._folder.output(record),
                cores=self._cores[slot],
                orphan=record.process,
            )
            record = replace(record, process=job.process)
            if self._ledger.update(record):
                self._active.append(_Active(record, job, Watch(run), slot))
            else:
                job.stop()
            return
        self._conclude(record.completed())

    def _attend(self, active: _Active) -> None:
        """See how a run does, stop it where it is hopeless, and take down its end."""
        code = active.job.ended()
        if active.watch.look() and active.record.role == "trial" and not active.record.scores:
            active.record = replace(active.record, curve=dict(active.watch.curve))
            if code is None and not active.job.stopping:
                self._prune(active)
            if not self._ledger.update(active.record):
                self._let_go(active)
                return
        if code is not None:
            self._looked = self._idle_until = -float("inf")
            self._active.remove(active)
            self._take_down(active, code)

    def _prune(self, active: _Active) -> None:
        stop, active.record = self._judged(active.record)
        if stop:
            active.pruned = True
            active.job.stop()

    def _judged(self, record: Record) -> tuple[bool, Record]:
        """Whether to stop a trial, held against the others that still fit, and what the pruner remembers of it."""
        others = [one for one in self._belonging() if one.role == "trial" and one.id != record.id]
        return judge(self._search.pruner, others, record)

    def _take_down(self, active: _Active, code: int) -> None:
        record = replace(active.record, spent=self._spent(active.record))
        seed, run = active.job.seed, active.job.run
        if code == 0:
            record = self._scored(record, run, seed)
            if not record.ended:
                self._next_seed(record, active.slot)
                return
        elif active.pruned:
            record = pruned(record, f"{self._search.pruner.kind} at {active.watch.progress:.0%} of its budget")
        elif self._signals.asked and (code == STOPPED or code < 0):
            # Whoever stops a whole session stops our runs as well, some before they can save anything.
            self._ledger.update(record)
            return
        elif code == STOPPED and (again := self._weighed(record)).fruitless < MOST_FRUITLESS:
            self._listener.note(f"{record.id}: was stopped from outside; going on with it")
            self._launch(replace(again, attempt=again.attempt + 1), active.slot)
            return
        elif code == REFUSED:
            record = replace(record, state="refused", reason=active.job.last_words())
        else:
            record = replace(record, state="failed", reason=active.job.why(code))
        self._conclude(record)
        self._alike = self._alike + 1 if code in (1, REFUSED, 3) else 0
        if self._alike >= MOST_ALIKE:
            how = "were refused" if code == REFUSED else "have failed"
            raise FarthingError(f"{MOST_ALIKE} trials in a row {how}; the last one: {record.id}: {record.reason}")

    def _scored(self, record: Record, run: RunDir, seed: int) -> Record:
        """The record with one more seed's score, or failed where that says nothing; UserError where the text has changed."""
        value, text = score(run, self._search.score)
        if value is None:
            return replace(record, state="failed", reason=f"{run.name}: its score is not finite")
        if reason := self._proposer.other_text(record, run, text):
            self._ledger.update(
                replace(record, state="refused", reason=reason, process=None, spent=self._spent(record))
            )
            raise UserError(f"{reason}; put the text back, or search anew under another --name")
        return record.with_score(seed, value, text)

    def _next_seed(self, record: Record, slot: int) -> None:
        if record.role == "trial" and self._search.pruner.kind == "wilcoxon":
            stop, record = self._judged(record)
            if stop:
                record = pruned(record, f"wilcoxon after {len(record.scores)} of {len(record.seeds)} seeds")
                self._conclude(record)
                return
        self._launch(record, slot)

    def _conclude(self, record: Record) -> None:
        record = replace(record, spent=self._spent(record), process=None)
        if self._ledger.update(record):
            self._listener.ended(record, self._belonging())
        else:
            self._listener.note(f"{record.id}: another worker has taken it over; this late result is not counted")

    def _belonging(self) -> list[Record]:
        return self._proposer.history.belong(self._ledger.records())

    def _spent(self, record: Record, *, held: float = 0.0) -> dict[str, float]:
        """By its runs' files; at least what was known, and so many seconds more, of which they may not tell all yet."""
        runs = [spent(self._folder.run(record, seed)) for seed in record.seeds]
        known = {name: record.spent.get(name, 0.0) + rate * held for name, rate in self._rates.items()}
        return {name: max(least, sum(one[name] for one in runs)) for name, least in known.items()}

    # Ends.

    def _over(self) -> str:
        """Why it has ended, once winner and base have been scored on the text that nothing has looked at.

        Raises:
            UserError: nothing has been tried.
            Preempted: a signal came.
        """
        records = self._ledger.records()
        ended = self._proposer.end(records)
        whole = not self._proposer.left_to_confirm(records)  # a winner that may change is not looked at yet
        arms = findings.to_hold_out(self._asked, self._folder, records) if whole else {}
        done, told = take_every_held_out(arms, self._device, stopping=lambda: bool(self._signals.asked))
        if not done:
            raise self._preempted()
        if told:
            self._listener.note(told)
        return ended

    def _preempted(self) -> Preempted:
        return Preempted(f"{self._signals.asked}: running trials are saved; the same command goes on")

    def _drop_lost(self) -> None:
        for id in self._ledger.lost():
            for active in [one for one in self._active if one.record.id == id]:
                self._let_go(active)

    def _let_go(self, active: _Active) -> None:
        """Another worker goes on with this trial: our process saves itself and makes room."""
        if active in self._active:
            self._active.remove(active)
        active.job.stop()
        self._listener.note(f"{active.record.id}: another worker has taken it over")

    def _keep_within_budget(self) -> None:
        """Stop runs that take more than the whole search may; they go on in a sitting that may take more."""
        limits, now = account.limits(self._search.budget), time.monotonic()
        if not limits or not self._active or now - self._weighed_at < LOOK_SECONDS:
            return
        self._weighed_at = now
        seconds = sum(now - active.since for active in self._active)
        held = {name: rate * seconds for name, rate in self._rates.items()}
        if told := account.overrun(self._search.budget, self._ledger.records(), held):
            self._listener.note(told)
            ids = [active.record.id for active in self._active]
            self._halt()
            for id in ids:
                self._ledger.leave(id)
            self._looked = self._idle_until = -float("inf")

    def _halt(self, *, tell: bool = True) -> None:
        """Save and stop every run."""
        if tell and self._active:
            self._listener.note(f"saving {len(self._active)} running trial{'s' if len(self._active) > 1 else ''}")
        jobs = [active.job for active in self._active]
        for job in jobs:
            job.stop()
        if not wait(jobs, TIME_TO_SAVE):
            self._end_now()
        for active in self._active:
            held = time.monotonic() - active.since
            record = replace(active.record, spent=self._spent(active.record, held=held), process=None)
            try:
                if active.job.ended() == 0:  # it came to its end before it was stopped
                    record = self._scored(record, active.job.run, active.job.seed)
                if self._ledger.update(record) and record.ended:
                    self._listener.ended(record, self._belonging())
            except FarthingError:
                break  # the database is gone: the run folders know
        self._active.clear()

    def _end_now(self) -> None:
        for active in self._active:
            active.job.kill()
