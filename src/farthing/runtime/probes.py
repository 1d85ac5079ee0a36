"""Short measurements of this machine, remembered between runs in the cache folder.

Each takes well under a second (compiling: some ten seconds) and is taken once for a given processor, torch and number
of threads. A lost, damaged or unwritable cache costs only the time to measure again.
"""

from __future__ import annotations

import math
import mmap
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from farthing import storage
from farthing.runtime import hardware

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_SECONDS = 0.3
_RUNS = 3
_measured: dict[str, dict[str, float]] = {}
_COMPILE_TIMEOUT = 180.0
_SHAPES = {"cpu": (2048, 384, 1536), "mps": (4096, 1024, 4096), "cuda": (8192, 4096, 4096)}
"""rows, inputs, outputs: a feed-forward layer of the models that such a device is used for"""
_COPIED_BYTES = {"cpu": 1 << 27, "mps": 1 << 28, "cuda": 1 << 30}
"""more than the caches of such a device hold"""

_COMPILE_SCRIPT = """
import sys, time, torch
device = sys.argv[1]
net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 16)).to(device)
x = torch.randn(8, 16, device=device)
net(x).square().mean().backward()
expected = net[0].weight.grad.clone()
net.zero_grad()
start = time.perf_counter()
torch.compile(net)(x).square().mean().backward()
seconds = time.perf_counter() - start
torch.testing.assert_close(net[0].weight.grad, expected, rtol=1e-3, atol=1e-5)
print(seconds)
"""


@dataclass(frozen=True)
class CompileProbe:
    """Whether torch.compile works here: forward and backward of a tiny network, compared with plain torch."""

    works: bool
    seconds: float
    """what compiling it took; 0 where it failed"""
    why: str = ""
    """why it does not work"""


@dataclass(frozen=True)
class AttentionProbe:
    """Seconds of causal self-attention, forward and backward, computed in two ways."""

    sdpa: float
    math: float


@dataclass(frozen=True)
class WeightGradientProbe:
    """Seconds of the matrix product dy^T x that is a weight's gradient, computed in two ways."""

    strided: float
    """dy read across its rows"""
    copied: float
    """dy transposed into a copy first, the copying included"""


def matmul_rate(precision: str, device: str, *, fresh: bool = False) -> float:
    """Floating-point operations per second of a linear layer, at the best that this machine has shown.

    Args:
        precision: fp32 (TF32 where the device has it and `configure` allowed it), bf16 or fp16.
        device: cpu, cuda or mps.
        fresh: forget earlier results.
    """
    rows, inputs, outputs = _SHAPES[device]

    def layer() -> Callable[[], object]:
        x_RI = torch.ones(rows, inputs, dtype=DTYPES[precision], device=device)
        weight_OI = torch.ones(outputs, inputs, dtype=DTYPES[precision], device=device)
        return lambda: F.linear(x_RI, weight_OI)

    with torch.inference_mode():
        seconds = _shortest(_key("matmul", precision, device), {"linear": layer}, device, fresh)["linear"]
    return 2.0 * rows * inputs * outputs / seconds


def memory_bandwidth(device: str, *, fresh: bool = False) -> float:
    """Bytes per second of a copy too large for caches: what is read and what is written together."""
    size = _COPIED_BYTES[device]

    def copy() -> Callable[[], object]:
        source, target = (_bytes(size, device) for _ in range(2))
        return lambda: target.copy_(source)

    with torch.inference_mode():
        seconds = _shortest(_key("copy", device), {"copy": copy}, device, fresh)["copy"]
    return 2.0 * size / seconds


def _bytes(size: int, device: str) -> torch.Tensor:
    if device != "cpu":
        return torch.zeros(size, dtype=torch.uint8, device=device)
    # Mapped, so that it goes back to the system: a process that is to train keeps what torch frees.
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).fill_(1)


def weight_gradient_seconds(precision: str, device: str, *, fresh: bool = False) -> WeightGradientProbe:
    """How long a linear layer's weight gradient takes in each layout; processors differ in which is the faster."""
    rows, inputs, outputs = _SHAPES[device]

    def operands() -> tuple[torch.Tensor, torch.Tensor]:
        dy_RO = torch.ones(rows, outputs, dtype=DTYPES[precision], device=device)
        return dy_RO, torch.ones(rows, inputs, dtype=DTYPES[precision], device=device)

    def strided() -> Callable[[], object]:
        dy_RO, x_RI = operands()
        return lambda: dy_RO.t() @ x_RI

    def copied() -> Callable[[], object]:
        dy_RO, x_RI = operands()
        return lambda: dy_RO.t().contiguous() @ x_RI

    key = _key("weight gradient", precision, device)
    with torch.inference_mode():
        return WeightGradientProbe(**_shortest(key, {"strided": strided, "copied": copied}, device, fresh))


def attention_seconds(precision: str, device: str, *, fresh: bool = False) -> AttentionProbe:
    """How long attention takes by torch's fused kernel and by explicit matrix products."""
    batch, heads, length, width = 4, 6, 256, 64

    def inputs() -> torch.Tensor:
        return torch.ones(batch, heads, length, width, dtype=DTYPES[precision], device=device, requires_grad=True)

    def fused() -> Callable[[], object]:
        x_BHTK = inputs()
        return lambda: torch.autograd.grad(
            F.scaled_dot_product_attention(x_BHTK, x_BHTK, x_BHTK, is_causal=True).sum(), x_BHTK
        )

    def explicit() -> Callable[[], object]:
        x_BHTK = inputs()
        later_TT = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)

        def work() -> object:
            scores_BHTT = (x_BHTK @ x_BHTK.transpose(-1, -2)) * width**-0.5
            weights_BHTT = scores_BHTT.masked_fill(later_TT, float("-inf")).softmax(-1)
            return torch.autograd.grad((weights_BHTT @ x_BHTK).sum(), x_BHTK)

        return work

    key = _key("attention", precision, device)
    return AttentionProbe(**_shortest(key, {"sdpa": fused, "math": explicit}, device, fresh))


def compile_probe(device: str, *, fresh: bool = False) -> CompileProbe:
    """Whether torch.compile works here, tried in a process of its own, which may fail, hang or crash."""
    key = _key("compile", platform.python_version(), shutil.which("c++") or shutil.which("g++") or "none", device)
    match None if fresh else _recall(key):
        case {"works": bool(works), "seconds": float(seconds), "why": str(why)}:
            return CompileProbe(works, seconds, why)
    # -P: a file called torch.py or random.py in the user's folder must not be imported.
    command = [sys.executable, "-P", "-W", "ignore", "-c", _COMPILE_SCRIPT, device]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_COMPILE_TIMEOUT, check=False
        )
        seconds = float(done.stdout.split()[-1]) if done.returncode == 0 else 0.0
    except subprocess.TimeoutExpired:
        # Not remembered: the machine may only have been busy.
        return CompileProbe(False, 0.0, f"compiling a tiny network took more than {_COMPILE_TIMEOUT:.0f} s")
    except (OSError, ValueError, IndexError) as error:
        return CompileProbe(False, 0.0, str(error))
    why = "" if done.returncode == 0 else _complaint(done.stderr, done.returncode)
    found = CompileProbe(done.returncode == 0, seconds, why)
    _remember(key, {"works": found.works, "seconds": found.seconds, "why": found.why})
    return found


def _shortest(
    key: str, contenders: dict[str, Callable[[], Callable[[], object]]], device: str, fresh: bool
) -> dict[str, float]:
    """Seconds that each contender takes; each is built by a call, then timed.

    Other work on the machine can only make a measurement longer. So the first three processes that ask measure, and
    what is remembered is the shortest.
    """
    here = f"{probe_file()} {key}"
    if here in _measured and not fresh:
        return _measured[here]
    before = {} if fresh else _sound(_recall(key), contenders)
    runs = int(before.get("runs", 0))
    if runs < _RUNS:
        now = best_seconds({name: build() for name, build in contenders.items()}, device)
        before |= {name: min(before.get(name, math.inf), seconds) for name, seconds in now.items()}
        before["runs"] = runs + 1
        _remember(key, before)
    _measured[here] = {name: before[name] for name in contenders}
    return _measured[here]


def _sound(known: Any, contenders: Iterable[str]) -> dict[str, float]:
    """What is remembered, or nothing where it is not what was written."""
    names = ("runs", *contenders)
    if not isinstance(known, dict):
        return {}
    values = [known.get(name) for name in names]
    if not all(isinstance(value, int | float) and math.isfinite(value) and value > 0 for value in values):
        return {}
    return {name: known[name] for name in names}


def best_seconds(
    contenders: dict[str, Callable[[], object]], device: str, *, budget: float = _SECONDS
) -> dict[str, float]:
    """The shortest time of each contender over `budget` seconds for each, at least two rounds, after one to warm up.

    They take turns, so that other work on the machine slows them alike.
    """
    for work in contenders.values():
        work()
    synchronize(device)
    # One call on a GPU is too short for the host's clock.
    repeats = 1 if device == "cpu" else 10
    best = dict.fromkeys(contenders, math.inf)
    begun, rounds = time.perf_counter(), 0
    while rounds < 2 or time.perf_counter() - begun < budget * len(contenders):
        for name, work in contenders.items():
            start = time.perf_counter()
            for _ in range(repeats):
                work()
            synchronize(device)
            best[name] = min(best[name], (time.perf_counter() - start) / repeats)
        rounds += 1
    return best


def synchronize(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def probe_file() -> Path:
    """Where the measurements are remembered."""
    return storage.cache_folder() / "machine.json"


def _key(*parts: str) -> str:
    device = parts[-1]
    where = torch.cuda.get_device_name() if device == "cuda" else hardware.cpu_name()
    capability = torch.backends.cpu.get_cpu_capability()
    facts = (*parts, where, f"torch {torch.__version__}", f"{torch.get_num_threads()} threads", capability)
    tf32 = ("tf32",) if device == "cuda" and torch.get_float32_matmul_precision() != "highest" else ()
    return " | ".join((*facts, *tf32))


def _recall(key: str) -> Any:
    return _read().get(key)


def _remember(key: str, value: Any) -> None:
    with suppress(OSError, ValueError):
        probe_file().parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(probe_file(), {**_read(), key: value})


def _read() -> dict[str, Any]:
    try:
        content = storage.read_json(probe_file())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _complaint(stderr: str, code: int) -> str:
    """The line of a failed process that says most: the first that names an error, else the last."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line and not line.startswith(("File ", "raise "))]
    return (telling or lines or [f"the process ended with code {code}"])[-1][:300]
