"""The parts of a report that every kind has: asked, curves, settings, network, tokenizer, held-out text, cost, receipts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from farthing import config
from farthing.compare.arms import Arm
from farthing.compare.prediction import points_of
from farthing.compare.runs import RunRecord
from farthing.compare.scaling import fit
from farthing.compare.statistics import summarise
from farthing.errors import UserError
from farthing.recipe.model import Model
from farthing.report import wording
from farthing.report.architecture import draw
from farthing.report.blocks import Block, Cell, Listing, Paragraph, Picture, Sample, Samples, Section, Table
from farthing.report.course import Story, read_rates
from farthing.report.curve_figures import UNITS, loss_figure, one_run_figure, rates_figure, scaling_figure, score_figure
from farthing.report.figures import Figure
from farthing.report.ladder import differing
from farthing.report.material import Material
from farthing.report.search_figures import frequency_figure
from farthing.rundir import RunDir
from farthing.sinks.legible import duration, quantity

Row = list[str | Cell]

_COLUMNS = 8
_LONG = 10
_SAMPLES = 12
_LETTERS = 1500
_CHECKPOINTS = 60
_SPENT = ("steps", "tokens", "epochs", "flops", "seconds", "money")


def asked(material: Material) -> Section:
    """The recipe and its budget, as far as they are not the usual."""
    arm = material.arms[0]
    settings = config.flatten(arm.recipe)
    limits = [(name, value) for name, value in settings.items() if name.startswith("budget.") and value is not None]
    budget = ", ".join(f"{name.removeprefix('budget.')} {wording.setting(value)}" for name, value in limits)
    who = "" if len(material.arms) == 1 else f" of {arm.name}"
    blocks: list[Block] = [Paragraph(f"The budget{who}: {budget}.")]
    if material.question.asked:
        rows: list[Row] = [
            [path, Cell(wording.setting(value), "code")] for path, value in _leaves(material.question.asked)
        ]
        blocks.append(Table([f"in the {material.question.kind}", "asked"], rows))
    if material.defaults is not None and not material.question.asked:
        changes = [one for one in config.diff(material.defaults, arm.recipe) if not one.path.startswith("budget.")]
        rows = [
            [one.path, Cell(wording.setting(one.new), "code"), Cell(wording.setting(one.old), "code")]
            for one in changes
        ]
        caption = f"What the recipe{who} asks for where it is not the default of that setting."
        blocks.append(_folded(Table(["setting", "asked", "default"], rows, caption=caption)))
    return Section("What was asked", blocks)


def _folded(table: Table) -> Table:
    """A long, narrow table as one of half the length."""
    if len(table.rows) <= _LONG:
        return table
    half = (len(table.rows) + 1) // 2
    right = [*table.rows[half:], *([[""] * len(table.head)] * (2 * half - len(table.rows)))]
    rows = [[*first, *second] for first, second in zip(table.rows[:half], right, strict=True)]
    return Table([*table.head, *table.head], rows, caption=table.caption)


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if key == "step":
            continue  # a climb's changes have their own table
        if isinstance(value, Mapping) and not prefix.startswith("space."):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def curves(material: Material) -> Section | None:
    """How all runs went."""
    named = {arm.name: material.stories_of(arm) for arm in material.ranked}
    alone = [story for several in named.values() for story in several]
    figures: list[Figure | None] = []
    if len(alone) == 1:
        figures = [one_run_figure(alone[0]), rates_figure(read_rates(alone[0].run, points=material.points_a_run))]
    else:
        figures = [
            loss_figure(named, level=material.level, points_a_run=material.points_a_run),
            score_figure(named, by=material.by, level=material.level, points_a_run=material.points_a_run),
        ]
        if len(material.arms) == 1:
            figures.append(one_run_figure(alone[0]))
    blocks: list[Block] = [Picture(figure) for figure in figures if figure is not None]
    blocks += _happenings(alone)
    return Section("Curves", blocks) if blocks else None


def _happenings(stories: Sequence[Story]) -> list[Block]:
    """What the runs told on the way."""
    lines: dict[str, list[str]] = {}
    for story in stories:
        for notice in story.notices:
            step = "" if notice.get("step") is None else f"step {notice['step']}: "
            lines.setdefault(f"{step}{notice['message']}", []).append(story.run.name)
    shown = [
        f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}: {line}" for line, names in lines.items()
    ]
    if len(shown) > 20:
        shown = [*shown[:20], f"and {len(shown) - 20} more notices"]
    return [Listing(shown)] if shown else []


def scaling(material: Material) -> Section | None:
    """What a larger budget would buy, where the runs tell."""
    if material.question.kind != "runs" or material.compared is None:
        return None
    try:
        points, notes = points_of(material.arms)
        found = fit(points, notes=notes)
    except UserError:
        return None
    told = found.as_dict()
    ten = told["ten_times"]
    bits = ten["bits_per_byte"]
    budget, ends = wording.spent("flops", ten["flops"]), wording.interval(bits["low"], bits["high"])
    words = (
        f"Fitted in {told['law']} over {told['runs']} recipes. Ten times the largest budget ({budget} FLOPs) would come to "
        f"{wording.fixed(bits['value'])} bits per byte ({ends})"
    )
    if ten["parameters"] is not None:
        words += f", at about {quantity(ten['parameters']['value'])} parameters"
    blocks: list[Block] = [Paragraph(f"{words}."), Picture(scaling_figure(found))]
    if told["notes"]:
        blocks.append(Listing(told["notes"]))
    return Section("Scaling", blocks)


def settings(material: Material) -> Section | None:
    """The settings in which the arms differ, and no others."""
    paths = differing(material)
    if not paths:
        return None
    flat = {arm.name: config.flatten(arm.recipe) for arm in material.arms}

    def cell(arm: str, path: str) -> Cell:
        return Cell(wording.setting(flat[arm][path]), "code") if path in flat[arm] else Cell(wording.NONE, "quiet")

    if len(material.arms) <= min(_COLUMNS, max(len(paths), 3)):
        rows = [[Cell(path, "code"), *(cell(name, path) for name in flat)] for path in paths]
        return Section(
            "Settings", [Table(["setting", *flat], rows, caption="Only what differs; – is no setting of that kind.")]
        )
    by_arm: list[Row] = [[name, *(cell(name, path) for path in paths)] for name in flat]
    return Section(
        "Settings", [Table(["arm", *paths], by_arm, caption="Only what differs; – is no setting of that kind.")]
    )


def network(material: Material) -> Section | None:
    """The architecture of the first arm, and of the best where that is another."""
    drawn: dict[str, tuple[Arm, Figure]] = {}
    for arm in (material.arms[0], material.best):
        model = Model.model_validate(arm.recipe.model_dump(include={"model"})["model"])
        plan = material.facts[arm.runs[0].path].plan
        by_part, vocabulary = plan.get("parameters_by_part"), plan.get("vocab_size")
        key = f"{model.model_dump_json(exclude={'init'})} {vocabulary}"
        if not isinstance(by_part, dict) or not isinstance(vocabulary, int) or key in drawn:
            continue
        figure = draw(model, vocabulary, by_part)
        if drawn:
            figure = Figure("architecture-best", figure.svg, figure.caption)
        drawn[key] = (arm, figure)
    if not drawn:
        return None
    blocks: list[Block] = []
    for arm, figure in drawn.values():
        if len(material.arms) > 1:
            blocks.append(Paragraph(arm.name, "quiet"))
        blocks.append(Picture(figure))
    return Section("Network", blocks)


def tokenizer(material: Material) -> Section | None:
    """What the tokenizers make of the text."""
    blocks: list[Block] = []
    known = [one for one in material.tokens if one.report is not None]
    if known:
        head = ["", *(_names(one.names) for one in known)]
        reports = [one.report for one in known if one.report is not None]
        rows = [[label, *(show(report) for report in reports)] for label, show in _TOKENIZER.items()]
        blocks.append(Table(head, rows, frozenset(range(1, len(head))), "Measured on the validation text."))
        curve = {_names(one.names): one.report["frequency_curve"] for one in known if one.report is not None}
        if (figure := frequency_figure(curve)) is not None:
            blocks.append(Picture(figure))
        for one in known:
            assert one.report is not None
            most, least = _uses(one.report["most_used"]), _uses(one.report["least_used"])
            whose = "" if len(known) == 1 else f" ({_names(one.names)})"
            blocks.append(Listing([f"most used{whose}: {most}", f"least used{whose}: {least}"]))
    blocks += [Paragraph(f"{_names(one.names)}: {one.why}", "quiet") for one in material.tokens if one.report is None]
    return Section("Tokenizer", blocks) if blocks else None


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _uses(uses: Sequence[Mapping[str, Any]]) -> str:
    """Tokens side by side; a blank within one is made visible."""
    return "  ".join(str(use["text"]).replace(" ", "␣") for use in uses[:20])


def _length(percentile: int) -> Callable[[Mapping[str, Any]], str]:
    return lambda report: f"{dict(report['length_percentiles'])[percentile]:,}"


_TOKENIZER: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "vocabulary": lambda report: f"{report['vocab_size']:,}",
    "used by the text": lambda report: f"{report['tokens_seen']:,} ({report['coverage']:.1%})",
    "bytes per token": lambda report: f"{report['bytes_per_token']:.3f}",
    "characters per token": lambda report: f"{report['characters_per_token']:.3f}",
    "unknown": lambda report: f"{report['unknown_rate']:.2%}",
    "unigram bits per byte": lambda report: f"{report['unigram_bits_per_byte']:.3f}",
    "tokens of a document, median": _length(50),
    "of the longest 5 % at least": _length(95),
    "of the longest": _length(100),
    "share of the model's parameters": lambda report: wording.share(report["parameter_share"]),
    "text that does not survive": lambda report: report["lossy"] or "none",
}


def held_out(material: Material) -> Section | None:
    """Scores on the text that nothing chose by, beside those of the same checkpoints on the validation text."""
    rows = [row for arm in material.arms for row in _held_out_rows(material, arm)]
    if not rows:
        return None
    unit = UNITS[material.by]
    head = ["arm", "seed", "seeds scored", "checkpoint", "parameters", f"validation,\n{unit}", f"held out,\n{unit}"]
    caption = (
        "Scored once, on text that neither training nor any choice has seen (docs/compare.md). The checkpoint is that of the "
        "step at which both scores were taken."
    )
    head += ["perplexity,\nheld out", "bytes"]
    return Section("Held-out text", [Table(head, rows, frozenset(range(1, len(head))), caption)])


def _held_out_rows(material: Material, arm: Arm) -> Iterator[Row]:
    """Of an arm's runs those that have been scored, a row each, after their mean where there are several."""
    runs = [run for run in arm.finished if run.held_out is not None]
    seeds, size = f"{len(runs)} of {len(arm.runs)}", f"{arm.runs[0].parameters:,}"
    readings = [(_validation_at(material, run), (run.held_out or {}).get(material.by)) for run in runs]
    if len(runs) > 1:
        means = [
            summarise(
                dict(enumerate(one if isinstance(one, int | float) else None for one in column)), level=material.level
            )
            for column in zip(*readings, strict=True)
        ]
        yield [arm.name, "mean", seeds, "", size, *map(wording.mean_with_interval, means), "", ""]
    for run, scores in zip(runs, readings, strict=True):
        kept, step = run.held_out or {}, material.facts[run.path].held_out_step
        who = ["", str(run.seed), "", ""] if len(runs) > 1 else [arm.name, str(run.seed), seeds, size]
        where = wording.NONE if step is None else f"step {step:,}"
        rest = [wording.fixed(kept.get("perplexity"), 2), f"{kept.get('bytes', 0):,}"]
        yield [*who[:3], where, who[3], *map(wording.fixed, scores), *rest]


def _validation_at(material: Material, run: RunRecord) -> Any:
    """The validation score of the checkpoint that was scored on the held-out text."""
    step = material.facts[run.path].held_out_step
    if step is None or step == run.spent.get("steps"):
        return run.validation.get(material.by)
    scored = (event for event in material.stories[run.path].evaluations if event["step"] == step)
    return next((event["validation"].get(material.by) for event in scored), None)


def checkpoints(material: Material) -> Section | None:
    """Every evaluation and checkpoint of one run of the best arm, the first that held-out text was scored with if any was."""
    stories = material.stories_of(material.best)
    if not stories:
        return None
    story = next((one for one in stories if material.facts[one.run.path].held_out_step is not None), stories[0])
    kept, scored = RunDir(story.run.path).checkpoint_steps(), material.facts[story.run.path].held_out_step
    evaluated = {event["step"]: event for event in story.evaluations[-_CHECKPOINTS:]}
    best = max((event["step"] for event in story.evaluations if event.get("best")), default=None)
    rows: list[Row] = []
    for step in sorted({*evaluated, *kept, *([] if scored is None else [scored])}):
        event = evaluated.get(step)
        tokens = wording.NONE if event is None else quantity(event["spent"]["tokens"])
        reading = {} if event is None else event["validation"]
        scores = [wording.fixed(reading.get(name)) for name in ("bits_per_byte", "nats_per_token")]
        test = (story.run.held_out or {}).get("bits_per_byte") if step == scored else None
        scores += [] if scored is None else [wording.fixed(test)]
        words = ["lowest" if step == best else "", "kept" if step in kept else ""]
        rows.append([f"{step:,}", tokens, *scores, *words])
    if len(rows) < 2 and scored is None:
        return None
    caption = f"Validation on the way of {story.run.name}"
    caption += "." if scored is None else ", and the one score that was taken on its held-out text."
    head = [
        "step",
        "tokens",
        "bits per byte",
        "nats per token",
        *([] if scored is None else ["held out,\nbits per byte"]),
    ]
    return Section("Checkpoints", [Table([*head, "", "checkpoint"], rows, frozenset(range(len(head))), caption)])


def tasks(material: Material) -> Section | None:
    """What the models were asked."""
    rows: list[list[str | Cell]] = []
    for run in material.runs:
        for one in material.facts[run.path].tasks:
            score = one["scores"].get(one["metric"]) or {}
            verdict = score.get("verdict")
            rows.append(
                [
                    run.name,
                    one["task"],
                    one["metric"],
                    wording.fixed(score.get("value")),
                    wording.interval(score.get("low"), score.get("high")),
                    wording.fixed(score.get("chance")),
                    f"{one['items']:,} of {one['of']:,}",
                    verdict or wording.NONE,
                ]
            )
    if not rows:
        return None
    head = ["run", "task", "measure", "score", "95 % interval", "chance", "questions", "verdict"]
    return Section("Tasks", [Table(head, rows, frozenset({3, 4, 5, 6}))])


def samples(material: Material) -> Section | None:
    """What the models write, side by side: the first sample of the first run of each arm."""
    items = []
    for arm in material.ranked[:_SAMPLES]:
        for run in arm.finished[:1]:
            for one in (material.facts[run.path].result.get("samples") or [])[:1]:
                text = str(one["text"])
                cut = text if len(text) <= _LETTERS else f"{text[:_LETTERS]}…"
                items.append(Sample(run.name, str(one["prompt"]), cut))
    return Section("Samples", [Samples(items)]) if items else None


def cost(material: Material) -> Section:
    """What the runs took."""
    head = ["arm", "runs", *_SPENT, "held the machine for"]
    rows, total = [], dict.fromkeys(_SPENT, 0.0)
    for arm in material.arms:
        paid = arm.paid()
        for name in _SPENT:
            total[name] += paid.get(name, 0.0)
        walls = [run.wall_seconds for run in arm.runs if run.wall_seconds is not None]
        wall = duration(sum(walls)) if walls else wording.NONE
        rows.append([arm.name, str(len(arm.runs)), *(wording.spent(name, paid.get(name)) for name in _SPENT), wall])
    if len(rows) > 1:
        count = sum(len(arm.runs) for arm in material.arms)
        walls = [run.wall_seconds for run in material.runs if run.wall_seconds is not None]
        shown = [wording.spent(name, total[name]) for name in _SPENT]
        rows.append(["all", str(count), *shown, duration(sum(walls)) if walls else wording.NONE])
    caption = (
        "All runs of an arm together, failed ones included. Seconds are of training alone. Money is 0 where the recipe names no "
        "price of the machine; energy was not measured."
    )
    return Section("Cost", [Table(head, rows, frozenset(range(1, len(head))), caption)])


def receipts(material: Material) -> Section:
    """What it ran on, and fingerprints of what it ran with."""
    machines: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in material.runs:
        facts = tuple(material.facts[run.path].ran_on.items())
        machines.setdefault(facts, []).append(run.name)
    names = list(dict.fromkeys(name for facts in machines for name, _ in facts))
    head = ["", *(_names(runs) if len(machines) > 1 else "all runs" for runs in machines.values())]
    rows = [[name, *(dict(facts).get(name, wording.NONE) for facts in machines)] for name in names]
    prints: list[Row] = [
        [
            run.name, Cell(str(material.facts[run.path].receipt.get("recipe", ""))[:12], "code"),
            *(Cell(run.texts.get(part, wording.NONE)[:12], "code") for part in ("train", "validation")),
            Cell(run.tokenizer[:12], "code"), str(material.facts[run.path].receipt.get("created", wording.NONE)),
        ]
        for run in material.runs
    ]  # fmt: skip
    columns = ["run", "recipe", "training text", "validation text", "tokenizer", "begun"]
    caption = "The first 12 digits of SHA-256 fingerprints; the runs' receipts have all of them."
    blocks = [Table(head, rows), Table(columns, prints, caption=caption)]
    return Section("Receipts", blocks)


def remarks(material: Material) -> Section | None:
    """What else should be known: notes, and runs that are not shown."""
    lines = [*material.notes, *(f"left out: {one}" for one in material.left_out)]
    return Section("Notes", [Listing(lines)]) if lines else None
