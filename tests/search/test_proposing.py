"""What a search begins next, and when it has nothing left to begin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from farthing import config
from farthing.errors import UserError
from farthing.search.asked import SearchLimits
from farthing.search.check import Asked
from farthing.search.conduct import Conductor
from farthing.search.plans import Planner, Price
from farthing.search.proposing import MOST_TOO_DEAR, Proposer
from farthing.search.record import Folder, Record, Refused
from farthing.search.study import Files
from farthing.section import Section
from search.small import asked

SEARCH = """\
recipe = "small.toml"
[space]
"model.d_model" = { kind = "choice", choices = [16, 64] }
"optimizer.lr" = { kind = "float", low = 1e-4, high = 1e-1, log = true }
[sampler]
kind = "random"
[budget]
flops = 300
[confirm]
top = 0
"""


class Squares(Planner):
    """Plans without a process: a run costs as many FLOPs as the square of its width."""

    def __init__(self) -> None:
        self.asked = 0

    def price(self, recipe: Section, limits: SearchLimits) -> tuple[Price, str]:
        """Nothing is beyond a limit."""
        self.asked += 1
        flops = float(config.flatten(recipe)["model.d_model"]) ** 2
        return Price(parameters=1, memory_bytes=1, flops=flops, seconds=None, money=None, refusals=[]), ""


class Silent:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Refused] = []

    def began(self, record: Record) -> None:
        """Nothing."""

    def ended(self, record: Record, records: Sequence[Record]) -> None:
        """Nothing."""

    def refused(self, refused: Refused) -> None:
        """Kept."""
        self.told.append(refused)

    def note(self, text: str) -> None:
        """Nothing."""


def proposer(found: Asked, folder: Folder, told: Silent) -> Proposer:
    return Proposer(found, folder, Files(folder), Squares(), refused=told.refused, stopping=lambda: False)


def made(path: Path) -> Folder:
    folder = Folder(path)
    folder.make("")
    return folder


def test_a_candidate_that_is_too_dear_makes_room_for_a_smaller_one(tmp_path: Path) -> None:
    passed_over = 0
    for seed in range(6):
        folder, told = made(tmp_path / "runs" / str(seed)), Silent()
        found = proposer(asked(tmp_path, SEARCH, [f"search.seed={seed}"]), folder, told).trial()
        assert found is not None and found.parameters["model.d_model"] == 16
        assert told.told == found.refused and folder.refused() == []
        assert all(one.reason.startswith("too dear for what is left of budget.flops: ") for one in found.refused)
        passed_over += len(found.refused)
    assert passed_over > 0


def test_a_budget_for_no_trial_is_one_line(tmp_path: Path) -> None:
    search = asked(tmp_path, SEARCH, ["search.budget.flops=3"])
    folder = made(tmp_path / "runs" / "s")
    none = proposer(search, folder, Silent())
    assert none.trial() is None and none.over.startswith(f"the last {MOST_TOO_DEAR} candidates were too dear")
    # A larger budget tries them again.
    assert folder.refused() == []
    planner = Squares()
    with pytest.raises(
        UserError, match=r"^no trial: the last 20 candidates were too dear for what is left of"
    ) as caught:
        Conductor(search, folder, Files(folder), planner, Silent(), device="cpu").run()
    assert "\n" not in str(caught.value) and planner.asked == MOST_TOO_DEAR
    more = proposer(asked(tmp_path, SEARCH, ["search.budget.flops=9999"]), folder, Silent()).trial()
    assert more is not None and more.refused == []
