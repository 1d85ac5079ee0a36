"""What is told of a search: trends that are there, none that are not, and a winner that fresh seeds have chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from farthing import config
from farthing.errors import UserError
from farthing.recipe import Recipe
from farthing.report import ladder
from farthing.report.blocks import Paragraph, Table
from farthing.search.account import counts
from farthing.search.check import read
from farthing.search.findings import EXACT, LEVEL, confirmation, find, importance, to_hold_out, trends
from farthing.search.record import Folder, Record, Refused
from farthing.search.space import Drawn, Options, Range
from search.small import SEARCH, asked, record, search_of


def points(count: int, *, effect: float, seed: int = 0) -> list[tuple[dict[str, Any], float]]:
    """Scores that fall with heads, differ by norm, and know nothing of dropout."""
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        heads, norm = int(chance.choice([2, 4, 8])), str(chance.choice(["rmsnorm", "layernorm"]))
        parameters = {"model.n_head": heads, "model.norm.kind": norm, "model.dropout": float(chance.random() / 2)}
        score = 3 - effect * (heads / 8 + 0.6 * (norm == "rmsnorm")) + 0.1 * float(chance.normal())
        found.append((parameters, score))
    return found


def test_trends_in_words_and_numbers() -> None:
    found = {one["path"]: one for one in trends(points(40, effect=1.0))}
    heads, norm, dropout = (found[path] for path in ("model.n_head", "model.norm.kind", "model.dropout"))
    assert heads["words"].startswith("more model.n_head helps (Spearman -")
    assert "lowest mean at 8 (" in heads["words"] and "n = 40" in heads["words"]
    assert norm["words"].startswith("model.norm.kind matters (p = ") and norm["spearman"] is None
    assert norm["values"][0]["value"] == "rmsnorm"
    assert dropout["words"].startswith("model.dropout: no clear trend")
    assert sum(value["n"] for value in heads["values"]) == 40


def unrelated(count: int, parameters: int, seed: int) -> list[tuple[dict[str, Any], float]]:
    """Scores that know nothing of any parameter."""
    chance = np.random.default_rng([seed, count, parameters])
    names = [f"p{number}" for number in range(parameters)]
    return [(dict(zip(names, chance.random(parameters).tolist(), strict=True)), chance.random()) for _ in range(count)]


@pytest.mark.parametrize("count", [4, 5, 8, 24])
@pytest.mark.parametrize("kind", ["one number", "three numbers", "with ties and words"])
def test_trends_where_there_are_none_are_as_rare_as_said(count: int, kind: str) -> None:
    def null(seed: int) -> list[tuple[dict[str, Any], float]]:
        if kind == "with ties and words":
            return points(count, effect=0.0, seed=seed)
        return unrelated(count, 1 if kind == "one number" else 3, seed)

    alarms = sum(any(one["p_corrected"] <= LEVEL for one in trends(null(seed))) for seed in range(400))
    # 400 null searches at 5 %: at most 20 expected, and above 34 has a chance of 0.1 %.
    assert alarms <= 34


def test_p_of_few_trials_is_that_of_all_orders() -> None:
    def p(values: list[Any], scores: list[float]) -> float:
        [found] = trends([({"a": value}, score) for value, score in zip(values, scores, strict=True)])
        return float(found["p"])

    assert p([1, 2, 3, 4], [0.4, 0.3, 0.2, 0.1]) == pytest.approx(2 / 24), "a perfect order, or its reverse"
    assert p([1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(2 / 120)
    assert p([1, 1, 2, 2], [0.1, 0.2, 0.3, 0.4]) == pytest.approx(8 / 24), "ties are orders too"
    assert p(["a", "a", "b", "b"], [0.1, 0.2, 0.3, 0.4]) == pytest.approx(8 / 24)
    assert p([1, 2, 3, 4], [0.1] * 4) == 1.0


def test_p_is_near_that_of_the_textbook_where_trials_are_many() -> None:
    from scipy import stats

    chance = np.random.default_rng(3)
    for count in (EXACT + 1, 60):
        values = chance.integers(0, 5, count)
        scores = chance.random(count) - 0.1 * values
        rows = list(zip(values.tolist(), scores.tolist(), strict=True))
        [number] = trends([({"a": value}, score) for value, score in rows])
        [word] = trends([({"a": f"v{value}"}, score) for value, score in rows])
        assert number["spearman"] == pytest.approx(stats.spearmanr(values, scores).statistic)
        assert number["p"] == pytest.approx(
            stats.permutation_test(
                (values,), lambda order, scores=scores: stats.spearmanr(order, scores).statistic,
                permutation_type="pairings", n_resamples=2000, rng=1,
            ).pvalue, abs=0.03,
        )  # fmt: skip
        groups = [scores[values == one] for one in set(values.tolist())]
        assert word["p"] == pytest.approx(stats.kruskal(*groups).pvalue, abs=0.05)
        assert trends([({"a": value}, score) for value, score in rows]) == [number], "the same trials tell the same"


def test_too_little_tells_nothing() -> None:
    assert trends(points(3, effect=1.0)) == []
    assert trends([({"a": 1}, 2.0)] * 9) == []
    assert importance([], []) == {}


def test_importance_finds_what_matters() -> None:
    rows = points(60, effect=1.0)
    domains: dict[str, Range | Options] = {
        "model.n_head": Options((2, 4, 8)),
        "model.norm.kind": Options(("rmsnorm", "layernorm")),
        "model.dropout": Range(0.0, 0.5),
    }
    drawn = [[Drawn(path, path, domains[path], value) for path, value in row.items()] for row, _ in rows]
    found = importance(drawn, [score for _, score in rows])
    assert sum(found.values()) == pytest.approx(1.0)
    assert min(found, key=lambda path: found[path]) == "model.dropout"
    # A parameter that only some trials have is left out, one whose choices depended on others is not.
    drawn[0] = drawn[0][:2]
    drawn[1][0] = Drawn("model.n_head of 2, 4", "model.n_head", Options((2, 4)), 2)
    assert importance(drawn, [score for _, score in rows]).keys() == {"model.n_head", "model.norm.kind"}


def confirming(of: str, scores: list[float | None]) -> list[Record]:
    return [
        record(100 + index, score, role="confirmation", of=of, seeds=[10_001 + index], id=f"confirm-{of}-{index}")
        for index, score in enumerate(scores)
    ]


def test_confirmation_holds_the_best_against_the_base_seed_by_seed() -> None:
    search = search_of(confirm={"top": 2, "seeds": 3})
    trials = [record(0, 2.0), record(1, 2.1)]
    runs = [
        *confirming("trial-00000", [2.30, 2.41, 2.52]),
        *confirming("trial-00001", [2.10, 2.21, None]),
        *confirming("base", [2.60, 2.70, 2.80]),
    ]
    found = confirmation(search, [*trials, *runs], trials)
    assert found is not None
    assert found["arms"]["trial-00000"]["mean"] == pytest.approx(2.41)
    assert found["arms"]["trial-00001"]["failed"] == 1
    verdict = found["verdicts"]["trial-00000"]
    assert verdict["verdict"] == "better" and verdict["method"] == "paired t" and verdict["n"] == 3
    assert found["verdicts"]["trial-00001"]["verdict"] == "cannot tell", "an arm with a failed run never wins"
    assert confirmation(search, trials, trials) is None


def test_held_out_scores_stand_beside_those_that_confirm(tmp_path: Path) -> None:
    text = SEARCH.partition("[tied]")[0] + "[budget]\ntrials = 1\n[confirm]\ntop = 1\nseeds = 2\n"
    found, folder = asked(tmp_path, text, ["data.test=0.1"]), Folder(tmp_path / "runs" / "s")
    folder.make("")
    table = config.to_table(found.space.propose(lambda name, at, domain: domain.at(0.0)).recipe)
    runs = [*confirming("trial-00000", [2.3, 2.4]), *confirming("base", [2.6, 2.7])]
    base = config.to_table(found.space.base)
    done = [record(0, 2.0, recipe=table), *(replace(one, recipe=base if one.of == "base" else table) for one in runs)]
    arms = {one.id: folder.run(one, one.seeds[0]) for one in runs}
    for run in arms.values():
        run.path.mkdir()
        run.result.write_text("{}", "utf-8")
    assert {id: list(runs) for id, runs in to_hold_out(found, folder, done).items()} == {
        "trial-00000": [10_001, 10_002], "base": [10_001, 10_002],
    }  # fmt: skip
    assert "held_out" not in find(found, folder, done, "over")["confirmation"]["arms"]["base"], "not yet scored"
    for run, score in zip(arms.values(), (3.0, 3.2, 3.5, 3.7), strict=True):
        test = {"bits_per_byte": score, "fingerprint": "f"}
        run.held_out.write_text(json.dumps({"version": 1, "step": 1, "test": test, "when": ""}), "utf-8")
    told = find(found, folder, done, "over")
    assert told["confirmation"]["arms"]["trial-00000"]["held_out"]["mean"] == pytest.approx(3.1)
    assert told["best"]["held_out_bits_per_byte"] == pytest.approx(3.1)
    material: Any = SimpleNamespace(question=SimpleNamespace(found=told))
    [shown] = [
        one for section in ladder.of_search(material) if section.title == "Confirmation" for one in section.blocks
    ]
    assert isinstance(shown, Table) and shown.head[-1] == "held-out text"
    assert [row[-1] for row in shown.rows] == ["3.1000", "3.6000"]
    # Scores on two texts tell nothing of each other; a score that is damaged is named.
    last = next(reversed(arms.values()))
    last.held_out.write_text(json.dumps({"version": 1, "test": {"bits_per_byte": 1.0, "fingerprint": "g"}}), "utf-8")
    assert find(found, folder, done, "over")["best"]["held_out_bits_per_byte"] is None
    last.held_out.write_text("{", "utf-8")
    with pytest.raises(UserError, match=r"held_out\.json: damaged") as caught:
        find(found, folder, done, "over")
    assert "\n" not in str(caught.value)
    # A run that is on another machine cannot be scored here.
    last.result.unlink()
    assert to_hold_out(found, folder, done) == {}
    assert to_hold_out(asked(tmp_path, text), folder, done) == {}


def test_trials_that_fit_no_more_are_left_out_with_the_reason(tmp_path: Path) -> None:
    old = asked(tmp_path, SEARCH, ["evaluate.legacy=titles"])
    folder = Folder(tmp_path / "runs" / "s")
    folder.make(old.as_toml(folder.path))
    recipes = [config.to_table(old.space.propose(lambda name, at, domain, unit=unit: domain.at(unit)).recipe)
               for unit in (0.1, 0.2, 0.3)]  # fmt: skip
    records = [record(number, 2.0 + number, recipe=recipe, spent={"flops": 5.0}, text="f")
               for number, recipe in enumerate(recipes)]  # fmt: skip
    assert find(old, folder, records, "over")["left_out"] == 0 and folder.best.is_file()
    new = asked(tmp_path)
    told = find(new, folder, records, "over")
    assert (told["trials"], told["complete"], told["best"], told["left_out"]) == (0, 0, None, 3)
    assert told["left_out_because"] == "trial-00000 has evaluate.legacy=titles, now none"
    assert told["spent"]["flops"] == 15.0, "what was spent is spent"
    assert told["left_out_ids"] == ["trial-00000", "trial-00001", "trial-00002"]
    assert not folder.best.exists(), "it is of no trial that the findings tell of"
    material: Any = SimpleNamespace(question=SimpleNamespace(found=told))
    shown = " ".join(block.text for section in ladder.of_search(material) for block in section.blocks
                     if isinstance(block, Paragraph))  # fmt: skip
    assert "3 trials; trial-00000 has evaluate.legacy=titles, now none" in shown
    # The folder's own SEARCH.toml says what the command line said, so that it asks for what these trials are.
    again = read(str(folder.asked), Recipe)
    assert find(again, folder, records, "over")["best"]["trial"] == "trial-00000"
    narrow = asked(tmp_path, SEARCH.replace("high = 1e-1", "high = 2e-4"), ["evaluate.legacy=titles"])
    because = find(narrow, folder, records, "over")["left_out_because"]
    assert because.startswith("trial-00001 has optimizer.lr=0.000") and because.endswith(
        "which the space does not hold"
    )


def test_a_confirmation_cut_short_decides_over_the_seeds_that_all_have(tmp_path: Path) -> None:
    found = asked(tmp_path, SEARCH.replace("top = 0", "top = 2\nseeds = 2\nbase = false"), ["data.test=0.1"])
    folder = Folder(tmp_path / "runs" / "s")
    folder.make("")
    recipes = [config.to_table(found.space.propose(lambda name, at, domain, unit=unit: domain.at(unit)).recipe)
               for unit in (0.1, 0.2)]  # fmt: skip
    trials = [record(number, 2.0 + number, recipe=recipe) for number, recipe in enumerate(recipes)]

    def best(first: list[float | None], second: list[float | None]) -> str:
        runs = [replace(one, recipe=recipes[at]) for at, scores in enumerate((first, second))
                for one in confirming(f"trial-{at:05d}", scores)]  # fmt: skip
        return str(find(found, folder, [*trials, *runs], "over")["best"]["trial"])

    assert best([], [1.0]) == "trial-00000", "one alone wins nothing"
    assert best([2.0, 2.6], [2.1]) == "trial-00000", "a seed that the other has not run is not held against it"
    assert best([2.2, 1.0], [2.1]) == "trial-00001"
    assert best([2.0, 2.6], [2.1, 2.2]) == "trial-00001"
    assert best([2.0, None], [2.1, 2.2]) == "trial-00001", "one that failed does not win"
    assert to_hold_out(found, folder, trials) == {}


def test_runs_of_a_base_recipe_that_has_changed_confirm_nothing(tmp_path: Path) -> None:
    text = SEARCH.replace("top = 0", "top = 1\nseeds = 2")
    found, folder = asked(tmp_path, text), Folder(tmp_path / "runs" / "s")
    folder.make("")
    trial = config.to_table(found.space.propose(lambda name, at, domain: domain.at(0.0)).recipe)
    base, other = (config.to_table(asked(tmp_path, text, words).space.base) for words in ([], ["budget.steps=3"]))
    arms = [replace(one, recipe=trial) for one in confirming("trial-00000", [2.3, 2.4])]
    for recipe, known in ((base, True), (other, False)):
        bases = [replace(one, recipe=recipe) for one in confirming("base", [2.6, 2.7])]
        told = find(found, folder, [record(0, 2.0, recipe=trial), *arms, *bases], "over")["confirmation"]
        assert ("base" in told["arms"]) is known and bool(told["verdicts"]) is known


def test_what_a_reader_must_know_of_the_numbers_is_noted(tmp_path: Path) -> None:
    def notes(sampler: str, top: int, state: str = "complete") -> dict[str, str]:
        text = SEARCH.replace('kind = "random"', sampler).replace("top = 0", f"top = {top}\nseeds = 1\nbase = false")
        found, folder = asked(tmp_path, text), Folder(tmp_path / "runs" / "s")
        folder.make("")
        recipes = [config.to_table(found.space.propose(lambda name, at, domain, unit=unit: domain.at(unit)).recipe)
                   for unit in (0.1, 0.2, 0.3, 0.4, 0.5)]  # fmt: skip
        records = [record(number, 2.0 + number, recipe=recipe, state=state if number > 1 else "complete")
                   for number, recipe in enumerate(recipes)]  # fmt: skip
        runs = [replace(one, recipe=records[number].recipe) for number in range(top)
                for one in confirming(f"trial-{number:05d}", [2.5 + number])]  # fmt: skip
        told: dict[str, str] = find(found, folder, [*records, *runs], "over")["notes"]
        return told

    assert notes('kind = "random"', 1) == {}, "drawn at random, and nothing to choose from"
    assert notes('kind = "tpe"', 1) == {}, "no more trials than those that it draws at random"
    learnt = notes('kind = "tpe"\nstartup_trials = 2', 3)
    assert learnt["trends"].startswith("tpe chose later trials by the scores of earlier ones")
    assert "the lowest of 3 means" in learnt["confirmation"] and "a little too low" in learnt["confirmation"]
    assert notes('kind = "cmaes"', 0).keys() == {"trends"}
    assert notes('kind = "tpe"\nstartup_trials = 3', 0, state="pruned").keys() == {"trends"}, "it learns from these too"


def test_counts_tell_refused_candidates_from_trials() -> None:
    no = [Refused(parameters={}, reason="too large")] * 3
    found = counts([
        record(0, 2.0, refused=no), record(1, 2.2, state="pruned"), record(2, None), record(3, None, state="refused"),
        record(4, None, state="running"), record(5, 2.0, role="confirmation"),
    ])  # fmt: skip
    assert found == {"trials": 4, "complete": 1, "running": 1, "refused": 4, "failed": 1, "pruned": 1}
