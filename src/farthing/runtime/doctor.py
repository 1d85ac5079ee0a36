"""What this machine can do, and what `auto` would choose on it and why: data for `farthing doctor`."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from farthing import storage
from farthing.runtime import device, probes

EXTRAS: dict[str, tuple[str, ...]] = {
    "hf": ("transformers", "datasets"),
    "eval": ("lm-eval",),
    "web": ("fastapi", "uvicorn"),
    "gguf": ("gguf",),
    "track": ("tensorboard", "wandb"),
    "postgres": ("psycopg",),
}
"""optional parts of farthing and the packages that each brings"""

_LONG_RUN = 3600.0


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What `examine` found; sizes in bytes, rates in floating-point operations per second."""

    system: str
    python: str
    torch: str
    torch_build: dict[str, str]
    """what this torch was built for: cuda, rocm, mkl, onednn, cpu_capability"""
    machine: device.Machine
    gpus: list[dict[str, Any]]
    disk_free: dict[str, int | None]
    """by folder; none where it cannot be told"""
    matmul_rates: dict[str, float]
    """measured, by precision"""
    memory_bandwidth: float
    """measured: bytes per second of a large copy, read and written"""
    compiles: probes.CompileProbe | None
    """none where it was not tried"""
    extras: dict[str, dict[str, str | None]]
    """by extra: each package's version, or none where it is not installed"""
    choices: dict[str, dict[str, Any]]
    """what auto chooses: {"value", "reason"} by name"""
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The same, JSON-ready."""
        return asdict(self) | {"machine": self.machine.as_dict()}


def examine(
    *,
    quick: bool = False,
    device_name: str = "auto",
    runs: Path = Path("runs"),
    report: Callable[[str], None] = lambda text: None,
) -> Examination:
    """Examine this machine; takes some ten seconds, most of them for torch.compile.

    Args:
        quick: use what earlier runs have measured, and do not try torch.compile.
        device_name: auto, cpu, cuda or mps.
        runs: the folder in which runs are kept.
        report: called with a word on what is being done.

    Raises:
        UserError: the device asked for is not there.
    """
    machine = device.this_machine(device_name)
    device.configure(machine)
    kind = machine.device
    rates = {}
    # fp16 products on a CPU may take minutes and are never chosen there.
    for precision in ("fp32", "bf16", "fp16") if kind != "cpu" else ("fp32", "bf16"):
        report(f"measuring matrix products in {precision}")
        rates[precision] = probes.matmul_rate(precision, kind, fresh=not quick)
    report("measuring memory bandwidth")
    bandwidth = probes.memory_bandwidth(kind, fresh=not quick)
    compiles = None
    if not quick:
        report("trying torch.compile")
        compiles = probes.compile_probe(kind, fresh=True)
    disk = {"runs": _disk_free(runs), "cache": _disk_free(storage.cache_folder())}
    return Examination(
        system=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
        torch_build=_torch_build(),
        machine=machine,
        gpus=_gpus(),
        disk_free=disk,
        matmul_rates=rates,
        memory_bandwidth=bandwidth,
        compiles=compiles,
        extras={extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()},
        choices=_choices(machine, compiles),
        warnings=_warnings(machine, disk, compiles),
    )


def _choices(machine: device.Machine, compiles: probes.CompileProbe | None) -> dict[str, dict[str, Any]]:
    precision = device.choose_precision("auto", machine)
    if compiles is None:
        compiling: device.Choice[Any] = device.Choice(None, "not tried")
    else:
        compiling = device.choose_compile("auto", machine, predicted_seconds=_LONG_RUN)
    found: dict[str, device.Choice[Any]] = {
        "device": device.Choice(machine.device, machine.device_reason),
        "threads": device.Choice(machine.threads, machine.threads_reason),
        "precision": precision,
        "attention": device.choose_attention("auto", machine, precision.value),
        "weight gradient": device.choose_weight_gradient("auto", machine, precision.value),
        "compile (runs over 10 minutes)": compiling,
    }
    return {name: {"value": choice.value, "reason": choice.reason} for name, choice in found.items()}


def _warnings(machine: device.Machine, disk: dict[str, int | None], compiles: probes.CompileProbe | None) -> list[str]:
    found = []
    if machine.device == "cpu" and shutil.which("nvidia-smi"):
        found.append(f"this machine seems to have an NVIDIA GPU, but torch {torch.__version__} cannot use it")
    if machine.device == "mps":
        found.append("MPS has given wrong results in some versions of torch; compare a short run with --device cpu")
    if compiles is not None and not compiles.works:
        found.append(f"torch.compile does not work here: {compiles.why}")
    for name, free in disk.items():
        if free is not None and free < 2 * 10**9:
            found.append(f"only {free / 1e9:.1f} GB of disk are free in the {name} folder")
    if machine.memory_available < 2 * 2**30:
        found.append(f"only {machine.memory_available / 2**30:.1f} GiB of memory are free")
    return found


def _torch_build() -> dict[str, str]:
    return {
        "cuda": torch.version.cuda or "",
        "rocm": torch.version.hip or "",
        "mkl": "yes" if torch.backends.mkl.is_available() else "",
        "onednn": "yes" if torch.backends.mkldnn.is_available() else "",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _gpus() -> list[dict[str, Any]]:
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = f"{properties.major}.{properties.minor}"
        found.append(
            {"name": properties.name, "memory_total": total, "memory_free": free, "compute_capability": capability}
        )
    return found


def _disk_free(folder: Path) -> int | None:
    """Free bytes where `folder` is or will be."""
    folder = folder.absolute()
    for place in (folder, *folder.parents):
        if place.is_dir():
            try:
                return shutil.disk_usage(place).free
            except OSError:
                return None
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
