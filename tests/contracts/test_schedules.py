"""What every schedule of the recipe's union must do. The union is read: a new kind is tested without a change here."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from farthing.optim.schedules import factor
from farthing.recipe.optimization import AnySchedule

SECTIONS = {cls.model_fields["kind"].default: cls for cls in get_args(get_args(AnySchedule)[0])}
every_schedule = pytest.mark.parametrize("kind", SECTIONS)

fractions = st.floats(0, 1)
# Subnormal warm-ups and decays are refused by nobody and meant by nobody.
lengths = st.floats(1e-6, 0.5)


def sections(kind: str) -> st.SearchStrategy[Any]:
    """Sections of a kind with every field that it has drawn at random."""
    fields = SECTIONS[kind].model_fields
    drawn: dict[str, st.SearchStrategy[Any]] = {"warmup": lengths if kind == "inverse_sqrt" else st.just(0.0) | lengths}
    for name in ("warmup_from", "floor"):
        if name in fields:
            drawn[name] = fractions
    if "decay" in fields:
        drawn["decay"] = lengths
    if "shape" in fields:
        drawn["shape"] = st.sampled_from(get_args(fields["shape"].annotation))
    return st.builds(SECTIONS[kind], **drawn)


@every_schedule
@given(data=st.data())
def test_factor_is_a_fraction_and_is_clamped_outside_the_budget(kind: str, data: st.DataObject) -> None:
    section = data.draw(sections(kind))
    assert 0.0 <= factor(section, data.draw(fractions)) <= 1.0
    assert factor(section, data.draw(st.floats(-1e9, 0))) == factor(section, 0.0)
    assert factor(section, data.draw(st.floats(1, 1e9))) == factor(section, 1.0)


@every_schedule
@given(data=st.data())
def test_rises_to_exactly_the_peak_and_never_after(kind: str, data: st.DataObject) -> None:
    section = data.draw(sections(kind))
    low, high = sorted((data.draw(fractions), data.draw(fractions)))
    assert factor(section, section.warmup) == 1.0
    if section.warmup > 0:
        assert factor(section, 0.0) == section.warmup_from
        assert factor(section, low * section.warmup) <= factor(section, high * section.warmup) + 1e-12
    after = [section.warmup + (1 - section.warmup) * x for x in (low, high)]
    assert factor(section, after[0]) >= factor(section, after[1]) - 1e-12


@every_schedule
@given(data=st.data())
def test_ends_at_exactly_its_floor(kind: str, data: st.DataObject) -> None:
    section = data.draw(sections(kind))
    if "floor" in type(section).model_fields:
        assert factor(section, 1.0) == section.floor


@every_schedule
@given(data=st.data())
def test_is_continuous(kind: str, data: st.DataObject) -> None:
    section = data.draw(sections(kind))
    p = data.draw(fractions)
    # The steepest: 1/warmup on the way up, pi/2 of 1/length on the way down, and a root's start, sqrt(x / decay).
    length = min(x for x in (section.warmup or 1.0, getattr(section, "decay", 1.0), 1 - section.warmup) if x > 0)
    gap = 1e-9 * length
    steepest = max(1.6 * gap / length, (gap / length) ** 0.5)
    assert abs(factor(section, p) - factor(section, p + gap)) <= steepest + 1e-9


@every_schedule
def test_is_a_plain_number_from_the_first_step_of_the_default_to_its_last(kind: str) -> None:
    section = SECTIONS[kind](warmup=0.1)
    factors = [factor(section, step / 50) for step in range(51)]
    assert all(type(value) is float for value in factors)
    assert factors[0] == 0.0
    assert max(factors) == factors[5] == 1.0


@every_schedule
def test_warmup_that_leaves_nothing_is_refused(kind: str) -> None:
    with pytest.raises(ValidationError):
        SECTIONS[kind](warmup=1.0)
