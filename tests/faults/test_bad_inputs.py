"""Each kind of bad input is answered as promised; `python tests/faults/bad_inputs.py` prints the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.bad_inputs import MODELS, RECIPES, RUNS, TEXTS, WRONG, Bad, answered, desk

VERBS = {
    "train", "plan", "resume", "eval", "sample", "export", "import", "publish-check", "serve", "chat", "compare", "noise",
    "search", "climb", "report", "data", "tokenizer", "runs", "doctor", "recipe",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield desk(folder)


# What tests/cli/test_bad_input.py asks for itself is not asked for twice.
@pytest.mark.parametrize("bad", [*RECIPES, *TEXTS, *RUNS, *MODELS], ids=lambda bad: bad.kind)
def test_it_is_told_in_one_line_and_nothing_is_touched(bad: Bad, place: Path, tmp_path: Path) -> None:
    answer, wrong = answered(place, bad, tmp_path / "copy")
    assert not wrong, (wrong, answer)


def test_there_are_more_than_sixty_kinds_over_all_verbs() -> None:
    assert len({bad.kind for bad in WRONG}) == len(WRONG) >= 60
    assert {bad.words[0] for bad in WRONG} >= VERBS
    assert {bad.code for bad in WRONG} == {2, 3, 4}


def test_the_table_would_tell_of_a_wrong_answer(place: Path, tmp_path: Path) -> None:
    fine = Bad("nothing", ("runs", "--quiet"), ())
    _, wrong = answered(place, fine, tmp_path / "fine")
    assert any("exit code 0" in one for one in wrong) and any("standard output" in one for one in wrong)
    unnamed = Bad("unnamed", ("sample", "nowhere"), ("somewhere else",))
    assert any("does not name" in one for one in answered(place, unnamed, tmp_path / "unnamed")[1])
    written = Bad("written", ("train", "small.toml", "--quiet", "--name", "new"), ())
    assert any(one.startswith("made") for one in answered(place, written, tmp_path / "written")[1])
