"""One optimizer step: micro-batches, sharpness, clipping, update.

Shapes: B windows of a micro-batch, T context length, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from farthing.data.batches import Batch
from farthing.model import documents
from farthing.model.gpt import GPT
from farthing.optim.optimizer_set import OptimizerSet
from farthing.optim.sharpness import perturbed
from farthing.recipe.optimization import Objective, Sharpness
from farthing.runtime.device import is_out_of_memory
from farthing.training.head_objective import head_objective
from farthing.training.interruption import Abandoned as Abandoned
from farthing.training.objective import Loss, objective
from farthing.training.precision import Precision
from farthing.training.recorded import Recorder, obstacle

CLIP_EPS = 1e-6
"""what torch adds to the norm that it clips by"""


class OutOfMemory(Exception):
    """A micro-batch did not fit; weights and optimizer are those of the last whole step, unless `in_update`."""

    def __init__(self, message: str, *, in_update: bool = False) -> None:
        super().__init__(message)
        self.in_update = in_update
        """whether memory ran out while the weights were moved, so that they may be moved in part"""


@dataclass(frozen=True)
class Taken:
    """What one step did.

    Args:
        loss: cross-entropy in nats per token, over all targets of the batch.
        gradient_norm: before clipping.
        tokens: targets in the batch.
        lr: rate of the first parameter group.
        skipped: whether the update was left out, because a gradient was not finite or `refuse` had a reason.
        refused: that reason.
    """

    loss: float
    gradient_norm: float
    tokens: int
    lr: float
    skipped: bool
    refused: str | None = None


Refuse = Callable[[float, float], str | None]
"""What is wrong with a step's loss and gradient norm, so that its update must be left out; None if nothing is."""


class Stepper:
    """Takes optimizer steps with a model.

    Args:
        model: the network, on `device`.
        hidden: what to call for the residual stream x_BTD; the model's own hidden, or its compiled form.
        optimizer: moves the weights.
        section: the recipe's objective.
        sharpness: the recipe's sharpness section.
        precision: number format.
        device: where the model is.
        batch_size: windows of a full step.
        micro_batch: windows of one forward pass.
        gradient_clip: bound on the gradient's norm, or None.
        stop_asked: looked at between micro-batches.
        graphs: whether to replay passes as CUDA graphs where that can be done; see recorded.py.
        tell: takes what a person should know of a faster way that does not work here: a short name, and a line.
        unseen: whether the whole step is queued before the host reads any of its numbers; None takes what suits the
            device. The same step either way, but a GPU that is waited for in the middle of it idles. (Sharpness waits
            for the norm of its perturbation, and OptimizerSet.step names the optimizers that must be waited for.)
    """

    def __init__(
        self,
        *,
        model: GPT,
        hidden: Callable[[Tensor, Tensor | None], Tensor],
        optimizer: OptimizerSet,
        section: Objective,
        sharpness: Sharpness,
        precision: Precision,
        device: torch.device,
        batch_size: int,
        micro_batch: int,
        gradient_clip: float | None,
        stop_asked: Callable[[], bool] = lambda: False,
        graphs: bool = False,
        tell: Callable[[str, str], None] = lambda code, message: None,
        unseen: bool | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.precision = precision
        self.device = device
        self.batch_size = batch_size
        self.micro_batch = micro_batch
        self.hidden = hidden
        self._section = section
        self._sharpness = sharpness
        self._clip = gradient_clip
        self._stop_asked = stop_asked
        self._unseen = device.type == "cuda" if unseen is None else unseen
        self._updating = False
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._recorder: Recorder | None = None
        if graphs and obstacle(model.section, section, sharpness, precision.name, device) is None:
            self._recorder = Recorder(
                lambda inputs_BT, targets_BT, tokens: self._pass(inputs_BT, targets_BT, None, tokens),
                model,
                autocast=precision.autocast,
                tell=partial(tell, "graph_fallback"),
            )
        if model.attention_path == "sdpa" and documents.suits(model.section, device):
            why = documents.trouble(device, precision.dtype)
            model.blockwise = why is None
            if why is not None:
                tell(
                    "attention_fallback", f"FlexAttention does not work here ({why}); documents are kept apart by masks"
                )

    def take(self, batch: Batch, refuse: Refuse | None = None) -> Taken:
        """Update the weights on one batch; an update with a gradient that is not finite is left out.

        Args:
            batch: windows of tokens.
            refuse: asked before the update, which then waits for loss and norm on any device.

        Raises:
            Abandoned: a stop was asked for in mid-accumulation.
            OutOfMemory: a micro-batch, or the update, did not fit.
        """
        self._updating = False
        try:
            return self._take(batch, refuse)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        finally:
            self.optimizer.zero_grad()
        # Outside the handler, whose traceback would keep the activations alive.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(reason, in_update=self._updating)

    def _take(self, batch: Batch, refuse: Refuse | None) -> Taken:
        self.model.train()
        nats = self.accumulate(batch)
        with perturbed(self._parameters, self._sharpness) as moved:
            if moved:
                self.optimizer.zero_grad()
                self.accumulate(batch)
        self.precision.unscale(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        loss = nats / batch.tokens
        refused = None if refuse is None else refuse(float(loss), float(norm))
        if self._unseen and refused is None:
            told, size, skipped = self._update_unseen(loss, norm)
        else:
            told, size, skipped = self._update(loss, norm, wanted=refused is None)
        return Taken(told, size, tokens=batch.tokens, lr=self.optimizer.lr, skipped=skipped, refused=refused)

    def _update(self, loss: Tensor, norm: Tensor, *, wanted: bool = True) -> tuple[float, float, bool]:
        """Move the weights if that is wanted, and loss and norm are finite; returns loss, norm and whether they stay."""
        moves = wanted and math.isfinite(float(loss)) and math.isfinite(float(norm))
        if moves:
            # Gradients that are short enough need no pass over all of them to be multiplied by 1.
            if self._clip is not None and float(self._clip / (norm + CLIP_EPS)) < 1:
                nn.utils.clip_grads_with_norm_(self._parameters, self._clip, norm)
            self._updating = True
            self.optimizer.step()
        self.precision.update()
        return float(loss), float(norm), not moves

    def _update_unseen(self, loss: Tensor, norm: Tensor) -> tuple[float, float, bool]:
        """The same, decided on the device; the host waits once, when everything has been queued."""
        skip = ~(loss.isfinite() & norm.isfinite())
        if self._clip is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self._clip, norm)
        self._updating = True
        self.optimizer.step(skip.float())
        self.precision.update()
        told: list[float] = torch.stack([x.double() for x in (loss, norm, skip)]).tolist()
        return told[0], told[1], bool(told[2])

    def accumulate(self, batch: Batch) -> Tensor:
        """Add up the gradients of the whole batch, micro-batch by micro-batch, without an update.

        Returns:
            Its cross-entropy, summed, in nats: a float64 scalar.

        Raises:
            Abandoned: a stop was asked for between micro-batches.
        """
        total = torch.zeros((), dtype=torch.float64, device="cpu" if self.device.type == "mps" else self.device)
        recording = None if self._recorder is None else self._recorder.open(batch, self.micro_batch, self._to_device)
        for part in batch.split(self.micro_batch):
            inputs_BT, targets_BT, segments_BT = self._to_device(part)
            if recording is not None and part.windows == self.micro_batch:
                nats = recording.replay(inputs_BT, targets_BT)
            else:
                nats = self._pass(inputs_BT, targets_BT, segments_BT, batch.tokens)
            total += nats.to(total)
            if self._stop_asked() and part.windows < batch.windows:
                raise Abandoned
        return total

    def _pass(self, inputs_BT: Tensor, targets_BT: Tensor, segments_BT: Tensor | None, tokens: int) -> Tensor:
        """Forward and backward of one micro-batch; returns its cross-entropy, summed, in nats."""
        loss = self._loss(inputs_BT, targets_BT, segments_BT, tokens)
        self.precision.scale(loss.total).backward()
        return loss.nats

    def _loss(self, inputs_BT: Tensor, targets_BT: Tensor, segments_BT: Tensor | None, tokens: int) -> Loss:
        model, section = self.model, self._section
        with self.precision.autocast():
            x_BTD = self.hidden(inputs_BT, segments_BT)
            if section.r_drop > 0:
                logits_BTV, again_BTV = model.head(x_BTD), model.head(self.hidden(inputs_BT, segments_BT))
                return objective(logits_BTV, targets_BT, section, tokens=tokens, again_BTV=again_BTV)
            weight_VD, low_VD = model.head_weights()
        return head_objective(
            x_BTD.flatten(0, 1),
            weight_VD,
            low_VD,
            targets_BT.flatten(),
            section,
            tokens=tokens,
            softcap=model.section.logit_softcap,
            # Where a compiler is at work at all, and on a GPU, where memory and not arithmetic is what this waits for.
            compiled=inputs_BT.is_cuda and self.hidden != model.hidden and len(inputs_BT) == self.micro_batch,
        )

    def _to_device(self, part: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        inputs_BT = torch.from_numpy(part.inputs_BT).to(self.device, non_blocking=True)
        targets_BT = torch.from_numpy(part.targets_BT).to(self.device, non_blocking=True)
        if part.segments_BT is None:
            return inputs_BT, targets_BT, None
        return inputs_BT, targets_BT, torch.from_numpy(part.segments_BT).to(self.device, non_blocking=True)
