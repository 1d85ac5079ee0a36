"""The model before a run's first step: drawn from the seed, or with the weights of the run that it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from farthing.errors import CheckpointError
from farthing.model.gpt import GPT, build_model, model_with
from farthing.recipe.model import Model, RunInit
from farthing.rundir import RunDir
from farthing.training.checkpoint import read_weights, weights_file


def starting_model(section: Model, vocab_size: int, *, seed: int, fresh: bool = True, **ways: Any) -> GPT:
    """The model that a recipe asks for.

    Args:
        section: the recipe's [model].
        vocab_size: tokens in the vocabulary.
        seed: of the initial weights, where they are drawn.
        fresh: whether it is to take the first step; one whose weights a checkpoint replaces is left without any where
            they would have to be read from another run, which may be gone by then.
        ways: `attention` and `weight_gradient`, as of GPT.

    Raises:
        CheckpointError: the weights of the other run are not those that the recipe names.
    """
    if not isinstance(section.init, RunInit):
        return build_model(section, vocab_size, seed=seed, **ways)
    if not fresh:
        return GPT(section, vocab_size, **ways)
    return model_with(starting_weights(section.init), section, vocab_size, **ways)


def starting_weights(init: RunInit) -> dict[str, Tensor]:
    """The weights of another run.

    Raises:
        CheckpointError: they are not those that the recipe names.
    """
    found = weights_file(RunDir.open(Path(init.run)), str(init.checkpoint))
    if init.weights not in (None, found.sha256):
        raise CheckpointError(
            f"{found.path}: has changed since the run began ({found.sha256[:12]}, model.init.weights is "
            f"{str(init.weights)[:12]}); put the old file back, or start a new run"
        )
    return read_weights(found.path)
