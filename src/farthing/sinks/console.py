"""A run on the terminal: a live display, a line in a notebook, or plain lines in a log, made from its events.

Everything goes to standard error (in a notebook to its output), so that standard output stays for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, TextIO

from rich.cells import cell_len
from rich.console import Console as Terminal
from rich.console import ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from farthing.events import (
    Asking,
    Checkpointed,
    Evaluated,
    Event,
    Finished,
    Notice,
    Ready,
    Resumed,
    Sampled,
    Started,
    Step,
    Stopped,
    TaskScored,
)
from farthing.sinks.legible import duration, legible, memory, money, quantity
from farthing.sinks.summary import terminal

_SMOOTHING = 0.9
Style = Literal["live", "notebook", "plain"]


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What is known of a run before it begins."""

    run: str
    """its name"""
    steps: int
    tokens: int
    parameters: int
    seconds: float | None = None
    """predicted training time; none where it is not known"""
    price_per_hour: float | None = None
    settings: str = ""
    """precision and the like, and what they rest on"""


@dataclass
class _State:
    """What the events have told so far."""

    outlook: Outlook
    step: int = 0
    loss: float | None = None
    """exponential moving average over steps, corrected for its start"""
    weight: float = 0.0
    last_bits: float | None = None
    best_bits: float | None = None
    tokens_per_second: float = 0.0
    utilisation: float | None = None
    memory_bytes: int | None = None
    money: float = 0.0
    first: tuple[int, float] | None = None
    """step and clock when this sitting's first step was done"""

    def take(self, event: Step, now: float) -> None:
        self.step = event.step
        if event.loss is not None:
            before = self.loss if self.loss is not None else 0.0
            total = before * self.weight * _SMOOTHING + event.loss * (1 - _SMOOTHING)
            self.weight = self.weight * _SMOOTHING + (1 - _SMOOTHING)
            self.loss = total / self.weight
        self.tokens_per_second = event.tokens_per_second
        self.utilisation = event.utilisation
        self.memory_bytes = event.memory_bytes
        self.money = event.spent.get("money", 0.0)
        if self.first is None or event.step < self.first[0]:
            self.first = (event.step, now)

    def progress(self) -> float:
        return min(1.0, self.step / max(1, self.outlook.steps))

    def seconds_left(self, now: float) -> float | None:
        """At the pace of this sitting, evaluations and checkpoints included; at the start as the plan predicts."""
        left = max(0, self.outlook.steps - self.step)
        if self.first is not None and self.step > self.first[0]:
            step, then = self.first
            return left * (now - then) / (self.step - step)
        if self.outlook.seconds is None:
            return None
        return self.outlook.seconds * left / max(1, self.outlook.steps)

    def facts(self) -> list[tuple[str, str]]:
        """(style, text) of each number, the most telling first."""
        found = []
        if self.loss is not None:
            found.append(("", f"loss {self.loss:.3f}"))
        if self.last_bits is not None:
            best = "" if self.best_bits in (None, self.last_bits) else f" (best {self.best_bits:.4f})"
            found.append(("cyan", f"{self.last_bits:.4f} bits/byte{best}"))
        if self.tokens_per_second:
            found.append(("", f"{quantity(self.tokens_per_second)} tokens/s"))
        if self.utilisation is not None:
            found.append(("dim", f"{self.utilisation:.0%} of peak"))
        if self.memory_bytes:
            found.append(("dim", memory(self.memory_bytes)))
        if self.outlook.price_per_hour is not None:
            found.append(("dim", f"cost {money(self.money)}"))
        return found


class Console:
    """Follows a run's events on a terminal, in a notebook or in a plain log.

    Call it with each event; `close` it at the end, or use it as a context manager, to give the terminal back.

    Args:
        outlook: what is known before the run begins; may be None when it comes later, by `expect`.
        stream: where to write; by default standard error, in a notebook standard output.
        quiet: only what a person must know: notices, and why a run stopped.
        verbose: also checkpoints.
        style: live, notebook or plain; by default what the stream can show.
        clock: seconds, rising.
    """

    def __init__(
        self,
        outlook: Outlook,
        *,
        stream: TextIO | None = None,
        quiet: bool = False,
        verbose: bool = False,
        style: Style | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if stream is None:
            stream = sys.stdout if in_notebook() else sys.stderr
        self._stream = stream
        self._terminal = terminal(stream)
        self._encoding = stream.encoding or "utf-8"
        self._unicode = self._encoding.lower().replace("-", "").startswith("utf")
        self._style = style or _style_of(stream, self._terminal)
        self._quiet, self._verbose, self._clock = quiet, verbose, clock
        self._state = _State(outlook)
        self._began = clock()
        self._last_line: float | None = None
        self._line_width = 0
        self._live: Live | None = None
        self._gone = False

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def expect(self, outlook: Outlook) -> None:
        """Take a new outlook, as after a calibration."""
        self._state.outlook = outlook

    def close(self) -> None:
        """Stop drawing and leave the terminal as it was found."""
        live, self._live = self._live, None
        with suppress(OSError):
            if live is not None:
                live.stop()
            self._end_line()

    def __call__(self, event: Event) -> None:
        """Show an event. A terminal that has gone away never stops a run: the console falls silent."""
        if self._gone:
            return
        try:
            self._show(event)
        except OSError:
            self._gone = True
        except ValueError:
            if not self._stream.closed:
                raise
            self._gone = True

    def _show(self, event: Event) -> None:
        match event:
            case Started():
                self._state.outlook = replace(self._state.outlook, run=event.run, steps=event.steps)
                self._say(self._opening(), "bold")
                if self._state.outlook.settings:
                    self._say(self._state.outlook.settings, "dim")
            case Resumed():
                self._state.step = event.step
                again = "" if event.exact else f"; not bit for bit: {event.why_inexact}"
                self._say(f"resumed at step {event.step:,} from {event.checkpoint}{again}", "bold")
            case Ready() if event.compile > 0:
                self._say(f"compiled in {duration(event.compile)}", "dim")
            case Step():
                self._state.take(event, self._clock())
                self._step()
            case Evaluated():
                self._evaluated(event)
            case Asking():
                self._say(f"asking all of {event.task}: {event.items:,}", "dim")
            case TaskScored():
                self._say(f"step {event.step:,}{self._dot}{_task(event)}", "cyan")
            case Checkpointed() if self._verbose:
                size = f"{memory(event.bytes)} in {duration(event.seconds)}"
                self._say(f"step {event.step:,}{self._dot}checkpoint {event.path}, {size}", "dim")
            case Sampled() if self._verbose:
                self._say(f"step {event.step:,}{self._dot}it writes: {(event.prompt + event.text)[:300]}")
            case Notice():
                if event.code == "replanned":
                    self.expect(replace(self._state.outlook, steps=event.details["steps"]))
                self._say(
                    f"{'note' if event.step is None else f'step {event.step:,}'}: {event.message}",
                    "yellow",
                    always=True,
                )
            case Stopped():
                self._say(
                    f"stopped at step {event.step:,} ({event.reason}): {event.message}", "bold yellow", always=True
                )
                self.close()
            case Finished():
                self.close()

    @property
    def _dot(self) -> str:
        return " · " if self._unicode else ", "

    def _opening(self) -> str:
        outlook = self._state.outlook
        parts = [outlook.run, f"{quantity(outlook.parameters)} parameters", f"{outlook.steps:,} steps"]
        parts.append(f"{quantity(outlook.tokens)} tokens")
        if outlook.seconds is not None:
            about = f"about {duration(outlook.seconds)}"
            if outlook.price_per_hour is not None:
                about += f", {money(outlook.seconds / 3600 * outlook.price_per_hour)} to pay"
            parts.append(about)
        return self._dot.join(parts)

    def _step(self) -> None:
        if self._quiet:
            return
        if self._style == "live":
            self._draw()
        elif self._style == "notebook":
            self._rewrite()
        elif self._due():
            self._last_line = self._clock()
            self._say(self._plain_line())

    def _evaluated(self, event: Evaluated) -> None:
        bits = event.validation.get("bits_per_byte")
        if not isinstance(bits, int | float):
            return
        self._state.last_bits = bits
        if event.best or self._state.best_bits is None or bits < self._state.best_bits:
            self._state.best_bits = bits
        best = self._dot + "best so far" if event.best else ""
        self._say(f"step {event.step:,}{self._dot}{event.split} {bits:.4f} bits per byte{best}", "cyan")

    def _due(self) -> bool:
        """The first step, the last, and in between ever more rarely: from 1 s to 10 s, then by a tenth of the time."""
        if self._last_line is None or self._state.step >= self._state.outlook.steps:
            return True
        elapsed = self._clock() - self._began
        longest = max(60.0, 0.01 * (self._state.outlook.seconds or 0.0))
        interval = min(max(1.0, elapsed / 4), max(10.0, elapsed / 10), longest)
        return self._clock() - self._last_line >= interval

    def _plain_line(self) -> str:
        state = self._state
        parts = [f"step {state.step:,}/{state.outlook.steps:,}", *(text for _, text in state.facts())]
        return self._dot.join([*parts, *self._left()])

    def _left(self) -> list[str]:
        left = self._state.seconds_left(self._clock())
        return [] if left is None or self._state.progress() >= 1 else [f"{duration(left)} left"]

    def _say(self, text: str, style: str = "", *, always: bool = False) -> None:
        """A line that stays."""
        if self._quiet and not always:
            return
        line = Text(legible(text, encoding=self._encoding), style=style)
        self._end_line()
        # Off a terminal a line stays whole: its reader wraps it, or searches it.
        self._terminal.print(line, soft_wrap=self._style != "live")
        self._stream.flush()

    def _rewrite(self) -> None:
        """The single line of a notebook, at most five times a second."""
        now = self._clock()
        if self._last_line is not None and now - self._last_line < 0.2 and self._state.progress() < 1:
            return
        self._last_line = now
        line = legible(f"{self._state.progress():4.0%}  {self._plain_line()}", encoding=self._encoding)
        self._stream.write("\r" + line.ljust(self._line_width))
        self._stream.flush()
        self._line_width = len(line)

    def _end_line(self) -> None:
        if self._line_width:
            self._stream.write("\n")
            self._stream.flush()
            self._line_width = 0

    def _draw(self) -> None:
        if self._live is None:
            display = _Display(self._state, self._clock, self._encoding)
            # Standard output is left alone: results go there.
            self._live = Live(
                display, console=self._terminal, refresh_per_second=4, redirect_stdout=False, transient=True
            )
            self._live.start()


@dataclass
class _Display:
    """The live part of the terminal: a bar over the budget, and the numbers that fit the width below it."""

    state: _State
    clock: Callable[[], float]
    encoding: str

    def __rich_console__(self, terminal: Terminal, options: ConsoleOptions) -> RenderResult:
        state, width = self.state, options.max_width
        steps = f"{state.step:,}/{state.outlook.steps:,}"
        left = state.seconds_left(self.clock())
        ending = f"{duration(left)} left" if left is not None and state.progress() < 1 else ""
        name = legible(state.outlook.run, encoding=self.encoding)
        bar_width = width - sum(cell_len(text) + 2 for text in (name, "100%", steps, ending)) - 1
        if bar_width < 10:
            name, bar_width = "", bar_width + cell_len(name) + 2
        row: list[Text | ProgressBar] = [Text(f"{state.progress():4.0%}"), Text(steps, "dim"), Text(ending, "dim")]
        if bar_width >= 5:
            bar = ProgressBar(1.0, state.progress(), width=min(bar_width, 60), complete_style="cyan")
            row.insert(0, bar)
        if name:
            row.insert(0, Text(name, "bold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        for _ in row:
            table.add_column(no_wrap=True)
        table.add_row(*row)
        yield table
        line = Text(no_wrap=True, overflow="ellipsis" if self.encoding.lower().startswith("utf") else "crop")
        for style, text in state.facts():
            if line and len(line) + len(text) + 3 > width:
                break
            line.append("   " if line else "")
            line.append(text, style)
        yield line


def _task(event: TaskScored) -> str:
    metric = str(event.result["metric"]).replace("_", " ")
    if event.value is None:
        return f"{event.task}: {metric} is not finite"
    told = f"{event.value:.1%}" if "accuracy" in metric else f"{event.value:.4g}"
    verdict = event.result["scores"][event.result["metric"]]["verdict"]
    return f"{event.task}: {metric} {told}" + (f" ({verdict})" if verdict else "")


def in_notebook() -> bool:
    """Whether this is a Jupyter or Colab notebook, whose output is not a terminal but can rewrite a line."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ in ("ZMQInteractiveShell", "Shell") and shell is not None


def _style_of(stream: TextIO, rich_terminal: Terminal) -> Style:
    if stream.isatty():
        return "plain" if rich_terminal.is_dumb_terminal else "live"
    return "notebook" if stream is sys.stdout and in_notebook() else "plain"
