"""A hub of our own: the endpoints of huggingface.co that an upload needs, on a local port, with faults to order."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_TheTokenOfTheTestThatNobodyMaySee"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """What a repository holds; `files` changes by commits alone."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class UploadHub:
    """A hub with one user, somebody.

    Args:
        faults: what goes wrong, by a pattern of "METHOD /path": a status, or a call that is made in place of an answer.
        ignored: paths that a .gitignore of the repository names.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: dict[str, int | Callable[[], object]] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    address: str = ""

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        """All or nothing, as git does it."""
        files = dict(self.repositories[name].files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
        self.repositories[name].files = files


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    hub = UploadHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(hub: UploadHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _say(self, value: Any, status: int = 200, code: str = "") -> None:
            raw = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(raw)

        def _answer(self) -> None:
            path = unquote(self.path.partition("?")[0])
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = f"{self.command} {path}"
            hub.requests.append(asked)
            for pattern, fault in hub.faults.items():
                if re.fullmatch(pattern, asked):
                    if isinstance(fault, int):
                        # A hub that echoes what it was sent must not make us repeat it.
                        self._say({"error": f"no, not with {self.headers.get('Authorization')}"}, fault)
                    else:
                        fault()
                        self.close_connection = True
                    return
            if not path.startswith("/lfs/") and path != "/" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._say({"error": "Invalid username or password."}, 401)
                return
            self._route(path, body)

        def _route(self, path: str, body: bytes) -> None:
            if path == "/":
                self._say({})
            elif path == "/api/whoami-v2":
                self._say({"type": "user", "name": "somebody"})
            elif path == "/api/validate-yaml":
                head = json.loads(body)["content"].split("---")[1]
                unknown = "license: nonsense" in head
                self._say(
                    {"errors": [{"message": '"license" must be one of [...]'}]} if unknown else {},
                    400 if unknown else 200,
                )
            elif path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
                private = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
                hub.repositories[name] = Repository(private)
                self._say({"url": f"{hub.address}/{name}", "name": name})
            elif stored := re.fullmatch(r"/lfs/(\w+)", path):
                assert hashlib.sha256(body).hexdigest() == stored[1]
                hub.stored[stored[1]] = body
                self._say({})
            else:
                self._repository(path, body)

        def _repository(self, path: str, body: bytes) -> None:
            match = re.fullmatch(r"/(?:api/models/)?([\w-]+/[\w.-]+?)(\.git/info/lfs/objects/batch|/.*)?", path)
            name, rest = (match[1], match[2] or "") if match else ("", "")
            if name not in hub.repositories:
                self._say({"error": "Repository not found"}, 404, "RepoNotFound")
            elif rest == "":
                there = hub.repositories[name]
                self._say({"id": name, "private": there.private, "sha": COMMIT, "siblings": []})
            elif rest == "/preupload/main":
                self._say({"files": [self._mode(file["path"]) for file in json.loads(body)["files"]]})
            elif rest.endswith("objects/batch"):
                objects = [
                    {**one, "actions": {"upload": {"href": f"{hub.address}/lfs/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                self._say({"transfer": "basic", "objects": objects})
            elif rest == "/commit/main":
                hub.commit(name, [json.loads(line) for line in body.splitlines()])
                self._say({"commitUrl": f"{hub.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
            elif rest == f"/tree/{COMMIT}":
                files = hub.repositories[name].files
                self._say([{"type": "file", "path": at, "size": len(raw), "oid": "0"} for at, raw in files.items()])
            else:
                self._say({"error": f"no such endpoint {path}"}, 404)

        def _mode(self, path: str) -> dict[str, Any]:
            kind = "lfs" if path.endswith(".safetensors") else "regular"
            return {"path": path, "uploadMode": kind, "shouldIgnore": path in hub.ignored, "oid": None}

        do_GET = do_HEAD = do_POST = do_PUT = _answer

    return Handler


def silence(seconds: float) -> Callable[[], object]:
    """A fault: no answer for so long, then a connection that ends."""
    return lambda: threading.Event().wait(seconds)
