"""The server process: where it listens, who may reach it, and how long a connection may dawdle."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import os
import secrets
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from farthing.errors import UserError
from farthing.serving.app import build_app
from farthing.serving.engine import Engine
from farthing.serving.guard import MOST_HEAD, Guard
from farthing.serving.refusal import Refusal
from farthing.serving.turns import Turns

TOKEN = "FARTHING_TOKEN"
"""the environment's variable with the token that clients must send"""
_SHORTEST_TOKEN = 16
_MOST_CONNECTIONS = 256
_GRACE = 2
"""seconds that texts being written are given when the server ends"""
_NAMES = ("127.0.0.1", "localhost", "[::1]")
"""what a loopback address is called in a Host header"""


@dataclass(frozen=True)
class Limits:
    """What one server gives to its clients.

    Args:
        concurrency: requests worked on at a time.
        waiting: requests that may stand in line behind those.
        seconds: that a client may take to send a request.
    """

    concurrency: int
    waiting: int
    seconds: float


class Listener:
    """A bound socket, and the token that is needed there.

    Args:
        host: an address or a name; other than loopback needs a token.
        port: 0 takes any free one.

    Raises:
        UserError: it cannot be listened at, or the token in the environment is too weak.
    """

    def __init__(self, host: str, port: int) -> None:
        given = os.environ.get(TOKEN)
        if given is not None and (len(given) < _SHORTEST_TOKEN or not given.isascii() or not given.isprintable()):
            raise UserError(
                f"{TOKEN}: must have at least {_SHORTEST_TOKEN} characters, all of them ASCII; "
                "unset it to have a token made"
            )
        self.socket = _bind(host, port)
        address, self.port = self.socket.getsockname()[:2]
        self.loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback
        self.made_token = given is None and not self.loopback
        """whether the token is new, and known to nobody until it is printed"""
        self.token = secrets.token_urlsafe(32) if self.made_token else given
        shown = f"[{address}]" if ":" in address else address
        self.url = f"http://{shown}:{self.port}/v1"
        """what clients call base_url"""
        names = {*_NAMES, shown}
        ports = {f":{self.port}"} | ({""} if self.port == 80 else set())
        self.hosts = frozenset(name + port for name in names for port in ports) if self.loopback else None
        """the Host headers to answer to; None for any, since a token keeps strangers out"""


def serve(engine: Engine, *, name: str, listener: Listener, limits: Limits, log: Callable[[str], None]) -> None:
    """Answer requests until SIGINT or SIGTERM.

    Args:
        engine: writes the texts.
        name: what clients call the model.
        listener: where to listen.
        limits: of clients.
        log: is told a line for each answer.

    Raises:
        KeyboardInterrupt: SIGINT ended it, once the texts being written had their grace.
    """
    turns = Turns(concurrency=limits.concurrency, waiting=limits.waiting)
    guard = Guard(
        build_app(engine, name=name, turns=turns),
        hosts=listener.hosts,
        token=listener.token,
        seconds=limits.seconds,
        log=log,
    )

    class Protocol(_PromptProtocol):
        seconds = limits.seconds

    config = uvicorn.Config(
        guard,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="critical",  # the guard logs; uvicorn would show what clients send as they send it
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=MOST_HEAD,
        timeout_graceful_shutdown=_GRACE,
    )
    uvicorn.Server(config).run(sockets=[listener.socket])


class _PromptProtocol(H11Protocol):
    """HTTP for clients that send their requests without delay.

    uvicorn waits for the head of a request for ever, so that a few hundred silent clients would fill the server.
    """

    seconds: float
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.abort()
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._expect_request()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        if self._idle():
            body = Refusal(400, "this is no HTTP request that can be read", code="bad_request").body
            content = json.dumps(body).encode()
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
            self.transport.write(
                head.encode() + b"x-content-type-options: nosniff\r\nconnection: close\r\n\r\n" + content
            )
        self.transport.close()

    def _expect_request(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(self.seconds, self._give_up)

    def _give_up(self) -> None:
        if self._idle():
            self.transport.abort()

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


def _bind(host: str, port: int) -> socket.socket:
    where = f"--host {host} --port {port}"
    if not host:
        raise UserError("--host: empty; name an address, for example 127.0.0.1 (this machine only)")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host}: no such address ({reason})") from None
    # localhost is ::1 first on some machines; clients expect 127.0.0.1.
    family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    made = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen()
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"{where}: something listens there already; choose another --port, or 0 for any") from None
        raise UserError(f"{where}: cannot be listened at: {error.strerror or error}") from None
    return made
