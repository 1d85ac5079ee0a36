"""The trial: settings raced in turn on real steps, and the rule by which one is taken.

Nothing here takes a step: the track does, which is handed in. Seconds are those of a whole optimizer step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Protocol

from farthing.planning.settings import Settings

LEAST_SECONDS = 30.0
"""A run predicted to be shorter keeps what the machine's probes suggest."""
SHARE = 0.025
"""Share of the predicted seconds that racing may take, compiling apart."""
MOST_SECONDS = 25.0
RACE_SHARE = 0.2
"""Share of the trial's seconds for one race."""
MARGIN = 0.04
"""A challenger must be faster by this share: less is noise, and a change of settings changes the last digits of losses."""
COMPILE_SECONDS = {"cpu": 45.0, "cuda": 40.0}
"""What compiling is taken to cost until it has been tried; other devices do not try it."""
COMPILE_GAIN = {"cpu": 0.2, "cuda": 0.4}
"""By how much compiled steps are taken to be faster until they have been tried."""

Coordinate = Callable[[Settings], Iterable[Settings]]
"""what else could be tried in one respect, given the best so far"""


class Race(Protocol):
    """How two settings did, in turn on the same batches."""

    @property
    def incumbent(self) -> Sequence[float]:
        """Seconds of each of its steps."""

    @property
    def challenger(self) -> Sequence[float]:
        """Seconds of each of its steps; none if it failed."""

    @property
    def compile_seconds(self) -> float:
        """What compiling the challenger took; 0 where there was nothing to compile."""

    @property
    def failure(self) -> str:
        """Why the challenger cannot be used, or nothing."""


class Track(Protocol):
    """Takes steps with settings in turn."""

    def race(self, incumbent: Settings, challenger: Settings, *, seconds: float) -> Race:
        """Race two settings for about `seconds`."""


@dataclass(frozen=True)
class Tried:
    """One candidate, and what came of it."""

    precision: str
    attention: str
    weight_gradient: str
    compile: bool
    micro_batch: int
    threads: int
    seconds_per_step: float | None
    """the shortest: other work on the machine can only make a step longer"""
    median_seconds: float | None
    runs: int
    tokens_per_second: float | None
    """at the shortest"""
    taken: bool
    verdict: str
    cuda_graphs: bool = False


@dataclass(frozen=True)
class Trial:
    """What was tried, as plan.json keeps it."""

    seconds: float
    """that the trial took, when it was made"""
    gain: float | None
    """how many times as fast as plain fp32, eager and with fused attention; None where the recipe rules that out"""
    tried: list[Tried]
    remembered: bool = False
    """whether it was made for an earlier run of the same recipe on this machine"""
    busy: bool = False
    """whether other work wanted the same cores, so that nothing follows from it"""

    def told(self) -> str:
        """What the choice rests on, in words."""
        if self.busy:
            return "as its probes suggest, since other work kept the machine busy"
        how = "remembered" if self.remembered else f"measured in {max(1.0, self.seconds):.0f} s"
        if self.gain is None:
            return how
        return f"plain fp32 ({how})" if self.gain == 1 else f"{self.gain:.2g} times plain fp32 ({how})"

    def disturbed(self) -> Trial:
        """The same trial with nothing following from it: where it began is where it ends."""
        tried = [replace(one, taken=number == 0) for number, one in enumerate(self.tried)]
        return replace(self, gain=None, tried=tried, busy=True)

    def overruled(self) -> Trial:
        """The same trial where what it found must not be used."""
        return replace(self, gain=None, tried=[replace(one, taken=False) for one in self.tried])

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Trial:
        """The trial that `as_dict` described.

        Raises:
            TypeError: it is not of that form.
            KeyError: something is missing.
        """
        return cls(**{**table, "tried": [Tried(**one) for one in table["tried"]]})


def allowance(predicted: float | None) -> float:
    """Seconds that racing may take in a run of so many; 0 where it is not worth it."""
    if predicted is None or predicted < LEAST_SECONDS:
        return 0.0
    return min(MOST_SECONDS, SHARE * predicted)


def worth_compiling(predicted: float | None, device: str) -> bool:
    """Whether compiling may save more than the two compilations cost that trying and then using it take."""
    if predicted is None or device not in COMPILE_SECONDS:
        return False
    return predicted * (1 - 1 / (1 + COMPILE_GAIN[device])) > 2 * COMPILE_SECONDS[device]


def compiling_pays(predicted: float, gain: float, compile_seconds: float) -> bool:
    """Whether a run of `predicted` eager seconds saves more than compiling, which it has to do again, costs."""
    return gain > 1 / (1 - MARGIN) and predicted * (1 - 1 / gain) > compile_seconds


def search(
    start: Settings,
    track: Track,
    *,
    plain: Settings | None,
    coordinates: Sequence[Coordinate],
    seconds: float,
    predict: Callable[[float], float | None],
    compiled: Callable[[Settings], Settings | None],
    tokens_per_step: int,
    disturbed: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Settings, Trial]:
    """Better the settings one respect at a time; what is returned was never measured to be slower than `plain`.

    Args:
        start: what the probes suggest, without compiling.
        track: takes the steps.
        plain: fp32, eager, fused attention; None if the recipe rules that out.
        coordinates: what may be tried, the most telling first.
        seconds: the trial's; the race that is on when they are over is run to its end.
        predict: the run's training seconds from those of a step.
        compiled: the same settings compiled, or None where compiling is not to be tried.
        tokens_per_step: for the evidence.
        disturbed: whether other work makes times meaningless, so that there is no use in taking more.
        clock: seconds, rising.
    """
    found = _Search(start, track, seconds, disturbed, clock)
    if plain is not None and plain != start:
        # It wins a tie: what cannot beat it is not worth the risk.
        found.challenge(plain, margin=0.0)
    for coordinate in coordinates:
        while any(found.challenge(other) for other in coordinate(found.best) if found.affords(other)):
            pass
    if plain in found.times and found.shortest(plain) < found.shortest(found.best):
        found.why["precision"] = f"nothing tried was faster in the end: {_said(found.shortest(plain))} a step"
        found.best = plain
    if found.best in found.times and not disturbed():
        predicted = predict(found.shortest(found.best))
        if worth_compiling(predicted, start.device) and (challenger := compiled(found.best)) is not None:
            assert predicted is not None
            found.try_compiling(challenger, predicted)
    return found.result(start, plain, tokens_per_step)


class _Search:
    def __init__(
        self,
        start: Settings,
        track: Track,
        seconds: float,
        disturbed: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self.best = start
        self.times: dict[Settings, list[float]] = {}
        self.verdicts = {start: "where it begins: what the machine's probes suggest"}
        self.why: dict[str, str] = {}
        self._track, self._seconds, self._clock = track, seconds, clock
        self.disturbed = disturbed
        self._begun = clock()

    def shortest(self, settings: Settings) -> float:
        return min(self.times[settings])

    def affords(self, challenger: Settings) -> bool:
        """Whether it is new, and there is time."""
        if challenger in self.verdicts or challenger in self.times or challenger == self.best:
            return False
        over = self._clock() - self._begun >= self._seconds
        if not over and not self.disturbed():
            return True
        self.verdicts[challenger] = "not tried: no time left" if over else "not tried: other work disturbs"
        return False

    def challenge(self, challenger: Settings, *, margin: float = MARGIN) -> bool:
        """Race it against the best so far; whether it is the best now."""
        race = self._race(challenger)
        if race.failure:
            return False
        before, now = min(race.incumbent), min(race.challenger)
        respect = _differences(self.best, challenger)[0]
        pair = sorted([(now, challenger), (before, self.best)], key=lambda one: one[0])
        values = ", ".join(f"{getattr(one, respect)}: {_said(took)}" for took, one in pair)
        self.why[respect] = f"measured in turn, a step: {values}"
        if now > before * (1 - margin):
            self.verdicts[challenger] = f"{now / before - 1:+.0%} seconds a step: not taken"
            return False
        self.verdicts[challenger] = f"{now / before - 1:+.0%} seconds a step"
        self.best = challenger
        return True

    def try_compiling(self, challenger: Settings, predicted: float) -> None:
        race = self._race(challenger)
        if race.failure:
            self.why["compile"] = race.failure
            return
        before, now = min(race.incumbent), min(race.challenger)
        told = f"{_said(now)} a step instead of {_said(before)}, for {race.compile_seconds:.0f} s of compiling"
        if compiling_pays(predicted, before / now, race.compile_seconds):
            self.best, self.why["compile"] = challenger, f"measured in turn: {told}"
        else:
            self.why["compile"] = f"measured in turn, it would not pay: {told}"
        self.verdicts[challenger] = told

    def _race(self, challenger: Settings) -> Race:
        race = self._track.race(self.best, challenger, seconds=self._seconds * RACE_SHARE)
        self.times.setdefault(self.best, []).extend(race.incumbent)
        if race.failure:
            self.verdicts[challenger] = race.failure
        else:
            self.times.setdefault(challenger, []).extend(race.challenger)
        return race

    def result(self, start: Settings, plain: Settings | None, tokens_per_step: int) -> tuple[Settings, Trial]:
        gain = None
        if plain in self.times and self.best in self.times:
            gain = 1.0 if plain == self.best else self.shortest(plain) / self.shortest(self.best)
        tried = [
            _tried(one, self.times.get(one, []), tokens_per_step, one == self.best, self.verdicts.get(one, ""))
            for one in {**self.times, **dict.fromkeys(self.verdicts)}
        ]
        chosen = replace(self.best, why={**start.why, **self.best.why, **self.why})
        return chosen, Trial(round(self._clock() - self._begun, 3), gain, tried)


def _tried(settings: Settings, times: Sequence[float], tokens_per_step: int, taken: bool, verdict: str) -> Tried:
    shortest = min(times, default=None)
    return Tried(
        precision=settings.precision,
        attention=settings.attention,
        weight_gradient=settings.weight_gradient,
        compile=settings.compile,
        micro_batch=settings.micro_batch,
        threads=settings.threads,
        seconds_per_step=shortest,
        median_seconds=median(times) if times else None,
        runs=len(times),
        tokens_per_second=None if shortest is None else round(tokens_per_step / shortest, 1),
        taken=taken,
        verdict=verdict,
        cuda_graphs=settings.cuda_graphs,
    )


def _differences(one: Settings, other: Settings) -> list[str]:
    """In what respects they differ, the most telling first."""
    respects = ("precision", "attention", "weight_gradient", "cuda_graphs", "micro_batch", "threads", "compile")
    return [name for name in respects if getattr(one, name) != getattr(other, name)]


def _said(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
