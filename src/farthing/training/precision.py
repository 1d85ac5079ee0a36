"""Number formats of the forward and backward passes; weights and optimizer stay in fp32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from farthing.optim.optimizer_set import OptimizerSet

Format = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast in a format, and for fp16 the loss scaling that keeps small gradients from vanishing."""

    def __init__(self, name: Format, device: torch.device) -> None:
        self.name = name
        self._device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=True) if name == "fp16" else None

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products are computed in."""
        return _DTYPES.get(self.name, torch.float32)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which a forward pass runs."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=_DTYPES[self.name])

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to call backward on."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self, optimizer: OptimizerSet) -> None:
        """Bring gradients back to their true size."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)  # type: ignore[arg-type]

    def update(self) -> None:
        """Adapt the scale after a step, taken or skipped."""
        if self.scaler is not None:
            self.scaler.update()

    def state(self) -> dict[str, Any]:
        """JSON-ready state; empty without a scaler."""
        return {} if self.scaler is None else dict(self.scaler.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)
