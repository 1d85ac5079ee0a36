"""Watching the loss: not finite, a spike, or running away."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

WINDOW = 20
"""steps whose mean is compared"""
SPIKE_WINDOW = 128
"""steps that a spike is held against"""
SPIKE_FEWEST = 32
"""of them before any judgement"""
MOST_PASSED_OVER = 20
"""batches in a row that may be left out before that is divergence"""


class DivergenceGuard:
    """Tells when training has diverged.

    Args:
        factor: the loss has run away when the mean of the last 20 steps exceeds `factor` times the lowest such mean.
        spike_zscore: a loss or a gradient norm is a spike when it is this many standard deviations above the mean of
            the last 128 that were none; None looks for no spikes.
    """

    def __init__(self, factor: float, *, spike_zscore: float | None = None) -> None:
        self._factor, self._zscore = factor, spike_zscore
        self._calm: dict[str, deque[float]] = {name: deque(maxlen=SPIKE_WINDOW) for name in ("loss", "gradient's norm")}
        self._passed_over = 0
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._lowest = math.inf
        self._overflows = 0

    def check(self, loss: float) -> str | None:
        """Take in one step's loss in nats per token; returns what is wrong, or None.

        A value that is not finite is reported and never enters the window, so that one bad step cannot poison it.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        self._overflows = self._passed_over = 0
        self._recent.append(loss)
        if len(self._recent) < WINDOW:
            return None
        mean = sum(self._recent) / WINDOW
        self._lowest = min(self._lowest, mean)
        if mean > self._factor * self._lowest:
            return f"the loss ran away: {mean:.3f} nats per token over {WINDOW} steps, {self._lowest:.3f} at its best"
        return None

    @property
    def looks_for_spikes(self) -> bool:
        """Whether `spike` can ever say anything."""
        return self._zscore is not None

    def spike(self, loss: float, norm: float) -> str | None:
        """Take in a step's loss and gradient norm before its update; returns what is wrong with them, or None.

        Spikes never enter the windows, so that one of them cannot hide the next.
        """
        if self._zscore is None or not (math.isfinite(loss) and math.isfinite(norm)):
            return None
        found = None
        for (name, window), value in zip(self._calm.items(), (loss, norm), strict=True):
            if len(window) >= SPIKE_FEWEST:
                mean = math.fsum(window) / len(window)
                deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in window) / len(window))
                if value - mean > self._zscore * deviation and value > mean:
                    times = (value - mean) / deviation if deviation > 0 else math.inf
                    found = found or f"the {name} spiked to {value:.4g}, {times:.1f} deviations above {mean:.4g}"
        if found is None:
            for window, value in zip(self._calm.values(), (loss, norm), strict=True):
                window.append(value)
        return found

    def passed_over(self) -> str | None:
        """Take in a batch that is left out; too many in a row are trouble, and returned as such."""
        self._passed_over += 1
        if self._passed_over <= MOST_PASSED_OVER:
            return None
        return f"{self._passed_over} batches in a row had to be left out"

    def overflowed(self) -> str | None:
        """Take in a step that fp16's loss scaling left out; a window of nothing else is trouble, and returned as such."""
        self._overflows += 1
        return None if self._overflows < WINDOW else f"the gradient overflowed {self._overflows} times in a row"

    def state(self) -> dict[str, Any]:
        """JSON-ready state."""
        lowest = self._lowest if math.isfinite(self._lowest) else None
        return {
            "recent": list(self._recent),
            "lowest": lowest,
            "overflows": self._overflows,
            "calm": {name: list(window) for name, window in self._calm.items()},
            "passed_over": self._passed_over,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self._recent = deque(state["recent"], maxlen=WINDOW)
        self._lowest = math.inf if state["lowest"] is None else state["lowest"]
        self._overflows = state["overflows"]
        # Checkpoints from before there were spikes know none of the rest.
        for name, window in self._calm.items():
            window.clear()
            window.extend(state.get("calm", {}).get(name, []))
        self._passed_over = state.get("passed_over", 0)
