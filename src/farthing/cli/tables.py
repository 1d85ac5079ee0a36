"""What a person reads at the end of a verb: plans, results, scores, machines."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from farthing.api import Planned, Scored
from farthing.cli.listing import print_columns as print_columns
from farthing.cli.listing import write
from farthing.planning.trial import Tried
from farthing.rundir import RunDir
from farthing.sinks.legible import duration, legible, memory, money, quantity
from farthing.sinks.summary import Summary
from farthing.sinks.summary import show as show_summary

Row = tuple[str, str]


def clean(text: str) -> str:
    """Text safe for a terminal, lines kept."""
    return legible(text, encoding=sys.stdout.encoding or "utf-8", lines=True)


def print_rows(title: str, rows: Iterable[Row]) -> None:
    """A titled list of names and values."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row("", clean(name), clean(value))
    write(Text(clean(title), "bold"), table)


def print_notes(notes: Iterable[str]) -> None:
    """What a person should know besides, a line each."""
    for note in notes:
        write(Text(f"note: {clean(note)}", "yellow"))


def print_plan(name: str, planned: Planned) -> None:
    """The plan of a recipe."""
    plan, settings = planned.plan, planned.plan.settings
    parts = [(part, f"{count:,}") for part, count in plan.parameters_by_part.items() if count]
    print_rows(f"{name}: {plan.parameters:,} parameters", parts)
    terms = [(term, _size(size)) for term, size in plan.memory.items() if size]
    print_rows(f"memory: about {_size(plan.memory_bytes)} of the {memory(plan.memory_available)} to be had", terms)
    why = settings.why
    rows = "1 pass" if settings.accumulation == 1 else f"{settings.accumulation} passes"
    threads = f"{settings.threads} thread" + ("" if settings.threads == 1 else "s")
    chosen = [
        ("device", f"{settings.device} ({why['device']})"),
        ("threads", f"{threads} ({why['threads']})"),
        ("precision", f"{settings.precision} ({why['precision']})"),
        ("attention", f"{settings.attention} ({why['attention']})"),
        ("weight gradient", f"{settings.weight_gradient} ({why['weight_gradient']})"),
        ("compile", f"{'on' if settings.compile else 'off'}: {why['compile']}"),
        ("micro-batch", f"{settings.micro_batch} sequences, {rows} a step ({why['micro_batch']})"),
    ]
    if settings.cuda_graphs:
        chosen.append(("CUDA graphs", f"on ({why['cuda_graphs']})"))
    print_rows("chosen for this machine", chosen)
    if plan.trial is not None:
        print_rows(f"tried: {plan.trial.told()}", [_tried(one) for one in plan.trial.tried])
    print_rows("what it takes", _cost_rows(planned))
    print_notes([*plan.warnings, *(fallback.message for fallback in plan.fallbacks)])


def _tried(one: Tried) -> Row:
    kind = ("compiled" if one.compile else "eager") + (", CUDA graphs" if one.cuda_graphs else "")
    name = f"{one.precision}, {one.attention}, {one.weight_gradient}, {kind}, {one.micro_batch} on {one.threads}"
    speed = "" if one.tokens_per_second is None else f"{quantity(one.tokens_per_second)} tokens/s; "
    return name, f"{speed}{one.verdict}{' (taken)' if one.taken else ''}"


def _cost_rows(planned: Planned) -> list[Row]:
    plan = planned.plan
    unknown = "known only when the text can be read"
    epochs = "" if plan.epochs is None else f", {plan.epochs:.3g} epochs of {plan.tokens_per_epoch:,}"
    rows = [
        ("steps", unknown if plan.steps is None else f"{plan.steps:,} (budget.{plan.limited_by} ends it)"),
        ("tokens", unknown if plan.tokens is None else f"{plan.tokens:,}{epochs}"),
        (
            "FLOPs",
            unknown if plan.flops is None else f"{quantity(plan.flops)}, {quantity(plan.flops_per_token)} a token",
        ),
        ("a step", f"{_brief(plan.seconds_per_step)}, {plan.timing}"),
        ("training", unknown if plan.seconds is None else f"about {_brief(plan.seconds)}"),
    ]
    if plan.evaluation_seconds:
        rows.append(("evaluation", f"about {_brief(plan.evaluation_seconds)} more"))
    if plan.money is not None:
        rows.append(("money", f"about {money(plan.money)}"))
    rows.append(("a checkpoint", f"{quantity(plan.checkpoint_bytes)}B of disk"))
    return rows


def print_result(result: Mapping[str, Any]) -> None:
    """The end of a run."""
    samples = result.get("samples") or []
    run = _near(result["run"])
    show_summary(
        Summary(
            run=run,
            status=result["status"],
            validation=result["validation"],
            spent=result["spent"],
            parameters=result["parameters"],
            wall_seconds=result["wall_seconds"],
            startup=result.get("startup") or {},
            references=_scale(result.get("references")),
            sample=samples[0]["prompt"] + samples[0]["text"] if samples else "",
            next_commands=_next_commands(result, run, samples[0]["prompt"] if samples else ""),
        ),
        stream=sys.stdout,
    )


def _next_commands(result: Mapping[str, Any], run: str, prompt: str) -> list[str]:
    path = shlex.quote(run)
    commands = [
        f"farthing sample {path} {shlex.quote(prompt or 'Once upon a time')}",
        f"farthing eval {path} --data FILE",
        "farthing runs" if Path(run).parent == Path("runs") else f"farthing runs --runs {shlex.quote(_folder(run))}",
    ]
    best, last = result.get("best"), result["validation"].get("bits_per_byte")
    better = best and last and best["bits_per_byte"] < last - 0.005
    if best and better and RunDir(Path(run)).checkpoint(best["step"]).is_dir():
        told = f"step {best['step']:,} was better: {best['bits_per_byte']:.4f}"
        commands.insert(0, f"farthing sample {path} --checkpoint best   # {told}")
    return commands


def _folder(run: str) -> str:
    return str(Path(run).parent)


def _scale(references: Mapping[str, Any] | None) -> dict[str, float]:
    found = references or {}
    return {name: found[name] for name in ("xz", "zstd", "unigram") if found.get(name) is not None}


def _near(path: str) -> str:
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def print_score(run: str, what: str, scored: Scored) -> None:
    """The score of a text."""
    found = scored.validation

    def shown(name: str, digits: int) -> str:
        value = found[name]
        return "not finite" if value is None else f"{value:,.{digits}f}"

    rows = [("bits per byte", shown("bits_per_byte", 4))]
    rows += [(f"  {name}", f"{bits:.4f}") for name, bits in _scale(scored.references).items()]
    rows += [
        ("nats per token", shown("nats_per_token", 4)),
        ("perplexity", shown("perplexity", 2)),
        ("nats per character", shown("nats_per_character", 4)),
    ]
    if "legacy_titles" in found:
        legacy = "no window fills" if found["legacy_titles"] is None else f"{found['legacy_titles']:.4f}"
        rows.append(
            ("legacy titles", f"{legacy} (scores {found['legacy_coverage']:.1%} of the tokens; not comparable)")
        )
    rows += [
        ("scored", f"{found['tokens']:,} tokens of {found['documents']:,} documents, {found['bytes']:,} bytes"),
        ("how", f"windows of {found['context_length']:,} tokens, stride {found['stride']:,}, {found['precision']}"),
        ("checkpoint", f"step {scored.step:,}"),
    ]
    print_rows(f"{run} on {what}", rows)


def print_doctor(found: Mapping[str, Any]) -> None:
    """What the machine can do."""
    machine = found["machine"]
    build = ", ".join(
        name if value == "yes" else f"{name} {value}" for name, value in found["torch_build"].items() if value
    )
    rows = [
        ("system", found["system"]),
        ("Python", found["python"]),
        ("torch", f"{found['torch']} ({build.replace('cpu_capability', 'for')})"),
        ("processor", machine["cpu"]),
        ("cores", f"{machine['physical_cores']} physical, {machine['logical_cores']} logical"),
        ("instructions", ", ".join(machine["instruction_sets"]) or "nothing special"),
        ("memory", f"{memory(machine['host_memory_available'])} free of {memory(machine['host_memory_total'])}"),
        ("GPUs", ", ".join(_gpu(gpu) for gpu in found["gpus"]) or "none"),
    ]
    rows += [
        (f"disk for {name}", "not known" if free is None else f"{quantity(free)}B free")
        for name, free in found["disk_free"].items()
    ]
    rows += [
        (f"matmul, {name}", f"{quantity(rate)}FLOP/s" if rate else "does not work")
        for name, rate in found["matmul_rates"].items()
    ]
    rows.append(("memory bandwidth", f"{quantity(found['memory_bandwidth'])}B/s"))
    compiles = found["compiles"]
    if compiles is not None:
        works = f"works, {duration(compiles['seconds'])} for a tiny network" if compiles["works"] else compiles["why"]
        rows.append(("torch.compile", works))
    print_rows("this machine", rows)
    print_rows("what auto chooses here", [_choice(name, choice) for name, choice in found["choices"].items()])
    print_rows("extras (pip install 'farthing[NAME]')", [_extra(*one) for one in found["extras"].items()])
    print_notes(found["warnings"])


def _gpu(gpu: Mapping[str, Any]) -> str:
    return f"{gpu['name']} ({memory(gpu['memory_free'])} free of {memory(gpu['memory_total'])})"


def _choice(name: str, choice: Mapping[str, Any]) -> Row:
    # "compile (runs over 10 minutes)" would push everything to the right.
    name, _, only = name.partition(" (")
    value = choice["value"]
    if value is None:
        return name, choice["reason"]
    shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
    return name, f"{shown} ({choice['reason']}{'; for ' + only.rstrip(')') if only else ''})"


def _extra(name: str, packages: Mapping[str, str | None]) -> Row:
    missing = [package for package, version in packages.items() if version is None]
    return name, f"missing: {', '.join(missing)}" if missing else "installed"


def _size(count: int) -> str:
    if count < 1 << 20:
        return f"{count / 2**10:.0f} KiB"
    return memory(count) if count >= 10 << 20 else f"{count / 2**20:.1f} MiB"


def _brief(seconds: float) -> str:
    return duration(seconds) if seconds >= 0.95 else f"{seconds * 1000:.3g} ms"
