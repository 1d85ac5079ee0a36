"""A sitting of a search: propose, plan, launch, watch, prune, record, until the budget is spent; then confirm the best.

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

from farthing.errors import FarthingError, Preempted, UserError
from farthing.search import account, findings
from farthing.search.check import Asked
from farthing.search.launch import REFUSED, STOPPED, Job, Watch, held_out, score, shares, spent, take_held_out, wait
from farthing.search.plans import Planner
from farthing.search.proposing import Proposer
from farthing.search.pruning import judge
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
                    if self._fill() and not self._active and not self._ledger.others_work():
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
            record = self._left_over() or self._proposer.trial() or self._proposer.confirmation()
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
        for record in self._ledger.unfinished():
            taken = self._ledger.take_over(record)
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
        return replace(record, saved=saved, fruitless=0 if saved > record.saved else record.fruitless + 1)

    # Runs.

    def _launch(self, record: Record, slot: int) -> None:
        """Start the first of the record's runs that has not ended."""
        for seed in record.seeds:
            run = self._folder.run(record, seed)
            if str(seed) in record.scores:
                continue
            if run.result.is_file():
                value, text = score(run, self._search.score)
                record = self._scored(record, run.name, seed, value, text)
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
        if not record.ended:
            mean = sum(record.scores.values()) / len(record.scores)
            record = replace(record, state="complete", score=mean)
        self._conclude(record)

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
            self._idle_until = -float("inf")
            self._active.remove(active)
            self._take_down(active, code)

    def _prune(self, active: _Active) -> None:
        others = [one for one in self._ledger.records() if one.role == "trial" and one.id != active.record.id]
        stop, active.record = judge(self._search.pruner, others, active.record)
        if stop:
            active.pruned = True
            active.job.stop()

    def _take_down(self, active: _Active, code: int) -> None:
        record = replace(active.record, spent=self._spent(active.record))
        seed, run = active.job.seed, active.job.run
        if code == 0:
            value, text = score(run, self._search.score)
            record = self._scored(record, run.name, seed, value, text)
            if not record.ended and len(record.scores) < len(record.seeds):
                self._next_seed(record, active.slot)
                return
            if not record.ended:
                mean = sum(record.scores.values()) / len(record.scores)
                record = replace(record, state="complete", score=mean)
        elif active.pruned:
            record = _pruned(record, f"{self._search.pruner.kind} at {active.watch.progress:.0%} of its budget")
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

    def _scored(self, record: Record, run: str, seed: int, value: float | None, text: str) -> Record:
        """The record with one more seed's score, or failed where that says nothing."""
        if value is None:
            return replace(record, state="failed", reason=f"{run}: its score is not finite")
        known = next((one.text for one in self._ledger.records() if one.text and one.id != record.id), text)
        if text != known:
            reason = f"{run}: was scored on another validation text ({text[:12]}, the others on {known[:12]})"
            return replace(record, state="failed", reason=reason)
        return replace(record, scores={**record.scores, str(seed): value}, text=text)

    def _next_seed(self, record: Record, slot: int) -> None:
        if record.role == "trial" and self._search.pruner.kind == "wilcoxon":
            others = [one for one in self._ledger.records() if one.role == "trial" and one.id != record.id]
            stop, record = judge(self._search.pruner, others, record)
            if stop:
                record = _pruned(record, f"wilcoxon after {len(record.scores)} of {len(record.seeds)} seeds")
                self._conclude(record)
                return
        self._launch(record, slot)

    def _conclude(self, record: Record) -> None:
        record = replace(record, spent=self._spent(record), process=None)
        if self._ledger.update(record):
            self._listener.ended(record, self._ledger.records())
        else:
            self._listener.note(f"{record.id}: another worker has taken it over; this late result is not counted")

    def _spent(self, record: Record) -> dict[str, float]:
        runs = [spent(self._folder.run(record, seed)) for seed in record.seeds]
        return {name: sum(one[name] for one in runs) for name in ("flops", "seconds", "money")}

    # Ends.

    def _over(self) -> str:
        """Why it has ended, once winner and base have been scored on the text that nothing has looked at.

        Raises:
            UserError: nothing has been tried.
            Preempted: a signal came.
        """
        if self._signals.asked:
            raise self._preempted()
        records = self._ledger.records()
        ended = self._proposer.over or account.full(self._search.budget, records)
        if ended and not any(one.counts for one in records):
            last = self._proposer.last_refusal or next((one.reason for one in reversed(records)), "")
            raise UserError(f"no trial: {ended}" + (f"; the last candidate was refused: {last}" if last else ""))
        arms = findings.to_hold_out(self._asked, self._folder, records)
        for run in (run for runs in arms.values() for run in runs.values()):
            why = take_held_out(run, self._device)
            if self._signals.asked:
                raise self._preempted()
            if why:
                self._listener.note(f"{run.name}: no score on the test text: {why}")
                return ended
        if told := held_out(arms):
            means = ", ".join(f"{name} {one['mean']:.4f}" for name, one in told.items())
            self._listener.note(f"on the test text, looked at once: {means} bits/byte")
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
        """Stop runs that hold the machine for longer than the whole search may; they go on if it may do more."""
        limit, now = account.limits(self._search.budget).get("seconds"), time.monotonic()
        if limit is None or not self._active or now - self._weighed_at < LOOK_SECONDS:
            return
        self._weighed_at = now
        ended = sum(one.spent.get("seconds", 0.0) for one in self._ledger.records())
        held = sum(now - active.since for active in self._active)
        if ended + held > limit:
            self._halt(tell=False)
            raise Preempted(
                f"search.budget.minutes={limit / 60:g} are over; running trials are saved, and go on with a larger budget"
            )

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
            record = replace(active.record, spent=self._spent(active.record), process=None)
            try:
                self._ledger.update(record)
            except FarthingError:
                break  # the database is gone: the run folders know
        self._active.clear()

    def _end_now(self) -> None:
        for active in self._active:
            active.job.kill()


def _pruned(record: Record, reason: str) -> Record:
    curve = {int(percent): value for percent, value in record.curve.items()}
    last = sum(record.scores.values()) / len(record.scores) if record.scores else curve[max(curve)]
    return replace(record, state="pruned", score=last, reason=reason)
