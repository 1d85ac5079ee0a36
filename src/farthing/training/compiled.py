"""A compiled model: for the shapes that a run's steps have, compiled before the clock of training starts."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from farthing.data.batches import Batch
from farthing.errors import first_line
from farthing.events import Emit, Notice
from farthing.model.gpt import GPT
from farthing.runtime.device import is_out_of_memory
from farthing.runtime.probes import synchronize
from farthing.runtime.seed import random_states, restore_random_states
from farthing.training.parity import compare_compiled
from farthing.training.step import Stepper


class Compiled:
    """A model's residual stream, compiled for micro-batches of the usual sizes and plain for all others.

    Each size is compiled anew, which takes most of a minute: the few windows of a run's last step are not worth it.

    Args:
        model: whose hidden() it is.
        sizes: the numbers of windows that are worth it, at present.
    """

    def __init__(self, model: GPT, sizes: Callable[[], set[int]]) -> None:
        self._plain = model.hidden
        self._compiled = torch.compile(model.hidden, dynamic=False)
        self._sizes = sizes

    def __call__(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """As GPT.hidden."""
        call = self._compiled if len(tokens_BT) in self._sizes() else self._plain
        hidden_BTD: Tensor = call(tokens_BT, segments_BT)
        return hidden_BTD


def compile_hidden(stepper: Stepper) -> None:
    """Have a stepper call its model compiled."""

    def sizes() -> set[int]:
        return {stepper.micro_batch, stepper.batch_size % stepper.micro_batch}

    stepper.hidden = Compiled(stepper.model, sizes)


def warm_up(stepper: Stepper, batch: Batch, emit: Emit) -> float:
    """Compile what the steps of a run will call, and check it; returns the seconds that this took.

    Weights, optimizer, gradients and random numbers are as before. Where the compiler fails, or what it makes does not
    compute what the plain code does, a notice says so and the plain code is used.
    """
    states, start = random_states(), time.monotonic()
    trouble = None
    try:
        for part in {part.windows: part for part in batch.split(stepper.micro_batch)}.values():
            found = compare_compiled(stepper, part)
            if not found.holds:
                told = f"compiled, the model does not compute what it does plain ({found.told()}); going on without it"
                trouble = Notice(code="parity_fallback", message=told)
    except Exception as error:
        # Where memory has run out, the loop knows what to do. Whatever else the compiler trips over, training without
        # it is the same training.
        if not is_out_of_memory(error):
            told = f"torch.compile failed ({first_line(error)}); going on without it"
            trouble = Notice(code="compile_fallback", message=told)
    finally:
        stepper.optimizer.zero_grad()
        restore_random_states(states)
    if trouble is not None:
        stepper.hidden = stepper.model.hidden
        emit(trouble)
    synchronize(stepper.device.type)
    return time.monotonic() - start
