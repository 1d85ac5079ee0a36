"""One sitting of a run: from recipe to folder, through the loop, to the result; and the same again on resume."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from farthing import assemble, config
from farthing.data.prepare import Prepared
from farthing.data.store import Report
from farthing.errors import (
    CheckpointError,
    DataError,
    FarthingError,
    ResourceError,
    UserError,
    first_line,
)
from farthing.evals.tasks import Loaded
from farthing.evals.tasks.action import load_asked, task_actions
from farthing.events import (
    Emit,
    EventLog,
    Finished,
    Notice,
    Ready,
    Resumed,
    Sampled,
    Started,
    Step,
    Stopped,
    TaskScored,
    read_events,
)
from farthing.planning import Plan
from farthing.recipe import Recipe
from farthing.rundir import RESULT_VERSION, RunDir, read_receipt, read_result
from farthing.runtime.device import Machine, configure, this_machine
from farthing.runtime.disk import SavingRate, saving_rate
from farthing.runtime.seed import compare_fingerprints
from farthing.storage import cache_folder, read_json, write_json, write_text
from farthing.training import checkpoint as checkpoints
from farthing.training.interruption import Interruption
from farthing.training.loop import Trainer
from farthing.training.meter import Meter, StartUp


@dataclass(frozen=True)
class Watcher:
    """Whoever watches a run from outside; every part may do nothing.

    Args:
        reading: progress of preparing the text: stage, done, total.
        planned: called with the run's name, recipe and plan before the first step; returns what follows the events.
    """

    reading: Report = lambda stage, done, total: None
    planned: Callable[[str, Recipe, Plan], Emit | None] = lambda name, recipe, plan: None


def new_run(
    recipe: Recipe,
    path: Path,
    *,
    device: str = "auto",
    deadline: float | None = None,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Train a recipe in a new run folder, to the end; returns result.json's content.

    Raises:
        FarthingError: see errors.py; with UserError nothing has been written.
    """
    startup, watcher = StartUp(), watcher or Watcher()
    check_writable(path.parent)
    assemble.check_mirrors(recipe)
    machine = prepare_machine(recipe, device)
    directory = Path.cwd()
    tasks = load_asked(recipe.evaluate, directory=directory)
    with startup.stage("text"):
        text = assemble.read_text(recipe, directory=directory, cache=cache_folder(), report=watcher.reading)
    with startup.stage("plan"):
        free, saving = disk_free(path), disk_speed(recipe, path)
        plan = assemble.plan_run(
            recipe, machine, text, disk_free=free, saving=saving, tasks=tasks, report=watcher.reading
        )
    if plan.trial is not None and not plan.trial.remembered:
        startup.part("trial", plan.trial.seconds, of="plan")
    if plan.refusals:
        raise UserError(f"the plan is refused: {'; '.join(plan.refusals)}")
    run = RunDir.create(
        path,
        recipe=config.to_toml(recipe),
        tokenizer=text.tokenizer.to_json(),
        plan=plan.as_dict(),
        receipt=assemble.receipt(recipe, machine, text, directory=directory),
    )
    with run.locked():
        log = EventLog(run.events)
        meter = Meter(already=startup.seconds, price_per_hour=recipe.budget.price_per_hour)
        log.emit(_started(run, recipe, plan))
        return _sit(run, recipe, plan, text, machine, log, meter, startup, deadline, watcher, tasks, snapshot=None)


def resume(
    run: RunDir, *, device: str = "auto", deadline: float | None = None, watcher: Watcher | None = None
) -> dict[str, Any]:
    """Continue a run from its newest valid checkpoint, or from its start if it has none; returns the result.

    A finished run is left as it is.

    Raises:
        DataError: the text or the tokenizer is no longer what the run was started on.
        CheckpointError: checkpoints exist and none is valid.
        FarthingError: as for a new run.
    """
    startup = StartUp()
    watcher = watcher or Watcher()
    with run.locked():
        if run.result.is_file():
            return dict(read_result(run))
        run.sweep()
        recipe = config.load(Recipe, str(run.recipe))
        with startup.stage("plan"):
            plan, receipt = read_plan(run), read_receipt(run)
        machine = prepare_machine(recipe, device, threads=plan.settings.threads)
        if config.fingerprint(recipe) != receipt["recipe"]:
            raise UserError(f"{run.recipe}: has been changed since the run began; put it back, or start a new run")
        tasks = load_asked(recipe.evaluate, directory=Path(receipt["directory"]))
        with startup.stage("text"):
            text = _same_text(run, recipe, receipt, watcher.reading)
        damages: list[str] = []
        snapshot = checkpoints.load_newest(run, assemble.identity(recipe, text), damages.append)
        log = EventLog(run.events)
        found, earlier, wall_earlier = None, 0.0, 0.0
        if snapshot is None:
            # Nothing was saved, so nothing that was told has happened.
            log.cut_back(0)
            log.emit(_started(run, recipe, plan))
        else:
            found, _ = snapshot
            log.cut_back(found.state["events_bytes"])
            for damage in damages:
                log.emit(Notice(code="damaged_checkpoint", message=damage, step=found.state["step"]))
            earlier, wall_earlier = found.state["spent"]["seconds"], found.state["wall_seconds"]
        meter = Meter(
            seconds=earlier,
            wall_seconds=wall_earlier,
            already=startup.seconds,
            price_per_hour=recipe.budget.price_per_hour,
        )
        return _sit(run, recipe, plan, text, machine, log, meter, startup, deadline, watcher, tasks, snapshot=found)


def _started(run: RunDir, recipe: Recipe, plan: Plan) -> Started:
    return Started(run=run.name, recipe=config.fingerprint(recipe), parameters=plan.parameters, steps=plan.steps or 0)


def _sit(
    run: RunDir,
    recipe: Recipe,
    plan: Plan,
    text: Prepared,
    machine: Machine,
    log: EventLog,
    meter: Meter,
    startup: StartUp,
    deadline: float | None,
    watcher: Watcher,
    tasks: Sequence[Loaded],
    *,
    snapshot: checkpoints.Snapshot | None,
) -> dict[str, Any]:
    with ExitStack() as stack:
        stack.callback(log.close)
        follower = watcher.planned(run.name, recipe, plan)
        if follower is not None:
            log.follow(follower)
            stack.callback(getattr(follower, "close", lambda: None))
        for mirror in assemble.build_mirrors(recipe, run, log.emit):
            log.follow(mirror)
            stack.callback(mirror.close)
        interruption = stack.enter_context(Interruption(deadline))
        if snapshot is None:
            for warning in plan.warnings:
                log.emit(Notice(code="data_warning", message=warning))
            for fallback in plan.fallbacks:
                log.emit(fallback)
        with startup.stage("build"):
            trainer = _build(run, recipe, plan, text, machine, tasks, log, meter, interruption, snapshot)
        if snapshot is not None:
            differences = compare_fingerprints(snapshot.state["numeric"], trainer.course.numeric)
            step = trainer.state.step
            log.emit(
                Resumed(
                    step=step,
                    checkpoint=run.checkpoint(step).name,
                    exact=not differences,
                    why_inexact="; ".join(differences),
                )
            )
        with startup.stage("compile"):
            assemble.compile_ahead(trainer, plan, log.emit)
        log.emit(startup.ready())
        try:
            trainer.train()
        except FarthingError:
            raise
        except BaseException as error:
            log.emit(
                Stopped(
                    step=trainer.state.step,
                    reason="error",
                    message=f"{type(error).__name__}: {error}",
                )
            )
            raise
        return _conclude(run, recipe, plan, text, log, trainer)


def _build(
    run: RunDir,
    recipe: Recipe,
    plan: Plan,
    text: Prepared,
    machine: Machine,
    tasks: Sequence[Loaded],
    log: EventLog,
    meter: Meter,
    interruption: Interruption,
    snapshot: checkpoints.Snapshot | None,
) -> Trainer:
    assert plan.evaluate_every is not None and plan.steps is not None
    asked = task_actions(
        recipe.evaluate,
        tasks,
        every=plan.evaluate_every,
        steps=plan.steps,
        tokenizer=text.tokenizer,
        train_precision=plan.settings.precision,
        device=machine.torch_device,
    )
    fresh = snapshot is None
    trainer = assemble.build_trainer(
        run, recipe, plan, text, machine, log=log, meter=meter, interruption=interruption, asked=asked, fresh=fresh
    )
    if snapshot is not None:
        trainer.restore(snapshot)
    return trainer


def _conclude(
    run: RunDir, recipe: Recipe, plan: Plan, text: Prepared, log: EventLog, trainer: Trainer
) -> dict[str, Any]:
    state = trainer.state
    told = list(read_events(run.events, on_bad=log.tell_bad))
    samples = _last_samples(told)
    compared = assemble.compare_with(text, text.validation) if recipe.evaluate.references else None
    spent = {**state.spent.as_dict(), "money": trainer.meter.money}
    wall = trainer.meter.wall_seconds
    result = {
        "version": RESULT_VERSION,
        "run": str(run.path),
        "status": "finished",
        "validation": state.validation,
        "best": None
        if state.best_step is None
        else {"step": state.best_step, "bits_per_byte": state.best_bits_per_byte},
        "references": compared,
        "tasks": _last_tasks(told),
        "spent": spent,
        "startup": _startup(told),
        "wall_seconds": wall,
        "parameters": plan.parameters,
        "samples": [{"prompt": prompt, "text": written} for prompt, written in samples],
    }
    log.emit(
        Finished(
            status="finished",
            spent=spent,
            validation=state.validation,
            wall_seconds=wall,
        )
    )
    try:
        write_text(run.samples, "\n\n".join(prompt + written for prompt, written in samples) + "\n")
        write_json(run.result, result)
    except OSError as error:
        raise ResourceError(
            f"{run.path}: the result could not be written: {error.strerror}; free some space, then: "
            f"farthing resume {shlex.quote(str(run.path))}"
        ) from None
    return result


def _last_samples(told: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The samples of the last sitting's end, from the events: they may have been written before a crash."""
    found = [event for event in told if event["kind"] == Sampled.kind]
    last = max((event["step"] for event in found), default=None)
    return [(event["prompt"], event["text"]) for event in found if event["step"] == last]


def _last_tasks(told: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the tasks came to at the end, with all their questions, in the recipe's order."""
    found = [event for event in told if event["kind"] == TaskScored.kind]
    last = max((event["step"] for event in found), default=None)
    return [event["result"] for event in found if event["step"] == last]


def _startup(told: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of start-up over all sittings, stage by stage, and of the first step, which is part of training."""
    found = [event for event in told if event["kind"] == Ready.kind]
    names = [field.name for field in fields(Ready)]
    total = {name: round(sum(event[name] for event in found), 3) for name in names}
    first = next((event["spent"]["seconds"] for event in told if event["kind"] == Step.kind), 0.0)
    return {**total, "first_step": round(first, 3)}


def _same_text(run: RunDir, recipe: Recipe, receipt: Mapping[str, Any], report: Report) -> Prepared:
    """The run's text again, proven to be the same."""
    directory = Path(receipt["directory"])
    try:
        text = assemble.read_text(recipe, directory=directory, cache=cache_folder(), report=report)
    except UserError as error:
        raise DataError(f"{run.path}: its text cannot be read any more: {error}") from None
    for name, split in (("train", text.train), ("validation", text.validation)):
        was = receipt["data"]["parts"][name]["fingerprint"]
        if split.fingerprint != was:
            raise DataError(
                f"{run.path}: the {name} text has changed since the run began ({split.fingerprint[:12]}, was {was[:12]}); "
                "put the old files back, or start a new run"
            )
    if text.tokenizer.fingerprint != receipt["data"]["tokenizer"]["fingerprint"]:
        raise DataError(f"{run.path}: the tokenizer has changed since the run began; start a new run")
    return text


def prepare_machine(recipe: Recipe, device: str, *, threads: int | None = None) -> Machine:
    """Set torch up before anything is computed, and describe the machine."""
    machine = this_machine(device)
    configure(machine, threads=recipe.train.threads if threads is None else threads)
    return machine


def read_plan(run: RunDir) -> Plan:
    """The plan that a run was started with.

    Raises:
        CheckpointError: plan.json is missing or damaged.
    """
    try:
        return Plan.of(read_json(run.plan))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run.plan}: cannot be read: {first_line(error)}") from None


def existing(path: Path) -> Path:
    """The nearest folder above a path that exists."""
    path = path.absolute()
    while not _is_folder(path):
        path = path.parent
    return path


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except PermissionError:
        return False


def disk_free(path: Path) -> int:
    """Bytes free where `path` is or will be."""
    return shutil.disk_usage(existing(path)).free


def disk_speed(recipe: Recipe, path: Path) -> SavingRate | None:
    """How fast checkpoints can be saved where `path` is or will be, measured if the plan depends on it."""
    return saving_rate(existing(path)) if recipe.checkpoint.every == "auto" else None


def check_writable(folder: Path) -> None:
    """Refuse early what would fail late.

    Raises:
        UserError: nothing can be written in this folder, or a file stands where it should be.
    """
    nearest = existing(folder)
    for part in (folder, *folder.parents):
        if os.path.lexists(part) and not _is_folder(part):
            raise UserError(f"{part}: is no folder, so no runs can go there; choose another --runs folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{nearest}: cannot be written to, so no runs can go there; choose another --runs folder")
