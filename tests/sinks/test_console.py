"""What a person sees of a run: through a pipe, on a real pseudo-terminal, in a notebook, and when the reader leaves."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.events import Event, Ready
from farthing.sinks.console import Console, Outlook, Style, in_notebook
from sinks.events import OUTLOOK, PLAY, STEPS, evaluation, one_of_each, short_run, step

HERE = str(Path(__file__).parent)
COMMAND = [sys.executable, "-W", "error", "-c", PLAY, HERE]


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def played(
    events: list[Event], *, style: Style = "plain", encoding: str = "utf-8", quiet: bool = False, verbose: bool = False
) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    with Console(OUTLOOK, stream=stream, style=style, quiet=quiet, verbose=verbose) as console:
        for event in events:
            console(event)
    stream.seek(0)
    return stream.read()


def on_a_terminal(columns: int, **environment: str) -> tuple[str, str]:
    """What the played run draws on a pseudo-terminal of that width, and what it prints to standard output."""
    pty = pytest.importorskip("pty")
    controller, terminal = pty.openpty()
    place = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "24"} | environment
    process = subprocess.Popen(COMMAND, env=place, stdout=subprocess.PIPE, stderr=terminal)
    os.close(terminal)
    drawn = b""
    while True:
        try:
            piece = os.read(controller, 65536)
        except OSError:  # Linux's way of saying that the other end is closed
            break
        if not piece:
            break
        drawn += piece
    os.close(controller)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0, drawn
    return drawn.decode(), stdout.decode()


def without_codes(drawn: str) -> str:
    """The text without the codes that rich itself writes: colours, cursor and erasing. Any other stays."""
    return re.sub(r"\x1b\[(\?25[lh]|[0-9;]*m|[0-9]*[AK])", "", drawn)


def test_a_pipe_gets_plain_lines_and_stdout_only_the_result() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, encoding="utf-8", timeout=60, check=True)
    assert done.stdout == "the result\n"
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stderr)
    lines = done.stderr.splitlines()
    assert lines[0].startswith("run[red]") and "2.56 M parameters" in lines[0] and "about 4.0 s" in lines[0]
    assert lines[1].startswith("step 1/40 · loss 8.000 · 10.2 k tokens/s · 38% of peak · 1.5 GiB · cost 0.0001")
    assert "step 20 · validation 2.5000 bits per byte · best so far" in lines
    assert any("memory ran out" in line for line in lines)
    assert any(line.startswith(f"step {STEPS}/{STEPS}") for line in lines)


def test_a_terminal_gets_a_live_display_that_leaves_it_as_found() -> None:
    drawn, stdout = on_a_terminal(120)
    assert stdout == "the result\n"
    assert "━" in drawn and "\x1b[?25l" in drawn
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l"), "the cursor is shown again"
    text = without_codes(drawn)
    assert not re.search(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f]", text), "nothing hostile got through"
    for wanted in ("run[red]", "40/40", "100%", "loss", "10.2 k tokens/s", "38% of peak", "1.5 GiB", "cost", "s left"):
        assert wanted in text
    assert "validation 2.5000 bits per byte" in text
    assert "memory ran out" in text


@pytest.mark.parametrize("columns", [20, 40, 60])
def test_a_narrow_terminal_is_never_overrun(columns: int) -> None:
    drawn, _ = on_a_terminal(columns)
    text = without_codes(drawn)
    assert "loss" in text
    assert max(len(line) for line in re.split(r"[\r\n]+", text)) <= columns


def test_no_color_draws_without_colours() -> None:
    drawn, _ = on_a_terminal(100, NO_COLOR="1")
    colours = re.findall(r"\x1b\[([0-9;]*)m", drawn)
    assert {code for codes in colours for code in codes.split(";")} <= {"", "0", "1", "2", "22"}


def test_a_dumb_terminal_gets_plain_lines() -> None:
    drawn, _ = on_a_terminal(100, TERM="dumb")
    assert "\x1b" not in drawn
    assert "step 1/40" in drawn


def test_an_ascii_terminal_gets_ascii() -> None:
    drawn, _ = on_a_terminal(100, PYTHONIOENCODING="ascii")
    assert drawn.isascii()
    assert "40/40" in drawn


def test_an_ascii_pipe_gets_ascii() -> None:
    place = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(COMMAND, env=place, capture_output=True, timeout=60, check=True)
    assert done.stderr.isascii()
    assert b"step 1/40, loss 8.000" in done.stderr


@pytest.mark.parametrize("style", ["live", "plain", "notebook"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("verbose", [False, True])
def test_every_event_is_shown_safely(style: Style, encoding: str, verbose: bool) -> None:
    for event in one_of_each():
        shown = without_codes(played([event], style=style, encoding=encoding, verbose=verbose))
        assert not re.search(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f]", shown.replace("\r", "")), event


def test_the_settings_and_what_they_rest_on_stand_below_the_opening() -> None:
    stream = io.StringIO()
    told = "bf16, explicit attention, eager, micro-batch 16 on 2 threads: 3.6 times plain fp32 (measured in 6 s)"
    with Console(replace(OUTLOOK, settings=told), stream=stream, style="plain") as console:
        console(one_of_each()[0])
    opening, settings = stream.getvalue().splitlines()
    assert "40 steps" in opening and settings == told
    assert len(played(one_of_each()[:1]).splitlines()) == 1, "nothing is said where nothing is known"


def test_compiling_is_told_where_there_was_any() -> None:
    assert "compiled in 41 s" in played(one_of_each())
    assert "compiled" not in played([Ready(seconds=1.0, text=1.0, plan=0.0, trial=0.0, build=0.0, compile=0.0)])


def test_verbose_adds_checkpoints_and_samples() -> None:
    events = one_of_each()
    assert "step-00000002" not in played(events)
    assert "checkpoints/step-00000002" in played(events, verbose=True)


def test_quiet_keeps_what_a_person_must_know() -> None:
    shown = played(one_of_each(), quiet=True)
    assert "little text" in shown
    assert "farthing resume runs/x" in shown
    assert "loss" not in shown and "validation" not in shown and "parameters" not in shown


def test_an_inexact_resume_says_why() -> None:
    assert "not bit for bit: threads was 2, is 4" in played(one_of_each())


def test_a_notebook_rewrites_one_line() -> None:
    clock = Clock()
    stream = io.StringIO()
    with Console(OUTLOOK, stream=stream, style="notebook", clock=clock) as console:
        for event in short_run():
            console(event)
            clock.now += 1.0
    shown = stream.getvalue()
    assert shown.count("\rrun") == 0 and shown.count("\r") == STEPS
    assert shown.endswith("\n")
    permanent = [line for line in shown.split("\n") if line and not line.startswith("\r")]
    assert len(permanent) == 4, "the opening, a notice and two evaluations"


def test_lines_get_rarer_but_never_stop() -> None:
    clock, stream = Clock(), io.StringIO()
    outlook = Outlook(run="long", steps=7200, tokens=1, parameters=1, seconds=3600.0)
    times = []
    with Console(outlook, stream=stream, style="plain", clock=clock) as console:
        for number in range(1, 7201):
            clock.now = number * 0.5
            before = stream.tell()
            console(step(number))
            if stream.tell() > before:
                times.append(clock.now)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert times[0] == 0.5 and times[-1] == 3600.0
    assert gaps[0] <= 2 and max(gaps) <= 60.5
    assert 30 < len(times) < 130
    assert all(later >= earlier - 0.5 for earlier, later in pairwise(gaps[:-1])), "gaps only grow"


def test_time_left_follows_the_pace_of_this_sitting() -> None:
    clock, stream = Clock(), io.StringIO()
    with Console(OUTLOOK, stream=stream, style="plain", clock=clock) as console:
        console(step(20))
        assert "2.0 s left" in stream.getvalue(), "as planned, until a pace is known"
        clock.now = 10.0
        console(step(30))
        assert "10 s left" in stream.getvalue()


def test_a_new_outlook_changes_the_end() -> None:
    stream = io.StringIO()
    with Console(OUTLOOK, stream=stream, style="plain") as console:
        console.expect(Outlook(run="x", steps=99, tokens=1, parameters=1))
        console(step(1))
    assert "step 1/99" in stream.getvalue()


@given(st.lists(st.floats(0.01, 20), min_size=1, max_size=30))
def test_the_smoothed_loss_stays_within_the_losses(losses: list[float]) -> None:
    stream = io.StringIO()
    clock = Clock()
    with Console(OUTLOOK, stream=stream, style="plain", clock=clock) as console:
        for number, loss in enumerate(losses, start=1):
            clock.now += 100.0
            console(step(number, loss=loss))
    shown = [float(found) for found in re.findall(r"loss (\d+\.\d+)", stream.getvalue())]
    assert shown[0] == pytest.approx(losses[0], abs=6e-4)
    assert all(min(losses) - 6e-4 <= value <= max(losses) + 6e-4 for value in shown)


def test_best_is_kept_when_a_later_score_is_worse() -> None:
    shown = played([evaluation(1, 1.5), evaluation(2, 1.7, best=False), step(3)])
    assert "1.7000 bits/byte (best 1.5000)" in shown


def test_a_reader_that_leaves_does_not_stop_the_run() -> None:
    read, write = os.pipe()
    stream = os.fdopen(write, "w", encoding="utf-8")
    console = Console(OUTLOOK, stream=stream, style="plain")
    console(step(1))
    os.close(read)
    for event in [*one_of_each(), *short_run()]:
        console(event)
    console.close()
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_closed_stream_does_not_stop_the_run() -> None:
    stream = io.StringIO()
    console = Console(OUTLOOK, stream=stream, style="plain")
    stream.close()
    for event in short_run():
        console(event)
    console.close()


def test_this_is_no_notebook() -> None:
    assert not in_notebook()
