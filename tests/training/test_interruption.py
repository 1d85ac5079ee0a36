"""Deadlines as people write them, and signals that only set a flag."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.errors import UserError
from farthing.training import interruption as interruptions
from farthing.training.interruption import Interruption, parse_deadline, slurm_deadline
from training.story import in_child

NOW = datetime(2026, 11, 22, 12, 0).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("600", 600), ("0.5", 0.5), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("2h", 7200), ("1.5h", 5400),
     ("1h1m1s", 3661), ("90min", 5400), (" 90M ", 5400), ("1h 30m".replace(" ", ""), 5400),
     ("2026-11-22T18:00", 21_600), ("2026-11-22 12:00:10", 10), ("2026-11-23", 43_200)],
)  # fmt: skip
def test_a_deadline_is_a_duration_or_a_time(text: str, seconds: float) -> None:
    assert parse_deadline(text, now=NOW) == pytest.approx(NOW + seconds)


@pytest.mark.parametrize(
    "text",
    ["", " ", "soon", "10x", "-5", "m", "h30", "30m1h", "0", "0s", "2026-11-22T11:59", "2020-01-01", "2026-13-01",
     "nan", "inf", "1e3", "²", "1.2.3", "0001-01-01", "18:00\n"],
)  # fmt: skip
def test_anything_else_is_refused_in_one_line_that_shows_it(text: str) -> None:
    with pytest.raises(UserError, match="--deadline") as caught:
        parse_deadline(text, now=NOW)
    assert repr(text) in str(caught.value) and "\n" not in str(caught.value)


@given(text=st.text(max_size=12))
def test_no_text_breaks_it(text: str) -> None:
    with contextlib.suppress(UserError):
        assert parse_deadline(text, now=NOW) > NOW


@pytest.mark.parametrize(
    ("value", "found"), [("1764000000", 1764000000.0), ("", None), ("tomorrow", None), ("²", None)]
)
def test_slurms_end_time(value: str, found: float | None) -> None:
    assert slurm_deadline({"SLURM_JOB_END_TIME": value}) == found
    assert slurm_deadline({}) is None


def test_a_clean_stop_needs_two_saves_a_step_and_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(interruptions.time, "time", lambda: 5_000.0)
    monkeypatch.setattr(interruptions, "_steady_now", lambda: now[0])
    told = Interruption(deadline=5_100.0)
    told.took(step=3.0, save=20.0)
    told.took(step=1.0, save=2.0)
    # 2 x 20 + 3 + 10 seconds before the end.
    # The clock on the wall may be put to any time meanwhile.
    monkeypatch.setattr(interruptions.time, "time", lambda: 90_000.0)
    for at, stops in ((1000.0, False), (1046.9, False), (1047.1, True), (1200.0, True)):
        now[0] = at
        assert (told.reason is not None) == stops, at
    assert told.reason is not None and "needs up to 53 s" in told.reason
    assert Interruption(None).reason is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_F06_a_signal_only_sets_a_flag(number: int) -> None:
    before = signal.getsignal(number)
    with Interruption() as told:
        os.kill(os.getpid(), number)
        assert told.signal == signal.Signals(number).name
        assert told.reason is not None and told.signal in told.reason
        assert not told.save_now
    assert signal.getsignal(number) == before


def test_F09_usr1_asks_for_a_save_and_hup_for_nothing() -> None:
    with Interruption() as told:
        os.kill(os.getpid(), signal.SIGHUP)
        assert (told.save_now, told.reason) == (False, None)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (told.save_now, told.reason) == (True, None)


def test_F08_the_second_sigint_ends_at_once_also_after_a_sigterm(tmp_path: Path) -> None:
    def send(*numbers: int) -> int:
        def work() -> None:
            with Interruption():
                for number in numbers:
                    os.kill(os.getpid(), number)

        return in_child(work, tmp_path).code

    assert send(signal.SIGINT) == 0
    assert send(signal.SIGTERM, signal.SIGTERM, signal.SIGINT) == 0
    assert send(signal.SIGINT, signal.SIGINT) == 130
    assert send(signal.SIGTERM, signal.SIGINT, signal.SIGINT) == 130


def test_in_another_thread_signals_stay_with_their_owner() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with Interruption() as told:
            seen.append((signal.getsignal(signal.SIGTERM) is before, told.reason))

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert seen == [(True, None)]
