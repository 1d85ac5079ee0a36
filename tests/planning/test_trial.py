"""The rule by which settings are taken: never slower than plain fp32, never for noise, never beyond what it may cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.planning.settings import Settings
from farthing.planning.trial import (
    COMPILE_GAIN,
    COMPILE_SECONDS,
    MARGIN,
    MOST_SECONDS,
    Trial,
    allowance,
    compiling_pays,
    search,
    worth_compiling,
)

START = Settings("cpu", 2, "bf16", "math", False, 16, 1, {"precision": "probes", "compile": "short"})
PLAIN = replace(START, precision="fp32", attention="sdpa")


@dataclass
class Result:
    incumbent: list[float]
    challenger: list[float]
    compile_seconds: float = 0.0
    failure: str = ""


@dataclass
class Track:
    """Steps take what a function says; each race passes ten seconds."""

    seconds: Callable[[Settings], float]
    failing: frozenset[Settings] = frozenset()
    compile_seconds: float = 40.0
    now: float = 0.0
    races: list[tuple[Settings, Settings]] = field(default_factory=list)

    def race(self, incumbent: Settings, challenger: Settings, *, seconds: float) -> Result:
        self.races.append((incumbent, challenger))
        self.now += 10.0
        if challenger in self.failing:
            return Result([], [], failure="does not fit in memory")
        times = [self.seconds(incumbent)], [self.seconds(challenger)]
        return Result(*times, compile_seconds=self.compile_seconds if challenger.compile else 0.0)


def attentions(best: Settings) -> Iterator[Settings]:
    yield replace(best, attention="math" if best.attention == "sdpa" else "sdpa")


def micro_batches(best: Settings) -> Iterator[Settings]:
    if best.micro_batch > 1:
        yield replace(best, micro_batch=best.micro_batch // 2, accumulation=best.accumulation * 2)


def tried(track: Track, *, start: Settings = START, plain: Settings | None = PLAIN, **more: Any) -> Any:
    return search(
        start,
        track,
        plain=plain,
        coordinates=[attentions, micro_batches],
        seconds=more.get("seconds", 1e9),
        predict=lambda step: more.get("steps", 10) * step,
        compiled=more.get("compiled", lambda best: replace(best, compile=True)),
        tokens_per_step=1000,
        clock=lambda: track.now,
    )


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=40), st.floats(0, 1000), st.integers(1, 10_000))
def test_what_is_taken_was_never_measured_to_be_slower_than_plain(
    times: list[float], seconds: float, steps: int
) -> None:
    samples: dict[Settings, list[float]] = {}
    drawn = iter(range(10**9))

    def took(settings: Settings) -> float:
        # Noise of any kind: each step takes what comes next.
        samples.setdefault(settings, []).append(times[next(drawn) % len(times)])
        return samples[settings][-1]

    chosen, trial = tried(Track(took), seconds=seconds, steps=steps)
    assert PLAIN in samples, "plain fp32 is always among the measured"
    if not chosen.compile:
        assert min(samples[chosen]) <= min(samples[PLAIN])
        assert trial.gain is not None and trial.gain >= 1
    assert [one.taken for one in trial.tried].count(True) == 1
    [taken] = [one for one in trial.tried if one.taken]
    assert (taken.precision, taken.attention, taken.micro_batch) == (
        chosen.precision,
        chosen.attention,
        chosen.micro_batch,
    )


@given(st.floats(0.01, 100), st.floats(0.5, 2))
def test_a_challenger_needs_a_margin(seconds: float, ratio: float) -> None:
    def took(settings: Settings) -> float:
        return seconds * (1 if settings.attention == "math" else ratio) * (1 if settings.precision == "bf16" else 9)

    chosen, _ = tried(Track(took), compiled=lambda best: None)
    assert chosen.attention == ("sdpa" if seconds * ratio <= seconds * (1 - MARGIN) else "math")


def test_each_winner_is_bettered_further() -> None:
    best_at = 4
    chosen, trial = tried(Track(lambda one: 1 + abs(one.micro_batch - best_at) + (one.precision == "fp32") * 50))
    assert (chosen.micro_batch, chosen.accumulation) == (best_at, 4)
    assert {one.micro_batch for one in trial.tried} == {16, 8, 4, 2}
    assert chosen.why["micro_batch"] == "measured in turn, a step: 4: 1 s, 2: 3 s"
    assert chosen.why["compile"] == "short", "what was not tried keeps its reason"


def test_plain_wins_a_tie_and_is_then_bettered_too() -> None:
    chosen, trial = tried(Track(lambda one: 1.0 if one.attention == "sdpa" or one.precision == "bf16" else 0.5))
    assert (chosen.precision, chosen.attention) == ("fp32", "math")
    assert trial.gain == 2.0
    level, trial = tried(Track(lambda one: 1.0))
    assert level == PLAIN and trial.gain == 1.0


def test_without_plain_there_is_no_gain_to_tell() -> None:
    chosen, trial = tried(Track(lambda one: float(one.micro_batch)), plain=None)
    assert chosen.precision == "bf16" and chosen.micro_batch == 1
    assert trial.gain is None
    assert trial.told() == "measured in 50 s"


def test_what_fails_is_told_and_not_taken() -> None:
    fused = replace(START, attention="sdpa")
    chosen, trial = tried(Track(lambda one: 1 / one.micro_batch, failing=frozenset({PLAIN, fused})))
    assert chosen == START
    assert [one.verdict for one in trial.tried if not one.runs] == ["does not fit in memory"] * 2


def test_no_race_begins_after_the_time_is_over() -> None:
    track = Track(lambda one: 1.0 + (one.precision == "fp32"))
    _, trial = tried(track, seconds=15.0)
    assert track.races == [(START, PLAIN), (START, replace(START, attention="sdpa"))]
    assert [one.verdict for one in trial.tried][-1] == "not tried: no time left"


def test_compiling_is_tried_only_where_it_may_pay_and_taken_only_where_it_does() -> None:
    def took(settings: Settings) -> float:
        return (0.5 if settings.compile else 1.0) + (settings.precision == "fp32") * 9 + (settings.attention == "sdpa")

    brief = Track(took)
    chosen, _ = tried(brief, steps=100)
    assert not chosen.compile and not any(challenger.compile for _, challenger in brief.races)
    chosen, trial = tried(Track(took, compile_seconds=300.0), steps=600)
    assert chosen.compile is False, "half of 600 s saved, 300 s spent"
    assert "would not pay" in chosen.why["compile"] and trial.tried[-1].runs == 1
    chosen, _ = tried(Track(took, compile_seconds=299.0), steps=600)
    assert chosen.compile and chosen.why["compile"].startswith("measured in turn")
    unable = Track(took)
    chosen, _ = tried(unable, steps=600, compiled=lambda best: None)
    assert not chosen.compile and not any(challenger.compile for _, challenger in unable.races)


@given(st.floats(0, 1e7), st.sampled_from(["cpu", "cuda", "mps"]))
def test_compiling_is_worth_trying_when_it_may_save_two_compilations(predicted: float, device: str) -> None:
    worth = worth_compiling(predicted, device)
    if device == "mps":
        assert not worth
    else:
        saved = predicted - predicted / (1 + COMPILE_GAIN[device])
        assert worth == (saved > 2 * COMPILE_SECONDS[device]) or saved == pytest.approx(2 * COMPILE_SECONDS[device])
    assert not worth_compiling(None, device)


@given(st.floats(0, 1e7), st.floats(0.1, 10), st.floats(0, 1000))
def test_compiling_pays_only_if_it_saves_more_than_it_costs(predicted: float, gain: float, cost: float) -> None:
    if compiling_pays(predicted, gain, cost):
        assert gain > 1 and predicted / gain + cost < predicted


@given(st.floats(0, 1e9))
def test_a_trial_costs_little(predicted: float) -> None:
    assert allowance(predicted) <= min(MOST_SECONDS, 0.03 * predicted)
    assert (allowance(predicted) == 0) == (predicted < 30)


def test_a_run_of_unknown_length_has_no_trial() -> None:
    assert allowance(None) == 0


def test_a_trial_survives_json() -> None:
    _, trial = tried(Track(lambda one: 1 + one.micro_batch / 16), seconds=25.0)
    assert Trial.of(trial.as_dict()) == trial
    for damaged in ({}, {**trial.as_dict(), "tried": [{}]}, {**trial.as_dict(), "surplus": 1}):
        with pytest.raises((TypeError, KeyError)):
            Trial.of(damaged)


def test_a_disturbed_trial_proves_nothing() -> None:
    _, trial = tried(Track(lambda one: 1.0))
    disturbed = trial.disturbed()
    assert [one.taken for one in disturbed.tried] == [True] + [False] * (len(trial.tried) - 1)
    assert disturbed.gain is None and "busy" in disturbed.told()
    assert trial.told() == "plain fp32 (measured in 30 s)"
    assert replace(trial, gain=3.64, remembered=True).told() == "3.6 times plain fp32 (remembered)"
