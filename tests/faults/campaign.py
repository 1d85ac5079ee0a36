"""Thousands of faults against real runs, and a table of what came of them; what `make faults` runs.

    python tests/faults/campaign.py                        300 faults (some minutes)
    python tests/faults/campaign.py --faults 3000          the long form
    python tests/faults/campaign.py --seconds 60           as many as fit, at least a few of each kind
    python tests/faults/campaign.py --write                the table into benchmarks/reliability.md too

Every trial takes a recipe with all its sources of randomness on, a kind of fault and a moment drawn from a seed; runs
it in a fork of a process that has everything imported; lets it be hit, once or several times; resumes it as a person or
a supervisor would, without other help; and holds weights, optimizer, every step's loss, every score and the samples
against those of an undisturbed run, bit for bit. A fault that did not happen does not count. A phase of the run that
was hit fewer than five times fails the campaign, as does a recipe whose undisturbed runs differ among themselves.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from farthing import assemble, config  # noqa: E402
from farthing.recipe import Recipe  # noqa: E402
from farthing.rundir import RunDir  # noqa: E402
from faults.injected import Child, Injection, seen_from_outside, spawn, until, wait  # noqa: E402
from training.story import BASE, final_state, new_run, resume, write_story  # noqa: E402

OFTEN = ["checkpoint.every=3", "evaluate.every=4", "sample.tokens=6"]
RECIPES: dict[str, list[str]] = {
    "sgd": ["optimizer.kind=sgd", "optimizer.momentum=0.9"],
    "adamw": ["optimizer.kind=adamw"],
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
    "spikes and roll-backs": ["optimizer.kind=adamw", "train.spike_zscore=9", "train.on_divergence=rollback"],
    "two threads": ["optimizer.kind=adamw", "train.threads=2"],
}
PHASES_TO_HIT = ("starting", "training", "logging", "saving", "pruning", "resuming", "ending")
FEWEST_IN_A_PHASE = 5
PREEMPTED = 75


@dataclass
class Trial:
    """One run under fire."""

    recipe: str
    made: Recipe
    folder: Path
    draw: random.Random
    operations: int
    """file operations of an undisturbed run"""
    bytes: int
    """of its events"""
    phases: list[str] = field(default_factory=list)
    faults: int = 0
    codes: list[int] = field(default_factory=list)
    lost: bool = False
    """whether a resumed run began before the newest checkpoint that was whole when the fault struck"""

    @property
    def run(self) -> RunDir:
        return RunDir(self.folder / "runs" / "trial")

    @property
    def report(self) -> Path:
        return self.folder / "report.txt"

    def sit(self) -> Callable[[], object]:
        """What a person does: resume, or start where there is no run yet."""
        if self.run.recipe.is_file():
            return lambda: resume(self.run)
        return lambda: new_run(self.run.path, self.made)

    def begin(self, injection: Injection | None = None, *, limit: int = 0) -> int:
        return spawn(self.sit(), self.report, injection=injection, limit=limit)

    def ended(self, child: int, *, outside: bool = False) -> Child:
        """Wait for a child; a fault from outside is counted where it left its mark."""
        done = wait(child, self.report)
        self.codes.append(done.code)
        self.phases += done.phases
        self.faults += len(done.phases)
        if outside:
            self.phases.append(seen_from_outside(self.run.path))
            self.faults += 1
        return done


# --- the kinds of fault: each sits at least once, and leaves a run that somebody has to resume


def killed_at_an_operation(trial: Trial) -> None:
    """F01, F02: kill -9 before or after any one file operation."""
    at = trial.draw.randint(1, trial.operations)
    what = trial.draw.choice(["kill_before", "kill_after"])
    trial.ended(trial.begin(Injection(at=at, what=what)))


def killed_in_a_save(trial: Trial) -> None:
    """F02: kill -9 at a sync or a rename."""
    operation = trial.draw.choice(["fsync", "rename", "replace", "rmdir", "unlink"])
    trial.ended(trial.begin(Injection(operation, trial.draw.randint(1, 12), "kill_before")))


def killed_at_a_moment(trial: Trial) -> None:
    """F01: kill -9 at a moment of the clock, after some progress."""
    child = trial.begin()
    if until(trial.run.path, child, trial.draw.randint(0, trial.bytes)):
        time.sleep(trial.draw.random() * 0.02)
        os.kill(child, signal.SIGKILL)
    trial.ended(child, outside=_is_killed(child))


def killed_again_and_again(trial: Trial) -> None:
    """F03: kill -9 up to five times in one run, the last ones while resuming."""
    for _ in range(trial.draw.randint(2, 5)):
        at = trial.draw.randint(1, max(2, trial.operations // 2))
        if trial.ended(trial.begin(Injection(at=at, what="kill_before"))).code == 0:
            return


def killed_while_resuming(trial: Trial) -> None:
    """F04: kill -9 in mid-run, and once more in the first operations of the resumed run."""
    killed_at_an_operation(trial)
    if not trial.run.result.is_file():
        trial.ended(trial.begin(Injection(at=trial.draw.randint(1, 40), what="kill_before")))


def asked_to_stop(trial: Trial) -> None:
    """F06: SIGTERM, or one SIGINT, at any moment: saved at once."""
    child = trial.begin()
    if until(trial.run.path, child, trial.draw.randint(1, trial.bytes)):
        os.kill(child, trial.draw.choice([signal.SIGTERM, signal.SIGINT]))
    trial.ended(child, outside=True)


def asked_and_killed(trial: Trial) -> None:
    """F07: SIGTERM, and SIGKILL before it could end."""
    child = trial.begin()
    if until(trial.run.path, child, trial.draw.randint(1, trial.bytes)):
        os.kill(child, signal.SIGTERM)
        time.sleep(trial.draw.random() * 0.03)
        os.kill(child, signal.SIGKILL)
    trial.ended(child, outside=True)


def interrupted_twice(trial: Trial) -> None:
    """F08: two SIGINTs: gone at once, the last checkpoint whole."""
    child = trial.begin()
    if until(trial.run.path, child, trial.draw.randint(1, trial.bytes)):
        os.kill(child, signal.SIGINT)
        time.sleep(0.002)
        os.kill(child, signal.SIGINT)
    trial.ended(child, outside=True)


def saved_on_request(trial: Trial) -> None:
    """F09: SIGUSR1 saves and goes on, SIGHUP is nothing; then kill -9."""
    child = trial.begin()
    if until(trial.run.path, child, trial.draw.randint(1, trial.bytes // 2)):
        os.kill(child, trial.draw.choice([signal.SIGUSR1, signal.SIGHUP]))
        if until(trial.run.path, child, trial.draw.randint(1, trial.bytes // 3)):
            os.kill(child, signal.SIGKILL)
    trial.ended(child, outside=True)


def stopped_and_continued(trial: Trial) -> None:
    """F11: SIGSTOP, a while, SIGCONT; then kill -9."""
    child = trial.begin()
    if until(trial.run.path, child, trial.draw.randint(1, trial.bytes // 2)):
        os.kill(child, signal.SIGSTOP)
        time.sleep(0.05)
        os.kill(child, signal.SIGCONT)
        if until(trial.run.path, child, trial.draw.randint(1, trial.bytes // 3)):
            os.kill(child, signal.SIGKILL)
    trial.ended(child, outside=True)


def crashed(trial: Trial) -> None:
    """F13: a segmentation fault, an abort or a bus error."""
    child = trial.begin()
    if until(trial.run.path, child, trial.draw.randint(1, trial.bytes)):
        os.kill(child, trial.draw.choice([signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS]))
    trial.ended(child, outside=True)


def disk_full(trial: Trial) -> None:
    """F20, F21: files may not grow beyond a limit for one sitting."""
    trial.ended(trial.begin(limit=trial.draw.randint(2_000, 40_000)), outside=True)


def errors_of_the_disk(trial: Trial) -> None:
    """F25, F28: EIO or ENOSPC from some operations in a row; the run goes on, or stops and is resumed."""
    injection = Injection(
        trial.draw.choice(["fsync", "write", "rename", "mkdir"]),
        trial.draw.randint(1, 20),
        trial.draw.choice(["EIO", "ENOSPC"]),
        times=trial.draw.choice([1, 1, 3]),
    )
    trial.ended(trial.begin(injection))


def damaged_newest(trial: Trial) -> None:
    """F14 to F16, F18: kill -9, and the newest of two or more checkpoints truncated, flipped, zeroed, or short of a file."""
    child = trial.begin()
    if until(trial.run.path, child, trial.draw.randint(trial.bytes // 2, trial.bytes)):
        os.kill(child, signal.SIGKILL)
    trial.ended(child, outside=True)
    steps = trial.run.checkpoint_steps()
    if len(steps) > 1 and not trial.run.result.is_file():
        _damage(trial.run.checkpoint(steps[-1]), trial.draw)
        trial.faults += 1
        trial.phases.append("at rest")


def torn_events(trial: Trial) -> None:
    """F24: kill -9, and the last line of the events torn at some byte, or a piece of a line glued on."""
    child = trial.begin()
    if until(trial.run.path, child, trial.draw.randint(1, trial.bytes)):
        os.kill(child, signal.SIGKILL)
    trial.ended(child, outside=True)
    events = trial.run.events
    if not events.exists() or trial.run.result.is_file():
        return
    content, kept = events.read_bytes(), _events_of_newest(trial.run)
    if trial.draw.random() < 0.5 and len(content) > kept:
        events.write_bytes(content[: trial.draw.randint(kept, len(content))])
    else:
        events.write_bytes(content + b'{"kind": "step", "st')
    trial.faults += 1
    trial.phases.append("at rest")


def clock_moved(trial: Trial) -> None:
    """F37: the clock jumps by a day in one sitting, which is then killed."""
    leap, sit = trial.draw.choice([-86_400.0, 86_400.0]), trial.sit()

    def leaping() -> None:
        genuine = time.time
        time.time = lambda: genuine() + leap  # type: ignore[assignment]
        sit()

    child = spawn(leaping, trial.report, injection=Injection(at=trial.draw.randint(1, trial.operations)))
    trial.ended(child)


def second_trainer(trial: Trial) -> None:
    """F36: another process wants the same run: kept out; then the first is killed, and the next gets in at once."""
    child = trial.begin()
    if until(trial.run.path, child, trial.draw.randint(1, trial.bytes // 2)) and trial.run.recipe.is_file():
        report = trial.folder / "second.txt"
        second = wait(spawn(lambda: resume(trial.run), report), report)
        if _is_killed(child):
            os.kill(child, signal.SIGKILL)
            assert second.code in (0, 7), second
    trial.ended(child, outside=True)


KINDS: list[Callable[[Trial], None]] = [
    killed_at_an_operation, killed_in_a_save, killed_at_a_moment, killed_again_and_again, killed_while_resuming,
    asked_to_stop, asked_and_killed, interrupted_twice, saved_on_request, stopped_and_continued, crashed, disk_full,
    errors_of_the_disk, damaged_newest, torn_events, clock_moved, second_trainer,
]  # fmt: skip


def _is_killed(child: int) -> bool:
    """Whether a child is still there to be killed, or has been, rather than having come to its own end."""
    ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return ended is None or ended.si_code != os.CLD_EXITED


def _damage(checkpoint: Path, draw: random.Random) -> None:
    file = draw.choice(sorted(checkpoint.iterdir()))
    content = bytearray(file.read_bytes())
    match draw.choice(["truncate", "flip", "zero", "delete", "empty", "grow"]):
        case "truncate":
            file.write_bytes(content[: draw.randrange(len(content))])
        case "flip":
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            file.write_bytes(content)
        case "zero":
            start = draw.randrange(len(content))
            page = bytes(min(4096, len(content) - start))
            # A page of zeros that was zeros before is no damage.
            changed = content[start : start + len(page)] != page
            content[start : start + len(page)] = page if changed else bytes([1]) * len(page)
            file.write_bytes(content)
        case "delete":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "grow":
            file.write_bytes(content + b"\0")


def _events_of_newest(run: RunDir) -> int:
    """Bytes of events that the newest checkpoint counts on: those were synced before it was written."""
    for step in reversed(run.checkpoint_steps()):
        return int(json.loads((run.checkpoint(step) / "state.json").read_text("utf-8"))["events_bytes"])
    return 0


# --- the campaign


@dataclass
class Tally:
    """What came of a kind of fault."""

    trials: int = 0
    faults: int = 0
    resumed: int = 0
    exact: int = 0
    lost: int = 0
    wrong: list[str] = field(default_factory=list)


def main() -> None:
    """Run the campaign; exit code 1 if anything was lost, was not exact, or was not tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after this time, however few that were")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", default="", help="only those whose names hold one of these words, comma-separated")
    parser.add_argument("--kinds", default="", help="likewise")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/reliability.md")
    chosen = parser.parse_args()
    recipes = {name: more for name, more in RECIPES.items() if _named(name, chosen.recipes)}
    kinds = [kind for kind in KINDS if _named(kind.__name__, chosen.kinds)]
    with tempfile.TemporaryDirectory(prefix="farthing-faults-") as folder:
        campaign = Campaign(Path(folder), recipes, kinds, random.Random(chosen.seed))
        campaign.run(faults=chosen.faults, seconds=chosen.seconds)
        table = campaign.table()
        print(table)
        if chosen.write:
            from reliability import write  # benchmarks/reliability.py

            write("faults", table)
        sys.exit(bool(campaign.complaints(whole=not (chosen.recipes or chosen.kinds))))


def _named(name: str, words: str) -> bool:
    return not words or any(word.strip() in name for word in words.split(","))


class Campaign:
    """Trials until there have been enough."""

    def __init__(
        self, folder: Path, recipes: dict[str, list[str]], kinds: list[Callable[[Trial], None]], draw: random.Random
    ) -> None:
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        self.phases: Counter[str] = Counter()
        self.tried: Counter[str] = Counter()
        self.trouble: list[str] = []
        self.seconds = 0.0
        self._folder, self._kinds, self._draw = folder, kinds, draw
        self._made: dict[str, tuple[Recipe, dict[str, Any], int, int]] = {}
        self._prepare(recipes)

    def _prepare(self, recipes: dict[str, list[str]]) -> None:
        """The text, and three undisturbed runs of each recipe, which must be equal."""
        os.environ["FARTHING_CACHE"] = str(self._folder / "cache")
        write_story(self._folder)
        os.chdir(self._folder)
        assemble.CALIBRATION_SECONDS = 0.0
        for name, more in recipes.items():
            made = config.load(Recipe, None, [*BASE, *OFTEN, *more])
            ends, operations, size = [], 0, 0
            for number in range(3):
                path = self._folder / "whole" / f"{name}-{number}"
                report = self._folder / "whole.txt"
                done = wait(spawn(lambda path=path, made=made: new_run(path, made), report), report)
                assert done.code == 0, (name, done)
                ends.append(final_state(RunDir(path)))
                operations, size = done.count, RunDir(path).events.stat().st_size
            if not ends[0] == ends[1] == ends[2]:
                self.trouble.append(f"{name}: three undisturbed runs differ: this machine is not deterministic")
            self._made[name] = (made, ends[0], operations, size)

    def run(self, *, faults: int, seconds: float) -> None:
        """Trials of all kinds and recipes in turn."""
        start = time.monotonic()
        number = 0
        while sum(tally.faults for tally in self.tallies.values()) < faults and time.monotonic() - start < seconds:
            names = list(self._made)
            self._trial(
                names[(number // len(self._kinds) + number) % len(names)], self._kinds[number % len(self._kinds)]
            )
            number += 1
            self.seconds = time.monotonic() - start

    def _trial(self, name: str, kind: Callable[[Trial], None]) -> None:
        made, whole, operations, size = self._made[name]
        folder = self._folder / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        seed = self._draw.getrandbits(32)
        trial = Trial(name, made, folder, random.Random(seed), operations, size)
        kind(trial)
        tally = self.tallies[(kind.__doc__ or kind.__name__).partition("\n")[0]]
        if not trial.faults:
            return
        tally.trials += 1
        tally.faults += trial.faults
        self.phases.update(trial.phases)
        self.tried[name] += 1
        reached = _newest_whole(trial.run)
        resumed = self._resume(trial)
        exact = resumed and final_state(trial.run) == whole
        lost = resumed and bool(reached) and _resumed_from(trial.run) < reached
        tally.resumed += resumed
        tally.exact += exact
        tally.lost += lost
        if not (resumed and exact) or lost:
            tally.wrong.append(f"{name}, seed {seed}: codes {trial.codes}, phases {trial.phases}")

    @staticmethod
    def _resume(trial: Trial) -> bool:
        """Nobody's help but `resume`, twice at most: a run that has been resumed has to end."""
        for _ in range(2):
            if trial.run.result.is_file():
                return True
            trial.ended(trial.begin())
        return trial.run.result.is_file()

    def complaints(self, *, whole: bool = True) -> list[str]:
        """Why the campaign has failed, if it has."""
        found = list(self.trouble)
        for kind, tally in self.tallies.items():
            found += [f"{kind}: {wrong}" for wrong in tally.wrong]
        if whole:
            found += [
                f"only {self.phases[phase]} faults while {phase}"
                for phase in PHASES_TO_HIT
                if self.phases[phase] < FEWEST_IN_A_PHASE
            ]
        return found

    def table(self) -> str:
        """Markdown."""
        rows = [
            "| fault | runs | faults | resumed | bit for bit | behind the last checkpoint |",
            "|---|--:|--:|--:|--:|--:|",
        ]
        total = Tally()
        for kind, tally in self.tallies.items():
            rows.append(_row(kind, tally))
            for name in ("trials", "faults", "resumed", "exact", "lost"):
                setattr(total, name, getattr(total, name) + getattr(tally, name))
        rows.append(_row("**all**", total))
        phases = ", ".join(f"{phase} {count}" for phase, count in self.phases.most_common())
        tried = ", ".join(f"{name} {count}" for name, count in self.tried.items())
        # The rule of three: no failure in n independent trials bounds the rate by 3/n (95 %).
        bound = f"{1 - 0.05 ** (1 / total.trials):.2%}" if total.trials and total.exact == total.trials else "none"
        rows += ["", f"Where they struck: {phases}.", f"Runs of each recipe: {tried}.",
                 f"Upper bound of the rate of failure among faults so drawn, at 95 %: {bound}.",
                 f"{self.seconds:.0f} seconds."]  # fmt: skip
        if complaints := self.complaints():
            rows += ["", *(f"FAILED: {line}" for line in complaints)]
        return "\n".join(rows)


def _row(kind: str, tally: Tally) -> str:
    return f"| {kind} | {tally.trials} | {tally.faults} | {tally.resumed} | {tally.exact} | {tally.lost} |"


def _newest_whole(run: RunDir) -> int:
    """The step of the newest checkpoint that is whole, 0 if there is none."""
    from farthing.training import checkpoint as checkpoints

    for step in reversed(run.checkpoint_steps()):
        try:
            checkpoints.verify(run.checkpoint(step))
        except checkpoints.DamagedCheckpoint:
            continue
        return step
    return 0


def _resumed_from(run: RunDir) -> int:
    """The step that the last sitting went on from; a run that was already finished lost nothing."""
    told = [json.loads(line) for line in run.events.read_text("utf-8").splitlines()]
    found = [event["step"] for event in told if event["kind"] == "resumed"]
    return int(found[-1]) if found else sys.maxsize


if __name__ == "__main__":
    main()
