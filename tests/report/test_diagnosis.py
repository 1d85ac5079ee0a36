"""Each verdict on curves that were made to earn it, and none on curves that were not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.compare.statistics import compare
from farthing.report.course import Course
from farthing.report.diagnosis import diagnose, diverged, noise_of, smooth, too_noisy

SETTINGS = {
    "optimizer.lr": 0.02, "optimizer.rest.lr": 3e-3, "budget.steps": 2000, "data.limit": None, "model.dropout": 0.0,
    "model.n_layer": 4, "train.order": "shuffled",
}  # fmt: skip


def course(
    loss: Any, validation: Any, *, steps: int = 2000, noise: float = 0.02, epochs: float = 0.5, **others: Any
) -> Course:
    """A run whose losses are functions of the share of its budget that is spent."""
    rng = np.random.default_rng(0)
    share_P, share_E = np.linspace(0.005, 1, 200), np.linspace(0.05, 1, 20)
    settings = {**SETTINGS, **others.pop("settings", {})}
    return Course(
        tokens_P=share_P * steps * 1000,
        steps_P=np.round(share_P * steps),
        loss_P=np.array([loss(x) for x in share_P]) + noise * rng.standard_normal(200),
        tokens_E=share_E * steps * 1000,
        steps_E=np.round(share_E * steps),
        validation_E=np.array([validation(x) for x in share_E]),
        epochs=epochs,
        settings=settings,
        **others,
    )


def falling(x: float) -> float:
    """Power law: twice the tokens are worth 8 %."""
    return 3 * x**-0.12


def settled(x: float) -> float:
    """Has come down to where it stays."""
    return 3 + 4 * math.exp(-12 * x)


def words(course: Course) -> list[str]:
    return [finding.ailment for finding in diagnose(course)]


def test_a_loss_that_follows_a_power_law_is_still_descending() -> None:
    (found,) = diagnose(course(falling, falling))
    assert found.ailment == "still descending"
    assert found.evidence["gain_of_twice_the_budget"] == pytest.approx(1 - 2**-0.12, rel=0.01)
    assert found.changes == {"budget.steps": 4000}


def test_a_loss_that_has_settled_is_nothing_to_complain_of() -> None:
    (found,) = diagnose(course(settled, settled))
    assert found.ailment == "nothing to complain of"
    assert found.changes == {"model.n_layer": 8}


def test_validation_that_turns_upward_while_training_falls_is_over_fitting() -> None:
    found = diagnose(course(falling, lambda x: settled(x) + max(0, x - 0.5), epochs=12))
    assert [one.ailment for one in found] == ["over-fitting"]
    assert found[0].evidence["step"] == 1000
    assert found[0].changes == {"model.dropout": 0.1}


def test_over_fitting_a_part_of_the_text_asks_for_the_rest() -> None:
    ill = course(falling, lambda x: settled(x) + max(0, x - 0.5), settings={"data.limit": 100})
    assert diagnose(ill)[0].changes == {"data.limit": "none"}


def test_over_fitting_with_dropout_asks_to_stop_in_time() -> None:
    ill = course(falling, lambda x: settled(x) + max(0, x - 0.5), settings={"model.dropout": 0.2})
    assert diagnose(ill)[0].changes == {"budget.steps": 1000}


def test_validation_that_rises_with_training_is_not_over_fitting() -> None:
    def up(x: float) -> float:
        return settled(x) + max(0, x - 0.5)

    assert "over-fitting" not in words(course(up, up))


def test_many_passes_over_a_text_that_is_known_by_heart_are_data_limited() -> None:
    found = diagnose(course(lambda x: settled(x) - 0.8 * x, settled, epochs=9))
    assert [one.ailment for one in found] == ["data-limited"]
    assert found[0].evidence["epochs"] == 9
    assert words(course(lambda x: settled(x) - 0.8 * x, settled, epochs=2)) == ["nothing to complain of"]


def test_a_run_that_stopped_for_divergence_says_at_which_step() -> None:
    (found,) = diagnose(course(falling, falling, failure="diverged at step 1234"))
    assert found.ailment == "diverged"
    assert "at step 1234" in found.words and found.evidence["step"] == 1234
    assert found.changes == {"optimizer.lr": 0.0067, "optimizer.rest.lr": 0.001}


def test_a_run_that_lost_what_it_had_gained_has_diverged_though_it_finished() -> None:
    def away(x: float) -> float:
        return settled(x) + (0 if x < 0.4 else 30 * (x - 0.4))

    (found,) = diagnose(course(away, away))
    assert found.ailment == "diverged"
    assert 700 <= found.evidence["step"] <= 900


def test_a_run_without_one_finite_loss_has_diverged() -> None:
    ill = course(lambda x: math.nan, lambda x: math.nan, failure="its score is not finite")
    assert words(ill) == ["diverged"]


def test_a_hill_on_the_way_is_too_high_a_rate() -> None:
    def hill(x: float) -> float:
        return settled(x) + 2 * math.exp(-(((x - 0.3) / 0.05) ** 2))

    found = diagnose(course(hill, settled))
    assert found[0].ailment == "learning rate too high"
    assert 500 <= found[0].evidence["step"] <= 700
    in_order = course(hill, settled, settings={"train.order": "sequential"})
    assert "learning rate too high" not in words(in_order)


def test_updates_that_were_left_out_are_too_high_a_rate() -> None:
    assert words(course(settled, settled, left_out=3))[0] == "learning rate too high"


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_ailment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    quiet = course(settled, lambda x: settled(x) + 0.002 * rng.standard_normal(), noise=0.3)
    assert words(quiet) == ["nothing to complain of"]


def test_few_evaluations_ask_for_more() -> None:
    few = Course(
        tokens_P=np.arange(1.0, 201), steps_P=np.arange(1.0, 201), loss_P=np.full(200, 3.0),
        tokens_E=np.array([200.0]), steps_E=np.array([200.0]), validation_E=np.array([3.0]), settings=SETTINGS,
    )  # fmt: skip
    (found,) = diagnose(few)
    assert found.changes == {"evaluate.every": 20}


def test_a_difference_within_the_noise_asks_for_seeds() -> None:
    verdict = compare({1: 1.50, 2: 1.44, 3: 1.49}, {1: 1.52, 2: 1.53, 3: 1.51})
    found = too_noisy(verdict)
    assert found is not None and found.ailment == "noise too large to tell"
    assert found.seeds == verdict.more_seeds
    assert found.evidence["low"] < 0 < found.evidence["high"]


def test_a_single_run_an_arm_asks_for_two_more() -> None:
    found = too_noisy(compare({1: 1.5}, {1: 1.6}))
    assert found is not None and found.seeds == 2


def test_a_clear_difference_is_not_noise() -> None:
    assert too_noisy(compare({1: 1.1, 2: 1.11, 3: 1.12}, {1: 1.5, 2: 1.52, 3: 1.51})) is None


numbers = st.one_of(st.just(math.nan), st.just(math.inf), st.floats(-1e6, 1e6), st.floats(0.1, 12))


@given(
    st.lists(numbers, max_size=60),
    st.lists(numbers, max_size=12),
    st.floats(0, 100),
    st.sampled_from(["", "diverged at step 3", "out_of_memory at step 9", "its score is not finite"]),
)
def test_no_curve_is_too_strange(loss: list[float], validation: list[float], epochs: float, failure: str) -> None:
    P, E = len(loss), len(validation)
    strange = Course(
        tokens_P=np.arange(1.0, P + 1), steps_P=np.arange(1.0, P + 1), loss_P=np.array(loss, dtype=float),
        tokens_E=np.linspace(1, max(P, 1), E), steps_E=np.linspace(1, max(P, 1), E),
        validation_E=np.array(validation, dtype=float), epochs=epochs, failure=failure, settings=SETTINGS,
    )  # fmt: skip
    found = diagnose(strange)
    assert found
    assert all(math.isfinite(value) for one in found for value in one.evidence.values())


def test_smoothing_takes_out_single_spikes_and_keeps_steps() -> None:
    value = np.concatenate([np.full(50, 5.0), np.full(50, 3.0)])
    value[20] = 90
    assert smooth(value)[20] == 5
    assert smooth(value)[30] == 5 and smooth(value)[70] == 3


def test_noise_is_measured_about_the_trend() -> None:
    rng = np.random.default_rng(1)
    assert noise_of(np.linspace(9, 3, 4000) + 0.1 * rng.standard_normal(4000)) == pytest.approx(0.1, rel=0.1)


def test_out_of_memory_is_no_divergence() -> None:
    assert diverged(course(settled, settled, failure="out_of_memory at step 3")) is None
