"""Text from a model, one token at a time.

Shapes: T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from farthing.model.cache import KeyValueCache
from farthing.model.gpt import GPT


class Continuation:
    """A text being continued: what the model makes of the tokens so far, at the cost of the new ones only.

    The window: the model sees the last context_length tokens at most. When a token comes that no longer fits, the
    window shrinks to its newest half, which the model reads again from position 0, and grows from there; so a token
    always costs one position, plus half a window once in half a window. The logits are those of a full forward pass
    over `window`, whatever the position embedding.

    Args:
        model: should be in evaluation mode.
        separator: the token that opens a new document, for models that attend within a document only.
    """

    def __init__(self, model: GPT, *, separator: int | None = None) -> None:
        self.model = model
        self.separator = separator if model.section.attention.scope == "document" else None
        self.window: list[int] = []
        self._cache = KeyValueCache(model.section)
        self._documents = 0

    @torch.no_grad()
    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Append at least one token; return the logits [V] of the next."""
        assert tokens, "there is nothing to continue from"
        limit = self.model.section.context_length
        new = list(tokens)
        if len(self.window) + len(new) > limit:
            keep = min(limit, max(1, limit // 2, len(new)))
            new = [*self.window, *new][-keep:]
            self.window, self._documents = [], 0
            self._cache.clear()
        self.window += new
        device = self.model.embed.weight.device
        tokens_BT = torch.tensor([new], dtype=torch.int64, device=device)
        segments_BT = None
        if self.separator is not None:
            segments_BT = self._documents + (tokens_BT == self.separator).cumsum(1)
            self._documents = int(segments_BT[0, -1])
        x_BTD = self.model.hidden(tokens_BT, segments_BT, cache=self._cache)
        return self.model.head(x_BTD[0, -1])


def generate(
    model: GPT,
    prompt: Sequence[int],
    *,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: int | None = None,
    separator: int | None = None,
) -> Iterator[int]:
    """Continue a prompt, yielding each token as it is drawn.

    The model is in evaluation mode while a token is computed and in its own mode whenever the caller is at work. The
    same seed gives the same tokens on the same machine; torch's global random state is neither read nor changed.

    Args:
        model: the model.
        prompt: at least one token; only the last context_length of them count.
        tokens: how many to draw at most; there is no other limit (see Continuation).
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw from this many likeliest tokens only.
        top_p: draw from the likeliest tokens that together reach this probability (Holtzman et al. 2020).
        seed: of the draws.
        stop: a token that ends the text; it is not yielded.
        separator: the token that opens a new document, for models that attend within a document only.

    Raises:
        ValueError: an argument is out of range, or the prompt has no token or one outside the vocabulary.
    """
    prompt = [int(token) for token in prompt]
    _check(model, prompt, tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    return _draws(
        model, prompt, tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop, sep=separator
    )


def _draws(
    model: GPT,
    prompt: list[int],
    tokens: int,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    stop: int | None,
    sep: int | None,
) -> Iterator[int]:
    # The draw is made on the CPU, so that a seed means the same whatever computed the logits.
    generator = torch.Generator().manual_seed(seed)
    continuation = Continuation(model, separator=sep)
    new = prompt
    for _ in range(tokens):
        if training := model.training:
            model.eval()
        try:
            logits_V = continuation.extend(new).cpu()
        finally:
            if training:
                model.train()
        token = draw(logits_V, generator, temperature=temperature, top_k=top_k, top_p=top_p)
        if token == stop:
            return
        yield token
        new = [token]


def draw(
    logits_V: Tensor, generator: torch.Generator, *, temperature: float, top_k: int | None, top_p: float | None
) -> int:
    """One token drawn from logits [V], after temperature, then top-k, then top-p."""
    if temperature == 0:
        return int(logits_V.argmax())
    # In double precision and below zero, so that no temperature overflows.
    descending = ((logits_V.double() - logits_V.max()) / temperature).sort(descending=True, stable=True)
    probabilities_K = descending.values[:top_k].softmax(0)
    if top_p is not None:
        # The token that reaches top_p stays, so that there is always one.
        probabilities_K = probabilities_K * (probabilities_K.cumsum(0) - probabilities_K < top_p)
    return int(descending.indices[torch.multinomial(probabilities_K, 1, generator=generator)])


def _check(
    model: GPT, prompt: Sequence[int], *, tokens: int, temperature: float, top_k: int | None, top_p: float | None
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
