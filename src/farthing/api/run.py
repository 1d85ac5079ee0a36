"""A run folder as an object: to look at, to score and to write with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from farthing import config, session
from farthing.api.recipes import Overrides
from farthing.api.trained import (
    Drawing,
    Scored,
    TrainedModel,
    Writing,
    open_checkpoint,
    tokenizer_of,
    with_drawing,
    with_scoring,
)
from farthing.data.tokenizer import Tokenizer
from farthing.errors import need
from farthing.events import Evaluated, Step, read_events
from farthing.planning import Plan
from farthing.recipe import Recipe
from farthing.rundir import RunDir, find_run, list_runs, read_result


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
        return self._latest("validation", Evaluated.kind)

    @property
    def spent(self) -> dict[str, float]:
        """Steps, tokens, epochs, FLOPs, seconds and money so far."""
        return self._latest("spent", Step.kind)

    def _latest(self, what: str, kind: str) -> dict[str, Any]:
        result = self.result
        found = [result[what]] if what in result else [one[what] for one in self.events if one["kind"] == kind]
        return dict(found[-1]) if found else {}

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

    def open(self, *, checkpoint: str = "last", device: str = "auto") -> TrainedModel:
        """The trained model, to write and to score with several times.

        Args:
            checkpoint: last, best or a step.
            device: auto, cpu, cuda or mps.
        """
        return open_checkpoint(self._folder, checkpoint=checkpoint, device=device)

    def sample(
        self, prompt: str = "", *, checkpoint: str = "last", device: str = "auto", **drawing: Unpack[Drawing]
    ) -> str:
        """Text that the model writes after a prompt; the arguments are those of `stream`."""
        return "".join(self.stream(prompt, checkpoint=checkpoint, device=device, **drawing))

    def stream(
        self, prompt: str = "", *, checkpoint: str = "last", device: str = "auto", **drawing: Unpack[Drawing]
    ) -> Writing:
        """As `sample`, piece by piece as it is written. What is None or left out is as in the run's recipe.

        Args:
            prompt: where the text starts; empty: at the start of a document.
            checkpoint: last, best or a step.
            device: auto, cpu, cuda or mps.
            drawing: tokens, temperature, top_k, top_p, seed (see Drawing).
        """
        with_drawing(self.recipe, drawing)  # a slip is told before the weights are read
        return self.open(checkpoint=checkpoint, device=device).stream(prompt, **drawing)

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer (farthing.DataError if its file is gone or has changed)."""
        return tokenizer_of(self._folder)

    def evaluate(
        self,
        data: str | None = None,
        overrides: Overrides = (),
        *,
        split: str = "validation",
        checkpoint: str = "last",
        device: str = "auto",
        references: bool = True,
        quiet: bool = True,
    ) -> Scored:
        """Score a text with the trained model.

        Args:
            data: any file, cut into documents as the run's recipe does; None scores one of the run's own parts.
            overrides: of the recipe's [evaluate] only; for a model that was imported, of [data] too.
            split: validation, test or train, when there is no `data`.
            checkpoint: last, best or a step.
            device: auto, cpu, cuda or mps.
            references: also see what xz, zstd and a unigram model make of the text, if the recipe wants that.
            quiet: show no progress.
        """
        with_scoring(self.recipe, data, overrides, run=self._folder)
        opened = self.open(checkpoint=checkpoint, device=device)
        return opened.evaluate(data, overrides, split=split, references=references, quiet=quiet)


def runs(folder: str | Path = "runs") -> list[Run]:
    """All runs in a folder, oldest first."""
    return [Run(run) for run in list_runs(Path(folder))]


def open_run(run: str | Path, *, runs: str | Path = "runs") -> Run:
    """An existing run, by its folder or its name."""
    return Run(find_run(str(run), Path(runs)))
