"""Everything wrong that a person can hand the command, and what it answers: an exit code and one line.

    python tests/faults/bad_inputs.py            the table
    python tests/faults/bad_inputs.py --write    the same into benchmarks/results/bad_inputs.md

Each input meets a desk of its own: a text, recipes, a finished run, a model from elsewhere. It is answered as promised if
the exit code is the documented one, standard output is empty, standard error is one legible line that names what is
wrong, and not one file on the desk has been made, changed or taken away.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from cli.small import RECIPE, TITLES, Answer  # noqa: E402
from cli.test_bad_input import FLAGS, SETTINGS, litter  # noqa: E402
from export.strangers import ours, save_ours, section  # noqa: E402
from farthing import api  # noqa: E402
from farthing.cli import main as command  # noqa: E402
from farthing.sinks.legible import legible  # noqa: E402

Damage = Callable[[Path], object]
LONGEST = 2_100
"""characters of a line"""


@dataclass(frozen=True)
class Bad:
    """One input.

    Args:
        kind: what is wrong with it.
        words: the command line.
        told: what the line must name.
        code: the exit code.
        damage: done to the desk before.
    """

    kind: str
    words: tuple[str, ...]
    told: tuple[str, ...]
    code: int = 2
    damage: Damage = lambda desk: None


def desk(place: Path) -> Path:
    """What every input is answered from; the working folder must be `place`."""
    (place / "titles.txt").write_text(TITLES, "utf-8")
    (place / "small.toml").write_text(RECIPE, "utf-8")
    litter(place)
    save_ours(ours(section(mlp={"kind": "swiglu"}, n_layer=1)), place / "model")
    (place / "questions.jsonl").write_text('{"query": "q", "choices": ["a", "b"], "gold": 1}\n', "utf-8")
    api.train("small.toml", name="done", quiet=True)
    receipt = place / "runs" / "done" / "receipt.json"
    # Each input is answered in a copy of this folder, which the run takes for its own.
    receipt.write_text(json.dumps({**json.loads(receipt.read_text("utf-8")), "directory": "."}), "utf-8")
    return place


def answered(place: Path, bad: Bad, copy: Path) -> tuple[Answer, list[str]]:
    """What the command says, in this process, to one input in a copy of the desk; and what was not as promised."""
    shutil.copytree(place, copy, symlinks=True)
    bad.damage(copy)
    before, here = _everything(copy), Path.cwd()
    out, err = io.StringIO(), io.StringIO()
    os.chdir(copy)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            command(list(bad.words))
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os.chdir(here)
    answer = Answer(code, out.getvalue(), err.getvalue())
    return answer, list(_wrong(bad, answer, before, _everything(copy)))


def _wrong(bad: Bad, answer: Answer, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    line = answer.err
    if answer.code != bad.code:
        yield f"exit code {answer.code}, not {bad.code}"
    if answer.out:
        yield f"says on standard output: {answer.out[:80]!r}"
    if not line.startswith("error: ") or line.count("\n") != 1 or not line.endswith("\n"):
        yield f"not one line: {line[:300]!r}"
    if legible(line.strip()) != line.strip() or len(line) > LONGEST:
        yield "the line is not legible"
    yield from (f"does not name {word!r}: {line.strip()}" for word in bad.told if word not in line)
    yield from (f"{what} {path}" for path in sorted(before.keys() | after.keys())
                if (what := _change(before.get(path), after.get(path))))  # fmt: skip


def _everything(folder: Path) -> dict[str, Any]:
    found = {}
    for path in folder.rglob("*"):
        if path.name == "run.lock":
            continue  # says who held the run last
        facts = path.lstat()
        found[str(path.relative_to(folder))] = (facts.st_mode, facts.st_size, path.is_file() and facts.st_mtime_ns)
    return found


def _change(was: Any, is_now: Any) -> str:
    return "" if was == is_now else "made" if was is None else "took away" if is_now is None else "changed"


def in_run(name: str, content: str | bytes | Callable[[bytes], bytes], *, unfinished: bool = False) -> Damage:
    """Another content for a file of the finished run."""

    def damage(place: Path) -> None:
        file = place / "runs" / "done" / name
        if unfinished:
            (place / "runs" / "done" / "result.json").unlink()
        new = content(file.read_bytes()) if callable(content) else content
        file.write_bytes(new.encode() if isinstance(new, str) else new)

    return damage


def beside(name: str, content: str | bytes) -> Damage:
    """A file on the desk."""

    def damage(place: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def table_changed(name: str, **changes: Any) -> Damage:
    """Other values in a JSON file."""

    def damage(place: Path) -> None:
        table = json.loads((place / name).read_bytes())
        (place / name).write_text(json.dumps({**table, **changes}), "utf-8")

    return damage


def several(*damages: Damage) -> Damage:
    """One after the other."""
    return lambda place: [damage(place) for damage in damages]


def linked(name: str, target: str) -> Damage:
    """A symbolic link instead of a file."""

    def damage(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        (place / name).symlink_to(target)

    return damage


def piped(name: str) -> Damage:
    """A named pipe that nobody writes to."""
    return lambda place: os.mkfifo(place / name)


def forged_header(length: int) -> Damage:
    """A safetensors file that says so of its header."""

    def damage(place: Path) -> None:
        file = place / "model" / "model.safetensors"
        file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])

    return damage


def all_checkpoints(change: Callable[[Path], object]) -> Damage:
    """The same to each checkpoint of the run, which is not finished."""

    def damage(place: Path) -> None:
        (place / "runs" / "done" / "result.json").unlink()
        for folder in (place / "runs" / "done" / "checkpoints").iterdir():
            change(folder)

    return damage


def array(dtype: str, shape: str) -> bytes:
    """The start of a .npy file that says so."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _pickled(place: Path) -> None:
    (place / "model" / "model.safetensors").unlink()
    (place / "model" / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n(S'id'\ntR.")


QUIET = ("--quiet",)
SEARCH = 'recipe = "small.toml"\n[space]\n"optimizer.lr" = {{ kind = "float", low = {low}, high = 0.1 }}\n[budget]\ntrials = 2\n'
STEP = "runs/done/checkpoints/step-00000006"
RECIPES = (
    Bad(
        "recipe: a setting given twice",
        ("train", "r.toml"),
        ("r.toml", "line"),
        damage=beside("r.toml", "seed = 1\nseed = 2\n"),
    ),
    Bad(
        "recipe: a megabyte and more",
        ("train", "r.toml"),
        ("r.toml", "at most"),
        damage=beside("r.toml", "#" * 1_100_000),
    ),
    Bad("recipe: not UTF-8", ("train", "r.toml"), ("r.toml", "0xff"), damage=beside("r.toml", b"seed = \xff")),
    Bad(
        "recipe: nested without end", ("train", "r.toml"), ("r.toml",), damage=beside("r.toml", "a = " + "[" * 100_000)
    ),
    Bad(
        "recipe: a name of endless parts",
        ("train", "r.toml"),
        ("r.toml", "64 parts"),
        damage=beside("r.toml", "a" + ".a" * 100_000 + "=1"),
    ),
    Bad(
        "recipe: a number of 5,000 digits",
        ("train", "r.toml"),
        ("r.toml",),
        damage=beside("r.toml", "seed = " + "9" * 5000),
    ),
    Bad(
        "recipe: not a number",
        ("train", "r.toml"),
        ("optimizer.lr", "finite"),
        damage=beside("r.toml", "[optimizer]\nlr = nan\n"),
    ),
    Bad(
        "recipe: its bases go in a circle",
        ("train", "r.toml"),
        ("circle",),
        damage=several(beside("r.toml", 'base = "s.toml"'), beside("s.toml", 'base = "r.toml"')),
    ),
    Bad("recipe: a link to itself", ("train", "r.toml"), ("r.toml",), damage=linked("r.toml", "r.toml")),
    Bad(
        "recipe: a base that is no file", ("train", "r.toml"), ("nowhere",), damage=beside("r.toml", 'base = "nowhere"')
    ),
    Bad("recipe: a name of 5,000 letters", ("train", "x" * 5000), ("no such recipe",)),
    Bad("recipe: a NUL in its name", ("train", "a\0b"), ("no such recipe",)),
    Bad(
        "recipe: terminal codes in a value",
        ("train", "small.toml", "optimizer.kind=\x1b]52;c;AAAA\x07"),
        ("optimizer.kind",),
    ),
    Bad(
        "setting: a million letters", ("train", "small.toml", "optimizer.kind=" + "x" * 1_000_000), ("optimizer.kind",)
    ),
    Bad("setting: a table where a number belongs", ("train", "small.toml", "model.n_layer={a=1}"), ("model.n_layer",)),
    Bad("setting: the base, from the command line", ("train", "small.toml", "base=default"), ("base",)),
    Bad("setting: two layers and a half", ("train", "small.toml", "model.n_layer=2.5"), ("model.n_layer=2.5",)),
    Bad("setting: a batch of none", ("train", "small.toml", "train.batch_size=0"), ("train.batch_size=0",)),
    Bad(
        "setting: a model for which there is no memory",
        ("train", "small.toml", "model.d_model=200000"),
        ("GiB to be had", "smaller model"),
    ),
    Bad("plan: a budget of less than nothing", ("plan", "small.toml", "budget.minutes=-1"), ("budget.minutes=-1",)),
    Bad("recipe show: no such recipe", ("recipe", "show", "nowhere"), ("nowhere",)),
    Bad("recipe list: an option that is none", ("recipe", "list", "--jsno"), ("--jsno", "--json")),
)
TEXTS = (
    Bad("text: a pipe", ("train", "small.toml", "data.path=pipe"), ("pipe", "not a file"), damage=piped("pipe")),
    Bad("text: a device", ("train", "small.toml", "data.path=/dev/zero"), ("/dev/zero", "device")),
    Bad(
        "text: UTF-16",
        ("train", "small.toml", "data.path=u.txt"),
        ("u.txt", "UTF-16"),
        damage=beside("u.txt", "titles".encode("utf-16")),
    ),
    Bad(
        "text: a gzip file that breaks off",
        ("train", "small.toml", "data.path=g.gz"),
        ("g.gz", "damaged"),
        damage=beside("g.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc"),
    ),
    Bad("text: a path with a NUL", ("train", "small.toml", "data.path=a\0b"), ("data.path",)),
    Bad(
        "text: a link to nowhere",
        ("train", "small.toml", "data.path=l.txt"),
        ("l.txt", "no such file"),
        damage=linked("l.txt", "nowhere"),
    ),
    Bad(
        "jsonl: a list where an object belongs",
        ("train", "small.toml", "data.kind=jsonl", "data.path=j.jsonl"),
        ("line 1", "list"),
        damage=beside("j.jsonl", "[1]\n"),
    ),
    Bad(
        "jsonl: no such field",
        ("train", "small.toml", "data.kind=jsonl", "data.path=j.jsonl"),
        ("line 1", "'text'"),
        damage=beside("j.jsonl", '{"txt": "a"}\n'),
    ),
    Bad(
        "csv: no such column",
        ("train", "small.toml", "data.kind=csv", "data.path=c.csv"),
        ("c.csv", "'text'"),
        damage=beside("c.csv", "a,b\n1,2\n"),
    ),
    Bad(
        "csv: a row too short",
        ("train", "small.toml", "data.kind=csv", "data.path=c.csv"),
        ("c.csv", "line 2"),
        damage=beside("c.csv", "a,text\n1\n"),
    ),
    Bad(
        "parquet: another file",
        ("train", "small.toml", "data.kind=parquet", "data.path=titles.txt"),
        ("titles.txt", "Parquet"),
    ),
    Bad(
        "npy: a pickle",
        ("train", "small.toml", "data.kind=npz", "data.path=p.npy"),
        ("p.npy", "objects"),
        damage=beside("p.npy", array("|O", "(4,)") + b"\x80\x04."),
    ),
    Bad(
        "npy: a shape of 2^62 by 4",
        ("train", "small.toml", "data.kind=npz", "data.path=p.npy"),
        ("p.npy", "asks for"),
        damage=beside("p.npy", array("<u2", "(4611686018427387904, 4)")),
    ),
    Bad(
        "tokenizer: a list",
        ("train", "small.toml", "tokenizer.kind=file", "tokenizer.path=t.json"),
        ("t.json",),
        damage=beside("t.json", "[]"),
    ),
    Bad(
        "tokenizer: an id of 2^30",
        ("train", "small.toml", "tokenizer.kind=file", "tokenizer.path=t.json"),
        ("none has id",),
        damage=beside("t.json", '{"model": {"type": "BPE", "vocab": {"a": 1073741824}, "merges": []}}'),
    ),
    Bad(
        "tokenizer: an id given twice",
        ("train", "small.toml", "tokenizer.kind=file", "tokenizer.path=t.json"),
        ("id 0",),
        damage=beside("t.json", '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}'),
    ),
    Bad("tokenizer inspect: no such recipe", ("tokenizer", "inspect", "nowhere"), ("nowhere",)),
    Bad("data export: the folder is there", ("data", "export", "small.toml", "--to", "folder"), ("folder",)),
    Bad(
        "data export: shards of no tokens",
        ("data", "export", "small.toml", "--to", "new", "--shard-tokens", "0"),
        ("shard",),
    ),
)
RUNS = (
    Bad("runs: a file for a folder", ("runs", "--runs", "titles.txt"), ("titles.txt",)),
    Bad("run: a name of 5,000 letters", ("sample", "x" * 5000), ("no such run",)),
    Bad("runs: a folder of 5,000 letters", ("runs", "--runs", "x" * 5000), ("too long",)),
    Bad("train: into a folder of 5,000 letters", ("train", "small.toml", "--runs", "x" * 5000), ("too long",)),
    Bad("eval: a text of 5,000 letters", ("eval", "done", "--data", "x" * 5000), ("--data",)),
    Bad("compare: a name of 5,000 letters", ("compare", "x" * 5000), ("too long",)),
    Bad("report: a name of 5,000 letters", ("report", "x" * 5000), ("xxx",)),
    Bad("export: into a folder of 5,000 letters", ("export", "done", "x" * 5000), ("too long",)),
    Bad("import: a folder of 5,000 letters", ("import", "huggingface", "x" * 5000), ("too long",)),
    Bad("publish-check: a folder of 5,000 letters", ("publish-check", "x" * 5000), ("xxx",)),
    Bad("search: a name of 5,000 letters", ("search", "x" * 5000), ("no such search",)),
    Bad("climb: a name of 5,000 letters", ("climb", "x" * 5000), ("xxx",)),
    Bad(
        "tokenizer train: into a name of 5,000 letters",
        ("tokenizer", "train", "small.toml", "--to", "x" * 5000),
        ("xxx",),
    ),
    Bad("run: a NUL in its name", ("sample", "a\0b"), ("no such run",)),
    Bad("run: a name that leads out", ("train", "small.toml", "--name", "../../x"), ("../../x",)),
    Bad("run: an absolute name", ("train", "small.toml", "--name", "/tmp/x"), ("/tmp/x",)),
    Bad("run: a name like an option", ("train", "small.toml", "--name=-rf"), ("'-rf'",)),
    Bad("run: a name with a line break", ("train", "small.toml", "--name", "a\nb"), ("--name",)),
    Bad("run: a name for the shell", ("train", "small.toml", "--name", "$(id)"), ("$(id)",)),
    Bad("sample: nothing but NaN for a temperature", ("sample", "done", "--temperature", "inf"), ("temperature=inf",)),
    Bad("sample: a prompt with half a character", ("sample", "done", "\ud800"), ("surrogate",)),
    Bad("sample: a seed of 2^70", ("sample", "done", "--seed", str(2**70)), ("seed",)),
    Bad("sample: no such device", ("sample", "done", "--device", "tpu"), ("tpu",)),
    Bad("sample: its plan is damaged", ("sample", "done"), ("plan.json",), 4, in_run("plan.json", "{")),
    Bad(
        "sample: its plan wants a billion threads",
        ("sample", "done"),
        ("plan.json", "threads"),
        4,
        in_run("plan.json", lambda was: was.replace(b'"threads": 1', b'"threads": 1000000000', 1)),
    ),
    Bad("sample: its receipt is a list", ("sample", "done"), ("receipt.json",), 4, in_run("receipt.json", "[]")),
    Bad(
        "sample: its recipe has another model",
        ("sample", "done"),
        ("not those of its recipe",),
        4,
        in_run("recipe.toml", lambda was: was.replace(b"n_layer = 1", b"n_layer = 100000000")),
    ),
    Bad(
        "sample: one bit of each checkpoint flipped",
        ("sample", "done"),
        ("does not match its checksum",),
        4,
        all_checkpoints(lambda folder: _flip(folder / "model.safetensors")),
    ),
    Bad(
        "sample: the checkpoint links elsewhere",
        ("sample", "done"),
        ("not a file of its own",),
        4,
        all_checkpoints(
            lambda folder: [
                (folder / "state.json").rename(folder.parent / f"{folder.name}.state"),
                (folder / "state.json").symlink_to(f"../{folder.name}.state"),
            ]
        ),
    ),
    Bad(
        "sample: a pickle among its files",
        ("sample", "done"),
        ("pytorch_model.bin", "does not belong"),
        4,
        all_checkpoints(lambda folder: (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")),
    ),
    Bad(
        "resume: one bit of each checkpoint flipped",
        ("resume", "done"),
        ("no valid checkpoint left",),
        4,
        all_checkpoints(lambda folder: _flip(folder / "optimizer.safetensors")),
    ),
    Bad(
        "resume: its text has changed",
        ("resume", "done"),
        ("text has changed",),
        3,
        several(
            beside("titles.txt", TITLES.replace("Show", "Shew")),
            lambda place: (place / "runs/done/result.json").unlink(),
        ),
    ),
    Bad("resume: a run or a folder of runs", ("resume",), ("--all",)),
    Bad("resume --all: a file", ("resume", "--all", "titles.txt"), ("titles.txt",)),
    Bad("eval: a text of bytes", ("eval", "done", "--data", "binary.txt"), ("binary.txt",)),
    Bad("eval: no such task", ("eval", "done", "--task", "hellaswagg", "--data", "questions.jsonl"), ("hellaswag",)),
    Bad(
        "eval: questions of another kind",
        ("eval", "done", "--task", "hellaswag", "--data", "questions.jsonl"),
        ("questions.jsonl:1",),
    ),
    Bad(
        "eval: a right choice that is none",
        ("eval", "done", "--task", "choices", "--data", "q.jsonl"),
        ("q.jsonl:1", "gold"),
        damage=beside("q.jsonl", '{"query": "q", "choices": ["a", "b"], "gold": 7}\n'),
    ),
    Bad(
        "eval: fewer questions than none",
        ("eval", "done", "--task", "choices", "--data", "questions.jsonl", "--limit", "-1"),
        ("limit",),
    ),
    Bad(
        "eval: answers over a file",
        ("eval", "done", "--task", "choices", "--data", "questions.jsonl", "--answers", "titles.txt"),
        ("titles.txt",),
    ),
    Bad("compare: no such run", ("compare", "done", "nowhere"), ("nowhere",)),
    Bad("compare: a glob of nothing", ("compare", "nix*"), ("nix*",)),
    Bad(
        "compare: nothing that is finished",
        ("compare", "done"),
        ("damaged", "'validation'"),
        damage=in_run("result.json", '{"version": 1}'),
    ),
    Bad("compare: no such reading", ("compare", "done", "--by", "beauty"), ("beauty",)),
    Bad("compare: a level of 2", ("compare", "done", "--level", "2"), ("level",)),
    Bad("compare: curves into a folder", ("compare", "done", "--curves", "folder"), ("folder",)),
    Bad("noise: no seeds", ("noise", "small.toml", "--seeds", "0"), ("seeds",)),
    Bad("train --seeds: a word", ("train", "small.toml", "--seeds", "one,two"), ("--seeds", "one")),
    Bad("plan --predict: no such runs", ("plan", "small.toml", "--predict", "nowhere"), ("nowhere",)),
    Bad("report: no such run", ("report", "nowhere"), ("nowhere",)),
    Bad("report: into a folder that is not there", ("report", "done", "--out", "nowhere/r.html"), ("nowhere",)),
)
MODELS = (
    Bad("import: no such folder", ("import", "huggingface", "nowhere"), ("nowhere", "no such folder")),
    Bad(
        "import: only a pickle", ("import", "huggingface", "model"), ("pytorch_model.bin", "run code"), damage=_pickled
    ),
    Bad(
        "import: a header of 2^63 bytes",
        ("import", "huggingface", "model"),
        ("model.safetensors", "9,223,372,036,854,775,808"),
        damage=forged_header(1 << 63),
    ),
    Bad(
        "import: code of its own",
        ("import", "huggingface", "model"),
        ("model_type", "evil"),
        damage=table_changed(
            "model/config.json",
            model_type="evil",
            auto_map={"AutoModelForCausalLM": "evil.Evil"},
            trust_remote_code=True,
        ),
    ),
    Bad(
        "import: a width of a billion",
        ("import", "huggingface", "model"),
        ("hidden_size",),
        damage=table_changed("model/config.json", hidden_size=10**9),
    ),
    Bad(
        "import: weights of another shape",
        ("import", "huggingface", "model"),
        ("shape",),
        damage=table_changed("model/config.json", intermediate_size=41),
    ),
    Bad(
        "import: no tokenizer",
        ("import", "huggingface", "model"),
        ("tokenizer.json",),
        damage=lambda place: (place / "model/tokenizer.json").unlink(),
    ),
    Bad("import: a model of llm.c that is none", ("import", "llmc", "titles.txt"), ("titles.txt",)),
    Bad("import: a shard for a model", ("import", "llmc", "version.bin"), ("version.bin", "shard")),
    Bad("import: scored on no run's text", ("import", "huggingface", "model", "--text-of", "nowhere"), ("nowhere",)),
    Bad("export: no such run", ("export", "nowhere", "new"), ("nowhere",)),
    Bad("export: the folder is there", ("export", "done", "folder"), ("folder",)),
    Bad("export: no such format", ("export", "done", "new", "--format", "onnx"), ("onnx",)),
    Bad("export: no such number format", ("export", "done", "new", "--dtype", "int3"), ("int3",)),
    Bad("export: no such licence", ("export", "done", "new", "--license", "mti"), ("mti",)),
    Bad("export: a place on the hub that is none", ("export", "done", "new", "--push", "a/b/c"), ("a/b/c",)),
    Bad("publish-check: no such folder", ("publish-check", "nowhere"), ("nowhere",)),
    Bad("serve: a port of 99999", ("serve", "done", "--port", "99999"), ("99999",)),
    Bad("serve: no such run", ("serve", "nowhere"), ("nowhere",)),
    Bad("serve: an address that is none", ("serve", "done", "--host", "nowhere.invalid"), ("nowhere.invalid",)),
    Bad("chat: no such run", ("chat", "nowhere"), ("nowhere",)),
    Bad("search: no such file", ("search", "nowhere.toml"), ("nowhere",)),
    Bad(
        "search: an empty range",
        ("search", "s.toml"),
        ("optimizer.lr", "empty"),
        damage=beside("s.toml", SEARCH.format(low=0.5)),
    ),
    Bad(
        "search: no such setting",
        ("search", "s.toml"),
        ("optimizer.lrr",),
        damage=beside("s.toml", SEARCH.format(low=0.01).replace("optimizer.lr", "optimizer.lrr")),
    ),
    Bad(
        "search: nobody to work on it",
        ("search", "s.toml", "--workers", "0"),
        ("workers",),
        damage=beside("s.toml", SEARCH.format(low=0.01)),
    ),
    Bad("search --status: no search", ("search", "--status", "folder"), ("folder", "search")),
    Bad("climb: no such file", ("climb", "nowhere.toml"), ("nowhere",)),
    Bad("climb: no steps", ("climb", "c.toml"), ("step",), damage=beside("c.toml", 'recipe = "small.toml"\n')),
    Bad("climb --status: no climb", ("climb", "--status", "folder"), ("folder", "climb")),
    Bad("doctor: an option that is none", ("doctor", "--jsno"), ("--jsno", "--json")),
    Bad("no such verb", ("trane",), ("'trane'",)),
)
WRONG = (
    *(
        Bad(f"setting: {' '.join(given)}", ("train", "small.toml", *given, "--quiet"), tuple(told))
        for given, told in SETTINGS
    ),
    *(Bad(f"words: {' '.join(given)[:60]}", tuple(given), tuple(told)) for given, told in FLAGS if "done" not in given),
    *RECIPES,
    *TEXTS,
    *RUNS,
    *MODELS,
)


def main(words: Sequence[str] | None = None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="the table into benchmarks/results/bad_inputs.md too")
    parser.add_argument("--only", default="", help="kinds with this in their name")
    asked = parser.parse_args(words)
    rows, failed = ["| kind | given | exit code | said |", "|---|---|--:|---|"], 0
    with tempfile.TemporaryDirectory(prefix="farthing-bad-") as name:
        place = Path(name) / "desk"
        place.mkdir()
        os.environ["FARTHING_CACHE"] = str(Path(name) / "cache")
        os.chdir(place)
        desk(place)
        chosen = [bad for bad in WRONG if asked.only in bad.kind]
        for number, bad in enumerate(chosen):
            answer, wrong = answered(place, bad, Path(name) / f"copy-{number}")
            said = answer.err.strip().replace(str(Path(name) / f"copy-{number}"), ".")
            given = " ".join(map(legible, bad.words))
            rows.append(f"| {_cell(bad.kind)} | `{_cell(given)}` | {answer.code} | {_cell(said)} |")
            failed += bool(wrong)
            for one in wrong:
                print(f"FAILED: {bad.kind}: {one}", file=sys.stderr)
        os.chdir(ROOT)
    text = "\n".join([*rows, "", f"{len(chosen)} kinds, {failed} not answered as promised."])
    print(text)
    if asked.write:
        (ROOT / "benchmarks" / "results" / "bad_inputs.md").write_text(text + "\n", "utf-8")
    sys.exit(bool(failed))


def _cell(text: str) -> str:
    text = text.replace("|", "\\|").replace("`", "'")
    return text if len(text) <= 240 else text[:160] + " ... " + text[-70:]


if __name__ == "__main__":
    main()
