"""Guard: what every request must pass before the application sees it, and what every answer carries."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from farthing.serving.refusal import Refusal
from farthing.sinks.legible import legible

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BYTES = 1 << 20
"""bytes of a body"""
MOST_HEAD = 32 << 10
"""bytes of a request line and headers"""
_DRAINED = 16 << 20
"""bytes of a body too large that are read and thrown away, since a client that still sends reads no answer"""
GONE = 499
"""what a web server notes of a client that did not wait for its answer"""
_SHOWN = 200
"""characters of a path that the log shows"""

HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""of every answer"""


FAILED = Refusal(500, "the server failed; its terminal says why", code="internal_error")


class Guard:
    """Stands before an application: Host, Origin, token, size and time of the body; headers of every answer.

    Args:
        application: it is handed whole bodies only.
        hosts: the Host headers that are answered, so that no web page can reach this server through a name of its own
            (DNS rebinding); None answers all, and needs a token.
        token: what clients must send as `Authorization: Bearer`; None lets everyone in.
        seconds: that a body may take.
        log: is told a line for each answer; no token, query or body is in it.
    """

    def __init__(
        self,
        application: Application,
        *,
        hosts: frozenset[str] | None,
        token: str | None,
        seconds: float,
        log: Callable[[str], None],
    ) -> None:
        assert hosts is not None or token is not None, "open to everyone"
        self._application, self._hosts, self._seconds, self._log = application, hosts, seconds, log
        self._authorization = None if token is None else f"Bearer {token}".encode()
        self._headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        answer = _Answering(send, self._headers)
        began = time.perf_counter()
        try:
            self._admit(scope)
            body = await self._body(scope, receive)
            await self._application(scope, _replay(body, receive), answer.send)
        except Refusal as refusal:
            await answer.refuse(refusal)
        except asyncio.CancelledError:
            # The server ends. Whoever is still reading sees the connection close.
            answer.status = answer.status or 503
        except Exception:
            # What went wrong is for the terminal: it may name paths.
            self._log(legible(traceback.format_exc(), lines=True).rstrip())
            await answer.refuse(FAILED)
        path = legible(scope["path"][:_SHOWN])
        self._log(f"{legible(scope['method'][:20])} {path} {answer.status or GONE} {time.perf_counter() - began:.2f} s")

    def _admit(self, scope: Scope) -> None:
        # What arrives in one piece is never too large for uvicorn.
        size = sum(
            len(name) + len(value) for name, value in [*scope["headers"], (scope["raw_path"], scope["query_string"])]
        )
        if size > MOST_HEAD:
            raise Refusal(431, f"the headers are larger than {MOST_HEAD:,} bytes", code="headers_too_large")
        if self._hosts is not None:
            hosts = _values(scope, b"host")
            if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
                raise Refusal(421, "Host: this server answers only to its own address", code="wrong_host")
            # A browser says where a page came from; programs do not.
            if any(
                origin.lower() not in {f"http://{host}" for host in self._hosts} for origin in _values(scope, b"origin")
            ):
                raise Refusal(403, "Origin: web pages of other places may not use this server", code="wrong_origin")
        if self._authorization is not None:
            given = _values(scope, b"authorization")
            fine = len(given) == 1 and hmac.compare_digest(given[0].encode("latin-1"), self._authorization)
            if not fine:
                raise Refusal(
                    401,
                    "a token is needed: send the one that the server printed, as Authorization: Bearer TOKEN",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the body ends early", code="incomplete_body")
                    size += len(message.get("body", b""))
                    if size <= MOST_BYTES:
                        body += message.get("body", b"")
                    if not message.get("more_body", False) or size > _DRAINED:
                        break
        except TimeoutError:
            raise Refusal(
                408,
                f"the body took longer than {self._seconds:g} seconds",
                code="timeout",
                headers={"connection": "close"},
            ) from None
        if size > MOST_BYTES:
            raise Refusal(
                413,
                f"the body is larger than {MOST_BYTES:,} bytes",
                code="body_too_large",
                headers={"connection": "close"},
            )
        return bytes(body)


class _Answering:
    """An answer on its way out."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = 0
        self._send, self._headers = send, headers

    async def send(self, message: Message) -> None:
        """Pass a message on; the first one with the headers that every answer carries."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with an error, unless the answer has begun: then it stays unfinished, which clients notice."""
        if self.status:
            return
        body = json.dumps(refusal.body).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
        plain = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": plain})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once, then what the server says."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def messages() -> Message:
        return waiting.pop() if waiting else await receive()

    return messages
