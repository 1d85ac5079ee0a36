"""The examination is data: complete, JSON-ready, and of one mind with what training will choose."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
import torch

from farthing.errors import UserError
from farthing.runtime import device, doctor


@pytest.fixture(scope="module")
def found() -> doctor.Examination:
    return doctor.examine(quick=True, device_name="cpu", runs=Path("no/such/folder/yet"))


def test_it_is_json_ready(found: doctor.Examination) -> None:
    content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert content["torch"] == torch.__version__
    assert content["python"] == platform.python_version()
    assert content["machine"]["physical_cores"] >= 1


def test_it_names_what_auto_chooses_with_reasons(found: doctor.Examination) -> None:
    assert {"device", "threads", "precision", "attention", "weight gradient"} <= found.choices.keys()
    assert all(choice["reason"] for choice in found.choices.values())
    assert found.choices["precision"]["value"] == device.choose_precision("auto", found.machine).value


def test_disk_is_measured_where_the_folder_will_be(found: doctor.Examination) -> None:
    assert all(free is not None and free > 0 for free in found.disk_free.values())


def test_extras_are_told_apart(found: doctor.Examination) -> None:
    versions = {name: version for packages in found.extras.values() for name, version in packages.items()}
    assert set(found.extras) == {"hf", "eval", "web", "gguf", "track", "postgres"}
    assert any(version is None or version[0].isdigit() for version in versions.values())


def test_quick_does_not_compile(found: doctor.Examination) -> None:
    assert found.compiles is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_missing_device_is_refused() -> None:
    with pytest.raises(UserError, match="cuda"):
        doctor.examine(quick=True, device_name="cuda")
