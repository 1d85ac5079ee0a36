"""Arms against a baseline: what differs, what it bought, how sure that is, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from farthing import config
from farthing.compare import noise as floors
from farthing.compare.arms import Arm, check_alike, check_by, find_arm, group
from farthing.compare.noise import NoiseFloor
from farthing.compare.runs import LeftOut, RunRecord
from farthing.compare.statistics import LEVEL, Noise, Summary, Verdict, check_level, compare_all, finished, summarise
from farthing.config import Change
from farthing.errors import UserError

_UNITS = {
    "bits_per_byte": "bits per byte",
    "nats_per_character": "nats per character",
    "nats_per_token": "nats per token",
    "perplexity": "in perplexity",
    "legacy_titles": "by the legacy reading",
}


@dataclass(frozen=True)
class Compared:
    """One arm, and what is to be said of it.

    Args:
        arm: its runs.
        summary: of its scores.
        held_out: of its scores on the held-out test text, of the runs that have been scored on it; None if there is none.
        changes: the settings that differ from the baseline's, seed apart.
        verdict: against the baseline; None for the baseline itself.
        cost: its FLOPs, seconds and so on over those of the baseline, each a mean of finished runs; empty for the baseline.
    """

    arm: Arm
    summary: Summary
    held_out: Summary | None
    changes: list[Change]
    verdict: Verdict | None
    cost: dict[str, float]

    def as_dict(self, by: str) -> dict[str, Any]:
        """The arm without its verdict, JSON-ready."""
        arm, scores = self.arm, self.arm.scores(by)
        summary = {key: value for key, value in self.summary.as_dict().items() if key != "level"}
        return {
            "arm": arm.name,
            **summary,
            **({"legacy_coverage": arm.legacy_coverage} if by == "legacy_titles" else {}),
            "runs": [
                {"run": str(run.path), "seed": run.seed, "status": run.status, "score": scores[run.seed]}
                for run in arm.runs
            ],
            "changes": {change.path: [change.old, change.new] for change in self.changes},
            "parameters": arm.runs[0].parameters,
            "spent": arm.spent(),
            "paid": arm.paid(),
            "held_out": None if self.held_out is None else self.held_out.as_dict(),
        }


@dataclass(frozen=True)
class Comparison:
    """Several arms, the baseline first.

    Args:
        by: the reading that they are compared by.
        level: the most that the chance of any false verdict may be.
        arms: the baseline, then the others in the order they were named.
        notes: what a person should know, a line each.
        left_out: runs that could not be compared.
    """

    by: str
    level: float
    arms: list[Compared]
    notes: list[str]
    left_out: list[LeftOut]

    @property
    def baseline(self) -> Compared:
        """What the others are held against."""
        return self.arms[0]

    def as_dict(self) -> dict[str, Any]:
        """The whole comparison, JSON-ready; docs/compare.md describes it."""
        told = [one for one in self.arms if one.verdict is not None]
        return {
            "by": self.by,
            "level": self.level,
            "baseline": self.baseline.arm.name,
            "arms": [one.as_dict(self.by) for one in self.arms],
            "verdicts": [
                {
                    "arm": one.arm.name,
                    "baseline": self.baseline.arm.name,
                    **(one.verdict.as_dict() if one.verdict else {}),
                    "cost": one.cost,
                    "words": self.words(one),
                }
                for one in told
            ],
            "notes": self.notes,
            "left_out": [{"run": one.run, "why": one.why} for one in self.left_out],
        }

    def words(self, one: Compared) -> str:
        """The verdict on an arm as a sentence."""
        assert one.verdict is not None
        return f"{one.arm.name}: {say(one.verdict, one.cost, by=self.by)}"


def compare_runs(
    runs: Sequence[RunRecord],
    *,
    level: float = LEVEL,
    baseline: str | None = None,
    by: str = "bits_per_byte",
    left_out: Sequence[LeftOut] = (),
) -> Comparison:
    """Hold the arms among `runs` against one of them.

    Args:
        runs: as `runs.gather` reads them.
        level: the most that the chance of any false verdict may be, over all arms together.
        baseline: an arm's or a run's name; None is the arm of the first run.
        by: the reading to compare by.
        left_out: runs that could not be read, to be told with the result.

    Raises:
        UserError: runs that cannot be compared (see `arms.check_alike`), an unknown baseline or reading, or a level that
            is no probability.
    """
    check_by(by)
    try:
        check_level(level)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    arms, notes = group(runs)
    first = arms[0] if baseline is None else find_arm(arms, baseline)
    arms = [first, *(arm for arm in arms if arm is not first)]
    notes += check_alike(arms, by)
    scores = {arm.name: arm.scores(by) for arm in arms}
    borrowed = _borrowed(arms, by)
    noise = {name: floor.noise(by) for name, floor in borrowed.items()}
    others = {arm.name: scores[arm.name] for arm in arms[1:]}
    verdicts = compare_all(others, scores[first.name], level=level, noise=noise)
    for name, floor in borrowed.items():
        if verdicts[name].method == "noise floor":
            notes.append(_told_of(floor, noise[name], name))
    compared = [
        Compared(
            arm=arm,
            summary=summarise(scores[arm.name], level=level),
            held_out=summarise(arm.held_out(by), level=level) if arm.held_out(by) else None,
            changes=_changes(first, arm),
            verdict=verdicts.get(arm.name),
            cost={} if arm is first else _cost(arm, first),
        )
        for arm in arms
    ]
    notes += [f"{run.name} failed: {run.why}" for arm in arms for run in arm.runs if run.status == "failed"]
    if len(looked := [one.arm.name for one in compared if one.held_out is not None]) > 1:
        notes.append(
            f"{len(looked)} arms were scored on the held-out text; whoever chooses between them by it has made it a "
            "validation text"
        )
    return Comparison(by, level, compared, notes, list(left_out))


def say(verdict: Verdict, cost: dict[str, float] | None = None, *, by: str = "bits_per_byte") -> str:
    """A verdict in words: direction, size with its interval, how it was tested, what it cost."""
    if verdict.difference is None:
        return f"cannot tell: {verdict.reason}"
    size = f"{verdict.difference:+.4f} {_UNITS[by]}"
    if verdict.p is None or verdict.low is None or verdict.high is None or verdict.p_corrected is None:
        return f"cannot tell ({size}): {verdict.reason}"
    seeds = f"{verdict.n} {'pairs' if verdict.method == 'paired t' else 'seeds'}"
    chance = f"p = {verdict.p:.2g}"
    if abs(verdict.p_corrected - verdict.p) > 1e-12:
        chance += f" ({verdict.p_corrected:.2g} corrected for the number of arms)"
    how = f"{1 - verdict.level:.0%} interval {verdict.low:+.4f} to {verdict.high:+.4f}, {verdict.method}, {seeds}, {chance}"
    told = f"{verdict.verdict} ({size}; {how})"
    if verdict.verdict == "cannot tell":
        told += f": {verdict.reason}"
        if verdict.more_seeds:
            told += f"; {verdict.more_seeds} more seeds an arm would tell it, if it is as large as it looks"
        elif verdict.more_seeds is None:
            told += "; not even a thousand seeds would tell it, if it is as small as it looks"
    flops = (cost or {}).get("flops")
    return told if flops is None or abs(flops - 1) < 0.01 else f"{told}, for {flops:.3g} times the FLOPs"


def _changes(first: Arm, arm: Arm) -> list[Change]:
    changes = [change for change in config.diff(first.recipe, arm.recipe) if change.path != "seed"]
    if all("train" in run.texts for one in (first, arm) for run in one.runs):
        return changes
    # Nothing is known of how an imported model was trained: the rest of its recipe is defaults.
    return [change for change in changes if change.path.startswith("model.") or change.path == "tokenizer.kind"]


def _borrowed(arms: Sequence[Arm], by: str) -> dict[str, NoiseFloor]:
    """The noise floors that arms without a spread of their own, or against a baseline without one, are judged by."""
    baseline = arms[0]
    found = {}
    for arm in arms[1:]:
        if min(len(finished(arm.scores(by))), len(finished(baseline.scores(by)))) >= 2:
            continue
        # The baseline's first: the arms of one comparison should be judged alike.
        for owner in (baseline, arm):
            folders = dict.fromkeys(run.path.parent for one in (owner, baseline, arm) for run in one.runs)
            floor = next((one for folder in folders if (one := floors.find(folder, owner.fingerprint))), None)
            if floor is not None and by in floor.scores and floor.fits(arm):
                found[arm.name] = floor
                break
    return found


def _told_of(floor: NoiseFloor, noise: Noise, arm: str) -> str:
    return (
        f"{arm} is judged by the noise floor of {floor.name} (standard deviation {noise.sd:.4f} over "
        f"{noise.degrees_of_freedom + 1:g} seeds), as if both arms were as noisy"
    )


def _cost(arm: Arm, baseline: Arm) -> dict[str, float]:
    own, other = arm.spent(), baseline.spent()
    return {name: own[name] / other[name] for name in own if other.get(name)}
