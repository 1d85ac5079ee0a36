"""Tokenising in processes gives what tokenising here gives, and says so when a process dies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from farthing.data.encoders import encoders
from farthing.data.tokenizer import Tokenizer, build_tokenizer
from farthing.errors import ResourceError
from farthing.recipe.data import Bpe, ByteTokenizer

TEXTS = ["", "one two", "drei\n\nvier 四 <eos>", "x" * 100_000, *(f"{i} times {i} is {i * i}" for i in range(50))]


def built(kind: type[Bpe] | type[ByteTokenizer]) -> Tokenizer:
    section = Bpe(vocab_size=300) if kind is Bpe else ByteTokenizer()
    return build_tokenizer(section, lambda: iter(TEXTS), directory=Path())


@pytest.mark.parametrize("kind", [Bpe, ByteTokenizer])
def test_processes_give_the_same_tokens_in_the_same_order(kind: type[Bpe] | type[ByteTokenizer]) -> None:
    tokenizer = built(kind)
    wanted = tokenizer.encode_batch_arrays(TEXTS)
    for processes in (0, 2):
        with encoders(tokenizer, 0, processes=processes) as ready:
            futures = [ready.submit(TEXTS[first : first + 9]) for first in range(0, len(TEXTS), 9)]
            found = [array for future in futures for array in future.result(timeout=60)]
        assert len(found) == len(wanted)
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(found, wanted, strict=True))


def test_little_text_is_not_worth_a_process() -> None:
    with encoders(built(ByteTokenizer), 12_000_000) as ready:
        assert ready.under_way == 1


def test_a_process_that_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impostor = tmp_path / "python"
    impostor.write_text("#!/bin/sh\nexit 9\n")
    impostor.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(impostor))
    with encoders(built(ByteTokenizer), 0, processes=2) as ready, pytest.raises(ResourceError, match="exit code 9"):
        ready.submit(["a"]).result(timeout=60)
