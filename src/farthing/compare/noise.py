"""The noise floor of a recipe: how far runs that differ in nothing but the seed lie apart, kept beside the runs.

An arm of a single run shows no noise of its own. With the noise floor of its recipe, or of the baseline's, it can still be
judged; the verdict then says that it rests on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farthing.compare.arms import BY, Arm
from farthing.compare.statistics import LEVEL, Noise, finished, interval_of_sd, smallest_difference, summarise
from farthing.errors import UserError
from farthing.rundir import NOISE_VERSION, noise_path
from farthing.storage import read_json, write_json

_SEEDS = (2, 3, 5, 10, 20)
"""arms of so many runs are told by how small a difference they can show"""


@dataclass(frozen=True)
class NoiseFloor:
    """How far the runs of one recipe lie apart.

    Args:
        name: the arm's.
        arm: fingerprint of its recipe without the seed.
        scores: readings of the finished runs, by name of the reading and then by seed.
        failed: runs without a score.
        text: fingerprint of the validation text.
        yardstick: its version.
    """

    name: str
    arm: str
    scores: dict[str, dict[int, float]]
    failed: int
    text: str
    yardstick: int

    def noise(self, by: str = "bits_per_byte") -> Noise:
        """The spread in one reading, as the tests take it."""
        summary = summarise(self.scores[by])
        assert summary.sd is not None
        return Noise(summary.sd, summary.n - 1)

    def as_dict(self, by: str = "bits_per_byte", *, level: float = LEVEL) -> dict[str, Any]:
        """Spread, its interval, and the smallest differences that it leaves visible, JSON-ready."""
        summary = summarise(self.scores[by], level=level)
        assert summary.sd is not None
        low, high = interval_of_sd(summary.sd, summary.n, level=level)
        told = {str(n): smallest_difference(summary.sd, n, level=level) for n in _SEEDS}
        return {
            "arm": self.name,
            "by": by,
            "level": level,
            "n": summary.n,
            "failed": self.failed,
            "mean": summary.mean,
            "mean_low": summary.low,
            "mean_high": summary.high,
            "sd": summary.sd,
            "sd_low": low,
            "sd_high": high,
            "smallest_difference": told,
            "scores": {str(seed): score for seed, score in self.scores[by].items()},
        }

    def fits(self, arm: Arm) -> bool:
        """Whether an arm was scored by the same yardstick on the same text."""
        return any(
            run.validation["fingerprint"] == self.text and run.validation["version"] == self.yardstick
            for run in arm.finished
        )


def measure(arm: Arm) -> NoiseFloor:
    """The noise floor that an arm's finished runs show.

    Raises:
        UserError: there are fewer than two of them.
    """
    if len(arm.finished) < 2:
        raise UserError(f"{arm.name}: {len(arm.finished)} of {len(arm.runs)} runs has a score; noise takes two or more")
    first = arm.finished[0].validation
    readings = [by for by in BY if all(run.validation.get(by) is not None for run in arm.finished)]
    scores = {by: finished(arm.scores(by)) for by in readings}
    failed = len(arm.runs) - len(arm.finished)
    return NoiseFloor(arm.name, arm.fingerprint, scores, failed, first["fingerprint"], first["version"])


def keep(floor: NoiseFloor, runs: Path) -> Path:
    """Write a noise floor where comparisons look for it; returns the file. An older one of the recipe is replaced."""
    path = noise_path(runs, floor.arm)
    path.parent.mkdir(parents=True, exist_ok=True)
    scores = {by: {str(seed): score for seed, score in found.items()} for by, found in floor.scores.items()}
    facts = {"name": floor.name, "arm": floor.arm, "failed": floor.failed, "text": floor.text}
    write_json(path, {"version": NOISE_VERSION, **facts, "yardstick": floor.yardstick, "scores": scores})
    return path


def find(runs: Path, arm: str) -> NoiseFloor | None:
    """The noise floor of an arm, by its fingerprint, if it has been measured in this folder of runs.

    Raises:
        UserError: its file is damaged or of a newer version.
    """
    path = noise_path(runs, arm)
    if not path.is_file():
        return None
    try:
        found = read_json(path)
        if found["version"] > NOISE_VERSION:
            raise UserError(f"{path}: of version {found['version']}; this farthing reads {NOISE_VERSION}")
        scores = {
            str(by): {int(seed): float(score) for seed, score in several.items()}
            for by, several in found["scores"].items()
        }
        return NoiseFloor(
            found["name"], found["arm"], scores, int(found["failed"]), found["text"], int(found["yardstick"])
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: damaged: {error}; measure it again with: farthing noise RECIPE") from None
