"""A run folder as an object: to look at, to score and to write with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farthing import assemble, config, session
from farthing.api.recipes import Overrides, resolve
from farthing.data.prepare import prepare_held_out
from farthing.data.split import TokenSplit
from farthing.data.store import Report
from farthing.data.tokenizer import Tokenizer
from farthing.errors import DataError, UserError, need
from farthing.evals.references import references as compare_with
from farthing.evals.samples import continue_text, stream_text
from farthing.events import Evaluated, Step, read_events
from farthing.model.gpt import GPT
from farthing.planning import Plan
from farthing.recipe import Recipe
from farthing.rundir import RunDir, find_run, list_runs, read_result
from farthing.sinks.reading import Reading
from farthing.storage import cache_folder
from farthing.training import checkpoint as checkpoints


@dataclass(frozen=True)
class Scored:
    """A text scored by a model.

    Args:
        validation: the yardsticks (docs/yardstick.md).
        step: the checkpoint's.
        references: bits per byte of the same text by xz, zstd and a unigram model; None if they were not asked for.
    """

    validation: dict[str, Any]
    step: int
    references: dict[str, Any] | None


class Writing:
    """A text while it is written: an iterator over its pieces; `tokens` counts the tokens drawn so far."""

    def __init__(self, tokenizer: Tokenizer, ids: Iterator[int]) -> None:
        self.tokens = 0
        self._pieces = stream_text(tokenizer, map(self._count, ids))

    def __iter__(self) -> Writing:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def _count(self, token: int) -> int:
        self.tokens += 1
        return token


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

    def sample(self, prompt: str = "", **settings: Any) -> str:
        """Text that the model writes after a prompt; `settings` are those of `stream`."""
        return "".join(self.stream(prompt, **settings))

    def stream(
        self,
        prompt: str = "",
        *,
        tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        checkpoint: str = "last",
        device: str = "auto",
    ) -> Writing:
        """As `sample`, piece by piece as it is written. What is None is as in the run's recipe.

        Args:
            prompt: where the text starts; empty: at the start of a document.
            tokens: how many to write at most.
            temperature: 0 takes the likeliest token.
            top_k: draw from this many likeliest tokens only.
            top_p: draw from the likeliest tokens that together have this probability.
            seed: of the draws.
            checkpoint: last, best or a step.
            device: auto, cpu, cuda or mps.
        """
        asked = {"tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        changes = {"seed": seed} | {f"sample.{name}": value for name, value in asked.items()}
        base = self.recipe
        recipe = resolve(base, {path: value for path, value in changes.items() if value is not None})
        tokenizer = self.tokenizer
        model, _ = self._model(base, checkpoint, device)
        ids = continue_text(
            model,
            tokenizer,
            recipe.sample,
            prompt=prompt,
            seed=recipe.seed,
            precision=self.plan.settings.precision,
        )
        return Writing(tokenizer, ids)

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer (farthing.DataError if its file is gone or has changed)."""
        path = self._folder.tokenizer
        try:
            found = Tokenizer.from_json(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
        was = session.read_receipt(self._folder)["data"]["tokenizer"]["fingerprint"]
        if found.fingerprint != was:
            raise DataError(f"{path}: is not the run's own ({found.fingerprint[:12]}, was {was[:12]}); put that back")
        return found

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
            overrides: of the recipe's [evaluate] only.
            split: validation, test or train, when there is no `data`.
            checkpoint: last, best or a step.
            device: auto, cpu, cuda or mps.
            references: also see what xz, zstd and a unigram model make of the text, if the recipe wants that.
            quiet: show no progress.
        """
        base = self.recipe
        recipe = resolve(base, overrides)
        strange = [change.path for change in config.diff(base, recipe) if not change.path.startswith("evaluate.")]
        if strange:
            raise UserError(f"{strange[0]}: eval takes only evaluate.* settings; the rest belongs to the trained run")
        model, step = self._model(base, checkpoint, device)
        with Reading(quiet=quiet) as reading:
            text, training = self._text(data, split, recipe, reading)
            reading("scoring", 0, 0)
            found = assemble.score(
                recipe, model, text, precision=self.plan.settings.precision, device=model.embed.weight.device
            )
            compared = None
            if references and recipe.evaluate.references:
                reading("comparing with xz, zstd and a unigram model", 0, 0)
                compared = compare_with(text, training=training, vocab_size=self.tokenizer.vocab_size)
        return Scored(found, step, compared)

    def _model(self, recipe: Recipe, checkpoint: str, device: str) -> tuple[GPT, int]:
        """The trained model, computing as it did in training, and its step."""
        settings = self.plan.settings
        machine = session.prepare_machine(recipe, device, threads=settings.threads)
        weights, step = checkpoints.weights(self._folder, checkpoint)
        model = assemble.load_model(recipe, settings, weights, self.tokenizer.vocab_size)
        return model.to(machine.torch_device), step

    def _text(
        self, data: str | None, split: str, recipe: Recipe, report: Report
    ) -> tuple[TokenSplit, TokenSplit | None]:
        """The text to score, and the training text, if it is still what it was."""
        cache, receipt = cache_folder(), session.read_receipt(self._folder)
        were = {name: part["fingerprint"] for name, part in receipt["data"]["parts"].items() if part}
        directory, here = Path(receipt["directory"]), Path.cwd()
        held_out = None
        if data is not None:
            held_out = prepare_held_out(recipe.data, data, self.tokenizer, directory=here, cache=cache, report=report)
        try:
            text = assemble.read_text(recipe, directory=directory, cache=cache, report=report)
        except UserError:
            if held_out is None:
                raise
            return held_out, None
        parts = {"train": text.train, "validation": text.validation, "test": text.test}
        there = {name: part for name, part in parts.items() if part is not None}
        if held_out is not None:
            return held_out, text.train if text.train.fingerprint == were["train"] else None
        if split not in there:
            raise UserError(f"--split {split}: this run has no such part; it has {', '.join(there)}")
        if there[split].fingerprint != were[split]:
            raise DataError(f"{self.path}: the {split} text has changed since the run began; put the old files back")
        return there[split], text.train


def runs(folder: str | Path = "runs") -> list[Run]:
    """All runs in a folder, oldest first."""
    return [Run(run) for run in list_runs(Path(folder))]


def open_run(run: str | Path, *, runs: str | Path = "runs") -> Run:
    """An existing run, by its folder or its name."""
    return Run(find_run(str(run), Path(runs)))
