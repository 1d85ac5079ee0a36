"""What happens between steps: one list, one moment. The loop is handed actions and knows nothing of what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from farthing.budget import Spent
from farthing.events import Emit, Event
from farthing.training.course import State
from farthing.training.interruption import Abandoned


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


@dataclass(frozen=True)
class Within:
    """An action that is carried out within a context, such as one in which its scoring can be ended."""

    action: Action
    context: Callable[[], AbstractContextManager[None]]

    def due(self, moment: Moment) -> bool:
        """When the action is."""
        return self.action.due(moment)

    def run(self, moment: Moment, model: nn.Module) -> Iterator[Event]:
        """What the action says."""
        with self.context():
            yield from self.action.run(moment, model)


def act(
    due: Sequence[Action], moment: Moment, model: nn.Module, state: State, *, stopping: Callable[[], bool], note: Emit
) -> bool:
    """Do what is due, one after another.

    Args:
        due: what to do; as many as `state.acts` says have been done before.
        moment: where the run stands.
        model: as the actions shall find it.
        state: counts what is done.
        stopping: whether the run has been told to stop.
        note: takes what happens, as it happens.

    Returns:
        False if it was told to stop before all was done; the rest is then for whoever resumes.
    """
    for action in due[state.acts :]:
        if stopping():
            return False
        try:
            for event in action.run(moment, model):
                note(event)
        except Abandoned:
            return False
        state.acts += 1
    state.acts = 0
    return True
