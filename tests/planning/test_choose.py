"""A choice is made once and kept; what does not compute what plain fp32 does is given up, and told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from farthing import config
from farthing.planning import Choice as Chosen
from farthing.planning import (
    Counts,
    Plan,
    Settings,
    Timing,
    candidates,
    checked,
    choose,
    limitations,
    make_plan,
    remembered,
    settle,
)
from farthing.recipe import Recipe
from farthing.runtime import hardware
from farthing.runtime.device import Choice as Answer
from farthing.runtime.device import Machine, this_machine

choosing = sys.modules["farthing.planning.choose"]
"""the module, which the function hides"""
GIB = 2**30
COUNTS = Counts(vocab_size=512, tokens_per_epoch=100_000, validation_tokens=1000)
SMALL = ["model.n_layer=2", "model.d_model=64", "model.n_head=2", "model.context_length=64", "train.batch_size=12"]
STEP = 0.1


@pytest.fixture
def machine() -> Machine:
    return replace(this_machine("cpu"), memory_total=64 * GIB, memory_available=48 * GIB)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of choices, on a machine that does nothing else."""
    # The probes' own measurements stay where they are.
    monkeypatch.setattr(remembered, "folder", lambda: tmp_path / "choices")
    monkeypatch.setattr(hardware, "ran_and_waited", lambda: (0.0, 0.0))
    return tmp_path / "choices"


@dataclass
class Race:
    incumbent: list[float]
    challenger: list[float]
    compile_seconds: float = 0.0
    failure: str = ""


@dataclass
class Bench:
    """Steps take 0.1 s, those of plain fp32 and of half the batch more or less as told."""

    seconds: Callable[[Settings], float] = lambda settings: STEP
    races: int = 0
    asked: list[Settings] = field(default_factory=list)

    def step_seconds(self, settings: Settings, *, guess: float) -> float | None:
        self.asked.append(settings)
        return self.seconds(settings)

    def allow(self, step_seconds: float, trial_seconds: float) -> None:
        assert trial_seconds > 0

    def race(self, incumbent: Settings, challenger: Settings, *, seconds: float) -> Race:
        self.races += 1
        return Race([self.seconds(incumbent)] * 3, [self.seconds(challenger)] * 3)


def recipe(*overrides: str) -> Recipe:
    return config.load(Recipe, None, [*SMALL, "budget.steps=10000", "train.compile=off", *overrides])


def chosen(made: Recipe, machine: Machine, bench: Bench) -> Any:
    return choose(made, machine, COUNTS, settle(made, machine, COUNTS), bench, guess=STEP)


def halves(settings: Settings) -> float:
    return STEP * (0.5 if settings.micro_batch == 6 else 1.0)


# --- remembered


def test_a_second_run_makes_the_same_choice_without_measuring(machine: Machine, cache: Path) -> None:
    first = chosen(recipe(), machine, Bench(halves))
    assert first.settings.micro_batch == 6 and first.trial is not None and not first.trial.remembered
    [file] = cache.iterdir()
    again = Bench(lambda settings: 1.0)
    second = chosen(recipe(), machine, again)
    assert again.races == 0 and not again.asked
    assert second.settings == first.settings and second.settings.why == first.settings.why
    assert second.trial == replace(first.trial, remembered=True)
    for same in ("seed=3", "optimizer.lr=0.5", "schedule.warmup=0.5", "evaluate.every=7", "data.documents=line"):
        words = [same] if not same.startswith("data") else ["data.kind=text", "data.path=x.txt", same]
        assert chosen(recipe(*words), machine, again).trial.remembered, same
    assert list(cache.iterdir()) == [file]


@pytest.mark.parametrize(
    "change",
    [
        "model.n_layer=3",
        "train.batch_size=14",
        "train.precision=fp32",
        "optimizer.kind=adamw",
        "optimizer.sharpness.kind=sam",
        "objective.r_drop=1",
        "budget.steps=20000",
    ],
)
def test_what_the_speed_depends_on_is_measured_anew(machine: Machine, change: str) -> None:
    chosen(recipe(), machine, Bench())
    other = Bench()
    assert not chosen(recipe(change), machine, other).trial.remembered
    assert other.races > 0


def test_another_share_of_dropout_is_no_other_speed_but_any_dropout_is(machine: Machine) -> None:
    chosen(recipe("model.dropout=0.1"), machine, Bench())
    assert chosen(recipe("model.dropout=0.3"), machine, Bench()).trial.remembered
    assert not chosen(recipe("model.dropout=0.0"), machine, Bench()).trial.remembered


def test_another_machine_or_vocabulary_is_measured_anew(machine: Machine) -> None:
    made, start = recipe(), settle(recipe(), machine, COUNTS)
    files = {
        remembered.file_of(made, one, counts, begin)
        for one, counts, begin in [
            (machine, COUNTS, start),
            (replace(machine, cpu="another"), COUNTS, start),
            (replace(machine, device_name="another"), COUNTS, start),
            (replace(machine, physical_cores=77), COUNTS, start),
            (replace(machine, cpu_limit=0.5), COUNTS, start),
            (machine, replace(COUNTS, vocab_size=600), start),
            (machine, COUNTS, replace(start, threads=77)),
            (machine, COUNTS, replace(start, micro_batch=1)),
        ]
    }
    assert len(files) == 8
    assert remembered.file_of(made, machine, replace(COUNTS, tokens_per_epoch=7), start) in files
    assert remembered.file_of(made, replace(machine, memory_available=7), COUNTS, start) in files


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: b"",
        lambda table: b"{",
        lambda table: b"\xff\xfe",
        lambda table: b"[]",
        lambda table: b"null",
        lambda table: b'{"settings": {}, "trial": null}',
        lambda table: json.dumps({**table, "trial": {"tried": 3}}).encode(),
        lambda table: json.dumps({**table, "settings": {**table["settings"], "precision": "fp8"}}).encode(),
        lambda table: json.dumps({**table, "settings": {**table["settings"], "micro_batch": 0}}).encode(),
        lambda table: json.dumps({**table, "settings": {**table["settings"], "micro_batch": "6"}}).encode(),
        lambda table: json.dumps({**table, "settings": {**table["settings"], "surplus": 6}}).encode(),
        lambda table: json.dumps({**table, "settings": {**table["settings"], "device": "cuda"}}).encode(),
    ],
)
def test_a_damaged_file_costs_only_the_time_to_measure_again(
    machine: Machine, cache: Path, damage: Callable[[Any], bytes]
) -> None:
    first = chosen(recipe(), machine, Bench(halves))
    [file] = cache.iterdir()
    file.write_bytes(damage(json.loads(file.read_text("utf-8"))))
    bench = Bench(halves)
    again = chosen(recipe(), machine, bench)
    assert bench.races > 0 and again.settings == first.settings
    assert chosen(recipe(), machine, Bench()).trial.remembered, "and the file is whole again"


def test_a_choice_that_no_longer_fits_is_made_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = chosen(recipe(), machine, Bench(halves)).settings
    monkeypatch.setattr(choosing, "fits", lambda recipe, machine, counts, settings: settings != first)
    monkeypatch.setattr(candidates, "fits", lambda recipe, machine, counts, settings: settings != first)
    second = chosen(recipe(), machine, Bench(halves))
    assert second.settings != first and not second.trial.remembered


def test_a_cache_that_cannot_be_written_is_passed_over(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(remembered, "folder", lambda: tmp_path / "file")
    assert chosen(recipe(), machine, Bench(halves)).settings.micro_batch == 6


def test_a_busy_machine_is_not_believed(machine: Machine, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([(10.0, 1.0), (12.0, 1.1), (14.0, 3.0), (16.0, 5.0)])
    last = [(0.0, 0.0)]

    def told() -> tuple[float, float]:
        last[0] = next(counts, last[0])
        return last[0]

    monkeypatch.setattr(hardware, "ran_and_waited", told)
    bench = Bench(halves)
    made = chosen(recipe(), machine, bench)
    assert made.settings == settle(recipe(), machine, COUNTS)
    assert made.trial.busy and "busy" in made.trial.told()
    assert bench.races == 2, "and once that is seen nothing more is timed"
    assert any("other work disturbs" in one.verdict for one in made.trial.tried)
    assert not cache.exists()


# --- when there is a trial


def test_short_runs_keep_what_the_probes_suggest(machine: Machine) -> None:
    bench = Bench(halves)
    made = recipe("budget.steps=100")
    first = chosen(made, machine, bench)
    assert (first.settings, first.trial, bench.races) == (settle(made, machine, COUNTS), None, 0)
    assert chosen(made, machine, bench) == first


def test_what_is_to_be_compiled_or_takes_minutes_a_window_is_not_tried(machine: Machine) -> None:
    bench = Bench()
    compiled, plain = recipe("train.compile=on"), recipe()
    start = settle(plain, machine, COUNTS)
    assert choose(compiled, machine, COUNTS, replace(start, compile=True), bench, guess=STEP).settings.compile
    assert choose(plain, machine, COUNTS, start, bench, guess=100.0).trial is None
    assert not bench.asked
    assert choose(compiled, machine, COUNTS, start, bench, guess=STEP).trial is not None, "it cannot be compiled here"


def test_what_does_not_fit_is_not_tried(machine: Machine) -> None:
    assert chosen(recipe(), machine, Bench(lambda settings: None)).trial is None  # type: ignore[arg-type, return-value]


# --- held against plain fp32


@dataclass
class Parity:
    holds: bool

    def told(self) -> str:
        return "gradients by 0.3"

    def as_dict(self) -> dict[str, Any]:
        return {"gradient": 0.3}


def held(settings: Settings, machine: Machine, wrong: Callable[[Settings], bool], *overrides: str) -> Any:
    def compare(fast: Settings, plain: Settings) -> Parity:
        assert (plain.precision, plain.attention, plain.compile) == ("fp32", "sdpa", False)
        assert not fast.compile and fast != plain
        return Parity(not wrong(fast))

    return checked(recipe(*overrides), machine, COUNTS, Chosen(settings), compare)


FAST = Settings("cpu", 1, "bf16", "math", False, 12, 1, {}, "copied")


def test_settings_that_hold_are_kept(machine: Machine) -> None:
    made = held(FAST, machine, lambda one: False)
    assert made.settings == FAST and made.parity == {"gradient": 0.3} and not made.fallbacks
    plain = replace(FAST, precision="fp32", attention="sdpa", weight_gradient="strided")
    assert held(plain, machine, lambda one: True).parity is None, "plain fp32 is not held against itself"
    assert held(replace(FAST, compile=True), machine, lambda one: False).settings.compile


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (lambda one: one.weight_gradient == "copied", ("bf16", "math", "strided")),
        (lambda one: one.attention == "math", ("bf16", "sdpa", "strided")),
        (lambda one: one.precision == "bf16", ("fp32", "math", "strided")),
        (lambda one: True, ("fp32", "sdpa", "strided")),
    ],
)
@pytest.mark.parametrize("pinned", [[], ["train.precision=bf16", "train.attention=math"]])
def test_the_next_safe_settings_are_taken_and_it_is_told(
    machine: Machine, wrong: Callable[[Settings], bool], expected: tuple[str, ...], pinned: list[str]
) -> None:
    made = held(replace(FAST, compile=True), machine, wrong, *pinned)
    found = made.settings
    assert (found.precision, found.attention, found.weight_gradient) == expected
    assert not found.compile
    [notice] = made.fallbacks
    assert notice.code == "parity_fallback"
    assert "gradients by 0.3" in notice.message and found.told().split(",")[0] in notice.message
    assert "\n" not in notice.message


def test_an_operation_that_is_missing_is_a_reason_to_fall_back(machine: Machine) -> None:
    def compare(fast: Settings, plain: Settings) -> Parity:
        raise RuntimeError('"addmm" not implemented for this format\nand a long story')

    made = checked(recipe(), machine, COUNTS, Chosen(FAST), compare)
    assert made.settings.precision == "fp32" and "not implemented" in made.fallbacks[0].message


# --- what is lacking


def lacking(machine: Machine, *overrides: str, seconds: float = 0.001) -> list[tuple[str, str]]:
    made = recipe("train.compile=auto", *overrides)
    settings = Settings(machine.device, 1, "fp32", "sdpa", False, 12, 1, {"precision": "the reliable format"})
    return [(one.code, one.message) for one in limitations(made, machine, COUNTS, settings, seconds)]


def test_what_the_machine_lacks_is_one_clear_line(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        choosing, "choose_compile", lambda *_, **__: Answer(False, "torch.compile does not work: no C++")
    )
    old = replace(machine, bf16=False)
    assert lacking(machine) == []
    [(code, message)] = lacking(old, "train.precision=bf16")
    assert code == "precision_fallback" and "no bf16 of its own" in message
    assert lacking(replace(machine, device="cuda", bf16=True)) == [], "fp32 has been measured to be the faster"
    [(code, _)] = lacking(replace(machine, device="cuda", bf16=False))
    assert code == "precision_fallback"
    [(code, message)] = lacking(replace(machine, device="mps"))
    assert code == "precision_fallback" and "the reliable format" in message
    [(code, message)] = lacking(machine, "train.compile=on")
    assert code == "compile_fallback" and "no C++" in message
    assert [code for code, _ in lacking(machine, seconds=1.0)] == ["compile_fallback"], "auto would have compiled"
    assert lacking(machine, "train.compile=off", seconds=1.0) == []
    monkeypatch.setattr(choosing, "choose_compile", lambda *_, **__: Answer(True, "works"))
    assert lacking(machine, seconds=1.0) == [], "tried, and found not to pay"


# --- in the plan


def test_the_plan_keeps_the_evidence_and_reads_plans_without_it(machine: Machine) -> None:
    made = recipe("train.precision=bf16")
    choice = checked(made, machine, COUNTS, chosen(made, machine, Bench(halves)), lambda fast, plain: Parity(False))
    plan = make_plan(made, machine, COUNTS, choice, Timing(STEP, "given", True), disk_free=10**12)
    assert plan.told().endswith("what is faster does not compute the same here")
    table = json.loads(json.dumps(plan.as_dict()))
    assert not any(one["taken"] for one in table["trial"]["tried"]), "none of these was used in the end"
    assert {"seconds_per_step", "median_seconds", "runs", "tokens_per_second", "verdict"} <= table["trial"]["tried"][
        0
    ].keys()
    again = Plan.of(table)
    assert again == plan and again.as_dict() == plan.as_dict()
    for newer in ("trial", "parity", "fallbacks"):
        del table[newer]
    del table["settings"]["weight_gradient"]
    del table["settings"]["why"]["weight_gradient"]
    old = Plan.of(table)
    assert (old.trial, old.parity, old.fallbacks, old.settings.weight_gradient) == (None, None, [], "strided")
    assert asdict(old.settings) | {"why": {}} == asdict(plan.settings) | {"why": {}}


def test_the_settings_are_told_in_one_line(machine: Machine) -> None:
    choice = chosen(recipe("train.threads=2"), machine, Bench(halves))
    plan = make_plan(recipe(), machine, COUNTS, choice, Timing(STEP, "given", True), disk_free=10**12)
    assert plan.told().startswith(f"{plan.settings.precision}, ")
    assert "eager, micro-batch 6 on 2 threads: 2 times plain fp32 (measured in 1 s)" in plan.told()
    assert "\n" not in plan.told()
