"""How likely a model holds tokens to be, beside those that could have stood in their place.

Shapes: T positions, D width, V vocabulary, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from farthing.errors import DivergedError
from farthing.model.inference import Inference

_ROWS = 64
"""positions whose logits exist at once: those of a whole window may take hundreds of megabytes"""


@dataclass(frozen=True)
class Likelihood:
    """What the model makes of a token after those before it: at temperature 1, among the whole vocabulary.

    Args:
        logprob: the natural logarithm of its probability.
        top: the likeliest tokens with theirs, the likeliest first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


def likelihoods(logits_TV: Tensor, tokens: Sequence[int], *, top: int) -> list[Likelihood]:
    """One for each row of logits [T, V] and its token, with the `top` likeliest.

    Raises:
        DivergedError: a row's probabilities are not numbers.
    """
    logprobs_TV = logits_TV.double().log_softmax(1)
    own = logprobs_TV.gather(1, torch.tensor(tokens, device=logprobs_TV.device).unsqueeze(1)).squeeze(1).tolist()
    likeliest_TC, order_TC = logprobs_TV.topk(min(top, logprobs_TV.shape[1]))
    if not all(map(math.isfinite, own)):
        raise DivergedError("the model's probabilities of the next token are not numbers: it has diverged")
    rows = zip(own, order_TC.tolist(), likeliest_TC.tolist(), strict=True)
    return [Likelihood(logprob, tuple(zip(ids, nats, strict=True))) for logprob, ids, nats in rows]


def text_likelihoods(
    model: Inference, tokens: Sequence[int], *, top: int, separator: int | None = None
) -> Iterator[Likelihood]:
    """One for each token of a text but the first, which has nothing before it.

    Args:
        model: it must see all tokens but the last in one window.
        tokens: the text, of context_length + 1 tokens at most.
        top: how many of the likeliest.
        separator: the token that opens a new document, for models that attend within a document only.

    Raises:
        ValueError: the text does not fit into the window.
        DivergedError: a token's probability is not a number.
    """
    before, after = list(tokens[:-1]), list(tokens[1:])
    if not after:
        return
    tokens_BT = torch.tensor([before], device=model.device)
    segments_BT = None
    if separator is not None and model.section.attention.scope == "document":
        segments_BT = tokens_BT.eq(separator).cumsum(1)
    x_TD = model.hidden(tokens_BT, segments_BT)[0]
    for first in range(0, len(after), _ROWS):
        logits_TV = model.head(x_TD[first : first + _ROWS])
        yield from likelihoods(logits_TV, after[first : first + _ROWS], top=top)
