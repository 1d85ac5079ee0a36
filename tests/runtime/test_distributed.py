"""Collectives: the identity in one process, and right in two real ones over gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from farthing.errors import UserError
from farthing.runtime import distributed

_RANK = """
import json, torch
from farthing.runtime import distributed as d

with d.world("cpu"):
    mine = torch.tensor([1.0, 10.0]) * (d.rank() + 1)
    total = d.all_reduce_sum(mine)
    d.barrier()
    told = {
        "rank": d.rank(), "local": d.local_rank(), "world": d.world_size(), "main": d.is_main(),
        "mine": mine.tolist(), "total": total.tolist(), "number": d.sum_number(2**40 + d.rank()),
        "any": d.any_true(d.rank() == 1), "none": d.any_true(False),
        "word": d.broadcast({"from": d.rank(), "text": "ünïcode"}), "empty": d.broadcast(None),
    }
print(json.dumps(told), d.all_reduce_sum(torch.ones(1)).item())
"""


def test_one_process_is_the_whole_world() -> None:
    value = torch.arange(3.0)
    with distributed.world("cpu"):
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
        assert torch.equal(distributed.all_reduce_sum(value), value)
        assert distributed.sum_number(2.5) == 2.5
        assert distributed.broadcast({"a": [1]}) == {"a": [1]}
        assert distributed.any_true(True)
        assert not distributed.any_true(False)
        distributed.barrier()


def test_nonsense_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE='two'"):
        distributed.world_size()


def test_mps_has_no_second_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="MPS runs in one process only"), distributed.world("mps"):
        pass


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_over_gloo() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environment = os.environ | place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-c", _RANK],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    for rank, (stdout, _) in enumerate(outputs):
        line, _, after = stdout.strip().rpartition(" ")
        assert after == "1.0", "outside the block each process is alone again"
        assert json.loads(line) == {
            "rank": rank,
            "local": rank,
            "world": 2,
            "main": rank == 0,
            "mine": [1.0 * (rank + 1), 10.0 * (rank + 1)],
            "total": [3.0, 30.0],
            "number": 2.0**41 + 1,
            "any": True,
            "none": False,
            "word": {"from": 0, "text": "ünïcode"},
            "empty": None,
        }
