"""The yardsticks: formulae, what may and what may not move them, the published reading, references for scale."""

from __future__ import annotations

import dataclasses
import json
import lzma
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.small import SEPARATOR, VOCAB, CausalMean, Uniform, byte_split, token_split
from farthing.data.split import TokenSplit
from farthing.errors import UserError
from farthing.evals.legacy import legacy_titles, legacy_tokens
from farthing.evals.references import references
from farthing.evals.scorer import Score, score
from farthing.evals.yardstick import YARDSTICK_VERSION, auto_batch_size, evaluate, yardsticks
from farthing.recipe.running import Evaluate

TEXTS = ["Show HN: é 漢 🙂", "Ask HN", "", "Why not?"]
HOW = {"context_length": 8, "stride": 8, "batch_size": 4, "device": "cpu"}
RUN = {"context_length": 8, "train_batch_size": 2, "train_precision": "bf16", "device": "cpu"}


def made_up_score(nats: float, tokens: int, **changes: object) -> Score:
    whole = Score(
        nats=nats, tokens=tokens, separator_nats=1.0, separators=2, context_length=8, stride=8, precision="fp32"
    )
    return dataclasses.replace(whole, **changes)


def test_formulae() -> None:
    split = byte_split(["é漢", "ab"])
    assert (split.bytes, split.characters, len(split.tokens_N)) == (7, 4, 9)
    readings = yardsticks(made_up_score(14 * math.log(2), 9), split)
    assert readings["bits_per_byte"] == pytest.approx(2.0)
    assert readings["nats_per_token"] == pytest.approx(14 * math.log(2) / 9)
    assert readings["perplexity"] == pytest.approx(2 ** (14 / 9))
    assert readings["nats_per_character"] == pytest.approx(14 * math.log(2) / 4)
    assert (readings["tokens"], readings["bytes"], readings["characters"], readings["documents"]) == (9, 7, 4, 2)
    assert (readings["split"], readings["fingerprint"]) == ("validation", "0" * 64)
    assert (readings["context_length"], readings["stride"], readings["precision"]) == (8, 8, "fp32")
    assert readings["version"] == YARDSTICK_VERSION
    assert "legacy_titles" not in readings
    json.dumps(readings, allow_nan=False)


def test_uniform_model_reads_log_vocabulary() -> None:
    split = byte_split(TEXTS)
    readings = yardsticks(score(Uniform(), split, **HOW), split)
    assert readings["perplexity"] == pytest.approx(VOCAB)
    assert readings["bits_per_byte"] == pytest.approx(math.log2(VOCAB) * len(split.tokens_N) / split.bytes)


def test_the_cost_of_document_ends_is_counted_but_not_their_bytes() -> None:
    whole, cut = byte_split(["abcd"]), byte_split(["ab", "cd"])
    one = yardsticks(score(Uniform(), whole, **HOW), whole)
    two = yardsticks(score(Uniform(), cut, **HOW), cut)
    assert two["bytes"] == one["bytes"] == 4
    assert two["bits_per_byte"] == pytest.approx(one["bits_per_byte"] * 6 / 5)
    assert two["separator_share"] == pytest.approx(2 / 6)


@given(texts=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5), merge=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_the_tokenizer_cannot_move_a_reading_that_costs_the_same(texts: list[str], merge: int) -> None:
    # A tokenizer of `merge` bytes a token, under a model that charges each byte alike, must read the same.
    split = byte_split(texts)
    coarse = np.array([t for text in texts for t in [*[0] * -(-len(text.encode()) // merge), 1]], dtype=np.uint16)
    other = token_split(coarse, texts, separator=1)
    nats = 3.0 * split.bytes
    fine = yardsticks(made_up_score(nats, len(split.tokens_N)), split)
    rough = yardsticks(made_up_score(nats, len(coarse)), other)
    for name in ("bits_per_byte", "nats_per_character", "bytes", "characters"):
        assert fine[name] == rough[name]


@pytest.mark.parametrize("nats", [math.nan, math.inf])
def test_a_diverged_model_reads_null(nats: float) -> None:
    split = byte_split(TEXTS)
    readings = yardsticks(made_up_score(nats, len(split.tokens_N)), split)
    assert readings["bits_per_byte"] is readings["perplexity"] is readings["nats_per_token"] is None
    json.dumps(readings, allow_nan=False)


def test_a_perplexity_too_large_for_a_number_is_null() -> None:
    split = byte_split(["a"])
    assert yardsticks(made_up_score(2e4, 2), split)["perplexity"] is None


def test_text_without_bytes_is_refused() -> None:
    split = byte_split(["", ""])
    with pytest.raises(UserError, match="no text: all its 2 documents are empty"):
        yardsticks(score(Uniform(), split, **HOW), split)


def test_a_score_of_other_tokens_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        yardsticks(made_up_score(1.0, 3), byte_split(TEXTS))


# The published reading


@pytest.mark.parametrize(
    ("tokens_a_step", "coverage"),
    [(2048, 0.997), (4096, 0.980), (8192, 0.946), (16384, 0.946), (32768, 0.811), (65536, 0.541)],
)
def test_published_coverages(tokens_a_step: int, coverage: float) -> None:
    tokens = 121_200
    for context in (128, 256):
        scored = legacy_tokens(tokens, context_length=context, batch_size=tokens_a_step // context)
        assert round(scored / tokens, 3) == coverage


def test_published_reading_by_hand() -> None:
    # 12 tokens, windows of 2 x 2 + 1: targets 1-4 and 6-9 count; 0, 5, 10 and 11 do not.
    split = byte_split(["abc", "defg", "hi"])
    assert len(split.tokens_N) == 12 and split.characters == 9
    seen: list[list[list[int]]] = []

    class Watch(Uniform):
        def forward(self, tokens_BT: torch.Tensor, segments_BT: torch.Tensor | None = None) -> torch.Tensor:
            seen.append(tokens_BT.tolist())
            return super().forward(tokens_BT)

    reading = legacy_titles(
        Watch(), split, context_length=2, train_batch_size=2, batch_size=100, device="cpu", segments=False
    )
    stream = split.tokens_N.tolist()
    assert seen == [[stream[0:2], stream[2:4], stream[5:7], stream[7:9]]]
    assert reading.tokens == 8 and reading.coverage == pytest.approx(8 / 12)
    assert reading.characters == 9 + 3 * 5
    assert reading.nats_per_character == pytest.approx(8 * math.log(VOCAB) / 24)


def published(model: torch.nn.Module, split: TokenSplit, titles: list[str], *, batch: int, context: int) -> float:
    """The published procedure again, step by step, sharing nothing with ours."""
    stream = torch.tensor([int(t) for t in split.tokens_N])
    span, position, nats = batch * context + 1, 0, 0.0
    model.eval()
    while position + span <= len(stream):
        piece = stream[position : position + span]
        with torch.no_grad():
            logits = model(piece[:-1].view(batch, context))
        nats += float(torch.nn.functional.cross_entropy(logits.view(-1, VOCAB), piece[1:], reduction="sum"))
        position += span
    return nats / len("".join(title + "<eos>" for title in titles))


@pytest.mark.parametrize("at_once", [1, 3, 64])
@pytest.mark.parametrize(("batch", "context"), [(1, 4), (3, 5), (4, 8)])
def test_published_reading_equals_an_independent_one(batch: int, context: int, at_once: int) -> None:
    titles = [*TEXTS * 5, "the tail"]
    split, model = byte_split(titles), CausalMean()
    reading = legacy_titles(
        model, split, context_length=context, train_batch_size=batch, batch_size=at_once, device="cpu"
    )
    expected = published(model, split, titles, batch=batch, context=context)
    assert reading.nats_per_character == pytest.approx(expected, rel=1e-6)


def test_a_larger_training_batch_flatters_the_published_reading_only() -> None:
    split = byte_split(TEXTS * 5)
    found = {
        size: evaluate(Uniform(), split, Evaluate(legacy="titles"), **(RUN | {"train_batch_size": size}))
        for size in (1, 12)
    }
    assert found[12]["legacy_titles"] < found[1]["legacy_titles"] * 0.8
    assert found[12]["legacy_coverage"] < found[1]["legacy_coverage"]
    assert found[12]["bits_per_byte"] == found[1]["bits_per_byte"]


def test_no_full_window_reads_null_with_coverage_nought() -> None:
    readings = evaluate(Uniform(), byte_split(TEXTS), Evaluate(legacy="titles"), **(RUN | {"train_batch_size": 99}))
    assert readings["legacy_titles"] is None and readings["legacy_coverage"] == 0.0


# The recipe's [evaluate]


def test_evaluate_follows_its_section() -> None:
    split, model = byte_split(TEXTS * 2), CausalMean()
    plain = evaluate(model, split, Evaluate(), **RUN)
    assert (plain["stride"], plain["precision"]) == (8, "fp32") and "legacy_titles" not in plain
    other = evaluate(model, split, Evaluate(stride=2, precision="train", batch_size=3), **RUN)
    assert (other["stride"], other["precision"]) == (2, "bf16")
    assert plain["bits_per_byte"] == pytest.approx(
        evaluate(model, split, Evaluate(batch_size=1), **RUN)["bits_per_byte"], rel=1e-6
    )


def test_automatic_batch_is_never_nought() -> None:
    assert auto_batch_size(1_000_000, device="cpu") == 1
    assert auto_batch_size(128, device="cuda") > auto_batch_size(128, device="cpu") >= 16


# References for scale

PROSE = [f"Line {n} says: the quick brown fox jumps over the lazy dog {n * n} times." for n in range(200)]


def test_xz_is_xz_9() -> None:
    split = byte_split(PROSE)
    text = "".join(line + "\n" for line in PROSE).encode()
    found = references(split, training=None, vocab_size=VOCAB)
    assert found["xz"] == pytest.approx(8 * len(lzma.compress(text, preset=9)) / split.bytes, rel=2e-3)
    assert 0 < found["zstd"] < 2 and found["bytes"] == split.bytes == len(text) - len(PROSE)
    assert found["unigram"] is None


def test_unigram_by_hand() -> None:
    training = token_split(np.array([0, 0, 0, 2], dtype=np.uint16), ["aaa"], separator=2)
    split = token_split(np.array([0, 1, 2], dtype=np.uint16), ["ab"], separator=2)
    # Counts 3, 0, 1 and half a count each: 3.5, 0.5 and 1.5 of 5.5.
    expected = -math.log2(3.5 / 5.5) - math.log2(0.5 / 5.5) - math.log2(1.5 / 5.5)
    assert references(split, training=training, vocab_size=3)["unigram"] == pytest.approx(expected / 2)


def test_unigram_is_a_probability_whatever_it_was_counted_on() -> None:
    training = byte_split(PROSE[:5])
    total = sum(
        2 ** -references(token_split(np.array([t], dtype=np.uint16), ["x"], separator=t), training=training,
                         vocab_size=VOCAB)["unigram"]
        for t in range(VOCAB)
    )  # fmt: skip
    assert total == pytest.approx(1)


def test_long_and_empty_texts_get_a_reason() -> None:
    split = byte_split(PROSE)
    assert "above the" in references(split, training=None, vocab_size=VOCAB, max_bytes=100)["reason"]
    assert "empty" in references(byte_split([""]), training=None, vocab_size=VOCAB)["reason"]


def test_separator_is_no_part_of_the_text() -> None:
    longer = byte_split(PROSE)
    renamed = token_split(np.where(longer.tokens_N == SEPARATOR, 300, longer.tokens_N), PROSE, separator=300)
    assert yardsticks(made_up_score(9.0, len(longer.tokens_N)), longer) == yardsticks(
        made_up_score(9.0, len(renamed.tokens_N)), renamed
    )
