"""Processes that take turns: each works only when it is told to, and says what it did."""

from __future__ import annotations

from pathlib import Path

import bench
import pytest
import turns
from turns import Side, SideFailed

WORKER = """
import os, sys, time
from sides.turnstile import Turnstile, asked

wanted, done = asked(), 0
turnstile = Turnstile({"of": wanted["name"]}, {"done": lambda: done}, warm_up=2)
print("a library that is chatty on standard output")
while turnstile.next():
    done += 1
    time.sleep(wanted["seconds"])
"""


@pytest.fixture
def worker(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "worker_of_the_test.py").write_text(WORKER, "utf-8")
    return {"PYTHONPATH": str(tmp_path)}


def start(name: str, seconds: float, env: dict[str, str]) -> dict[str, object]:
    return {"module": "worker_of_the_test", "asked": {"name": name, "seconds": seconds}, "env": env}


def test_a_side_does_as_many_units_as_it_is_told_to(worker: dict[str, str]) -> None:
    with turns.sides({"a": start("first", 0.001, worker)}) as there:
        side = there["a"]
        assert side.facts["of"] == "first"
        assert side.ask("done") == 2  # the warm-up
        assert side.go(3) >= 0.001
        assert side.ask("done") == 5
        assert side.quit() > 1 << 20


def test_sides_take_turns_round_by_round(worker: dict[str, str]) -> None:
    starts = {"slow": start("slow", 0.02, worker), "fast": start("fast", 0.001, worker)}
    with turns.sides(starts) as there:
        taken = turns.take_turns(there, rounds=3, seconds=0.02)
        idle = turns.idle_share(there, "slow", ["fast"], seconds=0.1)
    assert {name: len(rounds) for name, rounds in taken.items()} == {"slow": 3, "fast": 3}
    assert bench.ratio(taken["slow"], taken["fast"])["least"] > 1
    assert idle["fast"] < 0.5


def test_a_rival_that_cannot_be_had_is_left_out_and_ours_never(
    worker: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    broken = {"module": "worker_of_the_test", "asked": {"name": "no seconds"}, "env": worker}
    nowhere = {**start("none", 0.0, worker), "python": "/nowhere/python"}
    with turns.sides({"rival": broken, "other": nowhere, "there": start("there", 0.0, worker)}) as there:
        assert list(there) == ["there"]
    told = capfd.readouterr().err
    assert "KeyError" in told
    assert "No such file" in told
    with pytest.raises(SystemExit), turns.sides({"ours": broken}):
        pass


def test_a_side_that_dies_says_why(worker: dict[str, str]) -> None:
    side = Side("a", **start("a", -1.0, worker) | {"asked": {"name": "a", "seconds": 0.0}})
    with pytest.raises(SideFailed, match="KeyError: 'unheard'"):
        side.ask("unheard")
    side.kill()
