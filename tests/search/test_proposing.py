"""What a search begins next, and when it has nothing left to begin."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from compare.folders import TEXT, write_run
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


def test_trials_that_fit_no_more_leave_room_for_others(tmp_path: Path) -> None:
    few = SEARCH.replace("flops = 300", "trials = 1")
    old, folder = asked(tmp_path, few, ["evaluate.legacy=titles"]), made(tmp_path / "runs" / "s")
    first = proposer(old, folder, Silent()).trial()
    assert first is not None
    folder.write(replace(first, state="complete", score=2.0))
    assert proposer(old, folder, Silent()).trial() is None, "one trial was asked for"
    today = asked(tmp_path, few)
    second = proposer(today, folder, Silent()).trial()
    assert second is not None and second.id != first.id
    folder.write(replace(second, state="complete", score=2.5))
    done = proposer(today, folder, Silent())
    assert done.trial() is None and done.over == "budget.trials=1 are done"


def test_a_base_recipe_that_has_changed_is_trained_anew_to_confirm(tmp_path: Path) -> None:
    few = SEARCH.replace("flops = 300", "trials = 1").replace("top = 0", "top = 1\nseeds = 1")
    folder, ids = made(tmp_path / "runs" / "s"), []
    for words in ([], ["evaluate.legacy=titles"]):
        found = asked(tmp_path, few, words)
        now = proposer(found, folder, Silent())
        trial = now.trial()
        assert trial is not None
        folder.write(replace(trial, state="complete", score=2.0))
        now = proposer(found, folder, Silent())
        while now.trial() is None and (run := now.confirmation()) is not None:
            ids.append(run.id)
            folder.write(replace(run, state="complete", score=2.0))
            assert run.of != "base" or run.recipe == config.to_table(found.space.base)
            now = proposer(found, folder, Silent())
    assert ids == [
        "confirm-trial-00000-seed-10001", "confirm-base-seed-10001",
        "confirm-trial-00003-seed-10001", "confirm-base-2-seed-10001",
    ]  # fmt: skip


def test_nothing_is_confirmed_that_the_budget_has_no_room_for(tmp_path: Path) -> None:
    search = SEARCH.replace("flops = 300", "minutes = 1").replace("top = 0", "top = 1\nseeds = 1")
    folder = made(tmp_path / "runs" / "s")
    trial = proposer(asked(tmp_path, search), folder, Silent()).trial()
    assert trial is not None
    folder.write(replace(trial, state="complete", score=2.0, spent={"flops": 1.0, "seconds": 61.0, "money": 0.0}))
    small = proposer(asked(tmp_path, search), folder, Silent())
    assert small.trial() is None and small.confirmation() is None
    assert small.end(folder.records()) == (
        "budget.minutes is spent; a larger budget goes on with 2 runs to confirm the best"
    )
    larger = proposer(asked(tmp_path, search, ["search.budget.minutes=4", "search.budget.trials=1"]), folder, Silent())
    run = larger.confirmation() if larger.trial() is None else None
    assert run is not None and run.id == f"confirm-{trial.id}-seed-10001"


def test_confirmation_runs_under_way_count_as_planned(tmp_path: Path) -> None:
    search = SEARCH.replace("flops = 300", "trials = 1").replace("top = 0", "top = 1\nseeds = 2")
    folder = made(tmp_path / "runs" / "s")
    trial = proposer(asked(tmp_path, search), folder, Silent()).trial()
    assert trial is not None
    flops = trial.planned["flops"]
    folder.write(replace(trial, state="complete", score=2.0, spent={"flops": flops}))
    tight = proposer(asked(tmp_path, search, [f"search.budget.flops={3.5 * flops}"]), folder, Silent())
    assert tight.trial() is None
    begun = [tight.confirmation(), tight.confirmation()]
    assert [one and one.planned["flops"] for one in begun] == [flops, flops] and begun[1] is not None
    assert tight.confirmation() is None, "a third would be more than the search may spend"
    assert tight.left_to_confirm(folder.records()) == 4
    folder.write(replace(begun[1], state="complete", score=2.0, spent={"flops": flops / 4}))
    again = proposer(asked(tmp_path, search, [f"search.budget.flops={3.5 * flops}"]), folder, Silent())
    assert again.trial() is None and again.confirmation() is not None


def test_a_run_on_another_text_is_not_held_against_the_others(tmp_path: Path) -> None:
    found, folder = asked(tmp_path, SEARCH.replace("flops = 300", "trials = 3")), made(tmp_path / "runs" / "s")
    first = proposer(found, folder, Silent()).trial()
    assert first is not None
    folder.write(replace(first, state="complete", score=2.0, scores={"1337": 2.0}, text=TEXT))
    now = proposer(found, folder, Silent())
    second = now.trial()
    assert second is not None
    write_run(folder.path, f"{first.id}-seed-1337", seed=1337, training="ab" * 32)
    run = folder.run(second, 1337)
    assert now.other_text(second, run, TEXT) == "", "nothing is known of it"
    write_run(folder.path, run.name, seed=1337, training="ab" * 32)
    assert now.other_text(second, run, TEXT) == ""
    assert "scored on another validation text" in now.other_text(second, run, "00" * 32)
    shutil.rmtree(run.path)
    write_run(folder.path, run.name, seed=1337, training="cd" * 32)
    told = now.other_text(second, run, TEXT)
    assert told == f"{run.name}: was trained on another text than {first.id}-seed-1337 (cdcdcdcdcdcd and abababababab)"


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
