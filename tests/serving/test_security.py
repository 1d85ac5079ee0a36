"""What strangers may try: names, tokens, sizes, slowness, garbage; and where the server listens at all."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from cli.small import Command
from farthing.errors import UserError
from farthing.serving.app import build_app
from farthing.serving.engine import Engine
from farthing.serving.guard import HEADERS, MOST_BYTES
from farthing.serving.server import Listener
from farthing.serving.turns import Turns
from serving.child import Child, Reply, parse, read_all, served

TOKEN = "a-token-of-enough-characters"
BODY = json.dumps({"prompt": "Show", "max_tokens": 2, "seed": 1}).encode()
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def routes(engine: Engine) -> list[tuple[str, str]]:
    """Every method and path that the application answers, and one that it does not."""
    turns = Turns(concurrency=1, waiting=0)
    found = [
        (method, str(getattr(route, "path", "")).replace("{wanted}", "tiny"))
        for route in build_app(engine, name="tiny", turns=turns).routes
        for method in sorted(getattr(route, "methods", None) or ())
    ]
    turns.close()
    assert ("POST", "/v1/completions") in found
    return [*found, ("GET", "/nowhere")]


def ask(child: Child, method: str, path: str, **settings: object) -> Reply:
    return child.request(method, path, BODY if method == "POST" else None, **settings)  # type: ignore[arg-type]


def listening(process: int) -> set[tuple[str, int]]:
    """Addresses, in hexadecimal, and ports at which a process listens."""
    inodes = {
        match[1]
        for entry in Path(f"/proc/{process}/fd").iterdir()
        if (match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry)))
    }
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{process}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in inodes:
                address, _, port = columns[1].partition(":")
                found.add((address, int(port, 16)))
    return found


@linux
def test_it_listens_on_this_machine_alone(server: Child) -> None:
    assert listening(server.process.pid) == {("0100007F", server.port)}


def test_every_answer_forbids_what_a_browser_could_do_with_it(server: Child, engine: Engine) -> None:
    for method, path in routes(engine):
        reply = ask(server, method, path)
        assert reply.status == (404 if path == "/nowhere" else 200)
        assert HEADERS.items() <= reply.headers.items()
        assert not any(name.startswith("access-control") for name in reply.headers)
        assert "server" not in reply.headers
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "WHATEVER"):
        reply = ask(server, method, "/v1/completions", headers={"Origin": f"http://{server.address}"})
        assert reply.status == 405
        assert reply.headers["allow"] == "POST"
        assert HEADERS.items() <= reply.headers.items()


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.com:{port}", "localhost.:{port}", "localhost", "127.0.0.1", "127.0.0.1:1", "",
     "127.0.0.1:{port}, evil.example", "user@127.0.0.1:{port}", "[::1]", "0.0.0.0:{port}", "127.1:{port}"],
)  # fmt: skip
def test_only_its_own_names_are_answered(server: Child, engine: Engine, host: str) -> None:
    for method, path in routes(engine):
        reply = ask(server, method, path, host=host.format(port=server.port))
        assert (reply.status, reply.json["error"]["code"]) == (421, "wrong_host")


def test_hosts_that_are_its_own(server: Child) -> None:
    for name in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
        assert ask(server, "GET", "/health", host=f"{name}:{server.port}").status == 200


@pytest.mark.parametrize(
    "head",
    ["GET /health HTTP/1.1\r\n", "GET /health HTTP/1.0\r\n",
     "GET /health HTTP/1.1\r\nHost: {own}\r\nHost: evil.example\r\n",
     "GET http://evil.example/health HTTP/1.1\r\nHost: {own}\r\n",
     "GET /health HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: {own}\r\n"],
)  # fmt: skip
def test_odd_ways_to_name_a_host(server: Child, head: str) -> None:
    sent = head.format(own=server.address) + "Connection: close\r\n\r\n"
    assert parse(server.exchange(sent.encode())).status in (400, 404, 421)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", "http://localhost:1"])
def test_pages_of_other_places_are_refused(server: Child, engine: Engine, origin: str) -> None:
    for method, path in routes(engine):
        assert ask(server, method, path, headers={"Origin": origin}).status == 403
    assert ask(server, "POST", "/v1/completions", headers={"Origin": f"http://{server.address}"}).status == 200


def test_a_form_cannot_post(server: Child) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        reply = ask(server, "POST", "/v1/completions", headers={"Content-Type": kind})
        assert (reply.status, reply.json["error"]["code"]) == (415, "unsupported_media_type")
    kind = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert ask(server, "POST", "/v1/completions", headers=kind).status == 200


@pytest.mark.parametrize("size", [MOST_BYTES + 1, 5 * MOST_BYTES])
def test_a_body_too_large(server: Child, size: int) -> None:
    reply = server.request("POST", "/v1/completions", b" " * size)
    assert (reply.status, reply.json["error"]["code"]) == (413, "body_too_large")
    chunk = f"{size:x}\r\n".encode() + b" " * size + b"\r\n0\r\n\r\n"
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {server.address}\r\nTransfer-Encoding: chunked\r\n"
    assert parse(server.exchange(f"{head}Connection: close\r\n\r\n".encode() + chunk)).status == 413


def test_a_body_as_large_as_allowed(server: Child) -> None:
    assert server.request("POST", "/v1/completions", BODY.ljust(MOST_BYTES)).status == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b'{"prompt":' * 20_000, b"\xff", b'{"a":1}', b"null", b'{"prompt":"\\ud800"}']
)
def test_json_that_is_none_or_means_nothing(server: Child, body: bytes) -> None:
    reply = server.request("POST", "/v1/completions", body)
    assert reply.status in (400, 422)
    assert set(reply.json) == {"error"}


@pytest.mark.parametrize("size", [40_000, 1_000_000])
def test_a_head_too_large(server: Child, size: int) -> None:
    head = f"GET /health HTTP/1.1\r\nHost: {server.address}\r\nConnection: close\r\nX: "
    # The server may close while we still send, and then its answer can be lost on the way.
    reply = server.exchange(f"{head}{'x' * size}\r\n\r\n".encode())
    assert reply == b"" or parse(reply).json["error"]["code"] in ("headers_too_large", "bad_request")
    assert server.request("GET", "/health", headers={"X": "x" * 30_000}).status == 200


@pytest.mark.parametrize(
    "path",
    ["/..", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%00",
     "/%ff%fe", "/v1/completions/", "//v1/models", "/V1/models", "/v1/chat/completions", "/docs", "/openapi.json"],
)  # fmt: skip
def test_no_path_leads_elsewhere(server: Child, path: str) -> None:
    reply = ask(server, "GET", path)
    assert (reply.status, reply.headers["content-type"]) == (404, "application/json")
    assert "root" not in reply.body.decode() and "/home" not in reply.body.decode()


def test_slow_clients_are_left(home: Path, tmp_path: Path) -> None:
    with served(home, tmp_path / "log", "--timeout", "0.5") as child:
        idle = [child.connect() for _ in range(100)]
        try:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {child.address}\r\n"
            with child.connect() as slow_head, child.connect() as slow_body, child.connect() as second:
                slow_head.sendall(head.encode())
                slow_body.sendall((head + "Content-Length: 100\r\n\r\n{").encode())
                second.sendall(f"GET /health HTTP/1.1\r\nHost: {child.address}\r\n\r\nGET /he".encode())
                assert patiently(child).status == 200
                assert read_all(slow_head) == b""
                assert parse(read_all(slow_body)).status == 408
                assert read_all(second).startswith(b"HTTP/1.1 200")
            assert all(read_all(one) == b"" for one in idle)
        finally:
            for one in idle:
                one.close()


def test_garbage_does_no_harm(home: Path, tmp_path: Path) -> None:
    with served(home, tmp_path / "log", "--timeout", "0.5", "--queue", "100") as child:
        honest = _honest(child)
        with ThreadPoolExecutor(8) as threads:
            replies = list(threads.map(child.exchange, _garbage(honest, 200)))
        assert patiently(child).json["requests"] == 0
        log = child.stop()
    assert sum(map(bool, replies)) > 50
    for reply in filter(None, replies):
        assert re.match(rb"HTTP/1\.1 (200|4\d\d) ", reply), reply[:300]
        assert b"Traceback" not in reply and b".py" not in reply
    assert "Traceback" not in log
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", log), "control characters on the terminal"


def _honest(child: Child) -> bytes:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {child.address}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(BODY)}\r\nConnection: close\r\n\r\n".encode() + BODY


def _garbage(honest: bytes, number: int) -> Iterator[bytes]:
    random = Random(20261122)
    for _ in range(number):
        sent = bytearray(honest if random.random() < 0.8 else random.randbytes(random.randrange(1, 400)))
        for _ in range(random.randrange(1, 6)):
            place = random.randrange(len(sent))
            match random.randrange(4):
                case 0:
                    sent[place] = random.randrange(256)
                case 1:
                    del sent[place : place + random.randrange(1, 30)]
                case 2:
                    sent[place:place] = random.randbytes(random.randrange(1, 30))
                case _:
                    sent += sent[place:]
            if not sent:
                sent += b"\n"
        yield bytes(sent)


def patiently(child: Child) -> Reply:
    """A health check of a server that has little patience with a busy machine."""
    for _ in range(50):
        try:
            return ask(child, "GET", "/health")
        except (AssertionError, OSError):
            continue
    raise AssertionError("the server is dead")


@pytest.fixture(scope="module")
def public(home: Path) -> Iterator[Child]:
    """A server that the network can reach."""
    with served(home, home / "public.log", "--host", "0.0.0.0", token=TOKEN) as child:
        yield child


def test_other_addresses_need_the_token_on_every_route(public: Child, engine: Engine) -> None:
    wrong = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"},
             {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Bearer {TOKEN[:-1]}"},
             {"Authorization": "Bearer \xe9"}, {"Cookie": f"token={TOKEN}"}, {"X-Api-Key": TOKEN}]  # fmt: skip
    for method, path in routes(engine):
        for headers in wrong:
            reply = ask(public, method, f"{path}?token={TOKEN}", headers=headers)
            assert (reply.status, reply.json["error"]["code"]) == (401, "invalid_api_key")
            assert reply.headers["www-authenticate"] == "Bearer"
            assert HEADERS.items() <= reply.headers.items()
        right = ask(public, method, path, headers={"Authorization": f"Bearer {TOKEN}"})
        assert right.status == (404 if path == "/nowhere" else 200)


def test_the_client_sends_the_token(public: Child) -> None:
    with public.client(TOKEN) as client:
        assert client.completions.create(model="tiny", prompt="Show", max_tokens=3).choices[0].text
    # A token makes names needless: whoever has it was told it.
    assert ask(public, "GET", "/health", host="gpu.example", headers={"Authorization": f"Bearer {TOKEN}"}).status == 200


@linux
def test_the_token_is_written_nowhere(public: Child) -> None:
    ask(public, "GET", f"/health?key={TOKEN}")
    log = public.log.read_text("utf-8")
    assert TOKEN not in log
    assert "GET /health 401" in log
    assert "everyone on the network can reach this address" in log
    assert TOKEN not in Path(f"/proc/{public.process.pid}/cmdline").read_text()
    assert listening(public.process.pid) == {("00000000", public.port)}


def test_a_token_of_its_own_is_printed_once(home: Path, tmp_path: Path) -> None:
    with served(home, tmp_path / "log", "--host", "0.0.0.0", "--quiet") as child:
        (token,) = re.findall(r"^token: (\S+) ", child.log.read_text("utf-8"), re.MULTILINE)
        assert len(token) == 43  # 256 bits in base 64
        assert ask(child, "GET", "/health").status == 401
        assert ask(child, "GET", "/health", headers={"Authorization": f"Bearer {token}"}).status == 200
        assert child.stop(signal.SIGINT).count(token) == 1
        assert child.process.returncode == 0


def test_a_token_in_the_environment_is_asked_for_on_this_machine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARTHING_TOKEN", TOKEN)
    listener = Listener("127.0.0.1", 0)
    listener.socket.close()
    assert (listener.token, listener.made_token) == (TOKEN, False)
    assert f"localhost:{listener.port}" in (listener.hosts or ())


@pytest.mark.parametrize("token", ["", "short", "x" * 15, "a token with é in it", "line\nbreak" * 3])
def test_a_weak_token_is_refused(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("FARTHING_TOKEN", token)
    with pytest.raises(UserError, match="FARTHING_TOKEN: must have at least 16 characters"):
        Listener("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("localhost", True), ("127.8.8.8", True), ("0.0.0.0", False)]
)
def test_only_loopback_goes_without_a_token(host: str, loopback: bool) -> None:
    listener = Listener(host, 0)
    listener.socket.close()
    assert listener.loopback is loopback
    assert (listener.token is None) is (listener.hosts is not None) is loopback


def test_what_cannot_be_served_is_told_in_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Listener("127.0.0.1", 0).socket as taken:
        port = taken.getsockname()[1]
        runs = ("--runs", str(home / "runs"))
        for words, said in (
            (("serve", "tniy", *runs), "did you mean tiny?"),
            (("serve", str(home), *runs), "no config.json"),
            (("serve", "tiny", *runs, "--port", str(port)), "something listens there already"),
            (("serve", "tiny", *runs, "--port", "65536"), "--port"),
            (("serve", "tiny", *runs, "--max-tokens", "0"), "--max-tokens"),
            (("chat", "tniy", *runs), "did you mean tiny?"),
            (("chat", "tiny", *runs, "--temperature", "-1"), "temperature"),
        ):
            answer = Command(capsys)(*words)
            assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
            assert said in answer.err


def test_places_that_cannot_be_listened_at() -> None:
    listener = Listener("127.0.0.1", 0)
    with listener.socket, pytest.raises(UserError, match="something listens there already"):
        Listener("127.0.0.1", listener.port)
    for host, said in (
        ("", "empty"),
        ("no.such.host.invalid", "no such address"),
        ("192.0.2.1", "cannot be listened at"),
    ):
        with pytest.raises(UserError, match=said):
            Listener(host, 0)
    with pytest.raises(UserError, match="no such address"):
        Listener("x" * 300, 0)
