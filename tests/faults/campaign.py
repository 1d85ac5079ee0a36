"""Hundreds or thousands of faults against real runs, and a table of what came of them; what `make faults` runs.

    python tests/faults/campaign.py                        300 faults (some minutes)
    python tests/faults/campaign.py --faults 3000          the long form
    python tests/faults/campaign.py --write                the table into benchmarks/reliability.md too
    python tests/faults/campaign.py --seed 7 --kinds damaged --recipes muon

Every trial takes a recipe with all its sources of randomness on, a kind of fault (kinds.py) and moments drawn from a
seed; runs it in a fork of a process that has everything imported; lets it be hit, once or several times; resumes it as a
person or a supervisor would, without other help; and holds weights, optimizer, every step's loss, every score and the
samples against those of an undisturbed run, bit for bit.

What would make this prove nothing fails it: a recipe whose undisturbed runs differ among themselves, or in which what
it is there for never happens; a phase of the run hit fewer than five times; a kind of fault that never struck. A fault
counts only if the child noted it, or ended by it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "benchmarks")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from farthing import assemble, config  # noqa: E402
from farthing.planning import Choice, Settings, Timing  # noqa: E402
from farthing.recipe import Recipe  # noqa: E402
from farthing.rundir import RunDir  # noqa: E402
from farthing.training import guard  # noqa: E402
from faults.injected import PHASES, spawn, wait, watch_phases  # noqa: E402
from faults.kinds import KINDS, MOVE_THE_CHECKPOINTS, Trial, killed_in_a_phase  # noqa: E402
from training.story import BASE, final_state, new_run, notices, write_story  # noqa: E402

OFTEN = ["checkpoint.every=3", "evaluate.every=4", "sample.tokens=6", "model.n_layer=1"]
SPIKES = ["optimizer.kind=adamw", "train.spike_zscore=3"]
RECIPES: dict[str, list[str]] = {
    "sgd": ["optimizer.kind=sgd", "optimizer.momentum=0.9"],
    "adamw": ["optimizer.kind=adamw", "model.n_layer=2"],
    "adafactor": ["optimizer.kind=adafactor"],
    "rmsprop": ["optimizer.kind=rmsprop"],
    "lion": ["optimizer.kind=lion"],
    "muon": ["optimizer.kind=muon"],
    "sam": ["optimizer.kind=adamw", "optimizer.sharpness.kind=sam"],
    "adaptive sam": ["optimizer.kind=sgd", "optimizer.sharpness.kind=asam"],
    "averaged weights": ["optimizer.kind=adamw", "train.ema=0.9"],
    "r-drop": ["optimizer.kind=adamw", "objective.r_drop=2.0", "objective.label_smoothing=0.1"],
    "fp16 with its scaler": ["optimizer.kind=adamw", "train.precision=fp16"],
    "bf16": ["optimizer.kind=muon", "train.precision=bf16"],
    "documents apart": ["optimizer.kind=adamw", "model.attention.scope=document", "train.order=shuffled"],
    "spikes left out": [*SPIKES, "model.n_layer=2", "train.on_divergence=skip"],
    "spikes and roll-backs": [*SPIKES, "model.n_layer=2", "train.on_divergence=rollback"],
    "a budget in minutes": ["optimizer.kind=adamw", "budget.steps=none", "budget.minutes=2.5"],
    "two threads": ["optimizer.kind=adamw", "train.threads=2"],
}
MUST_HAPPEN = {"spikes left out": "skipped_step", "spikes and roll-backs": "rolled_back"}
"""notices without which a recipe would not be what it is called"""
FEWEST_STEPS_TO_JUDGE = 5
"""of a spike; 32 in the product, which is more than these runs have"""
SECONDS_PER_STEP = 10.0
"""what every plan believes, so that the same budget in minutes is the same number of steps each time"""
FEWEST_IN_A_PHASE = 5
ENOUGH_FOR_ALL_PHASES = 100
"""faults; a campaign of fewer cannot hit every phase so often"""
ENOUGH_TO_STRIKE = 5
"""runs after which a kind of fault must have struck once"""
MOST_EXTRA = 80
"""runs that aim at the phases that were hit too seldom, before that is a failure"""
CLOSE = 0.1
"""bits per byte between an end that may differ and the undisturbed one"""


@dataclass
class Whole:
    """A recipe, and what comes of it when nobody disturbs it."""

    made: Recipe
    end: dict[str, Any]
    operations: Counter[str]
    bytes: int


@dataclass
class Tally:
    """What came of a kind of fault."""

    tried: int = 0
    """runs in which it was meant to strike; `trials` are those in which it did"""
    trials: int = 0
    faults: int = 0
    resumed: int = 0
    exact: int = 0
    excused: int = 0
    lost: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take another tally's counts in."""
        for name in ("trials", "faults", "resumed", "exact", "excused", "lost"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def row(self, kind: str) -> str:
        """Of the table."""
        return (
            f"| {kind} | {self.trials} | {self.faults} | {self.resumed} | {self.exact} | {self.excused} | {self.lost} |"
        )


class Campaign:
    """Trials until there have been enough.

    Args:
        folder: where runs go.
        recipes: overrides by name.
        kinds: faults.
        draw: what, when.
    """

    def __init__(
        self,
        folder: Path,
        recipes: dict[str, list[str]],
        kinds: Sequence[Callable[[Trial], None]],
        draw: random.Random,
    ) -> None:
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        self.phases: Counter[str] = Counter()
        self.tried: Counter[str] = Counter()
        self.trouble: list[str] = []
        self.seconds = 0.0
        self._folder, self._kinds, self._draw = folder, kinds, draw
        self._whole: dict[str, Whole] = {}
        self._prepare(recipes)

    def _prepare(self, recipes: dict[str, list[str]]) -> None:
        """The text, and three undisturbed runs of each recipe, which must be equal."""
        os.environ["FARTHING_CACHE"] = str(self._folder / "cache")
        write_story(self._folder)
        os.chdir(self._folder)
        watch_phases()
        guard.SPIKE_FEWEST = FEWEST_STEPS_TO_JUDGE
        assemble._measured = _believed
        for name, more in recipes.items():
            made = config.load(Recipe, None, [*BASE, *OFTEN, *more])
            runs = [RunDir(self._folder / "whole" / f"{name}-{number}") for number in range(3)]
            if made.train.threads == 1:
                # Here, so that what torch and we import only when it is needed is there for every child. Not with more
                # threads, which no fork would have.
                new_run(runs[0].path, made)
            for run in runs[1 if runs[0].result.is_file() else 0 :]:
                report = self._folder / "whole.txt"
                done = wait(spawn(lambda run=run, made=made: new_run(run.path, made), report), report)
                assert done.code == 0, (name, done)
            ends = [final_state(run) for run in runs]
            if not ends[0] == ends[1] == ends[2]:
                self.trouble.append(f"{name}: three undisturbed runs differ: this machine is not deterministic")
            if (code := MUST_HAPPEN.get(name)) and code not in notices(run):
                self.trouble.append(f"{name}: no {code} in an undisturbed run")
            self._whole[name] = Whole(made, ends[0], done.counts, run.events.stat().st_size)

    def run(self, *, faults: int, seconds: float) -> None:
        """Trials of all kinds and recipes in turn; then more of those that aim at phases, where some were hit too seldom."""
        start = time.monotonic()
        number, names = 0, list(self._whole)
        while sum(tally.faults for tally in self.tallies.values()) < faults and time.monotonic() - start < seconds:
            kind = self._kinds[number % len(self._kinds)]
            # One more each time round, so that every kind meets every recipe.
            name = names[(number + number // len(self._kinds)) % len(names)]
            number += 1
            # A roll-back leads to the newest checkpoint: where that is another one, so is the end.
            if name != "spikes and roll-backs" or kind not in MOVE_THE_CHECKPOINTS:
                self._trial(name, kind)
            self.seconds = time.monotonic() - start
        if killed_in_a_phase not in self._kinds or faults < ENOUGH_FOR_ALL_PHASES:
            return
        for extra in range(MOST_EXTRA):
            if not self._seldom_hit() or time.monotonic() - start >= seconds:
                break
            self._trial(names[extra % len(names)], killed_in_a_phase)
            self.seconds = time.monotonic() - start

    def _seldom_hit(self) -> list[str]:
        return [phase for phase in PHASES if phase != "sweeping" and self.phases[phase] < FEWEST_IN_A_PHASE]

    def _trial(self, name: str, kind: Callable[[Trial], None]) -> None:
        whole = self._whole[name]
        folder = self._folder / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        seed = self._draw.getrandbits(32)
        rarest = sorted(whole.operations.keys() | {"resuming", "training", "scoring"}, key=lambda p: self.phases[p])
        trial = Trial(name, whole.made, folder, random.Random(seed), whole.operations, whole.bytes, rarest)
        kind(trial)
        tally = self.tallies[kind.__doc__ or kind.__name__]
        tally.tried += 1
        if not trial.phases and not trial.wrong:
            return
        self.phases.update(trial.phases)
        self.tried[name] += 1
        resumed = self._resume(trial)
        end = final_state(trial.run) if resumed else {}
        if resumed and trial.lines_lost:
            # Training never waits for its log: what the disk did not take is missing there, and nothing else is.
            end = {key: _told_in_full(end[key], whole.end[key], trial.lines_lost) for key in end}
        exact = end == whole.end
        excused = resumed and not exact and bool(trial.excused) and _close(end, whole.end)
        lost = bool(trial.lost)
        tally.add(Tally(0, 1, len(trial.phases), resumed, exact, excused, lost))
        if leftovers := [path.name for path in trial.run.path.rglob(".*")]:
            trial.wrong.append(f"left over: {leftovers}")
        if not (exact or excused) or lost or trial.wrong:
            differs = [key for key in whole.end if resumed and end[key] != whole.end[key]]
            told = f"codes {trial.codes}, phases {trial.phases}"
            tally.wrong.append(f"{name}, trial {seed}: {told}, differs {differs}, {'; '.join(trial.wrong)}")

    @staticmethod
    def _resume(trial: Trial) -> bool:
        """Nobody's help but `resume`, twice at most: a run that has been resumed has to end."""
        for _ in range(2):
            if trial.run.result.is_file():
                return True
            trial.ended(trial.begin())
            # It must have gone on from the newest that was whole.
            trial.lost += _resumed_from(trial.run) < trial.reached
        return trial.run.result.is_file()

    def complaints(self, *, whole: bool = True) -> list[str]:
        """Why the campaign has failed, if it has.

        Args:
            whole: whether it was large enough, and of enough kinds, to hit every phase.
        """
        found = list(self.trouble)
        for kind, tally in self.tallies.items():
            found += [f"{kind}: {wrong}" for wrong in tally.wrong]
        if whole:
            found += [f"only {self.phases[phase]} faults while {phase}" for phase in self._seldom_hit()]
            found += [
                f"never struck: {kind}"
                for kind, tally in self.tallies.items()
                if not tally.faults and tally.tried >= ENOUGH_TO_STRIKE
            ]
        return found

    def table(self, complaints: Sequence[str]) -> str:
        """Markdown."""
        rows = [
            "| fault | runs | faults | resumed | bit for bit | with another micro-batch | behind the last checkpoint |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        total = Tally()
        for kind, tally in sorted(self.tallies.items()):
            rows.append(tally.row(kind))
            total.add(tally)
        rows.append(total.row("**all**"))
        phases = ", ".join(f"{phase} {count}" for phase, count in self.phases.most_common())
        tried = ", ".join(f"{name} {count}" for name, count in self.tried.items())
        # No failure in n independent trials bounds the rate of failure by 1 - 0.05^(1/n), at 95 %.
        sound = total.trials and total.exact + total.excused == total.trials
        bound = f"{1 - 0.05 ** (1 / total.trials):.2%}" if sound else "none"
        rate = f"Upper bound, at 95 %, of the rate of failure among runs so disturbed: {bound}."
        for told in (
            f"Where they struck: {phases}.",
            f"Runs of each recipe: {tried}.",
            f"{rate} {self.seconds:.0f} seconds.",
        ):
            rows += ["", told]
        return "\n".join([*rows, *(f"\nFAILED: {line}" for line in complaints)])


def _believed(recipe: Recipe, machine: Any, counts: Any, settings: Settings, text: Any, guess: Any) -> Any:
    """In place of real steps that are timed: what a plan finds must not depend on how busy this machine is."""
    return Choice(settings), Timing(SECONDS_PER_STEP, "believed", measured=True)


def _resumed_from(run: RunDir) -> int:
    """The step that the last sitting went on from; a run that was already finished lost nothing."""
    if not run.events.is_file():
        return 0  # it ended before there was anything to tell, which loses whatever had been reached before
    told = [json.loads(line) for line in run.events.read_text("utf-8").splitlines()]
    found = [event["step"] for event in told if event["kind"] == "resumed"]
    return int(found[-1]) if found else sys.maxsize


def _close(end: dict[str, Any], whole: dict[str, Any]) -> bool:
    """Whether an end is as good as the undisturbed one."""
    steps = [[step for step, *_ in one["steps"]] for one in (end, whole)]
    bits = [one["scores"][-1][1]["bits_per_byte"] for one in (end, whole)]
    return steps[0] == steps[1] and abs(bits[0] - bits[1]) < CLOSE


def _told_in_full(told: Any, whole: Any, most: int) -> Any:
    """What the events tell, with what they lack filled in, if that is at most so many of them."""
    if not isinstance(told, list) or not 0 < len(whole) - len(told) <= most:
        return told
    rest = iter(whole)
    return whole if all(one in rest for one in told) else told


def _named(name: str, words: str) -> bool:
    return not words or any(word.strip() in name for word in words.split(","))


def main() -> None:
    """Run the campaign; exit code 1 if anything was lost, was not exact, or was not tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after this time, however few that were")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", default="", help="only those whose names hold one of these words, comma-separated")
    parser.add_argument("--kinds", default="", help="likewise")
    parser.add_argument("--without", default="", help="none of these kinds")
    parser.add_argument("--folder", help="where runs go while it lasts; none: the system's folder for such things")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/reliability.md")
    chosen = parser.parse_args()
    recipes = {name: more for name, more in RECIPES.items() if _named(name, chosen.recipes)}
    kinds = [kind for kind in KINDS if _named(kind.__name__, chosen.kinds)]
    kinds = [kind for kind in kinds if not chosen.without or not _named(kind.__name__, chosen.without)]
    with tempfile.TemporaryDirectory(prefix="farthing-faults-", dir=chosen.folder) as folder:
        campaign = Campaign(Path(folder), recipes, kinds, random.Random(chosen.seed))
        campaign.run(faults=chosen.faults, seconds=chosen.seconds)
        hit = sum(tally.faults for tally in campaign.tallies.values())
        complaints = campaign.complaints(whole=not chosen.kinds and hit >= ENOUGH_FOR_ALL_PHASES)
        table = campaign.table(complaints)
        print(table, flush=True)
        os.chdir(ROOT)
        if chosen.write:
            import reliability

            reliability.write("faults", table)
        sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
