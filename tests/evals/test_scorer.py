"""Scoring: every token once, whatever the window, stride, batch or surroundings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.small import SEPARATOR, VOCAB, CausalMean, Uniform, WholeLogits, brute_force, byte_split, token_split
from farthing.errors import ResourceError, UserError
from farthing.evals.scorer import score, token_nats, windows

TEXTS = ["To be, or not to be", "", "that is the question:", "é 漢 🙂", "x"]
HOW = {"context_length": 8, "stride": 8, "batch_size": 4, "device": "cpu"}


@given(tokens=st.integers(0, 300), context=st.integers(1, 40), share=st.floats(0, 1))
def test_windows_count_every_token_exactly_once_in_order(tokens: int, context: int, share: float) -> None:
    stride = max(1, round(share * context))
    found = list(windows(tokens, context_length=context, stride=stride))
    assert [t for window in found for t in range(window.scored, window.end)] == list(range(tokens))
    for window in found:
        assert 0 <= window.start <= window.scored < window.end <= window.start + context
    for window in found[1:]:
        assert window.scored - window.start == context - stride


@given(
    documents=st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=6),
    context=st.integers(1, 9),
    share=st.floats(0, 1),
    batch=st.integers(1, 5),
)
@settings(max_examples=25, deadline=None)
def test_equals_brute_force_token_by_token(documents: list[list[int]], context: int, share: float, batch: int) -> None:
    stride = max(1, round(share * context))
    tokens = np.array([t for document in documents for t in [*document, 10]], dtype=np.uint32)
    split = token_split(tokens, ["?"] * len(documents), separator=10)
    model = CausalMean(vocab=11)
    expected = brute_force(model, split, context_length=context, stride=stride)
    pieces = token_nats(
        model, tokens, 10, context_length=context, stride=stride, batch_size=batch, device="cpu",
        precision="fp32", segments=False,
    )  # fmt: skip
    np.testing.assert_allclose(np.concatenate(list(pieces)), expected, rtol=2e-5, atol=1e-5)


def test_stride_one_gives_every_token_the_longest_context() -> None:
    split, model = byte_split(TEXTS), CausalMean()
    model.eval()
    stream = [SEPARATOR, *map(int, split.tokens_N)]
    expected = 0.0
    for end in range(1, len(stream)):
        inputs = torch.tensor([stream[max(0, end - 8) : end]])
        expected -= float(model(inputs)[0, -1].double().log_softmax(0)[stream[end]].detach())
    assert score(model, split, **(HOW | {"stride": 1})).nats == pytest.approx(expected, rel=1e-6)


def test_uniform_model_costs_log_vocabulary_a_token() -> None:
    split = byte_split(TEXTS)
    found = score(Uniform(), split, **HOW)
    assert found.tokens == len(split.tokens_N) == sum(len(text.encode()) + 1 for text in TEXTS)
    assert found.nats == pytest.approx(found.tokens * math.log(VOCAB), rel=1e-7)
    assert found.separators == len(TEXTS)
    assert found.separator_nats == pytest.approx(len(TEXTS) * math.log(VOCAB), rel=1e-7)


@pytest.mark.parametrize("stride", [3, 8])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("segments", [False, True])
def test_batch_size_moves_nothing(batch_size: int, stride: int, segments: bool) -> None:
    split, model = byte_split(TEXTS * 3), CausalMean()
    one = score(model, split, **(HOW | {"batch_size": 5, "stride": stride, "segments": segments, "documents": True}))
    other = score(
        model, split, **(HOW | {"batch_size": batch_size, "stride": stride, "segments": segments, "documents": True})
    )
    assert other.nats == pytest.approx(one.nats, rel=1e-6)
    assert other.separator_nats == pytest.approx(one.separator_nats, rel=1e-6)
    assert one.document_nats_M is not None and other.document_nats_M is not None
    np.testing.assert_allclose(other.document_nats_M, one.document_nats_M, rtol=1e-6)


def test_logits_in_pieces_equal_whole_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    split, model = byte_split(TEXTS * 20), CausalMean()
    monkeypatch.setattr("farthing.evals.forward._LOGITS", {"cpu": 70 * VOCAB})
    seen: list[int] = []
    model.head.register_forward_hook(lambda _head, _inputs, logits: seen.append(len(logits)))
    pieces = score(model, split, **(HOW | {"batch_size": 100}))
    assert max(seen) <= 70 and sum(seen) == pieces.tokens
    whole = score(WholeLogits(model), split, **(HOW | {"batch_size": 100}))
    assert pieces.nats == pytest.approx(whole.nats, rel=1e-6)


def test_context_is_only_read_not_counted() -> None:
    split, model = byte_split(["abcdefghijklmnopqrstuvwxyz"]), CausalMean()
    by_stride = {stride: score(model, split, **(HOW | {"stride": stride})) for stride in (1, 4, 8)}
    assert {found.tokens for found in by_stride.values()} == {27}
    assert len({round(found.nats, 3) for found in by_stride.values()}) == 3


def test_document_nats_add_up_and_follow_the_documents() -> None:
    split, model = byte_split(TEXTS), CausalMean()
    found = score(model, split, **(HOW | {"documents": True}))
    nats = brute_force(model, split, context_length=8, stride=8)
    ends = np.flatnonzero(split.tokens_N == SEPARATOR) + 1
    expected = [part.sum() for part in np.split(nats, ends)[:-1]]
    assert found.document_nats_M is not None
    np.testing.assert_allclose(found.document_nats_M, expected, rtol=1e-5)
    assert found.document_nats_M.sum() == pytest.approx(found.nats)


def test_a_stream_without_a_last_separator_is_scored_whole() -> None:
    split = token_split(np.array([1, 2, 3, 4], dtype=np.uint16), ["?", "?"], separator=3)
    found = score(CausalMean(), split, **(HOW | {"documents": True}))
    assert found.tokens == 4 and found.document_nats_M is not None and len(found.document_nats_M) == 2


def test_segments_number_the_documents_of_a_row() -> None:
    seen: list[torch.Tensor] = []

    class Watch(Uniform):
        def forward(self, tokens_BT: torch.Tensor, segments_BT: torch.Tensor | None = None) -> torch.Tensor:
            assert segments_BT is not None
            seen.append(torch.stack([tokens_BT, segments_BT]))
            return super().forward(tokens_BT)

    score(Watch(), byte_split(["ab", "c"]), **(HOW | {"context_length": 4, "stride": 4, "segments": True}))
    (both,) = seen
    a, b, c, end = *b"abc", SEPARATOR
    assert both[0].tolist() == [[end, a, b, end], [c, end, end, end]]
    assert both[1, 0].tolist() == [1, 1, 1, 2]
    assert both[1, 1, :1].tolist() == [0]


def test_training_state_is_untouched() -> None:
    model = CausalMean()
    model.train()
    model.body[0].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = score(model, byte_split(TEXTS), **HOW)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert model.saw_grad == {False}, "the forward pass recorded gradients"
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert score(model, byte_split(TEXTS), **HOW) == first, "dropout was on"


def test_random_state_survives_a_model_that_draws() -> None:
    class Draws(Uniform):
        def forward(self, tokens_BT: torch.Tensor, segments_BT: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(tokens_BT) + 0 * torch.rand(1)

    torch.manual_seed(7)
    before = torch.get_rng_state()
    score(Draws(), byte_split(TEXTS), **HOW)
    assert torch.equal(torch.get_rng_state(), before)


def test_state_comes_back_after_a_failure() -> None:
    class Fails(CausalMean):
        def hidden(self, tokens_BT: torch.Tensor, segments_BT: torch.Tensor | None = None) -> torch.Tensor:
            raise RuntimeError("out of memory")

    model = Fails().train()
    with pytest.raises(RuntimeError, match="out of memory"):
        score(model, byte_split(TEXTS), **HOW)
    assert all(module.training for module in model.modules())
    assert not torch.is_inference_mode_enabled()


def test_fp32_is_fp32_in_any_surroundings() -> None:
    split = byte_split(TEXTS)
    expected = score(CausalMean(), split, **HOW)
    model, matmul = CausalMean(), torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    inside: list[str] = []
    model.register_forward_pre_hook(lambda *_: inside.append(matmul.fp32_precision))
    model.head.register_forward_pre_hook(lambda *_: inside.append(matmul.fp32_precision))
    try:
        matmul.fp32_precision = "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert score(model, split, **HOW) == expected
        assert set(inside) == {"ieee"} and matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = before
    assert model.dtypes == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_used_and_close(precision: str) -> None:
    split, model = byte_split(TEXTS), CausalMean()
    exact = score(model, split, **HOW)
    model.dtypes.clear()
    rough = score(model, split, **(HOW | {"precision": precision}))
    assert model.dtypes == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    assert rough.nats == pytest.approx(exact.nats, rel=0.02) and rough.nats != exact.nats


def test_scoring_inside_autocast_leaves_training_able_to_go_on() -> None:
    model = CausalMean()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score(model, byte_split(TEXTS), **(HOW | {"precision": "bf16"}))
        loss = model(torch.tensor([[1, 2, 3]])).float().sum()
    loss.backward()
    assert model.head.weight.grad is not None


class Crowded(CausalMean):
    """Has no memory for more than some rows at a time."""

    def __init__(self, rows: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.rows, self.error = rows, error
        self.asked: list[int] = []

    def hidden(self, tokens_BT: torch.Tensor, segments_BT: torch.Tensor | None = None) -> torch.Tensor:
        self.asked.append(len(tokens_BT))
        if len(tokens_BT) > self.rows:
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nat somewhere")
        return super().hidden(tokens_BT, segments_BT)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
@pytest.mark.parametrize("segments", [False, True])
def test_a_batch_that_does_not_fit_is_halved_for_good_and_scores_the_same(
    error: type[Exception], segments: bool
) -> None:
    split, model = byte_split(TEXTS * 3), Crowded(2, error)
    how = HOW | {"batch_size": 10, "segments": segments, "documents": True}
    found, expected = score(model, split, **how), score(CausalMean(), split, **how)
    assert (found.tokens, found.separators) == (expected.tokens, expected.separators)
    assert found.nats == pytest.approx(expected.nats, rel=1e-6)
    assert model.asked[:3] == [10, 5, 2] and set(model.asked[3:]) <= {1, 2}


def test_memory_that_does_not_hold_one_window_is_told() -> None:
    with pytest.raises(ResourceError, match=r"one window of 8 tokens does not fit in memory: Default.*9 bytes\.$"):
        score(Crowded(0), byte_split(TEXTS), **HOW)


def test_an_error_that_is_not_about_memory_is_not_tried_again() -> None:
    class Wrong(Crowded):
        def hidden(self, tokens_BT: torch.Tensor, segments_BT: torch.Tensor | None = None) -> torch.Tensor:
            self.asked.append(len(tokens_BT))
            raise RuntimeError("shapes do not match")

    model = Wrong(9)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        score(model, byte_split(TEXTS), **HOW)
    assert len(model.asked) == 1


def test_progress_is_reported_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    split = byte_split(TEXTS)
    score(CausalMean(), split, **HOW, report=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (len(split.tokens_N), len(split.tokens_N))


@pytest.mark.parametrize(
    ("change", "said"),
    [({"stride": 0}, "stride=0"), ({"stride": 9}, "stride=9"), ({"batch_size": 0}, "batch_size=0")],
)
def test_mistakes_are_named(change: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        score(CausalMean(), byte_split(TEXTS), **(HOW | change))


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(UserError, match="validation split has no tokens"):
        score(CausalMean(), byte_split([]), **HOW)


def test_equals_the_loss_that_transformers_computes() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).eval()

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = theirs

        def forward(self, tokens_BT: torch.Tensor, segments_BT: torch.Tensor | None = None) -> torch.Tensor:
            return self.model(tokens_BT).logits

    tokens = np.random.default_rng(0).integers(0, 49, size=15).astype(np.uint16)
    tokens[-1] = 49
    found = score(Wrapped(), token_split(tokens, ["?"], separator=49), **(HOW | {"context_length": 16, "stride": 16}))
    ids = torch.tensor([[49, *map(int, tokens)]])
    with torch.no_grad():
        loss = theirs(input_ids=ids, labels=ids).loss
    assert found.nats / found.tokens == pytest.approx(float(loss), abs=1e-5)
