"""Control-group limits of both versions, from real file trees, and what this machine says of itself."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from farthing.runtime import hardware

GIB = 2**30
CPUINFO = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
cpu family\t: 6
model\t\t: 143
stepping\t: 8
flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile amx_bf16

processor\t: 1
model name\t: Another
flags\t\t: fpu sse4_2
"""


def tree(root: Path, files: dict[str, str]) -> dict[str, Path]:
    """A cgroup file system under root/fs and a membership file, as keyword arguments."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return {"root": root / "fs", "membership": root / "self"}


def test_version_2_memory_limit_counts_droppable_pages_as_free(tmp_path: Path) -> None:
    where = tree(
        tmp_path,
        {
            "self": "0::/box",
            "fs/box/memory.max": str(GIB),
            "fs/box/memory.current": str(GIB // 2),
            "fs/box/memory.stat": f"anon {GIB // 4}\ninactive_file {GIB // 8}",
        },
    )
    assert hardware.memory_total(**where) == GIB
    assert hardware.memory_available(**where) == min(GIB - (GIB // 2 - GIB // 8), psutil.virtual_memory().available)


def test_version_1_memory_limit(tmp_path: Path) -> None:
    where = tree(
        tmp_path,
        {
            "self": "5:cpuset:/\n4:memory:/docker/abc\n0::/",
            "fs/memory/docker/abc/memory.limit_in_bytes": str(GIB),
            "fs/memory/docker/abc/memory.usage_in_bytes": str(GIB // 2),
            "fs/memory/docker/abc/memory.stat": f"cache 5\ntotal_inactive_file {GIB // 4}",
        },
    )
    assert hardware.memory_total(**where) == GIB
    assert hardware.memory_available(**where) == GIB - GIB // 4


def test_the_tightest_enclosing_group_counts(tmp_path: Path) -> None:
    files = {"self": "0::/outer/inner"}
    for group, limit in (("outer", GIB), ("outer/inner", 2 * GIB)):
        files |= {f"fs/{group}/memory.max": str(limit), f"fs/{group}/memory.current": "0"}
    assert hardware.memory_total(**tree(tmp_path, files)) == GIB


def test_inside_a_container_the_top_of_the_mount_is_the_group(tmp_path: Path) -> None:
    files = {"self": "0::/../../elsewhere/on/the/host", "fs/memory.max": str(GIB), "fs/memory.current": str(3 * GIB)}
    where = tree(tmp_path, files)
    assert hardware.memory_total(**where) == GIB
    assert hardware.memory_available(**where) == 0


@pytest.mark.parametrize("limit", ["max", str(2**63 - 4096)])
def test_no_limit_leaves_what_the_machine_has(tmp_path: Path, limit: str) -> None:
    where = tree(tmp_path, {"self": "0::/", "fs/memory.max": limit, "fs/memory.current": "1"})
    assert hardware.memory_total(**where) == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"self": "0::/", "fs/cpu.max": "150000 100000"}, 1.5),
        ({"self": "0::/", "fs/cpu.max": "max 100000"}, None),
        ({"self": "0::/a/b", "fs/a/cpu.max": "50000 100000", "fs/a/b/cpu.max": "max 100000"}, 0.5),
        ({"self": "1:cpu,cpuacct:/", "fs/cpu/cpu.cfs_quota_us": "400000", "fs/cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"self": "1:cpu:/", "fs/cpu/cpu.cfs_quota_us": "-1", "fs/cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_cpu_limit(tmp_path: Path, files: dict[str, str], limit: float | None) -> None:
    assert hardware.cpu_limit(**tree(tmp_path, files)) == limit


def test_hyper_threads_count_once(tmp_path: Path) -> None:
    mine = sorted(
        psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else range(os.cpu_count() or 1)
    )
    for number in mine:
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0-1\n")
    assert hardware.physical_cores(cpus=tmp_path) == 1


def test_cores_without_topology_are_within_the_affinity(tmp_path: Path) -> None:
    assert 1 <= hardware.physical_cores(cpus=tmp_path) <= hardware.logical_cores()


def test_processor_and_instruction_sets_of_the_first_core(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(CPUINFO)
    assert hardware.cpu_name(cpuinfo=path) == "Some CPU @ 2.00GHz (6/143/8)"
    assert hardware.instruction_sets(cpuinfo=path) == ("AVX2", "AVX-512", "AVX-512 BF16", "AMX", "AMX BF16")


def test_this_machine_is_consistent() -> None:
    assert 1 <= hardware.usable_cores() <= hardware.physical_cores() <= hardware.logical_cores()
    assert 0 < hardware.memory_available() <= hardware.memory_total()
    assert hardware.cpu_name()


def test_waiting_for_a_core_is_added_up_over_threads(tmp_path: Path) -> None:
    files = {"7/schedstat": "2500000000 500000000 12", "8/schedstat": "1000000000 0 3", "9/comm": "no schedstat"}
    tree(tmp_path, files)
    assert hardware.ran_and_waited(tasks=tmp_path) == (3.5, 0.5)
    assert hardware.ran_and_waited(tasks=tmp_path / "nowhere") == (0.0, 0.0)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux to count anew")
def test_the_peak_can_be_counted_anew() -> None:
    block = bytearray(256 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    before = hardware.peak_memory()
    del block
    hardware.release_freed_memory()
    assert hardware.peak_memory() < before - 64 * 2**20


def test_peak_memory_remembers_what_has_been_freed() -> None:
    size = 256 * 2**20
    target = hardware.memory_now() + size
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])
    held = hardware.memory_now()
    del block
    assert held > target - size // 4
    # The kernel's two counts of resident pages may lag by some pages each.
    assert hardware.peak_memory() > target - size // 4
