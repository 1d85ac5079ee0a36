"""How the weights are moved: optimizer, schedule, objective."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from farthing.section import Section

Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Unit = Annotated[float, Field(ge=0, le=1)]


class NoSharpness(Section):
    """One gradient a step."""

    kind: Literal["none"] = "none"


class Sam(Section):
    """Sharpness-aware minimisation (Foret et al. 2021): the gradient is taken at w + rho g/|g|; two passes a step."""

    kind: Literal["sam"] = "sam"
    rho: Rate = 0.05
    """radius of the perturbation"""


class AdaptiveSam(Section):
    """Adaptive SAM (Kwon et al. 2021): the perturbation is scaled by w^2, so that it does not depend on the weights' scale."""

    kind: Literal["asam"] = "asam"
    rho: Rate = 0.5
    """radius of the perturbation, in units of the weights"""
    eta: Decay = 0.01
    """added to |w|, for weights near zero"""


Sharpness = Annotated[NoSharpness | Sam | AdaptiveSam, Field(discriminator="kind")]


class Optimizer(Section):
    """What every optimizer has in common."""

    weight_decay: Decay = 0.0
    """decoupled weight decay, multiplied by the learning rate (muon: before adjust_lr; sgd, rmsprop: added to the gradient)"""
    weight_decay_on: Literal["matrices", "two_dimensional", "all"] = "matrices"
    """matrices: hidden matrices and an untied head; two_dimensional: embeddings too; all: biases and norms too"""
    sharpness: Sharpness = NoSharpness()
    """sharpness-aware minimisation around the optimizer"""


class Sgd(Optimizer):
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"
    lr: Rate = 6e-3
    """peak learning rate"""
    momentum: Beta = 0.0
    """momentum; 0 is plain SGD"""
    nesterov: bool = False
    """look-ahead momentum"""

    @model_validator(mode="after")
    def _nesterov(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true needs momentum above 0")
        return self


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    lr: Rate = 1e-3
    """peak learning rate"""
    beta1: Beta = 0.9
    """decay of the mean of gradients"""
    beta2: Beta = 0.95
    """decay of the mean of squared gradients"""
    eps: Rate = 1e-8
    """added to the root of the second moment"""


class Adafactor(Optimizer):
    """Adafactor (Shazeer and Stern 2018): second moments by rows and columns, little memory."""

    kind: Literal["adafactor"] = "adafactor"
    lr: Rate = 1e-2
    """peak learning rate, relative to each tensor's own root mean square (at least 1e-3), and never above 1/sqrt(step)"""
    beta2_decay: Annotated[float, Field(lt=0)] = -0.8
    """exponent of the second moment's decay over steps"""
    clip_threshold: Annotated[float, Field(ge=1)] = 1.0
    """bound on the root mean square of an update"""


class RmsProp(Optimizer):
    """RMSprop (Tieleman and Hinton 2012)."""

    kind: Literal["rmsprop"] = "rmsprop"
    lr: Rate = 1e-3
    """peak learning rate"""
    alpha: Beta = 0.99
    """decay of the mean of squared gradients"""
    momentum: Beta = 0.0
    """momentum on the scaled gradient"""
    eps: Rate = 1e-8
    """added to the root of the second moment"""


class Lion(Optimizer):
    """Lion (Chen et al. 2023): the sign of an interpolated momentum; wants a learning rate 3 to 10 times below AdamW's."""

    kind: Literal["lion"] = "lion"
    lr: Rate = 1e-4
    """peak learning rate"""
    beta1: Beta = 0.9
    """interpolation for the update"""
    beta2: Beta = 0.99
    """decay of the momentum"""


class MuonRest(Section):
    """AdamW for what is not a hidden matrix: embeddings, head, norms, biases."""

    lr: Rate = 1e-3
    """peak learning rate"""
    beta1: Beta = 0.9
    """decay of the mean of gradients"""
    beta2: Beta = 0.95
    """decay of the mean of squared gradients"""
    eps: Rate = 1e-8
    """added to the root of the second moment"""
    weight_decay: Decay = 0.0
    """decoupled weight decay, on what weight_decay_on names beyond the hidden matrices"""


class Muon(Optimizer):
    """Muon (Jordan 2024) for hidden matrices, momentum orthogonalised by Newton-Schulz; AdamW for the rest."""

    kind: Literal["muon"] = "muon"
    lr: Rate = 0.02
    """peak learning rate of the hidden matrices"""
    momentum: Beta = 0.95
    """momentum"""
    nesterov: bool = True
    """look-ahead momentum"""
    newton_schulz_steps: Annotated[int, Field(ge=1, le=20)] = 5
    """iterations of the orthogonalisation"""
    adjust_lr: Literal["original", "match_rms_adamw"] = "original"
    """scale by matrix shape: sqrt(max(1, rows/columns)), or to the size of AdamW's updates so that its rates carry over"""
    rest: MuonRest = MuonRest()
    """AdamW for everything else"""


AnyOptimizer = Annotated[Sgd | AdamW | Adafactor | RmsProp | Lion | Muon, Field(discriminator="kind")]


class Schedule(Section):
    """The learning rate as a function of the fraction of the budget spent."""

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """fraction of the budget over which the rate rises linearly to its peak"""
    warmup_from: Unit = 0.0
    """where the rise starts, as a fraction of the peak"""


class Constant(Schedule):
    """The peak all the way."""

    kind: Literal["constant"] = "constant"


class Linear(Schedule):
    """Straight down to the floor at the end."""

    kind: Literal["linear"] = "linear"
    floor: Unit = 0.0
    """rate at the end, as a fraction of the peak"""


class Cosine(Schedule):
    """Half a cosine down to the floor at the end (Loshchilov and Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    floor: Unit = 0.0
    """rate at the end, as a fraction of the peak"""


class Wsd(Schedule):
    """Warm-up, stable, decay (Hu et al. 2024)."""

    kind: Literal["wsd"] = "wsd"
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """fraction of the budget, at its end, over which the rate falls"""
    shape: Literal["linear", "cosine", "one_minus_sqrt"] = "linear"
    """shape of the fall; one_minus_sqrt is 1 - sqrt(x) (Haegele et al. 2024)"""
    floor: Unit = 0.0
    """rate at the end, as a fraction of the peak"""

    @model_validator(mode="after")
    def _fits(self) -> Wsd:
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup={self.warmup} and decay={self.decay} add up to more than the whole budget")
        return self


class InverseSqrt(Schedule):
    """sqrt(warmup / progress) after the warm-up (Vaswani et al. 2017)."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"

    @model_validator(mode="after")
    def _needs_warmup(self) -> InverseSqrt:
        if self.warmup == 0:
            raise ValueError("inverse_sqrt needs warmup above 0: the rate is sqrt(warmup / progress) of its peak")
        return self


AnySchedule = Annotated[Constant | Linear | Cosine | Wsd | InverseSqrt, Field(discriminator="kind")]


class Objective(Section):
    """What is minimised: cross-entropy in nats per token, and what may be added to it."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """share of the target spread evenly over the vocabulary"""
    z_loss: Decay = 0.0
    """weight of log(sum of exp(logits))^2, which keeps logits small (Chowdhery et al. 2022)"""
    r_drop: Decay = 0.0
    """weight of the mean of the two divergences between two passes with different dropout (Wu et al. 2021); doubles the cost"""
