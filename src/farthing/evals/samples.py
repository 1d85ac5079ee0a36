"""Text that a model writes, in whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from farthing.model.generate import generate
from farthing.model.gpt import GPT
from farthing.recipe.running import Sample


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


def continue_text(model: GPT, tokenizer: TextTokenizer, section: Sample, *, prompt: str, seed: int) -> Iterator[int]:
    """Yield the tokens that follow `prompt`, taken as the start of a document, up to its end or section.tokens."""
    return generate(
        model,
        [tokenizer.separator, *tokenizer.encode(prompt)],
        tokens=section.tokens,
        temperature=section.temperature,
        top_k=section.top_k,
        top_p=section.top_p,
        seed=seed,
        stop=tokenizer.separator,
        separator=tokenizer.separator,
    )


def write_samples(model: GPT, tokenizer: TextTokenizer, section: Sample, *, seed: int) -> list[TextSample]:
    """Write section.count texts after section.prompt; text i is drawn with seed + i, so each can be had again alone."""
    if section.tokens == 0:
        return []
    samples = []
    for index in range(section.count):
        ids = list(continue_text(model, tokenizer, section, prompt=section.prompt, seed=seed + index))
        samples.append(TextSample(section.prompt, "".join(stream_text(tokenizer, ids)), len(ids)))
    return samples
