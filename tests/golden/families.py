"""Three recipes and a text whose losses are kept in families.json; `python tests/golden/record.py` writes them anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from farthing import config, session
from farthing.events import read_events
from farthing.recipe import Recipe

FOLDER = Path(__file__).parent
SHARED = {
    "data.kind": "text",
    "data.path": "golden.txt",
    "data.documents": "line",
    "data.split": "tail",
    "data.validation": 0.1,
    "train.batch_size": 8,
    "train.micro_batch": 8,
    "train.threads": 1,
    "train.precision": "fp32",
    "train.compile": "off",
    "train.attention": "math",
    "evaluate.every": "end",
    "evaluate.references": False,
    "checkpoint.every": "end",
    "sample.tokens": 0,
    "model.d_model": 32,
    "model.n_layer": 2,
    "model.n_head": 4,
    "model.context_length": 32,
}
STEPS = {"budget.epochs": None, "budget.steps": 10}
GPT2 = {
    "tokenizer.kind": "byte",
    "model.norm.kind": "layernorm",
    "model.position.kind": "learned",
    "model.mlp.kind": "gelu",
    "model.mlp.approximate": "tanh",
    "model.bias": True,
    "model.init.kind": "gpt2",
    "optimizer.kind": "adamw",
    "optimizer.lr": 3e-3,
    "optimizer.weight_decay": 0.1,
    "schedule.kind": "cosine",
    "schedule.warmup": 0.2,
}
LLAMA = {
    "tokenizer.kind": "byte",
    "model.n_kv_head": 2,
    "model.norm.kind": "rmsnorm",
    "model.position.kind": "rope",
    "model.mlp.kind": "swiglu",
    "model.mlp.ratio": 8 / 3,
    "model.tie_embeddings": False,
    "optimizer.kind": "muon",
    "optimizer.lr": 0.02,
    "schedule.kind": "wsd",
    "schedule.warmup": 0.1,
    "schedule.decay": 0.4,
    "train.order": "random_offset",
}
# Without dropout: its random numbers are torch's own, and no promise of torch's says that they stay the same.
TITLES = {"tokenizer.vocab_size": 300, "model.dropout": 0.0}

RECIPES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "gpt2-adamw": (None, {**SHARED, **GPT2, **STEPS}),
    "llama-muon": (None, {**SHARED, **LLAMA, **STEPS}),
    "titles-baseline": ("titles-baseline", {**SHARED, **TITLES, **STEPS}),
}


def text() -> str:
    """Sentences from a fixed rule, the same everywhere."""
    animals, verbs = ("cat", "dog", "owl", "fox", "hen"), ("saw", "met", "fed", "sold")
    places = ("hill", "sea", "old mill", "café")
    lines = []
    number = 1
    for _ in range(240):
        number = number * 48_271 % 2_147_483_647
        first, second = animals[number % 5], animals[number // 5 % 5]
        lines.append(
            f"the {first} {verbs[number // 25 % 4]} {number // 100 % 9} {second}s by the {places[number // 900 % 4]}"
        )
    return "\n".join(lines) + "\n"


def losses(name: str, folder: Path) -> dict[str, Any]:
    """Train a recipe in `folder`, where the text lies and which is the present one; what is kept of it."""
    (folder / "golden.txt").write_text(text(), "utf-8")
    base, overrides = RECIPES[name]
    path = folder / "runs" / name
    result = session.new_run(config.load(Recipe, base, overrides), path, device="cpu")
    steps = [event["loss"] for event in read_events(path / "events.jsonl") if event["kind"] == "step"]
    return {"losses": steps, "validation": result["validation"]["nats_per_token"], "parameters": result["parameters"]}
