"""A model from elsewhere as an ordinary run: to score, to compare with, to export again, and to train on from."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farthing import __version__, config, session
from farthing.api.baseline import HeldOut, score_as
from farthing.api.run import Run
from farthing.api.trained import recipe_of
from farthing.budget import Spent
from farthing.data.tokenizer import Tokenizer, build_tokenizer
from farthing.errors import UserError
from farthing.events import Evaluated, EventLog, Finished, Started
from farthing.export import llmc
from farthing.export.foreign import Foreign, read_folder
from farthing.planning import Choice, Counts, Plan, estimate, make_plan, settle
from farthing.recipe import Recipe
from farthing.recipe.data import Gpt2Tokenizer, TokenizerFile
from farthing.rundir import RESULT_VERSION, RunDir, find_run, new_run_path
from farthing.runtime.device import Machine
from farthing.runtime.seed import numeric_fingerprint
from farthing.storage import write_json
from farthing.training import checkpoint as checkpoints

STATUS = "imported"
"""of a run that was not trained here"""


@dataclass(frozen=True)
class Imported:
    """What came of an import.

    Args:
        run: the run folder; its one checkpoint is that of step 0.
        kind: what the model was stored as.
        parameters: how many it has.
        notes: what was not taken over as it was, a sentence each.
    """

    run: Run
    kind: str
    parameters: int
    notes: tuple[str, ...]


def import_huggingface(
    folder: str | Path, *, text_of: str | None = None, name: str | None = None, runs: str | Path = "runs"
) -> Imported:
    """A folder as transformers writes it (config.json, *.safetensors, tokenizer.json) as a run.

    Nothing of it is executed and nothing is fetched.

    Args:
        folder: the folder; docs/import.md says which architectures are read.
        text_of: a run on whose validation text it is scored, so that the two can be compared; None scores nothing.
        name: the run folder's name; by default the folder's with the first free number.
        runs: the folder of run folders.

    Raises:
        UserError: it is damaged, or asks for something that this model does not have; nothing has been written.
    """
    path = Path(folder)
    if not path.is_dir():
        what = "is a file; name the folder that it is in" if path.exists() else "no such folder"
        raise UserError(f"{folder}: {what}")
    return _imported(path, lambda: read_folder(path), text_of=text_of, name=name, runs=Path(runs))


def import_llmc(
    file: str | Path,
    *,
    tokenizer: str | Path | None = None,
    text_of: str | None = None,
    name: str | None = None,
    runs: str | Path = "runs",
) -> Imported:
    """A model checkpoint of llm.c as a run.

    Args:
        file: the .bin file.
        tokenizer: a tokenizer.json, or a folder with GPT-2's encoder.json and vocab.bpe (or vocab.json and merges.txt);
            None takes GPT-2's own, fetched from the hub once.
        text_of: as of import_huggingface.
        name: the run folder's name; by default the file's with the first free number.
        runs: the folder of run folders.

    Raises:
        UserError: the file is damaged or of another format, or the tokenizer is not its own; nothing has been written.
    """
    path = Path(file)

    def read() -> Foreign:
        llmc.read_header(path)  # the likelier slip is told before a tokenizer is fetched
        return llmc.read(path, _tokenizer(tokenizer))

    return _imported(path, read, text_of=text_of, name=name, runs=Path(runs))


def _tokenizer(named: str | Path | None) -> Tokenizer:
    section: TokenizerFile | Gpt2Tokenizer = Gpt2Tokenizer(path=None if named is None else str(named))
    if named is not None and not Path(named).is_dir():
        section = TokenizerFile(path=str(named))
    return build_tokenizer(section, lambda: iter(()), directory=Path.cwd())


def _imported(
    source: Path, read: Callable[[], Foreign], *, text_of: str | None, name: str | None, runs: Path
) -> Imported:
    path = new_run_path(runs, name, _stem(source))
    session.check_writable(runs)
    like = None if text_of is None else find_run(text_of, runs)
    found = read()
    table = config.to_table(recipe_of(found.section))
    table["tokenizer"] = {"kind": "file", "path": str(RunDir(path).tokenizer.absolute())}
    if like is not None:
        theirs = config.to_table(config.load(Recipe, str(like.recipe)))
        table |= {name: theirs[name] for name in ("data", "evaluate")}
    recipe = config.build(Recipe, table)
    machine = session.prepare_machine(recipe, "auto")
    plan = _plan(recipe, machine, found.tokenizer.vocab_size, path)
    scored = None if like is None else score_as(like, recipe, plan.settings, machine, found)
    run = RunDir.create(
        path,
        recipe=config.to_toml(recipe),
        tokenizer=found.tokenizer.to_json(),
        plan=plan.as_dict(),
        receipt=_receipt(source, recipe, machine, found, scored),
        fill=lambda run: _fill(run, path, recipe, plan, found, scored),
    )
    return Imported(Run(run), found.kind, plan.parameters, found.notes)


def _stem(source: Path) -> str:
    """The name of a file or folder, as far as it can be a run's name."""
    stem = source.resolve().stem if source.is_file() else source.resolve().name
    return re.sub(r"[^\w.-]+", "-", stem).strip(".-")[:60] or STATUS


def _plan(recipe: Recipe, machine: Machine, vocab_size: int, path: Path) -> Plan:
    """How it computes here; there is no text yet, so nothing is measured and no number of steps follows."""
    counts = Counts(vocab_size, None, None)
    settings = settle(recipe, machine, counts)
    timing = estimate(recipe, machine, counts, settings)
    return make_plan(recipe, machine, counts, Choice(settings), timing, disk_free=session.disk_free(path))


def _receipt(source: Path, recipe: Recipe, machine: Machine, found: Foreign, scored: HeldOut | None) -> dict[str, Any]:
    tokenizer = found.tokenizer
    return {
        "farthing": __version__,
        "machine": machine.as_dict(),
        "numeric": numeric_fingerprint(machine.torch_device),
        "recipe": config.fingerprint(recipe),
        "data": {
            "kind": STATUS,
            "parts": {} if scored is None else scored.parts,
            "tokenizer": {"kind": "file", "vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint},
        },
        STATUS: {"from": source.name, "kind": found.kind, "notes": list(found.notes)},
        "directory": str(Path.cwd()) if scored is None else scored.directory,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _fill(run: RunDir, path: Path, recipe: Recipe, plan: Plan, found: Foreign, scored: HeldOut | None) -> None:
    """The checkpoint of step 0, the events of a run without steps, and its result."""
    identity = {"recipe": config.fingerprint(recipe), "text": "", "tokenizer": found.tokenizer.fingerprint}
    snapshot = checkpoints.Snapshot(dict(found.weights), {}, None, {"step": 0, "best_step": 0})  # of one checkpoint
    checkpoints.save(run, 0, snapshot, identity)
    spent, validation = Spent().as_dict(), {} if scored is None else scored.validation
    log = EventLog(run.events)
    log.emit(Started(run=path.name, recipe=identity["recipe"], parameters=plan.parameters, steps=0))
    if scored is not None:
        log.emit(Evaluated(step=0, split="validation", validation=validation, spent=spent, seconds=scored.seconds))
    log.emit(Finished(status=STATUS, spent=spent, validation=validation, wall_seconds=0.0))
    log.close()
    result = {
        "version": RESULT_VERSION,
        "run": str(path),
        "status": STATUS,
        "validation": validation,
        "best": None,
        "references": None,
        "spent": spent,
        "startup": {},
        "wall_seconds": 0.0,
        "parameters": plan.parameters,
        "samples": [],
    }
    write_json(run.result, result)
