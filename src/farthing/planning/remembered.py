"""A choice of settings, remembered per machine and recipe: a repeated run computes as the first one did, bit for bit.

One small file for each in the cache folder. A lost, damaged or unwritable one costs only the time to choose again.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch

from farthing import __version__, config, storage
from farthing.model.linear import WeightGradient
from farthing.model.memory import Format
from farthing.model.memory import Path as AttentionPath
from farthing.planning.settings import Counts, Settings
from farthing.planning.trial import Trial
from farthing.recipe import Recipe
from farthing.runtime.device import Machine

_FORMAT = 1


def file_of(recipe: Recipe, machine: Machine, counts: Counts, start: Settings) -> Path:
    """Where the choice for such a run on such a machine is kept.

    The name is a digest of all that the fastest settings depend on. Rates, schedule, seed and the share of dropout are
    not of it, so that the runs of a search share one choice. `start` is: memory that has run short leads to another
    beginning.
    """
    train, objective = recipe.train, recipe.objective
    # Whether anything is dropped costs time; how much does not, and a search tries many shares.
    model = recipe.model.model_copy(update={"dropout": 0.5 if recipe.model.dropout else 0.0})
    facts = {
        "format": [_FORMAT, __version__],
        "machine": [machine.device, machine.device_name, machine.cpu, *machine.instruction_sets],
        "cores": [machine.physical_cores, machine.logical_cores, machine.cpu_limit],
        "torch": [torch.__version__, torch.backends.cpu.get_cpu_capability()],
        "model": config.fingerprint(model),
        "vocab_size": counts.vocab_size,
        "optimizer": [recipe.optimizer.kind, recipe.optimizer.sharpness.kind],
        "objective": [objective.r_drop > 0, objective.z_loss > 0, objective.label_smoothing > 0],
        "train": [train.batch_size, train.gradient_clip is not None, train.ema is not None],
        "pinned": [
            train.precision, train.attention, train.weight_gradient, train.compile, train.micro_batch, train.threads
        ],
        "budget": config.fingerprint(recipe.budget),
        "tokens_per_epoch": None if recipe.budget.epochs is None else counts.tokens_per_epoch,
        "start": [start.micro_batch, start.threads, start.compile],
    }  # fmt: skip
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return folder() / f"{name}.json"


def folder() -> Path:
    """Where choices are kept."""
    return storage.cache_folder() / "choices"


def remember(file: Path, settings: Settings, trial: Trial | None) -> None:
    """Keep a choice; a cache that cannot be written is passed over."""
    with suppress(OSError, ValueError):
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(file, {"settings": asdict(settings), "trial": None if trial is None else trial.as_dict()})


def recall(file: Path) -> tuple[Settings, Trial | None] | None:
    """The choice that was kept, or None where there is none that makes sense."""
    try:
        table: Any = storage.read_json(file)
        settings = Settings(**table["settings"])
        trial = None if table["trial"] is None else Trial.of({**table["trial"], "remembered": True})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return (settings, trial) if _sound(settings) else None


def _sound(settings: Settings) -> bool:
    counts = (settings.threads, settings.micro_batch, settings.accumulation)
    return (
        settings.precision in get_args(Format)
        and settings.attention in get_args(AttentionPath)
        and settings.weight_gradient in get_args(WeightGradient)
        and all(type(count) is int and count > 0 for count in counts)
        and type(settings.compile) is bool
        and isinstance(settings.why, dict)
        and isinstance(settings.device, str)
    )
