"""Which device, precision, attention path and compiler to use here, each with the reason, from measurements."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

import torch

from farthing.errors import UserError, nearest
from farthing.runtime import hardware, probes, seed
from farthing.runtime.probes import matmul_rate as matmul_rate

DeviceKind = Literal["cpu", "cuda", "mps"]
Value = TypeVar("Value")

BF16_ADVANTAGE = 1.3
"""auto takes bf16 where its matrix products are measured to be this many times as fast as fp32's"""
COMPILE_FROM_SECONDS = 600.0
"""auto compiles runs that are predicted to last longer than this, or tries to: compiling itself takes most of a minute"""


_SIGNS_OF_FULL_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "MPS backend out of memory",
    # What oneDNN says when an allocation of its own fails.
    "could not create a primitive",
    "could not create a memory",
)


class Choice(NamedTuple, Generic[Value]):
    """What was chosen, and why, in words for a person."""

    value: Value
    reason: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device that a run uses and the computer around it; sizes in bytes."""

    device: DeviceKind
    device_name: str
    device_count: int
    device_reason: str
    memory_total: int
    """of the device: a GPU's own, else the computer's as far as this process may use it"""
    memory_available: int
    host_memory_total: int
    host_memory_available: int
    cpu: str
    physical_cores: int
    logical_cores: int
    cpu_limit: float | None
    """cores' worth of time that a container allows; none sets no limit"""
    threads: int
    """CPU threads that auto gives"""
    threads_reason: str
    instruction_sets: tuple[str, ...]
    bf16: bool
    """whether the device computes in bf16 natively"""

    def as_dict(self) -> dict[str, Any]:
        """The same, JSON-ready."""
        return asdict(self) | {"instruction_sets": list(self.instruction_sets)}

    @property
    def torch_device(self) -> torch.device:
        """The device for this process; under torchrun each process on a machine has a GPU of its own."""
        if self.device == "cuda":
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % self.device_count)
        return torch.device(self.device)


def this_machine(device: str = "auto") -> Machine:
    """Describe this machine with the device to use.

    Raises:
        UserError: a device asked for by name is not there.
    """
    kind, reason = choose_device(device)
    threads = choose_threads("auto")
    total, available = hardware.memory_total(), hardware.memory_available()
    device_total, device_available, name, count = total, available, hardware.cpu_name(), 1
    bf16 = {"AVX-512 BF16", "AMX BF16", "ARM BF16"} & set(hardware.instruction_sets())
    native = bool(bf16)
    if kind == "cuda":
        index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        device_available, device_total = torch.cuda.mem_get_info(index)
        name, count = torch.cuda.get_device_name(index), torch.cuda.device_count()
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "mps":
        device_total = min(total, torch.mps.recommended_max_memory())
        device_available, name, native = min(available, device_total), f"{hardware.cpu_name()} GPU", False
    return Machine(
        device=kind,
        device_name=name,
        device_count=count,
        device_reason=reason,
        memory_total=device_total,
        memory_available=device_available,
        host_memory_total=total,
        host_memory_available=available,
        cpu=hardware.cpu_name(),
        physical_cores=hardware.physical_cores(),
        logical_cores=hardware.logical_cores(),
        cpu_limit=hardware.cpu_limit(),
        threads=threads.value,
        threads_reason=threads.reason,
        instruction_sets=hardware.instruction_sets(),
        bf16=native,
    )


def choose_device(value: str) -> Choice[DeviceKind]:
    """auto: CUDA (or ROCm), else Apple's MPS, else the CPU.

    Raises:
        UserError: the device asked for is unknown or missing.
    """
    there: dict[DeviceKind, bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if value == "auto":
        kind = next(kind for kind, present in there.items() if present)
        return Choice(kind, "no GPU that torch can use" if kind == "cpu" else "the fastest device here")
    for kind, present in there.items():
        if kind == value and present:
            return Choice(kind, "asked for")
    if value not in get_args(DeviceKind):
        hint = nearest(value, [*get_args(DeviceKind), "auto"])
        raise UserError(f"device {value!r}: no such device; use auto, cpu, cuda or mps{hint}")
    raise UserError(f"device {value!r}: torch {torch.__version__} finds none on this machine; use --device auto or cpu")


def choose_threads(value: int | Literal["auto"]) -> Choice[int]:
    """auto: OMP_NUM_THREADS where it is set, else the physical cores to use, shared among a machine's ranks."""
    if value != "auto":
        return Choice(value, "asked for")
    wished = os.environ.get("OMP_NUM_THREADS", "")
    if wished.isdecimal() and int(wished) > 0:
        return Choice(int(wished), "OMP_NUM_THREADS")
    ranks = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    cores = hardware.usable_cores()
    shared = f", shared by {ranks} processes" if ranks > 1 else ""
    return Choice(max(1, cores // ranks), f"{cores} physical core{'s' if cores > 1 else ''} to use{shared}")


def choose_precision(
    value: Literal["auto", "fp32", "bf16", "fp16"], machine: Machine
) -> Choice[Literal["fp32", "bf16", "fp16"]]:
    """auto: bf16 where the device does it well, else fp32. fp16 needs a loss scaler and is never chosen by itself."""
    if value != "auto":
        slow = value == "bf16" and not machine.bf16
        return Choice(value, "asked for, though this device has no bf16 of its own" if slow else "asked for")
    if machine.device == "cuda":
        if machine.bf16:
            return Choice("bf16", "this GPU computes in bf16")
        return Choice("fp32", "this GPU has no bf16; fp16 may be faster, with train.precision=fp16")
    if machine.device == "mps":
        return Choice("fp32", "the format that is reliable on MPS")
    fp32, bf16 = matmul_rate("fp32", machine.device), matmul_rate("bf16", machine.device)
    measured = f"matrix products measured: bf16 {_rate(bf16)}, fp32 {_rate(fp32)}"
    return Choice("bf16" if bf16 >= BF16_ADVANTAGE * fp32 else "fp32", measured)


def choose_compile(
    value: Literal["auto", "on", "off"], machine: Machine, *, predicted_seconds: float | None
) -> Choice[bool]:
    """auto: on a GPU, compile where torch.compile works and the run is predicted to last more than ten minutes.

    Elsewhere compiled steps may be slower than plain ones, so auto compiles only what a trial has shown to pay.
    """
    if value == "off":
        return Choice(False, "asked for")
    if value == "auto":
        if predicted_seconds is None:
            return Choice(False, "how long the run will last is not known")
        if predicted_seconds <= COMPILE_FROM_SECONDS:
            return Choice(
                False, f"the run is too short for compiling to pay (under {COMPILE_FROM_SECONDS / 60:.0f} minutes)"
            )
        if machine.device != "cuda":
            return Choice(False, "not unless steps measured at the start of the run show that it pays")
    probe = probes.compile_probe(machine.device)
    if not probe.works:
        return Choice(False, f"torch.compile does not work here: {probe.why}")
    return Choice(
        True, "asked for" if value == "on" else f"torch.compile works here ({probe.seconds:.0f} s for a tiny network)"
    )


def choose_attention(
    value: Literal["auto", "sdpa", "math"], machine: Machine, precision: str
) -> Choice[Literal["sdpa", "math"]]:
    """auto: torch's fused kernel, or explicit matrix products where a CPU does them clearly faster."""
    if value != "auto":
        return Choice(value, "asked for")
    if machine.device != "cpu":
        return Choice("sdpa", "the fused kernel saves memory and time on a GPU")
    found = probes.attention_seconds(precision, machine.device)
    measured = f"measured in {precision}: fused {found.sdpa * 1e3:.0f} ms, explicit {found.math * 1e3:.0f} ms"
    # Explicit products hold every attention weight in memory, so a narrow lead does not count.
    return Choice("math" if found.math < 0.8 * found.sdpa else "sdpa", measured)


def choose_weight_gradient(
    value: Literal["auto", "strided", "copied"], machine: Machine, precision: str
) -> Choice[Literal["strided", "copied"]]:
    """auto: below fp32 on a CPU, the layout in which the product of a weight's gradient is measured to be faster."""
    if value != "auto":
        return Choice(value, "asked for")
    if machine.device != "cpu":
        return Choice("strided", "a GPU reads either layout alike")
    if precision == "fp32":
        return Choice("strided", "in fp32 there is only this one")
    found = probes.weight_gradient_seconds(precision, machine.device)
    measured = f"measured in {precision}: strided {found.strided * 1e3:.1f} ms, copied {found.copied * 1e3:.1f} ms"
    return Choice("copied" if found.copied < 0.95 * found.strided else "strided", measured)


def configure(machine: Machine, *, threads: int | Literal["auto"] = "auto", deterministic: bool = True) -> int:
    """Set torch up for a run, before any tensor is computed; returns the number of CPU threads.

    Allows TF32 on CUDA, where it speeds up fp32 products. `deterministic` asks for kernels whose results do not
    depend on timing; where CUDA has none for an operation torch warns and goes on.
    """
    if deterministic and machine.device == "cuda":
        # cuBLAS reads this once, when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    count = choose_threads(threads).value
    torch.set_num_threads(count)
    if machine.device == "cpu":
        hardware.keep_freed_memory()
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    if machine.device == "cuda":
        torch.cuda.set_device(machine.torch_device)
        torch.set_float32_matmul_precision("high")
        # Under warn_only the backward of the memory-efficient kernel is not deterministic; flash and math are.
        torch.backends.cuda.enable_mem_efficient_sdp(not deterministic)
    seed.settle_vector_math()
    return count


def peak_memory_bytes(device: str = "cpu") -> int:
    """Most memory held so far: allocated on the GPU, or by the process where it computes on the CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if device == "mps":
        return torch.mps.driver_allocated_memory()
    return hardware.peak_memory()


def forget_peak_memory(device: str) -> None:
    """Give back what has been freed, and count the peak from here on, where the system lets a process do that."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif device == "mps":
        torch.mps.empty_cache()
    else:
        hardware.release_freed_memory()


def memory_now(device: str = "cpu") -> int:
    """Memory held now: allocated on the GPU, or by the process where it computes on the CPU."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    if device == "mps":
        return torch.mps.current_allocated_memory()
    return hardware.memory_now()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in str(error) for sign in _SIGNS_OF_FULL_MEMORY)


def _rate(flops_per_second: float) -> str:
    return f"{flops_per_second / 1e9:,.0f} GFLOP/s"
