"""A Weights & Biases mirror of a run, offline: nothing leaves this machine until `wandb sync` is run by hand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farthing.errors import need
from farthing.events import Evaluated, Event, Finished, Sampled, Step, Stopped
from farthing.sinks.mirror import scalars


class Wandb:
    """Writes a run's numbers and samples into an offline Weights & Biases folder.

    Args:
        folder: where the `wandb` folder goes.
        name: of the run.
        config: the resolved recipe, JSON-ready.
        project: of Weights & Biases.

    Raises:
        UserError: the package wandb is not installed.
    """

    def __init__(
        self, folder: Path, *, name: str, config: Mapping[str, Any] | None = None, project: str = "farthing"
    ) -> None:
        # wandb sends its own crashes home unless told not to, and reads this when it is imported.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb = need("wandb", extra="track", why="the Weights & Biases mirror")
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True)
        self._run = wandb.init(
            project=project, name=name, config=dict(config or {}), dir=str(folder), mode="offline", settings=settings
        )
        # A resumed run goes back to its checkpoint's step, which wandb's own counter cannot.
        self._run.define_metric("*", step_metric="step")

    def __call__(self, event: Event) -> None:
        """Write an event; a run's end closes the offline run."""
        numbers = scalars(event)
        if isinstance(event, Step | Evaluated) and numbers:
            self._run.log({"step": event.step, **numbers})
        elif isinstance(event, Sampled):
            self._run.log({"step": event.step, "sample": event.prompt + event.text})
        elif isinstance(event, Finished):
            self._run.summary.update(numbers)
        if isinstance(event, Finished | Stopped):
            self.close(failed=isinstance(event, Stopped))

    def close(self, *, failed: bool = False) -> None:
        """Finish the offline run."""
        self._run.finish(exit_code=int(failed))
