"""The schedules of the studies, step by step, against their closed forms."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from farthing.optim.schedules import factor
from farthing.recipe.optimization import Constant, Cosine, InverseSqrt, Linear, Wsd


def test_study_d_every_step() -> None:
    a, b, high, low = 1_259, 12_590, 5e-3, 5e-4
    section = Cosine(warmup=a / b, floor=low / high)
    for t in range(b + 1):
        formula = high * t / a if t < a else low + (math.cos(math.pi * (t - a) / (b - a)) + 1) * (high - low) / 2
        assert high * factor(section, t / b) == pytest.approx(formula, rel=1e-12, abs=1e-18)


def test_study_b_every_step() -> None:
    warmup, steps = 715, 19_073
    section = Cosine(warmup=warmup / steps, warmup_from=0.1, floor=0.1)
    for t in range(steps + 1):
        if t < warmup:
            formula = 0.1 + 0.9 * t / warmup
        else:
            formula = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (t - warmup) / (steps - warmup)))
        assert factor(section, t / steps) == pytest.approx(formula, rel=1e-12)


def test_titles_baseline_runs_from_the_full_rate_to_none() -> None:
    section = Cosine()
    assert factor(section, 0.0) == 1.0
    assert factor(section, 0.5) == pytest.approx(0.5)
    assert factor(section, 1.0) == 0.0


@pytest.mark.parametrize(
    ("shape", "quarter"), [("linear", 0.75), ("cosine", (1 + math.sqrt(0.5)) / 2), ("one_minus_sqrt", 0.5)]
)
def test_wsd_is_stable_until_it_falls(shape: str, quarter: float) -> None:
    section = Wsd.model_validate({"warmup": 0.1, "decay": 0.4, "shape": shape, "floor": 0.2})
    assert factor(section, 0.05) == pytest.approx(0.5)
    assert {factor(section, p) for p in (0.1, 0.3, 0.59)} == {1.0}
    assert factor(section, 0.7) == pytest.approx(0.2 + 0.8 * quarter)
    assert factor(section, 1.0) == 0.2


def test_linear_constant_and_inverse_square_root() -> None:
    assert factor(Linear(floor=0.5), 0.5) == pytest.approx(0.75)
    assert factor(Constant(warmup=0.5, warmup_from=0.2), 0.25) == pytest.approx(0.6)
    assert factor(Constant(), 0.0) == 1.0
    assert factor(InverseSqrt(warmup=0.01), 0.04) == pytest.approx(0.5)
    assert factor(InverseSqrt(warmup=0.01), 1.0) == pytest.approx(0.1)


def test_progress_must_be_a_number() -> None:
    with pytest.raises(AssertionError):
        factor(Constant(), math.nan)


def test_schedules_and_memory_do_not_import_torch() -> None:
    modules = ", ".join(f"farthing.optim.{name}" for name in ("schedules", "memory", "roles"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
