"""A tiny text and recipe, whole runs of it, and what must come out the same however a run was disturbed."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from farthing import assemble, config, session
from farthing.errors import FarthingError, Preempted
from farthing.events import Event, Step, read_events
from farthing.planning import Plan
from farthing.recipe import Recipe
from farthing.rundir import RunDir

BASE = [
    "data.kind=text",
    "data.path=story.txt",
    "data.documents=line",
    "tokenizer.kind=byte",
    "model.n_layer=2",
    "model.n_head=2",
    "model.d_model=16",
    "model.context_length=16",
    "model.dropout=0.2",
    "train.batch_size=6",
    "train.micro_batch=4",
    "train.threads=1",
    "train.precision=fp32",
    "train.compile=off",
    "train.order=random_offset",
    "train.log_every=1",
    "schedule.warmup=0.25",
    "budget.steps=14",
    "evaluate.every=5",
    "evaluate.references=false",
    "checkpoint.every=4",
    "sample.tokens=12",
]
QUICK = [*BASE, "optimizer.kind=adamw", "model.n_layer=1", "sample.tokens=4", "budget.steps=10"]


def tell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the text to a folder and go there; how long a step takes here is of no interest."""
    write_story(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(assemble, "CALIBRATION_SECONDS", 0.0)
    return folder


def write_story(folder: Path) -> None:
    """The text: 14 steps of 6 windows are a little more than two epochs, so that stops fall within and at their ends."""
    lines = [f"the {animal} number {n} went to the {place}" for n in range(4) for animal in ("cat", "dog", "owl")
             for place in ("hill", "sea")]  # fmt: skip
    (folder / "story.txt").write_text("\n".join(lines) + "\n", "utf-8")


def recipe(overrides: Sequence[str] = (), base: Sequence[str] = QUICK) -> Recipe:
    return config.load(Recipe, None, [*base, *overrides])


def new_run(path: Path, made: Recipe, watcher: session.Watcher | None = None, **more: Any) -> RunDir:
    session.new_run(made, path, device="cpu", watcher=watcher, **more)
    return RunDir(path)


def resume(run: RunDir, watcher: session.Watcher | None = None, **more: Any) -> dict[str, Any]:
    return session.resume(run, device="cpu", watcher=watcher, **more)


def watching(follower: Callable[[Event], None]) -> session.Watcher:
    def planned(name: str, made: Recipe, plan: Plan) -> Callable[[Event], None]:
        return follower

    return session.Watcher(planned=planned)


def signal_at(step: int, number: int = signal.SIGTERM) -> session.Watcher:
    """Sends this process a real signal when a step is reported."""

    def follower(event: Event) -> None:
        if isinstance(event, Step) and event.step == step:
            os.kill(os.getpid(), number)

    return watching(follower)


def run_through(made: Recipe, path: Path, stops: list[int]) -> RunDir:
    run = RunDir(path)
    for sitting, stop in enumerate([*stops, 0]):
        watcher = signal_at(stop)
        try:
            if sitting == 0:
                new_run(path, made, watcher)
            else:
                resume(run, watcher)
        except Preempted:
            assert stop, "stopped without being asked"
        else:
            assert not stop, f"was asked to stop at step {stop} and did not"
    return run


def tensors_of(checkpoint: Path) -> dict[str, str]:
    return {
        f"{file.name}:{name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for file in sorted(checkpoint.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def last_checkpoint(run: RunDir) -> Path:
    return run.checkpoint(run.checkpoint_steps()[-1])


def final_state(run: RunDir) -> dict[str, Any]:
    """Everything that must not depend on interruptions."""
    steps = [(e["step"], e["loss"], e["lr"], e["gradient_norm"], e["spent"]["tokens"]) for e in events(run, "step")]
    scores = [(e["step"], e["validation"], e["best"]) for e in events(run, "evaluation")]
    ends = [e["kind"] for e in read_events(run.events) if e["kind"] in ("started", "finished")]
    return {
        "tensors": tensors_of(last_checkpoint(run)),
        "steps": steps,
        "scores": scores,
        "samples": run.samples.read_text("utf-8"),
        "ends": ends,
    }


def events(run: RunDir, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run.events) if event["kind"] == kind]


def notices(run: RunDir) -> list[str]:
    return [event["code"] for event in events(run, "notice")]


@dataclass(frozen=True)
class Ended:
    """How a child process ended: its exit code, or minus the signal that killed it, and what it had to say."""

    code: int
    message: str


def in_child(work: Callable[[], object], folder: Path, *, crashpoint: str = "") -> Ended:
    """Do some work in a fork of this process, which has everything imported already."""
    report = folder / f"child-{os.urandom(4).hex()}.txt"
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside other threads; the child never touches theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(120)
            if crashpoint:
                os.environ["FARTHING_CRASHPOINT"] = crashpoint
            work()
            code = 0
        except FarthingError as error:
            code = error.exit_code
            report.write_text(str(error), "utf-8")
        except BaseException:
            report.write_text(traceback.format_exc(), "utf-8")
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    message = report.read_text("utf-8") if report.exists() else ""
    report.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(status), message)
