"""What was tried, what came of it, and what was decided: of runs, of a climb, of a search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from farthing import config
from farthing.compare.comparison import Compared, Comparison, say
from farthing.report import wording
from farthing.report.blocks import Block, Cell, Listing, Paragraph, Picture, Section, Table
from farthing.report.curve_figures import UNITS, final_figure
from farthing.report.material import Material
from farthing.report.search_figures import (
    climb_figure,
    history_figure,
    importance_figure,
    parallel_figure,
    slices_figure,
)

_LEAD = 6
"""verdicts of a kind that the lead tells"""
_TOP = 15
"""trials of a search that are shown one by one"""


def of_runs(material: Material) -> Iterator[Section]:
    """Arms against the baseline."""
    compared = material.compared
    if compared is None:
        if material.why_not:
            apart = Paragraph("Each by itself, since they are not of one kind.", "quiet")
            rows = [
                [run.name, wording.fixed(_score(run.validation, material.by)), run.status]
                for arm in material.arms
                for run in arm.runs
            ]
            head = ["run", UNITS[material.by], "status"]
            yield Section("Results", [apart, Table(head, rows, frozenset({1}))])
        return
    if len(compared.arms) == 1:
        yield Section("Result", list(_alone(material, compared)))
        return
    blocks: list[Block] = [_table(compared)]
    if (figure := final_figure(compared)) is not None:
        blocks.append(Picture(figure))
    if len(compared.arms) > _LEAD:  # otherwise the lead has them all
        blocks.append(Listing([compared.words(one) for one in compared.arms if one.verdict is not None]))
    blocks.append(Paragraph(_how(compared), "quiet"))
    yield Section("Comparison", blocks)


def _score(validation: Mapping[str, Any], by: str) -> float | None:
    value = validation.get(by)
    return float(value) if isinstance(value, int | float) else None


def _alone(material: Material, compared: Comparison) -> Iterator[Block]:
    """One arm: its readings, beside what others make of the same text."""
    one = compared.baseline
    head = ["run", "seed", "bits per byte", "nats per token", "perplexity", "nats per character", "status"]
    rows = []
    for run in one.arm.runs:
        readings = [_score(run.validation, name) for name in ("bits_per_byte", "nats_per_token")]
        others = [_score(run.validation, "perplexity"), _score(run.validation, "nats_per_character")]
        shown = [*map(wording.fixed, readings), wording.fixed(others[0], 2), wording.fixed(others[1])]
        rows.append([run.name, str(run.seed), *shown, run.why or run.status])
    yield Table(head, rows, frozenset({1, 2, 3, 4, 5}))
    summary = one.summary
    if summary.sd is not None:
        ends = wording.interval(summary.low, summary.high)
        yield Paragraph(
            f"Mean {wording.fixed(summary.mean)} {UNITS[material.by]} over {summary.n} seeds, standard deviation "
            f"{wording.fixed(summary.sd)}, {1 - summary.level:.0%} interval of the mean {ends}."
        )
        if (figure := final_figure(compared)) is not None:
            yield Picture(figure)
    else:
        yield Paragraph(
            "One run: how far another seed would lie from it is not known (farthing noise measures it).", "quiet"
        )
    yield from _references(material)


def _references(material: Material) -> Iterator[Block]:
    """The same text by other means."""
    run = material.arms[0].runs[0]
    known = material.facts[run.path].result.get("references") or {}
    ours = _score(run.validation, "bits_per_byte")
    rows = [(name, known[name]) for name in ("xz", "zstd", "unigram") if isinstance(known.get(name), int | float)]
    if not rows or ours is None:
        return
    ordered = sorted([*rows, (run.name, ours)], key=lambda row: row[1])
    yield Table(
        ["the same text by", "bits per byte"],
        [[name, wording.fixed(bits)] for name, bits in ordered],
        frozenset({1}),
        "xz and zstd are compressors that have read nothing else; unigram knows token frequencies and nothing more.",
    )


def _table(compared: Comparison) -> Table:
    head = ["arm", "changes made", UNITS[compared.by], "n", "difference\nand interval", "verdict", "FLOPs"]
    return Table(head, [_row(one) for one in compared.arms], frozenset({2, 3, 4, 6}))


def _row(one: Compared) -> list[str | Cell]:
    summary, verdict = one.summary, one.verdict
    n = f"{summary.n}" + (f" (+{summary.failed} failed)" if summary.failed else "")
    if verdict is None:
        rest: list[str | Cell] = [Cell(wording.NONE, "quiet"), Cell("baseline", "quiet"), "×1"]
        return [one.arm.name, Cell("the baseline", "quiet"), wording.mean_with_interval(summary), n, *rest]
    difference = wording.signed(verdict.difference)
    if verdict.low is not None:
        difference += f"\n{wording.interval(verdict.low, verdict.high, sign=True)}"
    flops = one.cost.get("flops")
    cost = wording.NONE if flops is None else f"×{flops:.3g}"
    shown = wording.verdict(verdict.verdict)
    return [
        one.arm.name, wording.changes(one.changes), wording.mean_with_interval(summary), n, difference, shown, cost,
    ]  # fmt: skip


def _how(compared: Comparison) -> str:
    methods = ", ".join(dict.fromkeys(one.verdict.method for one in compared.arms if one.verdict is not None))
    return (
        f"Lower is better. ± is half the {1 - compared.level:.0%} t interval of the mean. A verdict holds at a level of "
        f"{compared.level:g} over all arms together (Holm's correction; {methods}); without one, nothing can be told."
    )


def of_climb(material: Material) -> Iterator[Section]:
    """Changes made, the reason for each, what came of it, and what was decided."""
    standing, asked = material.question.found, material.question.asked
    climb = asked.get("climb")
    listed = climb.get("step", []) if isinstance(climb, dict) else []
    steps = {step["name"]: step for step in listed if isinstance(step, dict) and "name" in step}
    decisions = standing.get("decisions", [])
    rows: list[list[str | Cell]] = []
    for number, one in enumerate(decisions, start=1):
        step = steps.get(one["name"], {})
        made = "\n".join(f"{path} = {wording.setting(value)}" for path, value in _flat(step.get("changes", {})))
        difference = wording.signed(one["difference"])
        if one["low"] is not None:
            difference += f"\n{wording.interval(one['low'], one['high'], sign=True)}"
        cost = wording.NONE if one["cost"] is None else f"×{one['cost']:.3g}"
        rows.append(
            [
                f"{number}. {one['name']}",
                Cell(made or wording.NONE, "code"),
                str(step.get("reason") or wording.NONE),
                difference,
                str(one["seeds"]),
                cost,
                wording.verdict(one["outcome"]),
                str(one["reason"]),
            ]
        )
    head = ["change", "what is set", "why", "result\nand interval", "seeds", "cost", "decision", "because"]
    blocks: list[Block] = (
        [Table(head, rows, frozenset({3, 4, 5}))] if rows else [Paragraph("No change has been decided yet.")]
    )
    if (figure := climb_figure(decisions)) is not None:
        blocks.append(Picture(figure))
    ended = standing.get("ended") or "the climb is not over; the same command goes on"
    blocks.append(
        Paragraph(f"Results are bits per byte against the best until then, below zero better. End: {ended}.", "quiet")
    )
    yield Section("The ladder", blocks)
    if (confirmed := list(_confirmed(standing))) != []:
        yield Section("Confirmation", confirmed)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _confirmed(standing: Mapping[str, Any]) -> Iterator[Block]:
    """The final recipe over fresh seeds, and without each of its changes."""
    proof = standing.get("confirmation")
    if proof:
        rows = [[role, *_summary(proof[role])] for role in ("final", "base")]
        held_out = standing.get("held_out") or {}
        head = ["recipe", "bits per byte", "sd", "n", "95 % interval"]
        if held_out:
            head.append("held-out text")
            rows = [[*row, wording.fixed((held_out.get(row[0]) or {}).get("mean"))] for row in rows]
        verdict = proof["verdict"]
        word = f"Final against base over fresh seeds: {verdict['verdict']}"
        if verdict["difference"] is not None:
            word += f", {wording.signed(verdict['difference'])} ({wording.interval(verdict['low'], verdict['high'], sign=True)})"
        yield Paragraph(f"{word}.", wording.TONES.get(verdict["verdict"], ""))
        yield Table(head, rows, frozenset({1, 2, 3, 4, 5}))
    if ablation := standing.get("ablation"):
        rows_without: list[list[str | Cell]] = []
        for one in ablation:
            if "refused" in one:
                rows_without.append(
                    [one["change"], wording.NONE, wording.NONE, wording.verdict("refused"), one["refused"]]
                )
                continue
            verdict = one["verdict"]
            rows_without.append(
                [
                    one["change"],
                    wording.fixed(one["without"]["mean"]),
                    wording.signed(verdict["difference"]),
                    wording.verdict(one["told"]),
                    wording.interval(verdict["low"], verdict["high"], sign=True),
                ]
            )
        head = ["without", "bits per byte", "difference", "told", "interval"]
        yield Table(head, rows_without, frozenset({1, 2, 4}), "Each kept change taken away again, alone.")


def _summary(summary: Mapping[str, Any]) -> list[str]:
    ends = wording.interval(summary["low"], summary["high"])
    return [wording.fixed(summary["mean"]), wording.fixed(summary["sd"]), str(summary["n"]), ends]


def of_search(material: Material) -> Iterator[Section]:
    """What a search tried, what mattered, and how sure its winner is."""
    found = material.question.found
    yield Section("Trials", list(_trials(found)))
    mattered = list(_mattered(found))
    if mattered:
        yield Section("What mattered", mattered)
    if found.get("confirmation"):
        note = (found.get("notes") or {}).get("confirmation")
        yield Section("Confirmation", list(_of_fresh_seeds(found["confirmation"], note)))


def _trials(found: Mapping[str, Any]) -> Iterator[Block]:
    counts = ", ".join(f"{found.get(name, 0)} {name}" for name in ("complete", "pruned", "failed", "running"))
    ended = found.get("ended") or "not over"
    yield Paragraph(
        f"{found.get('trials', 0)} trials: {counts}; {found.get('refused', 0)} candidates refused. End: {ended}."
    )
    if found.get("left_out"):
        because = found.get("left_out_because") or "the search was changed"
        yield Paragraph(f"Left out, since they do not fit what was asked last: {found['left_out']} trials; {because}.")
    if (figure := history_figure(found.get("history", []))) is not None:
        yield Picture(figure)
    trials = sorted(found.get("parallel", []), key=lambda one: one["score"])
    paths = list(dict.fromkeys(path for one in trials for path in one if path not in ("trial", "score")))
    rows: list[Sequence[str]] = [
        [
            one["trial"],
            wording.fixed(one["score"]),
            *(wording.setting(one[path]) if path in one else wording.NONE for path in paths),
        ]
        for one in trials[:_TOP]
    ]
    if rows:
        caption = f"The best {len(rows)} of {len(trials)} complete trials." if len(trials) > len(rows) else ""
        yield Table(["trial", "bits per byte", *paths], rows, frozenset(range(1, len(paths) + 2)), caption)
    if refusals := found.get("refusals"):
        shown = [[reason, str(count)] for reason, count in refusals.items()]
        yield Table(["refused because of", "candidates"], shown, frozenset({1}))
    if failures := found.get("failures"):
        yield Listing([f"{one['trial']} failed: {one['reason']}" for one in failures])


def _mattered(found: Mapping[str, Any]) -> Iterator[Block]:
    if trends := found.get("trends"):
        yield Listing([one["words"] for one in trends])
        if note := (found.get("notes") or {}).get("trends"):
            yield Paragraph(f"{note}.", "quiet")
    figures = (
        importance_figure(found.get("importance", {})),
        slices_figure(found.get("slices", {})),
        parallel_figure(found.get("parallel", [])),
    )
    yield from (Picture(figure) for figure in figures if figure is not None)


def _of_fresh_seeds(confirmed: Mapping[str, Any], note: str | None) -> Iterator[Block]:
    rows: list[list[str | Cell]] = []
    looked = any(arm.get("held_out") for arm in confirmed["arms"].values())
    for name, arm in confirmed["arms"].items():
        verdict = confirmed["verdicts"].get(name)
        told = Cell(wording.NONE, "quiet") if verdict is None else wording.verdict(verdict["verdict"])
        difference = wording.NONE if verdict is None else wording.signed(verdict["difference"])
        rows.append([name, *_summary(arm), difference, told])
        if looked:
            rows[-1].append(wording.fixed((arm.get("held_out") or {}).get("mean")))
    head = ["trial", "bits per byte", "sd", "n", "95 % interval", "against the base", "verdict"]
    head += ["held-out text"] if looked else []
    caption = (
        "Fresh seeds, so that the winner is not the luckiest of the trials: their scores in the search are not in this."
    )
    caption += f" But {note}." if note else ""
    yield Table(head, rows, frozenset({1, 2, 3, 4, 5, 7} if looked else {1, 2, 3, 4, 5}), caption)


def headline(material: Material) -> Iterator[Block]:
    """What a reader should know who reads nothing else."""
    compared, found = material.compared, material.question.found
    if material.question.kind == "search":
        best = found.get("best")
        if best is None:
            yield Paragraph("No trial is complete yet.")
            return
        chosen = ", ".join(f"{path} = {wording.setting(value)}" for path, value in best["parameters"].items())
        again = best.get("confirmed_bits_per_byte")
        sure = "" if again is None else f"; {wording.fixed(again)} with fresh seeds"
        verdict = ((found.get("confirmation") or {}).get("verdicts") or {}).get(best["trial"])
        if verdict is not None:
            sure += f", {verdict['verdict']} against the base ({wording.signed(verdict['difference'])})"
        tone = "flat" if verdict is None else wording.TONES[verdict["verdict"]]
        score = wording.fixed(best["bits_per_byte"])
        yield Paragraph(f"Best trial: {best['trial']}, {score} bits per byte{sure}. It has {chosen}.", tone)
    elif material.question.kind == "climb":
        kept = [one["name"] for one in found.get("decisions", []) if one["outcome"] == "kept"]
        tried = len(found.get("decisions", []))
        what = f": {', '.join(kept)}" if kept else ""
        yield Paragraph(f"{len(kept)} of {tried} changes were kept{what}.", "good" if kept else "flat")
        if proof := found.get("confirmation"):
            verdict = proof["verdict"]
            told = f"{verdict['verdict']} ({wording.signed(verdict['difference'])} bits per byte)"
            yield Paragraph(
                f"Over fresh seeds, the final recipe against the base: {told}.", wording.TONES[verdict["verdict"]]
            )
    elif material.why_not:
        yield Paragraph(f"These runs cannot be compared: {material.why_not}", "flat")
    elif compared is not None and len(compared.arms) > 1:
        for word in ("better", "worse", "cannot tell"):
            arms = [one for one in compared.arms if one.verdict is not None and one.verdict.verdict == word]
            for one in arms[:_LEAD]:
                assert one.verdict is not None
                yield Paragraph(f"{one.arm.name}: {say(one.verdict, one.cost, by=compared.by)}", wording.TONES[word])
            if len(arms) > _LEAD:
                yield Paragraph(f"and {len(arms) - _LEAD} more arms: {word}", wording.TONES[word])
    else:
        yield from _in_a_line(material)


def _in_a_line(material: Material) -> Iterator[Block]:
    """What a single arm came to."""
    arm = material.arms[0]
    mean, run = material.mean(arm), arm.runs[0]
    if mean is None:
        yield Paragraph(f"No score: {run.why or 'none of its runs is finished'}.", "bad")
        return
    runs = len(arm.finished)
    who = "" if runs == 1 else f", the mean of {runs} seeds"
    spent = ", ".join(f"{wording.spent(name, arm.spent().get(name))} {name}" for name in ("steps", "tokens"))
    seconds = wording.spent("seconds", arm.spent().get("seconds"))
    yield Paragraph(
        f"{wording.fixed(mean)} {UNITS[material.by]} on the validation text{who}; {run.parameters:,} parameters, {spent}, "
        f"{seconds} of training{'' if runs == 1 else ' each'}.",
        "good",
    )


def differing(material: Material) -> list[str]:
    """Paths of the settings in which any two arms differ, the seed apart, in the order of the recipe."""
    first = material.arms[0].recipe
    paths = {change.path for arm in material.arms[1:] for change in config.diff(first, arm.recipe)} - {"seed"}
    every = dict.fromkeys(path for arm in material.arms for path in config.flatten(arm.recipe))
    return [path for path in every if path in paths]
