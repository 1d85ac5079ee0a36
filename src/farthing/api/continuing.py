"""Starting from the weights of another run: what `model.init.kind = "run"` leaves open, filled in and checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from farthing import config
from farthing.api.trained import tokenizer_of
from farthing.config import Change
from farthing.data.tokenizer import build_tokenizer
from farthing.errors import UserError
from farthing.recipe import Recipe
from farthing.recipe.data import TokenizerFile, TrainedTokenizer
from farthing.recipe.model import LearnedPosition, RunInit
from farthing.rundir import RunDir, find_run
from farthing.training.checkpoint import weights_file

_LISTED = 10
_FREE = ("init.", "dropout", "attention.scope")
"""settings of [model] that weights do not depend on"""


def with_start(recipe: Recipe, runs: Path) -> Recipe:
    """The recipe with the run that it starts from pinned down: its folder, step, weights and tokenizer.

    A recipe that starts from weights of its own is returned as it is.

    Raises:
        UserError: there is no such run or checkpoint, or its model or its tokenizer is another than the recipe's.
    """
    init = recipe.model.init
    if not isinstance(init, RunInit):
        return recipe
    run = find_run(init.run, runs)
    _check_model(recipe, run)
    found = weights_file(run, str(init.checkpoint))
    if init.weights not in (None, found.sha256):
        raise UserError(
            f"model.init.weights={init.weights}: the weights of step {found.step} of {run.path} are {found.sha256}; "
            "name the right run and checkpoint, or leave weights out"
        )
    pinned: dict[str, Any] = {
        "model.init.run": str(run.path.resolve()),
        "model.init.checkpoint": found.step,
        "model.init.weights": found.sha256,
    }
    if isinstance(recipe.tokenizer, TrainedTokenizer):
        # One that is trained on other text cuts it into other tokens than those that the weights know.
        pinned |= {"tokenizer.kind": "file", "tokenizer.path": str(run.tokenizer.resolve())}
    made = config.build(Recipe, config.override(config.to_table(recipe), pinned))
    _check_tokenizer(made, run)
    return made


def _check_model(recipe: Recipe, run: RunDir) -> None:
    theirs = config.load(Recipe, str(run.recipe)).model
    free = _FREE if isinstance(theirs.position, LearnedPosition) else (*_FREE, "context_length")
    changes = [one for one in config.diff(theirs, recipe.model) if not one.path.startswith(free)]
    if changes:
        more = f"; and {len(changes) - _LISTED} more" if len(changes) > _LISTED else ""
        raise UserError(
            f"model.init.run={run.path}: another model than this recipe's: {'; '.join(_told(changes[:_LISTED]))}{more}; "
            f"start from that run's recipe: {run.recipe}"
        )


def _told(changes: list[Change]) -> Iterator[str]:
    for one in changes:
        old, new = ("none" if value is None else value for value in (one.old, one.new))
        yield f"model.{one.path} is {old} there, {new} here"


def _check_tokenizer(recipe: Recipe, run: RunDir) -> None:
    section = recipe.tokenizer
    mine = build_tokenizer(section, lambda: iter(()), directory=Path.cwd())
    if mine.fingerprint != tokenizer_of(run).fingerprint:
        named = f" ({section.path})" if isinstance(section, TokenizerFile) else ""
        raise UserError(
            f"tokenizer.kind={section.kind}{named}: is not the tokenizer of {run.path}, whose weights know no other; "
            f"set tokenizer.kind=file tokenizer.path={run.tokenizer}"
        )
