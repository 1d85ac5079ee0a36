"""What a finished run is told by: the score first, then what it cost, what the model writes, what to do next."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console as Terminal
from rich.console import ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from farthing.sinks.legible import duration, legible, money, quantity

_BAR = 30
_GOOD = ("finished", "complete", "completed")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that the summary of a run tells."""

    run: str
    """path of the run folder"""
    status: str
    validation: Mapping[str, Any]
    """the yardsticks of the last evaluation; empty if there was none"""
    spent: Mapping[str, float]
    parameters: int
    wall_seconds: float
    startup: Mapping[str, float] = field(default_factory=dict)
    """seconds before the first step, in all and by stage; empty for a run of an earlier version"""
    references: Mapping[str, float] = field(default_factory=dict)
    """bits per byte of the same text by other means: xz, zstd, unigram"""
    sample: str = ""
    next_commands: Sequence[str] = ()


def show(summary: Summary, *, stream: TextIO | None = None) -> None:
    """Write the summary to `stream` (standard error if none), in colour where it is a terminal."""
    stream = sys.stderr if stream is None else stream
    screen = terminal(stream)
    with screen.capture() as captured:
        screen.print(render(summary, encoding=stream.encoding or "utf-8"))
    # rich fills every line with spaces, which a file or a copied text is better without.
    stream.write("\n".join(line.rstrip(" ") for line in captured.get().split("\n")))
    stream.flush()


class _Terminal(Terminal):
    """A rich console that falls silent when its reader goes away, where rich would end the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


def terminal(stream: TextIO) -> Terminal:
    """A rich console that shows text exactly as given: no markup, no emoji codes, no guessed highlights."""
    return _Terminal(file=stream, markup=False, emoji=False, highlight=False, force_jupyter=False)


def render(summary: Summary, *, encoding: str = "utf-8") -> RenderableType:
    """The summary as a rich renderable, for a stream of this encoding."""
    unicode = encoding.lower().replace("-", "").startswith("utf")
    dot = " · " if unicode else ", "

    def clean(text: str, *, lines: bool = False) -> str:
        return legible(text, encoding=encoding, lines=lines)

    parts: list[RenderableType] = [Text()]
    status_style = "green" if summary.status in _GOOD else "yellow"
    parts.append(Text.assemble((clean(summary.run), "bold"), (dot, "dim"), (clean(summary.status), status_style)))
    if "bits_per_byte" in summary.validation:
        parts += [Text(), _headline(summary.validation)]
        if summary.references and summary.validation["bits_per_byte"] is not None:
            parts += [Text(), Text("the same text by other means, in bits per byte", style="dim")]
            parts.append(_scale(summary, unicode, clean))
    parts += [Text(), _facts(summary, dot, clean)]
    if summary.sample:
        edge = "  │ " if unicode else "  | "
        parts += [Text(), Text("it writes", style="dim")]
        parts.append(_Quoted(clean(summary.sample, lines=True).strip("\n"), edge))
    if summary.next_commands:
        parts += [Text(), Text("next", style="dim")]
        parts += [Text(f"  {clean(command)}", overflow="fold") for command in summary.next_commands]
    parts.append(Text())
    return Padding(Group(*parts), (0, 1))


def _headline(validation: Mapping[str, Any]) -> Text:
    if validation["bits_per_byte"] is None:
        return Text("the score is not finite", "bold yellow")
    headline = Text.assemble((f"{validation['bits_per_byte']:.4f}", "bold cyan"), (" bits per byte", "bold"))
    if validation.get("tokens") is not None and validation.get("bytes") is not None:
        scored = f"\neach of {validation['tokens']:,} held-out tokens scored once, {validation['bytes']:,} bytes"
        headline.append(scored, "dim")
    return headline


def _scale(summary: Summary, unicode: bool, clean: Any) -> Table:
    """This model among the references, the fewest bits first."""
    rows = [(clean(name), float(bits), False) for name, bits in summary.references.items()]
    rows.append(("this model", float(summary.validation["bits_per_byte"]), True))
    longest = max(bits for _, bits, _ in rows)
    table = Table.grid(padding=(0, 2))
    for name, bits, ours in sorted(rows, key=lambda row: row[1]):
        length = max(1, round(_BAR * bits / longest)) if longest > 0 else 1
        style = "cyan" if ours else "dim"
        bar = ("━" if unicode else "=") * length
        table.add_row(Text(f"  {name}", style), Text(f"{bits:.3f}", style), Text(bar, style, no_wrap=True))
    return table


def _facts(summary: Summary, dot: str, clean: Any) -> Table:
    spent, validation = summary.spent, summary.validation
    other = []
    if validation.get("nats_per_token") is not None:
        other.append(f"{validation['nats_per_token']:.4f} nats per token")
    if validation.get("perplexity") is not None:
        other.append(f"perplexity {validation['perplexity']:,.2f}")
    if validation.get("nats_per_character") is not None:
        other.append(f"{validation['nats_per_character']:.4f} nats per character")
    work = [f"{spent.get('steps', 0):,.0f} steps", f"{quantity(spent.get('tokens', 0))} tokens"]
    work.append(f"{spent.get('epochs', 0):.3g} epochs")
    work.append(f"{spent.get('flops', 0):.2e} FLOP".replace("e+", "e"))
    time = [f"{duration(spent.get('seconds', 0))} of training", f"{duration(summary.wall_seconds)} in all"]
    if spent.get("money"):
        time.append(f"cost {money(spent['money'])}")
    rows = [("score", other), ("model", [f"{summary.parameters:,} parameters"]), ("work", work), ("time", time)]
    if "seconds" in summary.startup:
        rows.append(("start-up", [_startup(summary.startup)]))
    if validation.get("legacy_titles") is not None:
        legacy = [f"{validation['legacy_titles']:.4f}"]
        if validation.get("legacy_coverage") is not None:
            legacy.append(f"over {validation['legacy_coverage']:.1%} of the tokens")
        rows.insert(1, ("legacy", legacy))
    table = Table.grid(padding=(0, 2))
    for name, facts in rows:
        if facts:
            table.add_row(Text(name, style="dim"), Text(clean(dot.join(facts))))
    return table


def _startup(seconds: Mapping[str, float]) -> str:
    parts = [f"{name} {duration(seconds[name])}" for name in ("trial", "compile") if seconds.get(name, 0) >= 1]
    return duration(seconds["seconds"]) + (f", of which {', '.join(parts)}" if parts else "")


@dataclass(frozen=True)
class _Quoted:
    """Text behind a thin edge, which stays where a long line wraps."""

    text: str
    edge: str

    def __rich_console__(self, console: Terminal, options: ConsoleOptions) -> RenderResult:
        for line in self.text.expandtabs(4).split("\n"):
            for piece in Text(line).wrap(console, max(10, options.max_width - len(self.edge)), overflow="fold") or [
                Text()
            ]:
                yield Text.assemble((self.edge, "dim"), piece)
