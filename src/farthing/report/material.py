"""What a report is made from: runs, their stories and files, a comparison, and what a search or a climb has found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from farthing.compare.arms import Arm, group
from farthing.compare.comparison import Comparison, compare_runs
from farthing.compare.runs import Gathered, LeftOut, RunRecord
from farthing.compare.task_results import latest, read_tasks
from farthing.errors import FarthingError, UserError
from farthing.report.course import Story, read_story
from farthing.rundir import RunDir, read_result
from farthing.section import Section
from farthing.sinks.legible import memory
from farthing.storage import read_json

Kind = Literal["run", "runs", "search", "climb"]
_ALL_POINTS = 12_000
"""points of all runs' curves together, so that a page of many runs stays small"""


@dataclass(frozen=True)
class Facts:
    """A run's other files; an empty mapping stands for one that cannot be read."""

    plan: Mapping[str, Any]
    receipt: Mapping[str, Any]
    result: Mapping[str, Any]
    tasks: Sequence[Mapping[str, Any]] = ()
    """what its last weights came to in tasks, at the end of training or asked for later"""
    held_out_step: int | None = None
    """the checkpoint that was scored on the held-out test text, by its step"""

    @property
    def ran_on(self) -> dict[str, str]:
        """Machine and versions of the receipt, in words."""
        machine, numeric = self.receipt.get("machine") or {}, self.receipt.get("numeric") or {}
        found = {
            "farthing": self.receipt.get("farthing"),
            "machine": machine.get("device_name") or machine.get("cpu"),
            "processor": machine.get("cpu"),
            "cores": machine.get("physical_cores"),
            "memory": memory(machine["memory_total"]) if isinstance(machine.get("memory_total"), int) else None,
            "threads": machine.get("threads"),
            "system": " ".join(str(numeric[name]) for name in ("system", "architecture") if name in numeric) or None,
            **{name: numeric.get(name) for name in ("python", "torch", "numpy")},
        }
        return {name: str(value) for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Tokens:
    """What a tokenizer does to the validation text of its runs.

    Args:
        names: arms that use it.
        report: as `farthing tokenizer inspect --json` has it; None where the text could not be read.
        why: why not.
    """

    names: Sequence[str]
    report: Mapping[str, Any] | None
    why: str = ""


@dataclass(frozen=True)
class Question:
    """What a report is of.

    Args:
        kind: one run, several, a search or a climb.
        title: its name.
        asked: the tables of SEARCH.toml or CLIMB.toml.
        found: findings.json or climb.json.
    """

    kind: Kind
    title: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Material:
    """Everything that a report shows.

    Args:
        question: what it is of.
        arms: in the order of the report: the baseline first.
        compared: arms against the baseline; None of a single arm's only run, or where they cannot be compared.
        why_not: why not, if that is so.
        stories: of every run, by its folder.
        facts: likewise.
        left_out: runs that cannot be shown.
        notes: what else a person should know.
        by: the reading.
        level: the most that the chance of any false verdict may be.
        points_a_run: how many points of a curve a figure has room for.
        defaults: a recipe that asks for nothing, for what a single run asked for.
        tokens: tokenizers and what they do to the text.
    """

    question: Question
    arms: Sequence[Arm]
    compared: Comparison | None
    why_not: str
    stories: Mapping[Path, Story]
    facts: Mapping[Path, Facts]
    left_out: Sequence[LeftOut]
    notes: Sequence[str]
    by: str
    level: float
    points_a_run: int
    defaults: Section | None = None
    tokens: Sequence[Tokens] = ()

    @property
    def remarks(self) -> list[str]:
        """The notes, and before them why the runs are not compared, if they are not."""
        return [*([f"not compared: {self.why_not}"] if self.why_not else []), *self.notes]

    @property
    def runs(self) -> list[RunRecord]:
        """The runs of all arms."""
        return [run for arm in self.arms for run in arm.runs]

    def stories_of(self, arm: Arm) -> list[Story]:
        """The stories of an arm's runs."""
        return [self.stories[run.path] for run in arm.runs if run.path in self.stories]

    def mean(self, arm: Arm) -> float | None:
        """The mean score of an arm's finished runs."""
        scores = [score for score in arm.scores(self.by).values() if score is not None]
        return math.fsum(scores) / len(scores) if scores else None

    @property
    def best(self) -> Arm:
        """The arm with the lowest mean score, the first where none has one.

        Of a search that of its best trial, and of a climb the best that it has come to: what it rolled back may have a
        lower mean, by noise.
        """
        winner = self._winner
        for arm in self.arms:
            if winner is not None and any(run.name.startswith(f"{winner}-seed") for run in arm.runs):
                return arm
        return min(self.arms, key=self._rank)

    @property
    def _winner(self) -> str | None:
        """What the runs of the best are called, where a search or a climb has decided on it."""
        found = self.question.found
        if self.question.kind == "search":
            best = found.get("best")
            return best.get("trial") if isinstance(best, Mapping) else None
        if self.question.kind != "climb":
            return None
        decisions = found.get("decisions", [])
        kept = [one["arm"] for one in decisions if one["outcome"] == "kept"]
        return kept[-1] if kept else next((one["against"] for one in decisions if one["against"]), None)

    @property
    def ranked(self) -> list[Arm]:
        """The baseline, or where there is none the best, and then the others by their score."""
        first = self.best if self.question.kind == "search" else self.arms[0]
        return [first, *sorted((arm for arm in self.arms if arm is not first), key=self._rank)]

    def _rank(self, arm: Arm) -> float:
        mean = self.mean(arm)
        return math.inf if mean is None else mean

    @property
    def beside(self) -> Path:
        """The folder in which a next run would go: that of the runs, or of the search or climb that they are of."""
        parent = self.arms[0].runs[0].path.parent
        return parent.parent if self.question.kind in ("search", "climb") else parent


def collect(
    question: Question,
    found: Gathered,
    *,
    baseline: str | None,
    by: str,
    level: float,
    defaults: Section | None = None,
) -> Material:
    """Read what a report needs of runs that have been gathered.

    Args:
        question: what the report is of.
        found: the runs.
        baseline: an arm's or a run's name; None is the arm of the first run.
        by: the reading that arms are compared by.
        level: the most that the chance of any false verdict may be.
        defaults: a recipe that asks for nothing.

    Raises:
        UserError: an unknown baseline, reading or level, or not one run that can be shown.
    """
    points = max(40, min(200, _ALL_POINTS // len(found.runs)))
    stories: dict[Path, Story] = {}
    facts: dict[Path, Facts] = {}
    left_out = list(found.left_out)
    misfits = [one for one in question.found.get("left_out_ids", []) if question.kind == "search"]
    for run in found.runs:
        if any(run.name == id or run.name.startswith(f"{id}-seed") for id in misfits):
            continue  # the page says how many they are; their scores are not of what is asked now
        try:
            story, own = read_story(run, by=by, points=points), read_facts(RunDir(run.path))
            _check(story, own)
        except (FarthingError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            why = str(error) if isinstance(error, FarthingError) else f"damaged: {type(error).__name__}: {error}"
            left_out.append(LeftOut(run.name, why))
            continue
        stories[run.path], facts[run.path] = story, own
    runs = [run for run in found.runs if run.path in stories]
    if not runs:
        raise UserError(f"{question.title}: no run to report on: {left_out[0]}")
    compared, arms, notes, why_not = _compared(question, runs, baseline=baseline, by=by, level=level)
    damaged = [run.name for run in runs if stories[run.path].damaged]
    return Material(
        question=question,
        arms=arms,
        compared=compared,
        why_not=why_not,
        stories=stories,
        facts=facts,
        left_out=_in_short(question, left_out),
        notes=[*notes, *(f"{name}: damaged lines of its events are left out" for name in damaged)],
        by=by,
        level=level,
        points_a_run=points,
        defaults=defaults,
    )


def _compared(
    question: Question, runs: Sequence[RunRecord], *, baseline: str | None, by: str, level: float
) -> tuple[Comparison | None, list[Arm], list[str], str]:
    """A comparison where there is one to be made, else the arms and why not."""
    if question.kind in ("search", "climb"):
        # Their own files hold the verdicts: each was reached with a plan of its own for the number of looks.
        arms, notes = group(runs)
        return None, arms, notes, ""
    try:
        compared = compare_runs(runs, level=level, baseline=baseline, by=by)
    except UserError as error:
        arms, notes = group(runs)
        if len(arms) < 2 or str(error).startswith("--"):
            raise
        return None, arms, notes, str(error)
    return compared, [one.arm for one in compared.arms], compared.notes, ""


def _in_short(question: Question, left_out: Sequence[LeftOut]) -> list[LeftOut]:
    """Runs of trials that were pruned or are under way are many, and are told once."""
    if question.kind != "search":
        return list(left_out)
    broken = [one for one in left_out if not one.why.startswith(("unfinished", "still running"))]
    rest = len(left_out) - len(broken)
    many = [
        LeftOut(f"{rest} run{'' if rest == 1 else 's'} of trials", "pruned, stopped or under way: not among the curves")
    ]
    return [*broken, *(many if rest else [])]


def _check(story: Story, facts: Facts) -> None:
    """Touch what a report shows of a run, so that a damaged run is left out and does not break the page.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: something is not what it should be.
    """
    for notice in story.notices:
        str(notice["message"])
    for event in story.evaluations:
        float(event["step"]), float(event["spent"]["tokens"])
    for sample in facts.result.get("samples") or []:
        str(sample["prompt"]), str(sample["text"])
    for task in facts.tasks:
        str(task["task"]), task["scores"].get(task["metric"], {}).get("value"), int(task["items"]), int(task["of"])
    dict(facts.result.get("references") or {})
    dict(facts.receipt.get("machine") or {}), dict(facts.receipt.get("numeric") or {})
    for value in story.run.spent.values():
        if not isinstance(value, int | float):
            raise ValueError(f"spent {value!r}")
    for fingerprint in (*story.run.texts.values(), story.run.tokenizer):
        if not isinstance(fingerprint, str):
            raise ValueError(f"fingerprint {fingerprint!r}")


def read_facts(run: RunDir) -> Facts:
    """A run's plan, receipt and result."""

    def read(path: Path) -> Mapping[str, Any]:
        try:
            return dict(read_json(path))
        except (OSError, ValueError, TypeError):
            return {}

    try:
        result = read_result(run)
    except (OSError, ValueError):
        result = {}
    later = read_tasks(run, step=result["spent"]["steps"]) if result else []
    tasks = latest([*(result.get("tasks") or []), *(one["result"] for one in later)])
    step = read(run.held_out).get("step")
    return Facts(read(run.plan), read(run.receipt), result, tasks, step if isinstance(step, int) else None)
