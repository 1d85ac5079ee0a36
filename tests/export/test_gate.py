"""What is exported is loaded back by others before it gets its name, and is not there if it is not the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.small import exportable
from farthing.errors import FarthingError, UserError
from farthing.export import Dtype, Exportable, Writer, Written, export, huggingface
from farthing.export.gate import check, excerpts, windows
from farthing.recipe.model import Model

STOCK = Model.model_validate({"n_layer": 1, "n_head": 2, "d_model": 16, "context_length": 32, "bias": True})
OWN = Model.model_validate({**STOCK.model_dump(), "attention": {"gate": "head"}, "logit_softcap": 3.0})
SCRIPT = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from farthing.export import Written, export
from farthing.storage import write_text

made = SimpleNamespace(
    weights={"embed.weight": np.zeros((3, 2))}, vocab_size=3, tokenizer=SimpleNamespace(vocab_size=3)
)

def write(folder, made, *, dtype):
    for name in "abc":
        write_text(folder / name, name)
    return Written("letters")

export(Path(sys.argv[1]), made, write, dtype="fp32")
"""


@pytest.mark.parametrize(("section", "dtype"), [(STOCK, "bf16"), (OWN, "fp32")], ids=["stock", "own"])
def test_an_export_is_compared_in_fp32_and_where_it_is_rounded_once_more(
    section: Model, dtype: Dtype, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    written = export(target, exportable(section), huggingface.write, dtype=dtype)
    assert written.proof["difference"] <= 1e-4 * max(1.0, written.proof["scale"])
    if dtype == "bf16":
        assert written.proof["difference"] < written.proof["rounded_difference"]
    assert written.proof["tokens"] >= 64
    assert written.proof["texts"] >= 10
    code = {"modeling_farthing.py"} if section is OWN else set()
    assert {path.name for path in target.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", *code,
    }  # fmt: skip
    assert written.remote_code == bool(code)
    assert any("trust_remote_code" in note for note in written.notes) == bool(code)
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    assert {tensor.dtype for tensor in load_file(target / "model.safetensors").values()} == {kind}
    config = json.loads((target / "config.json").read_text("utf-8"))
    assert config["dtype"] == str(kind).removeprefix("torch.")
    assert ("auto_map" in config) == bool(code)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def wrong_weights(folder: Path, made: Exportable, *, dtype: Dtype) -> Written:
    """A writer with a mistake that no loading finds."""
    huggingface.lay_out(folder, made, huggingface.stock_class(made.section))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("k_proj.weight"))
    tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, file, {"format": "pt"})
    return Written("ArceeForCausalLM", proof=check(folder, made, form="ArceeForCausalLM"))


def wrong_tokens(folder: Path, made: Exportable, *, dtype: Dtype) -> Written:
    """A writer that leaves out what keeps special tokens apart from text."""
    huggingface.lay_out(folder, made, huggingface.stock_class(made.section))
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**settings, "split_special_tokens": False}), "utf-8")
    return Written("ArceeForCausalLM", proof=check(folder, made, form="ArceeForCausalLM"))


def strange_code(folder: Path, made: Exportable, *, dtype: Dtype) -> Written:
    """A writer whose code is not the one that is shipped."""
    huggingface.lay_out(folder, made, huggingface.stock_class(made.section))
    (folder / "modeling_farthing.py").write_text("raise SystemExit('it ran')", "utf-8")
    return Written("FarthingForCausalLM", proof=check(folder, made, form="FarthingForCausalLM"))


@pytest.mark.parametrize(
    ("write", "section", "says"),
    [
        (wrong_weights, STOCK, "gives logits that differ by"),
        (wrong_tokens, STOCK, "gives other token ids than the run"),
        (strange_code, OWN, "does not load"),
    ],
)
def test_a_folder_that_is_not_the_same_is_not_there(write: Writer, section: Model, says: str, tmp_path: Path) -> None:
    with pytest.raises(FarthingError, match=says) as told:
        export(tmp_path / "out", exportable(section), write, dtype="fp32")
    assert "\n" not in str(told.value)
    assert "it ran" not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    made = exportable(STOCK)
    for target in (tmp_path / "file", tmp_path / "folder", tmp_path / "link"):
        if target.name == "file":
            target.write_text("mine")
        elif target.name == "folder":
            target.mkdir()
        else:
            target.symlink_to(tmp_path / "nowhere")
        with pytest.raises(UserError, match="exists already"):
            export(target, made, huggingface.write, dtype="fp32")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]
    with pytest.raises(UserError, match="cannot be written"):
        export(tmp_path / "file" / "out", made, huggingface.write, dtype="fp32")


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    made = exportable(STOCK)
    cut = {**made.weights, "embed.weight": made.weights["embed.weight"][:200]}
    with pytest.raises(UserError, match="tokenizer has 257 tokens, the weights' embedding 200 rows"):
        export(tmp_path / "out", replace(made, weights=cut, vocab_size=200), huggingface.write, dtype="fp32")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "point", [*(f"storage.before_rename:{k}" for k in (1, 2, 3)), "storage.before_folder_rename", ""]
)
def test_killed_at_any_point_the_folder_is_complete_or_absent(point: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    environment = {**os.environ, "FARTHING_CRASHPOINT": point}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(target)], env=environment, capture_output=True, check=False
    )
    assert done.returncode == (-signal.SIGKILL if point else 0), done.stderr
    assert target.exists() == (not point)
    # What a killed one left behind is hidden and stands in nobody's way.
    environment.pop("FARTHING_CRASHPOINT")
    if point:
        subprocess.run([sys.executable, "-c", SCRIPT, str(target)], env=environment, check=True)
    assert sorted(path.name for path in target.iterdir()) == ["a", "b", "c"]


def test_windows_hold_real_text_and_unusual_text_within_the_context() -> None:
    section = Model.model_validate({**STOCK.model_dump(), "context_length": 24})
    made = exportable(section)
    found = windows(made)
    assert all(1 <= len(window) <= 24 for window in found)
    assert any(257 - 1 in window[1:] for window in found), "across documents"
    apart = replace(made, section=Model.model_validate({**section.model_dump(), "attention": {"scope": "document"}}))
    assert not any(256 in window[1:] for window in windows(apart)), "one document at a time"
    assert windows(replace(made, texts=()))


def test_excerpts_are_bounded() -> None:
    assert excerpts([]) == []
    assert excerpts(["a", "b"]) == ["a", "b"]
    endless = excerpts("x" * 30_000 for _ in range(10**9))
    assert sum(map(len, endless)) == 100_000
