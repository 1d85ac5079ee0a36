"""What a run's own files say of the model that came of it: every number of a model card comes from here."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import tomli_w

from farthing import config
from farthing.compare.task_results import latest, read_tasks
from farthing.data.known import recognised
from farthing.errors import UserError
from farthing.events import Evaluated, Sampled, Started, Step, TaskScored, read_events
from farthing.export.leaks import Private, redact
from farthing.recipe.model import Model
from farthing.rundir import RunDir, read_result
from farthing.storage import read_json

Table = Mapping[str, Any]
PATHS = {"path", "validation", "test"}
"""settings of [data], [tokenizer] and [[evaluate.tasks]] that may name files"""
_UNREAD: dict[str, Any] = {"files": [], "files_count": 0, "files_bytes": 0, "files_sha256": "", "split": {}}
"""what the receipt of an imported model does not have"""
_TOLD = {Evaluated.kind, Sampled.kind, Started.kind, Step.kind, TaskScored.kind}


@dataclass(frozen=True)
class TaskScore:
    """One reading of one task."""

    name: str
    measure: str
    value: float | None
    low: float | None
    """lower end of the 95 % interval, over questions"""
    high: float | None
    error: float | None
    """standard error, over questions"""
    chance: float | None
    verdict: str
    questions: int
    """how many were asked"""
    of: int
    """how many there are"""
    shots: int
    source: str
    """the file or data set they are from"""

    @property
    def share(self) -> bool:
        """Whether the value is a share of right answers."""
        return "accuracy" in self.measure


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """A trained model, as its run's files tell of it. What a file does not say is empty or None, never guessed."""

    run: str
    """the run's name"""
    step: int
    """the checkpoint that is exported"""
    last: bool
    """whether that is the end of the run"""
    recipe: str
    """the recipe as TOML, absolute paths cut down to the name of the file"""
    recipe_as_it_was: str
    """the same as the run has it: private"""
    table: Table
    """what `recipe` says"""
    model: Model
    plan: Table
    receipt: Table
    datasets: Sequence[str]
    """datasets of the hub that the text is known to be"""
    spent: Table
    """up to the exported checkpoint"""
    wall_seconds: float | None
    """all sittings, start-up, evaluation and checkpoints included; None unless the end is exported"""
    validation: Table
    """the yardsticks of exactly these weights; empty if they were not scored"""
    references: Table
    scores: Sequence[TaskScore]
    """task scores of exactly these weights"""
    samples: Sequence[tuple[str, str]]
    """prompts and what these weights wrote"""
    trained_on: str
    """the day of the run's first event, UTC"""

    @property
    def data(self) -> Table:
        """What the receipt says of the text."""
        found: Table = self.receipt["data"]
        return found

    @property
    def imported(self) -> Table:
        """What is known of a model that was not trained here: from where, and what it was stored as; else empty."""
        found: Table = self.receipt.get("imported", {})
        return found

    @property
    def shortened(self) -> bool:
        """Whether the recipe here is not, to the letter, the one of the fingerprint."""
        return self.recipe != self.recipe_as_it_was

    @property
    def data_name(self) -> str:
        """The text in a few words."""
        section = self.table["data"]
        if section["kind"] == "pystdlib":
            return "the Python standard library's own sources"
        if section["kind"] == "hub":
            return f"the dataset {section['path']}"
        names = sorted({Path(file["name"]).name for file in self.data["files"]})
        more = self.data["files_count"] - 3
        return ", ".join(names[:3]) + (f" and {more:,} more files" if more > 0 else "") or "a text of its owner's"

    @property
    def source(self) -> str:
        """Where the text is from, as far as the recipe says."""
        section = self.table["data"]
        if section["kind"] == "hub":
            parts = {"configuration": "name", "split": "hub_split", "revision": "revision"}
            told = [f"{word} {section[key]}" for word, key in parts.items() if section.get(key)]
            return ", ".join([f"the dataset {section['path']} of the Hugging Face hub", *told])
        known = [f"known as the dataset {name} of the Hugging Face hub" for name in self.datasets]
        return "; ".join([self.data_name, *known]) + (f" ({section['kind']})" if section["kind"] != "pystdlib" else "")

    @property
    def started_from(self) -> str:
        """Whose weights training went on from; empty where it began with random ones."""
        init = self.table["model"]["init"]
        if init["kind"] != "run":
            return ""
        return (
            f"those of the run {init['run']}, checkpoint {init['checkpoint']}, SHA-256 {init.get('weights', 'unknown')}"
        )

    def architecture(self) -> Iterator[tuple[str, str]]:
        """The network, part by part."""
        model = self.model
        norm, position, attention, mlp = model.norm, model.position, model.attention, model.mlp
        heads = f"{model.n_head} of width {model.head_dim}"
        yield "blocks", str(model.n_layer)
        yield "width", str(model.d_model)
        yield "attention heads", heads + (f", sharing {model.kv_heads} keys and values" if self._grouped else "")
        yield "queries and keys", "as they are" if attention.qk_norm == "none" else f"normalised ({attention.qk_norm})"
        if attention.scope == "document":
            yield "attention reaches", "to the start of the document"
        if attention.gate != "none":
            yield "gate", f"one a {attention.gate}"
        yield "feed-forward", f"{mlp.kind}, {model.hidden} wide"
        yield "normalisation", f"{norm.kind}, {norm.placement}, eps {norm.eps:g}"
        base = f", base {position.base:g}" if position.kind == "rope" else ""
        yield "positions", position.kind + base
        yield "context", f"{model.context_length:,} tokens"
        yield "vocabulary", f"{self.plan['vocab_size']:,} tokens"
        yield "output head", "shares the embedding's weights" if model.tie_embeddings else "weights of its own"
        yield "biases", "yes" if model.bias else "no"
        if model.layer_scale is not None:
            yield "layer scale", f"learned, from {model.layer_scale:g}"
        if model.logit_softcap is not None:
            yield "logits", f"bounded to {model.logit_softcap:g}"
        if model.dropout:
            yield "dropout in training", f"{model.dropout:g}"

    @property
    def _grouped(self) -> bool:
        return self.model.kv_heads != self.model.n_head


def provenance(run: RunDir, *, step: int, private: Private | None = None) -> Provenance:
    """Read what a card tells from the files of a run, with secrets and local paths taken out of every text.

    Args:
        run: its folder.
        step: the checkpoint that is exported.
        private: what must not be told; None takes what can be known of this machine and of the run's own folder.

    Raises:
        UserError: one of the files is missing or damaged.
    """
    try:
        written, receipt = run.recipe.read_text("utf-8"), read_json(run.receipt)
        if private is None:
            private = Private.here([folder for folder in (run.path, receipt.get("directory")) if folder])
        receipt["data"] = {**_UNREAD, **receipt["data"]}
        datasets = [] if "imported" in receipt else known_datasets(tomllib.loads(written)["data"], receipt)
        table = redacted(published(tomllib.loads(written)), private)
        plan, receipt = redacted(read_json(run.plan), private), redacted(receipt, private)
        result = redacted(read_result(run), private)
        later = [redacted(one["result"], private) for one in read_tasks(run, step=step)]
        events = [redacted(one, private) for one in read_events(run.events) if one["kind"] in _TOLD]
        model = config.build(Model, table["model"])
        receipt["data"]["split"] = published({"data": receipt["data"]["split"]})["data"]
        if "imported" not in receipt:
            assert {"documents", "bytes", "tokens", "fingerprint"} <= receipt["data"]["parts"]["train"].keys()
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(f"{run.path}: its files are damaged, so no model card can be written: {error!r}") from None
    last = bool(result) and step == result["spent"]["steps"]
    scored = [one for one in events if one["kind"] == Evaluated.kind and one["step"] == step]
    return Provenance(
        run=redact(run.name, private),
        step=step,
        last=last,
        recipe=tomli_w.dumps(table),
        recipe_as_it_was=written,
        table=table,
        model=model,
        plan=plan,
        receipt=receipt,
        datasets=datasets,
        spent=result["spent"] if last else _spent(events, step),
        wall_seconds=result.get("wall_seconds") if last else None,
        validation=result["validation"] if last else (scored[-1]["validation"] if scored else {}),
        references=(result.get("references") or {}) if last else {},
        scores=task_scores(
            [one["result"] for one in events if one["kind"] == TaskScored.kind and one["step"] == step] + later
        ),
        samples=[(one["prompt"], one["text"]) for one in events if one["kind"] == Sampled.kind and one["step"] == step],
        trained_on=next((_day(one["time"]) for one in events if one["kind"] == Started.kind), ""),
    )


def task_scores(results: Sequence[Table]) -> list[TaskScore]:
    """The readings of tasks' results (docs/tasks.md), of a task that was asked twice the later ones."""
    return [
        TaskScore(
            name=one["task"],
            measure=measure,
            value=reading["value"],
            low=reading["low"],
            high=reading["high"],
            error=reading["standard_error"],
            chance=reading["chance"],
            verdict=reading["verdict"] or "",
            questions=one["items"],
            of=one["of"],
            shots=one["shots"],
            source=file_name(one["source"]),
        )
        for one in latest(results)
        for measure, reading in one["scores"].items()
    ]


def known_datasets(section: Table, receipt: Table) -> list[str]:
    """The hub's dataset that the text is, where the recipe names it or a corpus fetched by Farthing proves it."""
    if section["kind"] == "hub":
        return [section["path"]]
    path = section.get("path")
    if not isinstance(path, str):
        return []
    found = recognised(Path(receipt["directory"], path), {file["sha256"] for file in receipt["data"]["files"]})
    return [found] if found else []


def redacted(value: Any, private: Private) -> Any:
    """A JSON value with every text in it redacted, keys included."""
    if isinstance(value, dict):
        return {redact(key, private): redacted(one, private) for key, one in value.items()}
    if isinstance(value, list):
        return [redacted(one, private) for one in value]
    return redact(value, private) if isinstance(value, str) else value


def published(table: dict[str, Any]) -> dict[str, Any]:
    """A recipe's table with absolute paths cut down to the file's name: the rest is nobody's business."""
    sections: dict[str, Any] = {name: _names_only(table[name]) for name in ("data", "tokenizer") if name in table}
    if tasks := table.get("evaluate", {}).get("tasks"):
        sections["evaluate"] = {**table["evaluate"], "tasks": [_names_only(task) for task in tasks]}
    if run := table.get("model", {}).get("init", {}).get("run"):
        sections["model"] = {**table["model"], "init": {**table["model"]["init"], "run": file_name(run)}}
    return {**table, **sections}


def _names_only(section: dict[str, Any]) -> dict[str, Any]:
    return {key: file_name(value) if key in PATHS else value for key, value in section.items()}


def file_name(text: Any) -> Any:
    """The last part of an absolute path of any system, or of each in a list; anything else as it is."""
    if isinstance(text, list):
        return [file_name(one) for one in text]
    if not isinstance(text, str):
        return text
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(text)
        if path.is_absolute() and len(path.parts) > 1:
            return path.name
    return text


def _spent(events: Sequence[Table], step: int) -> Table:
    found = [one["spent"] for one in events if one["kind"] in (Step.kind, Evaluated.kind) and one["step"] == step]
    return found[-1] if found else {}


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def exported_class(folder: Path) -> tuple[str, bool]:
    """The class that an exported folder loads as, and whether it brings its own code.

    Raises:
        UserError: there is no readable config.json.
    """
    path = folder / "config.json"
    try:
        table = read_json(path)
        return str(table["architectures"][0]), bool(table.get("auto_map"))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: cannot be read as a model's configuration: {error}") from None
