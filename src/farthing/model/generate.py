"""Text from a model, one token at a time.

Shapes: B texts, T time, V vocabulary, C candidates of a draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from farthing.errors import DivergedError
from farthing.model.cache import KeyValueCache
from farthing.model.gpt import GPT
from farthing.model.inference import Inference, Precision
from farthing.model.likelihood import Likelihood, likelihoods

_COLDEST = 1e-30
"""lowest temperature that divides: below it nothing changes any more, but double precision would overflow"""
_NUCLEUS = 256
"""candidates that are tried for top_p before all are sorted"""


class Continuation:
    """Texts being continued in step: what the model makes of the tokens so far, at the cost of the new ones only.

    The window: the model sees the last context_length tokens at most. When a token comes that no longer fits, the
    window shrinks to its newest half, which the model reads again from position 0, and grows from there; so a token
    always costs one position, plus half a window once in half a window. The logits are those of a full forward pass
    over `windows`, whatever the position embedding.

    Args:
        model: neither its weights nor its modes are touched; the weights must not change meanwhile. Whoever writes many
            texts hands in the Inference of it, with layout = "tokens", so that weights are laid out once.
        texts: how many, all of one length always.
        separator: the token that opens a new document, for models that attend within a document only.
        precision: of matrix products; an Inference has its own.
    """

    def __init__(
        self,
        model: GPT | Inference,
        *,
        texts: int = 1,
        separator: int | None = None,
        precision: Precision = "fp32",
    ) -> None:
        self.windows: list[list[int]] = [[] for _ in range(texts)]
        self._model = model if isinstance(model, Inference) else Inference(model, precision=precision, layout="tokens")
        self._separator = separator if model.section.attention.scope == "document" else None
        self._cache = KeyValueCache(model.section)
        self._documents_B1: Tensor | int = 0

    def extend(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Append at least one token to each text, to all the same number; return the logits [B, V] of the next."""
        new = [list(text) for text in texts]
        assert new[0] and len({len(text) for text in new}) == 1, "there is nothing to continue from"
        limit = self._model.section.context_length
        if len(self.windows[0]) + len(new[0]) > limit:
            keep = min(limit, max(1, limit // 2, len(new[0])))
            new = [[*window, *text][-keep:] for window, text in zip(self.windows, new, strict=True)]
            self.windows, self._documents_B1 = [[] for _ in new], 0
            self._cache.clear()
        for window, text in zip(self.windows, new, strict=True):
            window += text
        device = self._model.device
        tokens_BT = torch.tensor(new, dtype=torch.int64, device=device)
        segments_BT = None
        # Autocast around us would cast each operand of each product anew.
        surrounded = torch.is_autocast_enabled(device.type)
        with torch.inference_mode(), torch.autocast(device.type, enabled=False) if surrounded else nullcontext():
            if self._separator is not None:
                segments_BT = self._documents_B1 + (tokens_BT == self._separator).cumsum(1)
                self._documents_B1 = segments_BT[:, -1:]
            x_BTD = self._model.hidden(tokens_BT, segments_BT, cache=self._cache)
            return self._model.head(x_BTD[:, -1])

    def keep(self, texts: Sequence[int]) -> None:
        """Go on with these of the texts alone, in this order."""
        self.windows = [self.windows[text] for text in texts]
        rows = torch.tensor(texts, device=self._model.device)
        self._cache.keep(rows)
        if isinstance(self._documents_B1, Tensor):
            self._documents_B1 = self._documents_B1[rows]


def generate(
    model: GPT | Inference,
    prompt: Sequence[int],
    *,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: int | None = None,
    separator: int | None = None,
    precision: Precision = "fp32",
) -> Iterator[int]:
    """Continue a prompt, yielding each token as it is drawn.

    The text is that of the model in evaluation mode; the model is not touched, and its weights must not change while
    the text is written. The same seed gives the same tokens on the same machine; torch's global random state is
    neither read nor changed.

    Args:
        model: the model, or the Inference of it (see Continuation).
        prompt: at least one token; only the last context_length of them count.
        tokens: how many to draw at most; there is no other limit (see Continuation).
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw from this many likeliest tokens only.
        top_p: draw from the likeliest tokens that together reach this probability (Holtzman et al. 2020).
        seed: of the draws.
        stop: a token that ends the text; it is not yielded.
        separator: the token that opens a new document, for models that attend within a document only.
        precision: of matrix products.

    Raises:
        ValueError: an argument is out of range, or the prompt has no token or one outside the vocabulary.
        DivergedError: while drawing: the model's probabilities are not numbers.
    """
    prompt = [int(token) for token in prompt]
    _check(model, prompt, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = _draws(
        model, prompt, tokens, [seed], temperature=temperature, top_k=top_k, top_p=top_p, stop=stop, sep=separator,
        precision=precision,
    )  # fmt: skip
    return (token for tokens_of_texts, _ in drawn for token in tokens_of_texts.values())


def generate_texts(
    model: GPT | Inference,
    prompt: Sequence[int],
    *,
    tokens: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | None = None,
    separator: int | None = None,
    precision: Precision = "fp32",
) -> list[list[int]]:
    """Continue a prompt once for each seed, all texts together, which takes little longer than one.

    A text does not depend on the others but for rounding: matrix products of several rows may add up in another order
    than those of one, so that `generate` with the same seed gives the same text unless a draw falls within rounding
    of the border between two tokens. The same seeds give the same texts on the same machine.

    Arguments and errors are those of `generate`.
    """
    prompt = [int(token) for token in prompt]
    _check(model, prompt, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    texts: list[list[int]] = [[] for _ in seeds]
    for drawn, _ in _draws(
        model, prompt, tokens, seeds, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop, sep=separator,
        precision=precision,
    ):  # fmt: skip
        for text, token in drawn.items():
            texts[text].append(token)
    return texts


@dataclass(frozen=True)
class Drawn:
    """A token as it was drawn, and how likely the model held it, if that was asked for."""

    token: int
    likelihood: Likelihood | None


def generate_together(
    model: GPT | Inference,
    prompt: Sequence[int],
    *,
    tokens: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    separator: int | None = None,
    precision: Precision = "fp32",
    top: int | None = None,
) -> Iterator[list[Drawn]]:
    """As `generate_texts`, token by token: yield the next token of each text, in the order of their seeds.

    No token ends a text: the reader knows when all of them have gone far enough, and reading one on for the sake of the
    others costs next to nothing.

    Arguments and errors are those of `generate`, and

    Args:
        top: also say how likely each token was, whatever the settings of the draw, beside this many of the likeliest;
            None does not, and is faster.
    """
    prompt = [int(token) for token in prompt]
    _check(model, prompt, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    steps = _draws(
        model, prompt, tokens, seeds, temperature=temperature, top_k=top_k, top_p=top_p, stop=None, sep=separator,
        precision=precision,
    )  # fmt: skip
    if top is None:
        return ([Drawn(token, None) for token in drawn.values()] for drawn, _ in steps)
    return (
        [Drawn(*pair) for pair in zip(drawn.values(), likelihoods(logits_BV, [*drawn.values()], top=top), strict=True)]
        for drawn, logits_BV in steps
    )


def _draws(
    model: GPT | Inference,
    prompt: list[int],
    tokens: int,
    seeds: Sequence[int],
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    stop: int | None,
    sep: int | None,
    precision: Precision,
) -> Iterator[tuple[dict[int, int], Tensor]]:
    """Yield each step's tokens, by the number of the text, and the logits [B, V] that they were drawn from.

    A text that has met its stop is left out from there on.
    """
    if not (tokens and seeds):
        return
    # The draw is made on the CPU and from Python's generator, so that a seed means the same whatever computed the logits.
    generators = {text: Random(seed) for text, seed in enumerate(seeds)}
    continuation = Continuation(model, texts=len(seeds), separator=sep, precision=precision)
    new = [prompt] * len(seeds)
    for _ in range(tokens):
        logits_BV = continuation.extend(new).cpu()
        found = draw(logits_BV, list(generators.values()), temperature=temperature, top_k=top_k, top_p=top_p)
        if stop in found:
            going = [row for row, token in enumerate(found) if token != stop]
            if not going:
                return
            continuation.keep(going)
            numbers = list(generators)
            generators = {numbers[row]: generators[numbers[row]] for row in going}
            found, logits_BV = [found[row] for row in going], logits_BV[going]
        yield dict(zip(generators, found, strict=True)), logits_BV
        new = [[token] for token in found]


def draw(
    logits_BV: Tensor, generators: Sequence[Random], *, temperature: float, top_k: int | None, top_p: float | None
) -> list[int]:
    """One token for each row of logits [B, V], after temperature, then top-k, then top-p, with a generator each.

    Raises:
        DivergedError: a row's probabilities are not numbers.
    """
    if temperature == 0:
        return [int(token) for token in logits_BV.argmax(1)]
    # Few operations: after a pass over the weights nothing is in the processor's caches, torch's own code least of all.
    probabilities_BC = logits_BV.double().div_(max(temperature, _COLDEST)).softmax(1)
    order_BC = None
    if top_k is not None or top_p is not None:
        probabilities_BC, order_BC = _likeliest(probabilities_BC, top_k, top_p)
    reached_BC = probabilities_BC.cumsum(1)
    if top_p is not None:
        # The token that reaches top_p stays, so that there is always one.
        kept_BC = reached_BC - probabilities_BC < top_p
        reached_BC = probabilities_BC.mul_(kept_BC).cumsum(1)
    found = []
    for row, (reached_C, generator) in enumerate(zip(reached_BC.numpy(), generators, strict=True)):
        # The first candidate with which the sum exceeds a uniform share of the whole; one of probability 0 never is.
        token = int(reached_C.searchsorted(generator.random() * reached_C[-1], "right"))
        if token == len(reached_C):
            raise DivergedError("the model's probabilities of the next token are not numbers: it has diverged")
        found.append(token if order_BC is None else int(order_BC[row, token]))
    return found


def _likeliest(probabilities_BV: Tensor, top_k: int | None, top_p: float | None) -> tuple[Tensor, Tensor]:
    """The candidates that top_k and top_p leave, and some more that only top_p cuts, the likeliest first: [B, C] each.

    With top_k their probabilities sum to 1 again.
    """
    vocabulary = probabilities_BV.shape[1]
    likeliest_BC, order_BC = probabilities_BV.topk(min(_NUCLEUS if top_k is None else top_k, vocabulary))
    if top_k is not None:
        return likeliest_BC.div_(likeliest_BC.sum(1, keepdim=True)), order_BC
    assert top_p is not None
    # Few tokens nearly always reach top_p; sorting all of them takes several times as long.
    if len(order_BC[0]) < vocabulary and bool((likeliest_BC.sum(1) < top_p).any()):
        likeliest_BC, order_BC = probabilities_BV.sort(descending=True)
    return likeliest_BC, order_BC


def _check(
    model: GPT | Inference,
    prompt: Sequence[int],
    *,
    tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    if not prompt:
        raise ValueError("prompt=[]: give at least one token, for example the separator that opens a document")
    if outside := [token for token in prompt if not 0 <= token < model.vocab_size]:
        raise ValueError(f"prompt has the token {outside[0]}, outside the vocabulary of {model.vocab_size}")
    if tokens < 0:
        raise ValueError(f"tokens={tokens} must not be negative")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be a number from 0 on")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie in (0, 1]")
