"""The kinds of fault: what is done to a run under way, by the ids of the fault table (F01 and on)."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from farthing import assemble, errors
from farthing.recipe import Recipe
from farthing.rundir import REPLACED, RunDir
from farthing.training import checkpoint as checkpoints
from farthing.training import interruption
from faults.injected import DOING, LONGEST_SECONDS, Child, Injection, has_ended, spawn, until, wait
from training.story import events, new_run, notices, resume

AT_REST = "at rest"
"""the phase of what befalls a run that no process is at work on"""
ASKED = (signal.SIGTERM, signal.SIGINT)
LIVED_THROUGH = (signal.SIGUSR1, signal.SIGHUP, signal.SIGSTOP)
DEADLINE_SAFETY = 0.05
"""seconds, where people get ten"""


SECONDS_OF = {"scoring": 0.004, "logging": 0.0002}
"""about how long a phase lasts, where that is not long"""


@dataclass
class Trial:
    """One run under fire."""

    recipe: str
    made: Recipe
    folder: Path
    draw: random.Random
    operations: Counter[str]
    """file operations of an undisturbed run, phase by phase"""
    bytes: int
    """of its events"""
    rarest: list[str]
    """phases, those first that have been hit least"""
    phases: list[str] = field(default_factory=list)
    """what the faults hit, one for each fault"""
    codes: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """promises that were broken"""
    excused: str = ""
    """why the end may differ in its bits, if it may"""
    lines_lost: int = 0
    """events that a disk without room may have cost"""
    may_die: bool = False
    """whether an exception that nobody expects is what was put in"""
    may_lose: bool = False
    """whether somebody else took checkpoints away"""
    lost: int = 0
    """times that a sitting left less than it found"""
    reached: int = 0
    """the newest checkpoint that was whole when the last sitting began"""
    _aim: str = ""
    """the phase that the fault under way is meant for"""
    _injected: str = ""
    """and what it is"""
    _struck: list[tuple[int, str]] = field(default_factory=list)

    @property
    def run(self) -> RunDir:
        return RunDir(self.folder / "runs" / "trial")

    @property
    def report(self) -> Path:
        return self.folder / "report.txt"

    @property
    def all_operations(self) -> int:
        return self.operations.total()

    def sit(self, deadline: float | None = None) -> Callable[[], object]:
        """What a person does: resume, or start where there is no run yet."""
        if self.run.recipe.is_file():
            return lambda: resume(self.run, deadline=deadline)
        return lambda: new_run(self.run.path, self.made, deadline=deadline)

    def begin(
        self, injection: Injection | None = None, *, limit: int = 0, work: Callable[[], object] | None = None
    ) -> int:
        """Start a sitting; returns its process id."""
        self.reached = newest_whole(self.run)
        self._aim, self._injected = (injection.phase, injection.what) if injection else ("", "")
        return spawn(work or self.sit(), self.report, injection=injection, limit=limit)

    def after(self, child: int, low: float, high: float = 1.0) -> bool:
        """Wait for a share of the undisturbed run's events, drawn between these; False if the child ended before."""
        growth = self.draw.uniform(low, high) * self.bytes
        return until(self.run.path, child, max(1, int(growth)))

    def strike(self, child: int, number: int) -> bool:
        """Send a signal to a child that is still at work."""
        if has_ended(child):
            return False
        self._struck.append((number, DOING.now()))
        os.kill(child, number)
        return True

    def ended(self, child: int) -> Child:
        """Wait for a child; what it noted and what struck it from outside counts, if that is what ended it."""
        done = wait(child, self.report)
        self.codes.append(done.code)
        self.phases += done.phases
        for number, phase in self._struck:
            asked = number in ASKED and done.code in (errors.Preempted.exit_code, 130)
            if asked or number in LIVED_THROUGH or done.code == -number:
                self.phases.append(phase)
        self._struck.clear()
        if done.code == -signal.SIGALRM and self._injected != "kill_within":
            self.wrong.append(f"hung for {LONGEST_SECONDS} seconds while {done.last[0]}")
        elif done.code == -signal.SIGALRM:
            # Both threads were hit: what was aimed at counts, else the save.
            self.phases.append(self._aim if self._aim in done.last else done.last[1])
        if done.code == 1 and not self.may_die:
            self.wrong.append(f"an error that has no class: {done.message[:200]}")
        if not self.may_lose:
            self.lost += newest_whole(self.run) < max(self.reached, _promised(self.run))
        return done

    def expect(self, child: int, code: int, what: str) -> None:
        """A fault that the next sitting must answer with this exit code, changing nothing."""
        done = wait(child, self.report)
        self.phases.append(AT_REST)
        if done.code != code:
            self.wrong.append(f"{what}: code {done.code}, not {code}: {done.message[:200]}")

    def stopped(self, low: float = 0.2) -> bool:
        """A run that was killed in mid-way; False if it came to its end instead."""
        child = self.begin()
        if self.after(child, low, 0.9):
            self.strike(child, signal.SIGKILL)
        self.ended(child)
        return self.run.recipe.is_file() and not self.run.result.is_file()


def killed_at_an_operation(trial: Trial) -> None:
    """F01, F02: kill -9 before or after any one file operation"""
    what = trial.draw.choice(["kill_before", "kill_after"])
    trial.ended(trial.begin(Injection(what, trial.draw.randint(1, trial.all_operations))))


def killed_in_a_phase(trial: Trial) -> None:
    """F01, F04, F05: kill -9 in a phase that was hit seldom so far"""
    phase = trial.rarest[trial.draw.choice([0, 0, 0, 1])]
    if phase == "resuming" and not trial.stopped():
        return
    if trial.operations[phase] and trial.draw.random() < 0.7:
        what = trial.draw.choice(["kill_before", "kill_after"])
        injection = Injection(what, trial.draw.randint(1, trial.operations[phase]), phase=phase)
    else:
        amount = trial.draw.random() * SECONDS_OF.get(phase, 0.02)
        injection = Injection("kill_within", trial.draw.randint(1, 2), phase=phase, amount=amount)
        injection = replace(injection, at=1) if phase == "resuming" else injection
    trial.ended(trial.begin(injection))


def killed_in_a_save(trial: Trial) -> None:
    """F02, F42: kill -9 at a sync, a rename or a deletion of a save, beside training"""
    operation = trial.draw.choice(["fsync", "rename", "replace", "rmdir", "unlink"])
    trial.ended(trial.begin(Injection("kill_before", trial.draw.randint(1, 10), operation=operation)))


def killed_within_a_save(trial: Trial) -> None:
    """F02: kill -9 some milliseconds after a save began"""
    saves = trial.draw.randint(1, 8)
    injection = Injection("kill_within", saves, phase="saving", amount=trial.draw.random() * 0.03)
    trial.ended(trial.begin(injection))


def killed_at_a_moment(trial: Trial) -> None:
    """F01: kill -9 at a moment of the clock, after some progress"""
    child = trial.begin()
    if trial.after(child, 0):
        time.sleep(trial.draw.random() * 0.02)
        trial.strike(child, signal.SIGKILL)
    trial.ended(child)


def killed_again_and_again(trial: Trial) -> None:
    """F03: kill -9 up to five times in one run, the last ones while resuming"""
    for _ in range(trial.draw.randint(2, 5)):
        at = trial.draw.randint(1, max(2, trial.all_operations // 2))
        if trial.ended(trial.begin(Injection(at=at))).code == 0:
            return
        left = [path.name for path in trial.run.checkpoints.glob(".tmp-*")]
        if len(left) > 1:
            trial.wrong.append(f"temporary folders pile up: {left}")


def killed_while_resuming(trial: Trial) -> None:
    """F04: kill -9 in mid-run, and once more in the first operations of the resumed sitting"""
    if trial.stopped():
        trial.ended(trial.begin(Injection(at=trial.draw.randint(1, 40))))


def asked_to_stop(trial: Trial) -> None:
    """F06: SIGTERM, or one SIGINT, at any moment: saved at once"""
    child = trial.begin()
    if trial.after(child, 0):
        trial.strike(child, trial.draw.choice(ASKED))
    _nothing_lost(trial, trial.ended(child))


def asked_and_killed(trial: Trial) -> None:
    """F07: SIGTERM, and kill -9 before it could end"""
    child = trial.begin()
    if trial.after(child, 0):
        trial.strike(child, signal.SIGTERM)
        time.sleep(trial.draw.random() * 0.03)
        trial.strike(child, signal.SIGKILL)
    trial.ended(child)


def interrupted_twice(trial: Trial) -> None:
    """F08: SIGINT twice: gone at once, the last checkpoint whole"""
    child = trial.begin()
    if trial.after(child, 0):
        trial.strike(child, signal.SIGINT)
        time.sleep(0.002)
        trial.strike(child, signal.SIGINT)
    trial.ended(child)


def saved_on_request(trial: Trial) -> None:
    """F09: SIGUSR1 saves and goes on, SIGHUP is nothing; then kill -9"""
    child = trial.begin()
    # From the first event on there are handlers for them; before, they end a process as they end any.
    struck = trial.after(child, 0.1, 0.5) and trial.strike(child, trial.draw.choice([signal.SIGUSR1, signal.SIGHUP]))
    if struck and trial.after(child, 0, 0.3):
        trial.strike(child, signal.SIGKILL)
    trial.ended(child)


def before_a_deadline(trial: Trial) -> None:
    """F10: a deadline: saved and gone before it"""
    in_seconds = trial.draw.uniform(0.1, 0.6)
    at = time.time() + in_seconds
    safety, interruption.SAFETY_SECONDS = interruption.SAFETY_SECONDS, DEADLINE_SAFETY
    child = trial.begin(work=trial.sit(deadline=at))
    interruption.SAFETY_SECONDS = safety
    done = trial.ended(child)
    if done.code == errors.Preempted.exit_code:
        trial.phases.append("training")
        _nothing_lost(trial, done)


def stopped_and_continued(trial: Trial) -> None:
    """F11: SIGSTOP, a while, SIGCONT; then kill -9"""
    child = trial.begin()
    if trial.after(child, 0, 0.5) and trial.strike(child, signal.SIGSTOP):
        time.sleep(0.05)
        os.kill(child, signal.SIGCONT)
        if trial.after(child, 0, 0.3):
            trial.strike(child, signal.SIGKILL)
    trial.ended(child)


def memory_runs_out(trial: Trial) -> None:
    """F12: no more memory from some step on (RLIMIT_AS)"""
    at, room = trial.draw.randint(1, 8), trial.draw.choice([0, 1, 3, 6, 10, 20]) << 16
    done = trial.ended(trial.begin(Injection("memory", at, phase="training", amount=room)))
    codes = set(notices(trial.run)) if trial.run.events.exists() else set()
    if done.code or codes & {"out_of_memory", "checkpoint_failed"}:
        trial.phases.append(done.last[0])
    if "out_of_memory" in codes:
        trial.excused = "other micro-batch"


def crashed(trial: Trial) -> None:
    """F13: a segmentation fault, an abort or a bus error"""
    child = trial.begin()
    if trial.after(child, 0):
        trial.strike(child, trial.draw.choice([signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS]))
    trial.ended(child)


def failed_in_our_own_code(trial: Trial) -> None:
    """F13, F42: an exception that nobody expects, in a save, a score or a step"""
    phase = trial.draw.choice(["saving", "scoring", "training", "pruning"])
    trial.may_die = True
    done = trial.ended(trial.begin(Injection("raise", trial.draw.randint(1, 4), phase=phase)))
    if done.phases and done.code != 1:
        trial.wrong.append(f"an exception in {phase} was swallowed: code {done.code}")
    trial.may_die = False


def checkpoints_vanish(trial: Trial) -> None:
    """F19: the folder of checkpoints goes away under a run; then kill -9, or not"""
    child = trial.begin()
    if trial.after(child, 0.3, 0.8) and trial.run.checkpoints.is_dir() and not has_ended(child):
        os.rename(trial.run.checkpoints, trial.folder / "gone")
        trial.may_lose = True
        trial.phases.append(DOING.now())
        if trial.draw.random() < 0.5 and trial.after(child, 0, 0.4):
            trial.strike(child, signal.SIGKILL)
    trial.ended(child)


def disk_full(trial: Trial) -> None:
    """F20, F21: files may not grow beyond a limit for one sitting"""
    trial.ended(trial.begin(limit=trial.draw.randint(2_000, 40_000)))


def descriptors_run_out(trial: Trial) -> None:
    """F23: no more open files from some step on (EMFILE)"""
    injection = Injection("descriptors", trial.draw.randint(1, 8), phase="training", amount=trial.draw.randint(0, 2))
    done = trial.ended(trial.begin(injection))
    if done.code or "checkpoint_failed" in notices(trial.run):
        trial.phases.append("saving")


def errors_of_the_disk(trial: Trial) -> None:
    """F25, F28: EIO or ENOSPC from one to three operations in a row; it goes on, or stops and is resumed"""
    operation = trial.draw.choice(["fsync", "write", "rename", "mkdir", "open"])
    error, times = trial.draw.choice(["EIO", "ENOSPC"]), trial.draw.choice([1, 1, 3])
    done = trial.ended(trial.begin(Injection(error, trial.draw.randint(1, 20), operation=operation, times=times)))
    if "logging" in done.phases:
        trial.lines_lost = times


def damaged_at_rest(trial: Trial) -> None:
    """F14 to F18, F47: kill -9, and the newest checkpoint damaged, or all but the oldest"""
    if not trial.stopped(0.5):
        return
    steps = trial.run.checkpoint_steps()
    doomed = steps[1:] if trial.draw.random() < 0.3 else steps[1:][-1:]
    for step in doomed:
        _damage(trial.run.checkpoint(step), trial.run.checkpoint(steps[0]), trial.draw)
    trial.may_lose = bool(doomed)
    trial.phases += [AT_REST] * bool(doomed)


def torn_events(trial: Trial) -> None:
    """F24: kill -9, and the last line of the events torn at some byte, or a piece of a line glued on"""
    if not trial.stopped(0):
        return
    log = trial.run.events
    if not log.exists():
        return
    content, kept = log.read_bytes(), _events_of_newest(trial.run)
    if trial.draw.random() < 0.5 and len(content) > kept:
        log.write_bytes(content[: trial.draw.randint(kept, len(content))])
    else:
        log.write_bytes(content + b'{"kind": "step", "st')
    trial.phases.append(AT_REST)


def text_changed(trial: Trial) -> None:
    """F34: kill -9, and the text changed, cut or removed: code 3; then put back"""
    if not trial.stopped():
        return
    text = Path("story.txt")
    before = text.read_bytes()
    match trial.draw.choice(["cut", "changed", "removed"]):
        case "cut":
            text.write_bytes(before[: len(before) // 2])
        case "changed":
            text.write_bytes(before.replace(b"owl", b"cow", 1))
        case "removed":
            text.unlink()
    trial.expect(trial.begin(), errors.DataError.exit_code, "another text")
    text.write_bytes(before)


def second_trainer(trial: Trial) -> None:
    """F36: another process wants the same run: kept out; the first is killed, and the next gets in at once"""
    child = trial.begin()
    if trial.after(child, 0, 0.5) and trial.run.recipe.is_file():
        report = trial.folder / "second.txt"
        second = os.fork()
        if not second:
            DOING.alone()
            os._exit(_code_of(lambda: resume(trial.run), report))
        _, status = os.waitpid(second, 0)
        if trial.strike(child, signal.SIGKILL):
            code = os.waitstatus_to_exitcode(status)
            if code != errors.RunLockedError.exit_code:
                trial.wrong.append(f"a second process was not kept out: code {code}")
    trial.ended(child)


def clock_moved(trial: Trial) -> None:
    """F37: the clock jumps by a day in one sitting, which is then killed"""
    leap, sit = trial.draw.choice([-86_400.0, 86_400.0]), trial.sit()

    def leaping() -> None:
        genuine = time.time
        time.time = lambda: genuine() + leap  # type: ignore[assignment]
        sit()

    injection = Injection(at=trial.draw.randint(1, trial.all_operations))
    trial.ended(trial.begin(injection, work=leaping))


def recipe_edited(trial: Trial) -> None:
    """F38: kill -9, and the run's recipe edited: code 2; then put back"""
    if not trial.stopped():
        return
    before = trial.run.recipe.read_text("utf-8")
    field, value = trial.draw.choice([("seed = 1337", "seed = 7"), ("dropout = 0.2", "dropout = 0.1")])
    assert field in before
    trial.run.recipe.write_text(before.replace(field, value, 1), "utf-8")
    trial.expect(trial.begin(), errors.UserError.exit_code, "another recipe")
    trial.run.recipe.write_text(before, "utf-8")


def other_threads_asked_for(trial: Trial) -> None:
    """F40: kill -9, and resumed where another number of threads is set: the plan's is taken"""
    if not trial.stopped():
        return

    def elsewhere() -> None:
        os.environ["OMP_NUM_THREADS"] = "2"
        torch.set_num_threads(2)
        resume(trial.run)

    trial.phases.append(AT_REST)
    trial.ended(trial.begin(work=elsewhere))


def another_machine(trial: Trial) -> None:
    """F40: kill -9, and resumed under another torch: goes on, and is marked as not exact"""
    if not trial.stopped():
        return
    if not trial.run.checkpoint_steps():
        return

    def elsewhere() -> None:
        genuine = assemble.numeric_fingerprint
        assemble.numeric_fingerprint = lambda device: {**genuine(device), "torch": "1.0"}
        resume(trial.run)

    trial.phases.append(AT_REST)
    trial.ended(trial.begin(work=elsewhere))
    if any(event["exact"] for event in events(trial.run, "resumed")):
        trial.wrong.append("another torch was not told")


def nowhere_to_print(trial: Trial) -> None:
    """F45: no stdout, no stderr, no home; then kill -9"""
    sit = trial.sit()

    def alone() -> None:
        for name in ("HOME", "XDG_CACHE_HOME", "USER"):
            os.environ.pop(name, None)
        os.close(1)
        os.close(2)
        sit()

    injection = Injection(at=trial.draw.randint(1, trial.all_operations))
    trial.ended(trial.begin(injection, work=alone))


KINDS: list[Callable[[Trial], None]] = [
    killed_at_an_operation, killed_in_a_phase, asked_to_stop, killed_in_a_save, disk_full, killed_at_a_moment,
    damaged_at_rest, killed_in_a_phase, killed_again_and_again, errors_of_the_disk, memory_runs_out, killed_within_a_save,
    crashed, text_changed, killed_in_a_phase, killed_while_resuming, asked_and_killed, before_a_deadline,
    checkpoints_vanish, torn_events, killed_in_a_phase, descriptors_run_out, interrupted_twice, failed_in_our_own_code,
    clock_moved, saved_on_request, stopped_and_continued, killed_in_a_phase, second_trainer, recipe_edited,
    other_threads_asked_for, another_machine, nowhere_to_print,
]  # fmt: skip
"""in turn; those that aim at the phases come often"""
MOVE_THE_CHECKPOINTS = {
    asked_to_stop, asked_and_killed, interrupted_twice, saved_on_request, before_a_deadline, memory_runs_out,
    checkpoints_vanish, disk_full, descriptors_run_out, errors_of_the_disk, damaged_at_rest,
}  # fmt: skip
"""after these the newest checkpoint is of another step than it would have been, so a roll-back leads elsewhere"""


def _nothing_lost(trial: Trial, done: Child) -> None:
    """A run that was asked to stop has saved its last step."""
    if done.code != errors.Preempted.exit_code:
        return
    told = [event["step"] for event in events(trial.run, "step")]
    saved = trial.run.checkpoint_steps()
    if told and (not saved or saved[-1] < told[-1]):
        trial.wrong.append(f"asked to stop after step {told[-1]}, saved were {saved}")


def _code_of(work: Callable[[], object], report: Path) -> int:
    try:
        work()
    except errors.FarthingError as error:
        return error.exit_code
    except BaseException as error:
        report.write_text(repr(error), "utf-8")
        return 1
    return 0


def _damage(checkpoint: Path, other: Path, draw: random.Random) -> None:
    file = draw.choice(sorted(checkpoint.iterdir()))
    content = bytearray(file.read_bytes())
    match draw.choice(["truncate", "flip", "zero", "delete", "empty", "grow", "of another step"]):
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
        case "of another step":
            file.write_bytes((other / file.name).read_bytes())


def _events_of_newest(run: RunDir) -> int:
    """Bytes of events that the newest checkpoint counts on: those were synced before it was written."""
    for step in reversed(run.checkpoint_steps()):
        return int(json.loads((run.checkpoint(step) / "state.json").read_text("utf-8"))["events_bytes"])
    return 0


def newest_whole(run: RunDir) -> int:
    """The step of the newest checkpoint that is whole, 0 if there is none."""
    # Until its successor of the same step has its name, a whole one goes by another, and the next sitting puts it back.
    replaced = [entry.name.removeprefix(REPLACED).split("-")[1] for entry in run.checkpoints.glob(f"{REPLACED}*")]
    for step in reversed(run.checkpoint_steps()):
        with suppress(checkpoints.DamagedCheckpoint):
            checkpoints.verify(run.checkpoint(step))
            return max(step, *map(int, replaced)) if replaced else step
    return max(map(int, replaced), default=0)


def _promised(run: RunDir) -> int:
    """The newest step whose checkpoint the events tell of."""
    return max((event["step"] for event in events(run, "checkpoint")), default=0)
