"""A mistake is told in one line that names it, with exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cli.small import TITLES, Answer, Command


def refused(answer: Answer, *words: str, code: int = 2) -> None:
    assert answer.code == code, answer
    assert answer.out == ""
    assert answer.err.startswith("error: "), answer.err
    assert answer.err.count("\n") == 1, answer.err
    for word in words:
        assert word in answer.err, (word, answer.err)


def nothing_left(folder: Path) -> None:
    runs = folder / "runs"
    assert not runs.exists() or not list(runs.iterdir())
    cache = Path(os.environ["FARTHING_CACHE"])
    # The cache is shared with other workers, whose unfinished folders end in their own process number.
    assert not [path for place in (folder, cache) for path in place.rglob(f".tmp-*-{os.getpid()}")]


SETTINGS = [
    (["model.nlayer=2"], ["model.nlayer: no such field", "did you mean model.n_layer?"]),
    (["modle.n_layer=2"], ["modle", "no such field"]),
    (["n_layer=2"], ["n_layer", "did you mean model.n_layer?"]),
    (["optimizer.kind=adamww"], ["optimizer.kind='adamww'", "did you mean adamw?"]),
    (["model.n_head=3"], ["d_model=16", "n_head=3"]),
    (["model.n_head=4", "model.n_kv_head=3"], ["n_kv_head=3", "n_head=4"]),
    (["tokenizer.kind=bpe", "tokenizer.vocab_size=0"], ["tokenizer.vocab_size=0"]),
    (["budget.steps=-3"], ["budget.steps=-3"]),
    (["budget.steps=0"], ["budget.steps=0"]),
    (["budget.minutes=-1"], ["budget.minutes=-1"]),
    (["budget.minutes=nan"], ["budget.minutes=nan"]),
    (["budget.money=2"], ["budget.price_per_hour"]),
    (["budget.steps=none"], ["no budget", "budget.epochs"]),
    (["optimizer.lr=fast"], ["optimizer.lr='fast'"]),
    (["model.n_layer"], ["'model.n_layer' is not an override", "path=value"]),
    (["small.toml"], ["'small.toml' is not an override"]),
    (["data.path=missing.txt"], ["missing.txt", "no such file"]),
    (["data.path=tilte*.txt"], ["tilte*.txt"]),
    (["data.path=empty.txt"], ["empty.txt", "no text"]),
    (["data.path=binary.txt"], ["binary.txt", "not UTF-8", "offset 3"]),
    (["data.path=latin.txt"], ["latin.txt", "not UTF-8", "0xe9"]),
    (["data.path=folder"], ["folder", "is a folder"]),
    (["data.path=none"], ["data.path"]),
    (["data.kind=bin", "data.path=magic.bin"], ["magic.bin", "magic"]),
    (["data.kind=bin", "data.path=version.bin"], ["version.bin", "version"]),
    (["data.kind=bin", "data.path=count.bin"], ["count.bin"]),
    (["data.kind=bin", "data.path=odd.bin"], ["odd.bin"]),
    (["data.kind=jsonl", "data.path=titles.txt"], ["titles.txt", "line 1", "not JSON"]),
    (["data.kind=npz", "data.path=titles.txt"], ["titles.txt"]),
    (["data.validation=0.0000001"], ["data.validation"]),
    (["tokenizer.kind=file", "tokenizer.path=titles.txt"], ["titles.txt"]),
    (["tokenizer.kind=file", "tokenizer.path=missing.json"], ["missing.json"]),
    (["model.context_length=1000000000"], ["too little text", "model.context_length = 1000000000"]),
    (["limits.max_megabytes=0.001"], ["the plan is refused", "limits.max_megabytes=0.001"]),
    (["train.micro_batch=-1"], ["train.micro_batch=-1"]),
]
FLAGS = [
    (["train", "smal.toml"], ["smal.toml", "no such recipe"]),
    (["train", "folder"], ["folder", "is a folder, not a recipe"]),
    (["train", "broken.toml"], ["broken.toml", "not TOML", "line 1"]),
    (["trian"], ["'trian'", "'train'"]),
    (["recipe", "shwo"], ["'shwo'", "'show'"]),
    (["recipe"], ["a verb is missing", "farthing recipe --help"]),
    (["train", "--nmae", "x"], ["--nmae", "--name"]),
    (["train", "small.toml", "--name"], ["--name", "requires an argument"]),
    (["train", "small.toml", "--name", "../x"], ["--name '../x'"]),
    (["train", "small.toml", "--name", ""], ["--name ''"]),
    (["train", "small.toml", "--name", ".hidden"], ["--name '.hidden'"]),
    (["train", "small.toml", "--name", "a/b"], ["--name 'a/b'"]),
    (["train", "small.toml", "--name", "x" * 81], ["--name 'xxx"]),
    (["train", "small.toml", "--device", "gpu9"], ["gpu9", "cuda"]),
    (["train", "small.toml", "--deadline", "yesterday"], ["--deadline 'yesterday'"]),
    (["train", "small.toml", "--deadline", "2001-01-01"], ["--deadline '2001-01-01'", "past"]),
    (["train", "small.toml", "--runs", "titles.txt"], ["titles.txt", "--runs"]),
    (["plan", "small.toml", "model.n_head=3"], ["n_head=3"]),
    (["eval", "done"], ["done", "no such run"]),
    (["eval", "folder"], ["folder", "is not a run folder"]),
    (["sample", "done"], ["done", "no such run"]),
    (["resume", "done"], ["done", "no such run"]),
    (["resume"], ["name a run", "--all DIR"]),
    (["recipe", "diff", "default", "defualt"], ["defualt", "did you mean default?"]),
    (["data", "get", "tinystorys"], ["'tinystorys'", "tinystories"]),
    (["data", "get", "tinystories", "--shards", "0"], ["shards = 0"]),
    (["tokenizer", "compare", "small.toml", "bpe:many"], ["'bpe:many'", "KIND:SIZE"]),
    (["tokenizer", "compare", "small.toml", "bep:300"], ["'bep'", "did you mean bpe"]),
    (["tokenizer", "train", "small.toml", "--to", "folder"], ["--to folder"]),
    (["tokenizer", "train", "small.toml", "--to", "nowhere/t.json"], ["nowhere"]),
]


@pytest.fixture
def littered(desk: Path) -> Path:
    return litter(desk)


def litter(desk: Path) -> Path:
    """The desk with files of every wrong kind."""
    (desk / "empty.txt").touch()
    (desk / "binary.txt").write_bytes(b"\0\1\2\xff\xfe")
    (desk / "latin.txt").write_bytes("un café\n".encode("latin-1"))
    (desk / "broken.toml").write_text("[model\n", "utf-8")
    (desk / "folder").mkdir()
    for name, magic, version, count, extra in (
        ("magic", 1, 1, 50, b""),
        ("version", 20240520, 9, 50, b""),
        ("count", 20240520, 1, 60, b""),
        ("odd", 20240520, 1, 50, b"x"),
    ):
        header = np.zeros(256, dtype=np.int32)
        header[:3] = magic, version, count
        tokens = np.arange(50, dtype=np.uint16)
        (desk / f"{name}.bin").write_bytes(header.tobytes() + tokens.tobytes() + extra)
    return desk


@pytest.mark.parametrize(("overrides", "words"), SETTINGS, ids=lambda value: " ".join(value)[:40])
def test_settings(farthing: Command, littered: Path, overrides: list[str], words: list[str]) -> None:
    refused(farthing("train", "small.toml", *overrides, "--quiet"), *words)
    nothing_left(littered)


@pytest.mark.parametrize(("line", "words"), FLAGS, ids=lambda value: " ".join(value)[:40])
def test_words_and_flags(farthing: Command, littered: Path, line: list[str], words: list[str]) -> None:
    refused(farthing(*line), *words)
    nothing_left(littered)


def test_what_looks_odd_and_is_fine(farthing: Command, desk: Path) -> None:
    folder = desk / "новая папка 新"
    folder.mkdir()
    (folder / "mes titres.txt").write_text(TITLES, "utf-8")
    runs, name = "mes essais é", "première course 2"
    words = ("train", "small.toml", f"data.path={folder}/mes titres.txt", "budget.steps=2")
    answer = farthing(*words, "--runs", runs, "--name", name)
    assert answer.code == 0, answer.err
    assert f"farthing sample '{runs}/{name}'" in answer.out, "commands can be copied as they are"
    assert farthing("sample", name, "--runs", runs, "--tokens", "2").code == 0
    assert farthing("eval", f"{runs}/{name}", "--json").code == 0
    assert name in farthing("runs", "--runs", runs).out


def test_a_name_that_is_taken(farthing: Command, trained: Path) -> None:
    before = sorted(trained.rglob("*"))
    refused(farthing("train", "small.toml", "--name", "done"), "runs/done", "resume")
    assert sorted(trained.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["eval", "done", "--split", "exam"], ["--split exam", "train, validation, test"]),
        (["eval", "done", "--checkpoint", "7"], ["'7'", "6"]),
        (["eval", "done", "--data", "missing.txt"], ["missing.txt"]),
        (["eval", "done", "model.n_layer=3"], ["model.n_layer", "evaluate.*"]),
        (["eval", "done", "evaluate.stride=17"], ["stride"]),
        (["eval", "done", "evaluate.batch_size=0"], ["evaluate.batch_size=0"]),
        (["eval", "dnoe"], ["dnoe", "did you mean done?"]),
        (["sample", "done", "--top-p", "2"], ["top_p=2"]),
        (["sample", "done", "--top-k", "0"], ["top_k=0"]),
        (["sample", "done", "--temperature", "-1"], ["temperature=-1"]),
        (["sample", "done", "--temperature", "nan"], ["temperature=nan"]),
        (["sample", "done", "--tokens", "-1"], ["tokens=-1"]),
        (["sample", "done", "--tokens", "many"], ["--tokens 'many'", "whole number"]),
        (["sample", "done", "--top-p=half"], ["--top-p 'half'", "number"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_looking_at_a_run(farthing: Command, trained: Path, words: list[str], told: list[str]) -> None:
    refused(farthing(*words), *told)


def test_a_checkpoint_from_another_recipe(farthing: Command, trained: Path) -> None:
    run, other = trained / "runs" / "done", trained / "runs" / "other"
    assert farthing("train", "small.toml", "seed=1338", "--name", "other", "--quiet").code == 0
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    refused(farthing("resume", "done", "--quiet"), "runs/done/checkpoints/step-00000006", "another recipe")


def test_a_recipe_that_was_changed_after_the_start(farthing: Command, trained: Path) -> None:
    run = trained / "runs" / "done"
    (run / "result.json").unlink()
    recipe = (run / "recipe.toml").read_text("utf-8")
    (run / "recipe.toml").write_text(recipe.replace("seed = 1337", "seed = 1338", 1), "utf-8")
    refused(farthing("resume", "done", "--quiet"), "runs/done", "recipe")


def test_a_run_without_checkpoints_starts_over(farthing: Command, trained: Path) -> None:
    run = trained / "runs" / "done"
    before = json.loads((run / "result.json").read_text("utf-8"))
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    refused(farthing("sample", "done"), "no valid checkpoint yet", code=4)
    assert farthing("resume", "done", "--quiet").code == 0
    after = json.loads((run / "result.json").read_text("utf-8"))
    assert (after["validation"], after["samples"]) == (before["validation"], before["samples"])


def test_texts_and_tokenizers_that_have_changed(farthing: Command, trained: Path) -> None:
    run = trained / "runs" / "done"
    tokenizer = (run / "tokenizer.json").read_text("utf-8")
    for damaged in (tokenizer.replace('"a"', '"\N{BROKEN BAR}\N{BROKEN BAR}"', 1), tokenizer[:-100], ""):
        assert damaged != tokenizer
        (run / "tokenizer.json").write_text(damaged, "utf-8")
        for verb in ("eval", "sample"):
            refused(farthing(verb, "done"), "done/tokenizer.json", code=3)
    (run / "tokenizer.json").unlink()
    refused(farthing("sample", "done"), "done/tokenizer.json", "No such file", code=3)
    (run / "tokenizer.json").write_text(tokenizer, "utf-8")
    text = (trained / "titles.txt").read_text("utf-8")
    (trained / "titles.txt").write_text(text.replace("Show", "Shew"), "utf-8")
    refused(farthing("eval", "done"), "validation text has changed", code=3)
    (run / "result.json").unlink()
    refused(farthing("resume", "done"), "text has changed", code=3)


def _as_nobody(folder: Path, words: list[str]) -> Answer:
    """The command as a user who may write nothing; as root everything may be written, so root steps down first."""
    program = (
        "import encodings.utf_8_sig, os, sys, farthing.api, farthing.cli\n"
        "if os.getuid() == 0:\n os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "farthing.cli.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    return Answer(done.returncode, done.stdout, done.stderr)


def test_a_folder_that_cannot_be_written(desk: Path) -> None:
    runs = desk / "runs"
    runs.mkdir(mode=0o555)
    for above in [desk, *desk.parents][:3]:
        above.chmod(0o755)
    refused(_as_nobody(desk, ["train", "small.toml"]), "runs", "cannot be written")
    nothing_left(desk)
    runs.chmod(0o755)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with a few kilobytes left; needs the right to mount one."""
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(farthing: Command, desk: Path, full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(farthing("train", "small.toml", "--runs", str(full_disk / "runs")), "disk", "--runs")
    monkeypatch.setenv("FARTHING_CACHE", str(full_disk / "cache"))
    (full_disk / "filling").write_bytes(bytes(60_000))
    refused(farthing("train", "small.toml"), "the disk is full", "FARTHING_CACHE")
    assert not list(full_disk.rglob(".tmp-*"))
    nothing_left(desk)


def test_files_may_not_grow(farthing: Command, desk: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits of a process are a Unix affair")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        answer = farthing("train", "small.toml", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(answer, "File too large")
    nothing_left(desk)
