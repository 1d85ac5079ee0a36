"""What every test may rely on: a cache of its own, one thread, no network, no leftovers in the environment."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", settings.get_profile("explore"), derandomize=True, database=None)
settings.load_profile("repeatable" if os.environ.get("CI") else "explore")

_SOURCES = Path(__file__).parents[1] / "src"
_CACHE = "FARTHING_CACHE"
_SURPRISES = ("FARTHING_CRASHPOINT", "SLURM_JOB_END_TIME", "SLURM_JOB_ID", "FORCE_COLOR", "COLUMNS")


def pytest_configure(config: pytest.Config) -> None:
    for name in _SURPRISES:
        os.environ.pop(name, None)
    # Child processes inherit these; torch reads the thread counts when it is first imported.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_SOURCES), os.environ.get("PYTHONPATH")]))
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    if not hasattr(config, "workerinput"):
        # Workers of pytest-xdist inherit the folder, so they share it as concurrent runs do.
        os.environ[_CACHE] = tempfile.mkdtemp(prefix="farthing-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[_CACHE], ignore_errors=True)


@pytest.fixture(autouse=True)
def _torch_as_found() -> Iterator[None]:
    """Undo what a run in this process sets for all of torch."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(False)
