"""The arms of a climb: a recipe over seeds, trained run by run, each in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from farthing.compare.arms import check_alike, group
from farthing.compare.runs import failure, gather
from farthing.compare.statistics import Scores
from farthing.errors import FarthingError, Preempted, ResourceError, UserError
from farthing.rundir import RunDir
from farthing.search.climb_asked import Asked
from farthing.search.climb_record import ClimbFolder, Standing
from farthing.search.conduct import PAUSE_SECONDS, TIME_TO_SAVE, Signals
from farthing.search.launch import STOPPED, Job, score, shares, spent, wait
from farthing.search.plans import Planner, Price, passes
from farthing.section import Section

MOST_SITTINGS = 3
"""of a run that is killed from outside, before it counts as failed"""
OUT_OF_ROOM = 6
"""exit code of a run for which memory ran out, or the disk"""
FAILED_FOR_GOOD = (4, 5, OUT_OF_ROOM)
"""exit codes of runs that would only end in the same way again, unless it was the disk that ran out.

A run that `train` refuses is not among them: its plan was accepted, so what it lacks is a file, a library or room.
"""


class Refused(Exception):
    """A recipe that `plan` or a limit is against."""


class BudgetSpent(Exception):
    """Nothing more may begin."""


@dataclass(frozen=True)
class Arm:
    """A recipe and what its runs are called."""

    name: str
    recipe: Section
    kept: tuple[str, ...]
    """the changes in it"""


class Arms:
    """Trains arms, and tells their prices and scores. What has been trained is found again by recipe and seed.

    Args:
        asked: what was asked.
        folder: where everything is kept; locked by the caller.
        standing: where the climb stands; names of arms are added to it.
        planner: what recipes come to.
        signals: whether to stop.
        say: takes a line for a person.
        workers: runs at a time.
        device: auto, cpu, cuda or mps.
    """

    def __init__(
        self,
        asked: Asked,
        folder: ClimbFolder,
        standing: Standing,
        planner: Planner,
        signals: Signals,
        say: Callable[[str], None],
        *,
        workers: int,
        device: str,
    ) -> None:
        self._asked, self._folder, self._standing, self._planner = asked, folder, standing, planner
        self._signals, self._say, self._device, self._cores = signals, say, device, shares(workers)
        self._jobs: list[Job] = []
        self._prices: dict[str, Price] = {}

    def arm(self, kept: Sequence[str], *, called: str | None = None) -> Arm:
        """The arm of the base recipe with these changes; UserError where they do not go together."""
        recipe = self._asked.recipe(kept)
        name = self._folder.arm(self._standing, recipe, called or (kept[-1] if kept else "base"))
        return Arm(name, recipe, tuple(kept))

    def price(self, arm: Arm) -> Price:
        """What one run takes, as planned.

        Raises:
            Refused: the plan, or a limit, is against it.
            ResourceError: the disk has no room for it at this moment, which says nothing of the recipe.
        """
        if arm.name not in self._prices:
            price, reason = self._planner.price(arm.recipe, self._asked.climb.limits)
            if passes(price, reason):
                raise ResourceError(f"{self._folder.path}: {arm.name}: {reason}; then the same command goes on")
            if reason:
                raise Refused(reason)
            self._prices[arm.name] = price
        return self._prices[arm.name]

    def train(self, arm: Arm, seeds: Sequence[int]) -> None:
        """Bring an arm's runs to their end, as many at a time as there are workers.

        Raises:
            Refused: the plan, or a limit, is against it.
            BudgetSpent: the next run does not fit in.
            Preempted: a signal came.
            FarthingError: a run met trouble that says nothing of its recipe; the same command goes on.
        """
        try:
            self._train(arm, seeds)
        except (Refused, BudgetSpent, FarthingError):
            # Whoever decides what comes next finds no run still going: those of the other seeds are saved.
            self.halt()
            raise

    def _train(self, arm: Arm, seeds: Sequence[int]) -> None:
        waiting = [seed for seed in seeds if not self._is_over(self._folder.run(arm.name, seed))]
        running: dict[int, Job] = {}
        slots: dict[int, int] = {}
        sittings = dict.fromkeys(waiting, 0)
        while waiting or running:
            self.stop_if_asked()
            while waiting and len(running) < len(self._cores):
                seed = waiting.pop(0)
                if not self._folder.run(arm.name, seed).recipe.is_file():
                    self._afford(arm)
                slots[seed] = min(set(range(len(self._cores))) - {slots[one] for one in running})
                running[seed] = self._start(arm, seed, slot=slots[seed])
                sittings[seed] += 1
            for seed, job in list(running.items()):
                code = job.ended()
                if code is None:
                    continue
                del running[seed]
                self._jobs.remove(job)
                if self._ended(arm, seed, job, code) == "again" and sittings[seed] < MOST_SITTINGS:
                    waiting.append(seed)
            time.sleep(PAUSE_SECONDS)

    def stop_if_asked(self) -> None:
        """Save and stop every run where a signal has come.

        Raises:
            Preempted: it has.
        """
        if self._signals.asked:
            self.halt()
            raise Preempted(f"{self._signals.asked}: running runs are saved; the same command goes on")

    def _start(self, arm: Arm, seed: int, *, slot: int) -> Job:
        self._say(f"  {arm.name}, seed {seed}")
        job = Job(
            self._folder.run(arm.name, seed),
            recipe=self._folder.recipe(arm.name),
            seed=seed,
            device=self._device,
            output=self._folder.output(arm.name, seed),
            cores=self._cores[slot],
        )
        self._jobs.append(job)
        return job

    def _ended(self, arm: Arm, seed: int, job: Job, code: int) -> Literal["over", "again"]:
        run = self._folder.run(arm.name, seed)
        if code == 0:
            value, _ = score(run, "last")
            self._say(f"  {arm.name}, seed {seed}: " + ("no score" if value is None else f"{value:.4f} bits/byte"))
            return "over"
        if code in (STOPPED, 130) or code < 0:
            return "again"
        self._say(f"  {arm.name}, seed {seed}: {job.why(code)}")
        if code not in FAILED_FOR_GOOD or (code == OUT_OF_ROOM and not _lacked_memory(run, job)):
            raise FarthingError(f"{run.path}: {job.why(code)}; the same command goes on")
        return "over"

    def _is_over(self, run: RunDir) -> bool:
        return run.result.is_file() or _has_failed(run)

    def _afford(self, arm: Arm) -> None:
        """Refuse a run that no longer fits in.

        Raises:
            BudgetSpent: says what is spent.
        """
        budget, price = self._asked.climb.budget, self.price(arm)
        runs = self._folder.runs(sorted(set(self._standing.arms.values())))
        if budget.runs is not None and len(runs) >= budget.runs:
            raise BudgetSpent(f"climb.budget.runs={budget.runs} are spent")
        if budget.flops is None and budget.minutes is None and budget.money is None:
            return
        used = [spent(run) for run in runs]
        limits = {"flops": budget.flops, "seconds": budget.minutes and budget.minutes * 60, "money": budget.money}
        for name, limit in limits.items():
            planned = getattr(price, name) or 0.0
            if limit is not None and sum(one[name] for one in used) + planned > limit:
                word = "minutes" if name == "seconds" else name
                raise BudgetSpent(f"climb.budget.{word} does not last for another run of {arm.name}")

    def scores(self, arm: Arm, seeds: Sequence[int] | None = None) -> Scores:
        """Scores by seed, None where a run has failed."""
        wanted = self._asked.climb.seeds if seeds is None else seeds
        found: dict[int, float | None] = {}
        for seed in wanted:
            run = self._folder.run(arm.name, seed)
            if run.result.is_file():
                value, _ = score(run, "last")
                found[seed] = value
            elif seeds is not None or _has_failed(run):
                found[seed] = None
        return found

    def check_alike(self, arms: Sequence[Arm], seeds: Sequence[int]) -> None:
        """Refuse to judge scores that are of other texts than those they are held against.

        Raises:
            UserError: the files have changed in between, or a change asks for another text to be scored on.
        """
        runs = [self._folder.run(arm.name, seed) for arm in arms for seed in seeds]
        # A run without a receipt tells of no text: it is not refused for that.
        told = [str(run.path) for run in runs if run.result.is_file() and run.receipt.is_file()]
        if not told:
            return
        found, _ = group(gather(told, runs=self._folder.path, recipe=self._asked.schema).runs)
        try:
            check_alike(found, "bits_per_byte")
        except UserError as error:
            raise UserError(
                f"{error}; nothing is judged by these: put the text back and take away the folders of runs on the other one"
            ) from None

    def last_words(self, arm: Arm) -> str:
        """What the first run of an arm said last."""
        output = self._folder.output(arm.name, self._asked.climb.seed)
        lines = output.read_text("utf-8", "replace").strip().splitlines() if output.is_file() else []
        return lines[-1][:200] if lines else "no run came to a score"

    def halt(self) -> None:
        """Save and stop every run."""
        for job in self._jobs:
            job.stop()
        if not wait(self._jobs, TIME_TO_SAVE):
            for job in self._jobs:
                job.kill()
        self._jobs.clear()

    def kill(self) -> None:
        """End every run at once."""
        for job in self._jobs:
            job.kill()


def _has_failed(run: RunDir) -> bool:
    """Whether a run has come to an end that another sitting would not change, by its own last words."""
    return run.recipe.is_file() and not run.is_locked() and failure(run) is not None


def _lacked_memory(run: RunDir, job: Job) -> bool:
    """Whether it was memory that ran out, which the recipe asks for, and not the disk."""
    return _has_failed(run) or "out of memory" in job.last_words()
