"""Every reader of bytes that somebody else may have written, each with sound files to spoil.

A reader is the way a person would meet the file: a whole verb's worth of reading where that is quick enough. What it
may do is return, or raise a FarthingError (or, for the server, a Refusal).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from cli.small import RECIPE, TITLES
from export.strangers import TEXT, TOKENIZER, VOCABULARY, ours, save_ours, section
from farthing import api, config
from farthing.cli import listing, tables
from farthing.compare import noise
from farthing.compare import runs as compared
from farthing.compare.task_results import keep_tasks, read_tasks
from farthing.data.sources import open_source
from farthing.data.sources.stream import Progress
from farthing.data.sources.tokens import bin_header, open_tokens
from farthing.data.store import open_entry
from farthing.data.tokenizer import SEPARATOR, Tokenizer, build_tokenizer
from farthing.errors import UserError
from farthing.evals.tasks.scoring import load as load_task
from farthing.evals.tasks.table import find_task
from farthing.events import read_events
from farthing.export import Exportable, llmc
from farthing.export.foreign import read_folder
from farthing.planning.remembered import recall
from farthing.recipe import Recipe
from farthing.recipe.data import Bin, Csv, Gpt2Tokenizer, Jsonl, Npz, Parquet, Text
from farthing.recipe.running import Sample
from farthing.rundir import RunDir, noise_path
from farthing.search import check as search_check
from farthing.search import climb_asked
from farthing.search.climb_record import ClimbFolder, Decision, Standing
from farthing.search.record import Folder as SearchFolder
from farthing.search.record import Record, trial_id
from farthing.serving.request import parse as parse_request
from farthing.storage import sha256_of, write_json
from farthing.training import checkpoint as checkpoints
from faults.mutations import Structure

Read = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Args:
        name: what a person calls it.
        file: what is spoiled, relative to the folder that `read` is given.
        structure: what it is made of, for changes that stay well-formed.
        read: reads it, from the folder.
        more: further sound files of the kind, to splice with.
        settle: makes what else is in the folder agree with the spoiled file, as somebody with bad will would.
        anew: the folder is copied for each input, since reading changes it.
        points: the file may name others to read, wherever they lie.
    """

    name: str
    file: str
    structure: Structure
    read: Read
    more: tuple[bytes, ...] = ()
    settle: Read = lambda folder: None
    anew: bool = False
    points: bool = False


@dataclass(frozen=True)
class Case:
    """A reader and the sound folder it reads."""

    reader: Reader
    folder: Path

    @property
    def sound(self) -> bytes:
        """The file before it is spoiled."""
        return (self.folder / self.reader.file).read_bytes()


def furnish(place: Path) -> list[Case]:
    """A finished run, models of strangers, searches and sources of every kind, and who reads them.

    The working folder must be `place`: a recipe names its text from there.
    """
    (place / "titles.txt").write_text(TITLES, "utf-8")
    (place / "small.toml").write_text(RECIPE, "utf-8")
    api.train("small.toml", name="sound", quiet=True)
    makers = (_recipes, _runs, _checkpoints, _searches, _models, _token_files, _texts, _questions, _caches, _server)
    return [case for make in makers for case in make(place)]


def _folder(place: Path, name: str, **files: bytes | str) -> Path:
    folder = place / "sound" / name
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file.replace("__", ".")).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def _recipes(place: Path) -> Iterator[Case]:
    whole = config.to_toml(api.open_run("sound").recipe).encode()
    folder = _folder(place, "recipe", r__toml=RECIPE, b__toml='base = "r.toml"\n[model]\nn_layer = 2\n')
    load = lambda name: lambda at: config.load(Recipe, str(at / name))  # noqa: E731
    yield Case(Reader("recipe", "r.toml", "toml", load("r.toml"), (whole,), points=True), folder)
    yield Case(Reader("recipe with a base", "b.toml", "toml", load("b.toml"), (RECIPE.encode(),), points=True), folder)
    words = b"model.n_layer=8\nbudget.minutes=2.5\noptimizer.kind=sgd\ndata={kind='text',path=['a','b']}\nseed=7"
    folder = _folder(place, "words", words=words)

    def override(at: Path) -> None:
        text = (at / "words").read_bytes().decode("utf-8", "surrogateescape")
        config.load(Recipe, str(place / "small.toml"), text.split("\n"))

    yield Case(Reader("settings on the command line", "words", "text", override), folder)


def _runs(place: Path) -> Iterator[Case]:
    """The files of a run, through the list of runs, comparison, and the model opened."""

    def copy(name: str, *without: str) -> Path:
        folder = place / "sound" / name
        shutil.copytree(place / "runs" / "sound", folder / "run")
        for file in without:
            (folder / "run" / file).unlink()
        return folder

    def look(at: Path) -> None:
        listing.rows(at)
        run = api.Run(RunDir(at / "run"))
        run.validation, run.spent, run.status  # noqa: B018  properties that read

    def events(at: Path) -> None:
        list(read_events(at / "run" / "events.jsonl"))
        look(at)
        api.Run(RunDir(at / "run")).dataframe()
        _allow_none_finished(lambda: compared.gather([str(at / "run")], runs=at, recipe=Recipe))

    def result(at: Path) -> None:
        look(at)
        tables.print_result(api.Run(RunDir(at / "run")).result)
        compared.gather([str(at / "run")], runs=at, recipe=Recipe)

    def opened(at: Path) -> None:
        api.open_run(at / "run").sample("a", tokens=2)

    def receipt(at: Path) -> None:
        compared.gather([str(at / "run")], runs=at, recipe=Recipe)
        api.open_run(at / "run").evaluate(references=False)

    yield Case(Reader("events", "run/events.jsonl", "lines", events), copy("events", "result.json"))
    yield Case(Reader("result", "run/result.json", "json", result), copy("result"))
    yield Case(Reader("plan", "run/plan.json", "json", lambda at: (look(at), opened(at))), copy("plan"))
    yield Case(Reader("receipt", "run/receipt.json", "json", receipt, points=True), copy("receipt"))
    yield Case(Reader("a run's recipe", "run/recipe.toml", "toml", opened, points=True), copy("run-recipe"))
    yield Case(Reader("a run's tokenizer", "run/tokenizer.json", "json", opened), copy("run-tokenizer"))
    folder = copy("held-out")
    run = RunDir(folder / "run")
    write_json(run.held_out, {"version": 1, "test": api.Run(run).validation})
    yield Case(
        Reader(
            "held-out score",
            "run/held_out.json",
            "json",
            lambda at: compared.gather([str(at / "run")], runs=at, recipe=Recipe),
        ),
        folder,
    )
    folder = copy("asked-tasks")
    reading = {"value": 0.5, "low": 0.2, "high": 0.8, "standard_error": 0.1, "chance": 0.25, "verdict": "at chance"}
    asked = {
        "task": "piqa",
        "metric": "accuracy",
        "items": 4,
        "of": 4,
        "shots": 0,
        "source": "a",
        "scores": {"accuracy": reading},
    }
    keep_tasks(RunDir(folder / "run"), 6, [asked])
    yield Case(Reader("tasks", "run/tasks.json", "json", lambda at: read_tasks(RunDir(at / "run"))), folder)
    folder = _folder(place, "noise")
    floor = noise.NoiseFloor("small", "f" * 64, {"bits_per_byte": {1: 2.5, 2: 2.6, 3: 2.4}}, 0, "t" * 64, 1)
    noise.keep(floor, folder)
    file = noise_path(folder, "f" * 64).relative_to(folder)
    yield Case(Reader("noise floor", str(file), "json", lambda at: noise.find(at, "f" * 64)), folder)


def _allow_none_finished(work: Callable[[], object]) -> None:
    try:
        work()
    except UserError:
        return


def _checkpoints(place: Path) -> Iterator[Case]:
    """A checkpoint whose manifest agrees with what was done to it, as one made to do harm would."""
    step = RunDir(place / "runs" / "sound").checkpoint(6)
    folder = place / "sound" / "checkpoint"
    shutil.copytree(place / "runs" / "sound", folder / "run")
    inside = f"run/checkpoints/{step.name}"
    identity = checkpoints.verify(step)["identity"]

    def newest(at: Path) -> None:
        run = RunDir(at / "run")
        checkpoints.best_step(run)
        checkpoints.load_newest(run, identity, lambda told: None)
        api.Run(run).sample("a", tokens=2)

    def signed(at: Path) -> None:
        """The manifest's own checksum made right."""
        file = at / inside / "manifest.json"
        try:
            body = json.loads(file.read_bytes())
            body.pop("sha256", None)
            text = json.dumps(body, sort_keys=True, ensure_ascii=False).encode()
            body["sha256"] = hashlib.sha256(text).hexdigest()
            file.write_text(json.dumps(body), "utf-8")
        except (ValueError, TypeError, AttributeError, RecursionError):
            return

    def listed(name: str) -> Read:
        def agree(at: Path) -> None:
            manifest = at / inside / "manifest.json"
            body = json.loads(manifest.read_bytes())
            file = at / inside / name
            body["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
            manifest.write_text(json.dumps(body), "utf-8")
            signed(at)

        return agree

    yield Case(Reader("manifest", f"{inside}/manifest.json", "json", newest, anew=True), folder)
    yield Case(Reader("manifest, signed anew", f"{inside}/manifest.json", "json", newest, (), signed, True), folder)
    for name, structure in (
        ("model.safetensors", "safetensors"),
        ("optimizer.safetensors", "safetensors"),
        ("state.json", "json"),
    ):
        made = Reader(
            f"checkpoint's {name}, signed anew", f"{inside}/{name}", structure, newest, (), listed(name), True
        )  # type: ignore[arg-type]
        yield Case(made, folder)


SEARCH = """\
recipe = "small.toml"
[space]
"optimizer.lr" = { kind = "float", low = 1e-4, high = 1e-1, log = true }
"model.d_model" = { kind = "choice", choices = [16, 24, 32] }
"model.n_head" = { kind = "choice", choices = [2, 3, 4], divides = "model.d_model" }
[tied]
"optimizer.weight_decay" = { of = "optimizer.lr", times = 0.1 }
[sampler]
kind = "random"
[budget]
trials = 2
"""
CLIMB = """\
recipe = "small.toml"
order = "listed"
[[step]]
name = "wider"
changes = { "model.d_model" = 24 }
[[step]]
name = "faster"
changes = { "optimizer.lr" = 0.01 }
"""


def _searches(place: Path) -> Iterator[Case]:
    folder = _folder(place, "asked", search__toml=SEARCH, climb__toml=CLIMB, small__toml=RECIPE)
    read: Read = lambda at: search_check.read(str(at / "search.toml"), Recipe)  # noqa: E731
    yield Case(Reader("search", "search.toml", "toml", read, points=True), folder)
    read = lambda at: climb_asked.read(str(at / "climb.toml"), Recipe)  # noqa: E731
    yield Case(Reader("climb", "climb.toml", "toml", read, points=True), folder)
    search = SearchFolder(place / "sound" / "search")
    search.make(SEARCH)
    for number in range(3):
        parts: dict[str, Any] = {"parameters": {"optimizer.lr": 0.1}, "recipe": {"seed": 1}, "seeds": [1]}
        more: dict[str, Any] = {"state": "complete", "score": 2.5, "scores": {"1": 2.5}, "curve": {"50": 3.0}}
        search.create(Record(id=trial_id(number), number=number, **parts, **more))
    at = "trials/trial-00001/trial.json"
    yield Case(Reader("trial", at, "json", lambda at: [one.cost for one in SearchFolder(at).records()]), search.path)
    write_json(search.path / "refused.json", [{"parameters": {"optimizer.lr": 9.0}, "reason": "too dear"}])
    yield Case(Reader("refused candidates", "refused.json", "json", lambda at: SearchFolder(at).refused()), search.path)
    climb = ClimbFolder(place / "sound" / "climb")
    climb.make(CLIMB)
    climb.write(
        Standing([Decision("wider", "kept", "lower", "wider", "base", 3, -0.1, -0.2, -0.05, 0.01, 1.2)], {"f": "wider"})
    )
    yield Case(Reader("a climb's standing", "climb.json", "json", lambda at: ClimbFolder(at).read().kept), climb.path)


def _models(place: Path) -> Iterator[Case]:
    """Models of strangers: a folder of transformers, one in shards, GPT-2's tokenizer, llm.c."""
    small: dict[str, Any] = {"mlp": {"kind": "swiglu"}, "tie_embeddings": False, "n_layer": 1}
    folder = save_ours(ours(section(**small)), place / "sound" / "model")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": SEPARATOR, "auto_map": {"AutoTokenizer": "x.X"}})
    )
    table = json.loads((folder / "config.json").read_bytes())
    evil = {**table, "auto_map": {"AutoModelForCausalLM": "evil.Model"}, "_attn_implementation_internal": "evil/kernel"}
    gpt2 = save_ours(
        ours(section(norm={"kind": "layernorm"}, position={"kind": "learned"}, bias=True)), place / "sound" / "gpt2"
    )
    kinds = tuple(json.dumps({**table, "model_type": kind}).encode() for kind in ("qwen3", "gpt2", "opt", "farthing"))

    def text(at: Path) -> None:
        tokenizer = read_folder(at).tokenizer
        tokenizer.decode(tokenizer.encode(TEXT))

    yield Case(Reader("config.json", "config.json", "json", read_folder, (json.dumps(evil).encode(), *kinds)), folder)
    yield Case(Reader("model.safetensors", "model.safetensors", "safetensors", read_folder), folder)
    yield Case(Reader("tokenizer.json", "tokenizer.json", "json", text), folder)
    yield Case(Reader("tokenizer_config.json", "tokenizer_config.json", "json", text), folder)
    yield Case(Reader("GPT-2's config.json", "config.json", "json", read_folder), gpt2)
    sharded = place / "sound" / "sharded"
    shutil.copytree(folder, sharded)
    (sharded / "model.safetensors").rename(sharded / "model-1.safetensors")
    names = dict.fromkeys(_names(sharded / "model-1.safetensors"), "model-1.safetensors")
    (sharded / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": names})
    )
    yield Case(Reader("index of shards", "model.safetensors.index.json", "json", read_folder), sharded)
    vocabulary = json.dumps(json.loads(TOKENIZER)["model"]["vocab"] | {"<|endoftext|>": VOCABULARY - 1})
    merges = "\n".join(
        one if isinstance(one, str) else " ".join(one) for one in json.loads(TOKENIZER)["model"]["merges"]
    )
    files = _folder(place, "encoder", encoder__json=vocabulary, vocab__bpe=f"#version: 0.2\n{merges}\n")
    read: Read = lambda at: build_tokenizer(Gpt2Tokenizer(path=str(at)), lambda: iter(()), directory=at)  # noqa: E731
    yield Case(Reader("GPT-2's encoder.json", "encoder.json", "json", read), files)
    yield Case(Reader("GPT-2's vocab.bpe", "vocab.bpe", "text", read), files)
    plain = ours(section(bias=True, norm={"kind": "layernorm"}, position={"kind": "learned"}, n_layer=1,
                         mlp={"kind": "gelu", "approximate": "tanh"}))  # fmt: skip
    tokenizer = Tokenizer.from_json(TOKENIZER, separator=SEPARATOR)
    weights = {name: values.detach() for name, values in plain.state_dict().items()}
    made = Exportable(plain.section, VOCABULARY, weights, tokenizer, Sample(), [TEXT], "small", 7)
    for dtype in ("fp32", "bf16"):
        folder = _folder(place, f"llmc-{dtype}")
        llmc.write(folder, made, dtype=dtype)  # type: ignore[arg-type]
        read = lambda at: llmc.read(at / llmc.FILE, tokenizer)  # noqa: E731
        yield Case(Reader(f"llm.c's model, {dtype}", llmc.FILE, "bytes", read), folder)


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as handle:
        return list(handle.keys())


def _token_files(place: Path) -> Iterator[Case]:
    tokens = np.arange(400, dtype=np.uint16) % 256
    array, table, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, tokens)
    np.save(table, tokens.reshape(20, 20))
    np.savez_compressed(archive, tokens=tokens)
    plain = io.BytesIO()
    np.savez(plain, tokens=tokens)
    shard = bin_header(len(tokens)) + tokens.tobytes()
    folder = _folder(
        place, "tokens", s__bin=shard, a__npy=array.getvalue(), z__npz=archive.getvalue(), p__npz=plain.getvalue()
    )

    def read(section: Bin | Npz) -> Read:
        def tokens(at: Path) -> None:
            for file in open_tokens(section, directory=at, what="data.path"):
                for _ in file.chunks(128):
                    pass

        return tokens

    yield Case(Reader("llm.c's shard", "s.bin", "bytes", read(Bin(path="s.bin"))), folder)
    yield Case(Reader(".npy", "a.npy", "npy", read(Npz(path="a.npy")), (table.getvalue(),)), folder)
    yield Case(Reader(".npz", "z.npz", "bytes", read(Npz(path="z.npz")), (plain.getvalue(),)), folder)
    yield Case(Reader(".npz, stored", "p.npz", "npy", read(Npz(path="p.npz")), (archive.getvalue(),)), folder)


def _texts(place: Path) -> Iterator[Case]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = "".join(json.dumps({"text": line, "n": 1}) + "\n" for line in TITLES.splitlines()[:20])
    sheet = "n,text\n" + "".join(f'{n},"a, ""b"" {n}"\n' for n in range(20))
    columns = io.BytesIO()
    pq.write_table(pa.table({"text": TITLES.splitlines(), "n": list(range(120))}), columns)
    short = TITLES[:800].encode()
    folder = _folder(place, "texts", t__txt=short, g__gz=gzip.compress(short), z__zst=zstandard.compress(short),
                     l__jsonl=lines, c__csv=sheet, p__parquet=columns.getvalue())  # fmt: skip
    silent: Progress = lambda done: None  # noqa: E731

    def read(section: Text | Jsonl | Csv | Parquet) -> Read:
        def documents(at: Path) -> None:
            for document in open_source(section, directory=at).documents(silent):
                for _ in [document] if isinstance(document, bytes) else document:
                    pass

        return documents

    yield Case(Reader("text", "t.txt", "text", read(Text(path="t.txt", documents="line"))), folder)
    yield Case(Reader("text, gzip", "g.gz", "bytes", read(Text(path="g.gz"))), folder)
    yield Case(Reader("text, zstd", "z.zst", "bytes", read(Text(path="z.zst", documents="paragraph"))), folder)
    yield Case(Reader("JSON lines", "l.jsonl", "lines", read(Jsonl(path="l.jsonl"))), folder)
    yield Case(Reader("CSV", "c.csv", "text", read(Csv(path="c.csv"))), folder)
    yield Case(Reader("Parquet", "p.parquet", "bytes", read(Parquet(path="p.parquet"))), folder)


_TASKS = {
    "hellaswag": {"activity_label": "A", "ctx_a": "he", "ctx_b": "she", "endings": ["a", "b", "c", "d"], "label": "1"},
    "lambada": {"text": "In the beginning was the word"},
    "arc_easy": {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"},
    "piqa": {"goal": "g", "sol1": "a", "sol2": "b", "label": 0},
    "winogrande": {"sentence": "the _ was", "option1": "a", "option2": "b", "answer": "1"},
    "choices": {"query": "q", "choices": ["a", "b"], "gold": 1},
    "perplexity": {"text": "some words"},
}


def _questions(place: Path) -> Iterator[Case]:
    files = {f"{name}__jsonl": (json.dumps(row) + "\n") * 3 for name, row in _TASKS.items()}
    folder = _folder(place, "tasks", **files)
    for name in _TASKS:
        read: Read = lambda at, name=name: load_task(find_task(name), f"{name}.jsonl", directory=at)  # type: ignore[misc]  # noqa: E731
        others = tuple(content.encode() for content in files.values())
        yield Case(Reader(f"questions of {name}", f"{name}.jsonl", "lines", read, others), folder)


def _caches(place: Path) -> Iterator[Case]:
    folder = _folder(place, "cache")
    from farthing.data.store import entry

    def build(at: Path) -> dict[str, Any]:
        (at / "tokens").write_bytes(b"1234")
        return {"count": 2, "dtype": "uint16"}

    entry(folder / "entry", build)
    name = next(path.name for path in (folder / "entry").iterdir() if path.suffix == ".json")
    yield Case(Reader("an entry of the cache", f"entry/{name}", "json", lambda at: open_entry(at / "entry")), folder)
    plan = json.loads((place / "runs" / "sound" / "plan.json").read_bytes())
    folder = _folder(place, "choices", c__json=json.dumps({"settings": plan["settings"], "trial": plan["trial"]}))
    yield Case(Reader("remembered settings", "c.json", "json", lambda at: recall(at / "c.json")), folder)


def _server(place: Path) -> Iterator[Case]:
    asked = {
        "model": "m", "prompt": ["a", "b"], "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "n": 2,
        "stop": ["x"], "stream": True, "stream_options": {"include_usage": True}, "logprobs": 2, "echo": True, "seed": 3,
    }  # fmt: skip
    tokens = json.dumps({"prompt": [[1, 2], [3]], "logit_bias": {"5": 1.0}}).encode()
    folder = _folder(place, "server", body=json.dumps(asked))
    yield Case(
        Reader("a client's request", "body", "json", lambda at: parse_request((at / "body").read_bytes()), (tokens,)),
        folder,
    )
