"""How a verb looks from outside: the few flags, which mean the same everywhere, and its help page."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [PATH=VALUE]...",
        help="A recipe (a file, or a shipped one's name; none: default), then settings to change.",
    ),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or the name of one in the --runs folder.")]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run folder, the name of one in the --runs folder, or a folder as export or transformers write it.",
    ),
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where the run folders are.")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or mps.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary: errors and answers only.")]
Json = Annotated[bool, typer.Option("--json", help="Answer with one line of JSON on standard output.")]
Deadline = Annotated[
    str | None,
    typer.Option("--deadline", metavar="WHEN", help="Save and stop in time for this: 90m, 1h30m, or 2026-11-22T18:00."),
]
Checkpoint = Annotated[str, typer.Option("--checkpoint", metavar="WHICH", help="Which weights: last, best, or a step.")]
Tokens = Annotated[int | None, typer.Option("--tokens", metavar="N", help="How many tokens to write at most.")]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", metavar="T", help="How daring the draw is; 0 takes the likeliest token."),
]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="K", help="Draw from the K likeliest tokens only.")]
TopP = Annotated[
    float | None, typer.Option("--top-p", metavar="P", help="Draw from the likeliest tokens up to this share, 0-1.")
]
Baseline = Annotated[
    str | None, typer.Option("--baseline", metavar="RUN", help="The run or arm that the others are held against.")
]
Level = Annotated[
    float, typer.Option("--level", metavar="P", help="The most that the chance of any false verdict may be.")
]
By = Annotated[str, typer.Option("--by", metavar="READING", help="What to compare by (docs/yardstick.md).")]
RUNS = Path("runs")
_NOT_FOR_TERMINALS = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Verb(TyperCommand):
    """A command whose help page names things as a person types them, and ends with its example as it stands."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the usage line."""
        arguments = [one.metavar for one in self.params if one.param_type_name == "argument"]
        return [str(piece) for piece in (*arguments, "[OPTIONS]")]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments and options, a line or more each."""
        rows: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for one in self.get_params(ctx):
            if one.param_type_name == "argument":
                rows["Arguments"].append((str(one.metavar), str(getattr(one, "help", ""))))
            elif record := one.get_help_record(ctx):
                # typer shows the Python type where there is no other word for it.
                rows["Options"].append((re.sub(r" <[^>]*>", "", record[0]), record[1]))
        for title, found in rows.items():
            if found:
                with formatter.section(title):
                    formatter.write_dl(found)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The example, on a line of its own that can be copied whole."""
        if self.epilog:
            formatter.write(f"\nExample:\n  {self.epilog}\n")


def add(app: typer.Typer, function: Any, *, name: str, short: str, example: str) -> None:
    """Make `function` a verb of `app`; `short` is its line in the list of verbs."""
    app.command(name, cls=Verb, short_help=short, epilog=example)(function)


def group(app: typer.Typer, *, name: str, about: str) -> typer.Typer:
    """A verb that has verbs of its own."""
    inner = typer.Typer(help=about, no_args_is_help=True, rich_markup_mode=None)
    # With a callback typer keeps the inner verb's name even where there is only one.
    inner.callback()(_nothing)
    app.add_typer(inner, name=name, help=about, short_help=about)
    return inner


def _nothing() -> None:
    pass


def split_words(words: list[str] | None, *, default: str = "default") -> tuple[str, list[str]]:
    """The recipe and the overrides among a verb's words: whatever has an equals sign is an override."""
    words = list(words or [])
    if words and "=" not in words[0]:
        return words[0], words[1:]
    return default, words


def say_json(value: Any) -> None:
    """One JSON value as the last line of standard output; what a terminal would obey, or no encoding holds, is escaped."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(_NOT_FOR_TERMINALS.sub(lambda one: f"\\u{ord(one[0]):04x}", line) + "\n")
    sys.stdout.flush()
