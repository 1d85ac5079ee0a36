"""Watching the loss: not finite, or running away."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

WINDOW = 20
"""steps whose mean is compared"""


class DivergenceGuard:
    """Tells when training has diverged.

    Args:
        factor: the loss has run away when the mean of the last 20 steps exceeds `factor` times the lowest such mean.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._lowest = math.inf
        self._overflows = 0

    def check(self, loss: float) -> str | None:
        """Take in one step's loss in nats per token; returns what is wrong, or None.

        A value that is not finite is reported and never enters the window, so that one bad step cannot poison it.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        self._overflows = 0
        self._recent.append(loss)
        if len(self._recent) < WINDOW:
            return None
        mean = sum(self._recent) / WINDOW
        self._lowest = min(self._lowest, mean)
        if mean > self._factor * self._lowest:
            return f"the loss ran away: {mean:.3f} nats per token over {WINDOW} steps, {self._lowest:.3f} at its best"
        return None

    def overflowed(self) -> str | None:
        """Take in a step that fp16's loss scaling left out; a window of nothing else is trouble, and returned as such."""
        self._overflows += 1
        return None if self._overflows < WINDOW else f"the gradient overflowed {self._overflows} times in a row"

    def state(self) -> dict[str, Any]:
        """JSON-ready state."""
        lowest = self._lowest if math.isfinite(self._lowest) else None
        return {"recent": list(self._recent), "lowest": lowest, "overflows": self._overflows}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self._recent = deque(state["recent"], maxlen=WINDOW)
        self._lowest = math.inf if state["lowest"] is None else state["lowest"]
        self._overflows = state["overflows"]
