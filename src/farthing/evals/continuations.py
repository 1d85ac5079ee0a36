"""What continuations cost after their contexts: the arithmetic under every task that asks a model to choose.

Pairs that share a context read it once: its keys and values are kept, and each continuation goes on from them.

Shapes: G contexts of about one length, C positions of a context, R rows, T positions of a row, N targets, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from farthing.errors import ResourceError, first_line
from farthing.evals.forward import Precision, between_passes, chunked_logits, measuring, pad_rows
from farthing.model.cache import KeyValueCache, cache_bytes
from farthing.model.gpt import GPT
from farthing.model.inference import Inference
from farthing.runtime.device import is_out_of_memory

_BATCH_TOKENS = {"cpu": 1024}
_BATCH_TOKENS_ELSEWHERE = 32768
_SHARED, _SHARED_BYTES = 4, 128 << 20
"""on a CPU so many times as many positions of shared contexts are read at once, if their keys and values stay under so
many bytes: the more continuations there are to choose from, the less padding they need. Elsewhere passes are large."""
_LEAST_FULL = 0.75
"""of the longest context of a pass is the length of the shortest"""
_KEPT = 4
"""times as many positions may be kept for rows as batch_tokens"""

Pair = tuple[Sequence[int], Sequence[int]]
"""a context and its continuation, as tokens"""


class TextTokenizer(Protocol):
    """What continuations need of farthing.data.Tokenizer."""

    @property
    def separator(self) -> int:
        """The token that ends a document, and stands where there is no context."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, special tokens off."""


@dataclass(frozen=True)
class Continuation:
    """What a continuation costs after its context.

    Args:
        nats: the negative logarithm of its probability.
        tokens: how many tokens it has.
        greedy: whether each of them is the likeliest after those before it.
    """

    nats: float
    tokens: int
    greedy: bool


def encode_pair(tokenizer: TextTokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The tokens of a context and of what follows it, cut as lm-evaluation-harness 0.4 cuts them.

    White space at the end of the context goes to the continuation; the two are encoded together, and the continuation
    is what lies behind as many tokens as the context has alone. Where no context is left, the separator stands for it.
    The continuation may come out empty if the tokenizer joins the two into fewer tokens than the context has.
    """
    return encode_pairs(tokenizer, [(context, continuation)])[0]


def encode_pairs(tokenizer: TextTokenizer, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """`encode_pair` for many pairs at once, which is faster; each context is encoded once."""
    moved = []
    for context, continuation in pairs:
        kept = context.rstrip()
        moved.append((kept, context[len(kept) :] + continuation))
    contexts = list(dict.fromkeys(context for context, _ in moved if context))
    tokens_of = dict(zip(contexts, tokenizer.encode_batch(contexts), strict=True))
    wholes = tokenizer.encode_batch([context + continuation for context, continuation in moved])
    return [
        (tokens_of[context], whole[len(tokens_of[context]) :]) if context else ([tokenizer.separator], whole)
        for (context, _), whole in zip(moved, wholes, strict=True)
    ]


class ContinuationScorer:
    """Tells what continuations cost a model, from the weights it has when the scorer is made.

    Args:
        model: on `device`; it comes back in the modes it had, and no random state moves.
        tokenizer: names the token that separates documents.
        device: where the model is.
        precision: number format of the forward pass; logits are made fp32 and sums are float64 always.
        batch_tokens: positions in one forward pass; None takes a number that suits the device. Halved where memory
            runs out. Changes costs by rounding alone. On a CPU, without a number given, contexts that are shared may be
            read more at once.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: TextTokenizer,
        *,
        device: torch.device | str,
        precision: Precision = "fp32",
        batch_tokens: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        given = batch_tokens is not None
        if batch_tokens is None:
            batch_tokens = _BATCH_TOKENS.get(self.device.type, _BATCH_TOKENS_ELSEWHERE)
        assert batch_tokens >= 1, batch_tokens
        self.batch_tokens, self.context_length = batch_tokens, model.section.context_length
        room = _SHARED_BYTES // (cache_bytes(model.section) // model.section.context_length)
        many = self.device.type == "cpu" and not given
        self._shared_tokens = max(batch_tokens, min(_SHARED * batch_tokens, room)) if many else batch_tokens
        self._model = model
        self._separator = tokenizer.separator if model.section.attention.scope == "document" else None
        with self._measuring():
            self._inference = _inference(model, precision)

    def costs(self, pairs: Sequence[Pair], *, report: Callable[[int, int], None] | None = None) -> list[Continuation]:
        """What each continuation costs after its context, in the order of `pairs`.

        Of a pair that is longer than the model can read, the last context_length + 1 tokens count, as in
        lm-evaluation-harness. A continuation that is longer than that all by itself is read in pieces, each after as
        much as fits; the harness refuses it.

        Args:
            pairs: a context and its continuation each, as tokens.
            report: called with (pairs done, pairs in all) after every batch.

        Raises:
            ValueError: a context or a continuation without a token.
            ResourceError: not even one pair fits into memory.
        """
        nats, greedy = np.zeros(len(pairs)), np.ones(len(pairs), dtype=bool)
        groups = self._groups(pairs)
        done = told = 0
        while done < len(groups):
            between_passes()
            batch = _batch(groups, done, self.batch_tokens, self._shared_tokens, self.context_length)
            try:
                # Entered anew for each batch, so that the caller never runs in scoring state between two.
                with self._measuring():
                    read = self._read_shared(batch) if len(batch[0].continuations) > 1 else self._read_alone(batch)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            else:
                for number, cost, is_greedy in read:
                    nats[number] += cost
                    greedy[number] &= is_greedy
                done, told = done + len(batch), told + sum(len(group.continuations) for group in batch)
                if report is not None:
                    report(min(told, len(pairs)), len(pairs))
                continue
            # Outside the handler, whose traceback would keep the activations alive.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if self.batch_tokens == 1:
                length = len(batch[0].context)
                raise ResourceError(f"one continuation after {length} tokens does not fit in memory: {reason}")
            self.batch_tokens //= 2
            self._shared_tokens = self.batch_tokens
        return [
            Continuation(float(cost), len(pair[1]), bool(is_greedy))
            for pair, cost, is_greedy in zip(pairs, nats, greedy, strict=True)
        ]

    def _measuring(self) -> AbstractContextManager[None]:
        # Inference lowers by itself; autocast would only get in its way.
        return measuring(self._model, device=self.device, precision="fp32")

    def _groups(self, pairs: Sequence[Pair]) -> list[_Group]:
        """The pairs by context, the longest first: memory that runs out does so at once."""
        found: dict[tuple[int, ...], _Group] = {}
        for number, (context, continuation) in enumerate(pairs):
            if not (len(context) and len(continuation)):
                raise ValueError(f"pair {number}: a context and a continuation have at least one token each")
            for before, after in _fitting(tuple(context), tuple(continuation), self.context_length):
                found.setdefault(before, _Group(before, [])).continuations.append((number, after))
        return sorted(found.values(), key=_Group.order, reverse=True)

    def _read_alone(self, batch: Sequence[_Group]) -> _Costs:
        """Contexts with one continuation each: one pass over both, the short ones padded behind."""
        whole = [np.array([*group.context, *group.continuations[0][1]]) for group in batch]
        tokens_RT = self._tokens([row[:-1] for row in whole])
        x_RTD = self._inference.hidden(tokens_RT, self._segments(tokens_RT, 0))
        rows = [group.continuations[0] for group in batch]
        firsts = [len(group.context) - 1 for group in batch]
        wanted_RT = _spans(firsts, [first + len(row[1]) for first, row in zip(firsts, rows, strict=True)], x_RTD)
        return self._told(rows, x_RTD[wanted_RT], [list(after) for _, after in rows])

    def _read_shared(self, batch: Sequence[_Group]) -> _Costs:
        """Contexts of about one length, each read once, and their continuations after them."""
        length = len(batch[0].context)
        tokens_GC = self._tokens([np.array(group.context) for group in batch])
        segments_GC = self._segments(tokens_GC, 0)
        cache = KeyValueCache(self._model.section, positions=length)
        ends_G = torch.tensor([len(group.context) for group in batch], device=self.device)
        # The last position of a context tells what the first token of each of its continuations costs.
        last_GD = self._inference.hidden(tokens_GC, segments_GC, cache=cache, only_B=ends_G - 1)[:, 0]
        if len(batch[-1].context) < length:
            cache.leave_gap(ends_G)
        last_G1 = None if segments_GC is None else segments_GC.gather(1, ends_G[:, None] - 1)
        rows = [(index, *row) for index, group in enumerate(batch) for row in group.continuations]
        rows.sort(key=lambda row: len(row[2]))
        which_R = torch.tensor([index for index, _, _ in rows], device=self.device)
        costs = self._told([row[1:] for row in rows], last_GD[which_R], [[after[0]] for _, _, after in rows])
        longer = [row for row in rows if len(row[2]) > 1]
        while longer:
            between_passes()
            # From the back, where the longest are, so that rows of one pass are of about one length.
            reach = len(longer[-1][2]) - 1
            fit = min(self.batch_tokens // reach, _KEPT * self.batch_tokens // (length + reach))
            some = longer[-max(1, fit) :]
            del longer[-len(some) :]
            costs += self._extended(some, cache, last_G1, reach)
        return costs

    def _extended(
        self,
        rows: Sequence[tuple[int, int, tuple[int, ...]]],
        cache: KeyValueCache,
        segments_G1: Tensor | None,
        reach: int,
    ) -> _Costs:
        """The costs of all but the first token of continuations, of `reach` + 1 tokens at most."""
        which_R = torch.tensor([index for index, _, _ in rows], device=self.device)
        tokens_RT = self._tokens([np.array(after[:-1]) for _, _, after in rows])
        before = 0 if segments_G1 is None else segments_G1[which_R]
        branch = cache.branch(which_R, positions=reach)
        x_RTD = self._inference.hidden(tokens_RT, self._segments(tokens_RT, before), cache=branch)
        wanted_RT = _spans([0] * len(rows), [len(after) - 1 for _, _, after in rows], x_RTD)
        return self._told([row[1:] for row in rows], x_RTD[wanted_RT], [list(after[1:]) for _, _, after in rows])

    def _tokens(self, rows: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(pad_rows(rows, 0)).to(self.device)

    def _segments(self, tokens_RT: Tensor, before: Tensor | int) -> Tensor | None:
        """The number of each position's document, for models that attend within documents only."""
        return None if self._separator is None else before + (tokens_RT == self._separator).cumsum(1)

    def _told(
        self, rows: Sequence[tuple[int, tuple[int, ...]]], x_ND: Tensor, targets: Sequence[Sequence[int]]
    ) -> _Costs:
        """The cost of each row's targets together, which x_ND holds the last hidden states for, row by row."""
        targets_N = torch.tensor([token for row in targets for token in row], device=self.device)
        costs = [
            _token_costs(logits_NV.float(), targets_N[some])
            for some, logits_NV in chunked_logits(self._inference.head, x_ND)
        ]
        # Widened on the CPU: not every accelerator has float64.
        nats_N = torch.cat([nats for nats, _ in costs]).cpu().double().numpy()
        greedy_N = torch.cat([greedy for _, greedy in costs]).cpu().numpy()
        starts_R = np.cumsum([0, *(len(row) for row in targets[:-1])])
        sums_R, all_R = np.add.reduceat(nats_N, starts_R), np.logical_and.reduceat(greedy_N, starts_R)
        return [(row[0], float(cost), bool(every)) for row, cost, every in zip(rows, sums_R, all_R, strict=True)]


def _inference(model: GPT, precision: Precision) -> Inference:
    """With packed weights, which are a copy, where there is memory for that."""
    try:
        return Inference(model, precision=precision, layout="rows")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    return Inference(model, precision=precision)


@dataclass(frozen=True)
class _Group:
    """A context and what is to follow it: the number of the pair and its continuation."""

    context: tuple[int, ...]
    continuations: list[tuple[int, tuple[int, ...]]]

    def order(self) -> tuple[bool, int, int]:
        """What is read together stands together: whether a context is shared, then its length, then what follows."""
        longest = max(len(after) for _, after in self.continuations)
        if len(self.continuations) > 1:
            return True, len(self.context), longest
        return False, len(self.context) + longest, 0


_Costs = list[tuple[int, float, bool]]
"""the number of a pair, nats and whether all was greedy, for all or some of its tokens"""


def _fitting(
    context: tuple[int, ...], continuation: tuple[int, ...], length: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """A pair cut to what a model of this context length can read: several pairs for a very long continuation."""
    for start in range(0, len(continuation), length):
        after = continuation[start : start + length]
        before = context + continuation[:start]
        yield before[max(0, len(before) + len(after) - length - 1) :], after


def _batch(groups: Sequence[_Group], start: int, alone_tokens: int, shared_tokens: int, most: int) -> Sequence[_Group]:
    """The groups from `start` on that are read together, at least one.

    Contexts that are shared are padded, so they are of about one length, and no row is longer than `most`.
    """
    shared, length, reach = groups[start].order()
    tokens = shared_tokens if shared else alone_tokens
    end = start + 1
    while end < len(groups) and (end + 1 - start) * length <= tokens:
        also_shared, shorter, farther = groups[end].order()
        reach = max(reach, farther)
        if also_shared != shared or (shared and (shorter < _LEAST_FULL * length or length + reach - 1 > most)):
            break
        end += 1
    return groups[start:end]


def _spans(starts: Sequence[int], ends: Sequence[int], like_RTD: Tensor) -> Tensor:
    """Positions start .. end - 1 of each row, as a mask [R, T]."""
    device = like_RTD.device
    positions_T = torch.arange(like_RTD.shape[1], device=device)
    starts_R, ends_R = torch.tensor(starts, device=device), torch.tensor(ends, device=device)
    return (positions_T >= starts_R[:, None]) & (positions_T < ends_R[:, None])


def _token_costs(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each target in nats, and whether it is the likeliest token."""
    nats_N = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    # A maximum is found several times as fast as its place, which only the few that reach it need: equal logits go to
    # the lower token.
    greedy_N = logits_NV.gather(1, targets_N[:, None])[:, 0] >= logits_NV.amax(1)
    found_M = greedy_N.nonzero()[:, 0]
    greedy_N[found_M] = logits_NV[found_M].argmax(1) == targets_N[found_M]
    return nats_N, greedy_N
