"""A model from elsewhere on the held-out text of a run of ours, so that one table can hold them both."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farthing import assemble, config
from farthing.errors import DataError, UserError
from farthing.export.foreign import Foreign
from farthing.model.gpt import model_with
from farthing.planning import Settings
from farthing.recipe import Recipe
from farthing.rundir import RunDir, read_receipt
from farthing.runtime.device import Machine
from farthing.storage import cache_folder, write_text


@dataclass(frozen=True)
class HeldOut:
    """A score on another run's text.

    Args:
        validation: the yardsticks.
        parts: the receipt of the held-out parts; the training part is left out, since the model did not learn from it.
        directory: where the text's relative paths begin.
        seconds: what scoring took.
    """

    validation: dict[str, Any]
    parts: dict[str, Any]
    directory: str
    seconds: float


def score_as(like: RunDir, recipe: Recipe, settings: Settings, machine: Machine, found: Foreign) -> HeldOut:
    """Score a model on the validation text of a run, in the model's own tokens.

    Args:
        like: that run.
        recipe: the model's, with the run's [data] and [evaluate].
        settings: how it computes.
        machine: where.
        found: the model.

    Raises:
        UserError: that run has no text of its own.
        DataError: the text is no longer what it was.
    """
    receipt = read_receipt(like)
    were = receipt["data"]["parts"]
    if "validation" not in were:
        raise UserError(f"--text-of {like.path}: that run has no text of its own")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        write_text(path, found.tokenizer.to_json())
        beside = config.build(Recipe, config.override(config.to_table(recipe), {"tokenizer.path": str(path)}))
        text = assemble.read_text(
            beside, directory=Path(receipt["directory"]), cache=cache_folder(), report=lambda stage, done, total: None
        )
    if text.validation.fingerprint != were["validation"]["fingerprint"]:
        raise DataError(f"{like.path}: the validation text has changed since the run began; put the old files back")
    device = machine.torch_device
    model = model_with(found.weights, found.section, found.tokenizer.vocab_size, attention=settings.attention)
    start = time.monotonic()
    validation = assemble.score(
        recipe, model.eval().to(device), text.validation, precision=settings.precision, device=device
    )
    parts = {name: part for name, part in text.receipt["parts"].items() if name != "train" and part}
    return HeldOut(validation, parts, receipt["directory"], round(time.monotonic() - start, 3))
