"""What a search begins next: a candidate within every limit, or a run that confirms one of the best."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from statistics import fmean
from typing import Any

from farthing import config
from farthing.errors import UserError
from farthing.rundir import RunDir
from farthing.search import account
from farthing.search.check import Asked
from farthing.search.launch import trained_on
from farthing.search.plans import Planner
from farthing.search.record import BASE, Folder, Record, Refused, this_worker, trial_id
from farthing.search.sampling import Proposal, Turn, check_sampler, propose
from farthing.search.space import Drawn
from farthing.search.study import History, Ledger

MOST_REFUSALS = 1000
"""candidates refused in a row after which a search gives up"""
MOST_TOO_DEAR = 20
"""candidates since the last trial that were too dear for what is left, after which the budget counts as spent"""
MOST_REPEATS = 100
"""candidates in a row that have been tried before, after which there is nothing left to try"""


class Proposer:
    """Finds the next thing to do.

    Args:
        asked: what is searched.
        folder: where refusals wait for the trial that they come before.
        ledger: what has been tried.
        planner: what candidates come to.
        refused: is told of every refused candidate.
        stopping: whether a person wants it all to stop.
    """

    def __init__(
        self,
        asked: Asked,
        folder: Folder,
        ledger: Ledger,
        planner: Planner,
        *,
        refused: Callable[[Refused], None],
        stopping: Callable[[], bool],
    ) -> None:
        check_sampler(asked.space, asked.search.sampler)
        self._space, self._search = asked.space, asked.search
        self._folder, self._ledger, self._planner = folder, ledger, planner
        self._tell, self._stopping = refused, stopping
        self.history = History(asked.space)
        self._prints: dict[str, str] = {}
        self._exhausted = ""
        self._dear: list[Refused] = []
        self.over = ""
        self.last_refusal = ""

    def trial(self) -> Record | None:
        """The next candidate that may be tried, or None where the budget or the space ends."""
        records = self._ledger.records()
        self.over = self.why_over(records)
        if self.over:
            return None
        number, refused = self._ledger.next_number(), self._folder.refused()
        before, self._dear = len(refused), []
        found = self._find(number, refused, records)
        if found is not None:
            for one in self._dear:
                self._tell(one)
            self._folder.keep_refused([])
            record, drawn = found
            most = self._search.budget.trials
            # What does not fit any more is none of the budget's trials, but the ledger counts it among its own.
            most = None if most is None else most + sum(one.counts for one in self.history.left_out(records))
            return record if self._ledger.begin(record, drawn, most=most) else None
        # With a larger budget they would fit: nothing is held against what only came too late.
        refused = [one for one in refused if not any(one is dear for dear in self._dear)]
        if len(refused) > before:
            self._folder.keep_refused(refused)
        self._ledger.give_back(number)
        return None

    def _find(
        self, number: int, refused: list[Refused], records: Sequence[Record]
    ) -> tuple[Record, list[Drawn]] | None:
        """Propose and plan until a candidate is within all limits, or nothing more may be tried."""
        known = {self._print(one) for one in records if one.role == "trial"}
        repeats, tries = 0, len(refused)
        while not self.over and not self._stopping():
            past = self.history.of(records, refused)
            turn = Turn(self._search.seed, number, tries)
            proposal = propose(self._space, self._search.sampler, past, turn)
            tries += 1
            if proposal is None:
                self._exhausted = "the whole grid has been tried"
                if self._dear:
                    self._exhausted += f", but for {len(self._dear)} candidates {self._dear[-1].reason}"
            elif proposal.candidate is not None and config.fingerprint(proposal.candidate.recipe) in known:
                repeats += 1
                if repeats >= MOST_REPEATS:
                    self._exhausted = f"the last {MOST_REPEATS} candidates had all been tried before"
            elif (record := self._priced(proposal, number, refused, records)) is not None:
                return record, proposal.drawn
            self.over = self._exhausted
        return None

    def _priced(
        self, proposal: Proposal, number: int, refused: list[Refused], records: Sequence[Record]
    ) -> Record | None:
        """The candidate as a trial, if its plan is within all limits; otherwise it is one more refused."""
        parameters, reason = {one.path: one.value for one in proposal.drawn}, proposal.reason
        if proposal.candidate is not None:
            price, reason = self._planner.price(proposal.candidate.recipe, self._search.limits)
            if not reason:
                planned = price.as_planned()
                top = best(records, self.history)[: self._search.confirm.top]
                if dear := account.too_dear(self._search, records, planned, top, self._left_out(records)):
                    one = Refused(parameters=parameters, reason=dear, generation=proposal.generation)
                    self._refuse_dear(one, refused)
                    return None
                runs = len(self._search.seeds)
                return Record(
                    id=trial_id(number),
                    number=number,
                    worker=this_worker(),
                    parameters=parameters,
                    recipe=config.to_table(proposal.candidate.recipe),
                    seeds=list(self._search.seeds),
                    planned={**planned, **{name: runs * planned[name] for name in ("flops", "seconds", "money")}},
                    refused=refused,
                    generation=proposal.generation,
                )
        refused.append(Refused(parameters=parameters, reason=reason, generation=proposal.generation))
        self._tell(refused[-1])
        self.last_refusal = reason
        if len(refused) >= MOST_REFUSALS:
            self._folder.keep_refused(refused)
            raise UserError(f"{MOST_REFUSALS} candidates in a row were refused, the last one because: {reason}")
        return None

    def _refuse_dear(self, one: Refused, refused: list[Refused]) -> None:
        """A candidate that no longer fits in is refused, since a smaller one may; after several the budget is spent."""
        refused.append(one)
        self._dear.append(one)
        self.last_refusal = ""
        if len(self._dear) >= MOST_TOO_DEAR:
            self._exhausted = f"the last {MOST_TOO_DEAR} candidates were {one.reason}"

    def why_over(self, records: Sequence[Record]) -> str:
        """Why no trial may begin any more; empty while one may."""
        return self._exhausted or account.full(self._search.budget, records, self._left_out(records))

    def may_go_on(self, record: Record, waiting: Sequence[Record]) -> bool:
        """Whether a trial or run that was begun earlier goes on: it still fits, and the budget has room for its rest.

        Args:
            record: what nobody works on.
            waiting: all that nobody works on.
        """
        runs = [self._folder.run(record, seed) for seed in record.seeds]
        if all(run.result.is_file() for run in runs) or any(run.is_locked() for run in runs):
            return True  # only its end is to be taken down, or it still trains, and has to be watched
        records = self._ledger.records()
        idle = {one.id for one in waiting}
        return bool(self.history.belong([record])) and account.may_go_on(
            self._search.budget, records, record, waiting=idle, left_out=self._left_out(records)
        )

    def other_text(self, record: Record, run: RunDir, text: str) -> str:
        """Why a finished run may not be held against the others: their texts differ, unless the space itself varies them.

        Args:
            record: whose run it is.
            run: the run.
            text: fingerprint of its validation text.
        """
        others = [one for one in self.history.belong(self._ledger.records()) if one.id != record.id]
        known = next((one.text for one in others if one.text), text)
        if text != known:
            return f"{run.name}: was scored on another validation text ({text[:12]}, the others on {known[:12]})"
        if any(path.startswith("data.") for path in self._space.dimensions):
            return ""
        own = trained_on(run)
        for other in (self._folder.run(one, seed) for one in others if one.text for seed in one.seeds):
            if (theirs := trained_on(other)) and own and theirs != own:
                return f"{run.name}: was trained on another text than {other.name} ({own[:12]} and {theirs[:12]})"
        return ""

    def end(self, records: Sequence[Record]) -> str:
        """Why the search is over, and what it has left undone, in words.

        Raises:
            UserError: nothing has been tried.
        """
        over = self.why_over(records)
        if over and not any(one.counts for one in records):
            last = self.last_refusal or next((one.reason for one in reversed(records)), "")
            raise UserError(f"no trial: {over}" + (f"; the last candidate was refused: {last}" if last else ""))
        going = [one for one in self.history.belong(records) if not one.ended]
        trials, runs = sum(one.role == "trial" for one in going), self.left_to_confirm(records)
        left = [f"{trials} stopped trial{'s' if trials > 1 else ''}"] if trials else []
        left += [f"{runs} run{'s' if runs > 1 else ''} to confirm the best"] if runs else []
        if not left:
            return over
        return f"{account.used_up(self._search.budget, records) or over}; a larger budget goes on with {' and '.join(left)}"

    def left_to_confirm(self, records: Sequence[Record]) -> int:
        """Confirmation runs that have not begun or not ended."""
        begun = sum(one.role == "confirmation" and not one.ended for one in self.history.belong(records))
        return begun + sum(1 for _ in self._to_confirm(records))

    def _left_out(self, records: Sequence[Record]) -> set[str]:
        return {one.id for one in self.history.left_out(records)}

    def confirmation(self, resting: Collection[str] = ()) -> Record | None:
        """The next run that confirms one of the best, once all trials have ended, while something is left to spend.

        Args:
            resting: ids of trials that have not ended and that nobody goes on with in this sitting.
        """
        records = self._ledger.records()
        at_work = any(one.role == "trial" and not one.ended and one.id not in resting for one in records)
        if at_work or not self.over or account.used_up(self._search.budget, records):
            return None
        missing = next(self._to_confirm(records), None)
        if missing is None:
            return None
        of, recipe, seed = missing
        record = Record(
            id=_confirming(of, seed, {one.id for one in records}), number=self._ledger.next_number(),
            role="confirmation", of=of, worker=this_worker(), parameters={}, recipe=recipe, seeds=[seed],
            planned=self._planned(of, records),
        )  # fmt: skip
        if not account.room_for_flops(self._search.budget, [*records, record], self._left_out(records)):
            return None
        return record if self._ledger.begin(record, [], most=None) else None

    def _planned(self, of: str, records: Sequence[Record]) -> dict[str, float]:
        """What a run that confirms this takes by the trials' plans; the base like the trials beside it."""
        arms = [one for one in best(records, self.history)[: self._search.confirm.top] if of in (BASE, one.id)]
        names = {name for one in arms for name in one.planned if name in ("flops", "seconds", "money")}
        return {name: fmean(one.planned.get(name, 0.0) / len(one.seeds) for one in arms) for name in names}

    def _to_confirm(self, records: Sequence[Record]) -> Iterator[tuple[str, dict[str, Any], int]]:
        """What is to be confirmed, its recipe and a fresh seed, for each run that has not begun.

        Seed by seed, so that where the budget ends on the way, all have had about as many.
        """
        arms = [(one.id, one.recipe) for one in best(records, self.history)[: self._search.confirm.top]]
        if arms and self._search.confirm.base:
            arms.append((BASE, config.to_table(self._space.base)))
        begun = {(one.of, one.seeds[0]) for one in self.history.belong(records) if one.role == "confirmation"}
        for seed in account.fresh_seeds(self._search):
            for of, recipe in arms:
                if (of, seed) not in begun:
                    yield of, recipe, seed

    def _print(self, record: Record) -> str:
        if record.id not in self._prints:
            try:
                recipe = config.build(self._space.schema, record.recipe)
            except UserError:
                return ""  # of a version whose recipes had other fields
            self._prints[record.id] = config.fingerprint(recipe)
        return self._prints[record.id]


def _confirming(of: str, seed: int, taken: Collection[str]) -> str:
    """The name of a run that confirms; a base recipe that has changed since has runs of another name."""
    id, number = f"confirm-{of}-seed-{seed}", 1
    while id in taken:
        number += 1
        id = f"confirm-{of}-{number}-seed-{seed}"
    return id


def best(records: Sequence[Record], history: History) -> list[Record]:
    """The complete trials that still fit in the space, the lowest score first."""
    complete = [one for one in records if one.role == "trial" and one.state == "complete" and one.score is not None]
    fitting = [one for one in complete if history.place(one) is not None]
    return sorted(fitting, key=lambda one: (one.score, one.number))
