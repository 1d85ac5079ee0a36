"""What auto chooses, and that measurements are remembered without ever being relied on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from farthing.errors import UserError
from farthing.runtime import device, hardware, probes


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder; returns the file of measurements in it."""
    monkeypatch.setenv("FARTHING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "machine.json"


@pytest.fixture(scope="module")
def machine() -> device.Machine:
    return device.this_machine("cpu")


def test_this_machine_describes_itself(machine: device.Machine) -> None:
    assert machine.torch_device == torch.device("cpu")
    assert 0 < machine.memory_available <= machine.memory_total
    assert json.loads(json.dumps(machine.as_dict()))["device"] == "cpu"


def test_auto_finds_a_device_that_works() -> None:
    chosen = device.this_machine("auto")
    assert torch.ones(2, device=chosen.torch_device).sum().item() == 2
    assert chosen.device_reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_missing_device_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"device 'cuda'.*finds none.*auto or cpu"):
        device.this_machine("cuda")


def test_an_unknown_device_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean cuda"):
        device.choose_device("cud")


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert device.choose_threads("auto").value == hardware.usable_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert device.choose_threads("auto").value == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert device.choose_threads("auto") == (3, "OMP_NUM_THREADS")
    assert device.choose_threads(5).value == 5


def test_rates_are_measured_and_remembered(cache: Path) -> None:
    rate = device.matmul_rate("fp32", "cpu")
    assert 1e8 < rate < 1e15
    assert device.matmul_rate("fp32", "cpu") == rate
    (entry,) = json.loads(cache.read_text()).values()
    assert entry["runs"] == 1


def remembered(cache: Path, **entry: object) -> float:
    """The rate found by a process that comes upon this entry."""
    device.matmul_rate("fp32", "cpu")
    (key,) = json.loads(cache.read_text())
    cache.write_text(json.dumps({key: entry, "something else": 1}))
    probes._measured.clear()
    return device.matmul_rate("fp32", "cpu")


def test_after_three_runs_the_shortest_is_taken_for_granted(cache: Path) -> None:
    flops = 2.0 * math.prod(probes._SHAPES["cpu"])
    assert remembered(cache, linear=1e-9, runs=3) == flops / 1e-9
    assert "something else" in json.loads(cache.read_text())


def test_before_three_runs_a_slow_measurement_is_improved_on(cache: Path) -> None:
    flops = 2.0 * math.prod(probes._SHAPES["cpu"])
    assert remembered(cache, linear=1e6, runs=1) > flops / 1e6
    assert 2 in [entry.get("runs") for entry in json.loads(cache.read_text()).values() if isinstance(entry, dict)]


@pytest.mark.parametrize("entry", [{"linear": -1, "runs": 3}, {"linear": "fast", "runs": 3}, {"linear": 1.0}, {}])
def test_an_entry_that_makes_no_sense_is_measured_again(cache: Path, entry: dict[str, object]) -> None:
    assert 1e8 < remembered(cache, **entry) < 1e15


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": NaN}', b"\xff\xfe", b"null"])
def test_a_damaged_cache_is_replaced(cache: Path, content: bytes) -> None:
    cache.parent.mkdir()
    cache.write_bytes(content)
    assert device.matmul_rate("fp32", "cpu") > 0
    assert json.loads(cache.read_text())


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    monkeypatch.setenv("FARTHING_CACHE", str(tmp_path / "file"))
    assert device.matmul_rate("fp32", "cpu") > 0


def test_precision_on_a_cpu_follows_the_measured_rates(cache: Path, machine: device.Machine) -> None:
    chosen = device.choose_precision("auto", machine)
    fp32, bf16 = device.matmul_rate("fp32", "cpu"), device.matmul_rate("bf16", "cpu")
    assert chosen.value == ("bf16" if bf16 >= 1.3 * fp32 else "fp32")
    assert "GFLOP/s" in chosen.reason


@pytest.mark.parametrize(
    ("kind", "bf16", "value"), [("cuda", True, "bf16"), ("cuda", False, "fp32"), ("mps", True, "fp32")]
)
def test_precision_on_gpus(machine: device.Machine, kind: device.DeviceKind, bf16: bool, value: str) -> None:
    assert device.choose_precision("auto", replace(machine, device=kind, bf16=bf16)).value == value


def test_what_is_asked_for_is_given(machine: device.Machine) -> None:
    for precision in ("fp32", "bf16", "fp16"):
        assert device.choose_precision(precision, machine).value == precision  # type: ignore[arg-type]
    for attention in ("sdpa", "math"):
        assert device.choose_attention(attention, machine, "fp32").value == attention  # type: ignore[arg-type]
    assert device.choose_compile("off", machine, predicted_seconds=1e9) == (False, "asked for")


def test_attention_is_measured_on_a_cpu(cache: Path, machine: device.Machine) -> None:
    chosen = device.choose_attention("auto", machine, "fp32")
    found = probes.attention_seconds("fp32", "cpu")
    assert chosen.value == ("math" if found.math < 0.8 * found.sdpa else "sdpa")
    assert device.choose_attention("auto", replace(machine, device="cuda"), "bf16").value == "sdpa"


def test_the_layout_of_weight_gradients_is_measured_where_it_matters(cache: Path, machine: device.Machine) -> None:
    assert device.choose_weight_gradient("copied", machine, "fp32") == ("copied", "asked for")
    assert device.choose_weight_gradient("auto", machine, "fp32").value == "strided"
    assert device.choose_weight_gradient("auto", replace(machine, device="cuda"), "bf16").value == "strided"
    assert not cache.exists(), "none of these needs a measurement"
    chosen = device.choose_weight_gradient("auto", machine, "bf16")
    found = probes.weight_gradient_seconds("bf16", "cpu")
    assert chosen.value == ("copied" if found.copied < 0.95 * found.strided else "strided")


def test_memory_bandwidth_is_that_of_memory(cache: Path) -> None:
    assert 1e8 < probes.memory_bandwidth("cpu") < 1e13
    assert probes.memory_bandwidth("cpu") == probes.memory_bandwidth("cpu")


@pytest.mark.parametrize("seconds", [None, 30.0, 600.0])
def test_short_runs_are_not_compiled(machine: device.Machine, seconds: float | None) -> None:
    assert not device.choose_compile("auto", machine, predicted_seconds=seconds).value


def test_a_compiler_that_fails_is_reported_and_eager_is_used(
    cache: Path, machine: device.Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Without a C++ compiler torch.compile cannot work on a CPU; nor may an earlier compilation be found.
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    chosen = device.choose_compile("on", machine, predicted_seconds=None)
    assert chosen.value is False
    assert "does not work here" in chosen.reason
    assert "\n" not in chosen.reason
    (entry,) = json.loads(cache.read_text()).values()
    assert entry["works"] is False


@pytest.mark.slow
def test_the_compile_probe_agrees_with_compiling(cache: Path) -> None:
    found = probes.compile_probe("cpu")
    assert found == probes.compile_probe("cpu")
    assert found.works == (found.seconds > 0) == (not found.why)


def test_configure_sets_threads_and_determinism(machine: device.Machine) -> None:
    assert device.configure(machine, threads=2, deterministic=True) == 2
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    device.configure(machine, threads=1, deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_memory_is_that_of_the_process_on_a_cpu() -> None:
    assert device.memory_now("cpu") > 10 * 2**20
    assert device.peak_memory_bytes("cpu") > 10 * 2**20
