"""F19 to F22, F34: disks that fill up or cannot be written to, and text that changes under a run."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from farthing import errors
from farthing.recipe import Recipe
from farthing.rundir import RunDir
from training.story import Ended, events, final_state, in_child, new_run, notices, recipe, resume

NOBODY = 65534


def with_files_up_to(size: int, work: Callable[[], object]) -> Callable[[], object]:
    """Every file that grows beyond `size` bytes meets a full disk (EFBIG, which is an OSError like ENOSPC)."""

    def limited() -> object:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return work()

    return limited


def test_F20_disk_full_at_every_save_keeps_training_and_ends_resumable(story: Path) -> None:
    made = recipe(["checkpoint.every=3"])
    whole = final_state(new_run(story / "runs" / "whole", made))
    run = RunDir(story / "runs" / "full")
    # Room for events and recipe, none for the weights.
    ended = in_child(with_files_up_to(15_000, lambda: new_run(run.path, made)), story)
    assert ended.code == errors.ResourceError.exit_code, ended
    assert "farthing resume" in ended.message
    assert "\n" not in ended.message
    assert run.checkpoint_steps() == []
    assert notices(run).count("checkpoint_failed") >= 4
    assert [event["reason"] for event in events(run, "stopped")] == ["disk_full"]
    assert [event["step"] for event in events(run, "step")] == list(range(1, 11))
    assert not list(run.path.rglob(".*"))
    resume(run)
    assert final_state(run) == whole


def test_F20_disk_full_late_leaves_older_checkpoints_untouched(story: Path) -> None:
    made = recipe(["checkpoint.every=3"])
    whole = final_state(new_run(story / "runs" / "whole", made))
    run = RunDir(story / "runs" / "late")
    assert in_child(lambda: new_run(run.path, made), story, crashpoint="checkpoint.after_rename:2").code < 0
    before = {file: file.read_bytes() for file in run.checkpoints.rglob("*") if file.is_file()}
    ended = in_child(with_files_up_to(15_000, lambda: resume(run)), story)
    assert ended.code == errors.ResourceError.exit_code, ended
    assert {file: file.read_bytes() for file in run.checkpoints.rglob("*") if file.is_file()} == before
    resume(run)
    assert final_state(run) == whole


@pytest.mark.parametrize("size", [0, 300, 2_000, 6_000])
def test_F20_disk_full_at_the_start_leaves_no_half_run(story: Path, size: int) -> None:
    made = recipe()
    new_run(story / "runs" / "whole", made)  # the token cache is warm then
    run = RunDir(story / "runs" / "none")
    ended = in_child(with_files_up_to(size, lambda: new_run(run.path, made)), story)
    assert ended.code in (errors.UserError.exit_code, errors.ResourceError.exit_code), ended
    if ended.code == errors.UserError.exit_code:
        assert sorted(path.name for path in run.path.parent.iterdir()) == ["whole"]
    else:
        resume(run)
        assert final_state(run) == final_state(RunDir(story / "runs" / "whole"))


def test_F21_a_disk_too_full_for_events_never_stops_training(story: Path) -> None:
    made = recipe(["checkpoint.every=end", "evaluate.every=end", "budget.steps=70"])
    whole = final_state(new_run(story / "runs" / "whole", made))
    run = RunDir(story / "runs" / "mute")
    assert RunDir(story / "runs" / "whole").events.stat().st_size > 20_000
    ended = in_child(with_files_up_to(15_000, lambda: new_run(run.path, made)), story)
    # It went on to the last step, where only the checkpoint's own failure ended it.
    assert ended.code == errors.ResourceError.exit_code, ended
    content = run.events.read_bytes()
    assert content.endswith(b"\n")
    assert 14_000 < len(content) <= 15_000
    # Nothing is missing up to where a line did not fit; a later, shorter one may still have fitted.
    lines = content.splitlines(keepends=True)
    fitted = [json.loads(line) for line in content[: 15_000 - 2 * max(map(len, lines))].split(b"\n")[:-1]]
    before = [event["step"] for event in fitted if event["kind"] == "step"]
    told = [event["step"] for event in events(run, "step")]
    assert len(before) > 20
    assert told[: len(before)] == before == list(range(1, len(before) + 1))
    assert told == sorted(set(told))
    resume(run)
    assert final_state(run) == whole


def as_nobody(work: Callable[[], object]) -> Callable[[], object]:
    def unprivileged() -> object:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return work()

    return unprivileged


@pytest.fixture
def open_folders(story: Path) -> Path:
    """The story's folder, made passable for others; pytest makes its own for the owner alone."""
    if os.getuid() == 0:
        for folder in (story, *story.parents):
            if folder == Path("/tmp") or not folder.stat().st_mode & 0o700:
                break
            folder.chmod(folder.stat().st_mode | 0o055)
            if folder.parent == folder:
                break
    return story


def refused(folder: Path, run: Path) -> Ended:
    made = recipe()
    ended = in_child(as_nobody(lambda: new_run(run, made)), folder)
    assert ended.code == errors.UserError.exit_code, ended
    assert "\n" not in ended.message
    return ended


def test_a_runs_folder_that_cannot_be_written(open_folders: Path) -> None:
    runs = open_folders / "closed"
    runs.mkdir()
    runs.chmod(0o555)
    # What the child has to say goes somewhere that it may write.
    (open_folders / "said").mkdir()
    (open_folders / "said").chmod(0o777)
    for place in (runs / "one", runs / "deeper" / "one"):
        assert "cannot be written" in refused(open_folders / "said", place).message
    assert list(runs.iterdir()) == []


def test_a_runs_folder_that_cannot_even_be_looked_into(open_folders: Path) -> None:
    (open_folders / "said").mkdir()
    (open_folders / "said").chmod(0o777)
    hidden = open_folders / "hidden"
    hidden.mkdir()
    hidden.chmod(0o000)
    refused(open_folders / "said", hidden / "runs" / "one")
    hidden.chmod(0o755)


def test_a_file_where_the_runs_folder_should_be(story: Path) -> None:
    (story / "runs").write_text("not a folder")
    with pytest.raises(errors.UserError, match="no folder"):
        new_run(story / "runs" / "one", recipe())
    assert (story / "runs").read_text() == "not a folder"


def stopped_run(story: Path, made: Recipe) -> RunDir:
    run = RunDir(story / "runs" / "stopped")
    assert in_child(lambda: new_run(run.path, made), story, crashpoint="checkpoint.after_rename").code < 0
    return run


@pytest.mark.parametrize("damage", ["removed", "shortened", "one letter", "emptied", "not text"])
def test_F34_text_that_changed_between_sittings_is_named(story: Path, damage: str) -> None:
    run = stopped_run(story, recipe())
    text = story / "story.txt"
    before = text.read_bytes()
    match damage:
        case "removed":
            text.unlink()
        case "shortened":
            text.write_bytes(before[: len(before) // 2])
        case "one letter":
            text.write_bytes(before.replace(b"owl number 3", b"owl number 7", 1))
        case "emptied":
            text.write_bytes(b"")
        case "not text":
            text.write_bytes(b"\xff\xfe\x00" * 100)
    with pytest.raises(errors.DataError) as caught:
        resume(run)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert str(run.path) in str(caught.value)
    # Nothing is lost by asking: with the text put back the run goes on.
    text.write_bytes(before)
    assert resume(run)["status"] == "finished"


def test_the_receipt_names_the_text(story: Path) -> None:
    run = stopped_run(story, recipe())
    assert "story.txt" in run.receipt.read_text("utf-8")


@pytest.mark.parametrize("saved", [True, False])
def test_F38_a_recipe_edited_between_sittings_is_refused(story: Path, saved: bool) -> None:
    point = "checkpoint.after_rename" if saved else "checkpoint.before_rename"
    run = RunDir(story / "runs" / "edited")
    assert in_child(lambda: new_run(run.path, recipe()), story, crashpoint=point).code < 0
    text = run.recipe.read_text("utf-8")
    run.recipe.write_text(text.replace("seed = 1337\n", "seed = 7\n", 1), "utf-8")
    with pytest.raises(errors.UserError, match="changed since the run began"):
        resume(run)
    run.recipe.write_text(text, "utf-8")
    assert resume(run)["status"] == "finished"
