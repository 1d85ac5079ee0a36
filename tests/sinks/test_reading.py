"""Progress before the first step, and the hand-over to the run's console."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from farthing.events import Notice, Started, Stopped
from farthing.sinks.reading import Following, Reading
from sinks.events import OUTLOOK, evaluation, step


class Closed(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


class Screen(io.StringIO):
    """A terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def clock(*seconds: float) -> Iterator[float]:
    yield from seconds


def report(stream: io.StringIO, *, quiet: bool = False, seconds: tuple[float, ...] = (0.0, 3.0, 3.0, 3.5)) -> str:
    times = clock(*seconds)
    with Reading(stream=stream, quiet=quiet, clock=lambda: next(times)) as reading:
        reading("reading corpus\x1b[31m", 0, 100)
        reading("reading corpus\x1b[31m", 100, 100)
        reading("tokenising", 1, 0)
    return stream.getvalue()


def test_a_log_gets_a_line_for_each_stage_that_took_its_time() -> None:
    text = report(io.StringIO())
    assert text.splitlines() == ["reading corpus\N{REPLACEMENT CHARACTER}[31m: 3.0 s"]


def test_quiet_is_silent() -> None:
    assert report(io.StringIO(), quiet=True) == ""


def test_a_terminal_shows_bars_and_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    text = report(Screen())
    assert "tokenising" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "the cursor is back"


def test_a_stage_that_failed_is_not_praised() -> None:
    stream = io.StringIO()
    times = clock(0.0, 9.0)
    with pytest.raises(ValueError, match="torn"), Reading(stream=stream, clock=lambda: next(times)) as reading:
        reading("reading corpus", 0, 100)
        raise ValueError("torn")
    assert stream.getvalue() == ""


def test_a_screen_that_has_gone_is_no_reason_to_fail() -> None:
    report(Closed())


def test_the_run_is_announced_once_and_its_failure_left_to_the_error() -> None:
    stream = io.StringIO()
    following = Following(OUTLOOK, recipe="ab12", stream=stream)
    assert "2.56 M parameters" in stream.getvalue()
    following(Started(run="again", recipe="ab12", parameters=1, steps=1))
    following(step(1))
    following(evaluation(1, 2.5))
    following(Stopped(step=1, reason="preempted", message="SIGINT received"))
    following.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3, lines
    assert "again" not in stream.getvalue()
    assert "SIGINT" not in stream.getvalue()


def test_quiet_following_passes_on_only_what_one_must_know() -> None:
    stream = io.StringIO()
    following = Following(OUTLOOK, recipe="ab12", quiet=True, stream=stream)
    following(step(1))
    assert stream.getvalue() == ""
    following(Notice(code="checkpoint_failed", message="the disk is full"))
    assert stream.getvalue() == "note: the disk is full\n"
