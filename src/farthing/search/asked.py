"""What a search is asked to do: SEARCH.toml, its sections and its one-line errors.

The recipe's own settings are checked against the recipe's schema in space.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from farthing.section import Section

Value = str | int | float | bool
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Tie(Section):
    """A number that follows from another setting: times * x + plus, or times / x + plus."""

    of: str
    """the path of that setting, in the space or in the recipe"""
    times: float = 1.0
    """factor"""
    plus: float = 0.0
    """summand"""
    inverse: bool = False
    """divide `times` by the setting instead of multiplying it, as in a batch of so many tokens"""
    whole: bool = False
    """round to the nearest whole number"""


Bound = float | Tie


class Dimension(Section):
    """What every kind of parameter has in common."""

    when: dict[str, Any] = {}
    """only where these settings have this value, or one of a list of values"""


class Float(Dimension):
    """A number."""

    kind: Literal["float"] = "float"
    low: Bound
    """smallest value, a number or tied to another setting"""
    high: Bound
    """largest value, likewise"""
    log: bool = False
    """draw its logarithm evenly"""
    step: Positive | None = None
    """distance between values; none: any number"""


class Dividing(Dimension):
    """Parameters that may be bound to another one by division."""

    divides: str | None = None
    """the path of a setting that this one must divide, as n_head divides d_model"""
    multiple_of: str | None = None
    """the path of a setting that this one must be a multiple of"""


class Int(Dividing):
    """A whole number."""

    kind: Literal["int"] = "int"
    low: int | Tie
    """smallest value, a number or tied to another setting"""
    high: int | Tie
    """largest value, likewise"""
    log: bool = False
    """draw its logarithm evenly"""
    step: Count = 1
    """distance between values"""


class Choice(Dividing):
    """One of several values: words, numbers, true and false; "none" takes an optional setting back."""

    kind: Literal["choice"] = "choice"
    choices: Annotated[list[Value], Field(min_length=1)]
    """the values"""


AnyDimension = Float | Int | Choice


class Random(Section):
    """Independent draws."""

    kind: Literal["random"] = "random"


class QuasiRandom(Section):
    """Points that fill the space more evenly than chance does (Sobol 1967, rotated at random)."""

    kind: Literal["quasi_random"] = "quasi_random"


class Grid(Section):
    """Every combination once; numbers need a step."""

    kind: Literal["grid"] = "grid"


class Tpe(Section):
    """Tree-structured Parzen estimator (Bergstra et al. 2011)."""

    kind: Literal["tpe"] = "tpe"
    startup_trials: Count = 10
    """random trials before it begins to learn"""


class CmaEs(Section):
    """Covariance matrix adaptation (Hansen 2016) over the numbers; choices are drawn at random."""

    kind: Literal["cmaes"] = "cmaes"
    population: Annotated[int, Field(ge=2)] | Literal["auto"] = "auto"
    """trials a generation; auto: 4 + 3 ln(numbers)"""
    sigma: Annotated[float, Field(gt=0, le=1)] = 0.25
    """first standard deviation, as a share of each range"""


class Gp(Section):
    """Gaussian process with expected improvement, for few and costly trials."""

    kind: Literal["gp"] = "gp"
    startup_trials: Count = 10
    """random trials before it begins to learn"""


AnySampler = Annotated[Random | QuasiRandom | Grid | Tpe | CmaEs | Gp, Field(discriminator="kind")]


class NoPruner(Section):
    """Every trial goes to its end."""

    kind: Literal["none"] = "none"


class Median(Section):
    """Stop a trial whose best score so far is worse than the others' median at the same share of their budgets."""

    kind: Literal["median"] = "median"
    startup_trials: Count = 5
    """complete trials before any is stopped"""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """share of a trial's budget before it may be stopped"""


class Halving(Section):
    """What successive halving and Hyperband have in common."""

    least: Annotated[float, Field(ge=0.01, le=1)] = 0.1
    """share of its budget that every trial gets"""
    factor: Annotated[int, Field(ge=2)] = 3
    """one in so many goes on from each rung to the next, which lies so many times further"""


class SuccessiveHalving(Halving):
    """Asynchronous successive halving (Li et al. 2020)."""

    kind: Literal["successive_halving"] = "successive_halving"


class Hyperband(Halving):
    """Several halvings that begin at different rungs (Li et al. 2018)."""

    kind: Literal["hyperband"] = "hyperband"


class Wilcoxon(Section):
    """Stop a trial of several seeds when its finished ones are worse than the best trial's by the signed-rank test."""

    kind: Literal["wilcoxon"] = "wilcoxon"
    level: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """p below which a trial is stopped; the smallest that k finished seeds can show is 1 / 2^k"""
    startup_seeds: Annotated[int, Field(ge=2)] = 2
    """finished seeds before it may be stopped"""

    @property
    def fewest_seeds(self) -> int:
        """Seeds a trial from which one can be stopped: where k have ended, all worse, p is 1 / 2^k, and one is left."""
        pairs = self.startup_seeds
        while 0.5**pairs >= self.level:
            pairs += 1
        return pairs + 1


AnyPruner = Annotated[NoPruner | Median | SuccessiveHalving | Hyperband | Wilcoxon, Field(discriminator="kind")]


class SearchLimits(Section):
    """What a candidate must keep to; `plan` tells before a second is spent. The recipe's own [limits] hold too."""

    min_parameters: Count | None = None
    """fewest parameters"""
    max_parameters: Count | None = None
    """most parameters"""
    min_megabytes: Positive | None = None
    """smallest model, 4 bytes a parameter"""
    max_megabytes: Positive | None = None
    """largest model, 4 bytes a parameter"""
    max_memory_gib: Positive | None = None
    """most memory in training"""
    max_flops: Positive | None = None
    """most training operations of one run"""
    max_minutes: Positive | None = None
    """longest run, as planned"""
    max_money: Positive | None = None
    """dearest run, as planned"""

    @model_validator(mode="after")
    def _ordered(self) -> SearchLimits:
        for name, low, high in (
            ("parameters", self.min_parameters, self.max_parameters),
            ("megabytes", self.min_megabytes, self.max_megabytes),
        ):
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{name}={low:g} is more than max_{name}={high:g}: nothing lies between")
        return self


class SearchBudget(Section):
    """What the whole search may spend, confirmation runs included in all but trials. Give at least one."""

    trials: Count | None = None
    """trials: complete, pruned and failed ones; refused candidates are none"""
    flops: Positive | None = None
    """training operations"""
    minutes: Positive | None = None
    """minutes that runs hold the machine, added up: two workers for a minute are two"""
    money: Positive | None = None
    """what runs may cost, by the recipe's budget.price_per_hour"""

    @model_validator(mode="after")
    def _some(self) -> SearchBudget:
        if all(limit is None for limit in (self.trials, self.flops, self.minutes, self.money)):
            raise ValueError("no budget: set one of budget.trials, flops, minutes or money")
        return self


class Confirm(Section):
    """The best trials again, with fresh seeds, so that the winner is not merely the luckiest."""

    top: Annotated[int, Field(ge=0)] = 3
    """how many of the best trials; 0 confirms nothing"""
    seeds: Count = 3
    """fresh seeds for each"""
    base: bool = True
    """train the base recipe with these seeds too, so that the gain is known"""


class Search(Section):
    """One search: a recipe, a space around it, and what it may cost."""

    recipe: str = "default"
    """the base recipe: a file (beside this one or where you are) or a shipped one's name"""
    changes: dict[str, Any] = {}
    """settings of the recipe that hold for every trial, as tables or paths"""
    space: dict[str, Any]
    """a parameter for each searched path"""
    tied: dict[str, Any] = {}
    """settings that follow from others"""
    seed: Seed = 0
    """seed of the sampler"""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [1337]
    """seeds of each trial's runs; a trial's score is their mean"""
    score: Literal["last", "best"] = "last"
    """validation bits per byte of a run's end, or of its best checkpoint"""
    sampler: AnySampler = Tpe()
    """how candidates are proposed"""
    pruner: AnyPruner = NoPruner()
    """when a trial is stopped early"""
    limits: SearchLimits = SearchLimits()
    """what refuses a candidate"""
    budget: SearchBudget
    """what the search may spend"""
    confirm: Confirm = Confirm()
    """what the end is checked by"""
    heartbeat_seconds: Annotated[int, Field(ge=1, le=3600)] = 30
    """with a database: a worker that says nothing for twice as long is given up, and its trials are taken over"""

    @model_validator(mode="after")
    def _makes_sense(self) -> Search:
        if not self.space:
            raise ValueError("space: is empty; name at least one parameter")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: a seed is given twice")
        if isinstance(self.pruner, Wilcoxon) and len(self.seeds) < self.pruner.fewest_seeds:
            raise ValueError(
                f"pruner.kind=wilcoxon compares seeds, and at pruner.level={self.pruner.level:g} and "
                f"pruner.startup_seeds={self.pruner.startup_seeds} it can never stop a trial of {len(self.seeds)}: "
                f"give at least {self.pruner.fewest_seeds} seeds"
            )
        return self
