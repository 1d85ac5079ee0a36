"""Runs that share a recipe but not a seed are one arm; and what must be alike before arms may be compared."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from farthing import config
from farthing.compare.runs import RunRecord
from farthing.errors import UserError, nearest
from farthing.section import Section

BY = ("bits_per_byte", "nats_per_character", "nats_per_token", "perplexity", "legacy_titles")
"""the readings that arms may be compared by; of each, lower is better"""
_PER_TOKEN = ("nats_per_token", "perplexity")
_NUMBERED = re.compile(r"[-_. ]?(seed)?\d+")


@dataclass(frozen=True)
class Arm:
    """One recipe, trained with one seed or several; failed runs are part of it.

    Args:
        name: what its runs' names have in common, or its first run's name.
        runs: one a seed, the lowest seed first.
    """

    name: str
    runs: tuple[RunRecord, ...]

    @property
    def fingerprint(self) -> str:
        """Of its recipe without the seed."""
        return self.runs[0].arm

    @property
    def recipe(self) -> Section:
        """Its recipe, with the seed of its first run."""
        return self.runs[0].recipe

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The runs that have a score."""
        return tuple(run for run in self.runs if run.status == "finished")

    def scores(self, by: str = "bits_per_byte") -> dict[int, float | None]:
        """The reading `by` of each seed; None where the run failed."""
        return {run.seed: _reading(run, by) for run in self.runs}

    def held_out(self, by: str = "bits_per_byte") -> dict[int, float | None]:
        """The same reading on the held-out test text, of the runs that have been scored on it."""
        return {run.seed: run.held_out.get(by) for run in self.finished if run.held_out is not None}

    @property
    def legacy_coverage(self) -> float | None:
        """The share of the held-out tokens that its legacy reading looks at; None where that reading was not taken."""
        return next((run.validation.get("legacy_coverage") for run in self.finished), None)

    def spent(self) -> dict[str, float]:
        """What a finished run of it takes on average: steps, tokens, epochs, FLOPs, seconds, money."""
        runs = self.finished
        names = runs[0].spent if runs else {}
        return {name: math.fsum(run.spent[name] for run in runs) / len(runs) for name in names}

    def paid(self) -> dict[str, float]:
        """What all its runs took together, failed ones included."""
        names = dict.fromkeys(name for run in self.runs for name in run.spent)
        return {name: math.fsum(run.spent.get(name, 0.0) for run in self.runs) for name in names}


def _reading(run: RunRecord, by: str) -> float | None:
    if run.status == "failed":
        return None
    value = run.validation.get(by)
    if value is None and by == "legacy_titles":
        why = 'evaluate.legacy = "titles" gives it'
        if by in run.validation:
            why = "its held-out text fills no whole batch, and that reading leaves out what fills none"
        raise UserError(f"{run.name} has no legacy_titles reading: {why}; compare by bits_per_byte")
    return value if value is None else float(value)


def group(runs: Sequence[RunRecord]) -> tuple[list[Arm], list[str]]:
    """The arms among runs, in the order in which their first runs are named; and what a person should know of it."""
    by_recipe: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_recipe.setdefault(run.arm, []).append(run)
    notes: list[str] = []
    found = [tuple(_one_a_seed(several, notes)) for several in by_recipe.values()]
    wanted = [_common_name(several) for several in found]
    # Where two arms would have one name, the runs' own names tell them apart, and at the last their folders.
    names = [name if wanted.count(name) == 1 else runs[0].name for name, runs in zip(wanted, found, strict=True)]
    names = [name if names.count(name) == 1 else str(runs[0].path) for name, runs in zip(names, found, strict=True)]
    return [Arm(name, several) for name, several in zip(names, found, strict=True)], notes


def _one_a_seed(runs: Sequence[RunRecord], notes: list[str]) -> Iterator[RunRecord]:
    """A seed counts once: a second run of the same recipe and seed is no second draw."""
    by_seed: dict[int, RunRecord] = {}
    # Finished runs first, so that a failure that was made good elsewhere does not hide the score.
    for run in sorted(runs, key=lambda run: run.status != "finished"):
        first = by_seed.setdefault(run.seed, run)
        if first is not run:
            notes.append(f"{run.name} repeats seed {run.seed} of {first.name}, and is not counted")
    yield from (by_seed[seed] for seed in sorted(by_seed))


def _common_name(runs: Sequence[RunRecord]) -> str:
    stems = {_stem(run.name) for run in runs}
    return stems.pop() if len(runs) > 1 and len(stems) == 1 else runs[0].name


def _stem(name: str) -> str:
    """`small` for `small-seed3` and `small-2`; a name that is nothing but a number stays."""
    found = re.fullmatch(rf"(.+?){_NUMBERED.pattern}", name)
    return found.group(1) if found else name


def find_arm(arms: Sequence[Arm], name: str) -> Arm:
    """The arm of that name, or the one that has a run of that name or in that folder.

    Raises:
        UserError: there is none.
    """
    for arm in arms:
        if name == arm.name or any(name in (run.name, str(run.path)) for run in arm.runs):
            return arm
    known = [arm.name for arm in arms] + [run.name for arm in arms for run in arm.runs]
    raise UserError(f"--baseline {name}: none of the runs to compare{nearest(name, known)}")


def check_by(by: str) -> str:
    """Refuse a reading that nothing can be compared by.

    Raises:
        UserError: with the known ones.
    """
    if by not in BY:
        raise UserError(f"--by {by}: no such reading{nearest(by, BY)}; it may be {', '.join(BY)}")
    return by


def check_alike(arms: Sequence[Arm], by: str) -> list[str]:
    """Refuse what cannot be compared; returns notes on what should be known when comparing the rest.

    Raises:
        UserError: runs differ in yardstick version, validation text, stride, or in training text though their recipes
            ask for the same; or in tokenizer, where the reading is per token.
    """
    runs = [(arm, run) for arm in arms for run in arm.finished]
    if not runs:
        return []
    notes: list[str] = []
    for arm, first in {arm.name: (arm, run) for arm, run in reversed(runs)}.values():
        for run in arm.finished:
            if run.texts.get("train") != first.texts.get("train"):
                raise _unlike(
                    first, run, "training text", _short(first.texts["train"]), _short(run.texts["train"]),
                    "their recipes are the same, so the files have changed in between",
                )  # fmt: skip
    base, first = runs[0]
    for arm, run in runs[1:]:
        _same_yardstick(first, run, by)
        if arm is base or run is not arm.finished[0] or run.texts.get("train") == first.texts.get("train"):
            continue
        if imported := [one.name for one, of in ((arm, run), (base, first)) if "train" not in of.texts]:
            notes.append(f"{imported[0]} was not trained here, and what it learned from is not known")
        elif any(change.path.startswith("data.") for change in config.diff(base.recipe, arm.recipe)):
            notes.append(f"{arm.name} was trained on other text than {base.name}; the validation text is the same")
        else:
            raise _unlike(
                first, run, "training text", _short(first.texts["train"]), _short(run.texts["train"]),
                "their recipes ask for the same text, so the files are not the same",
            )  # fmt: skip
    how = dict.fromkeys(str(run.validation["precision"]) for _, run in runs)
    if len(how) > 1:
        notes.append(f"the scores were computed in different precisions: {', '.join(how)}")
    machines = dict.fromkeys(run.machine for _, run in runs)
    if len(machines) > 1:
        notes.append(f"seconds and money are of different machines: {', '.join(machines)}")
    if by == "legacy_titles":
        notes += _flattered(arms)
    return notes


def _flattered(arms: Sequence[Arm]) -> Iterator[str]:
    """That the reading of some arms leaves out more of the text than that of others, if so."""
    seen = {arm.name: arm.legacy_coverage for arm in arms if arm.legacy_coverage is not None}
    shares = dict.fromkeys(f"{share:.1%}" for share in seen.values())
    if len(shares) > 1:
        least, most = min(seen, key=seen.__getitem__), max(seen, key=seen.__getitem__)
        yield (
            f"legacy_titles looks at {seen[least]:.1%} of the held-out tokens for {least} and at {seen[most]:.1%} for "
            f"{most}, and reads lower for looking at less; bits_per_byte scores them all"
        )


def _same_yardstick(first: RunRecord, run: RunRecord, by: str) -> None:
    a, b = first.validation, run.validation
    if a["version"] != b["version"]:
        older = min((first, run), key=lambda one: one.validation["version"])
        remedy = f"score the older one again with: farthing eval {older.path}"
        raise _unlike(first, run, "yardstick version", a["version"], b["version"], remedy)
    apart = "only readings of one text can be compared"
    for name in ("split", "bytes"):
        if a[name] != b[name]:
            raise _unlike(first, run, f"{name} of the text they were scored on", a[name], b[name], apart)
    if a["fingerprint"] != b["fingerprint"]:
        raise _unlike(first, run, "validation text", _short(a["fingerprint"]), _short(b["fingerprint"]), apart)
    if _stride(a) != _stride(b):
        remedy = "a smaller stride reads lower; score one again with the other's: farthing eval RUN evaluate.stride=N"
        raise _unlike(first, run, "evaluate.stride", _stride(a), _stride(b), remedy)
    if by in _PER_TOKEN and first.tokenizer != run.tokenizer:
        remedy = f"{by} depends on the tokenizer; compare by bits_per_byte"
        raise _unlike(first, run, "tokenizer", _short(first.tokenizer), _short(run.tokenizer), remedy)


def _stride(validation: Mapping[str, Any]) -> int | str:
    """The stride as it was asked for: a whole window, or a number of tokens."""
    return "context_length" if validation["stride"] == validation["context_length"] else int(validation["stride"])


def _short(fingerprint: str) -> str:
    return fingerprint[:12]


def _unlike(first: RunRecord, run: RunRecord, what: str, old: object, new: object, remedy: str) -> UserError:
    return UserError(f"{first.name} and {run.name} differ in the {what} ({old} and {new}): {remedy}")
