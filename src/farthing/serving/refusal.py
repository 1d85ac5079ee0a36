"""Refusal: a request that is not carried out, in the shape that OpenAI's clients read."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """An answer instead of what was asked for; its message never holds a path or a traceback.

    Args:
        status: of HTTP.
        message: one line: what, the offending value, what to do.
        code: a word for programs.
        param: the field at fault.
        headers: further ones of the answer.
    """

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that says so."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
