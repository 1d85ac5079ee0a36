"""The few flags, which mean the same on every verb."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [PATH=VALUE]...", help="A recipe (file or shipped name), then settings to change."
    ),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or the name of one under --runs.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder of run folders.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing on the way.")]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")]
Deadline = Annotated[
    str | None,
    typer.Option("--deadline", metavar="WHEN", help="Checkpoint and stop by then: 90m, 1h30m, 2026-11-22T18:00."),
]
Checkpoint = Annotated[str, typer.Option("--checkpoint", help="Which weights: last, best, or a step.")]


def split_words(words: list[str] | None, *, default: str = "default") -> tuple[str, list[str]]:
    """The recipe and the overrides among a verb's words: whatever has an equals sign is an override."""
    words = list(words or [])
    if words and "=" not in words[0]:
        return words[0], words[1:]
    return default, words


def say_json(value: Any) -> None:
    """One JSON object as the last line of standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()
