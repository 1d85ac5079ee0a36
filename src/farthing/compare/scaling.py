"""How loss falls with parameters, tokens and operations, and what a budget would buy that has not been spent yet.

The law of Hoffmann et al. (2022, Training Compute-Optimal Large Language Models, section 3.3),

    L(N, D) = E + A / N^a + B / D^b

with N parameters and D training tokens, fitted by L-BFGS to the Huber loss of log L from many starting points. Runs that
do not vary enough to identify it get a simpler law, which says so: in N alone, in D alone, or in operations where N and D
grew together; and without the floor E where there are too few of them to see the curve level off.

Intervals are bootstrapped over the recipes (Efron 1979): each replicate fits the law to a draw of them with replacement,
and a prediction adds one of that fit's own residuals, so that the interval is one for a run, not for the mean.

Losses are bits per byte, so runs of different tokenizers may stand in one fit. A token that is trained on in a second
epoch counts as one more, though it teaches less; the fit's notes say where that was so.

Letters: R runs, or recipes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from farthing.errors import UserError

Floats = NDArray[np.float64]
Kind = Literal["parameters and tokens", "parameters", "tokens", "flops"]

HUBER = 1e-3
"""residuals of log L above this count linearly, as in the paper"""
REPLICATES = 200
_SPREAD = 1.5
"""a quantity has to vary by this factor before a law in it is fitted"""
_ALIKE = 0.97
"""correlation of log N and log D above which their effects cannot be told apart"""


@dataclass(frozen=True)
class Point:
    """One recipe's outcome: parameters, training tokens, operations, bits per byte (the mean of its seeds)."""

    parameters: float
    tokens: float
    flops: float
    loss: float
    epochs: float = 0.0


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap interval at 1 - level."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The same, JSON-ready."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Law:
    """A fitted law: E + the sum of A_i / x_i^a_i.

    Args:
        kind: in what it is.
        floor: E, the loss that no size and no text would get below; 0 where the runs are too few to show one.
        scale: A of each quantity, by name.
        exponent: a of each quantity.
    """

    kind: Kind
    floor: float
    scale: dict[str, float]
    exponent: dict[str, float]

    def loss(self, **quantities: float) -> float:
        """The loss at given parameters, tokens and flops; those that the law is not in are not looked at."""
        return self.floor + math.fsum(
            self.scale[name] * quantities[name] ** -self.exponent[name] for name in self.scale
        )


@dataclass(frozen=True)
class Fit:
    """A law, how sure it is, and what it rests on.

    Args:
        law: the best fit.
        replicates: the laws of the bootstrap.
        residuals_R: log of measured over fitted loss.
        points: what was fitted.
        flops_per_parameter_token: operations for a token and a parameter, the median of the runs (about 6).
        notes: what a person should know, a line each.
        level: intervals are at 1 - level.
    """

    law: Law
    replicates: list[Law]
    residuals_R: Floats
    points: list[Point]
    flops_per_parameter_token: float
    notes: list[str] = field(default_factory=list)
    level: float = 0.05

    @property
    def largest(self) -> float:
        """The most operations that any of the runs has spent."""
        return max(point.flops for point in self.points)

    def predict(self, *, parameters: float, tokens: float, flops: float) -> Interval:
        """The loss of a run, in bits per byte, with an interval for that run.

        Args:
            parameters: of its model.
            tokens: that it trains on.
            flops: operations that it spends.
        """
        at = {"parameters": parameters, "tokens": tokens, "flops": flops}
        rng = np.random.default_rng(0)
        several = [law.loss(**at) * math.exp(rng.choice(self.residuals_R)) for law in self.replicates]
        return self._interval(self.law.loss(**at), several)

    def best_size(self, flops: float) -> tuple[Interval, Interval] | None:
        """Parameters and tokens that spend a budget of operations best; None where the law does not know sizes."""
        if self.law.kind != "parameters and tokens":
            return None
        product = flops / self.flops_per_parameter_token
        sizes = [_best_parameters(law, product) for law in (self.law, *self.replicates)]
        return self._interval(sizes[0], sizes[1:]), self._interval(product / sizes[0], [product / n for n in sizes[1:]])

    def at_budget(self, flops: float) -> Interval:
        """The loss that a budget of operations buys: at the best size where the law knows it, else of runs as these."""
        best = self.best_size(flops)
        if best is not None:
            return self.predict(parameters=best[0].value, tokens=best[1].value, flops=flops)
        # The quantity that the runs did not vary stays as it was; where they grew together, only operations count.
        largest = max(self.points, key=lambda point: point.flops)
        tokens = flops / (self.flops_per_parameter_token * largest.parameters)
        sizes = flops / (self.flops_per_parameter_token * largest.tokens)
        return self.predict(parameters=sizes, tokens=tokens, flops=flops)

    def as_dict(self) -> dict[str, Any]:
        """The fit and what follows from it for ten times the largest budget, JSON-ready."""
        ten = 10 * self.largest
        best = self.best_size(ten)
        return {
            "law": self.law.kind,
            "runs": len(self.points),
            "level": self.level,
            "floor": self._of(lambda law: law.floor).as_dict(),
            "scale": {name: self._of(lambda law, n=name: law.scale[n]).as_dict() for name in self.law.scale},  # type: ignore[misc]
            "exponent": {name: self._of(lambda law, n=name: law.exponent[n]).as_dict() for name in self.law.exponent},  # type: ignore[misc]
            "residual": float(np.sqrt(np.mean(self.residuals_R**2))),
            "ten_times": {
                "flops": ten,
                "bits_per_byte": self.at_budget(ten).as_dict(),
                "parameters": None if best is None else best[0].as_dict(),
                "tokens": None if best is None else best[1].as_dict(),
            },
            "notes": self.notes,
        }

    def _of(self, part: Callable[[Law], float]) -> Interval:
        return self._interval(part(self.law), [part(law) for law in self.replicates])

    def _interval(self, value: float, several: Sequence[float]) -> Interval:
        low, high = np.quantile(several, [self.level / 2, 1 - self.level / 2])
        return Interval(value, min(value, float(low)), max(value, float(high)))


def fit(
    points: Sequence[Point], *, notes: Sequence[str] = (), level: float = 0.05, replicates: int = REPLICATES
) -> Fit:
    """Fit the richest law that the runs identify.

    Args:
        points: one a recipe.
        notes: to be told with the fit.
        level: intervals are at 1 - level.
        replicates: of the bootstrap.

    Raises:
        UserError: there are too few recipes, or they hardly differ in size and tokens.
    """
    kind, with_floor, told = _identified(points)
    columns = {name: np.array([getattr(point, name) for point in points]) for name in _quantities(kind)}
    loss_R = np.array([point.loss for point in points])
    law = _best_of(kind, columns, loss_R, _starts(columns, loss_R, with_floor), with_floor)
    rng = np.random.default_rng(0)
    laws: list[Law] = []
    while len(laws) < replicates:
        draw_R = rng.integers(0, len(points), len(points))
        drawn = {name: values[draw_R] for name, values in columns.items()}
        if _varied(drawn, with_floor):
            laws.append(_best_of(kind, drawn, loss_R[draw_R], [_encoded(law, drawn, with_floor)], with_floor))
    residuals_R = np.log(loss_R) - np.log([law.loss(**_at(point)) for point in points])
    # As many numbers as were fitted are no longer free to show how far the runs lie from the law.
    free = len(points) - 2 * len(columns) - with_floor
    residuals_R *= math.sqrt(len(points) / max(1, free))
    ratio = float(np.median([point.flops / (point.parameters * point.tokens) for point in points]))
    repeated = max(point.epochs for point in points)
    if repeated > 1:
        told = [
            *told,
            f"up to {repeated:.3g} epochs: repeated tokens are counted like new ones, though they teach less",
        ]
    return Fit(law, laws, residuals_R, list(points), ratio, [*notes, *told], level)


def _identified(points: Sequence[Point]) -> tuple[Kind, bool, list[str]]:
    """Which law so many different runs can tell, whether with a floor, and what is to be said of that."""
    sizes = {point.parameters for point in points}
    tokens = {point.tokens for point in points}
    wide_sizes, wide_tokens = _wide(sizes), _wide(tokens)
    if len(points) < 3:
        raise UserError(
            f"too few runs: a law of how loss falls takes 3 or more that differ in size or tokens; with a score: {len(points)}"
        )
    if not wide_sizes and not wide_tokens:
        raise UserError(
            f"{len(points)} recipes within a factor {_SPREAD} of each other in parameters and in tokens: no law can be "
            "read off that; train some smaller or shorter ones"
        )
    if wide_sizes and wide_tokens:
        logs = np.log([[point.parameters, point.tokens] for point in points])
        alike = float(np.corrcoef(logs.T)[0, 1])
        flops = [point.flops for point in points]
        if alike < -_ALIKE or not _wide(set(flops)):
            # Along such a line the loss falls and rises again with the size, whatever the operations are.
            raise UserError(
                f"{len(points)} recipes that trade size for tokens, at {min(flops):.3g} to {max(flops):.3g} operations: "
                "which size is best there can be compared, but what another budget buys cannot be read off; train some "
                "for less or for more"
            )
        together = alike > _ALIKE
        if not together and len(sizes) >= 3 and len(tokens) >= 3 and len(points) >= 8:
            return "parameters and tokens", True, []
        why = "sizes and tokens grew together" if together else f"{len(points)} recipes are too few for a law in both"
        return _checked("flops", set(flops), f"{why}: fitted against operations alone")
    if wide_sizes:
        return _checked("parameters", sizes, "tokens hardly vary: fitted against parameters alone")
    return _checked("tokens", tokens, "parameters hardly vary: fitted against tokens alone")


def _checked(kind: Kind, values: set[float], note: str) -> tuple[Kind, bool, list[str]]:
    if len(values) < 3:
        raise UserError(f"{len(values)} different amounts of {kind}: a law takes 3 or more; train some others")
    if len(values) >= 5:
        return kind, True, [note]
    few = f"{len(values)} different amounts of {kind} show no floor: a bare power law, which promises too much further out"
    return kind, False, [note, few]


def _wide(values: set[float]) -> bool:
    return max(values) >= _SPREAD * min(values) if values else False


def _varied(columns: Mapping[str, Floats], with_floor: bool) -> bool:
    """Whether a draw of the bootstrap still identifies the law."""
    least = 3 if with_floor else 2
    return all(len(np.unique(values)) >= least for values in columns.values())


def _quantities(kind: Kind) -> tuple[str, ...]:
    return ("parameters", "tokens") if kind == "parameters and tokens" else (kind,)


def _at(point: Point) -> dict[str, float]:
    return {"parameters": point.parameters, "tokens": point.tokens, "flops": point.flops}


# A law is fitted as a vector: log A_i and a_i of each quantity, x_i being measured in its geometric mean over the runs,
# which keeps the fit well conditioned; then log E, where there is a floor.


def _starts(columns: Mapping[str, Floats], loss_R: Floats, with_floor: bool) -> list[Floats]:
    found = []
    for share in (0.3, 0.6, 0.9) if with_floor else (0.0,):
        floor = share * float(loss_R.min())
        rest = math.log((float(loss_R.mean()) - floor) / len(columns))
        own = [math.log(floor)] if with_floor else []
        found += [np.array([rest, exponent] * len(columns) + own) for exponent in (0.15, 0.4, 0.8)]
    return found


def _best_of(
    kind: Kind, columns: Mapping[str, Floats], loss_R: Floats, starts: Sequence[Floats], with_floor: bool
) -> Law:
    """The law with the least Huber loss that L-BFGS finds from any of the starts."""
    from scipy.optimize import minimize
    from scipy.special import huber

    centres = _centres(columns)
    logs = [np.log(values / centres[name]) for name, values in columns.items()]
    target_R = np.log(loss_R)

    def objective(vector: Floats) -> tuple[float, Floats]:
        terms = [vector[2 * i] - vector[2 * i + 1] * log_R for i, log_R in enumerate(logs)]
        stacked_TR = np.stack([*terms, *[np.full_like(target_R, vector[-1])] * with_floor])
        top_R = stacked_TR.max(axis=0)
        shares_TR = np.exp(stacked_TR - top_R)
        total_R = shares_TR.sum(axis=0)
        residual_R = top_R + np.log(total_R) - target_R
        slopes_TR = np.clip(residual_R, -HUBER, HUBER) * shares_TR / total_R
        gradient = [
            float(part)
            for log_R, slope_R in zip(logs, slopes_TR, strict=False)
            for part in (slope_R.sum(), -slope_R @ log_R)
        ]
        gradient += [float(slopes_TR[-1].sum())] * with_floor
        # In units of HUBER squared, or the stopping rule would see nothing but noughts.
        return float(huber(HUBER, residual_R).sum()) / HUBER**2, np.array(gradient) / HUBER**2

    bounds = [(None, None), (0.0, 4.0)] * len(logs) + [(None, math.log(loss_R.min()))] * with_floor
    found = [minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds) for start in starts]
    best = min(found, key=lambda one: one.fun).x
    exponent = {name: float(best[2 * i + 1]) for i, name in enumerate(columns)}
    scale = {name: math.exp(best[2 * i]) * centres[name] ** exponent[name] for i, name in enumerate(columns)}
    return Law(kind, math.exp(best[-1]) if with_floor else 0.0, scale, exponent)


def _encoded(law: Law, columns: Mapping[str, Floats], with_floor: bool) -> Floats:
    """A law as the vector that the fit of other runs starts from."""
    numbers: list[float] = []
    for name, centre in _centres(columns).items():
        numbers += [math.log(law.scale[name]) - law.exponent[name] * math.log(centre), law.exponent[name]]
    return np.array(numbers + [math.log(max(law.floor, 1e-9))] * with_floor)


def _centres(columns: Mapping[str, Floats]) -> dict[str, float]:
    return {name: math.exp(float(np.log(values).mean())) for name, values in columns.items()}


def _best_parameters(law: Law, product: float) -> float:
    """N that minimises A / N^a + B / D^b where N D = product; the closed form of the paper's appendix."""
    a, b = law.exponent["parameters"], law.exponent["tokens"]
    if a + b == 0:
        return math.sqrt(product)  # neither buys anything: any split is as good
    ratio = a * law.scale["parameters"] / max(b * law.scale["tokens"], 1e-300)
    # In logarithms, since small exponents take the ratio far beyond what a number holds; at least one of either.
    size = (math.log(max(ratio, 1e-300)) + b * math.log(product)) / (a + b)
    return math.exp(min(max(size, 0.0), math.log(product)))
