"""Continuations: the cost of each is that of a plain forward pass over it alone, however they are read together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from random import Random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.small import SEPARATOR
from farthing.errors import ResourceError
from farthing.evals import continuations as module
from farthing.evals.continuations import Continuation, ContinuationScorer, encode_pair, encode_pairs
from farthing.evals.forward import Precision, interruptible
from farthing.model.cache import KeyValueCache
from farthing.model.gpt import GPT
from farthing.model.inference import Inference
from model.combinations import MODELS, shaken, tokens

VOCABULARY, END = 29, 28
CONTEXT = 12
SOME = MODELS[::4]


class Tokens:
    """Only its separator is asked for."""

    separator = END

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        raise NotImplementedError


class Letters:
    """Every byte a token, but for pairs of letters that are one."""

    separator = SEPARATOR

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        joined = {b"ab": 300, b" c": 301, b"abc": 302}
        found = []
        for text in texts:
            raw, ids = text.encode(), []
            while raw:
                piece = next(
                    (piece for piece in sorted(joined, key=len, reverse=True) if raw.startswith(piece)), raw[:1]
                )
                ids.append(joined.get(piece, raw[0]))
                raw = raw[len(piece) :]
            found.append(ids)
        return found


def alone(gpt: GPT, context: Sequence[int], continuation: Sequence[int]) -> Continuation:
    """One token after the other: each from a pass of its own over the context_length tokens before it at most."""
    length, nats, greedy = gpt.section.context_length, 0.0, True
    whole = [*context, *continuation]
    for first in range(len(context), len(whole), length):
        end = min(first + length, len(whole))
        window = torch.tensor([whole[max(0, end - length - 1) : end]])
        segments = (window[:, :-1] == END).cumsum(1) if gpt.section.attention.scope == "document" else None
        with torch.no_grad():
            logits = gpt(window[:, :-1], segments)[0, first - end :].double()
        targets = window[0, first - end :]
        nats += float(F.cross_entropy(logits, targets, reduction="sum"))
        greedy &= bool((logits.argmax(1) == targets).all())
    return Continuation(nats, len(continuation), greedy)


def questions(
    seed: int, *, contexts: int = 5, longest: int = CONTEXT, choices: int = 4
) -> list[tuple[list[int], list[int]]]:
    """Contexts shared and alone, of equal and of about equal length, of one token and too long; some with a separator."""
    random = Random(seed)
    pairs = []
    for _ in range(contexts):
        context = [
            random.randrange(VOCABULARY) for _ in range(random.choice((1, 4, 5, longest - 2, longest, longest + 3)))
        ]
        for _ in range(random.randint(1, choices)):
            pairs.append((context, [random.randrange(VOCABULARY) for _ in range(random.choice((1, 1, 2, 5, 8)))]))
    random.shuffle(pairs)
    return pairs


@pytest.mark.parametrize("number", range(len(SOME)))
@pytest.mark.parametrize("batch_tokens", [1, 17, 4096])
def test_costs_are_those_of_each_pair_alone(number: int, batch_tokens: int) -> None:
    gpt, pairs = shaken(SOME[number]), questions(number)
    found = ContinuationScorer(gpt, Tokens(), device="cpu", batch_tokens=batch_tokens).costs(pairs)
    for one, (context, continuation) in zip(found, pairs, strict=True):
        expected = alone(gpt, context, continuation)
        assert one.nats == pytest.approx(expected.nats, abs=1e-4)
        assert (one.tokens, one.greedy) == (expected.tokens, expected.greedy)


def of_kind(position: str, scope: str) -> GPT:
    section = next(one for one in MODELS if one.position.kind == position and one.attention.scope == scope)
    return shaken(section)


@pytest.mark.parametrize(("position", "scope"), list(product(("learned", "rope", "none"), ("window", "document"))))
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_no_batch_and_no_company_moves_a_cost(position: str, scope: str, data: st.DataObject) -> None:
    gpt = of_kind(position, scope)
    token = st.integers(0, VOCABULARY - 1)
    shared = data.draw(st.lists(st.lists(token, min_size=1, max_size=14), min_size=1, max_size=3))
    endings = st.lists(token, min_size=1, max_size=9)
    pairs = data.draw(st.lists(st.tuples(st.sampled_from(shared), endings), min_size=1, max_size=9))
    batch_tokens = data.draw(st.integers(1, 60))
    found = ContinuationScorer(gpt, Tokens(), device="cpu", batch_tokens=batch_tokens).costs(pairs)
    for one, pair in zip(found, pairs, strict=True):
        assert one.nats == pytest.approx(alone(gpt, *pair).nats, abs=1e-4)


def test_likeliest_tokens_are_greedy_and_others_are_not() -> None:
    gpt = shaken(SOME[0])
    context = [3, 1, 4]
    best: list[int] = []
    with torch.no_grad():
        for _ in range(4):
            best.append(int(gpt(torch.tensor([[*context, *best]]))[0, -1].argmax()))
    wrong = [*best[:3], (best[3] + 1) % VOCABULARY]
    early = [(best[0] + 1) % VOCABULARY, *best[1:]]
    scorer = ContinuationScorer(gpt, Tokens(), device="cpu")
    pairs = [(context, one) for one in (best, wrong, early, best[:1], wrong[:3])]
    assert [one.greedy for one in scorer.costs(pairs)] == [True, False, False, True, True]
    assert [scorer.costs([pair])[0].greedy for pair in pairs] == [True, False, False, True, True]


def test_of_equal_logits_the_first_is_the_likeliest() -> None:
    gpt = shaken(SOME[0])
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.zero_()
    pairs = [([5], [token]) for token in (0, 1, 28)]
    found = ContinuationScorer(gpt, Tokens(), device="cpu").costs(pairs)
    assert [one.greedy for one in found] == [True, False, False]
    assert {round(one.nats, 4) for one in found} == {round(float(torch.tensor(29.0).log()), 4)}


def test_contexts_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, ...]] = []
    whole = Inference.hidden

    def counted(self: Inference, tokens_BT: torch.Tensor, *rest: object, **named: object) -> torch.Tensor:
        read.append(tuple(tokens_BT.shape))
        return whole(self, tokens_BT, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Inference, "hidden", counted)
    scorer = ContinuationScorer(shaken(SOME[0]), Tokens(), device="cpu")
    scorer.costs([([1, 2, 3, 4], [token]) for token in range(5)])
    assert read == [(1, 4)], "one token each: the last position of the context has told"
    read.clear()
    scorer.costs([([1, 2, 3, 4], [token, 7, 8]) for token in range(5)] + [([4, 3, 2, 1], [9]), ([4, 3, 2, 1], [1])])
    assert read == [(2, 4), (5, 2)]


def test_no_pass_begins_without_asking_whether_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    whole = Inference.hidden

    def noted(self: Inference, *words: object, **named: object) -> torch.Tensor:
        told.append("pass")
        return whole(self, *words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Inference, "hidden", noted)
    gpt = shaken(SOME[0]).train()
    scorer, pairs = ContinuationScorer(gpt, Tokens(), device="cpu", batch_tokens=8), questions(3)
    with interruptible(lambda: told.append("asked")):
        scorer.costs(pairs)
    assert told.count("pass") > len({tuple(context) for context, _ in pairs})
    assert told.count("asked") >= told.count("pass") and ("pass", "pass") not in pairwise(told)

    left = told.count("asked") // 2

    def until() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    with interruptible(until), pytest.raises(KeyboardInterrupt):
        scorer.costs(pairs)
    assert gpt.training and not torch.is_inference_mode_enabled()


def test_memory_that_runs_out_means_smaller_batches_then_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt, pairs = shaken(SOME[1]), questions(1)
    expected = ContinuationScorer(gpt, Tokens(), device="cpu").costs(pairs)
    whole, most = Inference.hidden, 20

    def small(self: Inference, tokens_BT: torch.Tensor, *rest: object, **named: object) -> torch.Tensor:
        if tokens_BT.numel() > most:
            raise MemoryError("no more\nof it")
        return whole(self, tokens_BT, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Inference, "hidden", small)
    scorer = ContinuationScorer(gpt, Tokens(), device="cpu")
    found = scorer.costs(pairs)
    assert scorer.batch_tokens < 1024
    assert [one.nats for one in found] == pytest.approx([one.nats for one in expected], abs=1e-4)
    most = 2
    with pytest.raises(ResourceError, match=r"one continuation after \d+ tokens does not fit in memory: no more$"):
        ContinuationScorer(gpt, Tokens(), device="cpu").costs(pairs)


def test_a_model_in_training_is_left_as_it_was() -> None:
    gpt = shaken(next(one for one in MODELS if one.dropout > 0)).train()
    state = torch.get_rng_state()
    once = ContinuationScorer(gpt, Tokens(), device="cpu").costs(questions(2))
    assert gpt.training and all(part.training for part in gpt.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert ContinuationScorer(gpt, Tokens(), device="cpu").costs(questions(2)) == once


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_near(precision: Precision) -> None:
    gpt, pairs = shaken(SOME[0]), questions(3)
    exact = ContinuationScorer(gpt, Tokens(), device="cpu").costs(pairs)
    low = ContinuationScorer(gpt, Tokens(), device="cpu", precision=precision).costs(pairs)
    for one, other in zip(low, exact, strict=True):
        assert one.nats == pytest.approx(other.nats, rel=0.1, abs=0.1)


def test_progress_is_told_up_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    pairs = questions(4, contexts=9)
    scorer = ContinuationScorer(shaken(SOME[0]), Tokens(), device="cpu", batch_tokens=8)
    scorer.costs(pairs, report=lambda done, total: told.append((done, total)))
    assert told == sorted(told) and told[-1] == (len(pairs), len(pairs)) and len(told) > 3
    assert scorer.costs([]) == []


@pytest.mark.parametrize("pair", [([], [1]), ([1], [])])
def test_nothing_to_read_is_refused(pair: tuple[list[int], list[int]]) -> None:
    with pytest.raises(ValueError, match="pair 1: a context and a continuation have at least one token"):
        ContinuationScorer(shaken(SOME[0]), Tokens(), device="cpu").costs([([1], [2]), pair])


def test_a_branch_of_a_cache_goes_on_by_itself() -> None:
    gpt = of_kind("rope", "document")
    inference, rows = Inference(gpt), tokens(3, 5)
    segments = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 2, 3, 3]])
    cache = KeyValueCache(gpt.section, positions=5)
    inference.hidden(rows, segments, cache=cache)
    again, after = torch.tensor([2, 0, 2]), tokens(3, 4, seed=9)
    behind = segments[again, -1:].expand(3, 4)
    found = inference.hidden(after, behind, cache=cache.branch(again, positions=4))
    whole = inference.hidden(torch.cat([rows[again], after], 1), torch.cat([segments[again], behind], 1))
    torch.testing.assert_close(found, whole[:, 5:], rtol=0, atol=1e-5)
    assert cache.length == 5


@pytest.mark.parametrize("number", range(len(SOME)))
def test_rows_of_several_lengths_go_on_together_as_each_does_alone(number: int) -> None:
    gpt, ends, rows = shaken(SOME[number]), [5, 2, 4], tokens(3, 5)
    within = gpt.section.attention.scope == "document"
    before = (rows == rows[0, 1]).cumsum(1) if within else None
    inference, cache = Inference(gpt), KeyValueCache(gpt.section, positions=5)
    inference.hidden(rows, before, cache=cache)
    cache.leave_gap(torch.tensor(ends))
    which = [2, 0, 1, 2]
    branch = cache.branch(torch.tensor(which), positions=4)
    for start in (0, 3):  # twice, so that what was added behind the gap is seen too
        after = tokens(4, 4, seed=9)[:, start : start + 3]
        last = None if before is None else torch.stack([before[row, ends[row] - 1] for row in which])[:, None]
        found = inference.hidden(after, None if last is None else last.expand_as(after), cache=branch)
    for number, row in enumerate(which):
        whole = torch.cat([rows[row, : ends[row]], tokens(4, 4, seed=9)[number]])[None]
        segments = None
        if before is not None:
            segments = torch.cat([before[row, : ends[row]], before[row, ends[row] - 1].expand(4)])[None]
        torch.testing.assert_close(found[number, -1], inference.hidden(whole, segments)[0, -1], rtol=0, atol=1e-5)


def test_contexts_of_about_one_length_are_read_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    hidden = Inference.hidden

    def counted(self: Inference, tokens_BT: torch.Tensor, *words: object, **names: object) -> torch.Tensor:
        passes.append(tuple(tokens_BT.shape))
        return hidden(self, tokens_BT, *words, **names)  # type: ignore[arg-type]

    monkeypatch.setattr(Inference, "hidden", counted)
    pairs = [([1] * length, [choice, 2]) for length in (8, 7, 6, 5, 2) for choice in (3, 4)]
    ContinuationScorer(of_kind("learned", "window"), Tokens(), device="cpu", batch_tokens=60).costs(pairs)
    assert passes == [(3, 8), (6, 1), (1, 5), (2, 1), (1, 2), (2, 1)], "a much shorter one would be mostly padding"


# Text to pairs of tokens


def test_pairs_are_cut_as_the_harness_cuts_them() -> None:
    pairs = [("x", " c"), ("x ", "c"), ("x\n ", "c"), ("a", "bc"), ("", "ab"), ("  ", "c"), ("xa", "b")]
    expected = [
        ([ord("x")], [301]),
        ([ord("x")], [301]),
        ([ord("x")], [ord("\n"), 301]),
        ([ord("a")], []),
        ([SEPARATOR], [300]),
        ([SEPARATOR], [ord(" "), 301]),
        # Encoded together, cut at the length of the context alone: "x", "a" stays, of "x", "ab" nothing is left.
        ([ord("x"), ord("a")], []),
    ]
    assert encode_pairs(Letters(), pairs) == expected
    assert [encode_pair(Letters(), *pair) for pair in pairs] == expected


@given(st.text("abc \n", max_size=8), st.text("abc \n", min_size=1, max_size=8))
def test_pairs_are_those_of_the_harness(context: str, continuation: str) -> None:
    lm_eval = pytest.importorskip("lm_eval.api.model")

    class Theirs(lm_eval.TemplateLM):  # type: ignore[name-defined,misc]
        backend = "causal"

        def __init__(self) -> None:
            pass

        def tok_encode(self, string: str, **_: object) -> list[int]:
            return Letters().encode_batch([string])[0]

        eot_token_id = SEPARATOR

        def _loglikelihood_tokens(self, requests: object, **_: object) -> None:
            raise NotImplementedError

        def loglikelihood_rolling(self, requests: object, **_: object) -> None:
            raise NotImplementedError

        def generate_until(self, requests: object, **_: object) -> None:
            raise NotImplementedError

    if context.strip():  # the harness refuses a context of white space alone
        assert encode_pair(Letters(), context, continuation) == Theirs()._encode_pair(context, continuation)


def test_long_pieces_are_those_of_the_harness_for_rolling_texts() -> None:
    lm_eval = pytest.importorskip("lm_eval.utils")
    for count in (1, 11, 12, 13, 24, 25, 40):
        text = list(range(count))
        theirs = lm_eval.get_rolling_token_windows(text, prefix_token=END, max_seq_len=CONTEXT, context_len=1)
        windows = [tuple(map(tuple, lm_eval.make_disjoint_window(one))) for one in theirs]
        assert list(module._fitting((END,), tuple(text), CONTEXT)) == windows
