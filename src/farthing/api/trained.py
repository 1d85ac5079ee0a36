"""A trained model, ready to write and to score: from a run's checkpoint, or from a folder in which others publish."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from farthing import assemble, config, session
from farthing.api.recipes import Overrides, resolve
from farthing.budget import Budget
from farthing.data.prepare import prepare_held_out
from farthing.data.split import TokenSplit
from farthing.data.store import Report
from farthing.data.tokenizer import Tokenizer
from farthing.errors import CheckpointError, DataError, UserError, first_line
from farthing.evals.references import references as compare_with
from farthing.evals.samples import continue_text, stream_text
from farthing.export.foreign import read_folder
from farthing.model.gpt import GPT, model_with
from farthing.model.inference import Precision
from farthing.recipe import Recipe
from farthing.recipe.model import Model
from farthing.rundir import RunDir, find_model, read_receipt
from farthing.runtime.device import choose_attention, choose_precision
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


class Drawing(TypedDict, total=False):
    """How a text is drawn; what is left out or None is as in the recipe's [sample].

    Args:
        tokens: how many to write at most.
        temperature: 0 takes the likeliest token.
        top_k: draw from this many likeliest tokens only.
        top_p: draw from the likeliest tokens that together have this probability.
        seed: of the draws.
    """

    tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None


@dataclass(frozen=True)
class TrainedModel:
    """Weights with the tokenizer that they belong to.

    Args:
        name: what it was opened by: the run's name, or the folder's.
        model: in evaluation mode, on its device; the weights must not change while it is used.
        tokenizer: text to tokens and back.
        precision: number format of its matrix products when it writes.
        step: optimizer steps that the weights have seen here.
        recipe: the model's settings, and what holds where nothing else is said.
        run: the run it was read from; None for a folder from elsewhere.
    """

    name: str
    model: GPT
    tokenizer: Tokenizer
    precision: Precision
    step: int
    recipe: Recipe
    run: RunDir | None = None

    @property
    def title(self) -> str:
        """Its name, and of a run the step; a folder does not say how far its model was trained."""
        return self.name if self.run is None else f"{self.name}, step {self.step:,}"

    @property
    def context_length(self) -> int:
        """Tokens of a window: what the model sees at once."""
        return self.model.section.context_length

    def sample(self, prompt: str = "", **drawing: Unpack[Drawing]) -> str:
        """Text that the model writes after a prompt; an empty one is the start of a document."""
        return "".join(self.stream(prompt, **drawing))

    def stream(self, prompt: str = "", **drawing: Unpack[Drawing]) -> Writing:
        """As `sample`, piece by piece as it is written."""
        recipe = with_drawing(self.recipe, drawing)
        ids = continue_text(
            self.model, self.tokenizer, recipe.sample, prompt=prompt, seed=recipe.seed, precision=self.precision
        )
        return Writing(self.tokenizer, ids)

    def evaluate(
        self,
        data: str | None = None,
        overrides: Overrides = (),
        *,
        split: str = "validation",
        references: bool = True,
        quiet: bool = True,
    ) -> Scored:
        """Score a text: every token once.

        Args:
            data: any file, cut into documents as the run's recipe does; None scores one of the run's own parts.
            overrides: of the recipe's [evaluate] only; for a model that brings no text, of [data] too.
            split: validation, test or train, when there is no `data`.
            references: also see what xz, zstd and a unigram model make of the text, if the recipe wants that.
            quiet: show no progress.
        """
        recipe = with_scoring(self.recipe, data, overrides, run=self.run)
        with Reading(quiet=quiet) as reading:
            text, training = self._text(data, split, recipe, reading)
            reading("scoring", 0, 0)
            device = self.model.embed.weight.device
            found = assemble.score(recipe, self.model, text, precision=self.precision, device=device)
            compared = None
            if references and recipe.evaluate.references:
                reading("comparing with xz, zstd and a unigram model", 0, 0)
                compared = compare_with(text, training=training, vocab_size=self.tokenizer.vocab_size)
        return Scored(found, self.step, compared)

    def _text(
        self, data: str | None, split: str, recipe: Recipe, report: Report
    ) -> tuple[TokenSplit, TokenSplit | None]:
        """The text to score, and the training text, if it is still what it was."""
        cache, here, held_out = cache_folder(), Path.cwd(), None
        if data is not None:
            held_out = prepare_held_out(recipe.data, data, self.tokenizer, directory=here, cache=cache, report=report)
        were = _parts(self.run)
        if self.run is None or not were:
            if held_out is None:
                raise UserError(f"{self.name}: was trained elsewhere and brings no text; name one with --data FILE")
            return held_out, None
        directory = Path(read_receipt(self.run)["directory"])
        try:
            text = assemble.read_text(recipe, directory=directory, cache=cache, report=report)
        except UserError:
            if held_out is None:
                raise
            return held_out, None
        parts = {"train": text.train, "validation": text.validation, "test": text.test}
        there = {name: part for name, part in parts.items() if part is not None}
        if held_out is not None:
            return held_out, text.train if text.train.fingerprint == were.get("train") else None
        if split not in there or split not in were:
            raise UserError(f"--split {split}: this run has no such part; it has {', '.join(were)}")
        if there[split].fingerprint != were[split]:
            raise DataError(
                f"{self.run.path}: the {split} text has changed since the run began; put the old files back"
            )
        return there[split], text.train


def with_drawing(recipe: Recipe, drawing: Drawing) -> Recipe:
    """The recipe with what is asked of a text in its [sample] and its seed.

    Raises:
        UserError: a value is out of range.
    """
    changes = {("seed" if name == "seed" else f"sample.{name}"): value for name, value in drawing.items()}
    return resolve(recipe, {path: value for path, value in changes.items() if value is not None})


def with_scoring(recipe: Recipe, data: str | None, overrides: Overrides, *, run: RunDir | None) -> Recipe:
    """The recipe with what is asked of a scoring.

    Raises:
        UserError: a setting that is not the scorer's to choose.
    """
    mine = ("evaluate.",) if _parts(run) else ("evaluate.", "data.")
    if data is not None and "data." in mine and _touches(overrides, "data."):
        # A kind that is set here starts afresh, and needs its path to be whole.
        if isinstance(overrides, Mapping):
            overrides = {**overrides, "data.path": data}
        else:
            overrides = [*overrides, f"data.path={json.dumps(data, ensure_ascii=False)}"]
    resolved = resolve(recipe, overrides)
    strange = [change.path for change in config.diff(recipe, resolved) if not change.path.startswith(mine)]
    if strange:
        raise UserError(f"{strange[0]}: eval takes only evaluate.* settings; the rest belongs to the trained run")
    return resolved


def _touches(overrides: Overrides, prefix: str) -> bool:
    return any(str(one).startswith(prefix) for one in overrides)


def _parts(run: RunDir | None) -> dict[str, str]:
    """Fingerprints of the parts of a run's text, by name; none for a model that was trained elsewhere."""
    if run is None:
        return {}
    parts = read_receipt(run)["data"]["parts"]
    return {name: part["fingerprint"] for name, part in parts.items() if part}


def tokenizer_of(run: RunDir) -> Tokenizer:
    """A run's tokenizer.

    Raises:
        DataError: its file is gone or has changed.
    """
    try:
        found = Tokenizer.from_json(run.tokenizer.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{run.tokenizer}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    was = read_receipt(run)["data"]["tokenizer"]["fingerprint"]
    if found.fingerprint != was:
        raise DataError(
            f"{run.tokenizer}: is not the run's own ({found.fingerprint[:12]}, was {was[:12]}); put that back"
        )
    return found


def open_model(
    name: str | Path, *, runs: str | Path = "runs", checkpoint: str = "last", device: str = "auto"
) -> TrainedModel:
    """A trained model to write and to score with.

    Args:
        name: a run's folder or name; or a folder with config.json, *.safetensors and tokenizer.json, as exported by
            Farthing or by transformers (docs/import.md says which architectures are read).
        runs: the folder of run folders.
        checkpoint: last, best or a step, of a run.
        device: auto, cpu, cuda or mps.

    Raises:
        UserError: there is no such run or folder, or it holds something that this model cannot compute.
    """
    found = find_model(str(name), Path(runs))
    if isinstance(found, RunDir):
        return open_checkpoint(found, checkpoint=checkpoint, device=device)
    if checkpoint not in ("last", "best"):
        raise UserError(f"--checkpoint {checkpoint}: {found} holds one model, not the checkpoints of a run")
    return open_folder(found, device=device)


def open_checkpoint(run: RunDir, *, checkpoint: str = "last", device: str = "auto") -> TrainedModel:
    """The model of a run's checkpoint, computing as it did in training."""
    recipe, settings, tokenizer = (
        config.load(Recipe, str(run.recipe)),
        session.read_plan(run).settings,
        tokenizer_of(run),
    )
    machine = session.prepare_machine(recipe, device, threads=settings.threads)
    weights, step = checkpoints.weights(run, checkpoint)
    try:
        model = assemble.load_model(recipe, settings, weights, tokenizer.vocab_size).to(machine.torch_device)
    except RuntimeError as error:
        raise CheckpointError(
            f"{run.path}: the weights after step {step} are not those of its recipe: {first_line(error)}; "
            "put the run's own files back"
        ) from None
    return TrainedModel(run.name, model, tokenizer, settings.precision, step, recipe, run)


def open_folder(folder: Path, *, device: str = "auto") -> TrainedModel:
    """The model of a folder as transformers writes it; none of its code is run."""
    found = read_folder(folder)
    recipe = recipe_of(found.section)
    machine = session.prepare_machine(recipe, device)
    precision = choose_precision("auto", machine).value
    attention = choose_attention("auto", machine, precision).value
    tokenizer = found.tokenizer
    model = model_with(found.weights, found.section, tokenizer.vocab_size, attention=attention).eval()
    return TrainedModel(folder.resolve().name, model.to(machine.torch_device), tokenizer, precision, 0, recipe)


def recipe_of(section: Model) -> Recipe:
    """A recipe with this model, and the defaults for all that a model from elsewhere does not tell."""
    return Recipe(model=section, budget=Budget(epochs=1))
