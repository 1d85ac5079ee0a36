"""export: a run's model as an ordinary folder, and that folder on the hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from farthing import __version__, assemble, config, session
from farthing.api.checking import publish_check, push_checked
from farthing.api.trained import tokenizer_of
from farthing.budget import Budget
from farthing.data.store import Report
from farthing.errors import CheckpointError, DataError, UserError, need
from farthing.export import Dtype, Exportable, Writer, Written, export, refuse_existing
from farthing.export.card import Stated, write_card
from farthing.export.gate import excerpts
from farthing.export.provenance import provenance
from farthing.export.push import Pushed, check_repository
from farthing.recipe import Recipe
from farthing.rundir import RunDir, find_run, read_receipt
from farthing.sinks.reading import Reading
from farthing.storage import cache_folder
from farthing.training import checkpoint as checkpoints

FORMATS = ("huggingface", "llmc", "gguf")
DTYPES: tuple[Dtype, ...] = ("fp32", "bf16")


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Args:
        folder: where it is.
        run: the run it came from.
        step: optimizer steps that its weights have seen.
        form: the class or format that reads it.
        dtype: number format of its weights.
        parameters: how many they are.
        bytes: size of all files.
        remote_code: whether loading it runs code that lies in the folder.
        proof: how it was compared with the run.
        notes: what its reader has to know.
        pushed: where it is on the hub, if it was asked to be there.
    """

    folder: Path
    run: str
    step: int
    form: str
    dtype: Dtype
    parameters: int
    bytes: int
    remote_code: bool
    proof: dict[str, Any]
    notes: tuple[str, ...]
    pushed: Pushed | None = None


def export_run(
    run: str | Path,
    target: str | Path,
    *,
    runs: str | Path = "runs",
    format: str = "huggingface",
    checkpoint: str = "last",
    dtype: str = "fp32",
    stated: Stated | None = None,
    repository: str | None = None,
    public: bool = False,
    anyway: bool = False,
    quiet: bool = True,
) -> Exported:
    """Write a run's model into a new folder that other programs load, proven to compute the same.

    Args:
        run: a run folder or its name.
        target: the folder to make; it must not exist.
        runs: the folder of run folders.
        format: huggingface, llmc or gguf.
        checkpoint: last, best or a step.
        dtype: fp32 or bf16.
        stated: what the model card cannot know from the run; None: nothing.
        repository: also upload the folder there (NAME or OWNER/NAME).
        public: whether everybody may see it there.
        anyway: upload also what publish_check finds fault with.
        quiet: show no progress.

    Raises:
        farthing.UserError: the request cannot be carried out; nothing has been written. Where only the upload failed,
            the folder is there.
        farthing.CheckpointError: the run has no valid checkpoint of that description.
        farthing.FarthingError: the folder, loaded back, did not compute the same; nothing is left of it.
    """
    found, folder = find_run(str(run), Path(runs)), Path(target)
    write, kind = _writer(format), _dtype(dtype)
    if repository is not None:
        check_repository(repository)
        if format != "huggingface":
            raise UserError(f"--push {repository}: only --format huggingface goes to the hub, not {format}")
    refuse_existing(folder)
    with Reading(quiet=quiet) as reading:
        made = exportable(found, checkpoint=checkpoint, report=reading)
        reading("writing and comparing", 0, 0)
        notes = _unfinished(found, made.step)
        complete = _card(found, made, stated or Stated(), notes) if format == "huggingface" else _nothing
        written = export(folder, made, write, dtype=kind, complete=complete)
    pushed = None
    if repository is not None:
        points = publish_check(folder, run=found.path, quiet=quiet)
        pushed = push_checked(folder, repository, points, public=public, anyway=anyway, quiet=quiet)
    return Exported(
        folder=folder,
        run=found.name,
        step=made.step,
        form=written.form,
        dtype=kind,
        parameters=sum(tensor.numel() for tensor in made.weights.values()),
        bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        remote_code=written.remote_code,
        proof=dict(written.proof),
        notes=(*notes, *written.notes, *(() if pushed is None else pushed.notes)),
        pushed=pushed,
    )


def _unfinished(run: RunDir, step: int) -> tuple[str, ...]:
    if run.status() not in ("running", "stopped"):
        return ()
    try:
        planned = f" of {session.read_plan(run).steps:,}"
    except CheckpointError:  # an export does without the plan
        planned = ""
    return (f"{run.name} is not finished: these are its weights after step {step:,}{planned}",)


def exportable(
    run: RunDir, *, checkpoint: str = "last", report: Report = lambda stage, done, total: None
) -> Exportable:
    """What every format's writer takes, read from a run's folder.

    Args:
        run: its folder.
        checkpoint: last, best or a step.
        report: hears how far reading is.
    """
    recipe, tokenizer = config.load(Recipe, str(run.recipe)), tokenizer_of(run)
    weights, step = checkpoints.weights(run, checkpoint)
    return Exportable(
        section=recipe.model,
        vocab_size=weights["embed.weight"].shape[0],
        weights=weights,
        tokenizer=tokenizer,
        sample=recipe.sample,
        texts=_texts(run, recipe, report),
        name=run.name,
        step=step,
    )


def _texts(run: RunDir, recipe: Recipe, report: Report) -> list[str]:
    """Some of the run's validation text; none where the files are no longer there."""
    receipt = read_receipt(run)
    if not receipt["data"]["parts"]:  # a model from elsewhere, whose recipe names no text of its own
        return []
    directory = Path(receipt["directory"])
    try:
        text = assemble.read_text(recipe, directory=directory, cache=cache_folder(), report=report)
        return excerpts(text.validation.texts())
    except (UserError, DataError, OSError):
        return []


def _card(run: RunDir, made: Exportable, stated: Stated, notes: Sequence[str]) -> Callable[[Path, Written], None]:
    told, recipe = provenance(run, step=made.step), config.load(Recipe, str(run.recipe))
    changes = config.diff(Recipe(budget=Budget(steps=1)), recipe)
    versions = {"farthing": __version__, **{name: version(name) for name in ("torch", "transformers", "tokenizers")}}

    def complete(folder: Path, written: Written) -> None:
        write_card(folder, told, stated, changes=changes, notes=(*notes, *written.notes), versions=versions)

    return complete


def _nothing(folder: Path, written: Written) -> None:
    pass


def _writer(format: str) -> Writer:
    match format:
        case "huggingface":
            if find_spec("transformers") is None:  # to import it here would take seconds, and only the gate needs it
                need("transformers", extra="hf", why="export")
            from farthing.export.huggingface import write as write_huggingface

            return write_huggingface
        case "llmc":
            from farthing.export.llmc import write as write_llmc

            return write_llmc
        case "gguf":
            from farthing.export.gguf import write as write_gguf

            return write_gguf
    raise UserError(f"--format {format}: should be one of {', '.join(FORMATS)}")


def _dtype(name: str) -> Dtype:
    for known in DTYPES:
        if name == known:
            return known
    raise UserError(f"--dtype {name}: should be one of {', '.join(DTYPES)}")
