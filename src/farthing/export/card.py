"""The model card: what a stranger has to know of a model, for people in Markdown and for the hub in YAML.

Every number comes from the run's own files, every word of a user is escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farthing.config import Change
from farthing.errors import UserError, nearest
from farthing.export.leaks import Private, redact
from farthing.export.licenses import LICENSES
from farthing.export.provenance import PATHS, Provenance, TaskScore, exported_class, file_name, published, redacted
from farthing.sinks.legible import money
from farthing.sinks.markdown import clean, fill
from farthing.storage import write_text

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

CARD = "README.md"
SECTIONS = (
    "What it is", "Data", "Recipe", "Budget", "Yardsticks", "Task scores", "Samples", "Intended use and limits",
    "Energy and carbon", "Machine and versions", "How to reproduce", "How to use",
)  # fmt: skip
"""what a card must tell, as its headings name it"""

_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
_FILES = 10
_MEANINGS = {
    "xz": "a compressor that has read nothing else, preset 9",
    "zstd": "another, level 19",
    "unigram": "token frequencies of the training text, and nothing else learned",
}


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What only the owner of a model can say of it. None or empty: not stated, and the card says so.

    Raises:
        UserError: a value that the hub would refuse, or that makes no sense.
    """

    license: str | None = None
    """the hub's name of a licence (mit, apache-2.0, cc-by-4.0...), or any other licence's own name"""
    data_license: str | None = None
    """of the training text, in words"""
    language: Sequence[str] = ()
    """codes of ISO 639: en, de..."""
    watts: float | None = None
    """what the machine drew on average while it trained"""
    grams_per_kwh: float | None = None
    """grams of CO2 that a kilowatt-hour stands for where it trained"""
    repository: str | None = None
    """where the model will be published: owner/name"""

    def __post_init__(self) -> None:
        if self.license is not None and self.license.lower() not in LICENSES:
            close = nearest(self.license.lower(), LICENSES)
            if close or not self.license.strip():
                raise UserError(f"--license {self.license!r}: no licence that the hub knows{close}")
        for code in self.language:
            if not _LANGUAGE.fullmatch(code):
                raise UserError(f"--language {code!r}: should be a code of ISO 639 such as en or de")
        for name, value in (("--watts", self.watts), ("--grams-per-kwh", self.grams_per_kwh)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} {value}: should be a number above 0")
        if self.grams_per_kwh is not None and self.watts is None:
            raise UserError(f"--grams-per-kwh {self.grams_per_kwh}: needs --watts, the power that was drawn")

    def redacted(self, private: Private) -> Stated:
        """The same without what must not be published."""

        def safe(text: str | None) -> str | None:
            return None if text is None else redact(text, private)

        return replace(
            self, license=safe(self.license), data_license=safe(self.data_license), repository=safe(self.repository)
        )


def write_card(
    folder: Path,
    told: Provenance,
    stated: Stated,
    *,
    changes: Sequence[Change] = (),
    notes: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write README.md into an exported folder.

    Args:
        folder: with a config.json, which says what class it loads as.
        told: what the run's files say.
        stated: what the owner says.
        changes: the recipe's settings that are not at their defaults.
        notes: what a user of this export has to know, a sentence each.
        versions: of the packages that exported it.

    Raises:
        UserError: the folder has no readable config.json.
    """
    private = Private.here()
    stated, notes = stated.redacted(private), redacted(list(notes), private)
    changes = [_published(change, private) for change in changes]
    metadata = front_matter(told, stated).to_yaml()
    body = render(told, stated, exported=exported_class(folder), changes=changes, notes=notes, versions=versions or {})
    write_text(folder / CARD, f"---\n{metadata}\n---\n\n{body}")


def _published(change: Change, private: Private) -> Change:
    """A change without local paths and secrets."""
    path, *rest = change.path.split(".")
    files = (path in ("data", "tokenizer") and rest[0] in PATHS) or change.path == "model.init.run"
    names = [file_name(value) if files else value for value in (change.old, change.new)]
    if change.path == "evaluate.tasks":
        names = [published({"evaluate": {"tasks": value or []}})["evaluate"]["tasks"] for value in names]
    old, new = redacted(names, private)
    return Change(change.path, old, new)


def front_matter(told: Provenance, stated: Stated) -> ModelCardData:
    """What the hub reads: YAML that its own classes make, so that no name can break out of its quotes."""
    from huggingface_hub import ModelCardData

    results = list(_results(told))
    license_id = (stated.license or "").lower()
    own: dict[str, Any] = (
        {"license_name": clean(stated.license or "")} if stated.license and license_id not in LICENSES else {}
    )
    return ModelCardData(
        license=None if stated.license is None else ("other" if own else license_id),
        language=list(stated.language) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["farthing", "text-generation", "pre-trained", "small-language-model"],
        datasets=list(told.datasets) or None,
        model_name=_name(told, stated) if results else None,
        # Which run and which of its checkpoints these weights are: publish-check looks here.
        farthing={"recipe": told.receipt["recipe"], "step": told.step},
        eval_results=results or None,
        **own,
    )


def _results(told: Provenance) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    validation = told.validation
    names = {
        "bits_per_byte": "bits per byte",
        "perplexity": "perplexity per token",
        "nats_per_token": "nats per token",
    }
    for metric, name in names.items():
        if validation.get(metric) is not None:
            yield EvalResult(
                task_type="text-generation",
                task_name="language modelling",
                dataset_type=told.datasets[0] if told.datasets else str(told.data["kind"]),
                dataset_name=f"held-out part of {clean(told.data_name)}",
                dataset_split=str(validation["split"]),
                dataset_args={"sha256": validation["fingerprint"]},
                metric_type=metric,
                metric_name=name,
                metric_value=round(float(validation[metric]), 6),
            )
    for task in told.scores:
        if task.value is None:
            continue
        yield EvalResult(
            task_type="text-generation",
            task_name="multiple choice" if task.chance else "next words",
            dataset_type=task.name,
            dataset_name=f"{task.name} ({clean(task.source)})",
            dataset_args={"questions": task.questions, "shots": task.shots},
            metric_type=task.measure,
            metric_value=round(task.value, 6),
            metric_args=None if task.error is None else {"standard_error": round(task.error, 6)},
        )


def render(
    told: Provenance,
    stated: Stated,
    *,
    exported: tuple[str, bool],
    changes: Sequence[Change],
    notes: Sequence[str],
    versions: Mapping[str, str],
) -> str:
    """The card's text for people; arguments as in `write_card`, `exported` being the class and whether it brings code."""
    validation, spent, plan = told.validation, told.spent, told.plan
    files = [file for file in told.data["files"] if file.get("sha256")] if told.data["kind"] != "pystdlib" else []
    return fill(
        _TEMPLATE,
        name=_name(told, stated),
        parameters=plan["parameters"],
        by_part=plan["parameters_by_part"],
        architecture=list(told.architecture()),
        context_length=told.model.context_length,
        data=told.data,
        data_name=told.data_name,
        source=told.source,
        split=_split(told.data["split"]),
        files=[{**file, "name": Path(file["name"]).name} for file in files[:_FILES]],
        files_left=max(0, told.data["files_count"] - _FILES),
        license_name=stated.license,
        data_license=stated.data_license,
        language=list(stated.language),
        changes=[change for change in changes if change.new is not None],
        budget=list(_budget(told)),
        spent={"tokens": 0, "seconds": 0.0, "steps": told.step, **spent},
        epochs=spent.get("epochs"),
        wall_seconds=told.wall_seconds,
        validation=validation,
        bits=validation.get("bits_per_byte"),
        references=told.references,
        scale=[
            {"name": name, "bits": told.references[name], "meaning": meaning}
            for name, meaning in _MEANINGS.items()
            if told.references.get(name) is not None
        ],
        tasks=[_task(one) for one in told.scores],
        samples=[{"prompt": prompt, "text": prompt + written} for prompt, written in told.samples],
        energy=_energy(told, stated),
        machine=list(_machine(told, versions)),
        recipe=told.recipe,
        fingerprint=told.receipt["recipe"],
        shortened=told.shortened,
        flexible=" and ".join(name for name in ("minutes", "money") if told.table["budget"].get(name) is not None),
        run=told.run,
        step=told.step,
        trained_on=told.trained_on,
        started_from=told.started_from,
        imported=told.imported,
        address=stated.repository or "path/to/this/folder",
        prompt=next((prompt for prompt, _ in told.samples if prompt.strip()), "The "),
        remote_code=exported[1],
        notes=notes,
        form=exported[0],
    )


def _name(told: Provenance, stated: Stated) -> str:
    return stated.repository.split("/")[-1] if stated.repository else clean(told.run)


def _split(rule: Any) -> str:
    """How documents were held out, as the receipt has it."""
    if not isinstance(rule, Mapping):
        return str(rule)
    return ", ".join(f"{name} {value}" for name, value in rule.items() if value is not None)


def _budget(told: Provenance) -> Iterator[dict[str, str]]:
    """What was asked and what was spent, limit by limit."""
    asked, spent = told.table["budget"], told.spent
    for name, unit in (
        ("steps", "optimizer steps"), ("tokens", "training tokens"), ("epochs", "passes over the text"),
        ("flops", "FLOPs"), ("minutes", "minutes of training"), ("money", "money"),
    ):  # fmt: skip
        used = spent.get("seconds", 0.0) / 60 if name == "minutes" else spent.get(name)
        if name == "money" and "price_per_hour" not in asked:
            used = None
        yield {
            "name": unit,
            "asked": _amount(name, asked.get(name)),
            "spent": "unknown" if used is None else _amount(name, used),
        }


def _amount(name: str, value: float | None) -> str:
    if value is None:
        return "no limit"
    if name in ("steps", "tokens"):
        return f"{value:,.0f}"
    if name == "money":
        return money(value)
    return f"{value:.2e}".replace("e+", "e") if name == "flops" else f"{value:,.2f}"


def _task(score: TaskScore) -> dict[str, str]:
    def shown(value: float | None) -> str:
        if value is None:
            return "unknown"
        return f"{100 * value:.1f} %" if score.share else f"{value:,.2f}"

    interval = "unknown" if score.low is None else f"{shown(score.low)} to {shown(score.high)}"
    return {
        "name": score.name + (f" ({score.shots}-shot)" if score.shots else ""),
        "measure": score.measure.replace("_", " "),
        "value": "not finite" if score.value is None else shown(score.value),
        "interval": interval,
        "chance": "none" if score.chance is None else shown(score.chance),
        "questions": f"{score.questions:,}" + (f" of {score.of:,}" if score.questions < score.of else ""),
        "verdict": score.verdict or "none",
    }


def _energy(told: Provenance, stated: Stated) -> dict[str, Any] | None:
    seconds = told.wall_seconds or told.spent.get("seconds")
    if stated.watts is None or not seconds:
        return None
    kwh = stated.watts * seconds / 3.6e6
    grams = None if stated.grams_per_kwh is None else kwh * stated.grams_per_kwh
    return {
        "watts": stated.watts, "seconds": seconds, "kwh": kwh, "grams": grams, "intensity": stated.grams_per_kwh,
    }  # fmt: skip


def _machine(told: Provenance, versions: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    machine, numeric = told.receipt.get("machine", {}), told.receipt.get("numeric", {})
    settings = told.plan.get("settings", {})
    yield "device", str(machine.get("device_name", machine.get("device", "unknown")))
    if machine.get("cpu"):
        yield (
            "processor",
            f"{machine['cpu']}, {machine.get('physical_cores')} cores, threads: {settings.get('threads')}",
        )
    if machine.get("memory_total"):
        yield "memory", f"{machine['memory_total'] / 2**30:.1f} GiB"
    yield "precision", str(settings.get("precision", "unknown"))
    yield "system", f"{numeric.get('system', 'unknown')} {numeric.get('architecture', '')}".strip()
    yield "Farthing", str(told.receipt.get("farthing", "unknown"))
    for name in ("python", "torch", "numpy"):
        if numeric.get(name):
            yield {"python": "Python", "torch": "PyTorch", "numpy": "NumPy"}[name], str(numeric[name])
    for name, version in versions.items():
        yield f"{name} (export)", version
