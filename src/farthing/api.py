"""Farthing from Python: what the command does, as functions that return objects.

import farthing
run = farthing.train("default", {"budget.minutes": 2})
run.validation["bits_per_byte"], run.sample("def "), run.dataframe()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farthing import assemble, config, session
from farthing.data.prepare import prepare_held_out
from farthing.data.split import TokenSplit
from farthing.data.tokenizer import Tokenizer
from farthing.errors import UserError, need
from farthing.evals.samples import continue_text, stream_text
from farthing.events import Evaluated, Step, read_events
from farthing.planning import Plan
from farthing.recipe import Recipe
from farthing.rundir import RunDir, find_run, list_runs, new_run_path, read_result
from farthing.runtime.device import this_machine
from farthing.sinks.console import Console, Outlook
from farthing.sinks.reading import Reading
from farthing.storage import cache_folder
from farthing.training import checkpoint as checkpoints
from farthing.training.interruption import parse_deadline, slurm_deadline

Overrides = Sequence[str] | Mapping[str, Any]


def train(
    recipe: str | Recipe = "default",
    overrides: Overrides = (),
    *,
    name: str | None = None,
    runs: str | Path = "runs",
    device: str = "auto",
    deadline: str | None = None,
    quiet: bool = False,
) -> Run:
    """Train a recipe to the end of its budget.

    Args:
        recipe: a recipe file, a shipped recipe's name, or a Recipe.
        overrides: `{"model.n_layer": 8}` or `["model.n_layer=8"]`.
        name: the run folder's name; by default the recipe's with the first free number.
        runs: the folder of run folders.
        device: auto, cpu, cuda or mps.
        deadline: stop with a checkpoint by then: a duration ("90m") or a time ("2026-11-22T18:00").
        quiet: show nothing on the way.

    Raises:
        farthing.UserError: the request cannot be carried out; nothing has been written.
        farthing.Preempted: a signal or the deadline stopped it; `resume` continues.
    """
    resolved = _recipe(recipe, overrides)
    path = new_run_path(Path(runs), name, _stem(recipe))
    until = _until(deadline)
    with Reading(quiet=quiet) as reading:
        session.new_run(resolved, path, device=device, deadline=until, watcher=_watcher(reading, quiet))
    return Run(RunDir(path))


def resume(
    run: str | Path,
    *,
    runs: str | Path = "runs",
    device: str = "auto",
    deadline: str | None = None,
    quiet: bool = False,
) -> Run:
    """Continue a stopped run from its newest valid checkpoint; a finished one is returned as it is."""
    found = find_run(str(run), Path(runs))
    until = _until(deadline)
    with Reading(quiet=quiet) as reading:
        session.resume(found, device=device, deadline=until, watcher=_watcher(reading, quiet))
    return Run(found)


@dataclass(frozen=True)
class Planned:
    """A plan, and why the text could not be read, if it could not."""

    recipe: Recipe
    plan: Plan
    missing_text: str | None


def plan(
    recipe: str | Recipe = "default",
    overrides: Overrides = (),
    *,
    runs: str | Path = "runs",
    device: str = "auto",
    quiet: bool = True,
) -> Planned:
    """What a recipe comes to on this machine, before anything is spent.

    Without its text there is still a plan, with `missing_text` saying why the text cannot be read.
    """
    resolved = _recipe(recipe, overrides)
    machine = session.prepare_machine(resolved, device)
    missing, text = None, None
    with Reading(quiet=quiet) as reading:
        try:
            text = assemble.read_text(resolved, directory=Path.cwd(), cache=cache_folder(), report=reading)
        except UserError as error:
            missing = str(error)
    try:
        made = assemble.plan_run(resolved, machine, text, disk_free=session.disk_free(Path(runs)))
    except UserError:
        if missing is not None:
            raise UserError(missing) from None
        raise
    return Planned(resolved, made, missing)


def runs(folder: str | Path = "runs") -> list[Run]:
    """All runs in a folder, oldest first."""
    return [Run(run) for run in list_runs(Path(folder))]


def open_run(run: str | Path, *, runs: str | Path = "runs") -> Run:
    """An existing run, by its folder or its name."""
    return Run(find_run(str(run), Path(runs)))


class Run:
    """A run folder, to look at and to use."""

    def __init__(self, folder: RunDir) -> None:
        self._folder = folder

    def __repr__(self) -> str:
        """The folder, its status and, when there is one, its score."""
        bits = self.validation.get("bits_per_byte")
        score = "" if bits is None else f", {bits:.4f} bits per byte"
        return f"Run({str(self.path)!r}, {self.status}{score})"

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._folder.path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self._folder.name

    @property
    def status(self) -> str:
        """finished, running or stopped."""
        return self._folder.status()

    @property
    def recipe(self) -> Recipe:
        """What was asked, resolved."""
        return config.load(Recipe, str(self._folder.recipe))

    @property
    def plan(self) -> Plan:
        """What followed from it on the machine it ran on."""
        return session.read_plan(self._folder)

    @property
    def result(self) -> dict[str, Any]:
        """result.json; empty until the run has finished."""
        return dict(read_result(self._folder))

    @property
    def validation(self) -> dict[str, Any]:
        """The yardsticks of the last evaluation; empty before the first."""
        final = self.result.get("validation")
        if final is not None:
            return dict(final)
        found = [event for event in self.events if event["kind"] == Evaluated.kind]
        return dict(found[-1]["validation"]) if found else {}

    @property
    def spent(self) -> dict[str, float]:
        """Steps, tokens, epochs, FLOPs, seconds and money so far."""
        final = self.result.get("spent")
        if final is not None:
            return dict(final)
        found = [event for event in self.events if event["kind"] == Step.kind]
        return dict(found[-1]["spent"]) if found else {}

    @property
    def events(self) -> list[dict[str, Any]]:
        """Everything that happened, in order (docs/events.md)."""
        return list(read_events(self._folder.events))

    def dataframe(self) -> Any:
        """Steps and evaluations as a pandas DataFrame, a row a step (needs pandas)."""
        pandas = need("pandas", extra="notebook", why="Run.dataframe()")
        rows: dict[int, dict[str, Any]] = {}
        for event in self.events:
            if event["kind"] == Step.kind:
                spent = {f"spent_{key}": value for key, value in event["spent"].items()}
                plain = {key: value for key, value in event.items() if key not in ("kind", "spent")}
                rows.setdefault(event["step"], {}).update({**plain, **spent})
            elif event["kind"] == Evaluated.kind:
                scores = {f"validation_{k}": v for k, v in event["validation"].items() if isinstance(v, float)}
                rows.setdefault(event["step"], {"step": event["step"]}).update(scores)
        return pandas.DataFrame([rows[step] for step in sorted(rows)])

    def sample(self, prompt: str = "", *, checkpoint: str = "last", device: str = "auto", **settings: Any) -> str:
        """Text that the model writes after a prompt.

        Args:
            prompt: where the text starts; empty: at the start of a document.
            checkpoint: last, best or a step.
            device: auto, cpu, cuda or mps.
            settings: tokens, temperature, top_k, top_p and seed; by default the recipe's.
        """
        return "".join(self.stream(prompt, checkpoint=checkpoint, device=device, **settings))

    def stream(
        self, prompt: str = "", *, checkpoint: str = "last", device: str = "auto", **settings: Any
    ) -> Iterator[str]:
        """As `sample`, piece by piece as it is written."""
        recipe = self.recipe
        seed = int(settings.pop("seed", recipe.seed))
        changed = {f"sample.{key}": value for key, value in settings.items() if value is not None}
        section = config.build(Recipe, config.override(recipe.model_dump(exclude_none=True), changed)).sample
        tokenizer = self.tokenizer
        weights, _ = checkpoints.weights(self._folder, checkpoint)
        model = assemble.load_model(recipe, weights, tokenizer.vocab_size, this_machine(device).torch_device)
        return stream_text(tokenizer, continue_text(model, tokenizer, section, prompt=prompt, seed=seed))

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return Tokenizer.from_json(self._folder.tokenizer.read_text("utf-8"))

    def evaluate(
        self,
        data: str | None = None,
        overrides: Overrides = (),
        *,
        split: str = "validation",
        checkpoint: str = "last",
        device: str = "auto",
        quiet: bool = True,
    ) -> dict[str, Any]:
        """Score a text with the trained model; returns the yardsticks.

        Args:
            data: any file, cut into documents as the run's recipe does; None scores one of the run's own parts.
            overrides: of the recipe's [evaluate] only.
            split: validation, test or train, when there is no `data`.
            checkpoint: last, best or a step.
            device: auto, cpu, cuda or mps.
            quiet: show no progress.
        """
        base = self.recipe
        recipe = config.build(Recipe, config.override(base.model_dump(exclude_none=True), overrides))
        strange = [change.path for change in config.diff(base, recipe) if not change.path.startswith("evaluate.")]
        if strange:
            raise UserError(f"{strange[0]}: eval takes only evaluate.* settings; the rest belongs to the trained run")
        machine = session.prepare_machine(recipe, device)
        weights, step = checkpoints.weights(self._folder, checkpoint)
        with Reading(quiet=quiet) as reading:
            text = self._text(data, split, recipe, reading)
        model = assemble.load_model(recipe, weights, self.tokenizer.vocab_size, machine.torch_device)
        precision = self.plan.settings.precision
        found = assemble.score(recipe, model, text, precision=precision, device=machine.torch_device)
        return {**found, "checkpoint": step}

    def _text(self, data: str | None, split: str, recipe: Recipe, report: Any) -> TokenSplit:
        cache = cache_folder()
        if data is not None:
            return prepare_held_out(recipe.data, data, self.tokenizer, directory=Path.cwd(), cache=cache, report=report)
        directory = Path(session.read_receipt(self._folder)["directory"])
        text = assemble.read_text(recipe, directory=directory, cache=cache, report=report)
        parts = {"train": text.train, "validation": text.validation, "test": text.test}
        found = parts.get(split)
        if found is None:
            known = ", ".join(name for name, part in parts.items() if part is not None)
            raise UserError(f"--split {split}: this run has no such part; it has {known}")
        return found


def _recipe(recipe: str | Recipe, overrides: Overrides) -> Recipe:
    if isinstance(recipe, Recipe):
        table = config.override(recipe.model_dump(exclude_none=True), overrides)
        return config.build(Recipe, table)
    return config.load(Recipe, recipe, overrides)


def _stem(recipe: str | Recipe) -> str:
    return "run" if isinstance(recipe, Recipe) else Path(recipe).name.removesuffix(".toml")


def _until(deadline: str | None) -> float | None:
    asked = None if deadline is None else parse_deadline(deadline)
    given = [at for at in (asked, slurm_deadline()) if at is not None]
    return min(given, default=None)


def _watcher(reading: Reading, quiet: bool) -> session.Watcher:
    """Show a run to a person: the preparation's bars, then its events."""

    def planned(name: str, recipe: Recipe, plan: Plan) -> Console:
        reading.close()
        outlook = Outlook(
            run=name,
            steps=plan.steps or 0,
            tokens=plan.tokens or 0,
            parameters=plan.parameters,
            seconds=plan.seconds,
            price_per_hour=recipe.budget.price_per_hour,
        )
        return Console(outlook, quiet=quiet)

    return session.Watcher(reading=reading, planned=planned)
