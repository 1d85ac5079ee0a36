"""A run's folder: made whole, held by one process, named as people write, never losing a checkpoint."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from farthing import rundir
from farthing.errors import ResourceError, RunLockedError, UserError
from farthing.rundir import MAX_NAME, RunDir, check_name, find_run, list_runs, new_run_path, read_result
from farthing.storage import write_json
from training.story import in_child


def make(path: Path) -> RunDir:
    return RunDir.create(path, recipe="seed = 1\n", tokenizer="{}", plan={"steps": 1}, receipt={})


def test_a_new_run_has_what_is_known_before_the_first_step(tmp_path: Path) -> None:
    run = make(tmp_path / "runs" / "owl")
    assert run.name == "owl"
    assert sorted(path.name for path in run.path.iterdir()) == [
        "checkpoints", "plan.json", "receipt.json", "recipe.toml", "tokenizer.json",
    ]  # fmt: skip
    assert RunDir.open(run.path).recipe.read_text() == "seed = 1\n"
    assert read_result(run) == {}


def test_a_name_that_is_taken_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    run = make(tmp_path / "owl")
    with pytest.raises(UserError, match="farthing resume"):
        RunDir.create(run.path, recipe="seed = 2\n", tokenizer="{}", plan={}, receipt={})
    assert run.recipe.read_text() == "seed = 1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["owl"]


def test_of_two_processes_making_one_run_one_wins(tmp_path: Path) -> None:
    codes = []
    for _ in range(3):
        codes.append(in_child(lambda: make(tmp_path / "runs" / "owl"), tmp_path).code)
    assert codes == [0, 2, 2]


def test_F01_killed_while_it_was_made_there_is_no_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    ended = in_child(lambda: make(runs / "owl"), tmp_path, crashpoint="storage.before_folder_rename")
    assert ended.code == -signal.SIGKILL
    assert list_runs(runs) == []
    with pytest.raises(UserError, match="no such run"):
        find_run("owl", runs)
    assert new_run_path(runs, "owl", "run") == runs / "owl"
    assert [run.name for run in [make(runs / "owl")]] == [run.name for run in list_runs(runs)]


@pytest.mark.parametrize(
    "name", ["a", "a1", "my run", "übung 3", "прогон", "実験_1", "हिन्दी", "e\u0301tude", "x.y-z_", "a" * MAX_NAME]
)
def test_names_in_any_script_make_a_run(tmp_path: Path, name: str) -> None:
    check_name(name)
    run = make(new_run_path(tmp_path / "with spaces и ещё", name, "run"))
    assert find_run(name, run.path.parent).path == run.path
    with run.locked():
        assert run.status() == "running"


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", ".hidden", "-rf", "a/b", "../up", "a\\b", "a\x00b", "a\nb", "a\tb", " a", "a ", "a:b", "$(x)",
     "a;b", "a*b", "\u202eabc", "a" * (MAX_NAME + 1), "\U00010330" * 60, "\ud800"],
)  # fmt: skip
def test_names_that_cannot_be_folders_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        new_run_path(tmp_path, name, "run")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_a_name_the_first_free_number(tmp_path: Path) -> None:
    assert new_run_path(tmp_path, None, "default").name == "default-1"
    make(tmp_path / "default-1")
    make(tmp_path / "default-3")
    assert new_run_path(tmp_path, None, "default").name == "default-2"
    with pytest.raises(UserError, match="exists"):
        new_run_path(tmp_path, "default-3", "run")


def test_a_run_is_found_by_path_and_by_name_and_its_nearest_name_is_told(tmp_path: Path) -> None:
    make(tmp_path / "owls")
    assert find_run("owls", tmp_path).path == find_run(str(tmp_path / "owls"), Path("elsewhere")).path
    with pytest.raises(UserError, match="did you mean owls"):
        find_run("owl", tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="not a run folder"):
        find_run(str(tmp_path / "folder"), tmp_path)
    with pytest.raises(UserError, match="no recipe"):
        RunDir.open(tmp_path / "folder")
    with pytest.raises(UserError, match="no such run"):
        RunDir.open(tmp_path / "nowhere")


def test_runs_are_listed_oldest_first(tmp_path: Path) -> None:
    for age, name in enumerate(["c", "a", "b"]):
        run = make(tmp_path / name)
        os.utime(run.recipe, (1000 + age, 1000 + age))
    (tmp_path / "not a run").mkdir()
    assert [run.name for run in list_runs(tmp_path)] == ["c", "a", "b"]
    assert list_runs(tmp_path / "nowhere") == []


def test_F36_the_lock_keeps_a_second_process_out_and_dies_with_its_holder(tmp_path: Path) -> None:
    run = make(tmp_path / "owl")
    ready, go = os.pipe(), tmp_path / "held"

    def hold() -> None:
        with run.locked():
            os.write(ready[1], b"x")
            time.sleep(60)

    child = os.fork()
    if child == 0:
        try:
            hold()
        finally:
            os._exit(1)
    assert os.read(ready[0], 1) == b"x"
    assert run.is_locked() and run.status() == "running"
    with pytest.raises(RunLockedError, match=f"process {child} on ") as caught, run.locked():
        raise AssertionError("let in")
    assert caught.value.exit_code == 7
    assert not go.exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not run.is_locked() and run.status() == "stopped"
    with run.locked():
        assert run.is_locked()
    for descriptor in ready:
        os.close(descriptor)


def test_F46_a_file_system_without_locks_is_not_a_run_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(stream: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(rundir.fcntl, "flock", flock)
    with pytest.raises(ResourceError, match="cannot lock files"), RunDir(tmp_path).locked():
        pass


def test_status(tmp_path: Path) -> None:
    run = make(tmp_path / "owl")
    assert run.status() == "stopped"
    with run.locked():
        assert run.status() == "running"
    write_json(run.result, {"status": "finished"})
    assert run.status() == "finished"


def checkpoint(run: RunDir, name: str, content: str = "x") -> Path:
    folder = run.checkpoints / name
    folder.mkdir()
    (folder / "file").write_text(content)
    return folder


def test_checkpoints_are_counted_by_their_names(tmp_path: Path) -> None:
    run = make(tmp_path / "owl")
    for name in ("step-00000010", "step-00000009", "step-123456789", "step-1", "step-x", ".tmp-step-00000011-1"):
        checkpoint(run, name)
    assert run.checkpoint_steps() == [9, 10, 123456789]
    assert run.checkpoint(9).name == "step-00000009"
    assert RunDir(tmp_path / "nowhere").checkpoint_steps() == []


def test_set_aside_never_deletes(tmp_path: Path) -> None:
    run = make(tmp_path / "owl")
    places = [run.set_aside(checkpoint(run, "step-00000009", content)) for content in ("first", "second")]
    assert [(place / "file").read_text() for place in places] == ["first", "second"]
    assert run.checkpoint_steps() == []


def test_sweep_removes_what_is_half_there_and_nothing_else(tmp_path: Path) -> None:
    run = make(tmp_path / "owl")
    for name in (".tmp-step-00000003-7", ".trash-step-00000001-7", "step-00000002"):
        checkpoint(run, name)
    (run.path / ".tmp-result.json-7").write_text("{")
    (run.path / ".notes").write_text("a person's")
    run.sweep()
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000002"]
    assert (run.path / ".notes").exists() and not (run.path / ".tmp-result.json-7").exists()


def test_sweep_puts_back_what_was_about_to_be_replaced(tmp_path: Path) -> None:
    run = make(tmp_path / "owl")
    checkpoint(run, ".old-step-00000002-7", "old")
    run.sweep()
    assert (run.checkpoint(2) / "file").read_text() == "old"
    checkpoint(run, ".old-step-00000002-7", "older")
    run.sweep()
    assert (run.checkpoint(2) / "file").read_text() == "old"
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000002"]
