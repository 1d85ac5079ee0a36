"""Text that a model writes, in whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from farthing.model.cache import cache_bytes
from farthing.model.generate import generate, generate_texts
from farthing.model.gpt import GPT
from farthing.model.inference import Precision
from farthing.recipe.running import Sample

_CACHES = 1 << 28
"""bytes that the caches of texts written together may take"""
_TEXTS = 32
"""texts written together at most; more are no faster"""


class TextTokenizer(Protocol):
    """What sampling needs of farthing.data.Tokenizer."""

    @property
    def separator(self) -> int:
        """The token that ends a document."""

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`, special tokens off."""

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for; none for special tokens."""


@dataclass(frozen=True)
class TextSample:
    """One text: the prompt it was given, what followed (without the prompt), and the tokens that took."""

    prompt: str
    text: str
    tokens: int


def stream_text(tokenizer: TextTokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Yield the text of `ids` as it arrives, never part of a character.

    A character may take several tokens; its pieces wait for the rest. Bytes that are no UTF-8 become U+FFFD, as does
    a character that the last token leaves unfinished.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in ids:
        if piece := decoder.decode(tokenizer.token_bytes(token)):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def continue_text(
    model: GPT,
    tokenizer: TextTokenizer,
    section: Sample,
    *,
    prompt: str,
    seed: int,
    precision: Precision = "fp32",
) -> Iterator[int]:
    """Yield the tokens that follow `prompt`, taken as the start of a document, up to its end or section.tokens."""
    return generate(
        model,
        _opening(tokenizer, prompt),
        tokens=section.tokens,
        temperature=section.temperature,
        top_k=section.top_k,
        top_p=section.top_p,
        seed=seed,
        stop=tokenizer.separator,
        separator=tokenizer.separator,
        precision=precision,
    )


def write_samples(
    model: GPT, tokenizer: TextTokenizer, section: Sample, *, seed: int, precision: Precision = "fp32"
) -> list[TextSample]:
    """Write section.count texts after section.prompt; text i is drawn with seed + i.

    Many are written at once, in little more time than one. Each can be had again alone, from continue_text with its
    own seed, but for rounding (generate_texts).
    """
    if section.tokens == 0:
        return []
    at_once = max(1, min(_TEXTS, _CACHES // cache_bytes(model.section)))
    samples = []
    for first in range(0, section.count, at_once):
        texts = generate_texts(
            model,
            _opening(tokenizer, section.prompt),
            tokens=section.tokens,
            seeds=range(seed + first, seed + min(first + at_once, section.count)),
            temperature=section.temperature,
            top_k=section.top_k,
            top_p=section.top_p,
            stop=tokenizer.separator,
            separator=tokenizer.separator,
            precision=precision,
        )
        samples += [TextSample(section.prompt, "".join(stream_text(tokenizer, ids)), len(ids)) for ids in texts]
    return samples


def _opening(tokenizer: TextTokenizer, prompt: str) -> list[int]:
    return [tokenizer.separator, *tokenizer.encode(prompt)]
