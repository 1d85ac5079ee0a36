"""Run folders as a real run leaves them, with scores of one's own: written by the product's own writers, not trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farthing import __version__, config
from farthing.compare.arms import Arm, group
from farthing.compare.runs import RunRecord, gather
from farthing.events import Evaluated, EventLog, Finished, Started, Step, Stopped
from farthing.recipe import Recipe
from farthing.rundir import RESULT_VERSION, RunDir
from farthing.storage import write_json

TEXT = "c4eff9b5" * 8
TRAINING = "0a1b2c3d" * 8
BASE: dict[str, Any] = {"budget.steps": 20, "budget.minutes": None}


def recipe_of(overrides: Mapping[str, Any]) -> Recipe:
    return config.load(Recipe, "default", {**BASE, **overrides})


def spent(step: int, *, tokens: float = 1024.0, flops: float = 6e9, seconds: float = 0.5) -> dict[str, float]:
    """What a run had used up after so many steps."""
    return {
        "steps": step, "tokens": step * tokens, "epochs": step * 0.01, "flops": step * flops,
        "seconds": step * seconds, "money": 0.0,
    }  # fmt: skip


def yardsticks(bits: float | None, **others: Any) -> dict[str, Any]:
    return {
        "bits_per_byte": bits,
        "nats_per_token": None if bits is None else bits * 2.4,
        "perplexity": None if bits is None else 10 * bits,
        "nats_per_character": None if bits is None else bits * 0.7,
        "tokens": 1000, "bytes": 4000, "characters": 4000, "documents": 10, "separator_share": 0.01,
        "split": "validation", "fingerprint": TEXT, "context_length": 256, "stride": 256, "precision": "fp32",
        "version": 1, **others,
    }  # fmt: skip


def write_run(
    runs: Path,
    name: str,
    bits: float | None = 1.5,
    *,
    seed: int = 1,
    steps: int = 20,
    parameters: int = 1_000_000,
    stopped: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    yardstick: Mapping[str, Any] | None = None,
    training: str = TRAINING,
    tokenizer: str = "5e" * 32,
    per_step: Mapping[str, float] | None = None,
    receipt: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
) -> RunDir:
    """A run that finished with `bits`, or that `stopped` for a reason halfway."""
    asked = recipe_of({**(recipe or {}), "seed": seed})
    parts = {"train": {"fingerprint": training}, "validation": {"fingerprint": TEXT}}
    run = RunDir.create(
        runs / name,
        recipe=config.to_toml(asked),
        tokenizer="{}",
        plan={"parameters": parameters, "steps": steps},
        receipt={
            "farthing": __version__,
            "machine": {"device": "cpu", "device_name": "a processor", "cpu": "a processor"},
            "recipe": config.fingerprint(asked),
            "directory": str(runs),
            "data": {"parts": parts, "tokenizer": {"fingerprint": tokenizer}},
            **(receipt or {}),
        },
    )
    cost = dict(per_step or {})
    scores = yardsticks(bits, **(yardstick or {}))
    log = EventLog(run.events, clock=lambda: 1.0)
    log.emit(Started(run=name, recipe=config.fingerprint(asked), parameters=parameters, steps=steps))
    for step in range(1, (steps // 2 if stopped else steps) + 1):
        now = spent(step, **cost)
        log.emit(Step(step=step, loss=8 / (1 + step), lr=0.01, gradient_norm=1.0, spent=now, tokens_per_second=1e4))
        if step % 5 == 0 and bits is not None:
            found = {**scores, "bits_per_byte": bits + (steps - step) / steps}
            log.emit(Evaluated(step=step, split="validation", validation=found, spent=now, seconds=0.1))
    if stopped:
        log.emit(Stopped(step=steps // 2, reason=stopped, message=stopped))
        log.close()
        return run
    end = spent(steps, **cost)
    log.emit(Finished(status="finished", spent=end, validation=scores, wall_seconds=20.0))
    log.close()
    write_json(
        run.result,
        {
            "version": RESULT_VERSION, "run": str(run.path), "status": "finished", "validation": scores, "best": None,
            "references": None, "spent": end, "wall_seconds": 20.0, "parameters": parameters, "samples": [],
            **(result or {}),
        },
    )  # fmt: skip
    return run


def write_arm(runs: Path, name: str, scores: Mapping[int, float | None], **others: Any) -> None:
    """A run for each seed."""
    for seed, bits in scores.items():
        write_run(runs, f"{name}-seed{seed}", bits, seed=seed, **others)


def records(runs: Path) -> list[RunRecord]:
    return gather([str(runs)], runs=runs, recipe=Recipe).runs


def arms_in(runs: Path) -> dict[str, Arm]:
    return {arm.name: arm for arm in group(records(runs))[0]}
