"""EVERY knob of a run, with its unit: the public contract of a recipe file.

A recipe is what was asked. What follows from it on a given machine is the plan (plan.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from farthing.budget import Budget
from farthing.recipe.data import Bpe as Bpe
from farthing.recipe.data import ByteTokenizer as ByteTokenizer
from farthing.recipe.data import Data, PyStdlib, Tokenizer
from farthing.recipe.model import Model as Model
from farthing.recipe.optimization import AnyOptimizer, AnySchedule, Cosine, Muon, Objective
from farthing.recipe.running import Checkpoint, Evaluate, Limits, Sample, Train
from farthing.section import Section


class Recipe(Section):
    """One run: data, model, optimization and budget."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1337
    """seed of the initial weights, the order of the data and dropout"""
    mirrors: list[Literal["tensorboard", "wandb"]] = []
    """trackers that follow the events too, into the run folder (need the extra [track]; wandb offline)"""
    data: Data = PyStdlib()
    """the text"""
    tokenizer: Tokenizer = Bpe()
    """how text becomes tokens"""
    model: Model = Model()
    """the network"""
    optimizer: AnyOptimizer = Muon()
    """how gradients move the weights"""
    schedule: AnySchedule = Cosine()
    """the learning rate over the budget"""
    objective: Objective = Objective()
    """what is minimised"""
    budget: Budget
    """what the run may spend"""
    train: Train = Train()
    """the training loop"""
    evaluate: Evaluate = Evaluate()
    """scoring"""
    checkpoint: Checkpoint = Checkpoint()
    """what is saved"""
    sample: Sample = Sample()
    """text written at the end"""
    limits: Limits = Limits()
    """what the plan refuses"""

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        stride, context = self.evaluate.stride, self.model.context_length
        if stride != "context_length" and stride > context:
            raise ValueError(
                f"evaluate.stride={stride} is more than model.context_length={context}: tokens would be skipped"
            )
        return self
