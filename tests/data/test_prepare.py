"""prepare: the streams are the documents, the cache is trusted only as far as it verifies, the receipt tells all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from farthing.data.prepare import Prepared, prepare, prepare_held_out
from farthing.data.split import TokenSplit
from farthing.errors import UserError
from farthing.recipe.data import Bpe, ByteTokenizer, PyStdlib, Text, TokenizerFile, Unigram

LINES = [f"line {i}: the number {i * i} is the square of {i}" for i in range(200)]


def write(folder: Path, lines: list[str], name: str = "t.txt") -> None:
    (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def section(**fields: Any) -> Text:
    return Text.model_validate({"path": "t.txt", "documents": "line", **fields})


def run(folder: Path, data: Any = None, tokenizer: Any = None, context_length: int = 8) -> Prepared:
    return prepare(
        data or section(),
        tokenizer or ByteTokenizer(),
        directory=folder,
        cache=folder / "cache",
        context_length=context_length,
    )


def documents_of(split: TokenSplit) -> list[bytes]:
    """A byte stream's documents, from what each separator ends."""
    tokens_N = np.asarray(split.tokens_N)
    assert tokens_N[-1] == split.separator
    ends = np.flatnonzero(tokens_N == split.separator)
    starts = np.concatenate(([0], ends[:-1] + 1))
    return [tokens_N[start:end].astype(np.uint8).tobytes() for start, end in zip(starts, ends, strict=True)]


@settings(max_examples=15)
@given(st.lists(st.text(alphabet="ab <eos>ü四", min_size=1, max_size=9), min_size=4, max_size=40, unique=True))
def test_every_document_is_in_exactly_one_stream(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    folder = tmp_path_factory.mktemp("prepare")
    write(folder, lines)
    made = run(folder, section(validation=1, test=1), context_length=1)
    assert made.test is not None
    found: list[bytes] = []
    for split in (made.train, made.validation, made.test):
        documents = documents_of(split)
        assert documents == [text.encode() for text in split.texts()] == [text.encode() for text in split.texts()]
        assert split.documents == len(documents) and split.bytes == sum(map(len, documents))
        assert split.characters == sum(len(document.decode()) for document in documents)
        found += documents
    assert sorted(found) == sorted(line.encode() for line in lines)


def test_the_receipt_is_json_with_counts_and_fingerprints(tmp_path: Path) -> None:
    write(tmp_path, [*LINES, ""])
    made = run(tmp_path, tokenizer=Bpe(vocab_size=300))
    receipt = json.loads(json.dumps(made.receipt))
    assert receipt["files"][0]["bytes"] == (tmp_path / "t.txt").stat().st_size
    assert receipt["empty_documents_dropped"] == 1
    assert receipt["parts"]["train"]["documents"] == 180 and receipt["parts"]["validation"]["documents"] == 20
    assert receipt["parts"]["train"]["fingerprint"] == made.train.fingerprint
    assert receipt["parts"]["train"]["tokens"] == len(made.train.tokens_N)
    assert receipt["tokenizer"] == {
        "kind": "bpe", "vocab_size": 300, "fingerprint": made.tokenizer.fingerprint,
    }  # fmt: skip


def test_a_second_run_encodes_and_trains_nothing(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    first = run(tmp_path, tokenizer=Bpe(vocab_size=300))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.*")}
    stages: list[str] = []
    again = prepare(
        section(), Bpe(vocab_size=300), directory=tmp_path, cache=tmp_path / "cache", context_length=8,
        report=lambda stage, done, total: stages.append(stage),
    )  # fmt: skip
    assert not stages and again.receipt == first.receipt
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.*")} == before


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    last: dict[str, tuple[float, float]] = {}
    prepare(
        section(), Bpe(vocab_size=300), directory=tmp_path, cache=tmp_path / "cache", context_length=8,
        report=lambda stage, done, total: last.update({stage: (done, total)}),
    )  # fmt: skip
    assert set(last) == {"reading", "training tokenizer", "tokenising"}
    assert all(done == total > 0 for done, total in last.values())


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_shard_is_built_again(damage: str, tmp_path: Path) -> None:
    write(tmp_path, LINES)
    wanted = np.array(run(tmp_path).train.tokens_N)
    (path,) = (tmp_path / "cache").rglob("train.tokens")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw if damage == "flip" else raw[:-2])
    assert np.array_equal(run(tmp_path).train.tokens_N, wanted)


def test_tokenizers_learn_from_training_documents_only(tmp_path: Path) -> None:
    write(tmp_path, ["abab abab"] * 30 + ["zqzqzq zqzqzq"] * 4)
    data = section(split="tail", validation=4)
    honest = run(tmp_path, data, Bpe(vocab_size=259)).tokenizer
    leaky = run(tmp_path, data, Bpe(vocab_size=261, train_on="train+validation")).tokenizer
    assert len(honest.encode("zqzq")) == 4 > len(leaky.encode("zqzq"))


@pytest.mark.parametrize("kind", [Bpe, Unigram])
def test_a_vocabulary_that_the_text_cannot_fill_is_refused_with_one_that_fits(
    kind: type[Bpe] | type[Unigram], tmp_path: Path
) -> None:
    write(tmp_path, LINES)
    with pytest.raises(UserError, match=r"tokenizer.vocab_size = 100000: .* supports only (\d+) tokens") as refused:
        run(tmp_path, tokenizer=kind(vocab_size=100_000))
    fits = int(str(refused.value).split("supports only ")[1].split()[0])
    assert run(tmp_path, tokenizer=kind(vocab_size=fits)).tokenizer.vocab_size == fits


def test_a_tokenizer_that_loses_validation_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [line.lower() for line in LINES[:-1]] + ["here Comes a capital"])
    lossy = tokenizers.Tokenizer(tokenizers.models.BPE())
    lossy.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    lossy.decoder = tokenizers.decoders.ByteLevel()
    lossy.normalizer = tokenizers.normalizers.Lowercase()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"])
    lossy.train_from_iterator(LINES, trainer)
    lossy.save(str(tmp_path / "lossy.json"))
    kind = TokenizerFile(path="lossy.json", separator="<end>")
    with pytest.raises(UserError, match=r"loses text: document 1 of the validation part .*'Comes.*character 6"):
        run(tmp_path, section(split="tail", validation=1), kind)
    assert run(tmp_path, section(split="tail", validation=1, limit=150), kind).validation.documents == 1


def test_too_little_text_is_refused_with_the_numbers(tmp_path: Path) -> None:
    write(tmp_path, ["abc", "def"])
    with pytest.raises(UserError, match=r"has 4 tokens \(3 bytes in 1 documents\).*needs 9"):
        run(tmp_path, section(validation=1))


def test_repeated_documents_across_the_split_are_warned_of(tmp_path: Path) -> None:
    write(tmp_path, [*LINES[:18], LINES[0], LINES[1]])
    warnings = dict(run(tmp_path, section(split="tail", validation=4)).warnings)
    assert "2 of 4 validation documents (50.0%)" in warnings["data_leak"]
    assert "data_leak" not in dict(run(tmp_path, section(split="tail", validation=4, limit=18)).warnings)


def test_unseen_tokens_are_warned_of(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    assert "unseen_tokens" not in dict(run(tmp_path).warnings)
    write(
        tmp_path, [f"{a}{b}{c}{d}" for a in "BDGKLM" for b in "AIOU" for c in "NPRS" for d in "AEIO"] * 3, "other.txt"
    )
    other = section(path="other.txt")
    made = run(tmp_path, other, Bpe(vocab_size=360)).tokenizer
    (tmp_path / "made.json").write_text(made.to_json(), encoding="utf-8")
    elsewhere = run(tmp_path, tokenizer=TokenizerFile(path="made.json", separator=made.separator_text))
    assert "of 360 tokens of the vocabulary" in dict(elsewhere.warnings)["unseen_tokens"]


def test_own_files_and_held_out_files_are_cut_as_the_data_is(tmp_path: Path) -> None:
    write(tmp_path, LINES)
    write(tmp_path, ["eins", "", "zwei"], "my val ü.txt")
    made = run(tmp_path, section(validation="my val ü.txt"))
    assert list(made.validation.texts()) == ["eins", "zwei"] and made.train.documents == len(LINES)
    scored = prepare_held_out(section(), "my val ü.txt", made.tokenizer, directory=tmp_path, cache=tmp_path / "cache")
    assert documents_of(scored) == [b"eins", b"zwei"] and scored.fingerprint == made.validation.fingerprint
    whole = prepare_held_out(PyStdlib(), "my val ü.txt", made.tokenizer, directory=tmp_path, cache=tmp_path / "cache")
    assert documents_of(whole) == [b"eins\n\nzwei\n"]
    with pytest.raises(UserError, match=r"--data = 'none.txt': no such file"):
        prepare_held_out(section(), "none.txt", made.tokenizer, directory=tmp_path, cache=tmp_path / "cache")
    with pytest.raises(UserError, match=r"data.validation = 'none.txt': no such file"):
        run(tmp_path, section(validation="none.txt"))
    with pytest.raises(UserError, match="identical to the training text"):
        run(tmp_path, section(validation="t.txt"))


def test_a_long_document_encodes_in_pieces_as_it_would_whole(tmp_path: Path) -> None:
    book = "".join(f"{line}\n\n  {line} 's\n{line}ü\n" for line in LINES) * 300
    (tmp_path / "book.txt").write_text(book, encoding="utf-8")
    write(tmp_path, LINES)
    data = Text(path="book.txt", validation="t.txt")
    made = run(tmp_path, data, Bpe(vocab_size=300, sample_bytes=10_000))
    assert made.train.documents == 1 and made.train.bytes == len(book.encode()) > 1 << 22
    assert made.train.tokens_N[:-1].tolist() == made.tokenizer.encode(book)


_MEASURE = """
import sys
from pathlib import Path
from farthing.data.prepare import prepare
from farthing.recipe.data import ByteTokenizer, Text
def peak():  # not ru_maxrss, which a child inherits
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
folder, documents = Path(sys.argv[1]), sys.argv[2]
data = Text(path="big.txt", documents=documents, validation="t.txt")
small = Text(path="t.txt", documents="line")
kind = ByteTokenizer()
prepare(small, kind, directory=folder, cache=folder / "cache", context_length=8)
before = peak()
made = prepare(data, kind, directory=folder, cache=folder / "cache", context_length=8)
assert made.train.documents == (1 if documents == "file" else 400_000)
print(peak() - before, made.train.bytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize("documents", ["line", "file"])
def test_memory_does_not_grow_with_the_text(documents: str, tmp_path: Path) -> None:
    write(tmp_path, LINES)
    (tmp_path / "big.txt").write_text("".join(line * 10 + "\n" for line in LINES) * 2_000)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path), documents], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    grown, size = map(int, done.stdout.split())
    assert size > 160_000_000
    assert grown < 150_000_000, f"{grown / 1e6:.0f} MB"
