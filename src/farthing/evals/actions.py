"""What evaluation does between training steps: what it must know of the loop, and the texts written at the end.

The shape of farthing.training.actions.Action, which is on the same floor and therefore not imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from farthing.budget import Spent
from farthing.evals.forward import Precision
from farthing.evals.samples import TextTokenizer, write_samples
from farthing.events import Event, Sampled
from farthing.model.gpt import GPT
from farthing.recipe.running import Sample


class Moment(Protocol):
    """Where a run stands when actions are asked."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""

    @property
    def spent(self) -> Spent:
        """What has been spent."""


@dataclass(frozen=True)
class Samples:
    """The action that writes samples at the end."""

    section: Sample
    seed: int
    tokenizer: TextTokenizer
    precision: Precision

    def due(self, moment: Moment) -> bool:
        """Only at the end."""
        return moment.step == moment.steps

    def run(self, moment: Moment, model: nn.Module) -> list[Event]:
        """Write the recipe's samples."""
        assert isinstance(model, GPT)
        written = write_samples(model, self.tokenizer, self.section, seed=self.seed, precision=self.precision)
        return [Sampled(step=moment.step, prompt=sample.prompt, text=sample.text) for sample in written]
