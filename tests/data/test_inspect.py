"""Reports on tokenizers: each number against the same counted by hand."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from farthing.data.inspect import PERCENTILES, compare, inspect
from farthing.data.tokenizer import LONG, Tokenizer, build_tokenizer
from farthing.errors import UserError
from farthing.recipe.data import Bpe, ByteTokenizer, Unigram

TEXT = ["the cat sat on the mat", "the dog sat", "", "naïve 你好 " * 3, "on and on and on"]


def build(section: Bpe | Unigram | ByteTokenizer) -> Tokenizer:
    return build_tokenizer(section, lambda: iter(TEXT * 4), directory=Path())


BPE = build(Bpe(vocab_size=290))
BYTE = build(ByteTokenizer())


@given(st.lists(st.text("ab the cat é我\n", max_size=30), min_size=1, max_size=20).filter(any))
@settings(max_examples=50)
def test_numbers_are_those_counted_by_hand(texts: list[str]) -> None:
    report = inspect(BPE, iter(texts), d_model=8, parameters=10_000, show=5)
    encoded = [BPE.encode(text) for text in texts]
    counts = Counter(token for ids in encoded for token in ids)
    total, size = sum(counts.values()), sum(len(text.encode()) for text in texts)
    assert (report.documents, report.tokens, report.bytes) == (len(texts), total, size)
    assert report.characters == sum(map(len, texts))
    assert report.bytes_per_token == size / total
    assert report.characters_per_token == report.characters / total
    assert report.tokens_seen == len(counts)
    assert report.coverage == len(counts) / BPE.vocab_size
    entropy = -sum(n / total * math.log2(n / total) for n in counts.values())
    assert report.unigram_bits_per_byte == pytest.approx(entropy * total / size, abs=1e-12)
    assert {use.token: use.count for use in report.most_used}.items() <= counts.items()
    assert [use.count for use in report.most_used] == sorted(counts.values(), reverse=True)[:5]
    ranked = sorted(counts.values(), reverse=True)
    assert all(count == ranked[rank - 1] for rank, count in report.frequency_curve)
    assert report.frequency_curve[-1] == (len(ranked), ranked[-1])
    lengths = sorted(map(len, encoded))
    assert dict(report.length_percentiles)[0] == lengths[0]
    assert dict(report.length_percentiles)[100] == lengths[-1]
    assert dict(report.length_percentiles)[50] == lengths[(len(lengths) - 1) // 2]
    assert report.embedding_parameters == BPE.vocab_size * 8
    assert report.parameter_share == BPE.vocab_size * 8 / 10_000
    assert report.unknown_rate == 0


def test_least_used_are_learned_tokens_that_the_text_hardly_uses() -> None:
    report = inspect(BPE, ["the the the cat"], show=300)
    learned = {token for token in range(BPE.vocab_size) if len(BPE.token_bytes(token)) > 1}
    assert {use.token for use in report.least_used} == learned
    assert [use.count for use in report.least_used] == sorted(use.count for use in report.least_used)
    assert report.least_used[0].count == 0
    assert " the" in {use.text for use in report.least_used[-3:]}


def test_long_documents_count_as_short_ones() -> None:
    book = "the cat sat on the mat.\n" * (LONG // 16)
    report = inspect(BPE, ["short", book, "short"])
    assert report.documents == 3
    assert report.tokens == len(BPE.encode(book)) + 2 * len(BPE.encode("short"))
    assert dict(report.length_percentiles)[100] == len(BPE.encode(book))


def test_a_report_is_plain_data() -> None:
    report = inspect(BPE, TEXT)
    table = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert table["vocab_size"] == BPE.vocab_size
    assert table["parameter_share"] is table["embedding_parameters"] is None
    assert [percentile for percentile, _ in table["length_percentiles"]] == list(PERCENTILES)
    assert table["most_used"][0]["text"]


def test_unknown_tokens_are_counted() -> None:
    words = Library(models.WordLevel({"the": 0, "cat": 1, "[UNK]": 2, "<eos>": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = Tokenizer.from_json(words.to_str(), separator="<eos>")
    assert inspect(made, ["the cat sat", "the mat"]).unknown_rate == 2 / 5
    assert made.lossy


def test_no_text_is_refused() -> None:
    for nothing in ([], ["", ""]):
        with pytest.raises(UserError, match="no text to inspect"):
            inspect(BPE, nothing)


def test_comparison_has_a_row_for_each() -> None:
    reports = {
        "byte": inspect(BYTE, TEXT),
        "bpe": inspect(BPE, TEXT),
        "unigram": inspect(build(Unigram(vocab_size=290)), TEXT),
    }
    rows = compare(reports)
    assert [row["name"] for row in rows] == ["byte", "bpe", "unigram"]
    assert rows[0]["relative_tokens"] == rows[0]["bytes_per_token"] == 1
    assert rows[1]["relative_tokens"] == reports["bpe"].tokens / reports["byte"].tokens < 1
    assert len({tuple(row) for row in rows}) == 1
    assert compare({}) == []
    with pytest.raises(UserError, match="different texts"):
        compare({"one": inspect(BPE, TEXT), "two": inspect(BPE, TEXT[:2])})
