"""The diagnosis of a whole report: what the runs of each arm have in common, and the command of the next experiment."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from farthing.compare.arms import Arm
from farthing.report.diagnosis import Finding, diagnose, too_noisy
from farthing.report.material import Material
from farthing.rundir import RunDir

_USUAL = Path("runs")
_MOST = 12
"""arms that are diagnosed one by one; of more only the best, and those with a fault"""


@dataclass(frozen=True)
class Diagnosis:
    """A finding about an arm.

    Args:
        arm: its name.
        finding: what was found, with the evidence of the first run that shows it.
        runs: how many of its runs show it.
        of: how many runs it has.
        commands: the next experiment, to be typed.
    """

    arm: str
    finding: Finding
    runs: int
    of: int
    commands: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **asdict(self.finding),
            "arm": self.arm,
            "runs": self.runs,
            "of": self.of,
            "commands": list(self.commands),
        }


def diagnose_all(material: Material) -> list[Diagnosis]:
    """What is to be said of every arm, and of what could not be told between them."""
    found = [one for arm in material.ranked for one in _of_arm(material, arm)]
    if len(material.arms) > _MOST:
        best = material.best.name
        found = [
            one for one in found if one.arm == best or one.finding.ailment in ("diverged", "learning rate too high")
        ]
    broken = {one.arm for one in found if one.finding.ailment == "diverged"}
    # More seeds of a recipe that diverges would tell nothing new.
    return [*found, *(one for one in _between(material) if one.arm not in broken)]


def _of_arm(material: Material, arm: Arm) -> Iterator[Diagnosis]:
    by_ailment: dict[str, list[tuple[Arm, Finding, Path]]] = {}
    for story in material.stories_of(arm):
        for finding in diagnose(story.course):
            by_ailment.setdefault(finding.ailment, []).append((arm, finding, story.run.path))
    of = len(material.stories_of(arm))
    for ailment, several in by_ailment.items():
        # One run of many that still descends, or over-fits a little, is the luck of its seed; a divergence never is.
        if 2 * len(several) < of and ailment != "diverged":
            continue
        _, finding, path = several[0]
        yield Diagnosis(arm.name, finding, len(several), of, _commands(material, finding, path))


def _commands(material: Material, finding: Finding, run: Path) -> list[str]:
    if not finding.changes:
        return []
    changes = [f"{path}={_value(value)}" for path, value in finding.changes.items()]
    return [_train(material, run, *changes)]


def _between(material: Material) -> Iterator[Diagnosis]:
    """Differences that drown in the noise."""
    compared = material.compared
    if compared is None:
        return
    for one in compared.arms[1:]:
        assert one.verdict is not None
        finding = too_noisy(one.verdict)
        if finding is None:
            continue
        commands = []
        if finding.seeds:
            for arm in (compared.baseline.arm, one.arm):
                commands.append(_more_seeds(material, arm, finding.seeds))
        n = len(one.arm.runs)
        yield Diagnosis(one.arm.name, finding, n, n, commands)


def _more_seeds(material: Material, arm: Arm, more: int) -> str:
    taken = {run.seed for run in arm.runs}
    fresh = [seed for seed in range(1, len(taken) + more + 1) if seed not in taken][:more]
    shown = ",".join(map(str, fresh)) if len(fresh) <= 20 else f"{fresh[0]},...,{fresh[-1]}"
    return _train(material, arm.runs[0].path, "--seeds", shown, "--name", arm.name)


def _train(material: Material, run: Path, *words: str) -> str:
    where = [] if material.beside == _USUAL else ["--runs", str(material.beside)]
    return shlex.join(["farthing", "train", str(RunDir(run).recipe), *words, *where])


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
