"""One small run, trained for ten steps, and one server of it for everyone who only asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.small import RECIPE, TITLES
from farthing import api
from farthing.api import TrainedModel
from farthing.serving.engine import Engine
from serving.child import Child, served


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    (folder / "titles.txt").write_text(TITLES, "utf-8")
    (folder / "tiny.toml").write_text(RECIPE, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["budget.steps=10", "model.context_length=64", "train.precision=fp32", "tokenizer.kind=bpe"]
        api.train("tiny.toml", [*words, "tokenizer.vocab_size=300"], name="tiny", quiet=True)
    return folder


@pytest.fixture(scope="session")
def opened(home: Path) -> TrainedModel:
    return api.open_model("tiny", runs=home / "runs", device="cpu")


@pytest.fixture(scope="session")
def engine(opened: TrainedModel) -> Engine:
    return Engine(opened.model, opened.tokenizer, precision=opened.precision, max_tokens=500)


@pytest.fixture(scope="session")
def server(home: Path) -> Iterator[Child]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        assert "FARTHING_TOKEN" not in os.environ
        with served(home, home / "server.log") as child:
            yield child
