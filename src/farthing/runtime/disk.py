"""How fast this machine copies memory and fills the disk that runs are kept on."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_BYTES = 1 << 24


@dataclass(frozen=True)
class SavingRate:
    """Bytes a second: copied in memory, and written durably, hashed, read back and hashed again."""

    copy: float
    write: float


def saving_rate(folder: Path) -> SavingRate | None:
    """Measure both with 16 MiB, in a file without a name; None where nothing can be written in `folder`."""
    source = np.random.default_rng(0).integers(0, 256, _BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    np.copyto(target, source)  # the first copy is the one that asks the system for memory
    start = time.perf_counter()
    np.copyto(target, source)
    copied = time.perf_counter() - start
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            start = time.perf_counter()
            stream.write(source.data)
            stream.flush()
            os.fsync(stream.fileno())
            hashlib.sha256(source.data)
            stream.seek(0)
            hashlib.sha256(stream.read())
            written = time.perf_counter() - start
    except OSError:
        return None
    return SavingRate(_BYTES / max(copied, 1e-9), _BYTES / max(written, 1e-9))
