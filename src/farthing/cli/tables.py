"""What a person reads at the end of a verb: plans, results, yardsticks, machines."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from farthing.api import Planned
from farthing.sinks.legible import duration, legible, memory, money, quantity
from farthing.sinks.summary import Summary, terminal
from farthing.sinks.summary import show as show_summary

Row = tuple[str, str]


def clean(text: str) -> str:
    """Text safe for a terminal, lines kept."""
    return legible(text, encoding=sys.stdout.encoding or "utf-8", lines=True)


def print_rows(title: str, rows: Iterable[Row]) -> None:
    """A titled list of names and values."""
    screen = terminal(sys.stdout)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, clean(value))
    screen.print(title, style="bold")
    screen.print(table)


def print_plan(name: str, planned: Planned) -> None:
    """The plan of a recipe."""
    plan, settings = planned.plan, planned.plan.settings
    parts = [(part, f"{count:,}") for part, count in plan.parameters_by_part.items() if count]
    print_rows(f"{name}: {plan.parameters:,} parameters", parts)
    terms = [(term, memory(size)) for term, size in plan.memory.items() if size]
    print_rows(f"memory: about {memory(plan.memory_bytes)} of the {memory(plan.memory_available)} to be had", terms)
    chosen = [
        ("device", f"{settings.device}, {settings.threads} threads ({settings.why['threads']})"),
        ("precision", f"{settings.precision} ({settings.why['precision']})"),
        ("attention", f"{settings.attention} ({settings.why['attention']})"),
        ("compile", f"{'on' if settings.compile else 'off'} ({settings.why['compile']})"),
        ("micro-batch", f"{settings.micro_batch} x {settings.accumulation} ({settings.why['micro_batch']})"),
    ]
    print_rows("chosen for this machine", chosen)
    print_rows("what it takes", _cost_rows(planned))
    for warning in plan.warnings:
        terminal(sys.stdout).print(f"note: {clean(warning)}", style="yellow")


def _cost_rows(planned: Planned) -> list[Row]:
    plan = planned.plan
    unknown = "known only when the text can be read"
    epochs = "" if plan.epochs is None else f", {plan.epochs:.3g} epochs of {plan.tokens_per_epoch:,}"
    rows = [
        ("steps", unknown if plan.steps is None else f"{plan.steps:,} (budget.{plan.limited_by} ends it)"),
        ("tokens", unknown if plan.tokens is None else f"{plan.tokens:,}{epochs}"),
        (
            "FLOPs",
            unknown if plan.flops is None else f"{quantity(plan.flops)} ({quantity(plan.flops_per_token)} a token)",
        ),
        ("a step", f"{duration(plan.seconds_per_step)} ({plan.timing})"),
        ("training", unknown if plan.seconds is None else duration(plan.seconds)),
    ]
    if plan.evaluation_seconds:
        rows.append(("evaluation", f"about {duration(plan.evaluation_seconds)} more"))
    if plan.money is not None:
        rows.append(("money", money(plan.money)))
    rows.append(("a checkpoint", f"{quantity(plan.checkpoint_bytes)}B"))
    return rows


def print_result(result: Mapping[str, Any]) -> None:
    """The end of a run."""
    samples = result.get("samples") or []
    sample = samples[0]["prompt"] + samples[0]["text"] if samples else ""
    references = result.get("references") or {}
    scale = {name: references[name] for name in ("xz", "zstd", "unigram") if references.get(name) is not None}
    run = shlex.quote(_near(result["run"]))
    prompt = samples[0]["prompt"] if samples and samples[0]["prompt"] else "Once upon a time"
    best = result.get("best")
    commands = [f"farthing sample {run} {shlex.quote(prompt)}", f"farthing eval {run} --data FILE", "farthing runs"]
    last = result["validation"].get("bits_per_byte")
    if best and last and best["bits_per_byte"] < last - 0.005:
        commands.insert(
            0, f"farthing sample {run} --checkpoint best   # step {best['step']}: {best['bits_per_byte']:.4f}"
        )
    show_summary(
        Summary(
            run=result["run"],
            status=result["status"],
            validation=result["validation"],
            spent=result["spent"],
            parameters=result["parameters"],
            wall_seconds=result["wall_seconds"],
            references=scale,
            sample=sample,
            next_commands=commands,
        ),
        stream=sys.stdout,
    )


def _near(path: str) -> str:
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def print_yardsticks(run: str, what: str, found: Mapping[str, Any]) -> None:
    """The score of a text."""

    def shown(name: str, digits: int) -> str:
        value = found[name]
        return "not finite" if value is None else f"{value:.{digits}f}"

    rows = [
        ("bits per byte", shown("bits_per_byte", 4)),
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
        ("how", f"windows of {found['context_length']}, stride {found['stride']}, {found['precision']}"),
        ("checkpoint", f"step {found['checkpoint']:,}"),
    ]
    print_rows(f"{run} on {clean(what)}", rows)


def print_doctor(found: Mapping[str, Any]) -> None:
    """What the machine can do."""
    machine = found["machine"]
    rows = [
        ("system", found["system"]),
        ("python", found["python"]),
        ("torch", f"{found['torch']} ({', '.join(f'{k} {v}' for k, v in found['torch_build'].items() if v)})"),
        ("processor", machine["cpu"]),
        ("cores", f"{machine['physical_cores']} physical, {machine['logical_cores']} logical"),
        ("instructions", ", ".join(machine["instruction_sets"]) or "nothing special"),
        ("memory", f"{memory(machine['host_memory_available'])} free of {memory(machine['host_memory_total'])}"),
        ("GPUs", ", ".join(str(gpu.get("name", gpu)) for gpu in found["gpus"]) or "none"),
    ]
    rows += [
        (f"disk, {name}", "?" if free is None else f"{quantity(free)}B free")
        for name, free in found["disk_free"].items()
    ]
    rows += [(f"matmul {name}", f"{quantity(rate)}FLOP/s") for name, rate in found["matmul_rates"].items()]
    compiles = found["compiles"]
    if compiles is not None:
        works = f"works, {duration(compiles['seconds'])} for a tiny network" if compiles["works"] else compiles["why"]
        rows.append(("torch.compile", works))
    print_rows("this machine", rows)
    chosen = [(name, f"{_plain(choice['value'])} ({choice['reason']})") for name, choice in found["choices"].items()]
    print_rows("what auto chooses here", chosen)
    extras = []
    for extra, packages in found["extras"].items():
        missing = [name for name, version in packages.items() if version is None]
        extras.append((f"[{extra}]", "installed" if not missing else f"missing {', '.join(missing)}"))
    print_rows("extras", extras)
    for warning in found["warnings"]:
        terminal(sys.stdout).print(f"note: {clean(warning)}", style="yellow")


def _plain(value: object) -> str:
    return (
        {True: "on", False: "off", None: "?"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)
    )
