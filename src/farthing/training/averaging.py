"""An exponential moving average of the weights, which is then what is evaluated and kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Averaged:
    """Exponential moving average of parameters (Polyak and Juditsky 1992; the decay's warm-up as in TensorFlow).

    Update number t, counted from 0, uses the decay `min(decay, (1 + t) / (10 + t))`, so that the initial weights are
    forgotten early (nine tenths at the first update) instead of weighing `decay^t`. Costs one copy of the weights.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        """Start the average at the present weights. Raises ValueError for a decay outside (0, 1)."""
        if not 0 < decay < 1:
            raise ValueError(f"decay {decay}: an average needs a decay between 0 and 1, both excluded")
        self.decay = decay
        self.updates = 0
        self._parameters = dict(named_parameters)
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._swapped = False

    @torch.no_grad()
    def update(self) -> None:
        """Draw the average towards the present weights; call it after each optimizer step."""
        assert not self._swapped, "the model holds the average, not its own weights"
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = list(self._averages.values())
        torch._foreach_lerp_(averages, list(self._parameters.values()), 1 - decay)
        self.updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model holds the average inside, and its own weights again, bit for bit, afterwards.

        Weights change places through one temporary tensor, so the memory is that of the largest parameter. Not to be
        updated, saved or loaded inside.
        """
        assert not self._swapped, "already swapped"
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            own = parameter.detach().clone()
            parameter.copy_(self._averages[name])
            self._averages[name].copy_(own)
        self._swapped = not self._swapped

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The averages by parameter name (not copies), and a JSON-ready dict with the number of updates."""
        assert not self._swapped, "the model holds the average, not its own weights"
        return dict(self._averages), {"updates": self.updates}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, int]) -> None:
        """Become the average that `state` described. Raises ValueError, with names, for what does not fit."""
        assert not self._swapped, "the model holds the average, not its own weights"
        if missing := sorted(self._averages.keys() - tensors.keys()):
            raise ValueError(f"averaged weights: missing {', '.join(missing)}")
        if surplus := sorted(tensors.keys() - self._averages.keys()):
            raise ValueError(f"averaged weights: surplus {', '.join(surplus)}")
        if set(values) != {"updates"}:
            raise ValueError(f"averaged weights: expected the number of updates, found {sorted(values)}")
        for name, average in self._averages.items():
            saved = tensors[name]
            if saved.shape != average.shape or saved.dtype != average.dtype:
                raise ValueError(
                    f"averaged weight {name!r} is {saved.dtype} {tuple(saved.shape)}, "
                    f"expected {average.dtype} {tuple(average.shape)}"
                )
        for name, average in self._averages.items():
            average.copy_(tensors[name])
        self.updates = values["updates"]
