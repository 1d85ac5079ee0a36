"""A conversation on the terminal, or through a pipe."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from farthing.cli.options import say_json
from farthing.errors import UserError
from farthing.sinks.legible import legible

if TYPE_CHECKING:
    from farthing.serving.chat import Chat, Continued

_PROMPT = "> "
_ENDS = {"document": "the document ended", "length": "as long as asked for", "interrupted": "stopped"}


class Terminal:
    """Reads lines, shows texts on standard output and what there is to say about them on standard error.

    Args:
        quiet: show texts and errors only.
        as_json: a line of JSON for each text instead of the text.
    """

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self._quiet, self._as_json = quiet, as_json
        self._interactive = sys.stdin.isatty()

    def converse(self, chat: Chat, *, name: str) -> None:
        """Take lines until there are no more, or /quit.

        Raises:
            UserError: a line from a pipe is wrong; on a terminal it is only told.
        """
        from farthing.serving.chat import Leave

        if self._interactive:
            with suppress(ImportError):
                importlib.import_module("readline")  # makes input() a line editor with a history
        if not self._quiet:
            self.note(f"{name} is a base model: it goes on with your text (/help lists the commands, Ctrl-D leaves)")
        with suppress(Leave):
            while (line := self._read()) is not None:
                try:
                    continued = chat.take(line)
                except UserError as error:
                    if not self._interactive:
                        raise
                    self.note(f"error: {error}")
                    continue
                if continued is not None:
                    self._close(continued)

    def write(self, piece: str) -> None:
        """Show a piece of a text as it is written."""
        if not self._as_json:
            sys.stdout.write(legible(piece, encoding=sys.stdout.encoding or "utf-8", lines=True))
            sys.stdout.flush()

    def note(self, line: str) -> None:
        """Say something that is not part of any text."""
        shown = legible(line, encoding=sys.stderr.encoding or "utf-8", lines=True)
        dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
        print(f"{dim}{shown}{plain}", file=sys.stderr, flush=True)

    def _read(self) -> str | None:
        if not self._interactive:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        while True:
            try:
                return input(_PROMPT)
            except EOFError:
                print()
                return None
            except KeyboardInterrupt:
                print()  # the line is thrown away, as in a shell

    def _close(self, continued: Continued) -> None:
        if self._as_json:
            say_json(asdict(continued))
            return
        self.write("\n")
        if self._interactive and not self._quiet:
            self.note(f"[{continued.tokens} tokens, seed {continued.seed}: {_ENDS[continued.end]}]")
