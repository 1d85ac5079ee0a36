"""A finished run, and the folder that a writer would make of it, without the writer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from farthing import api
from farthing.rundir import RunDir

SETTINGS: dict[str, Any] = {
    "data.kind": "text",
    "data.documents": "line",
    "tokenizer.kind": "byte",
    "model.n_layer": 1,
    "model.n_head": 2,
    "model.d_model": 16,
    "model.context_length": 16,
    "train.batch_size": 4,
    "train.threads": 1,
    "budget.minutes": None,
    "budget.steps": 4,
    "evaluate.every": 2,
    "sample.tokens": 8,
    "sample.prompt": "line ",
}


def train(folder: Path, settings: Mapping[str, Any] | None = None, *, name: str = "first") -> RunDir:
    """A run in `folder`, on a text beside it that is named by its absolute path."""
    text = folder / "story.txt"
    text.write_text("".join(f"line {n} of a story\n" for n in range(90)), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = api.train(
            "default", {**SETTINGS, "data.path": str(text), **(settings or {})}, runs="runs", name=name, quiet=True
        )
    return RunDir(made.path.absolute() if made.path.is_absolute() else folder / made.path)


def config_only(folder: Path, table: Mapping[str, Any] | None = None) -> Path:
    """A folder with nothing but a config.json."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(table or {"architectures": ["LlamaForCausalLM"]}), "utf-8")
    return folder
