"""A server in a process of its own, reached as strangers reach it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from farthing.serving.server import TOKEN


@dataclass(frozen=True)
class Reply:
    """An answer over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Child:
    """`farthing serve`, once it listens."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text("utf-8")
        self.told = json.loads(line)
        self.url = str(self.told["url"])
        self.port = int(self.url.rpartition(":")[2].partition("/")[0])
        self.address = f"127.0.0.1:{self.port}"

    @contextmanager
    def client(self, token: str = "none") -> Iterator[openai.OpenAI]:
        with openai.OpenAI(base_url=f"http://{self.address}/v1", api_key=token, max_retries=0, timeout=60) as client:
            yield client

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def exchange(self, sent: bytes) -> bytes:
        """All that comes back until the server closes."""
        with self.connect() as connection:
            with suppress(OSError):  # the server has heard enough
                connection.sendall(sent)
            return read_all(connection)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        host: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        lines = {"Host": self.address if host is None else host, "Connection": "close", **(headers or {})}
        if body is not None:
            lines = {"Content-Type": "application/json", "Content-Length": str(len(body)), **lines}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        with self.connect() as connection:
            connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + (body or b""))
            return parse(read_all(connection))

    def post(self, asked: Any, **settings: Any) -> Reply:
        return self.request("POST", "/v1/completions", json.dumps(asked).encode(), **settings)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """End it; returns what it wrote to standard error."""
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.log.read_text("utf-8")


@contextmanager
def served(home: Path, log: Path, *words: str, token: str | None = None) -> Iterator[Child]:
    """A server of the run `tiny` on a free port."""
    environment = {name: value for name, value in os.environ.items() if name != TOKEN}
    if token is not None:
        environment[TOKEN] = token
    command = [sys.executable, "-m", "farthing", "serve", "tiny", "--port", "0", "--json", *words]
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            yield Child(process, log)
        finally:
            process.kill()


def read_all(connection: socket.socket) -> bytes:
    received = bytearray()
    try:
        while piece := connection.recv(1 << 16):
            received += piece
    except ConnectionResetError:
        pass
    return bytes(received)


def parse(answer: bytes) -> Reply:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    status = re.fullmatch(r"HTTP/1\.1 (\d{3}) .*", first)
    assert status, answer[:200]
    pairs = (line.partition(": ") for line in lines)
    return Reply(int(status[1]), {name.lower(): value for name, _, value in pairs}, body)
