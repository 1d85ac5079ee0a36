"""Reports of runs, of a search and of a climb: what they show, what they refuse, and that nobody's words become HTML."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compare.folders import write_arm, write_run
from farthing.budget import Budget
from farthing.compare.runs import gather
from farthing.errors import UserError
from farthing.recipe import Recipe
from farthing.report import ladder, page, sections
from farthing.report.advice import Diagnosis, diagnose_all
from farthing.report.blocks import Document, Section, Table
from farthing.report.contents import compose
from farthing.report.material import Material, Question, Tokens, collect
from farthing.report.search_figures import climb_figure

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\x1b]0;gone\x07\u202egnp'
VOID = {"meta", "link", "br", "img", "input", "hr", "rect", "path", "circle", "line"}


class Page(HTMLParser):
    """Tags and text of a page; a tag that is not closed in its place is a fault."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(content)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def material_of(runs: Path, *named: str, question: Question | None = None, **others: Any) -> Material:
    found = gather(list(named) or [str(runs)], runs=runs, recipe=Recipe)
    asked = question or Question("runs", "some runs")
    given = {"baseline": None, "by": "bits_per_byte", "level": 0.05, **others}
    return collect(asked, found, defaults=Recipe(budget=Budget(steps=1)), **given)


def report(material: Material) -> tuple[Document, list[Diagnosis]]:
    found = diagnose_all(material)
    return compose(material, found), found


def titles(document: Document) -> list[str]:
    return [section.title for section in document.sections]


def test_arms_are_compared_with_verdicts_curves_and_settings(tmp_path: Path) -> None:
    write_arm(tmp_path, "base", {1: 1.5, 2: 1.51, 3: 1.49})
    write_arm(tmp_path, "deep", {1: 1.4, 2: 1.42, 3: 1.395}, recipe={"model.n_layer": 8})
    document, _ = report(material_of(tmp_path))
    told = Page(page.html(document))
    text = " ".join(told.text)
    assert "deep: better" in text
    assert "model.n_layer: 4 → 8" in text
    assert {"Comparison", "Curves", "Settings", "Cost", "Receipts", "Diagnosis"} <= set(titles(document))
    assert {figure.name for figure in document.figures} >= {"loss", "score", "final"}


def test_nothing_on_the_page_is_fetched_or_run(tmp_path: Path) -> None:
    write_arm(tmp_path, "base", {1: 1.5, 2: 1.51})
    document, _ = report(material_of(tmp_path))
    content = page.html(document)
    told = Page(content)
    assert not {"script", "iframe", "link", "img", "object", "embed", "foreignobject", "use"} & set(told.tags)
    reached = [value for name, value in told.attributes if name in ("src", "href", "xlink:href") and value]
    assert all(value.startswith("#") for value in reached)
    outside = set(re.findall(r"https?://[^\s\"'<)]+", content))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_every_id_is_there_once(tmp_path: Path) -> None:
    write_arm(tmp_path, "base", {1: 1.5, 2: 1.51})
    write_arm(tmp_path, "deep", {1: 1.4, 2: 1.42}, recipe={"model.n_layer": 8})
    told = Page(page.html(report(material_of(tmp_path))[0]))
    ids = [value for name, value in told.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value for name, text in told.attributes for value in re.findall(r"url\(#([^)]+)\)", text or "")}
    assert used and used <= set(ids)


def test_no_word_of_a_user_or_a_model_becomes_html(tmp_path: Path) -> None:
    sample = {"samples": [{"prompt": HOSTILE, "text": HOSTILE}]}
    recipe = {"sample.prompt": HOSTILE.replace("\x1b", "").replace("\x07", "")}
    write_run(tmp_path, "a", 1.5, seed=1, result=sample, recipe=recipe, receipt={"created": HOSTILE})
    write_run(tmp_path, "b", 1.6, seed=1, recipe={"model.n_layer": 8})
    (tmp_path / "b").rename(tmp_path / "<b onclick=x>&amp;")
    material = material_of(tmp_path, question=Question("runs", HOSTILE))
    document, _ = report(material)
    content = page.html(document)
    told = Page(content)
    assert not {"script", "img"} & set(told.tags)
    assert not [name for name, _ in told.attributes if name.startswith("on")]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", content)
    assert "<b onclick=x>&amp;" in " ".join(told.text)


def test_markdown_shows_the_same_and_escapes_too(tmp_path: Path) -> None:
    sample = {"samples": [{"prompt": "", "text": "```\n# not a heading\n<script>"}]}
    write_run(tmp_path, "a", 1.5, seed=1, result=sample)
    write_run(tmp_path, "b|c", 1.6, seed=1, recipe={"model.n_layer": 8})
    document, _ = report(material_of(tmp_path, question=Question("runs", "x <b>y</b> | [z](http://w)")))
    files = page.write_markdown(document, tmp_path / "out.md")
    content = (tmp_path / "out.md").read_text("utf-8")
    assert content.splitlines()[0] == page.MARK
    outside_code = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1\n", "", content).replace(page.MARK, "")
    assert "<script" not in outside_code and "# not a heading" not in outside_code
    assert re.search(r"(?m)^# x \\<b\\>y\\</b\\> \\\| \\\[z\\\]", content)
    tables = re.findall(r"(?m)(?:^\|.*\n)+", content)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", content):
        assert (tmp_path / target) in files and (tmp_path / target).read_bytes().startswith(b"<svg")
        assert (tmp_path / target).with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_cannot_be_shown_are_named_in_one_line_each(tmp_path: Path) -> None:
    write_run(tmp_path, "whole", 1.5)
    write_run(tmp_path, "stopped", 1.5, stopped="preempted")
    write_run(tmp_path, "newer", 1.5, result={"version": 99})
    ahead = write_run(tmp_path, "ahead", 1.5, seed=2)
    ahead.events.write_text(ahead.events.read_text("utf-8").replace('"version": 1}', '"version": 9}', 1), "utf-8")
    material = material_of(tmp_path)
    assert sorted(one.run for one in material.left_out) == ["ahead", "newer", "stopped"]
    assert [run.name for run in material.runs] == ["whole"]
    text = html.unescape(page.html(report(material)[0]))
    assert "left out: stopped: unfinished, stopped at step 10" in text
    assert "left out: newer: a result of version 99" in text


def test_a_failed_run_is_shown_and_diagnosed(tmp_path: Path) -> None:
    write_run(tmp_path, "good", 1.5)
    write_run(tmp_path, "hot", 1.5, stopped="diverged", recipe={"optimizer.lr": 5.0})
    document, found = report(material_of(tmp_path))
    (hot,) = [one for one in found if one.arm == "hot"]
    assert hot.finding.ailment == "diverged"
    assert any("optimizer.lr=1.7" in command for command in hot.commands)
    assert "hot failed: diverged at step 10" in " ".join(Page(page.html(document)).text)


def test_runs_of_different_texts_are_shown_but_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 1.5)
    write_run(tmp_path, "b", 1.4, recipe={"model.n_layer": 8}, yardstick={"fingerprint": "f" * 64})
    material = material_of(tmp_path)
    assert material.compared is None and "validation text" in material.why_not
    assert "cannot be compared" in " ".join(Page(page.html(report(material)[0])).text)


def test_an_unknown_baseline_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 1.5)
    write_run(tmp_path, "b", 1.4, recipe={"model.n_layer": 8})
    with pytest.raises(UserError, match="--baseline nobody"):
        material_of(tmp_path, baseline="nobody")


def test_differences_within_the_noise_come_with_commands_for_more_seeds(tmp_path: Path) -> None:
    write_arm(tmp_path, "base", {1: 1.50, 2: 1.53, 3: 1.51})
    write_arm(tmp_path, "deep", {1: 1.48, 2: 1.50, 3: 1.505}, recipe={"model.n_layer": 8})
    (noisy,) = [one for one in report(material_of(tmp_path))[1] if one.finding.ailment == "noise too large to tell"]
    assert len(noisy.commands) == 2
    assert all(command.startswith("farthing train ") and "--seeds 4" in command for command in noisy.commands)


def test_runs_that_no_held_out_text_was_scored_with_have_no_such_table(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 1.5)
    assert "Held-out text" not in titles(report(material_of(tmp_path))[0])


def test_the_held_out_table_names_the_checkpoint_and_how_many_seeds(tmp_path: Path) -> None:
    write_arm(tmp_path, "base", {1: 1.5, 2: 1.52, 3: 1.6})
    write_run(tmp_path, "deep", 1.4, recipe={"model.n_layer": 8})
    for name, bits in (("base-seed1", 1.5625), ("base-seed2", 1.5825), ("deep", 1.4625)):
        test = {"bits_per_byte": bits, "perplexity": 3.6771, "bytes": 7770}
        kept = {"version": 1, "step": 20, "test": test, "when": "today"}
        (tmp_path / name / "held_out.json").write_text(json.dumps(kept), "utf-8")
    (section,) = [one for one in report(material_of(tmp_path))[0].sections if one.title == "Held-out text"]
    mean, first, second, deep = section.blocks[0].rows  # type: ignore[union-attr]
    assert mean[:6] == ["base", "mean", "2 of 3", "", "1,000,000", "1.5100 ± 0.1271"]
    assert str(mean[6]).startswith("1.5725 ± ")
    assert first == ["", "1", "", "step 20", "", "1.5000", "1.5625", "3.68", "7,770"]
    assert second[3:7] == ["step 20", "", "1.5200", "1.5825"]
    assert deep == ["deep", "1", "1 of 1", "step 20", "1,000,000", "1.4000", "1.4625", "3.68", "7,770"]


def test_an_earlier_checkpoint_stands_beside_its_own_validation_score(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", 1.5)
    test = {"bits_per_byte": 1.9, "perplexity": 5.0, "bytes": 777}
    run.held_out.write_text(json.dumps({"version": 1, "step": 10, "test": test, "when": "today"}), "utf-8")
    document, _ = report(material_of(tmp_path))
    (section,) = [one for one in document.sections if one.title == "Held-out text"]
    assert section.blocks[0].rows[0][3:7] == ["step 10", "1,000,000", "2.0000", "1.9000"]  # type: ignore[union-attr]


def test_the_checkpoints_of_a_run_have_the_held_out_score_where_it_was_taken(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", 1.5)
    for step in (12, 20):
        run.checkpoint(step).mkdir()
    (before,) = [one for one in report(material_of(tmp_path))[0].sections if one.title == "Checkpoints"]
    assert before.blocks[0].head[-2:] == ["", "checkpoint"]  # type: ignore[union-attr]
    test = {"bits_per_byte": 1.5625, "perplexity": 3.6771, "bytes": 777}
    run.held_out.write_text(json.dumps({"version": 1, "step": 20, "test": test, "when": "today"}), "utf-8")
    document, _ = report(material_of(tmp_path, question=Question("run", "a")))
    (section,) = [one for one in document.sections if one.title == "Checkpoints"]
    table = section.blocks[0]
    assert table.head[4] == "held out,\nbits per byte"  # type: ignore[union-attr]
    assert [(row[0], row[2], row[4], row[6]) for row in table.rows] == [  # type: ignore[union-attr]
        ("5", "2.2500", "–", ""), ("10", "2.0000", "–", ""), ("12", "–", "–", "kept"), ("15", "1.7500", "–", ""),
        ("20", "1.5000", "1.5625", "kept"),
    ]  # fmt: skip


def test_a_single_run_shows_its_own_rates_and_what_others_make_of_the_text(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 1.5, result={"references": {"xz": 1.8, "zstd": 1.9, "unigram": 3.1, "bytes": 4000}})
    document, _ = report(material_of(tmp_path, question=Question("run", "a")))
    assert {figure.name for figure in document.figures} == {"training-and-validation", "rates"}
    text = " ".join(Page(page.html(document)).text)
    assert "xz" in text and "1.8000" in text and "One run" in text


def test_task_scores_have_their_intervals(tmp_path: Path) -> None:
    score = {
        "value": 0.31,
        "standard_error": 0.01,
        "low": 0.29,
        "high": 0.33,
        "chance": 0.25,
        "verdict": "above chance",
    }
    task = {"task": "hellaswag", "metric": "acc_norm", "items": 100, "of": 10042, "scores": {"acc_norm": score}}
    write_run(tmp_path, "a", 1.5, result={"tasks": [task]})
    document, _ = report(material_of(tmp_path))
    (section,) = [section for section in document.sections if section.title == "Tasks"]
    row = section.blocks[0].rows[0]  # type: ignore[union-attr]
    assert row[1:5] == ["hellaswag", "acc_norm", "0.3100", "0.2900 to 0.3300"]


def test_the_tokenizer_is_shown_or_why_not(tmp_path: Path) -> None:
    from dataclasses import replace

    from farthing.data.inspect import inspect
    from farthing.data.tokenizer import SEPARATOR, Tokenizer
    from farthing.data.tokenizer_train import byte_tokenizer

    write_run(tmp_path, "a", 1.5)
    tokenizer = Tokenizer.from_json(byte_tokenizer(), separator=SEPARATOR)
    measured = inspect(tokenizer, ["some text", "and more of it"], d_model=8, parameters=10_000).as_dict()
    material = replace(material_of(tmp_path), tokens=[Tokens(["a"], measured), Tokens(["b"], None, "its text is gone")])
    document, _ = report(material)
    assert "tokenizer-frequency" in {figure.name for figure in document.figures}
    assert "b: its text is gone" in " ".join(Page(page.html(document)).text)


SEARCH: dict[str, Any] = {
    "version": 1, "ended": "12 trials", "trials": 12, "complete": 10, "running": 0, "refused": 2, "failed": 1, "pruned": 1,
    "best": {"trial": "trial-00003", "bits_per_byte": 1.41, "confirmed_bits_per_byte": 1.43,
             "parameters": {"optimizer.lr": 0.01, "model.mlp.kind": "swiglu"}, "recipe": "best.toml", "run": "r"},
    "importance": {"optimizer.lr": 0.8, "model.mlp.kind": 0.2},
    "trends": [{"path": "optimizer.lr", "words": "more optimizer.lr helps (Spearman -0.9, p = 0.001, n = 10)"}],
    "confirmation": {
        "arms": {name: {"n": 2, "failed": 0, "mean": mean, "sd": 0.01, "low": mean - 0.1, "high": mean + 0.1, "level": 0.05}
                 for name, mean in (("trial-00003", 1.43), ("base", 1.5))},
        "verdicts": {"trial-00003": {"verdict": "better", "difference": -0.07, "low": -0.1, "high": -0.04}},
    },
    "history": [
        {"trial": f"trial-{n:05d}", "state": "complete" if n < 10 else ["pruned", "failed"][n - 10],
         "score": 1.6 - 0.02 * n if n < 10 else None, "best": 1.6 - 0.02 * min(n, 9), "seconds": 1.0, "curve": {}}
        for n in range(12)
    ],
    "slices": {"optimizer.lr": [[10 ** (-3 + n / 5), 1.6 - 0.02 * n] for n in range(10)],
               "model.mlp.kind": [[["gelu", "swiglu"][n % 2], 1.6 - 0.02 * n] for n in range(10)]},
    "parallel": [{"trial": f"trial-{n:05d}", "score": 1.6 - 0.02 * n, "optimizer.lr": 10 ** (-3 + n / 5),
                  "model.mlp.kind": ["gelu", "swiglu"][n % 2], "data.limit": None if n else 3} for n in range(10)],
    "refusals": {"limits.max_megabytes": 2}, "failures": [{"trial": "trial-00011", "reason": "out of memory"}],
}  # fmt: skip


def test_a_search_is_drawn_and_told(tmp_path: Path) -> None:
    write_run(tmp_path, "trial-00003-seed-1", 1.41, recipe={"optimizer.lr": 0.01})
    write_run(tmp_path, "trial-00010-seed-1", 1.6, stopped="preempted", recipe={"optimizer.lr": 0.1})
    question = Question("search", "looking", {"recipe": "default", "space": {"optimizer.lr": {"low": 1e-3}}}, SEARCH)
    document, _ = report(material_of(tmp_path, question=question))
    text = " ".join(Page(page.html(document)).text)
    names = {figure.name for figure in document.figures}
    assert {"search-history", "search-importance", "search-slices", "search-parallel"} <= names
    for words in (
        "more optimizer.lr helps",
        "Best trial: trial-00003",
        "1.4300 with fresh seeds, better against the base (-0.0700)",
        "limits.max_megabytes",
    ):
        assert words in text
    assert "1 run of trials: pruned" in text


def test_trials_that_fit_no_more_are_not_drawn_among_the_others(tmp_path: Path) -> None:
    for number in range(3):
        write_run(tmp_path, f"trial-{number:05d}-seed-1", 1.4, recipe={"optimizer.lr": 0.01 * (number + 1)})
    found = {**SEARCH, "left_out": 1, "left_out_ids": ["trial-00001"], "left_out_because": "trial-00001 has x=1, now 2"}
    material = material_of(tmp_path, question=Question("search", "looking", {}, found))
    assert {run.name for run in material.runs} == {"trial-00000-seed-1", "trial-00002-seed-1"}


@pytest.mark.parametrize(("kept", "best"), [(["wide", "deep"], "deep"), (["wide"], "wide"), ([], "base")])
def test_the_best_of_a_climb_is_what_it_has_come_to(tmp_path: Path, kept: list[str], best: str) -> None:
    for number, (name, bits) in enumerate(
        {"base": 1.5, "wide": 1.4, "deep": 1.3, "deep-2": 1.25, "lucky": 1.2}.items()
    ):
        write_arm(tmp_path, name, {1: bits, 2: bits}, recipe={"model.n_layer": number + 1})
    outcomes = {name: "kept" if name in kept else "rolled back" for name in ("wide", "deep")}
    decisions = [
        {**_decision(name, outcome, -0.1), "arm": name, "against": "base"} for name, outcome in outcomes.items()
    ]
    question = Question("climb", "up", {}, {"decisions": decisions, "ended": "", "confirmation": None})
    material = material_of(tmp_path, question=question)
    assert material.best.name == best


def test_a_search_in_which_nothing_is_complete_is_told_too(tmp_path: Path) -> None:
    write_run(tmp_path, "trial-00003-seed-1", 1.41)
    empty = {**SEARCH, "best": None, "history": [], "slices": {}, "parallel": [], "importance": {}, "trends": [],
             "confirmation": None}  # fmt: skip
    document, _ = report(material_of(tmp_path, question=Question("search", "looking", {}, empty)))
    assert "No trial is complete yet" in " ".join(Page(page.html(document)).text)


def _decision(name: str, outcome: str, difference: float | None) -> dict[str, Any]:
    low, high = (None, None) if difference is None else (difference - 0.02, difference + 0.02)
    return {"name": name, "outcome": outcome, "reason": f"because {name}", "arm": "", "against": "", "seeds": 3,
            "difference": difference, "low": low, "high": high, "p": 0.01, "cost": 1.5, "margin": 0.0, "round": 1}  # fmt: skip


def test_a_climb_shows_change_reason_result_and_decision(tmp_path: Path) -> None:
    write_run(tmp_path, "base-seed1", 1.5)
    summary = {"n": 3, "failed": 0, "mean": 1.4, "sd": 0.01, "low": 1.3, "high": 1.5, "level": 0.05}
    verdict = {"verdict": "better", "difference": -0.1, "low": -0.12, "high": -0.08}
    standing = {
        "version": 1, "arms": {}, "ended": "all changes tried",
        "decisions": [_decision("swiglu", "kept", -0.1), _decision("deeper", "rolled back", 0.02),
                      _decision("huge", "refused", None)],
        "confirmation": {"seeds": [20001], "final": summary, "base": summary, "verdict": verdict},
        "ablation": [{"change": "swiglu", "told": "needed", "without": summary, "verdict": verdict},
                     {"change": "x", "refused": "no"}],
        "held_out": {"final": summary, "base": summary},
    }  # fmt: skip
    step = {"name": "swiglu", "reason": "gates help", "changes": {"model.mlp.kind": "swiglu"}}
    asked = {"climb": {"recipe": "default", "step": [step]}, "base": {}}
    document, _ = report(material_of(tmp_path, question=Question("climb", "up", asked, standing)))
    text = " ".join(Page(page.html(document)).text)
    for words in (
        "1 of 3 changes were kept: swiglu",
        "gates help",
        "model.mlp.kind = swiglu",
        "rolled back",
        "because huge",
        "needed",
    ):
        assert words in text
    assert "climb-steps" in {figure.name for figure in document.figures}


def test_what_lies_beyond_the_frame_of_a_ladder_is_told() -> None:
    small = [_decision(f"small {number}", "rolled back", 0.02) for number in range(4)]
    drawn = climb_figure([_decision("large", "kept", -1.1), *small])
    assert drawn is not None and "-1.100" in drawn.svg
    within = climb_figure([_decision("as small", "kept", -0.03), *small])
    assert within is not None and "-0.030" not in within.svg


def test_two_tables_in_a_row_stay_two_in_markdown() -> None:
    tables = [Table(["a", "b"], [["1", "2"], ["3", "4"]], frozenset({1})), Table(["c"], [["5"]])]
    told = page.markdown(Document("t", "", (), [Section("s", tables)]), "figures")
    assert "| a | b |\n|---|---:|\n| 1 | 2 |\n| 3 | 4 |\n\n| c |\n|---|\n| 5 |\n" in told


def test_only_reports_are_overwritten(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "a", 1.5)
    document, _ = report(material_of(tmp_path / "runs"))
    page.write_html(document, tmp_path / "r.html")
    page.write_html(document, tmp_path / "r.html")
    (tmp_path / "mine.html").write_text("<!doctype html>mine", "utf-8")
    with pytest.raises(UserError, match="is no report"):
        page.write_html(document, tmp_path / "mine.html")
    (tmp_path / "r-figures").mkdir()
    (tmp_path / "r-figures" / "photo.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds no report's figures"):
        page.write_markdown(document, tmp_path / "r.md")
    assert not (tmp_path / "r.md").exists()
    assert (tmp_path / "mine.html").read_text("utf-8") == "<!doctype html>mine"
    for wrong in (tmp_path, tmp_path / "nowhere" / "r.html"):
        with pytest.raises(UserError, match="--out"):
            page.write_html(document, wrong)


def test_fifty_runs_stay_small(tmp_path: Path) -> None:
    for number in range(25):
        write_arm(
            tmp_path,
            f"arm{chr(97 + number)}",
            {1: 1.5, 2: 1.6},
            recipe={"optimizer.lr": 0.001 * (number + 1)},
            per_step={"flops": 6e9 * (1 + number % 3)},
            steps=300,
        )
    document, found = report(material_of(tmp_path))
    assert len(page.html(document).encode()) < 2_500_000
    assert len(found) >= 1


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, one in inner for deeper in _paths(one, (*path, key)))][:400]


def _changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[path[0]] = _changed(copy[path[0]], path[1:], new)
    return copy


STRANGE = st.sampled_from([None, "x", -1, 1e300, [], {}, [None], {"a": 1}, True, ""])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_told_and_never_breaks_the_page(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    score = {"value": 0.3, "standard_error": 0.01, "low": 0.2, "high": 0.4, "chance": 0.25, "verdict": "at chance"}
    task = {"task": "piqa", "metric": "acc", "items": 10, "of": 20, "scores": {"acc": score}}
    run = write_run(
        folder, "a", result={"samples": [{"prompt": "p", "text": "t"}], "tasks": [task], "references": {"xz": 1.0}}
    )
    file = data.draw(st.sampled_from([run.result, run.receipt, run.plan]))
    table = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(_changed(table, data.draw(st.sampled_from(_paths(table))), data.draw(STRANGE))), "utf-8")
    try:
        material = material_of(folder, question=Question("run", "a"))
    except UserError as error:
        assert "\n" not in str(error)
        return
    told = [sections.asked, sections.cost, sections.receipts, sections.samples, sections.tasks, sections.network,
            sections.held_out, sections.checkpoints, sections.remarks]  # fmt: skip
    shown = [section for make in told if (section := make(material)) is not None]
    shown += [*ladder.of_runs(material), Section("", list(ladder.headline(material)))]
    page.html(Document("a", "", (), shown))
    page.markdown(Document("a", "", (), [one for one in shown if one.title != "Network"]), "figures")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_findings_are_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder, "trial-00003-seed-1", 1.41)
    kept = {key: value for key, value in SEARCH.items() if key not in ("history", "slices", "importance")}
    small = {**kept, "parallel": SEARCH["parallel"][:2]}
    found = _changed(small, data.draw(st.sampled_from(_paths(small))), data.draw(STRANGE))
    if not isinstance(found, dict):
        return
    try:
        report(material_of(folder, question=Question("search", "looking", {}, found)))
    except UserError as error:
        assert "\n" not in str(error)
