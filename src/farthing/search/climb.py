"""The ratchet: one change after another on the best recipe so far, kept only where it is better beyond noise for its cost.

What is known is written down before it is acted on, and runs are found again by their recipe and seed, so that a climb
may be killed at any line and goes on with the same command.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import tomli_w

from farthing import config
from farthing.compare.sequential import Look, Sequential
from farthing.compare.statistics import Difference
from farthing.errors import UserError
from farthing.rundir import read_result
from farthing.search.climb_asked import Asked
from farthing.search.climb_proof import Proof
from farthing.search.climb_record import ClimbFolder, Decision, Standing
from farthing.search.climb_runs import Arm, Arms, BudgetSpent, Refused
from farthing.search.conduct import Signals
from farthing.search.plans import Planner
from farthing.storage import write_text

_TOLD = 5e-5
"""bits per byte below which a margin is not worth a word"""


class Climber:
    """One sitting of a climb.

    Args:
        asked: what was asked.
        folder: where everything is kept; locked by the caller.
        planner: what recipes come to.
        say: takes a line for a person.
        workers: runs at a time.
        device: auto, cpu, cuda or mps.
    """

    def __init__(
        self,
        asked: Asked,
        folder: ClimbFolder,
        planner: Planner,
        say: Callable[[str], None],
        *,
        workers: int = 1,
        device: str = "auto",
    ) -> None:
        self._asked, self._folder, self._planner, self._say = asked, folder, planner, say
        self._device, self._standing, self._signals = device, folder.read(), Signals()
        self._arms = Arms(asked, folder, self._standing, planner, self._signals, say, workers=workers, device=device)
        judge = asked.climb.judge
        self._sequential = Sequential(
            tuple(judge.looks), level=judge.level, spending=judge.spending, hopeless_below=judge.hopeless_below
        )

    def run(self) -> Standing:
        """Climb to the end of the list or of the budget, then confirm; returns where that leads.

        Raises:
            Preempted: a signal stopped it; runs have been saved and the same command goes on.
            UserError: the base recipe itself cannot be trained.
        """
        with self._signals:
            try:
                self._climb()
                Proof(self._asked, self._folder, self._standing, self._arms, self._say, self._device).carry_out()
            except KeyboardInterrupt:
                self._arms.kill()
                raise
            finally:
                self._arms.halt()
        return self._standing

    # The climb.

    def _climb(self) -> None:
        if self._standing.ended and (self._standing.confirmation is not None or self._all_settled()):
            return
        if self._standing.ended:  # its budget was spent, and may have been raised since
            self._standing.ended = ""
            self._folder.write(self._standing)
            self._folder.final.unlink(missing_ok=True)
        try:
            self._base()
            if self._asked.climb.order == "listed":
                self._listed()
            else:
                self._free()
            self._standing.ended = "every change has been tried"
        except BudgetSpent as spent:
            self._standing.ended = str(spent)
        self._folder.write(self._standing)
        write_text(self._folder.final, self._as_file())

    def _base(self) -> None:
        """The base recipe must be trainable, or there is nothing to climb from."""
        base = self._arms.arm(())
        try:
            self._arms.train(base, self._asked.climb.seeds[: self._asked.climb.judge.looks[0]])
        except Refused as refused:
            raise UserError(f"{self._asked.path}: the base recipe is refused: {refused}") from None
        if not any(value is not None for value in self._arms.scores(base).values()):
            raise UserError(f"{self._asked.path}: the base recipe fails: {self._arms.last_words(base)}")

    def _listed(self) -> None:
        decided = {one.name for one in self._standing.decisions}
        for step in self._asked.climb.step:
            if step.name not in decided:
                self._note(self._decide(step.name, step.reason, number=1))

    def _free(self) -> None:
        """Rounds over all that are left; the best of each is kept, until none is better."""
        left = [step for step in self._asked.climb.step if not self._is_settled(step.name)]
        number = 1 + max((one.round for one in self._standing.decisions if one.outcome == "kept"), default=0)
        while left:
            tried = [self._decide(step.name, step.reason, number=number) for step in left]
            better = [one for one in tried if one.outcome == "kept"]
            # Of several only the best is kept: the others are judged anew on top of it.
            best = min(better, key=lambda one: one.difference or 0.0, default=None)
            for one in tried:
                if one is best or one.outcome != "kept":
                    self._note(one)
            if best is None:
                return
            left = [step for step in left if step.name in {one.name for one in better} - {best.name}]
            number += 1

    def _all_settled(self) -> bool:
        return all(self._is_settled(step.name) for step in self._asked.climb.step)

    def _is_settled(self, name: str) -> bool:
        return any(one.name == name for one in self._standing.decisions)

    def _decide(self, name: str, reason: str, *, number: int) -> Decision:
        """Train a change on the best so far, seed by seed, until it is clear whether it is better."""
        best = self._arms.arm(self._standing.kept)
        self._say(f"{name}: on {best.name}" + (f" ({reason})" if reason else ""))
        try:
            candidate = self._arms.arm((*self._standing.kept, name), called=name)
        except UserError as error:
            return Decision(name, "refused", str(error), against=best.name, round=number)
        if candidate.name == best.name:
            return Decision(name, "refused", "changes nothing in the best so far", against=best.name, round=number)
        try:
            margin, cost = self._margin(candidate, best)
            look = self._look(candidate, best, margin)
        except Refused as refused:
            return Decision(name, "refused", str(refused), candidate.name, best.name, round=number)
        found = look.difference if isinstance(look.difference, Difference) else None
        low, high = (end - margin for end in found.interval()) if found is not None else (None, None)
        return Decision(
            name,
            "kept" if look.decision == "better" else "rolled back",
            _grounds(look, margin, low),
            candidate.name,
            best.name,
            seeds=look.seeds,
            difference=None if found is None else found.value - margin,
            low=low,
            high=high,
            p=look.p,
            cost=cost,
            margin=margin,
            round=number,
        )

    def _look(self, candidate: Arm, best: Arm, margin: float) -> Look:
        """Looks while seeds come in, the last of which decides."""
        seeds = self._asked.climb.seeds
        for count in self._asked.climb.judge.looks:
            self._arms.train(best, seeds[:count])
            self._arms.train(candidate, seeds[:count])
            self._arms.check_alike((candidate, best), seeds[:count])
            # What must be won is added to what was scored: better is then better by more than that.
            handicapped = {
                seed: None if value is None else value + margin
                for seed, value in self._arms.scores(candidate, seeds[:count]).items()
            }
            look = self._sequential.look(handicapped, self._arms.scores(best, seeds[:count]))
            if look.decision != "continue":
                break
        return look

    def _margin(self, candidate: Arm, best: Arm) -> tuple[float, float]:
        """Bits per byte that a change must win, and its cost as a multiple of the best so far."""
        judge = self._asked.climb.judge
        costs = [getattr(self._arms.price(arm), judge.cost) or 0.0 for arm in (candidate, best)]
        ratio = costs[0] / costs[1] if costs[1] else 1.0
        return judge.least + judge.per_doubling * max(0.0, math.log2(ratio) if ratio else 0.0), ratio

    def _note(self, decision: Decision) -> None:
        self._standing.decisions.append(decision)
        self._folder.write(self._standing)
        gain = "" if decision.difference is None else f" by {abs(decision.difference):.4f} bits/byte"
        direction = "" if decision.difference is None else (" better" if decision.difference < 0 else " worse")
        seeds = f", {decision.seeds} seeds" if decision.seeds else ""
        self._say(
            f"{decision.name}: {decision.outcome}{direction and ',' + direction}{gain}{seeds} ({decision.reason})"
        )

    def _as_file(self) -> str:
        """The final recipe as a file that `farthing train` takes."""
        kept = self._standing.kept
        head = [f"# What a climb from {self._asked.climb.recipe} has come to."]
        head += [f"# kept: {', '.join(kept)}" if kept else "# No change was kept: this is the base recipe."]
        return "\n".join(head) + "\n" + tomli_w.dumps(config.to_table(self._asked.recipe(kept)))


def _grounds(look: Look, margin: float, low: float | None) -> str:
    """What a look has decided and why: p is of a gain of `margin`, so `worse` by it may be a gain that is too small.

    Args:
        look: of scores that the margin was added to.
        margin: bits per byte that had to be won.
        low: lower end of the difference itself.
    """
    word: str = look.decision
    if word == "worse" and low is not None and low <= 0:
        word = "too little"
    told = look.reason if word == "better" else f"{word}: {look.reason}"
    return f"{told}; {margin:.4f} bits/byte had to be won" if margin >= _TOLD else told


def answer(folder: ClimbFolder, standing: Standing) -> dict[str, Any]:
    """A climb as `--json` tells it."""

    def told(outcome: str) -> list[dict[str, Any]]:
        return [asdict(one) for one in standing.decisions if one.outcome == outcome]

    def arm(role: str) -> Mapping[str, Any] | None:
        return None if standing.confirmation is None else standing.confirmation[role]

    return {
        "kept": told("kept"),
        "rolled_back": told("rolled back"),
        "refused": told("refused"),
        "final": {"recipe": str(folder.final), "changes": standing.kept, "confirmed": arm("final")},
        "base": {"confirmed": arm("base")},
        "verdict": None if standing.confirmation is None else standing.confirmation["verdict"],
        "ablation": standing.ablation,
        "held_out": standing.held_out,
        "ended": standing.ended,
        "folder": str(folder.path),
        "runs": sum(bool(read_result(run)) for run in folder.runs(sorted(set(standing.arms.values())))),
    }
