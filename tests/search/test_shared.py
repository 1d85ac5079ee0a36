"""Workers that meet in PostgreSQL: none loses a trial, none counts one twice, whatever becomes of workers and server."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from farthing import config
from farthing.errors import ResourceError, UserError
from farthing.search.record import Folder, Record
from farthing.search.shared import Shared, shown
from search.small import SEARCH, asked, done, furnish, record, start, stop_leftovers, wait_until

if TYPE_CHECKING:
    from cluster import Cluster

FORK = multiprocessing.get_context("fork")
LONG = ["budget.steps=1500", "evaluate.every=500", "checkpoint.every=100"]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A study of its own for each test."""
    return str(request.node.name)[:100]


def open_ledger(server: Cluster, name: str, folder: Path, *, heartbeat: int = 60) -> Shared:
    made = Folder(folder)
    made.make("")
    return Shared(server.url, name, made, heartbeat_seconds=heartbeat)


def begin(ledger: Shared, score: float | None = None, *, most: int | None = None) -> Record | None:
    number = ledger.next_number()
    new = record(number, None, state="running")
    if not ledger.begin(new, [], most=most):
        return None
    if score is not None:
        new = replace(new, state="complete", score=score, scores={"1337": score})
        assert ledger.update(new)
    return new


def test_what_one_worker_tells_another_reads(server: Cluster, name: str, tmp_path: Path) -> None:
    first, second = (open_ledger(server, name, tmp_path / who) for who in ("a", "b"))
    whole, going = begin(first, 2.0), begin(first)
    assert second.records() == first.records() and len(second.records()) == 2
    assert second.others_work() and not first.others_work()
    assert second.unfinished() == [], "a worker that is alive keeps its trial"
    assert whole is not None and going is not None
    pruned = replace(going, state="pruned", score=3.0, curve={"10": 3.0}, reason="median")
    assert first.update(pruned)
    assert [one.state for one in second.records()] == ["complete", "pruned"]
    assert not first.update(replace(pruned, state="complete", score=1.0)), "what has ended has ended"
    # The files beside it say the same.
    assert Folder(tmp_path / "a").records() == second.records()
    for ledger in (first, second):
        ledger.close()


def test_what_a_worker_leaves_keeps_nobody_waiting(server: Cluster, name: str, tmp_path: Path) -> None:
    first, second = (open_ledger(server, name, tmp_path / who) for who in ("a", "b"))
    stopped = begin(first)
    assert stopped is not None and second.others_work() and second.unfinished() == []
    first.leave(stopped.id)
    assert [one.id for one in second.unfinished()] == [one.id for one in first.unfinished()] == [stopped.id]
    assert not second.others_work(but={stopped.id}) and not first.others_work(but={stopped.id})
    assert [one.state for one in second.records()] == ["running"], "it waits for a larger budget"
    taken = second.take_over(stopped)
    assert taken is not None and taken.attempt == 2 and first.others_work()
    for ledger in (first, second):
        ledger.close()


def hold(url: str, name: str, folder: Path, heard: Any, told: Any) -> None:
    """A worker that begins a trial, and tells its end when it is asked to."""
    ledger = Shared(url, name, Folder(folder), heartbeat_seconds=1)
    mine = begin(ledger)
    assert mine is not None
    told.put(mine.id)
    heard.get()
    time.sleep(0.1)
    late = replace(mine, state="complete", score=0.001, scores={"1337": 0.001})
    told.put((ledger.update(late), sorted(ledger.lost() | ({mine.id} if mine.id not in ledger._ours else set()))))
    ledger.close()


@pytest.mark.parametrize("fate", ["killed", "stopped"])
def test_F26_F27_a_silent_worker_loses_its_trial_and_its_late_result_is_refused(
    server: Cluster, name: str, tmp_path: Path, fate: str
) -> None:
    folder = Folder(tmp_path / "a")
    folder.make("")
    heard, told = FORK.Queue(), FORK.Queue()
    worker = FORK.Process(target=hold, args=(server.url, name, folder.path, heard, told))
    worker.start()
    id = told.get(timeout=60)
    os.kill(worker.pid or 0, signal.SIGKILL if fate == "killed" else signal.SIGSTOP)
    since = time.monotonic()
    ledger = open_ledger(server, name, tmp_path / "b", heartbeat=1)
    left: list[Record] = []

    def given_up() -> bool:
        left.extend(ledger.unfinished())
        return bool(left)

    wait_until(given_up, seconds=60)
    assert time.monotonic() - since > 1, "not before two heartbeats"
    taken = ledger.take_over(left[0])
    assert taken is not None and (taken.id, taken.attempt) == (id, 2)
    if fate == "stopped":
        os.kill(worker.pid or 0, signal.SIGCONT)
        heard.put("tell")
        accepted, lost = told.get(timeout=60)
        assert accepted is False and lost == [id]
    assert ledger.update(replace(taken, state="complete", score=2.0, scores={"1337": 2.0}))
    worker.join(timeout=60)
    [only] = ledger.records()
    assert (only.score, only.attempt, only.state) == (2.0, 2, "complete")
    ledger.close()


def race(url: str, name: str, folder: Path, gate: Any, results: Any, what: str) -> None:
    made = Folder(folder)
    made.make("")
    ledger = Shared(url, name, made, heartbeat_seconds=60)
    left = [replace(one) for one in ledger.unfinished()]
    gate.wait(timeout=60)
    won = begin(ledger, most=3) if what == "begin" else ledger.take_over(left[0])
    results.put(won is not None)
    gate.wait(timeout=60)
    ledger.close()


@pytest.mark.parametrize("what", ["begin", "take over"])
def test_workers_that_race_never_do_the_same_or_too_much(server: Cluster, name: str, tmp_path: Path, what: str) -> None:
    ledger = open_ledger(server, name, tmp_path / "z")
    if what == "take over":
        # A trial that is only in the files: nobody works on it.
        mine = Folder(tmp_path / "y")
        mine.make("")
        assert mine.create(record(0, None, state="running"))
        ledger.close()
        ledger = Shared(server.url, name, mine, heartbeat_seconds=60)
    gate, results = FORK.Barrier(6), FORK.Queue()
    workers = [
        FORK.Process(target=race, args=(server.url, name, tmp_path / str(index), gate, results, what))
        for index in range(6)
    ]
    for worker in workers:
        worker.start()
    won = sum(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
    assert won == (3 if what == "begin" else 1)
    found = ledger.records()
    assert len(found) == won
    if what == "take over":
        assert found[0].attempt == 2
    ledger.close()


@pytest.mark.parametrize("late", ["the lower number", "the higher number"])
def test_numbers_that_were_taken_before_count_for_nothing(
    server: Cluster, name: str, tmp_path: Path, late: str
) -> None:
    # Planning may take a worker long: another one begins what it has no right to any more.
    ledgers = [open_ledger(server, name, tmp_path / who) for who in ("a", "b")]
    new = [record(ledger.next_number(), None, state="running") for ledger in ledgers]
    order = [1, 0] if late == "the lower number" else [0, 1]
    assert [ledgers[who].begin(new[who], [], most=1) for who in order] == [True, False]
    for ledger in ledgers:
        assert [one.id for one in ledger.records()] == [new[order[0]].id]
    # Nothing is blocked: where one more may begin, it does, and then no other.
    assert begin(ledgers[order[1]], most=2) is not None
    assert begin(ledgers[order[0]], most=2) is None
    for ledger in ledgers:
        ledger.close()


def test_a_run_that_confirms_is_begun_once(server: Cluster, name: str, tmp_path: Path) -> None:
    ledgers = [open_ledger(server, name, tmp_path / who) for who in ("a", "b")]
    new = [
        record(
            ledger.next_number(), None, state="running", id="confirm-base-seed-10001", role="confirmation", of="base"
        )
        for ledger in ledgers
    ]
    assert ledgers[1].begin(new[1], [], most=None)
    assert not ledgers[0].begin(new[0], [], most=None)
    assert [one.number for one in ledgers[0].records()] == [new[1].number]
    for ledger in ledgers:
        ledger.close()


def test_a_database_that_goes_away_is_one_line_and_nothing_is_lost(server: Cluster, name: str, tmp_path: Path) -> None:
    ledger = open_ledger(server, name, tmp_path / "a")
    whole, going = begin(ledger, 2.0), begin(ledger)
    assert whole is not None and going is not None
    server.stop()
    try:
        for attempt in (ledger.records, ledger.next_number, lambda: ledger.update(replace(going, score=1.0))):
            with pytest.raises(ResourceError, match="does not answer") as caught:
                attempt()
            assert "\n" not in str(caught.value) and "the same command goes on" in str(caught.value)
    finally:
        server.start()
    assert [one.state for one in ledger.records()] == ["complete", "running"], "it goes on by itself"
    ledger.close()
    # A database that has lost everything learns it from the files.
    again = open_ledger(server, f"{name} anew", tmp_path / "a")
    assert [(one.id, one.score) for one in again.records()] == [(whole.id, 2.0), (going.id, None)]
    assert [one.id for one in again.unfinished()] == [going.id]
    assert again.next_number() not in (whole.number, going.number)
    again.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///study.db", "workers on many machines need postgresql://"),
        ("nonsense", "workers on many machines need postgresql://"),
    ],
)
def test_other_databases_are_refused(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Shared(url, "s", Folder(tmp_path), heartbeat_seconds=1)


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    assert shown("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    with pytest.raises(ResourceError) as caught:
        Shared("postgresql://me:secret@127.0.0.1:1/db", "s", Folder(tmp_path), heartbeat_seconds=1)
    assert "secret" not in str(caught.value)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Path]:
    furnish(tmp_path)
    yield tmp_path
    stop_leftovers(tmp_path / "runs" / "s")


def saved(folder: Path, worker: int) -> Callable[[], bool]:
    """Whether a run of this worker has saved a checkpoint."""

    def holds() -> bool:
        mine = [one for one in Folder(folder).records() if one.worker.endswith(f":{worker}")]
        return any(Folder(folder).run(one, 1337).checkpoint_steps() for one in mine)

    return holds


@pytest.mark.slow
def test_three_workers_one_killed_no_trial_lost_none_counted_twice(server: Cluster, desk: Path) -> None:
    words = ["s.toml", *LONG, "--json", "--storage", server.url, "search.budget.trials=4", "search.heartbeat_seconds=2"]
    folder = desk / "runs" / "s"
    workers = [start(*words, cwd=desk) for _ in range(3)]
    victim = workers[0]
    wait_until(saved(folder, victim.pid), *workers, seconds=240)
    unfinished = [one for one in Folder(folder).records() if one.worker.endswith(f":{victim.pid}") and not one.ended]
    assert unfinished
    os.killpg(victim.pid, signal.SIGKILL)
    for one in unfinished:
        if one.process is not None:
            os.killpg(one.process, signal.SIGKILL)
    victim.communicate()
    answers = [done(worker) for worker in workers[1:]]
    assert [(one["trials"], one["complete"], one["running"]) for one in answers] == [(4, 4, 0)] * 2
    found = Folder(folder).records()
    assert len({one.id for one in found}) == len(found) == 4
    assert {one.id for one in unfinished} <= {one.id for one in found if one.attempt == 2}
    # Its run went on from its own checkpoint.
    for one in unfinished:
        assert '"resumed"' in Folder(folder).run(one, 1337).events.read_text("utf-8")


@pytest.mark.slow
def test_workers_whose_common_budget_is_used_up_all_come_to_the_end(server: Cluster, desk: Path) -> None:
    words = ["s.toml", "budget.steps=100000", "--json", "--storage", server.url, "--name", "common"]
    folder = Folder(desk / "runs" / "common")  # a study of its own
    folder.make("")
    space = asked(desk, SEARCH, [words[1]]).space
    for number in range(2):
        # Begun before: nothing as long as this would begin within so small a budget.
        table = config.to_table(space.propose(lambda name, at, domain, unit=number / 3: domain.at(unit)).recipe)
        assert folder.create(record(number, None, state="running", recipe=table))
    words += ["search.budget.minutes=0.2", "search.heartbeat_seconds=5"]
    workers = [start(*words, cwd=desk) for _ in range(2)]
    for answer in [done(worker) for worker in workers]:
        assert (answer["trials"], answer["complete"], answer["running"]) == (2, 0, 2)
        assert answer["ended"] == "budget.minutes is spent; a larger budget goes on with 2 stopped trials"
    found = folder.records()
    assert [one.state for one in found] == ["running"] * 2 and sum(one.spent.get("seconds", 0.0) for one in found) >= 12
    # A run that was taken from a starved worker may still be saving.
    wait_until(lambda: not any(folder.run(one, 1337).is_locked() for one in found))
