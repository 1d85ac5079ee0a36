"""An imported model is a run: it writes, is scored, listed and trained on from; folders open without importing."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.small import RECIPE, TITLES, Command
from export.strangers import TEXT, ours, save_ours, section
from farthing import api, assemble, session
from farthing.api.continuing import with_start
from farthing.api.importing import import_huggingface
from farthing.api.recipes import resolve
from farthing.errors import CheckpointError, UserError
from farthing.rundir import RunDir
from farthing.training.checkpoint import weights

GPT2 = {
    "bias": True,
    "norm": {"kind": "layernorm"},
    "position": {"kind": "learned"},
    "mlp": {"kind": "gelu", "approximate": "tanh"},
}


@pytest.fixture
def farthing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("COLUMNS", "120")
    return Command(capsys)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text, a recipe and a stranger's model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "titles.txt").write_text(TITLES, "utf-8")
    (tmp_path / "small.toml").write_text(RECIPE, "utf-8")
    (tmp_path / "held.txt").write_text(TEXT * 3, "utf-8")
    save_ours(ours(section(**GPT2)), tmp_path / "model")
    return tmp_path


def test_every_verb_works_on_what_was_imported(desk: Path, farthing: Command) -> None:
    done = farthing("import", "huggingface", "model", "--name", "theirs", "--json")
    answer = json.loads(done.out)
    assert (done.code, answer["run"], answer["kind"]) == (0, "runs/theirs", "gpt2")
    assert answer["parameters"] == sum(values.numel() for values in ours(section(**GPT2)).parameters())

    scored = json.loads(farthing("eval", "theirs", "--data", "held.txt", "--json").out)
    straight = json.loads(farthing("eval", "model", "--data", "held.txt", "--json").out)
    assert scored["bits_per_byte"] == straight["bits_per_byte"] > 1

    best = json.loads(farthing("eval", "theirs", "--data", "held.txt", "--checkpoint", "best", "--json").out)
    assert best["bits_per_byte"] == scored["bits_per_byte"]

    written = [farthing("sample", name, "The", "--tokens", "6", "--seed", "4").out for name in ("theirs", "model")]
    assert written[0] == written[1] and written[0].startswith("The") and len(written[0]) > 4

    (row,) = json.loads(farthing("runs", "--json").out)
    assert (row["run"], row["status"], row["steps"], row["bits_per_byte"]) == ("theirs", "imported", 0, None)
    before = (RunDir(desk / "runs/theirs").result).read_bytes()
    assert farthing("resume", "theirs").code == 0
    assert RunDir(desk / "runs/theirs").result.read_bytes() == before


def test_what_was_imported_is_told(desk: Path, farthing: Command) -> None:
    done = farthing("import", "huggingface", "model")
    assert "runs/model-1" in done.out and "model.init.kind=run" in done.out and done.err == ""
    assert farthing("import", "huggingface", "model", "--quiet").out == ""
    again = farthing("import", "huggingface", "model", "--name", "model-2")
    assert again.code == 2 and "exists" in again.err
    assert farthing("import", "huggingface", "held.txt").err.startswith("error: held.txt: is a file")


def test_a_model_from_elsewhere_brings_no_text(desk: Path, farthing: Command) -> None:
    import_huggingface("model", name="theirs")
    for name in ("theirs", "model"):
        refused = farthing("eval", name)
        assert refused.code == 2 and "--data FILE" in refused.err
    refused = farthing("eval", "theirs", "--data", "held.txt", "model.n_layer=3")
    assert refused.code == 2 and "evaluate.*" in refused.err
    assert "holds one model" in farthing("sample", "model", "--checkpoint", "7").err


def test_a_table_holds_it_beside_a_run_on_the_same_text(desk: Path, farthing: Command) -> None:
    api.train("small.toml", name="mine", quiet=True)
    import_huggingface("model", name="bare")
    told = farthing("import", "huggingface", "model", "--name", "theirs", "--text-of", "mine")
    scored = api.open_run("theirs")
    assert f"{scored.validation['bits_per_byte']:.4f}" in told.out
    mine = api.open_run("mine").validation
    assert (scored.validation["bytes"], scored.validation["fingerprint"]) == (mine["bytes"], mine["fingerprint"])
    assert scored.evaluate(references=False).validation["bits_per_byte"] == scored.validation["bits_per_byte"]
    rows = {row["run"]: row for row in json.loads(farthing("runs", "--json").out)}
    assert (
        rows["theirs"]["bits_per_byte"] == scored.validation["bits_per_byte"] and rows["bare"]["bits_per_byte"] is None
    )
    table = farthing("compare", "mine", "theirs", "bare")
    assert table.code == 0 and f"{scored.validation['bits_per_byte']:.4f}" in table.out
    assert "theirs differs from mine: " in table.out and "model." in table.out
    assert not any(path in table.out for path in ("optimizer.", "train.", "tokenizer.path"))
    assert "bare: imported without a score" in table.out + table.err
    refused = farthing("import", "huggingface", "model", "--text-of", "bare")
    assert refused.code == 2 and "has no text of its own" in refused.err
    assert farthing("eval", "theirs", "--split", "train").code == 2


def test_how_a_file_is_cut_can_be_said_where_no_recipe_does(desk: Path) -> None:
    lines = [json.dumps({"body": text}) for text in ("The quick brown fox", "jumps over the lazy dog")]
    (desk / "held.jsonl").write_text("\n".join(lines), "utf-8")
    opened = api.open_model("model")
    assert opened.title == "model"
    found = opened.evaluate("held.jsonl", ["data.kind=jsonl", "data.field=body"], references=False).validation
    assert found["bytes"] == 42
    same = opened.evaluate("held.jsonl", {"data.kind": "jsonl", "data.field": "body"}, references=False).validation
    assert same["bits_per_byte"] == found["bits_per_byte"]


def test_a_run_opens_as_a_model(desk: Path) -> None:
    run = api.train("small.toml", name="mine", quiet=True)
    opened = api.open_model("mine")
    assert (opened.name, opened.step, opened.context_length) == ("mine", 6, 16)
    assert opened.title == "mine, step 6"
    assert opened.evaluate(references=False).validation == run.evaluate(references=False).validation
    assert opened.sample("Show", tokens=5, seed=2) == run.sample("Show", tokens=5, seed=2)
    with pytest.raises(UserError, match="no such run"):
        api.open_model("yours")
    with pytest.raises(UserError, match=r"is not a run folder .* nor one of a model"):
        api.open_model(desk / "runs")


ON = ["model.init.kind=run", "model.init.run=mine"]


@pytest.fixture
def source(desk: Path) -> RunDir:
    return RunDir(api.train("small.toml", name="mine", quiet=True).path)


def test_a_run_starts_from_the_weights_of_another(source: RunDir) -> None:
    recipe = with_start(resolve("small.toml", [*ON, "seed=99"]), Path("runs"))
    theirs, step = weights(source, "last")
    assert step == 6
    machine = session.prepare_machine(recipe, "cpu")
    settings = session.read_plan(source).settings
    stepper = assemble.build_stepper(recipe, settings, 257, machine.torch_device)
    for name, values in stepper.model.state_dict().items():
        torch.testing.assert_close(values, theirs[name], atol=0, rtol=0)

    made = api.train("small.toml", [*ON, "seed=99", "budget.steps=4"], name="on", quiet=True)
    first = next(one["loss"] for one in made.events if one["kind"] == "step")
    fresh = next(one["loss"] for one in api.open_run("mine").events if one["kind"] == "step")
    assert first < fresh
    init = made.recipe.model.init
    assert (init.kind, init.checkpoint, len(str(init.weights))) == ("run", 6, 64)


def test_seeds_of_one_start_may_be_trained_again(source: RunDir) -> None:
    words = [*ON, "budget.steps=2", "checkpoint.every=end"]
    first, again = (api.train_seeds("small.toml", words, seeds=[1, 2], quiet=True) for _ in range(2))
    assert first == again


def test_training_on_what_was_imported_takes_its_tokenizer(desk: Path) -> None:
    imported = import_huggingface("model", name="theirs").run
    words = ["model.init.kind=run", "model.init.run=theirs", "data.kind=text", "data.path=titles.txt"]
    words += ["data.documents=line", "budget.epochs=none", "budget.steps=2", "train.batch_size=2", "sample.tokens=2"]
    # bpe would be trained anew on the new text, and the weights would know none of its tokens.
    made = api.train("runs/theirs/recipe.toml", [*words, "tokenizer.kind=bpe"], name="on", quiet=True)
    assert made.tokenizer.fingerprint == imported.tokenizer.fingerprint
    assert math.isfinite(made.validation["bits_per_byte"])


def test_it_resumes_exactly_when_the_source_is_gone(source: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*ON, "budget.steps=6", "checkpoint.every=3"]
    whole = api.train("small.toml", words, name="whole", quiet=True)
    folder = RunDir(whole.path)
    # As if it had been killed after its first checkpoint.
    folder.result.unlink()
    shutil.rmtree(folder.checkpoint(6))
    expected, _ = weights(RunDir(api.train("small.toml", words, name="again", quiet=True).path), "last")
    shutil.rmtree(source.path)
    resumed = api.resume("whole", quiet=True)
    found, step = weights(RunDir(resumed.path), "last")
    assert step == 6
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], atol=0, rtol=0)


def test_it_starts_from_no_other_weights_than_it_began_with(source: RunDir) -> None:
    words = [*ON, "budget.steps=3"]
    folder = RunDir(api.train("small.toml", words, name="on", quiet=True).path)
    # Nothing was saved, and meanwhile there is another run of that name.
    folder.result.unlink()
    shutil.rmtree(folder.checkpoints)
    shutil.rmtree(source.path)
    api.train("small.toml", ["seed=2"], name="mine", quiet=True)
    with pytest.raises(CheckpointError, match="has changed since the run began"):
        api.resume("on", quiet=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.n_layer=3", "model.tie_embeddings=false"], "model.n_layer is 1 there, 3 here; model.tie_embeddings"),
        (["model.norm.kind=layernorm"], "model.norm.kind is rmsnorm there, layernorm here"),
        (["model.init.run=yours"], "yours: no such run"),
        (["model.init.checkpoint=5"], "no checkpoint '5'; there are: 3, 6"),
        (["model.init.weights=abc"], "model.init.weights=abc"),
        (["tokenizer.kind=file", "tokenizer.path=other.json"], "is not the tokenizer of"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(
    words: list[str], said: str, source: RunDir, farthing: Command
) -> None:
    other = json.loads(source.tokenizer.read_text("utf-8"))
    other["pre_tokenizer"]["use_regex"] = False
    Path("other.json").write_text(json.dumps(other), "utf-8")
    for verb in ("plan", "train"):
        refused = farthing(verb, "small.toml", *ON, *words)
        assert (refused.code, refused.err.count("\n")) == (2, 1) and said in refused.err
    assert [run.name for run in api.runs()] == ["mine"]


@pytest.mark.parametrize(
    "words", [["model.dropout=0.1"], ["model.context_length=32"], ["model.attention.scope=document"]]
)
def test_what_weights_do_not_depend_on_may_differ(words: list[str], source: RunDir) -> None:
    assert with_start(resolve("small.toml", [*ON, *words]), Path("runs")).model.init.kind == "run"


def test_at_most_ten_differences_are_listed(source: RunDir) -> None:
    changes: dict[str, Any] = {
        "n_layer": 2, "n_head": 4, "d_model": 32, "tie_embeddings": False, "bias": True, "layer_scale": 0.1,
        "logit_softcap": 2.0, "norm.kind": "layernorm", "norm.eps": 1e-3, "mlp.ratio": 3.0, "position.base": 500.0,
        "attention.gate": "head",
    }  # fmt: skip
    words = {"model.init.kind": "run", "model.init.run": "mine"} | {f"model.{key}": one for key, one in changes.items()}
    with pytest.raises(UserError, match="and 2 more") as refused:
        with_start(resolve("small.toml", words), Path("runs"))
    assert str(refused.value).count(" there, ") == 10
