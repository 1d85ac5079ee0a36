"""Names that lead elsewhere, carry terminal codes or look like options: S07, S09, S10, S12, S20."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.small import RECIPE, TITLES, Answer, Command
from export.strangers import ours, save_ours, section
from farthing import api
from farthing.errors import UserError
from farthing.export.foreign import read_folder
from farthing.rundir import RunDir, check_name, list_runs, new_run_path
from farthing.sinks.legible import legible

ESCAPES = "\x1b[2J\x1b]52;c;AAAA\x07\x9b31m\r\u202e\u2028"
OUTSIDE = (
    "..",
    "../x",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "-rf",
    ".x",
    "$(id)",
    "a;b",
    "a\nb",
    "%2e%2e/x",
)


@pytest.fixture
def farthing(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="session")
def _sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sound")
    (place / "titles.txt").write_text(TITLES, "utf-8")
    (place / "small.toml").write_text(RECIPE, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        api.train("small.toml", name="sound", quiet=True)
    return place


@pytest.fixture
def desk(_sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "desk"
    shutil.copytree(_sound, place)
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_the_folder_of_runs(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        check_name(name)
    with pytest.raises(UserError):
        new_run_path(tmp_path, name, "run")


@given(st.text(max_size=120))
def test_a_name_that_is_taken_stays_inside(name: str) -> None:
    runs = Path("/nowhere/runs")
    try:
        path = new_run_path(runs, name, "run")
    except UserError:
        return
    assert path.parent == runs and path.name == name and not name.startswith(("-", "."))


@given(st.text(max_size=200))
def test_a_run_that_is_called_after_a_file_has_a_name_that_is_one(stem: str) -> None:
    path = new_run_path(Path("/nowhere/runs"), None, stem)
    assert path.parent == Path("/nowhere/runs")
    assert not path.name.startswith(("-", ".")) and legible(path.name) == path.name
    assert len(path.name) <= 80 and "/" not in path.name


def test_a_recipe_with_an_evil_name_trains_a_run_with_a_plain_one(farthing: Command, desk: Path) -> None:
    shutil.copy(desk / "small.toml", desk / "-rf;$(id)\x1b[2J.toml")
    answer = farthing("train", "./-rf;$(id)\x1b[2J.toml", "--quiet")
    assert answer.code == 0, answer.err
    assert (desk / "runs" / "rf-id-2J-1" / "result.json").is_file()


@pytest.mark.parametrize(
    "place", ["recipe.toml", "tokenizer.json", "plan.json", "receipt.json", "events.jsonl", "result.json"]
)
@pytest.mark.parametrize("target", ["/etc/passwd", "/dev/zero", "nowhere", "../..", "itself"])
def test_a_run_whose_file_is_a_link_is_a_damaged_run(place: str, target: str, farthing: Command, desk: Path) -> None:
    file = desk / "runs" / "sound" / place
    file.unlink()
    if target == "/dev/zero" and place not in ("recipe.toml", "result.json"):
        target = "/dev/null"  # what is read whole is not read from there for ever
    file.symlink_to(place if target == "itself" else target)
    for words in (["runs"], ["sample", "sound", "--tokens", "2"], ["compare", "sound"]):
        answer = farthing(*words)
        assert "Traceback" not in answer.err and "root:" not in answer.out + answer.err, answer
        assert answer.code in (0, 2, 3, 4), answer


def test_a_checkpoint_is_not_read_through_a_link(farthing: Command, desk: Path) -> None:
    folder = desk / "runs" / "sound" / "checkpoints" / "step-00000006"
    (folder / "state.json").rename(desk / "elsewhere.json")
    (folder / "state.json").symlink_to(desk / "elsewhere.json")
    answer = farthing("sample", "sound", "--checkpoint", "6", "--tokens", "2")
    assert answer.code == 4 and "'state.json' is not a file of its own" in answer.err
    # An older one is whole.
    assert farthing("sample", "sound", "--tokens", "2").code == 0


def test_an_exported_folder_with_links_is_not_published(farthing: Command, desk: Path) -> None:
    folder = save_ours(ours(section()), desk / "model")
    (folder / "notes.txt").symlink_to("/etc/passwd")
    answer = farthing("publish-check", "model", "--json")
    files = next(point for point in json.loads(answer.out)["points"] if point["name"] == "files")
    assert answer.code == 2 and files["status"] == "fail" and "link" in files["told"]


def test_a_model_in_a_folder_of_links_is_read_as_the_hub_keeps_it(desk: Path) -> None:
    folder = save_ours(ours(section()), desk / "blobs")
    (desk / "snapshot").mkdir()
    for file in folder.iterdir():
        (desk / "snapshot" / file.name).symlink_to(file)
    assert read_folder(desk / "snapshot").kind == read_folder(folder).kind


def clean(answer: Answer) -> None:
    """Nothing that a terminal obeys but line breaks."""
    for text in (answer.out, answer.err):
        assert legible(text, lines=True) == text, text
        assert "\x1b" not in text


def test_what_strangers_write_moves_no_cursor(farthing: Command, desk: Path) -> None:
    evil = desk / "runs" / f"evil{ESCAPES}"
    shutil.copytree(desk / "runs" / "sound", evil)
    table = json.loads((evil / "result.json").read_text("utf-8"))
    table |= {"status": f"finished{ESCAPES}", "samples": [{"prompt": ESCAPES, "text": ESCAPES}]}
    (evil / "result.json").write_text(json.dumps(table), "utf-8")
    recipe = tomllib.loads((evil / "recipe.toml").read_text("utf-8"))
    assert recipe["seed"] == 1337
    (desk / "questions.jsonl").write_text(
        json.dumps({"query": ESCAPES, "choices": [ESCAPES, "b"], "gold": 9}) + "\n", "utf-8"
    )
    for words in (
        ["runs"], ["runs", "--quiet"], ["runs", "--json"],
        ["compare", "sound", evil.name], ["compare", "sound", evil.name, "--json"],
        ["resume", evil.name], ["resume", evil.name, "--json"], ["sample", evil.name, ESCAPES, "--tokens", "4"],
        ["sample", evil.name, ESCAPES, "--tokens", "4", "--json"], ["sample", f"nobody{ESCAPES}"], ["eval", evil.name],
        ["eval", "sound", "--task", "choices", "--data", "questions.jsonl"], ["train", "small.toml", f"seed{ESCAPES}=1"],
        ["report", "sound", evil.name, "--out", "r.html"], ["recipe", "diff", "small.toml", str(evil / "recipe.toml")],
    ):  # fmt: skip
        answer = farthing(*words)
        assert "Traceback" not in answer.err, (words, answer)
        clean(answer)


def test_a_run_whose_name_is_no_text_is_listed(farthing: Command, desk: Path) -> None:
    # A file system may hold names that are no UTF-8.
    shutil.copytree(os.fsencode(desk / "runs" / "sound"), os.fsencode(desk / "runs") + b"/\xff\xfe")
    for words in (["runs"], ["runs", "--json"], ["runs", "--quiet"], ["compare", "*"]):
        answer = farthing(*words)
        assert answer.code == 0, (words, answer)
        clean(answer)


@pytest.mark.parametrize(
    ("mask", "folders", "files"), [(0o077, 0o700, 0o600), (0o022, 0o755, 0o644), (0o027, 0o750, 0o640)]
)
def test_a_run_is_as_open_as_the_umask_says(mask: int, folders: int, files: int, farthing: Command, desk: Path) -> None:
    before = os.umask(mask)
    try:
        assert farthing("train", "small.toml", "--runs", "mine", "--name", "one", "--quiet").code == 0
    finally:
        os.umask(before)
    for path in [desk / "mine", *(desk / "mine").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (folders if path.is_dir() else files), path


def _create(runs: Path, worker: int, gate: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    made = 0
    for number in range(125):
        try:
            RunDir.create(
                runs / f"trial-{number}", recipe=f"# {worker}\n", tokenizer="{}", plan={}, receipt={"worker": worker}
            )
            made += 1
        except UserError as error:
            assert "exists" in str(error)
    (runs.parent / f"made-{worker}").write_text(str(made), "ascii")


def test_a_thousand_creations_at_once_make_each_run_once_and_whole(tmp_path: Path) -> None:
    runs, workers = tmp_path / "runs", 8
    fork = multiprocessing.get_context("fork")
    gate = fork.Barrier(workers)
    started = [fork.Process(target=_create, args=(runs, worker, gate)) for worker in range(workers)]
    for one in started:
        one.start()
    for one in started:
        one.join()
        assert one.exitcode == 0
    assert sum(int((tmp_path / f"made-{worker}").read_text("ascii")) for worker in range(workers)) == 125
    assert len(list_runs(runs)) == 125 and len(list(runs.iterdir())) == 125, "nothing half-made is left"
    for run in list_runs(runs):
        owner = run.recipe.read_text("utf-8").strip("# \n")
        assert json.loads(run.receipt.read_text("utf-8")) == {"worker": int(owner)}, "of one process as a whole"
