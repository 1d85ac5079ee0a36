"""Transcript: one text while it is written, of which only that is let out which no later token can take back."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Mark = TypeVar("Mark")


@dataclass(frozen=True)
class Part(Generic[Mark]):
    """What is new of a text, and the marks of the tokens in it, each with the place of its token in the whole text."""

    text: str
    marks: tuple[tuple[int, Mark], ...] = ()


class Transcript(Generic[Mark]):
    """Tokens become text: whole characters, and nothing from the first stop string on, however tokens cut it.

    What may turn out to begin a stop string is held back until it is known not to. Bytes that are no UTF-8 become
    U+FFFD, as does a character that the last token leaves unfinished. Of several stop strings the one that is complete
    first counts, so that the cut does not depend on how the text is divided into tokens.

    Args:
        token_bytes: the UTF-8 bytes that a token stands for; none for special tokens.
        stops: strings that end the text and are no part of it.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        self.stopped = False
        """whether a stop string has ended the text"""
        self._token_bytes, self._stops = token_bytes, tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._released = 0
        self._marks: list[tuple[int, Mark]] = []

    def given(self, token: int, mark: Mark | None = None) -> Part[Mark]:
        """A token of the prompt, which is to be part of the text; stop strings in it end nothing."""
        self._add(token, mark)
        return self._release(len(self._held))

    def drawn(self, token: int, mark: Mark | None = None) -> Part[Mark]:
        """A token that the model wrote; what it lets out of the text."""
        assert not self.stopped, "the text has ended"
        self._add(token, mark)
        return self._until_stop() or self._release(len(self._held) - self._may_begin_a_stop())

    def end(self, mark: Mark | None = None) -> Part[Mark]:
        """No token follows: let out what was held back; `mark` is that of the token that ended the text."""
        if self.stopped:
            return Part("")
        if mark is not None:
            self._marks.append((self._released + len(self._held), mark))
        self._held += self._decoder.decode(b"", final=True)
        return self._until_stop() or self._release(len(self._held), last=True)

    def _add(self, token: int, mark: Mark | None) -> None:
        if mark is not None:
            self._marks.append((self._released + len(self._held), mark))
        self._held += self._decoder.decode(self._token_bytes(token))

    def _until_stop(self) -> Part[Mark] | None:
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if not found:
            return None
        self.stopped = True
        return self._release(min(found)[1])

    def _may_begin_a_stop(self) -> int:
        """How many of the last characters a stop string could begin with."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if stop.startswith(self._held[-length:]):
                    longest = length
                    break
        return longest

    def _release(self, length: int, *, last: bool = False) -> Part[Mark]:
        text, self._held = self._held[:length], self._held[length:]
        self._released += length
        if not self._marks:
            return Part(text)
        # A token that is in the middle of a character waits for the rest of it.
        out = len(self._marks) if last else sum(at < self._released for at, _ in self._marks)
        marks, self._marks = tuple(self._marks[:out]), self._marks[out:]
        return Part(text, marks)
