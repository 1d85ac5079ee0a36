"""A PostgreSQL cluster of one's own in a temporary folder, that nobody else can reach.

`.ci/postgres` installs the binaries from Debian's packages. PostgreSQL refuses to run as root, so there it runs as an
unprivileged user.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

USERS = ("postgres", "nobody")


def binaries() -> Path | None:
    """The folder of initdb and pg_ctl, the newest version first; None where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: -int(path.parts[-3]))
    if found:
        return found[0].parent
    there = shutil.which("initdb")
    return None if there is None else Path(there).resolve().parent


class Cluster:
    """A server that listens on this machine alone, with one database."""

    def __init__(self, folder: Path, bin: Path) -> None:
        self._folder, self._bin = folder / "data", bin
        self._run_as: dict[str, Any] = {}
        if os.getuid() == 0:
            accounts = {entry.pw_name: entry for entry in pwd.getpwall()}
            account = next(accounts[name] for name in USERS if name in accounts)
            self._run_as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(folder, account.pw_uid, account.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._call("initdb", "-D", str(self._folder), "-U", "searcher", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        """Where workers meet."""
        return f"postgresql://searcher@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start, or start again."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._call("pg_ctl", "-D", str(self._folder), "-o", options, "-l", str(self._folder / "log"), "-w", "start")

    def stop(self) -> None:
        """Go away in the middle of whatever is being asked."""
        self._call("pg_ctl", "-D", str(self._folder), "-m", "immediate", "-w", "stop")

    def _call(self, program: str, *words: str) -> None:
        command = [str(self._bin / program), *words]
        # The server inherits standard output: were it a pipe, we would wait for the server's end.
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd="/", timeout=120, **self._run_as
            )
            if done.returncode:
                said.seek(0)
                raise RuntimeError(f"{program}: {said.read().decode(errors='replace')}")


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A running cluster, gone at the end.

    Raises:
        RuntimeError: PostgreSQL is not installed.
    """
    found = binaries()
    if found is None:
        raise RuntimeError("PostgreSQL is not installed; .ci/postgres installs it from Debian's packages")
    with tempfile.TemporaryDirectory(prefix="farthing-postgres-") as folder:
        # Folders for its user must be passable from the root on; a test's own folder is not.
        made = Cluster(Path(folder), found)
        try:
            yield made
        finally:
            made.stop()
