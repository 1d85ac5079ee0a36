"""What this machine has: cores, instruction sets and memory, as far as this process may use them.

A container sees all of its host's cores and memory; its limits are in the control-group files, of version 1 or 2.
Nothing here needs torch.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")
_CPUINFO = Path("/proc/cpuinfo")
_SELF = Path("/proc/self/cgroup")
_TASKS = Path("/proc/self/task")
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

_INSTRUCTION_SETS = {
    "sse4_2": "SSE4.2",
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "ARM BF16",
}


def logical_cores() -> int:
    """Hardware threads that this process may run on (its affinity)."""
    return len(_affinity())


def physical_cores(*, cpus: Path = _CPUS) -> int:
    """Cores that this process may run on, hyper-threads counted once; at least 1."""
    siblings = set()
    for number in _affinity():
        try:
            siblings.add((cpus / f"cpu{number}" / "topology" / "thread_siblings_list").read_text())
        except OSError:
            return min(psutil.cpu_count(logical=False) or logical_cores(), logical_cores())
    return max(1, len(siblings))


def cpu_limit(*, root: Path = _CGROUPS, membership: Path = _SELF) -> float | None:
    """Cores' worth of time that the control group allows, or None if it sets no limit."""
    limits = []
    for folder in _groups("", root, membership):
        match _words(folder / "cpu.max"):
            case [quota, period] if quota != "max":
                limits.append(int(quota) / int(period))
    for folder in _groups("cpu", root, membership):
        allowed, every = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if allowed and every and allowed > 0:
            limits.append(allowed / every)
    return min(limits, default=None)


def usable_cores() -> int:
    """Physical cores that this process can keep busy, its CPU limit taken into account; at least 1."""
    limit = cpu_limit()
    return physical_cores() if limit is None else max(1, min(physical_cores(), math.ceil(limit)))


def memory_total(*, root: Path = _CGROUPS, membership: Path = _SELF) -> int:
    """Bytes of memory: what the machine has or the control group allows, whichever is less."""
    limits = [limit for limit, _ in _memory_groups(root, membership)]
    return min([psutil.virtual_memory().total, *limits])


def memory_available(*, root: Path = _CGROUPS, membership: Path = _SELF) -> int:
    """Bytes that can be had now without swapping; file pages that can be dropped count as available."""
    left = [max(0, limit - used) for limit, used in _memory_groups(root, membership)]
    return min([psutil.virtual_memory().available, *left])


def memory_now() -> int:
    """Bytes of memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """Bytes of memory that this process has held at most."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    with suppress(OSError, StopIteration):
        # Not getrusage: on Linux a process's ru_maxrss starts from that of the one that launched it.
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The BSDs count in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Have glibc keep what is freed instead of handing it back to the system; elsewhere a no-op.

    A training step frees and takes the same blocks again and again. By default each large one is mapped and unmapped,
    and every page of it cleared by the kernel once more: on two cores a third of the step (benchmarks/README.md).
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in (
            (_M_MMAP_THRESHOLD, 1 << 30),
            (_M_TRIM_THRESHOLD, (1 << 31) - 1),
            (_M_TOP_PAD, 1 << 26),
        ):
            mallopt(parameter, value)


def ran_and_waited(*, tasks: Path = _TASKS) -> tuple[float, float]:
    """Seconds that this process's threads have run, and have waited for a core although they could have run.

    The second grows where other work wants the same cores. Both are 0 where the system does not tell (it is Linux that
    does).
    """
    ran = waited = 0
    for task in tasks.iterdir() if tasks.is_dir() else ():
        match _words(task / "schedstat"):
            case [running, waiting, *_]:
                ran, waited = ran + int(running), waited + int(waiting)
    return ran / 1e9, waited / 1e9


def release_freed_memory() -> None:
    """Hand back what has been freed all the same, once, and count the peak from here on; elsewhere a no-op."""
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        # What proc(5) calls resetting the peak resident set size.
        Path("/proc/self/clear_refs").write_text("5")


@cache
def cpu_name(*, cpuinfo: Path = _CPUINFO) -> str:
    """The processor's name and, where Linux says so, its family, model and stepping."""
    fields = _cpuinfo(cpuinfo)
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = [fields[key] for key in ("cpu family", "model", "stepping") if key in fields]
    return f"{name} ({'/'.join(numbers)})" if numbers else name


@cache
def instruction_sets(*, cpuinfo: Path = _CPUINFO) -> tuple[str, ...]:
    """The vector and matrix instruction sets that matter here, as far as the system tells."""
    fields = _cpuinfo(cpuinfo)
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    if not flags and platform.machine() in ("arm64", "aarch64"):
        flags = {"asimd"}
    return tuple(name for flag, name in _INSTRUCTION_SETS.items() if flag in flags)


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _cpuinfo(path: Path) -> dict[str, str]:
    """The first processor's fields."""
    try:
        first = path.read_text(errors="replace").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _groups(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """This process's control group and those around it, each of which may set a limit; "" is version 2."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        top = root / controller
        # Inside a container the path may be the host's and missing here; the mount's top is then the group itself.
        folder = top / path.strip("/")
        for group in (folder, *folder.parents):
            if group.is_dir():
                yield group
            if group == top:
                break


def _memory_groups(root: Path, membership: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes used that cannot be dropped) of each control group with a memory limit."""
    kinds = (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for controller, limit_name, used_name, droppable_name in kinds:
        for folder in _groups(controller, root, membership):
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is not None and used is not None:
                words = _words(folder / "memory.stat")
                droppable = dict(zip(words[::2], words[1::2], strict=False)).get(droppable_name, "0")
                yield limit, max(0, used - int(droppable))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    match _words(path):
        case [word] if word != "max":
            return int(word)
        case _:
            return None
