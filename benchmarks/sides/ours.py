"""Worker: Farthing's own training step, through its own path: recipe, plan with the settings that auto picks, stepper."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from farthing import assemble, config, session
from farthing.data.batches import Batches
from farthing.data.prepare import Prepared
from farthing.planning import Plan
from farthing.recipe import Recipe
from farthing.runtime.device import peak_memory_bytes
from farthing.runtime.probes import synchronize
from farthing.storage import cache_folder
from farthing.training.step import Stepper
from sides.turnstile import Turnstile, asked, peak_memory


@dataclass(frozen=True)
class Built:
    """A recipe built as `farthing train` builds it, up to its first step."""

    recipe: Recipe
    text: Prepared
    plan: Plan
    stepper: Stepper
    batches: Batches


def build(overrides: Sequence[str], *, minutes: float = 60.0, device: str = "cpu") -> Built:
    """Read the text, plan, and build what takes steps; the plan is that of a run of `minutes`."""
    recipe = config.load(Recipe, "default", [*overrides, f"budget.minutes={minutes}"])
    machine = session.prepare_machine(recipe, device)
    text = assemble.read_text(recipe, directory=Path.cwd(), cache=cache_folder(), report=lambda *_: None)
    plan = assemble.plan_run(recipe, machine, text, disk_free=session.disk_free(Path(tempfile.gettempdir())))
    stepper = assemble.build_stepper(recipe, plan.settings, text.tokenizer.vocab_size, machine.torch_device)
    return Built(recipe, text, plan, stepper, assemble.build_batches(recipe, text.train))


def facts(built: Built) -> dict[str, Any]:
    """What was planned, for the results."""
    return {
        "parameters": built.plan.parameters,
        "flops_per_token": built.plan.flops_per_token,
        "matmul_flops": built.plan.peak_flops,
        "chosen": built.plan.settings.told(),
        "settings": asdict(built.plan.settings),
        "planned_peak_bytes": built.plan.memory_bytes,
    }


def main() -> None:
    """Take steps when it is our turn."""
    wanted = asked()
    start = time.perf_counter()
    built = build(wanted["overrides"], minutes=wanted["minutes"], device=wanted.get("device", "cpu"))
    found = facts(built) | {"build_seconds": time.perf_counter() - start, "peak_bytes_before": peak_memory()}
    kind = built.stepper.device.type
    device_peak = {"device_peak_bytes": lambda: peak_memory_bytes(kind)}
    turnstile, number = Turnstile(found, device_peak, settle=lambda: synchronize(kind)), itertools.count()
    while turnstile.next():
        built.stepper.take(built.batches.batch(next(number)))


if __name__ == "__main__":
    main()
