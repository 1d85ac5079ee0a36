"""A hub of our own: the few endpoints of huggingface.co that fetching a dataset's files needs, on a local port."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class LocalHub:
    """Files by (repository, path). `lie` sends other bytes than announced; `break_after` drops a connection and
    refuses further ones."""

    files: dict[tuple[str, str], bytes]
    address: str = ""
    lie: bool = False
    break_after: int | None = None
    gets: list[tuple[str, str | None]] = field(default_factory=list)

    def listing(self, repository: str) -> list[dict[str, object]]:
        return [
            {
                "type": "file", "path": path, "size": len(raw), "oid": git_sha1(raw),
                **({"lfs": {"oid": hashlib.sha256(raw).hexdigest(), "size": len(raw), "pointerSize": 1}}
                   if not path.endswith(".md") else {}),
            }
            for (owner, path), raw in self.files.items() if owner == repository
        ]  # fmt: skip


def git_sha1(raw: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


@contextmanager
def local_hub(files: dict[tuple[str, str], bytes]) -> Iterator[LocalHub]:
    hub = LocalHub(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _json(self, value: object, status: int = 200) -> None:
            raw = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(raw)

        def _file(self, body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            if tree := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/.+", path):
                entries = hub.listing(tree[1])
                self._json(entries or {"error": "not found"}, 200 if entries else 404)
                return
            match = re.fullmatch(
                r"/datasets/([^/]+/[^/]+)/resolve/(?:refs/convert/parquet|main|[0-9a-f]{40})/(.+)", path
            )
            raw = hub.files.get((match[1], match[2])) if match else None
            if raw is None:
                self._json({"error": "not found"}, 404)
                return
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            start = int(wanted[1]) if wanted else 0
            if body and hub.break_after == 0:
                self._json({"error": "no more"}, 403)
                return
            self.send_response(206 if wanted else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(raw).hexdigest()}"')
            self.send_header("Content-Length", str(len(raw) - start))
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(raw) - 1}/{len(raw)}")
            self.end_headers()
            if body:
                hub.gets.append((path, self.headers.get("Range")))
                sent = bytes(len(raw)) if hub.lie else raw
                end = len(raw) if hub.break_after is None else min(len(raw), start + hub.break_after)
                self.wfile.write(sent[start:end])
                if end < len(raw):
                    self.close_connection, hub.break_after = True, 0

        def do_GET(self) -> None:
            self._file(body=True)

        def do_HEAD(self) -> None:
            self._file(body=False)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
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
