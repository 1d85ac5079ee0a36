"""planner: many plans from one process, for those who would otherwise import torch and open the text for each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer

from farthing.cli.options import RUNS, Device, Runs
from farthing.errors import UserError


def register(app: typer.Typer) -> None:
    """Add this verb, which `search` and `climb` start for themselves, to the command."""
    app.command("planner", hidden=True)(planner)


def planner(runs: Runs = RUNS, device: Device = "auto") -> None:
    """Answer lines of {"recipe": TABLE, "text": true} with the plan of each, until the input ends.

    Nothing is timed on real steps: memory, parameters and FLOPs are exact without it, minutes are an estimate. Without
    "text" nothing is read, and what only the text can tell is null.
    """
    plans = _Plans(runs, device)
    for line in sys.stdin:
        asked = json.loads(line)
        sys.stdout.write(json.dumps(plans.answer(asked["recipe"], text=asked["text"])) + "\n")
        sys.stdout.flush()


class _Plans:
    """Texts that have been read, by what they depend on."""

    def __init__(self, runs: Path, device: str) -> None:
        self._runs, self._device = runs, device
        self._texts: dict[str, Any] = {}

    def answer(self, table: dict[str, Any], *, text: bool) -> dict[str, Any]:
        from farthing import assemble, config, session
        from farthing.recipe import Recipe

        recipe = config.build(Recipe, table)
        machine = session.prepare_machine(recipe, self._device)
        found = None
        if text:
            try:
                found = self._read(recipe)
            except UserError as error:
                return {"missing_text": str(error)}
        try:
            free = session.disk_free(self._runs)
            plan = assemble.plan_run(recipe, machine, found, disk_free=free, measure=False)
        except UserError as error:
            return {"unknown": str(error)} if not text else {"missing_text": str(error)}
        return {
            "parameters": plan.parameters,
            "memory_bytes": plan.memory_bytes,
            "flops": plan.flops,
            "seconds": None if plan.seconds is None else plan.seconds + (plan.evaluation_seconds or 0.0),
            "money": plan.money,
            "steps": plan.steps,
            "refusals": plan.refusals,
            "passing": plan.passing,
        }

    def _read(self, recipe: Any) -> Any:
        from farthing import assemble, config
        from farthing.storage import cache_folder

        key = f"{recipe.data.model_dump_json()} {config.fingerprint(recipe.tokenizer)} {recipe.model.context_length}"
        if key not in self._texts:
            self._texts[key] = assemble.read_text(
                recipe, directory=Path.cwd(), cache=cache_folder(), report=lambda stage, done, total: None
            )
        return self._texts[key]
