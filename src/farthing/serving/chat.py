"""Chat: a person and a model take turns at one text, in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from farthing import config
from farthing.data.tokenizer import Tokenizer
from farthing.errors import UserError, nearest
from farthing.evals.samples import stream_text
from farthing.model.generate import generate
from farthing.model.gpt import GPT
from farthing.model.inference import Inference, Precision
from farthing.recipe.running import Sample

HELP = """\
This is a base model: it answers no questions, it goes on with a text. What you type is added to the text so far, and
the model continues it; an empty line lets it go on. \\n in a line is a line break, \\\\ a backslash. Once the model has
ended the document, the next line starts a new one.

  /again              the last continuation once more, with the next seed
  /reset              start a new text
  /temperature 0.7    how daring the draw is; 0 takes the likeliest token
  /tokens 100         how many tokens to write at most
  /top_k 40           draw from the 40 likeliest tokens only; none: from all
  /top_p 0.9          draw from the likeliest tokens up to this share; none: from all
  /seed 3             of the next continuation; the one after it takes the next
  /settings           what all of these are now
  /help               this page
  /quit               leave; so does Ctrl-D
  //text              a line that begins with a slash

Ctrl-C stops the text that is being written."""
_DRAWING = ("temperature", "tokens", "top_k", "top_p")
_PLAIN = ("again", "reset", "settings", "help", "quit")

End = Literal["document", "length", "interrupted"]
"""why a continuation ends: the model ended the document, it has as many tokens as asked for, or Ctrl-C"""


class Leave(Exception):
    """The person has had enough."""


@dataclass(frozen=True)
class Continued:
    """One continuation, and what it takes to have it again: `farthing sample` with this prompt and seed.

    Args:
        prompt: the whole text before it, from the start of the document.
        text: what the model wrote.
        tokens: how many tokens that took.
        seed: of the draws.
        end: why it ends.
    """

    prompt: str
    text: str
    tokens: int
    seed: int
    end: End


@dataclass
class _Text:
    """A text so far: its tokens with the separator that opens it, and the same to read."""

    tokens: list[int]
    shown: str = ""
    ended: bool = False


class Chat:
    """The conversation: lines in, continuations out.

    Args:
        model: its weights must not change.
        tokenizer: the one it was trained with.
        precision: of matrix products.
        drawing: how texts are drawn until a line changes that.
        seed: of the first continuation.
        write: shows a piece of text as it is written.
        note: shows a line about it.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        precision: Precision,
        drawing: Sample,
        seed: int,
        write: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self._model = Inference(model, precision=precision, layout="tokens")
        self._tokenizer, self._drawing, self._seed = tokenizer, drawing, seed
        self._write, self._note = write, note
        self._text = self._before = self._new()

    def take(self, line: str) -> Continued | None:
        """Do what a line says; a continuation is also returned.

        Raises:
            UserError: the line is no command, or a setting is out of range; nothing has changed.
            DivergedError: the model's probabilities are not numbers.
            Leave: at /quit.
        """
        if line.startswith("/") and not line.startswith("//"):
            return self._command(line)
        typed = _unescaped(line[1:] if line.startswith("//") else line)
        start = self._new() if self._text.ended else self._text
        # Encoded alone, as it was when the text before it was drawn.
        tokens = [*start.tokens, *self._tokenizer.encode(typed)]
        self._before = _Text(tokens, start.shown + typed)
        return self._continue()

    def _command(self, line: str) -> Continued | None:
        word, _, value = line[1:].strip().partition(" ")
        value = value.strip()
        if word in _PLAIN and value:
            raise UserError(f"/{word}: takes no value ({value!r})")
        match word:
            case "again":
                return self._continue()
            case "reset":
                self._text = self._before = self._new()
                self._note("a new text")
            case "settings":
                self._note(self._settings())
            case "help":
                self._note(HELP)
            case "quit":
                raise Leave
            case "seed":
                self._seed = _seed(value)
            case _ if word in _DRAWING:
                self._drawing = _changed(self._drawing, word, value)
            case _:
                close = nearest(word, [*_PLAIN, *_DRAWING, "seed"]).replace("mean ", "mean /")
                raise UserError(f"/{word}: no such command{close} (/help lists them; //{word} is text)")
        return None

    def _continue(self) -> Continued:
        """Write after `_before`, with the next seed."""
        separator, drawing, seed = self._tokenizer.separator, self._drawing, self._seed
        drawn: list[int] = []

        def remembered(token: int) -> int:
            drawn.append(token)
            return token

        ids = generate(
            self._model,
            self._before.tokens,
            tokens=drawing.tokens,
            temperature=drawing.temperature,
            top_k=drawing.top_k,
            top_p=drawing.top_p,
            seed=seed,
            stop=separator,
            separator=separator,
        )
        self._seed += 1
        written: list[str] = []
        end: End
        try:
            for piece in stream_text(self._tokenizer, map(remembered, ids)):
                written.append(piece)
                self._write(piece)
            end = "length" if len(drawn) == drawing.tokens else "document"
        except KeyboardInterrupt:
            end = "interrupted"
        text = "".join(written)
        self._text = _Text([*self._before.tokens, *drawn], self._before.shown + text, ended=end == "document")
        return Continued(self._before.shown, text, len(drawn), seed, end)

    def _new(self) -> _Text:
        return _Text([self._tokenizer.separator])

    def _settings(self) -> str:
        found = [f"{name} {'none' if value is None else value}" for name, value in self._drawing if name in _DRAWING]
        return ", ".join([*found, f"seed {self._seed}"])


def _changed(drawing: Sample, name: str, value: str) -> Sample:
    try:
        return config.build(Sample, {**config.to_table(drawing), name: value})
    except UserError as error:
        raise UserError(f"/{name} {str(error).removeprefix(name).removeprefix('=')}") from None


def _seed(value: str) -> int:
    if not value.isdecimal() or int(value[:20]) >= 1 << 63 or len(value) > 19:
        raise UserError(f"/seed {value!r:.40}: should be a whole number from 0 to 2^63 - 1")
    return int(value)


def _unescaped(line: str) -> str:
    r"""`\n` as a line break and `\\` as a backslash; everything else stands for itself."""
    return "\\".join(part.replace("\\n", "\n") for part in line.split("\\\\"))
