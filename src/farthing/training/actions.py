"""What happens between steps: one list, one moment. The loop is handed actions and knows nothing of what they do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from farthing.budget import Spent
from farthing.events import Event


@dataclass(frozen=True)
class Moment:
    """Where a run stands when actions are asked."""

    step: int
    """optimizer steps done"""
    steps: int
    """optimizer steps in all"""
    spent: Spent


class Action(Protocol):
    """Something to do at a cadence with the model as it is then (the averaged weights, where they are averaged)."""

    def due(self, moment: Moment) -> bool:
        """Whether to run now; called after every step."""

    def run(self, moment: Moment, model: nn.Module) -> Iterable[Event]:
        """Do it and say what happens, as it happens. The model and torch's random state must be left as they were."""


def at_cadence(moment: Moment, every: int) -> bool:
    """Every so many steps, and at the end."""
    return moment.step % every == 0 or moment.step == moment.steps
