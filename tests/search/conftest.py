"""A private PostgreSQL server for the tests of workers on many machines; its code is that of the demonstration."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

if TYPE_CHECKING:
    from cluster import Cluster


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """A running server; skipped where PostgreSQL is not installed, but not in CI, where .ci/postgres installs it."""
    from cluster import binaries, cluster

    if binaries() is None and not os.environ.get("CI"):
        pytest.skip("PostgreSQL is not installed: .ci/postgres does that from Debian's packages")
    with cluster() as running:
        yield running
