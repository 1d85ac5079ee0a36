"""Randomness and rounding under control: the same seed on the same machine gives the same bits."""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from farthing.runtime import hardware

_SETTINGS = (
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "ONEDNN_MAX_CPU_ISA",
    "CUBLAS_WORKSPACE_CONFIG",
    "KMP_DETERMINISTIC_REDUCTION",
)
"""environment variables that change the bits of a result"""
_MT19937_WORDS = 624


def settle_vector_math() -> None:
    """Call MKL's vector functions once, on one thread, before any parallel work.

    When the first call in a process is made by two threads at once, one of them may round its half differently
    (seen in 4 of 30 processes, in the first optimizer step's square root); every later call is equal.
    """
    for precision in (torch.float32, torch.float64):
        small = torch.linspace(0.1, 0.9, 64, dtype=precision)
        for function in (torch.sqrt, torch.exp, torch.erf, torch.tanh, torch.log, torch.sin, torch.cos, torch.rsqrt):
            function(small)


def seed_step(seed: int, step: int, *, rank: int = 0) -> None:
    """Set torch's generators as a pure function of (seed, step, rank).

    Called before each optimizer step, so that dropout needs no saved state, and so that neither an evaluation nor a
    sample between two steps can disturb training.
    """
    digest = hashlib.blake2b(f"farthing step {seed} {step} {rank}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little") >> 1
    # torch.manual_seed would also do, but without a GPU it keeps a formatted stack trace on every call.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(value)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(value)


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch, at the start of a run."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    seed_step(seed, -1)


def random_states() -> dict[str, Any]:
    """The states of the generators of Python, numpy and torch (CPU, CUDA, MPS), JSON-ready."""
    version, words, gauss = random.getstate()
    vector = np.random.get_state(legacy=False)
    assert isinstance(vector, dict)
    states: dict[str, Any] = {
        "python": {"version": version, "words": _pack(np.array(words, dtype="<u8")), "gauss": gauss},
        "numpy": {
            "bit_generator": vector["bit_generator"],
            "key": _pack(np.asarray(vector["state"]["key"], dtype="<u4")),
            "pos": int(vector["state"]["pos"]),
            "has_gauss": int(vector["has_gauss"]),
            "gauss": float(vector["gauss"]),
        },
        "torch": _pack(torch.get_rng_state().numpy()),
    }
    if torch.cuda.is_available():
        states["cuda"] = [_pack(state.numpy()) for state in torch.cuda.get_rng_state_all()]
    if torch.backends.mps.is_available():
        states["mps"] = _pack(torch.mps.get_rng_state().numpy())
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` returned; devices that are no longer there are passed over.

    Raises:
        ValueError: the states are damaged or were written by another kind of generator. Nothing is changed then.
    """
    before = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    try:
        python, vector = states["python"], states["numpy"]
        key = _unpack(vector["key"], "<u4")
        if len(key) != _MT19937_WORDS:
            raise ValueError(f"numpy's generator has {_MT19937_WORDS} words, not {len(key)}")
        words = tuple(int(word) for word in _unpack(python["words"], "<u8"))
        random.setstate((python["version"], words, python["gauss"]))
        np.random.set_state(
            {
                "bit_generator": vector["bit_generator"],
                "state": {"key": key, "pos": vector["pos"]},
                "has_gauss": vector["has_gauss"],
                "gauss": vector["gauss"],
            }
        )
        torch.set_rng_state(_tensor(states["torch"]))
        if torch.cuda.is_available():
            saved = states.get("cuda", [])[: torch.cuda.device_count()]
            for device, state in enumerate(saved):
                torch.cuda.set_rng_state(_tensor(state), device)
        if torch.backends.mps.is_available() and "mps" in states:
            torch.mps.set_rng_state(_tensor(states["mps"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        raise ValueError(f"the saved random states cannot be used: {error}") from error


def numeric_fingerprint(device: str | torch.device) -> dict[str, str | int | bool]:
    """Everything outside the recipe and the plan that can change the bits of a result on `device`.

    Two runs of one recipe and plan are promised to be bit for bit equal where these are equal.
    """
    chosen = torch.device(device)
    facts: dict[str, str | int | bool] = {
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "mkl": _built_with("Math Kernel Library Version", "none"),
        "onednn": _built_with("MKL-DNN", "none"),
        "cpu": hardware.cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fp32_matmul": torch.get_float32_matmul_precision(),
        "device": chosen.type,
    }
    facts |= {name: os.environ.get(name, "") for name in _SETTINGS}
    if chosen.type == "cuda":
        facts |= _cuda_facts(chosen)
    return facts


def compare_fingerprints(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two numeric fingerprints, a readable phrase each; empty if the bits can be trusted."""
    differences = []
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name, ""), new.get(name, "")
        if before != after:
            label = name if name.isupper() else name.replace("_", " ")
            differences.append(f"{label} was {_said(before)}, is {_said(after)}")
    return differences


def _cuda_facts(device: torch.device) -> dict[str, str | int | bool]:
    properties = torch.cuda.get_device_properties(device)
    try:
        driver = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        driver = "unknown"
    return {
        "device_name": properties.name,
        "device_capability": f"{properties.major}.{properties.minor}",
        "driver": driver,
        "cuda": torch.version.cuda or torch.version.hip or "none",
        "cudnn": torch.backends.cudnn.version() or 0,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def _built_with(library: str, otherwise: str) -> str:
    for line in torch.__config__.show().splitlines():
        _, found, rest = line.partition(library)
        if found:
            return rest.strip()
    return otherwise


def _said(value: object) -> str:
    return repr(value) if isinstance(value, str) and " " in value else str(value) or "unset"


def _pack(array: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _unpack(text: str, dtype: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype=dtype)


def _tensor(text: str) -> torch.Tensor:
    return torch.from_numpy(_unpack(text, "|u1").copy())
