"""Engine: completions written by one model, piece by piece."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from farthing.data.tokenizer import Tokenizer
from farthing.errors import UserError, first_line
from farthing.model.cache import cache_bytes
from farthing.model.generate import generate_together
from farthing.model.gpt import GPT
from farthing.model.inference import Inference, Precision
from farthing.model.likelihood import Likelihood, text_likelihoods
from farthing.serving.refusal import Refusal
from farthing.serving.request import CompletionRequest
from farthing.serving.transcript import Part, Transcript

Finish = Literal["stop", "length"]
"""stop: the document ended, or a stop string came; length: as many tokens as were asked for"""

MOST_TEXTS = 128
"""texts that one request may ask for: prompts times n"""
_TOKENS = 16
"""tokens to write where the client does not say; OpenAI's default"""
_CACHES = 1 << 28
"""bytes that the caches of texts written together may take"""
_TOGETHER = 32
"""texts written together at most; more are no faster"""

Mark = tuple[int, Likelihood | None]
"""a token that is to be scored; without a likelihood where nothing is before it"""


@dataclass(frozen=True)
class Score:
    """A token and how likely the model held it; both None for a first token that has nothing before it.

    Args:
        token: its text, or `bytes:\\xe2\\x82` where it is no whole character.
        offset: where it begins in the choice's text, in characters.
        logprob: natural logarithm, at temperature 1 and among the whole vocabulary.
        top: the likeliest tokens and the token itself.
    """

    token: str
    offset: int
    logprob: float | None
    top: dict[str, float] | None


@dataclass(frozen=True)
class Piece:
    """What is new of one text.

    Args:
        index: which text: prompt times n, plus the choice.
        text: whole characters.
        scores: of the tokens in it, if they were asked for.
        tokens: how many the model has drawn for it, without the one that ends the document.
        finish: why the text ends here; None if it goes on.
    """

    index: int
    text: str
    scores: tuple[Score, ...] = ()
    tokens: int = 0
    finish: Finish | None = None


@dataclass(frozen=True)
class Job:
    """A request, checked against the model and with every default filled in.

    Args:
        prompts: each as the tokens that are its own and the tokens that come before them.
    """

    prompts: list[tuple[list[int], list[int]]]
    asked: CompletionRequest
    tokens: int
    temperature: float
    n: int
    seed: int

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(own) for own, _ in self.prompts)


@dataclass
class _Text:
    """A text on its way."""

    index: int
    seed: int
    transcript: Transcript[Mark]
    ended: bool = False


class Engine:
    """Writes completions with one model; several threads may do so at once.

    Args:
        model: its weights must not change.
        tokenizer: the one it was trained with.
        precision: of matrix products.
        max_tokens: the longest text that may be asked for, in tokens.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, precision: Precision, max_tokens: int) -> None:
        self.context_length = model.section.context_length
        self._model = Inference(model, precision=precision, layout="tokens")
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self._at_once = max(1, min(_TOGETHER, _CACHES // cache_bytes(model.section)))

    def job(self, asked: CompletionRequest) -> Job:
        """What a request comes to.

        Raises:
            Refusal: the model or this server's limits do not allow it.
        """
        n, tokens = asked.n or 1, asked.max_tokens
        if tokens is not None and tokens > self._max_tokens:
            raise _out_of_range("max_tokens", f"{tokens}: this server writes {self._max_tokens:,} tokens at most")
        if (texts := len(asked.prompts) * n) > MOST_TEXTS:
            at_fault = "n" if len(asked.prompts) == 1 else "prompt"
            raise _out_of_range(at_fault, f"this asks for {texts:,} texts; {MOST_TEXTS} fit into one request")
        return Job(
            prompts=[self._prompt(prompt) for prompt in asked.prompts],
            asked=asked,
            tokens=min(_TOKENS, self._max_tokens) if tokens is None else tokens,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            n=n,
            seed=secrets.randbelow(1 << 32) if asked.seed is None else asked.seed,
        )

    def write(self, job: Job, stopped: Callable[[], bool]) -> Iterator[Piece]:
        """The texts of a job, as they are written; ends early, between two tokens, once `stopped` says so.

        Raises:
            DivergedError: the model's probabilities are not numbers.
        """
        for number, (own, before) in enumerate(job.prompts):
            marks = self._marks(job, own, before)
            for first in range(0, job.n, self._at_once):
                if stopped():
                    return
                choices = range(first, min(first + self._at_once, job.n))
                texts = [self._text(job, number * job.n + choice, job.seed + choice) for choice in choices]
                if job.asked.echo:
                    yield from (self._echo(text, own, marks) for text in texts)
                yield from self._continue(job, [*before, *own], texts, stopped)

    def _prompt(self, prompt: str | list[int]) -> tuple[list[int], list[int]]:
        start = [self._tokenizer.separator]
        if isinstance(prompt, str):
            # As farthing sample does: the text begins a document.
            own, before = self._encode(prompt), start
        else:
            own, before = prompt, [] if prompt else start
            outside = [token for token in own if not 0 <= token < self._tokenizer.vocab_size]
            if outside:
                size = self._tokenizer.vocab_size
                raise _out_of_range("prompt", f"token {outside[0]} is not in the vocabulary: ids are 0 to {size - 1}")
        if len(own) > self.context_length:
            raise Refusal(
                400,
                f"prompt: has {len(own):,} tokens, and the model reads {self.context_length:,} at most; shorten it",
                code="context_length_exceeded",
                param="prompt",
            )
        return own, before

    def _encode(self, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text)
        except UserError as error:
            raise _out_of_range("prompt", first_line(error)) from None

    def _text(self, job: Job, index: int, seed: int) -> _Text:
        return _Text(index, seed, Transcript(self._tokenizer.token_bytes, job.asked.stops))

    def _marks(self, job: Job, own: list[int], before: list[int]) -> list[Mark | None]:
        """One for each of the prompt's own tokens, if they are to be scored."""
        top = job.asked.logprobs
        if not job.asked.echo or top is None:
            return [None] * len(own)
        found = text_likelihoods(self._model, [*before, *own], top=top, separator=self._tokenizer.separator)
        return list(zip(own, found if before else [None, *found], strict=True))

    def _echo(self, text: _Text, own: list[int], marks: list[Mark | None]) -> Piece:
        parts = [text.transcript.given(*pair) for pair in zip(own, marks, strict=True)]
        placed = tuple(mark for part in parts for mark in part.marks)
        return self._piece(text, Part("".join(part.text for part in parts), placed))

    def _continue(
        self, job: Job, prompt: list[int], texts: list[_Text], stopped: Callable[[], bool]
    ) -> Iterator[Piece]:
        steps = generate_together(
            self._model,
            prompt,
            tokens=job.tokens,
            seeds=[text.seed for text in texts],
            temperature=job.temperature,
            top_k=job.asked.top_k,
            top_p=job.asked.top_p,
            separator=self._tokenizer.separator,
            top=job.asked.logprobs,
        )
        for drawn in steps:
            for text, one in zip(texts, drawn, strict=True):
                if text.ended:
                    continue
                mark = None if one.likelihood is None else (one.token, one.likelihood)
                if one.token == self._tokenizer.separator:
                    text.ended = True
                    yield self._piece(text, text.transcript.end(mark), finish="stop")
                    continue
                part = text.transcript.drawn(one.token, mark)
                text.ended = text.transcript.stopped
                yield self._piece(text, part, tokens=1, finish="stop" if text.ended else None)
            if stopped() or all(text.ended for text in texts):
                break
        for text in texts:
            if not text.ended:
                part = text.transcript.end()
                yield self._piece(text, part, finish="stop" if text.transcript.stopped else "length")

    def _piece(
        self,
        text: _Text,
        part: Part[Mark],
        *,
        tokens: int = 0,
        finish: Finish | None = None,
    ) -> Piece:
        scores = tuple(self._score(offset, *mark) for offset, mark in part.marks)
        return Piece(text.index, part.text, scores, tokens, finish)

    def _score(self, offset: int, token: int, likelihood: Likelihood | None) -> Score:
        name = self._name(token)
        if likelihood is None:
            return Score(name, offset, None, None)
        top: dict[str, float] = {}
        for other, logprob in (*likelihood.top, (token, likelihood.logprob)):
            # Of two tokens with the same text the likelier one counts.
            top.setdefault(self._name(other), logprob)
        return Score(name, offset, likelihood.logprob, top)

    def _name(self, token: int) -> str:
        piece = self._tokenizer.token_bytes(token)
        if not piece:
            return self._tokenizer.token_text(token)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _out_of_range(param: str, message: str) -> Refusal:
    return Refusal(422, f"{param}: {message}", code="invalid_value", param=param)
