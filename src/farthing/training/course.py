"""What a run is to do, as the plan settled it, and where it stands: the latter is in every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from farthing.budget import Spent
from farthing.events import Evaluated


@dataclass(frozen=True)
class Course:
    """What the plan has settled for the loop.

    Args:
        seed: of dropout; the data's order has it too.
        steps: optimizer steps in all.
        last_window: windows of the whole run (exclusive end), so that the last step serves exactly what remains.
        flops_per_token: training operations for one token.
        peak_flops: this machine's measured matrix-product rate, operations a second, or None.
        log_every: steps between flushes of step events.
        checkpoint_every: steps between checkpoints; 0 saves only at the end.
        checkpoint_bytes: size of one, as planned.
        background_saves: whether checkpoints are written while training goes on.
        keep: newest checkpoints to keep.
        keep_best: whether to keep the one with the best validation score too.
        on_divergence: stop, skip or rollback.
        rollback_lr: what a roll-back multiplies the learning rate by.
        identity: fingerprints of recipe, data and tokenizer, written into every checkpoint.
        numeric: the numeric fingerprint of this machine, kept in the checkpoint's state.
        stop_seconds: guard of a budget in minutes: training seconds after which the run ends, or None.
        stop_money: guard of a budget in money, or None.
    """

    seed: int
    steps: int
    last_window: int
    flops_per_token: float
    peak_flops: float | None
    log_every: int
    checkpoint_every: int
    checkpoint_bytes: int
    background_saves: bool
    keep: int
    keep_best: bool
    on_divergence: str
    rollback_lr: float
    identity: dict[str, str]
    numeric: dict[str, Any]
    stop_seconds: float | None = None
    stop_money: float | None = None


@dataclass
class State:
    """Where a run stands; everything here is in the checkpoint."""

    step: int = 0
    steps: int = 0
    """optimizer steps in all: the course's, or fewer where minutes or money did not last for them"""
    spent: Spent = field(default_factory=Spent)
    skipped: int = 0
    """batches passed over after roll-backs"""
    rollbacks: int = 0
    rate: float = 1.0
    """what the schedule's learning rate is multiplied by: less after a roll-back"""
    best_bits_per_byte: float | None = None
    best_step: int | None = None
    validation: dict[str, Any] = field(default_factory=dict)
    """the last evaluation"""
    acted: bool = True
    """whether this step's evaluation and other actions have been done; a checkpoint may be taken before them"""
    acts: int = 0
    """how many of them have been done, where a stop came in between"""
    ended: bool = False
    """whether the last step's actions have been done too"""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> State:
        """The state that a checkpoint's values describe."""
        return cls(
            step=saved["step"],
            steps=saved["steps"],
            spent=Spent(**saved["spent"]),
            skipped=saved["skipped"],
            rollbacks=saved["rollbacks"],
            rate=saved.get("rate", 1.0),
            best_bits_per_byte=saved["best_bits_per_byte"],
            best_step=saved["best_step"],
            validation=saved["validation"],
            acted=saved.get("acted", True),
            acts=saved.get("acts", 0),
            ended=saved["ended"],
        )

    def take(self, event: Evaluated) -> Evaluated:
        """Remember an evaluation; the event, marked where it is the best so far."""
        bits = event.validation.get("bits_per_byte")
        self.validation = event.validation
        # NaN is neither better nor worse than anything: it must not become, nor block, the best.
        if bits is None or not math.isfinite(bits):
            return event
        if self.best_bits_per_byte is not None and bits >= self.best_bits_per_byte:
            return event
        self.best_bits_per_byte, self.best_step = bits, event.step
        return replace(event, best=True)
