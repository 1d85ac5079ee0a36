"""Mirrors repeat a run's events in another tracker; when one fails it is dropped, and training goes on."""

from __future__ import annotations

import math
from contextlib import suppress

from farthing.errors import without_secrets
from farthing.events import Emit, Evaluated, Event, Finished, Notice, Step


class Mirror:
    """Passes events on to a follower until it fails; then says so once and drops it.

    Args:
        name: of the tracker, as a person knows it.
        follower: called with each event.
        report: called with the one notice; usually the event log's `emit`.
    """

    def __init__(self, name: str, follower: Emit, *, report: Emit) -> None:
        self.name = name
        self._follower: Emit | None = follower
        self._report = report

    @property
    def dropped(self) -> bool:
        """Whether the follower has failed."""
        return self._follower is None

    def __call__(self, event: Event) -> None:
        """Pass an event on."""
        if self._follower is None:
            return
        try:
            self._follower(event)
        except Exception as error:
            # Dropped before the notice is sent: it comes back here as an event.
            self._follower = None
            what = without_secrets(f"{type(error).__name__}: {error}".strip().splitlines()[0])[:200]
            message = f"{self.name} is no longer followed: {what}; events.jsonl has everything, the run goes on"
            self._report(Notice(code="mirror_dropped", message=message, details={"mirror": self.name}))

    def close(self) -> None:
        """Let the follower finish, if it is still there and wants to; it may fail at that as at anything else."""
        with suppress(Exception):
            getattr(self._follower, "close", lambda: None)()
        self._follower = None


def scalars(event: Event) -> dict[str, float]:
    """The finite numbers of a step, an evaluation or the end, by the name under which trackers plot them."""
    found: dict[str, float | int | None] = {}
    match event:
        case Step():
            found = {
                "train/loss": event.loss,
                "train/lr": event.lr,
                "train/gradient_norm": event.gradient_norm,
                "train/tokens_per_second": event.tokens_per_second,
                "train/utilisation": event.utilisation,
                "train/memory_bytes": event.memory_bytes,
            }
            found |= {f"spent/{name}": value for name, value in event.spent.items()}
        case Evaluated():
            numbers = {name: value for name, value in event.validation.items() if isinstance(value, int | float)}
            found = {f"{event.split}/{name}": value for name, value in numbers.items()}
        case Finished():
            found = {"wall_seconds": event.wall_seconds}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}
