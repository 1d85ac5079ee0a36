"""The end of a climb: its final recipe over fresh seeds, against the base, without each change, and on the test text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from farthing.compare.statistics import compare, compare_all, summarise
from farthing.errors import UserError
from farthing.search.climb_asked import FRESH, Asked
from farthing.search.climb_record import ClimbFolder, Standing
from farthing.search.climb_runs import Arm, Arms, BudgetSpent, Refused
from farthing.search.launch import held_out, holds_out, take_held_out

_GOES_ON = "the same command goes on"


class Proof:
    """Confirms what a climb has come to.

    Args:
        asked: what was asked.
        folder: where everything is kept.
        standing: where the climb stands; what is found is added to it.
        arms: trains and scores.
        say: takes a line for a person.
        device: auto, cpu, cuda or mps.
    """

    def __init__(
        self, asked: Asked, folder: ClimbFolder, standing: Standing, arms: Arms, say: Callable[[str], None], device: str
    ) -> None:
        self._asked, self._folder, self._standing = asked, folder, standing
        self._arms, self._say, self._device = arms, say, device

    def carry_out(self) -> None:
        """The final recipe over fresh seeds: against the base, without each of its changes, and on the test text.

        Raises:
            Preempted: a signal came.
            FarthingError: a run cannot go on at this moment, or is refused now though it was not before; what has been
                decided stays, and the same command goes on.
        """
        proof, standing = self._asked.climb.confirm, self._standing
        if not proof.seeds or not standing.kept:
            return
        seeds = [FRESH + index for index in range(proof.seeds)]
        final, base = self._arms.arm(standing.kept), self._arms.arm(())
        try:
            if standing.confirmation is None:
                self._say(f"confirming {final.name} against the base over {proof.seeds} fresh seeds")
                standing.confirmation = self._confirmed(final, base, seeds)
                self._folder.write(standing)
            if standing.held_out is None:
                standing.held_out = self._held_out(final, base, seeds)
                self._folder.write(standing)
            if proof.ablation and not standing.ablation and len(standing.kept) > 1:
                standing.ablation = self._ablated(final, seeds)
                self._folder.write(standing)
        except BudgetSpent as spent:
            if str(spent) not in standing.ended:
                standing.ended = f"{standing.ended}; {spent}"
                self._folder.write(standing)
        except Refused as refused:
            what = f"the confirmation is refused: {refused}; once that is mended, {_GOES_ON}"
            raise UserError(f"{self._folder.path}: {what}") from None

    def _confirmed(self, final: Arm, base: Arm, seeds: Sequence[int]) -> dict[str, Any]:
        self._arms.train(base, seeds)
        self._arms.train(final, seeds)
        self._arms.check_alike((final, base), seeds)
        scores = self._arms.scores(final, seeds), self._arms.scores(base, seeds)
        verdict = compare(*scores, level=self._asked.climb.judge.level)
        return {
            "seeds": list(seeds),
            "final": summarise(scores[0]).as_dict(),
            "base": summarise(scores[1]).as_dict(),
            "verdict": verdict.as_dict(),
        }

    def _ablated(self, final: Arm, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """The final recipe without each kept change; verdicts are corrected for their number (Holm)."""
        without: dict[str, Arm] = {}
        refused: dict[str, str] = {}
        for name in final.kept:
            self._say(f"without {name}")
            try:
                arm = self._arms.arm([one for one in final.kept if one != name], called=f"without {name}")
            except UserError as error:
                refused[name] = str(error)
                continue
            try:
                self._arms.train(arm, seeds)
                without[name] = arm
            except Refused as error:
                refused[name] = str(error)
        self._arms.check_alike((final, *without.values()), seeds)
        arms = {name: self._arms.scores(arm, seeds) for name, arm in without.items()}
        verdicts = compare_all(arms, self._arms.scores(final, seeds), level=self._asked.climb.judge.level)
        found: list[dict[str, Any]] = []
        for name in final.kept:
            if name in refused:
                found.append({"change": name, "refused": refused[name]})
                continue
            told = {"worse": "needed", "better": "in the way", "cannot tell": "cannot tell"}[verdicts[name].verdict]
            summary = summarise(arms[name]).as_dict()
            found.append({"change": name, "told": told, "without": summary, "verdict": verdicts[name].as_dict()})
        return found

    def _held_out(self, final: Arm, base: Arm, seeds: Sequence[int]) -> dict[str, Any] | None:
        """Scores on the part of the text that nothing before has looked at; taken once."""
        if not holds_out(final.recipe) or not holds_out(base.recipe):
            return None
        arms = {
            role: {seed: run for seed in seeds if (run := self._folder.run(arm.name, seed)).result.is_file()}
            for role, arm in (("final", final), ("base", base))
        }
        for run in (run for runs in arms.values() for run in runs.values()):
            self._arms.stop_if_asked()
            if why := take_held_out(run, self._device):
                self._arms.stop_if_asked()
                self._say(f"{run.name}: no score on the test text: {why}; {_GOES_ON}")
                return None
        return held_out(arms)
