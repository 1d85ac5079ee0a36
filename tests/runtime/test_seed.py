"""Seeds are pure functions of the step, states survive JSON, and bits do not depend on luck."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farthing.runtime import seed as seeds

_FRESH_CHILDREN = """
import hashlib, os
import numpy, torch
from farthing.runtime.seed import settle_vector_math

# torch has computed nothing yet, so that each child makes the first call of every vector function.
values = torch.from_numpy(numpy.arange(1, 200_001, dtype="f4") / 200_001)
for _ in range(40):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        settle_vector_math()
        torch.set_num_threads(2)
        digest = hashlib.sha256()
        for function in (torch.sqrt, torch.exp, torch.tanh, torch.log, torch.erf):
            digest.update(function(values).numpy().tobytes())
        os.write(write, digest.hexdigest().encode())
        os._exit(0)
    os.close(write)
    print(os.read(read, 100).decode())
    os.waitpid(child, 0)
"""


def draws() -> list[Any]:
    return [random.random(), random.gauss(0, 1), *np.random.random(3), np.random.normal(), *torch.rand(3).tolist()]


@given(st.integers(), st.integers(0, 10**9))
def test_a_step_draws_the_same_whatever_happened_before(seed: int, step: int) -> None:
    seeds.seed_step(seed, step)
    first = torch.rand(4)
    torch.rand(17)
    random.random()
    seeds.seed_step(seed, step)
    assert torch.equal(torch.rand(4), first)


def test_steps_seeds_and_ranks_draw_differently() -> None:
    drawn = set()
    for seed in range(10):
        for step in range(10):
            for rank in range(2):
                seeds.seed_step(seed, step, rank=rank)
                drawn.add(tuple(torch.rand(3).tolist()))
    assert len(drawn) == 200


def test_seed_everything_covers_every_generator() -> None:
    seeds.seed_everything(-5)
    first = draws()
    seeds.seed_everything(-5)
    assert draws() == first


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(0, 7))
def test_states_survive_json(seed: int, already: int) -> None:
    seeds.seed_everything(seed)
    for _ in range(already):
        # An odd number of normals leaves half a pair behind, which is part of the state.
        random.gauss(0, 1), np.random.normal(), torch.randn(1)
    states = json.loads(json.dumps(seeds.random_states(), allow_nan=False))
    expected = draws()
    seeds.restore_random_states(states)
    assert draws() == expected


@pytest.mark.parametrize(
    "damage",
    [
        lambda states: states.pop("numpy"),
        lambda states: states.update(torch="AAAA"),
        lambda states: states.update(torch="not base64!"),
        lambda states: states["numpy"].update(key=states["torch"]),
        lambda states: states["python"].update(version=99),
        lambda states: states["python"].update(words="AAAAAAAAAAA="),
    ],
)
def test_damaged_states_change_nothing(damage: Any) -> None:
    states = seeds.random_states()
    draws()
    damage(states)
    before = seeds.random_states()
    with pytest.raises(ValueError, match="random states"):
        seeds.restore_random_states(states)
    assert seeds.random_states() == before


def test_fingerprint_is_stable_and_json_ready() -> None:
    first = seeds.numeric_fingerprint("cpu")
    again = json.loads(json.dumps(seeds.numeric_fingerprint("cpu")))
    assert seeds.compare_fingerprints(first, again) == []
    assert first["torch"] == torch.__version__


def test_fingerprint_names_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = seeds.numeric_fingerprint("cpu")
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    torch.set_num_threads(3)
    differences = seeds.compare_fingerprints(before, seeds.numeric_fingerprint("cpu"))
    assert differences == [f"threads was {before['threads']}, is 3", "MKL_CBWR was unset, is AVX2"]


def test_fingerprint_of_an_older_version_differs() -> None:
    now = seeds.numeric_fingerprint("cpu")
    old = {name: value for name, value in now.items() if name != "mkl"}
    assert len(seeds.compare_fingerprints(old, now)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_vector_functions_round_alike_in_many_processes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FRESH_CHILDREN], capture_output=True, text=True, timeout=120, check=True
    )
    digests = done.stdout.split()
    assert len(digests) == 40
    assert len(set(digests)) == 1
