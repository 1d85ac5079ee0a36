"""Mirrors: real files written by the real trackers, and a failing one that never stops a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from farthing.errors import UserError
from farthing.events import Event, EventLog, Notice, Resumed, read_events
from farthing.sinks.mirror import Mirror, scalars
from sinks.events import evaluation, one_of_each, short_run, step


def test_a_failing_mirror_is_dropped_with_one_notice(tmp_path: Path) -> None:
    seen: list[Event] = []

    def fails_on_the_third(event: Event) -> None:
        seen.append(event)
        if len(seen) == 3:
            raise OSError("the disk\nis full")

    log = EventLog(tmp_path / "events.jsonl")
    mirror = Mirror("TensorBoard", fails_on_the_third, report=log.emit)
    log.follow(mirror)
    for event in short_run():
        log.emit(event)
    log.close()
    assert len(seen) == 3 and mirror.dropped
    records = list(read_events(tmp_path / "events.jsonl"))
    assert len(records) == len(list(short_run())) + 1
    (notice,) = [record for record in records if record.get("code") == "mirror_dropped"]
    assert notice["message"].startswith("TensorBoard is no longer followed: OSError: the disk; ")


def test_an_interrupt_is_not_swallowed() -> None:
    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Mirror("x", interrupted, report=lambda event: None)(step(1))


def test_only_finite_numbers_are_passed_on() -> None:
    found = scalars(step(3, loss=None))
    assert "train/loss" not in found
    assert found["train/lr"] == 0.02 and found["spent/tokens"] == 3 * 1024
    assert scalars(evaluation(1, 2.0))["validation/bits_per_byte"] == 2.0
    assert scalars(Notice(code="a", message="b")) == {}


def test_mirrors_do_not_import_torch_or_trackers_before_they_are_used() -> None:
    script = (
        "import sys, farthing.sinks.tensorboard, farthing.sinks.wandb, farthing.sinks.console;"
        "print([name for name in ('torch', 'tensorboard', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_missing_tracker_names_its_extra(tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from farthing.sinks.tensorboard import TensorBoard
    from farthing.sinks.wandb import Wandb

    # None in sys.modules is Python's own way to say that a module cannot be imported.
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(UserError, match=r"farthing\[track\]"):
        TensorBoard(tmp_path) if tracker == "tensorboard" else Wandb(tmp_path, name="x")
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from farthing.sinks.tensorboard import TensorBoard

    first = TensorBoard(tmp_path)
    for event in [step(1), step(2), evaluation(2, 2.5), step(3), step(4)]:
        first(event)
    first.close()
    # Killed there; resumed from step 2, it takes steps 3 and 4 again.
    second = TensorBoard(tmp_path)
    resumed = Resumed(step=2, checkpoint="step-00000002", exact=True)
    for event in [resumed, step(3, loss=7.0), step(4, loss=7.0), *one_of_each()[-1:]]:
        second(event)

    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    merged = EventAccumulator(str(tmp_path)).Reload()
    assert {"train/loss", "train/lr", "validation/bits_per_byte", "spent/tokens", "wall_seconds"} <= set(
        merged.Tags()["scalars"]
    )
    assert [(point.step, point.value) for point in merged.Scalars("train/loss")] == [(1, 2), (2, 2), (3, 7), (4, 7)]
    assert [(point.step, point.value) for point in merged.Scalars("validation/bits_per_byte")] == [(2, 2.5)]


def test_tensorboard_takes_every_event(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from farthing.sinks.tensorboard import TensorBoard

    # Each closing event ends a file, as each sitting of a run does.
    for number, ending in enumerate(one_of_each()[-2:]):
        board = TensorBoard(tmp_path / str(number))
        for event in [*one_of_each()[:-2], ending]:
            board(event)
        assert EventAccumulator(str(tmp_path / str(number))).Reload().Tags()["tensors"] == ["sample"]


def test_wandb_writes_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    script = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from events import short_run
from farthing.sinks.wandb import Wandb
board = Wandb(Path(sys.argv[1]), name="small", config={"seed": 1})
for event in short_run():
    board(event)
"""
    here = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", script, str(tmp_path), here], capture_output=True, timeout=120, check=True)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert list(folder.glob("*.wandb"))


def test_events_survive_the_json_round_trip_that_mirrors_rely_on() -> None:
    for event in one_of_each():
        assert json.loads(json.dumps(event.as_dict()))["kind"] == event.kind
