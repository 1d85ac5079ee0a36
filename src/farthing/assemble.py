"""Recipe + plan -> built objects: the only file that knows every package."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from farthing import __version__, config
from farthing.data.batches import Batches
from farthing.data.known import KNOWN
from farthing.data.preflight import many_epochs
from farthing.data.prepare import Prepared, prepare
from farthing.data.split import TokenSplit
from farthing.data.store import Report
from farthing.errors import UserError, need
from farthing.evals.actions import Samples
from farthing.evals.forward import interruptible
from farthing.evals.references import references
from farthing.evals.tasks import Loaded
from farthing.evals.tasks.action import check_asked
from farthing.evals.yardstick import evaluate
from farthing.events import Emit, Evaluated, Event, EventLog, Notice
from farthing.export.stock import plan_warnings
from farthing.model.gpt import GPT, model_with
from farthing.optim.build import build_optimizer
from farthing.planning import (
    Choice,
    Counts,
    Plan,
    Settings,
    TaskSize,
    Timing,
    checked,
    choose,
    estimate,
    limitations,
    make_plan,
    predicted_seconds,
    settle,
)
from farthing.recipe import Recipe
from farthing.recipe.data import Bpe, ByteTokenizer, Gpt2Tokenizer, Unigram
from farthing.rundir import RunDir
from farthing.runtime.device import Machine, forget_peak_memory
from farthing.runtime.disk import SavingRate
from farthing.runtime.seed import numeric_fingerprint
from farthing.sinks.mirror import Mirror
from farthing.sinks.tensorboard import TensorBoard
from farthing.sinks.wandb import Wandb
from farthing.training import calibrate
from farthing.training.actions import Action, Moment, Within, at_cadence
from farthing.training.averaging import Averaged
from farthing.training.bench import Bench
from farthing.training.compiled import compile_hidden, warm_up
from farthing.training.feeding import fed
from farthing.training.guard import DivergenceGuard
from farthing.training.interruption import Interruption
from farthing.training.loop import Course, Trainer
from farthing.training.meter import Meter
from farthing.training.precision import Format, Precision
from farthing.training.starting import starting_model
from farthing.training.step import Stepper

CALIBRATION_SECONDS = 3.0
CALIBRATION_SHARE = 0.05
"""of the predicted seconds, in shorter runs"""
CALIBRATION_SECONDS_WHEN_IT_COUNTS = 6.0
"""for a budget in minutes or money, whose number of steps depends on it"""


def read_text(recipe: Recipe, *, directory: Path, cache: Path, report: Report) -> Prepared:
    """The recipe's text as tokens, from the cache where it has been read before."""
    return prepare(
        recipe.data,
        recipe.tokenizer,
        directory=directory,
        cache=cache,
        context_length=recipe.model.context_length,
        report=report,
    )


def counts_of(text: Prepared, tasks: Sequence[Loaded] = ()) -> Counts:
    """What the plan needs to know of the text and of the recipe's tasks, which are taken to be as long in tokens."""
    per_character = len(text.validation.tokens_N) / max(1, text.validation.characters)
    sizes = tuple(TaskSize(len(one.items), one.characters * per_character) for one in tasks)
    return Counts(text.tokenizer.vocab_size, len(text.train.tokens_N), len(text.validation.tokens_N), sizes)


def counts_without_text(recipe: Recipe) -> Counts:
    """What is known before there is any text: the size of the vocabulary.

    Raises:
        UserError: not even that, since the tokenizer is a file of the user's own that has not been read.
    """
    match recipe.tokenizer:
        case ByteTokenizer():
            return Counts(257, None, None)
        case Bpe() | Unigram():
            return Counts(recipe.tokenizer.vocab_size, None, None)
        case Gpt2Tokenizer():
            return Counts(50_257, None, None)
    raise UserError(f"tokenizer.path={recipe.tokenizer.path}: its vocabulary is known only when the text can be read")


def plan_run(
    recipe: Recipe,
    machine: Machine,
    text: Prepared | None,
    *,
    disk_free: int,
    saving: SavingRate | None = None,
    tasks: Sequence[Loaded] = (),
    measure: bool = True,
    report: Report = lambda stage, done, total: None,
) -> Plan:
    """The plan of a recipe on this machine; where there is text and `measure` is on, chosen and timed on real steps."""
    counts = counts_without_text(recipe) if text is None else counts_of(text, tasks)
    if text is not None:
        check_asked(recipe.evaluate, tasks, text.tokenizer)
    settings = settle(recipe, machine, counts)
    timing = estimate(recipe, machine, counts, settings)
    warnings = plan_warnings(recipe.model) + ([] if text is None else [message for _, message in text.warnings])
    draft = make_plan(
        recipe, machine, counts, Choice(settings), timing, disk_free=disk_free, saving=saving, warnings=warnings
    )
    if text is not None and measure and not draft.refusals:
        report("timing steps", 0, 0)
        choice, timing = _measured(recipe, machine, counts, settings, text, timing)
        draft = make_plan(
            recipe, machine, counts, choice, timing, disk_free=disk_free, saving=saving, warnings=warnings
        )
    repeated = many_epochs(draft.epochs) if draft.epochs is not None else None
    return draft if repeated is None else replace(draft, warnings=[*draft.warnings, repeated[1]])


def _measured(
    recipe: Recipe, machine: Machine, counts: Counts, start: Settings, text: Prepared, guess: Timing
) -> tuple[Choice, Timing]:
    """The settings that real steps speak for, and how long a step takes with them."""

    def build(settings: Settings, like: Stepper | None) -> Stepper:
        return build_stepper(recipe, settings, counts.vocab_size, machine.torch_device, like=like)

    batches = build_batches(recipe, text.train)
    with Bench(build, batches) as bench:
        choice = choose(recipe, machine, counts, start, bench, guess=guess.seconds_per_step)
        choice = checked(recipe, machine, counts, choice, bench.compare)
        settings = choice.settings
        torch.set_num_threads(settings.threads)
        timing = guess if settings == start else estimate(recipe, machine, counts, settings)
        if timing.seconds_per_step / settings.accumulation <= 20:
            if recipe.budget.minutes is not None or recipe.budget.money is not None:
                seconds = CALIBRATION_SECONDS_WHEN_IT_COUNTS
            else:
                predicted = predicted_seconds(recipe, counts, timing.seconds_per_step) or math.inf
                seconds = min(CALIBRATION_SECONDS, CALIBRATION_SHARE * predicted)
            measured = calibrate.measure(bench.stepper(settings), batches, seconds=seconds)
            how = f"measured on {measured.samples} {'steps' if settings.accumulation == 1 else 'micro-batches'}"
            timing = Timing(measured.seconds_per_step, how, measured=True)
        if not settings.compile:
            bench.forget_compiled()
    forget_peak_memory(machine.device)
    lacking = limitations(recipe, machine, counts, settings, timing.seconds_per_step)
    return replace(choice, fallbacks=[*choice.fallbacks, *lacking]), timing


def build_batches(recipe: Recipe, train: TokenSplit) -> Batches:
    """The training data of a recipe."""
    return Batches(
        train,
        context_length=recipe.model.context_length,
        batch_size=recipe.train.batch_size,
        order=recipe.train.order,
        seed=recipe.seed,
        segments=recipe.model.attention.scope == "document",
    )


def build_stepper(
    recipe: Recipe,
    settings: Settings,
    vocab_size: int,
    device: torch.device,
    *,
    stop_asked: Callable[[], bool] = lambda: False,
    tell: Callable[[str, str], None] = lambda code, message: None,
    like: Stepper | None = None,
    fresh: bool = True,
) -> Stepper:
    """Model, optimizer and objective on a device: as the recipe starts, or with the parameters of another."""
    ways: Any = {"attention": settings.attention, "weight_gradient": settings.weight_gradient}
    if like is None:
        model = starting_model(recipe.model, vocab_size, seed=recipe.seed, fresh=fresh, **ways).to(device)
        optimizer = build_optimizer(recipe.optimizer, model.named_parameters(), model.roles())
    else:
        model = model_with(like.model.state_dict(keep_vars=True), recipe.model, vocab_size, **ways)
        optimizer = like.optimizer
    stepper = Stepper(
        model=model,
        hidden=model.hidden,
        optimizer=optimizer,
        section=recipe.objective,
        sharpness=recipe.optimizer.sharpness,
        precision=Precision(settings.precision, device),
        device=device,
        batch_size=recipe.train.batch_size,
        micro_batch=settings.micro_batch,
        gradient_clip=recipe.train.gradient_clip,
        stop_asked=stop_asked,
        graphs=settings.cuda_graphs,
        tell=tell,
    )
    if settings.compile:
        compile_hidden(stepper)
    return stepper


def receipt(recipe: Recipe, machine: Machine, text: Prepared, *, directory: Path) -> dict[str, Any]:
    """What a run runs on: versions, machine, text and tokenizer. Nothing of the environment's variables."""
    return {
        "farthing": __version__,
        "machine": machine.as_dict(),
        "numeric": numeric_fingerprint(machine.torch_device),
        "recipe": config.fingerprint(recipe),
        "data": text.receipt,
        "directory": str(directory),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def identity(recipe: Recipe, text: Prepared) -> dict[str, str]:
    """What a checkpoint belongs to."""
    return {
        "recipe": config.fingerprint(recipe),
        "text": text.train.fingerprint,
        "tokenizer": text.tokenizer.fingerprint,
    }


def load_model(recipe: Recipe, settings: Settings, weights: dict[str, torch.Tensor], vocab_size: int) -> GPT:
    """A model with given weights, computing as it did in training, for scoring and sampling."""
    # The other way to compute attention rounds differently, and a score would move in its ninth digit.
    return model_with(weights, recipe.model, vocab_size, attention=settings.attention).eval()


def score(
    recipe: Recipe, model: nn.Module, split: TokenSplit, *, precision: Format, device: torch.device
) -> dict[str, Any]:
    """The yardsticks of a model on a text, as the recipe's [evaluate] asks."""
    return evaluate(
        model,
        split,
        recipe.evaluate,
        context_length=recipe.model.context_length,
        train_batch_size=recipe.train.batch_size,
        train_precision=precision,
        device=device,
        segments=recipe.model.attention.scope == "document",
    )


@dataclass(frozen=True)
class Evaluation:
    """The action that scores the validation text at a cadence, and at the end."""

    recipe: Recipe
    split: TokenSplit
    every: int
    precision: Format
    device: torch.device

    def due(self, moment: Moment) -> bool:
        """At the cadence and at the end."""
        return at_cadence(moment, self.every)

    def run(self, moment: Moment, model: nn.Module) -> list[Event]:
        """Score every validation token."""
        start = time.monotonic()
        found = score(self.recipe, model, self.split, precision=self.precision, device=self.device)
        seconds = round(time.monotonic() - start, 3)
        spent = moment.spent.as_dict()
        return [Evaluated(step=moment.step, split=self.split.name, validation=found, spent=spent, seconds=seconds)]


def _evaluation(recipe: Recipe, plan: Plan, text: Prepared, device: torch.device) -> Action:
    assert plan.evaluate_every is not None
    return Evaluation(recipe, text.validation, plan.evaluate_every, plan.settings.precision, device)


def _samples(recipe: Recipe, plan: Plan, text: Prepared) -> Action:
    return Samples(recipe.sample, recipe.seed, text.tokenizer, plan.settings.precision)


def build_trainer(
    run: RunDir,
    recipe: Recipe,
    plan: Plan,
    text: Prepared,
    machine: Machine,
    *,
    log: EventLog,
    meter: Meter,
    interruption: Interruption,
    asked: Sequence[Action] = (),
    fresh: bool = True,
) -> Trainer:
    """Everything that a run needs for its first step, or, not `fresh`, for a checkpoint; `asked`: further actions."""
    assert plan.steps is not None and plan.last_window is not None
    assert plan.checkpoint_every is not None
    settings, device = plan.settings, machine.torch_device
    stepper = build_stepper(
        recipe,
        settings,
        text.tokenizer.vocab_size,
        device,
        stop_asked=lambda: interruption.signal is not None,
        tell=lambda code, message: log.emit(Notice(code=code, message=message)),
        fresh=fresh,
    )
    actions = [_evaluation(recipe, plan, text, device), *asked, _samples(recipe, plan, text)]
    minutes, money = recipe.budget.minutes, recipe.budget.money
    ema = recipe.train.ema
    return Trainer(
        run=run,
        course=Course(
            seed=recipe.seed,
            steps=plan.steps,
            last_window=plan.last_window,
            flops_per_token=plan.flops_per_token,
            peak_flops=plan.peak_flops,
            log_every=plan.log_every,
            checkpoint_every=plan.checkpoint_every,
            checkpoint_bytes=plan.checkpoint_bytes,
            background_saves=plan.background_saves,
            keep=recipe.checkpoint.keep,
            keep_best=recipe.checkpoint.best,
            on_divergence=recipe.train.on_divergence,
            rollback_lr=recipe.train.rollback_lr,
            identity=identity(recipe, text),
            numeric=numeric_fingerprint(device),
            stop_seconds=None if minutes is None else minutes * 60,
            stop_money=money,
        ),
        schedule=recipe.schedule,
        stepper=stepper,
        batches=fed(build_batches(recipe, text.train), device),
        average=None if ema is None else Averaged(stepper.model.named_parameters(), ema),
        guard=DivergenceGuard(recipe.train.divergence_factor, spike_zscore=recipe.train.spike_zscore),
        meter=meter,
        actions=[Within(one, partial(interruptible, interruption.go_on)) for one in actions],
        emit=log.emit,
        interruption=interruption,
        log_position=log.position,
    )


def compile_ahead(trainer: Trainer, plan: Plan, emit: Emit) -> float:
    """Compile what the steps of a run will call, before its clock starts; returns the seconds that this took."""
    return warm_up(trainer.stepper, trainer.batches.batch(0), emit) if plan.settings.compile else 0.0


def check_mirrors(recipe: Recipe) -> None:
    """Refuse trackers that are not installed, before there is a run.

    Raises:
        UserError: names the extra that brings the missing one.
    """
    for name in recipe.mirrors:
        need(name, extra="track", why=f'mirrors = ["{name}"]')


def build_mirrors(recipe: Recipe, run: RunDir, emit: Emit) -> list[Mirror]:
    """The trackers that follow this run's events; one that fails is dropped with a notice."""
    followers: dict[str, Callable[[], Emit]] = {
        "tensorboard": lambda: TensorBoard(run.mirror("tensorboard")),
        "wandb": lambda: Wandb(run.mirror("wandb"), name=run.name, config=config.flatten(recipe)),
    }
    return [Mirror(name, followers[name](), report=emit) for name in recipe.mirrors]


def compare_with(text: Prepared, split: TokenSplit) -> dict[str, Any]:
    """What other means make of the same text, for scale."""
    return references(split, training=text.train, vocab_size=text.tokenizer.vocab_size)


def known_corpora() -> list[str]:
    """Names that `farthing data get` takes."""
    return sorted(KNOWN)
