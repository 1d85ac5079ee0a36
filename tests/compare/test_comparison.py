"""Arms against a baseline: who is in which, what may be compared, and what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compare.folders import TEXT, arms_in, records, write_arm, write_run, yardsticks
from farthing.compare import noise as floors
from farthing.compare.arms import group
from farthing.compare.comparison import Comparison, compare_runs
from farthing.errors import UserError
from farthing.storage import write_json

WIDE = {"model.d_model": 256, "model.n_head": 4}
BASE_SCORES = {1: 1.300, 2: 1.312, 3: 1.295, 4: 1.307}
WIDE_SCORES = {1: 1.251, 2: 1.268, 3: 1.249, 4: 1.255}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_arm(tmp_path, "base", BASE_SCORES)
    write_arm(tmp_path, "wide", WIDE_SCORES, recipe=WIDE, parameters=2_000_000, per_step={"flops": 9e9})
    return tmp_path


def compared(runs: Path, **settings: Any) -> Comparison:
    return compare_runs(sorted(records(runs), key=lambda run: run.name), **settings)


def test_a_better_arm_is_told_with_what_it_changed_and_cost(runs: Path) -> None:
    found = compared(runs)
    base, wide = found.arms
    assert (base.arm.name, wide.arm.name) == ("base", "wide")
    assert base.verdict is None and base.changes == [] and base.cost == {}
    assert {change.path: (change.old, change.new) for change in wide.changes} == {
        "model.d_model": (192, 256), "model.n_head": (3, 4),
    }  # fmt: skip
    assert wide.verdict is not None
    assert (wide.verdict.verdict, wide.verdict.method, wide.verdict.n) == ("better", "paired t", 4)
    assert wide.cost["flops"] == pytest.approx(1.5)
    words = found.words(wide)
    assert words.startswith("wide: better (-0.04")
    assert words.endswith("for 1.5 times the FLOPs")
    table = found.as_dict()
    assert [arm["n"] for arm in table["arms"]] == [4, 4]
    assert [(one["arm"], one["verdict"]) for one in table["verdicts"]] == [("wide", "better")]
    assert table["arms"][1]["runs"][0] == {
        "run": str(runs / "wide-seed1"), "seed": 1, "status": "finished", "score": 1.251,
    }  # fmt: skip


def test_the_baseline_is_whom_one_names(runs: Path) -> None:
    for name in ("wide", "wide-seed3", str(runs / "wide-seed2")):
        found = compared(runs, baseline=name)
        assert found.baseline.arm.name == "wide"
        assert found.arms[1].verdict is not None and found.arms[1].verdict.verdict == "worse"
    with pytest.raises(UserError, match="--baseline wde: none of the runs to compare; did you mean wide"):
        compared(runs, baseline="wde")


@pytest.mark.parametrize("settings", [{"by": "loss"}, {"level": 0.0}, {"level": 0.9}])
def test_a_comparison_that_makes_no_sense_is_refused(runs: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="|".join(f"--{name}|{name}" for name in settings)):
        compared(runs, **settings)


def test_failed_runs_stay_in_their_arm(runs: Path) -> None:
    write_run(runs, "wide-seed5", seed=5, recipe=WIDE, stopped="diverged")
    found = compared(runs)
    wide = found.arms[1]
    assert (wide.summary.n, wide.summary.failed) == (4, 1)
    assert wide.verdict is not None and wide.verdict.verdict == "cannot tell"
    assert "1 of its 5 runs failed" in found.words(wide)
    assert "wide-seed5 failed: diverged at step 10" in found.notes
    assert wide.arm.paid()["steps"] == 4 * 20 + 10


def test_a_seed_counts_once(runs: Path) -> None:
    write_run(runs, "zz-again", 1.0, seed=2)
    found = compared(runs)
    assert found.baseline.summary.n == 4
    assert found.notes[0] == "zz-again repeats seed 2 of base-seed2, and is not counted"


def test_arms_are_told_apart_by_name(tmp_path: Path) -> None:
    for number, width in enumerate((192, 256, 192, 256), start=1):
        write_run(tmp_path, f"try-{number}", seed=number, recipe={"model.d_model": width, "model.n_head": 4})
    write_run(tmp_path, "2026", seed=9, recipe={"model.n_layer": 2})
    assert set(arms_in(tmp_path)) == {"try-1", "try-2", "2026"}


def test_one_name_in_two_folders(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "one")
    write_run(tmp_path / "b", "one", recipe=WIDE)
    names = [arm.name for arm in group([*records(tmp_path / "a"), *records(tmp_path / "b")])[0]]
    assert names == [str(tmp_path / "a" / "one"), str(tmp_path / "b" / "one")]


@pytest.mark.parametrize(
    ("different", "told"),
    [
        (
            {"yardstick": {"version": 2}},
            r"base-seed1 and odd differ in the yardstick version \(1 and 2\): score the older",
        ),
        ({"yardstick": {"fingerprint": "77" * 32}}, r"validation text \(c4eff9b5c4ef and 777777777777\)"),
        ({"yardstick": {"bytes": 4001}}, r"bytes of the text they were scored on \(4000 and 4001\)"),
        ({"yardstick": {"stride": 128}}, r"evaluate.stride \(context_length and 128\)"),
        ({"training": "99" * 32}, r"training text \(0a1b2c3d0a1b and 999999999999\): their recipes ask for the same"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(runs: Path, different: dict[str, Any], told: str) -> None:
    write_run(runs, "odd", recipe=WIDE | {"model.n_layer": 2}, **different)
    with pytest.raises(UserError, match=told):
        compared(runs)


def test_a_text_that_changed_within_an_arm_is_refused(runs: Path) -> None:
    write_run(runs, "base-seed9", 1.3, seed=9, training="99" * 32)
    with pytest.raises(
        UserError, match=r"base-seed1 and base-seed9 differ in the training text.*their recipes are the same"
    ):
        compared(runs)


def test_other_training_text_by_recipe_is_an_experiment(runs: Path) -> None:
    write_run(runs, "less", 1.4, recipe={"data.limit": 100}, training="99" * 32)
    assert "less was trained on other text than base; the validation text is the same" in compared(runs).notes


def test_a_longer_context_is_no_other_yardstick(runs: Path) -> None:
    longer = {"context_length": 512, "stride": 512}
    write_run(runs, "long", recipe={"model.context_length": 512}, yardstick=longer)
    assert len(compared(runs).arms) == 3


def test_cost_per_token_compares_one_tokenizer_only(runs: Path) -> None:
    write_run(runs, "bytes", recipe={"tokenizer.kind": "byte"}, tokenizer="66" * 32)
    assert len(compared(runs).arms) == 3
    with pytest.raises(UserError, match=r"base-seed1 and bytes differ in the tokenizer.*compare by bits_per_byte"):
        compared(runs, by="perplexity")


def test_the_legacy_reading_only_where_it_was_taken(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="base-seed1 has no legacy_titles"):
        compared(runs, by="legacy_titles")


def test_a_legacy_reading_that_looks_at_less_is_told(tmp_path: Path) -> None:
    taken = {"legacy_titles": 1.2, "legacy_coverage": 0.94}
    write_run(tmp_path, "base", yardstick=taken)
    write_run(tmp_path, "deep", recipe={"model.n_layer": 6}, yardstick=taken)
    alike = compared(tmp_path, by="legacy_titles")
    assert not any("looks at" in note for note in alike.notes)
    assert [arm["legacy_coverage"] for arm in alike.as_dict()["arms"]] == [0.94, 0.94]

    half = {"legacy_titles": 0.7, "legacy_coverage": 0.5}
    write_run(tmp_path, "long", recipe={"model.context_length": 512}, yardstick=half)
    found = compared(tmp_path, by="legacy_titles")
    (told,) = [note for note in found.notes if "looks at" in note]
    assert told.startswith("legacy_titles looks at 50.0% of the held-out tokens for long and at 94.0% for base")
    honest = compared(tmp_path)
    assert not any("looks at" in note for note in honest.notes)
    assert "legacy_coverage" not in honest.as_dict()["arms"][0]

    write_run(
        tmp_path, "huge", recipe={"train.batch_size": 512}, yardstick={"legacy_titles": None, "legacy_coverage": 0}
    )
    with pytest.raises(UserError, match="huge has no legacy_titles reading: its held-out text fills no whole batch"):
        compared(tmp_path, by="legacy_titles")


def test_one_run_an_arm_is_judged_by_the_noise_floor_if_there_is_one(runs: Path) -> None:
    write_run(runs, "deep", 1.20, recipe={"model.n_layer": 6})
    found = compared(runs)
    assert found.arms[1].arm.name == "deep" or found.arms[0].arm.name == "base"
    deep = next(one for one in found.arms if one.arm.name == "deep")
    assert deep.verdict is not None and deep.verdict.verdict == "cannot tell"
    assert "measure the recipe's noise floor" in found.words(deep)
    floors.keep(floors.measure(arms_in(runs)["base"]), runs)
    found = compared(runs)
    deep = next(one for one in found.arms if one.arm.name == "deep")
    assert deep.verdict is not None
    assert (deep.verdict.verdict, deep.verdict.method) == ("better", "noise floor")
    assert any(note.startswith("deep is judged by the noise floor of base") for note in found.notes)
    # The arms that show their own noise are judged by that.
    assert next(one for one in found.arms if one.arm.name == "wide").verdict.method == "paired t"  # type: ignore[union-attr]


def test_a_noise_floor_of_another_text_is_not_used(runs: Path) -> None:
    write_run(runs, "deep", 1.20, recipe={"model.n_layer": 6})
    measured = floors.measure(arms_in(runs)["base"])
    floors.keep(floors.NoiseFloor(measured.name, measured.arm, measured.scores, 0, "00" * 32, 1), runs)
    deep = next(one for one in compared(runs).arms if one.arm.name == "deep")
    assert deep.verdict is not None and deep.verdict.method == "none"


def test_held_out_scores_stand_beside_and_are_never_compared_by(runs: Path) -> None:
    def score(run: str, bits: float) -> None:
        test = yardsticks(bits, split="test", fingerprint=TEXT[::-1])
        write_json(runs / run / "held_out.json", {"version": 1, "step": 20, "test": test})

    score("wide-seed1", 9.0)
    found = compared(runs)
    wide = found.arms[1]
    assert wide.held_out is not None and wide.held_out.mean == 9.0
    assert wide.verdict is not None and wide.verdict.verdict == "better"
    assert not [note for note in found.notes if "held-out" in note]
    score("base-seed1", 1.3)
    assert any("2 arms were scored on the held-out text" in note for note in compared(runs).notes)


def test_a_single_arm_has_no_verdict(tmp_path: Path) -> None:
    write_arm(tmp_path, "base", BASE_SCORES)
    table = compared(tmp_path).as_dict()
    assert (len(table["arms"]), table["verdicts"]) == (1, [])


def test_many_arms_are_corrected(runs: Path) -> None:
    for number in range(8):
        scores = {seed: score + 0.003 * (-1) ** (seed + number) for seed, score in BASE_SCORES.items()}
        write_arm(runs, f"same{'abcdefgh'[number]}", scores, recipe={"optimizer.lr": 0.01 + number / 1000})
    found = compared(runs)
    wide = next(one.verdict for one in found.arms if one.arm.name == "wide")
    assert wide is not None and wide.p is not None and wide.p_corrected == pytest.approx(9 * wide.p)
