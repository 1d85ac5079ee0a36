"""export: a run becomes a folder that loads where Farthing is not installed, or one line says why not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cli.small import Answer, Command
from cli.test_contract import only_object
from farthing import api
from farthing.api.publish import exportable
from farthing.rundir import RunDir
from farthing.training import checkpoint as checkpoints

STRANGER = """
import sys
sys.modules["farthing"] = None
sys.addaudithook(lambda event, _: event == "socket.connect" and sys.exit("network"))
from transformers import pipeline
write = pipeline("text-generation", sys.argv[1], trust_remote_code=False)
print(write("Show", max_new_tokens=4, do_sample=False)[0]["generated_text"])
"""


def refused(answer: Answer, says: str, *, code: int = 2) -> None:
    assert answer.code == code, answer.err
    assert answer.err.count("\n") == 1, answer.err
    assert says in answer.err
    assert not Path("out").exists()
    assert not list(Path().glob(".tmp-*"))


def test_a_run_becomes_a_folder_that_a_stranger_loads(farthing: Command, trained: Path) -> None:
    found = only_object(farthing("export", "done", "out", "--json", "--quiet", "--license", "mit"))
    assert (found["run"], found["step"], found["form"], found["dtype"]) == ("done", 6, "ArceeForCausalLM", "fp32")
    assert (found["remote_code"], found["pushed"], found["notes"]) == (False, None, [])
    assert found["proof"]["difference"] <= 1e-4 * max(1.0, found["proof"]["scale"])
    assert found["parameters"] == json.loads((trained / "runs/done/result.json").read_text("utf-8"))["parameters"]
    files = sorted(Path("out").rglob("*"))
    assert [path.name for path in files] == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert found["bytes"] == sum(path.stat().st_size for path in files)
    assert len({path.stat().st_mode for path in files}) == 1, "as readable as whoever made it wants files to be"
    assert str(trained) not in "".join(path.read_text("utf-8") for path in files if path.suffix != ".safetensors")
    written = subprocess.run([sys.executable, "-c", STRANGER, "out"], capture_output=True, text=True, check=False)
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("Show")
    before = {path: path.read_bytes() for path in files}
    again = farthing("export", "done", "out")
    assert again.code == 2
    assert again.err == "error: out: exists already; name a folder that does not, or remove it first\n"
    assert {path: path.read_bytes() for path in files} == before


def test_a_model_without_a_stock_class_says_so_before_and_after(farthing: Command, desk: Path) -> None:
    gated = "model.attention.gate=head"
    (warning,) = [
        line for line in only_object(farthing("plan", "small.toml", gated, "--json"))["warnings"] if "code" in line
    ]
    assert "an output gate in attention" in warning
    assert not only_object(farthing("plan", "small.toml", "--json"))["warnings"]
    api.train("small.toml", [gated], name="gated", quiet=True)
    (desk / "titles.txt").unlink()
    answer = farthing("export", "gated", "out", "--checkpoint", "3")
    assert answer.code == 0, answer.err
    told = " ".join(answer.out.split())
    assert "FarthingForCausalLM, fp32" in told
    assert "step 3 of gated" in told
    assert "needs trust_remote_code=True" in told
    assert (desk / "out" / "modeling_farthing.py").is_file()


def test_averaged_weights_are_what_is_exported(desk: Path) -> None:
    run = api.train("small.toml", ["train.ema=0.9"], name="averaged", quiet=True)
    made = exportable(RunDir(run.path))
    folder = RunDir(run.path).checkpoint(6)
    average, model = load_file(folder / "average.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, average[name]) for name, tensor in made.weights.items())
    assert not all(torch.equal(tensor, model[name]) for name, tensor in made.weights.items())
    assert made.texts
    assert made.texts[0].startswith("Show HN: the ")
    best = exportable(RunDir(run.path), checkpoint="best")
    assert best.step == checkpoints.best_step(RunDir(run.path))


def test_the_export_of_a_run_that_is_not_finished_says_so(farthing: Command, trained: Path) -> None:
    half = RunDir(trained / "runs" / "half")
    shutil.copytree(trained / "runs" / "done", half.path)
    half.result.unlink()
    shutil.rmtree(half.checkpoint(6))
    (note,) = only_object(farthing("export", "half", "out", "--json", "--quiet"))["notes"]
    assert note == "half is not finished: these are its weights after step 3 of 6"
    assert note in Path("out/README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing", "out"], "nothing: no such run"),
        (["done", "out", "--format", "onnx"], "--format onnx: should be one of huggingface, llmc, gguf"),
        (["done", "out", "--dtype", "fp8"], "--dtype fp8: should be one of fp32, bf16"),
        (["done", "out", "--checkpoint", "4"], "no checkpoint '4'; there are: 3, 6"),
        (["done", "out", "--license", "mitt"], "no licence that the hub knows; did you mean mit?"),
        (["done", "out", "--push", "a/b/c"], "should be NAME or OWNER/NAME"),
        (["done", "out", "--push", "a/b", "--format", "gguf"], "only --format huggingface goes to the hub"),
    ],
)
def test_a_wrong_request_is_one_line(words: list[str], says: str, farthing: Command, trained: Path) -> None:
    refused(farthing("export", *words), says)


def test_damage_is_one_line(farthing: Command, trained: Path) -> None:
    run = RunDir(trained / "runs" / "done")
    for step in (3, 6):
        file = run.checkpoint(step) / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(bytes(content))
    refused(farthing("export", "done", "out"), "model.safetensors does not match its checksum", code=4)
    for step in (3, 6):
        checkpoints.discard(run.checkpoint(step))
    refused(farthing("export", "done", "out"), "no valid checkpoint yet", code=4)
    tokenizer = json.loads(run.tokenizer.read_text("utf-8"))
    run.tokenizer.write_text(json.dumps(tokenizer), "utf-8")
    refused(farthing("export", "done", "out"), "is not the run's own", code=3)
