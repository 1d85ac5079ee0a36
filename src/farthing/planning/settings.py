"""What suits this machine: precision, attention path, compilation, micro-batch, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from farthing.budget import Rates, steps_for_limits
from farthing.model import cost
from farthing.model.linear import WeightGradient
from farthing.model.memory import Format, Path
from farthing.model.memory import memory as step_memory
from farthing.optim.memory import sharpness_bytes, state_bytes
from farthing.optim.roles import Role
from farthing.recipe import Model, Recipe
from farthing.recipe.optimization import NoSharpness
from farthing.runtime.device import (
    Machine,
    choose_attention,
    choose_compile,
    choose_precision,
    choose_threads,
    choose_weight_gradient,
    matmul_rate,
    memory_now,
)

MEMORY_SHARE = 0.9
"""Share of the available memory that a plan may fill."""
EXPECTED_UTILISATION = 0.35
"""Share of the matrix-product rate assumed until a step has been measured."""
TOKENS_AT_ONCE = {"cpu": 16_384, "cuda": 65_536, "mps": 16_384}
"""Tokens of a micro-batch beyond which none of these devices gets faster."""
START_SECONDS = 10.0
"""Start-up, for the prediction of money."""


@dataclass(frozen=True)
class TaskSize:
    """How much there is to read in a task: its questions or texts, and about how many tokens they have in all."""

    items: int
    tokens: float


@dataclass(frozen=True)
class Counts:
    """What is known of the text; None before it has been read."""

    vocab_size: int
    tokens_per_epoch: int | None
    validation_tokens: int | None
    tasks: tuple[TaskSize, ...] = ()
    """of the recipe's tasks, where they have been read"""


_IN_WORDS = {"sdpa": "fused attention", "math": "explicit attention"}


@dataclass(frozen=True)
class Settings:
    """What was chosen for the machine, and why. Equal ones compute the same in the same way."""

    device: str
    threads: int
    precision: Format
    attention: Path
    compile: bool
    micro_batch: int
    accumulation: int
    why: dict[str, str] = field(compare=False)
    weight_gradient: WeightGradient = "strided"
    """of runs whose plan.json does not tell, too"""
    cuda_graphs: bool = False
    """replay passes instead of asking for each kernel; only ever chosen because it was measured to be faster"""

    def told(self) -> str:
        """The same in one line."""
        parts = [self.precision, _IN_WORDS[self.attention]]
        if self.weight_gradient == "copied":
            parts.append("weight gradients from copies")
        parts.append("compiled" if self.compile else "eager")
        if self.cuda_graphs:
            parts.append("CUDA graphs")
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        where = threads if self.device == "cpu" else self.device
        return f"{', '.join(parts)}, micro-batch {self.micro_batch} on {where}"


@dataclass(frozen=True)
class Timing:
    """Training seconds of an optimizer step, and how that is known."""

    seconds_per_step: float
    how: str
    measured: bool


def settle(recipe: Recipe, machine: Machine, counts: Counts) -> Settings:
    """Choose precision, attention path, compilation and micro-batch for this machine."""
    precision = choose_precision(recipe.train.precision, machine)
    attention = choose_attention(recipe.train.attention, machine, precision.value)
    layout = choose_weight_gradient(recipe.train.weight_gradient, machine, precision.value)
    threads = choose_threads(recipe.train.threads)
    micro, why_micro = _micro_batch(recipe, machine, counts, precision.value, attention.value)
    guess = _expected_step_seconds(recipe, machine, counts, precision.value)
    compiled = choose_compile(recipe.train.compile, machine, predicted_seconds=predicted_seconds(recipe, counts, guess))
    return Settings(
        device=machine.device,
        threads=threads.value,
        precision=precision.value,
        attention=attention.value,
        compile=compiled.value,
        micro_batch=micro,
        accumulation=-(-recipe.train.batch_size // micro),
        why={
            "device": machine.device_reason,
            "threads": threads.reason,
            "precision": precision.reason,
            "attention": attention.reason,
            "weight_gradient": layout.reason,
            "compile": compiled.reason,
            "micro_batch": why_micro,
        },
        weight_gradient=layout.value,
    )


def estimate(recipe: Recipe, machine: Machine, counts: Counts, settings: Settings) -> Timing:
    """A step's time from the machine's matrix-product rate, for when no step has been measured."""
    rate = matmul_rate(settings.precision, machine.device)
    how = f"estimated: {EXPECTED_UTILISATION:.0%} of the measured matrix-product rate ({rate / 1e9:,.0f} GFLOP/s)"
    return Timing(_expected_step_seconds(recipe, machine, counts, settings.precision), how, measured=False)


def predicted_seconds(recipe: Recipe, counts: Counts, seconds_per_step: float) -> float | None:
    """Training seconds of the whole run if a step takes so long; None where the number of steps is not known."""
    rates = rates_of(recipe, counts, seconds_per_step)
    shortest = None if rates is None else fewest(steps_for_limits(recipe.budget, rates))
    return None if shortest is None else seconds_per_step * shortest[1]


def _expected_step_seconds(recipe: Recipe, machine: Machine, counts: Counts, precision: Format) -> float:
    flops = flops_per_token(recipe, counts.vocab_size) * recipe.train.batch_size * recipe.model.context_length
    return flops / (matmul_rate(precision, machine.device) * EXPECTED_UTILISATION)


def parameters_by_role(section: Model, vocab_size: int) -> dict[Role, int]:
    """How many parameters each role has: what optimizers keep in memory depends on it."""
    table = cost.parameter_table(section, vocab_size)
    matrices = section.n_layer * cost.matrix_weights(section)
    embeddings = table["embedding"] + table["position"]
    vectors = sum(table.values()) - matrices - embeddings - table["head"]
    return {"embedding": embeddings, "head": table["head"], "matrix": matrices, "vector": vectors}


def rates_of(recipe: Recipe, counts: Counts, seconds_per_step: float | None) -> Rates | None:
    """What a step takes, or None where the budget needs a count of the text that is not known."""
    tokens = counts.tokens_per_epoch
    if tokens is None:
        if recipe.budget.epochs is not None:
            return None
        # Without the text, a step is what a full step is; there is no epoch to speak of.
        tokens = recipe.train.batch_size * recipe.model.context_length
    once = 0.0
    if counts.validation_tokens and seconds_per_step:
        share = counts.validation_tokens / (recipe.train.batch_size * recipe.model.context_length)
        once = share * seconds_per_step / 2
    return Rates(
        sequences_per_step=recipe.train.batch_size,
        sequences_per_epoch=-(-tokens // recipe.model.context_length),
        tokens_per_epoch=tokens,
        context_length=recipe.model.context_length,
        flops_per_token=flops_per_token(recipe, counts.vocab_size),
        seconds_per_step=seconds_per_step,
        overhead_seconds=START_SECONDS + 10 * once,
    )


def flops_per_token(recipe: Recipe, vocab_size: int) -> float:
    """Training operations for one token, second passes of R-Drop and SAM included."""
    sam = not isinstance(recipe.optimizer.sharpness, NoSharpness)
    return cost.flops_per_token(recipe.model, vocab_size, r_drop=recipe.objective.r_drop > 0, sam=sam).total


def fewest(by_limit: dict[str, int]) -> tuple[str, int] | None:
    """The limit that ends the run, and after how many steps; None if no limit is known in steps."""
    return min(by_limit.items(), key=lambda item: item[1]) if by_limit else None


def available_memory(recipe: Recipe, machine: Machine) -> int:
    """Bytes that a run may use: limits.memory_gb, or most of what is free here."""
    if recipe.limits.memory_gb is not None:
        return int(recipe.limits.memory_gb * 2**30)
    # What this process holds already is part of what the plan counts.
    return int((machine.memory_available + memory_now(machine.device)) * MEMORY_SHARE)


def memory_terms(
    recipe: Recipe, vocab_size: int, micro_batch: int, precision: Format, attention: Path, machine: Machine
) -> dict[str, int]:
    """Bytes at the peak of a training step, by term."""
    roles = parameters_by_role(recipe.model, vocab_size)
    kept = state_bytes(recipe.optimizer, roles) + sharpness_bytes(recipe.optimizer.sharpness, roles)
    return step_memory(
        recipe.model,
        vocab_size,
        micro_batch=micro_batch,
        precision=precision,
        attention=attention,
        optimizer_bytes_per_parameter=kept / sum(roles.values()),
        ema=recipe.train.ema is not None,
        device=machine.device,
        accumulate=micro_batch < recipe.train.batch_size,
        r_drop=recipe.objective.r_drop > 0,
    )


def fits(recipe: Recipe, machine: Machine, counts: Counts, settings: Settings) -> bool:
    """Whether a training step with these settings fits in the memory to be had."""
    terms = memory_terms(
        recipe, counts.vocab_size, settings.micro_batch, settings.precision, settings.attention, machine
    )
    return sum(terms.values()) <= available_memory(recipe, machine)


def refitted(recipe: Recipe, machine: Machine, counts: Counts, settings: Settings) -> Settings:
    """The same with the micro-batch that auto gives to this precision and attention path."""
    micro, why = _micro_batch(recipe, machine, counts, settings.precision, settings.attention)
    return replace(
        settings,
        micro_batch=micro,
        accumulation=-(-recipe.train.batch_size // micro),
        why={**settings.why, "micro_batch": why},
    )


def _micro_batch(
    recipe: Recipe, machine: Machine, counts: Counts, precision: Format, attention: Path
) -> tuple[int, str]:
    batch = recipe.train.batch_size
    if recipe.train.micro_batch != "auto":
        return min(batch, recipe.train.micro_batch), "asked for"
    available = available_memory(recipe, machine)
    useful = max(1, TOKENS_AT_ONCE[machine.device] // recipe.model.context_length)
    for most in range(min(batch, useful), 0, -1):
        accumulation = -(-batch // most)
        micro = -(-batch // accumulation)
        if micro < most and most < min(batch, useful):
            continue  # an even split that a smaller bound gives as well
        if sum(memory_terms(recipe, counts.vocab_size, micro, precision, attention, machine).values()) <= available:
            if accumulation == 1:
                return micro, "the whole batch fits"
            at_once = accumulation == -(-batch // useful)
            return micro, "a larger one is no faster here" if at_once else "the largest that fits in memory"
    return 1, "nothing larger fits in memory"
