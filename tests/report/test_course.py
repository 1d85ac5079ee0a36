"""What a run's events tell, and that a damaged line of them costs no run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compare.folders import records, write_run
from farthing.compare.curves import read_curves, read_event
from farthing.report.course import read_rates, read_story

WRONG = [
    b"{torn", b"", b"what?", b"\xff\xfe\x00", b"[1]", b"null", b"{}", b'{"kind": 3}', b"\0" * 300,
    b'{"kind": "step"}', b'{"kind": "step", "step": 3, "loss": 1.0, "spent": {"steps": 3}}', b'{"kind": "step", "los',
    b'{"kind": "evaluation", "step": 5}', b'{"kind": "notice", "code": 1}', b"[" * 100_000,
]  # fmt: skip


def spoil(path: Path, line: int, content: bytes) -> None:
    lines = path.read_bytes().splitlines()
    lines[line] = content
    path.write_bytes(b"\n".join(lines) + b"\n")


@pytest.mark.parametrize("line", [0, 1, 3, 6, 20, -2, -1])
@pytest.mark.parametrize("content", WRONG, ids=range(len(WRONG)))
def test_a_damaged_line_is_left_out_and_told(tmp_path: Path, line: int, content: bytes) -> None:
    run = write_run(tmp_path, "one", 1.5)
    spoil(run.events, line, content)
    (record,) = records(tmp_path)
    story = read_story(record, by="bits_per_byte", points=200)
    assert story.damaged
    assert len(story.curves.loss.value_P) >= 19 and len(story.evaluations) >= 3
    assert len(read_rates(record, points=50).steps_P) >= 19


def test_a_sound_log_is_not_called_damaged(tmp_path: Path) -> None:
    run = write_run(tmp_path, "one", 1.5)
    run.events.write_bytes(run.events.read_bytes() + b'{"kind": "ste')  # a torn end is no damage
    assert not read_story(records(tmp_path)[0], by="bits_per_byte", points=7).damaged


def test_the_lines_that_are_left_keep_their_place(tmp_path: Path) -> None:
    run = write_run(tmp_path, "one", 1.5)
    whole = read_curves(records(tmp_path)[0])
    number = next(at for at, line in enumerate(run.events.read_bytes().splitlines()) if b'"step": 7,' in line)
    spoil(run.events, number, b'{"kind": "step", garbage}')
    found = read_curves(records(tmp_path)[0])
    assert found.loss.axes["steps"].tolist() == [step for step in range(1, 21) if step != 7]
    assert found.loss.value_P.tolist() == [value for at, value in enumerate(whole.loss.value_P) if at != 6]
    assert found.score.value_P.tolist() == whole.score.value_P.tolist()


def test_a_log_of_nothing_but_damage_has_no_curve(tmp_path: Path) -> None:
    run = write_run(tmp_path, "one", 1.5)
    run.events.write_bytes(b'{"kind": "step"\n' * 5000)
    story = read_story(records(tmp_path)[0], by="bits_per_byte", points=40)
    assert story.damaged and len(story.curves.loss.value_P) == 0 and not story.evaluations


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_byte_of_a_log_can_cost_the_run(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("runs")
    run = write_run(folder, "one", 1.5)
    content = bytearray(run.events.read_bytes())
    where = data.draw(st.integers(content.index(b"\n"), len(content) - 1))
    for at, byte in enumerate(data.draw(st.binary(min_size=1, max_size=20))):
        content[min(where + at, len(content) - 1)] = byte
    run.events.write_bytes(bytes(content))
    (record,) = records(folder)
    story = read_story(record, by="bits_per_byte", points=data.draw(st.integers(1, 40)))
    assert len(story.course.tokens_P) == len(story.course.loss_P)
    read_rates(record, points=10)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_what_is_no_event_is_none(value: object) -> None:
    assert read_event(json.dumps(value).encode()) is None
    assert read_event(json.dumps({"kind": "step", "step": value, "spent": value}).encode()) is None
