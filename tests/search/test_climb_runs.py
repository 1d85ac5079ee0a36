"""The runs of a climb: which cores they get, and what their ends decide, told by processes that only pretend to train."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from compare.folders import write_run
from farthing import config, session
from farthing.cli import planner as planning
from farthing.errors import FarthingError, ResourceError, UserError
from farthing.recipe import Recipe
from farthing.rundir import RunDir
from farthing.search import climb_runs
from farthing.search.asked import SearchLimits
from farthing.search.climb import Climber
from farthing.search.climb_asked import Asked, read
from farthing.search.climb_proof import Proof
from farthing.search.climb_record import ClimbFolder, Decision, Standing
from farthing.search.climb_runs import Arms, Refused
from farthing.search.conduct import Signals
from farthing.search.launch import STOPPED
from farthing.search.plans import Planner, Price, _understood, beyond, passes
from farthing.section import Section
from search.test_climb import furnish

PRICE = Price(parameters=1, memory_bytes=1, flops=1.0, seconds=1.0, money=None, refusals=[])


class Prices(Planner):
    """Plans without a process: everything is accepted but for a reason."""

    def __init__(self, reason: str = "", refusals: Sequence[str] = ()) -> None:
        self.reason, self._refusals = reason, list(refusals)

    def price(self, recipe: Section, limits: SearchLimits) -> tuple[Price, str]:
        """The same for every recipe."""
        return Price(**{**vars(PRICE), "refusals": self._refusals, "passing": self._refusals}), self.reason


class Pretence:
    """A run's process that ends as the test says: a list of exit codes by name, None for one more look."""

    ends: ClassVar[dict[str, list[int | None]]] = {}
    words: ClassVar[dict[str, str]] = {}
    made: ClassVar[list[Pretence]] = []

    def __init__(self, run: RunDir, *, cores: Sequence[int], **others: Any) -> None:
        self.run, self.cores, self.stopped = run, list(cores), False
        self.made.append(self)

    def ended(self) -> int | None:
        """The next of its codes."""
        if self.stopped:
            return STOPPED
        left = self.ends.get(self.run.name, [0])
        code = left.pop(0) if len(left) > 1 else left[0]
        if code == 0:
            self.run.path.mkdir(parents=True, exist_ok=True)
            self.run.recipe.write_text("", "utf-8")
            name = self.run.name
            score = 2.0 + 0.1 * name.startswith("base") + 1e-4 * len(name) * int(name[-1])
            told = {"validation": {"bits_per_byte": score},
                    "spent": {}, "wall_seconds": 1, "parameters": 1, "run": "x", "status": "finished"}  # fmt: skip
            self.run.result.write_text(json.dumps(told), "utf-8")
        return code

    def stop(self) -> None:
        """Saved at once."""
        self.stopped = True

    kill = stop

    def last_words(self) -> str:
        """As the test says."""
        return self.words.get(self.run.name, "")

    def why(self, code: int) -> str:
        """The same with its code."""
        return f"{code}: {self.last_words()}"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    furnish(tmp_path, monkeypatch)
    monkeypatch.setattr(climb_runs, "Job", Pretence)
    monkeypatch.setattr(climb_runs, "shares", lambda workers: [[10 + worker] for worker in range(workers)])
    monkeypatch.setattr(climb_runs, "PAUSE_SECONDS", 0.0)
    for table in (Pretence.ends, Pretence.words, Pretence.made):
        table.clear()
    return tmp_path


def parts(
    folder: Path, planner: Planner, *, workers: int = 1, confirm: int = 0
) -> tuple[Asked, ClimbFolder, Standing, Arms]:
    asked, kept = read("climb.toml", Recipe, [f"climb.confirm.seeds={confirm}"]), ClimbFolder(folder / "runs" / "climb")
    kept.make("")
    standing = Standing()
    arms = Arms(asked, kept, standing, planner, Signals(), lambda line: None, workers=workers, device="cpu")
    return asked, kept, standing, arms


def test_a_run_gets_the_cores_that_are_free(bench: Path) -> None:
    *_, arms = parts(bench, Prices(), workers=2)
    Pretence.ends |= {"base-seed1": [0], "base-seed2": [None, None, None, 0], "base-seed3": [None, 0]}
    arms.train(arms.arm(()), [1, 2, 3])
    assert {one.run.name: one.cores for one in Pretence.made} == {
        "base-seed1": [10], "base-seed2": [11], "base-seed3": [10],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "words", "decides"),
    [
        (2, "cannot be written: No space left on device", False),
        (6, "the result could not be written: No space left on device", False),
        (6, "out of memory before the first step: use a smaller model", True),
        (5, "diverged", True),
    ],
)
def test_only_what_lies_in_the_recipe_decides_against_a_change(
    bench: Path, code: int, words: str, decides: bool
) -> None:
    asked, folder, *_ = parts(bench, Prices())
    Pretence.ends |= {f"higher-rate-seed{seed}": [code] for seed in (1, 2)}
    Pretence.words |= {f"higher-rate-seed{seed}": words for seed in (1, 2)}
    climber = Climber(asked, folder, Prices(), lambda line: None)
    if decides:
        climber.run()
        assert folder.read().decisions[0].outcome == "rolled back"
        return
    with pytest.raises(FarthingError, match="No space left on device; the same command goes on") as caught:
        climber.run()
    assert "\n" not in str(caught.value) and folder.read().decisions == []
    # Room has been made: what was stopped goes on and is judged by its score.
    Pretence.ends.clear()
    assert Climber(asked, folder, Prices(), lambda line: None).run().decisions[0].outcome == "kept"


def test_trouble_with_one_seed_saves_the_other(bench: Path) -> None:
    *_, arms = parts(bench, Prices(), workers=2)
    Pretence.ends |= {"base-seed1": [None], "base-seed2": [2]}
    with pytest.raises(FarthingError):
        arms.train(arms.arm(()), [1, 2])
    assert {one.run.name: one.stopped for one in Pretence.made} == {"base-seed1": True, "base-seed2": False}


def test_a_refusal_in_mid_arm_saves_the_other_seed(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, arms = parts(bench, Prices(), workers=2)
    Pretence.ends |= {"base-seed1": [None]}

    def refuses_the_second(arm: object) -> None:
        if Pretence.made:
            raise Refused("no longer")

    monkeypatch.setattr(arms, "_afford", refuses_the_second)
    with pytest.raises(Refused):
        arms.train(arms.arm(()), [1, 2])
    assert [one.stopped for one in Pretence.made] == [True]


def test_runs_on_texts_that_have_changed_in_between_are_not_judged(bench: Path) -> None:
    _, kept, _, arms = parts(bench, Prices())
    base, changed = arms.arm(()), arms.arm(("higher rate",))
    for arm, rate, training in ((base, 1e-4, "ab" * 32), (changed, 1e-2, "cd" * 32)):
        for seed in (1, 2):
            write_run(kept.path, f"{arm.name}-seed{seed}", seed=seed, recipe={"optimizer.lr": rate}, training=training)
    arms.check_alike((base,), (1, 2))
    arms.check_alike((base, changed), (3,))
    with pytest.raises(UserError, match=r"differ in the training text .* nothing is judged by these") as caught:
        arms.check_alike((base, changed), (1, 2))
    assert caught.value.exit_code == 2


def test_a_confirmation_that_is_refused_is_one_line(bench: Path) -> None:
    asked, folder, standing, arms = parts(bench, Prices("9 GiB of memory, over limits.max_memory_gib=1"), confirm=2)
    standing.decisions.append(Decision("higher rate", "kept", "better"))
    with pytest.raises(UserError, match=r"limits\.max_memory_gib=1; .* the same command goes on") as caught:
        Proof(asked, folder, standing, arms, lambda line: None, "cpu").carry_out()
    assert "\n" not in str(caught.value) and standing.confirmation is None


def test_too_little_disk_decides_nothing(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In the planner's own words, of a machine without room.
    monkeypatch.setattr(session, "disk_free", lambda path: 0)
    recipe = read("climb.toml", Recipe).recipe(())
    price = _understood(planning._Plans(bench / "runs", "cpu").answer(config.to_table(recipe), text=False))
    assert price is not None
    reason = beyond(SearchLimits(), price)
    assert "0.00 GB free" in reason and passes(price, reason)
    small = beyond(SearchLimits(max_parameters=1), price)
    assert small and not passes(price, small)
    asked, folder, *_ = parts(bench, Prices())

    class Filling(Prices):
        """The disk is full when the change comes."""

        def price(self, recipe: Section, limits: SearchLimits) -> tuple[Price, str]:
            changed = config.flatten(recipe)["optimizer.lr"] != 1e-4
            return (price, reason) if changed else super().price(recipe, limits)

    with pytest.raises(ResourceError, match="the same command goes on"):
        Climber(asked, folder, Filling(), lambda line: None).run()
    assert folder.read().decisions == []
