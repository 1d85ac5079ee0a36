"""The list finds what must not be published, point by point, and says what to do."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from export.finished import train
from farthing.api.checking import publish_check, recorded
from farthing.api.publish import exportable
from farthing.errors import UserError
from farthing.export import huggingface, loading
from farthing.export.card import Stated, write_card
from farthing.export.checklist import Point, Recorded, check, passed, score_to_reproduce, write_text_to_score
from farthing.export.leaks import Private
from farthing.export.provenance import provenance
from farthing.rundir import RunDir
from farthing.storage import read_json

CANARY = "Zx9Qw3Er7Ty1Ui5Op0As"
NAMES = ["licence", "model card", "secrets and local paths", "files", "weights", "scores"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train(tmp_path_factory.mktemp("work"))


def laid_out(run: RunDir, folder: Path) -> Path:
    """An export of the run without the gate, which has tests of its own and takes its time."""
    folder.mkdir()
    made = exportable(run)
    huggingface.lay_out(folder, made, huggingface.stock_class(made.section))
    write_card(folder, provenance(run, step=made.step), Stated(license="mit"))
    return folder


@pytest.fixture(scope="module")
def exported(run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laid_out(run, tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "model"))


@pytest.fixture
def unloaded(folder: Path) -> Path:
    """The same without weights, so that what needs none is looked at without loading anything."""
    (folder / "model.safetensors").unlink()
    return folder


def point(folder: Path, name: str, private: Private | None = None) -> Point:
    (found,) = [one for one in check(folder, private=private) if one.name == name]
    assert "\n" not in found.told + found.todo
    return found


def test_a_fresh_export_passes_with_its_run(folder: Path, run: RunDir) -> None:
    points = publish_check(folder, run=run.path)
    assert [one.name for one in points] == NAMES
    assert passed(points), points
    (scores,) = [one for one in points if one.name == "scores"]
    assert f"{read_json(run.result)['validation']['bits_per_byte']:.6f} in the run" in scores.told


def recorded_by(run: RunDir) -> Recorded:
    found = recorded(run)
    assert isinstance(found, Recorded), found
    return found


def test_without_its_run_a_score_is_not_checked_and_why_is_said(exported: Path, run: RunDir, tmp_path: Path) -> None:
    card, ours = ModelCard.load(exported / "README.md"), recorded_by(run)
    assert score_to_reproduce(card, ours) == (read_json(run.result)["validation"], "")
    assert score_to_reproduce(card, "the run is not at hand") == ({}, "the run is not at hand")
    other = recorded_by(train(tmp_path, {"seed": 7}, name="other"))
    _, why = score_to_reproduce(card, other)
    assert "does not say that these weights are from that run" in why
    assert score_to_reproduce(None, ours)[1] == why
    assert "no score of its checkpoint after step 4" in score_to_reproduce(card, replace(ours, validation={}))[1]
    changed = replace(ours, split=replace(ours.split, fingerprint="0" * 64))
    assert "text has changed" in score_to_reproduce(card, changed)[1]


def test_a_text_that_is_gone_is_said(run: RunDir) -> None:
    text = run.path.parents[1] / "story.txt"
    moved = text.rename(text.with_suffix(".moved"))
    try:
        why = recorded(run)
    finally:
        moved.rename(text)
    assert isinstance(why, str) and "cannot be read any more" in why and "\n" not in why


def test_a_run_that_was_never_scored_is_said(run: RunDir, tmp_path: Path) -> None:
    bare = RunDir(Path(shutil.copytree(run.path, tmp_path / "bare")))
    bare.result.unlink()
    bare.events.write_text("", "utf-8")
    assert recorded(bare) == "the run was never scored"


@pytest.mark.parametrize(
    "changes",
    [
        {"model.attention.scope": "document"},
        {"model.attention.scope": "document", "model.position.kind": "learned", "model.norm.kind": "layernorm"},
        {"evaluate.stride": 5},
    ],
    ids=["documents", "documents with learned positions", "stride"],
)
def test_every_way_of_scoring_is_repeated(changes: dict[str, object], tmp_path: Path) -> None:
    other = train(tmp_path, changes, name="other")
    found = recorded_by(other)
    model, _ = loading.load(laid_out(other, tmp_path / "out"))
    text = tmp_path / "text.safetensors"
    write_text_to_score(text, found.split, found.validation[4], document=found.document)
    bits = loading.score(model, text) / math.log(2) / found.split.bytes
    assert bits == pytest.approx(read_json(other.result)["validation"]["bits_per_byte"], rel=1e-5)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    assert loading.score(model, text) / math.log(2) / found.split.bytes != pytest.approx(bits, rel=1e-4)


def test_a_folder_with_code_of_its_own_passes_and_its_own_copy_is_not_run(tmp_path: Path) -> None:
    other = train(tmp_path, {"model.logit_softcap": 5.0}, name="other")
    points = publish_check(laid_out(other, tmp_path / "out"), run=other.path)
    assert passed(points), points
    assert "FarthingForCausalLM" in points[-2].told and "which is Farthing's" in points[-3].told


def test_weights_that_were_not_scored_fail(folder: Path, run: RunDir) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if "embed" in name)
    save_file({**tensors, name: tensors[name] * 1.5}, folder / "model.safetensors", {"format": "pt"})
    *_, weights, scores = publish_check(folder, run=run.path)
    assert (weights.status, scores.status) == ("pass", "fail")
    assert "apart" in scores.told


def test_a_licence_must_be_stated(unloaded: Path) -> None:
    card = unloaded / "README.md"
    text = card.read_text("utf-8")
    assert point(unloaded, "licence") == Point("licence", "pass", "mit")
    card.write_text(text.replace("license: mit\n", ""), "utf-8")
    missing = point(unloaded, "licence")
    assert missing.status == "fail" and "--license" in missing.todo
    card.write_text(text.replace("license: mit\n", "license: mitt\n"), "utf-8")
    assert point(unloaded, "licence").status == "fail"
    card.write_text(text.replace("license: mit\n", "license: other\nlicense_name: my own\n"), "utf-8")
    assert point(unloaded, "licence") == Point("licence", "pass", "my own")


def test_a_card_must_be_there_and_whole(unloaded: Path) -> None:
    card = unloaded / "README.md"
    text = card.read_text("utf-8")
    assert "12 sections, 3 scores" in point(unloaded, "model card").told
    without = text.replace("\n## Data\n", "\n## Dates\n").replace("library_name: transformers\n", "")
    card.write_text(without, "utf-8")
    assert point(unloaded, "model card").told == 'it lacks library_name, "## Data"'
    card.write_text(without + "\n````text\n## Data\n\nforged\n````\n", "utf-8")
    assert '"## Data"' in point(unloaded, "model card").told, "a heading in a code block is none"
    for damaged in ("---\n[: }\n---\n", "---\n- a list\n---\n", "---\nmodel-index:\n- results: 7\n---\n"):
        card.write_text(damaged, "utf-8")
        assert "cannot be read" in point(unloaded, "model card").told
    card.unlink()
    assert point(unloaded, "model card").told == "there is no README.md"


LEAKS: dict[str, Callable[[Path], object]] = {
    "card": lambda folder: _append(folder / "README.md", f"hf\\_{CANARY}"),
    "config": lambda folder: _append_json(folder / "config.json", "_name_or_path", "/home/anna/runs/first"),
    "escaped": lambda folder: (folder / "note.json").write_text(f'"\\u0068f_{CANARY}"', "utf-8"),
    "tokenizer": lambda folder: _append_json(folder / "tokenizer.json", "made_with", f"sk-{CANARY}"),
    "environment": lambda folder: (folder / "notes.txt").write_text("the word is sesame-open-now", "utf-8"),
    "header": lambda folder: save_file(
        {"x": torch.zeros(1)}, folder / "more.safetensors", {"from": f"https://anna:{CANARY}@example.org"}
    ),
    "other bytes": lambda folder: (folder / "logo.png").write_bytes(b"\x89PNG\xff ghp_" + CANARY.encode()),
    "name": lambda folder: (folder / f"hf_{CANARY}.txt").write_text("", "utf-8"),
    "inner folder": lambda folder: _inner(folder, r"C:\Users\anna\data.txt"),
}


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text("utf-8") + text, "utf-8")


def _append_json(path: Path, key: str, value: str) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), key: value}), "utf-8")


def _inner(folder: Path, text: str) -> None:
    (folder / "extra").mkdir()
    (folder / "extra" / "info.txt").write_text(text, "utf-8")


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_anywhere_is_found_and_not_repeated(leak: str, unloaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOOR_PASSWORD", "sesame-open-now")
    private = Private.here([unloaded])
    assert point(unloaded, "secrets and local paths", private).status == "pass"
    LEAKS[leak](unloaded)
    found = point(unloaded, "secrets and local paths", private)
    assert found.status == "fail"
    assert CANARY not in found.told + found.todo or leak == "name"
    assert "sesame-open-now" not in found.told


UNWANTED: dict[str, Callable[[Path], object]] = {
    "pickle": lambda folder: (folder / "extra.dat").write_bytes(pickle.dumps({"a": 1})),
    "torch.save": lambda folder: torch.save({"a": torch.zeros(1)}, folder / "weights"),
    "bin": lambda folder: (folder / "pytorch_model.bin").write_bytes(b""),
    "python": lambda folder: (folder / "hello.py").write_text("print('hello')", "utf-8"),
    "code of another's": lambda folder: (folder / "modeling_farthing.py").write_text("import os", "utf-8"),
    "script": lambda folder: (folder / "run").write_text("#!/bin/sh\n", "utf-8"),
    "program": lambda folder: (folder / "prog").write_bytes(b"\x7fELF\x02"),
    "marked": lambda folder: (folder / "config.json").chmod(0o755),
    "hidden": lambda folder: (folder / ".env").write_text("", "utf-8"),
    "link": lambda folder: (folder / "link.txt").symlink_to("/etc/hostname"),
    "broken link": lambda folder: (folder / "link.txt").symlink_to("nowhere"),
    "zip": lambda folder: zipfile.ZipFile(folder / "more.data", "w").writestr("a", "b"),
}


@pytest.mark.parametrize("kind", UNWANTED)
def test_what_could_run_is_found_and_then_nothing_is_loaded(kind: str, folder: Path) -> None:
    UNWANTED[kind](folder)
    points = {one.name: one for one in check(folder)}
    assert points["files"].status == "fail", points["files"]
    assert points["weights"].status == points["scores"].status == "not checked"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-10]), "damaged"),
        (lambda file: file.write_bytes(b""), "too few"),
        (lambda file: file.unlink(), "no model.safetensors"),
        (lambda file: save_file({"x": torch.tensor([math.nan])}, file), "not finite"),
    ],
)
def test_damaged_weights_are_found_before_they_are_loaded(
    damage: Callable[[Path], object], says: str, folder: Path
) -> None:
    damage(folder / "model.safetensors")
    *_, weights, scores = check(folder)
    assert weights.status == "fail" and says in weights.told
    assert scores.status == "not checked"


def test_weights_that_do_not_fit_the_class_are_found(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in tensors if "q_proj" in name)]
    save_file({**tensors, "stranger": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    *_, weights, _ = check(folder)
    assert weights.status == "fail"
    assert "stranger" in weights.told or "q_proj" in weights.told


def test_a_folder_that_does_not_load_is_one_line(folder: Path) -> None:
    _append_json(folder / "config.json", "model_type", "no-such-model")
    *_, weights, scores = publish_check(folder)
    assert (weights.status, scores.status) == ("fail", "not checked")
    assert "does not load" in weights.told


@pytest.mark.parametrize("what", ["", "missing"])
def test_what_is_no_export_is_refused(what: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder" if what else "no exported model"):
        check(tmp_path / what)
