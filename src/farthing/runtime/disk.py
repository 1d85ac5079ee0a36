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
    """How fast a checkpoint can be saved, in bytes a second.

    Args:
        copy: copied in memory.
        write: turned into a file's bytes, written durably, hashed, read back and hashed again, by the clock.
        work: the same by the processor time that it takes.
    """

    copy: float
    write: float
    work: float


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
            start, worked = time.perf_counter(), time.thread_time()
            stream.write(source.tobytes())  # safetensors copies too
            stream.flush()
            os.fsync(stream.fileno())
            for _ in range(2):
                stream.seek(0)
                hashlib.sha256(stream.read())
            written, worked = time.perf_counter() - start, time.thread_time() - worked
    except OSError:
        return None
    copied, written, worked = (_BYTES / max(seconds, 1e-9) for seconds in (copied, written, worked))
    return SavingRate(copied, written, worked)
