"""events.jsonl survives torn lines, full disks and faulty followers, and is read back as it was written."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.errors import DivergedError, UserError
from farthing.events import EVENTS_VERSION, Event, EventLog, Notice, Sampled, Started, Step, Stopped, read_events
from training.story import in_child

STARTED = Started(run="owl", recipe="0" * 64, parameters=12, steps=3)


def step(number: int) -> Step:
    return Step(step=number, loss=2.5, lr=0.1, gradient_norm=1.0, spent={"steps": number}, tokens_per_second=9.0)


def written(path: Path, count: int = 3) -> bytes:
    log = EventLog(path, clock=lambda: 1234.5)
    log.emit(STARTED)
    for number in range(1, count):
        log.emit(step(number))
    log.close()
    return path.read_bytes()


def test_a_line_is_a_json_object_with_kind_and_time(tmp_path: Path) -> None:
    lines = written(tmp_path / "events.jsonl").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["kind"] for record in records] == ["started", "step", "step"]
    assert all(record["time"] == 1234.5 for record in records)
    assert records[0]["version"] == EVENTS_VERSION
    assert list(read_events(tmp_path / "events.jsonl")) == records


def test_F24_torn_at_every_byte_of_the_last_record(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    whole = written(path)
    first, second, third = whole.splitlines(keepends=True)
    for cut in range(len(whole) - len(third), len(whole)):
        path.write_bytes(whole[:cut])
        assert [record["kind"] for record in read_events(path)] == ["started", "step"]
        log = EventLog(path, clock=lambda: 1234.5)
        assert path.read_bytes() == first + second, "opening repairs the tail"
        log.emit(step(2))
        log.close()
        assert path.read_bytes() == whole, "at most the torn record is lost, and the next one is whole"


@pytest.mark.parametrize("content", [b"", b"{", b'{"kind": "started"', b"\x00\x00\x00", b"no newline"])
def test_F24_nothing_but_a_torn_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(content)
    assert list(read_events(path)) == []
    EventLog(path).close()
    assert path.read_bytes() == b""


def test_no_file_is_no_events(tmp_path: Path) -> None:
    assert list(read_events(tmp_path / "none.jsonl")) == []


@pytest.mark.parametrize("line", [b"not json", b"[1, 2]", b"7", b"null", b"\xff\xfe", b"[" * 100_000])
def test_damage_before_the_last_line_is_told_with_its_place(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "events.jsonl"
    first, rest = written(path).split(b"\n", 1)
    path.write_bytes(first + b"\n" + line + b"\n" + rest)
    with pytest.raises(UserError, match=r"events\.jsonl:2: not a JSON event") as caught:
        list(read_events(path))
    assert "\n" not in str(caught.value)


def test_F18_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    written(path)
    path.write_text(path.read_text().replace(f'"version": {EVENTS_VERSION}', f'"version": {EVENTS_VERSION + 1}'))
    with pytest.raises(UserError, match=f"version {EVENTS_VERSION + 1}"):
        list(read_events(path))


def test_cut_back_forgets_what_came_after(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.emit(STARTED)
    position = log.position()
    before = path.read_bytes()
    assert len(before) == position
    log.emit(step(1))
    log.cut_back(position)
    assert path.read_bytes() == before
    log.cut_back(position + 1_000_000)
    assert path.read_bytes() == before, "a position beyond the end adds nothing"
    log.emit(step(1))
    log.close()
    assert [record["kind"] for record in read_events(path)] == ["started", "step"]


def test_F25_a_short_write_is_undone_and_the_next_event_fits(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    size = len(written(path))

    def on_a_full_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        # Room for all but the last byte of one more record, so that the write is a short one.
        line = len(json.dumps({"kind": "step", "time": 1234.5, **step(3).as_dict()})) + 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + line - 1, resource.RLIM_INFINITY))
        log = EventLog(path, clock=lambda: 1234.5)
        seen: list[Event] = []
        log.follow(seen.append)
        log.emit(step(3))
        assert log.dropped == 1
        assert path.stat().st_size == size
        assert [event.kind for event in seen] == ["notice", "step"], "whoever follows is told all the same, and why"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        log.emit(step(4))
        assert log.dropped == 1
        log.emit(step(5))
        assert [event.kind for event in seen] == ["notice", "step", "notice", "step", "step"]
        log.close()

    ended = in_child(on_a_full_disk, tmp_path)
    assert ended.code == 0, ended
    found = list(read_events(path))
    assert [(record["kind"], record.get("step")) for record in found[1:]] == [
        ("step", 1), ("step", 2), ("step", 4), ("notice", None), ("step", 5)
    ]  # fmt: skip
    assert found[4]["code"] == "log_resumed" and "1 event could not be written" in found[4]["message"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_F21_a_full_disk_drops_the_event(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._descriptor)
    os.close(full)
    with pytest.raises(OSError):
        os.write(log._descriptor, b"x")
    seen: list[Event] = []
    log.follow(seen.append)
    log.emit(step(1))
    log.emit(step(2))
    assert log.dropped == 2
    assert [event.kind for event in seen] == ["notice", "step", "step"], "told when it begins, and once"


def test_what_a_library_said_is_kept_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "correct-horse-battery")
    log = EventLog(tmp_path / "events.jsonl")
    log.emit(Notice(code="compile_fallback", message="https://me:password@host/ said correct-horse-battery"))
    log.emit(Stopped(step=1, reason="error", message="correct-horse-battery"))
    log.close()
    assert "horse" not in log.path.read_text("utf-8") and "password" not in log.path.read_text("utf-8")


def test_F45_a_follower_that_fails_is_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    seen: list[Event] = []

    def closed_terminal(event: Event) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    log.follow(closed_terminal)
    log.follow(seen.append)
    log.emit(step(1))
    log.emit(step(2))
    log.close()
    assert [record["kind"] for record in read_events(path)] == ["step", "notice", "step"]
    assert [event.step for event in seen if isinstance(event, Step)] == [1, 2]
    [notice] = [event for event in seen if isinstance(event, Notice)]
    assert notice.code == "follower_lost"
    assert "Broken pipe" in notice.message


def test_a_follower_may_stop_the_run_with_an_error_of_ours(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")

    def prune(event: Event) -> None:
        raise DivergedError("enough")

    log.follow(prune)
    with pytest.raises(DivergedError, match="enough"):
        log.emit(step(1))
    log.close()


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    log = EventLog(path)
    for number, text in enumerate(texts):
        log.emit(Sampled(step=number, prompt="", text=text))
    log.close()
    assert [record["text"] for record in read_events(path)] == texts
