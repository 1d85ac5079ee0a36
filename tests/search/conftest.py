"""A private PostgreSQL server for the tests of workers on many machines; its code is that of the demonstration."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# By its file: with all of benchmarks/ on the path, its export.py would stand before the tests' folder of that name.
_SPEC = importlib.util.spec_from_file_location("cluster", Path(__file__).parents[2] / "benchmarks" / "cluster.py")
assert _SPEC is not None and _SPEC.loader is not None
sys.modules["cluster"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sys.modules["cluster"])

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
