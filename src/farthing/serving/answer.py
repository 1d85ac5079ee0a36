"""What a client is told: completions and the chunks of a stream, in OpenAI's JSON."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Any

from farthing.serving.engine import Job, Piece, Score

DONE = b"data: [DONE]\n\n"
"""the last event of every stream"""


def event(content: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(content, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


class Answer:
    """The answer to one request.

    Args:
        model: the name that the client knows the model by.
        job: what was asked for.
    """

    def __init__(self, model: str, job: Job) -> None:
        self._job = job
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "seed": job.seed,
        }
        self._scored = job.asked.logprobs is not None

    def whole(self, pieces: Iterable[Piece]) -> dict[str, Any]:
        """All texts at once."""
        pieces_of: dict[int, list[Piece]] = {}
        for piece in pieces:
            pieces_of.setdefault(piece.index, []).append(piece)
        choices = [
            self._choice(index, "".join(p.text for p in of), [s for p in of for s in p.scores], of[-1].finish)
            for index, of in sorted(pieces_of.items())
        ]
        drawn = sum(piece.tokens for of in pieces_of.values() for piece in of)
        return {**self._head, "choices": choices, "usage": self._usage(drawn)}

    def events(self, pieces: Iterable[Piece]) -> Iterator[bytes]:
        """The texts as they are written: an event for each piece in which something is new, and [DONE]."""
        options = self._job.asked.stream_options
        with_usage = options is not None and options.include_usage
        head = {**self._head, "usage": None} if with_usage else self._head
        drawn = 0
        for piece in pieces:
            drawn += piece.tokens
            if piece.text or piece.scores or piece.finish:
                yield event({**head, "choices": [self._choice(piece.index, piece.text, piece.scores, piece.finish)]})
        if with_usage:
            yield event({**head, "choices": [], "usage": self._usage(drawn)})
        yield DONE

    def _choice(self, index: int, text: str, scores: Iterable[Score], finish: str | None) -> dict[str, Any]:
        logprobs = _logprobs(list(scores)) if self._scored else None
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}

    def _usage(self, drawn: int) -> dict[str, int]:
        asked = self._job.prompt_tokens
        return {"prompt_tokens": asked, "completion_tokens": drawn, "total_tokens": asked + drawn}


def _logprobs(scores: list[Score]) -> dict[str, Any]:
    return {
        "tokens": [score.token for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [score.top for score in scores],
        "text_offset": [score.offset for score in scores],
    }
