"""Chat: one text in turns, the same as `farthing sample` writes, whatever is typed and wherever from."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.small import Answer, Command
from farthing.api import TrainedModel
from farthing.errors import UserError
from farthing.recipe.running import Sample
from farthing.serving.chat import HELP, Chat, Continued, Leave

LIKELY = {"tokens": 12, "temperature": 0.9, "top_k": 5}
"""so that no text ends its document of its own"""


DRAWING = ("--tokens", "12", "--temperature", "0.9", "--top-k", "5")


class Talk:
    """A chat, with what it showed."""

    def __init__(self, opened: TrainedModel, write: Callable[[str], None] | None = None) -> None:
        self.opened, self.written, self.notes = opened, [], []
        self.chat = Chat(
            opened.model,
            opened.tokenizer,
            precision=opened.precision,
            drawing=Sample.model_validate(LIKELY),
            seed=7,
            write=write or self.written.append,
            note=self.notes.append,
        )
        self.written: list[str]
        self.notes: list[str]

    def __call__(self, line: str) -> Continued:
        found = self.chat.take(line)
        assert found is not None
        return found

    def sampled(self, prompt: str, seed: int, **drawing: Any) -> str:
        return self.opened.sample(prompt, **{**LIKELY, "seed": seed, **drawing})


@pytest.fixture
def talk(opened: TrainedModel) -> Talk:
    return Talk(opened)


def test_a_continuation_is_the_text_of_sample(talk: Talk) -> None:
    found = talk("Show HN")
    assert (found.prompt, found.seed) == ("Show HN", 7)
    assert found.text == "".join(talk.written) == talk.sampled("Show HN", 7)
    assert found.tokens == 12 and found.end == "length"


def test_again_takes_the_next_seed_on_the_same_prompt(talk: Talk) -> None:
    first, second = talk("Show HN"), talk("/again")
    assert (second.prompt, second.seed) == ("Show HN", 8)
    assert second.text == talk.sampled("Show HN", 8) != first.text


def test_the_next_line_goes_on_with_the_text(talk: Talk) -> None:
    first = talk("Show HN")
    second = talk(" the")
    assert second.prompt == f"Show HN{first.text} the"
    third = talk("")
    assert third.prompt == second.prompt + second.text
    assert talk("/again").prompt == third.prompt


def test_a_document_that_has_ended_is_followed_by_a_new_one(talk: Talk) -> None:
    for line in ("/tokens 2000", "/top_k none"):
        talk.chat.take(line)
    found = talk("Show HN")
    assert found.end == "document" and found.tokens < 2000
    assert talk("the penny").prompt == "the penny"


def test_reset_starts_anew(talk: Talk) -> None:
    talk("Show HN")
    talk.chat.take("/reset")
    assert talk("the").prompt == "the"
    talk.chat.take("/reset")
    assert talk("/again").prompt == ""


def test_settings_hold_until_they_are_changed(talk: Talk) -> None:
    for line in ("/temperature 0.5", "/tokens 5", "/top_k 9", "/top_p 0.9", "/seed 3", "/settings"):
        assert talk.chat.take(line) is None
    assert talk.notes == ["tokens 5, temperature 0.5, top_k 9, top_p 0.9, seed 3"]
    assert talk("Show").text == talk.sampled("Show", 3, tokens=5, temperature=0.5, top_k=9, top_p=0.9)
    for line in ("/top_k none", "/top_p none", "/reset"):
        talk.chat.take(line)
    assert talk("Show").text == talk.sampled("Show", 4, tokens=5, temperature=0.5, top_k=None)


def test_what_is_typed_is_the_text(talk: Talk) -> None:
    for line, prompt in (
        (r"a\nb", "a\nb"),
        (r"a\\nb", r"a\nb"),
        ("//quit", "/quit"),
        (" a ", " a "),
        (r"C:\dir", r"C:\dir"),
    ):
        talk.chat.take("/reset")
        assert talk(line).prompt == prompt


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/temprature 1", "/temprature: no such command; did you mean /temperature?"),
        ("/temperature hot", "/temperature 'hot': should be a valid number"),
        ("/temperature -1", "/temperature '-1': should be greater"),
        ("/temperature", "/temperature '': should be a valid number"),
        ("/tokens many", "/tokens 'many': should be"),
        ("/top_k 0", "/top_k '0': should be"),
        ("/top_p 2", "/top_p '2': should be"),
        ("/seed -1", "/seed '-1': should be"),
        ("/seed 99999999999999999999", "/seed '99999999999999999999': should be"),
        ("/reset now", "/reset: takes no value"),
        ("/", "/: no such command"),
        ("\ud800", "surrogate"),
    ],
)
def test_a_wrong_line_changes_nothing(talk: Talk, line: str, said: str) -> None:
    before = talk("Show HN")
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        talk.chat.take(line)
    assert "\n" not in str(refused.value)
    talk.chat.take("/settings")
    assert talk.notes == ["tokens 12, temperature 0.9, top_k 5, top_p none, seed 8"]
    assert talk("").prompt == before.prompt + before.text


def test_ctrl_c_keeps_what_was_written(opened: TrainedModel) -> None:
    pieces: list[str] = []

    def write(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 4:
            raise KeyboardInterrupt

    talk = Talk(opened, write)
    found = talk("Show HN")
    assert (found.end, found.text) == ("interrupted", "".join(pieces))
    assert 0 < found.tokens < 12
    assert talk("").prompt == "Show HN" + found.text


def test_help_names_every_command(talk: Talk) -> None:
    talk.chat.take("/help")
    assert talk.notes == [HELP]
    for line in re.findall(r"^  (/\w+(?: [\d.]+)?)  ", HELP, re.MULTILINE):
        try:
            talk.chat.take(line)
        except Leave:
            assert line == "/quit"
    assert len(re.findall(r"^  /\w+", HELP, re.MULTILINE)) == 10


@pytest.fixture
def piped(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """`farthing chat` with lines from a pipe."""

    def run(lines: str, *words: str) -> Answer:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return Command(capsys)("chat", str(home / "runs" / "tiny"), "--seed", "7", *DRAWING, *words)

    return run


def test_lines_from_a_pipe(piped: Callable[..., Answer], opened: TrainedModel) -> None:
    answer = piped("Show HN\n/again\n/quit\nnever\n")
    first, second = (opened.sample("Show HN", **{**LIKELY, "seed": seed}) for seed in (7, 8))
    assert (answer.code, answer.out) == (0, shown(f"{first}\n{second}\n"))
    assert "base model" in answer.err
    told = [json.loads(line) for line in piped("Show HN\n/again", "--json", "--quiet").out.splitlines()]
    assert [one["text"] for one in told] == [first, second]
    assert told[1] == {"prompt": "Show HN", "text": second, "tokens": 12, "seed": 8, "end": "length"}


def shown(text: str) -> str:
    return "".join("\ufffd" if (c < " " and c not in "\n\t") or "\x7f" <= c < "\xa0" else c for c in text)


def test_a_wrong_line_in_a_pipe_ends_the_command(piped: Callable[..., Answer]) -> None:
    answer = piped("/temperature hot\nShow HN\n", "--quiet")
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert answer.err.startswith("error: /temperature 'hot': ")


def test_no_control_character_reaches_the_terminal(piped: Callable[..., Answer]) -> None:
    answer = piped("\x1b]52;c;x\x07\n" * 5, "--temperature", "9", "--tokens", "300", "--top-k", "400")
    assert answer.code == 0
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", answer.out + answer.err)


def test_at_a_terminal(home: Path) -> None:
    pty = pytest.importorskip("pty")
    person, terminal = pty.openpty()
    command = [sys.executable, "-m", "farthing", "chat", "tiny", "--tokens", "100000000", "--temperature", "0"]
    with subprocess.Popen(
        command, cwd=home, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    ) as process:
        os.close(terminal)
        try:
            seen = read_until(person, b"> ")
            assert b"tiny is a base model" in seen
            os.write(person, b"/temprature 1\n")
            assert b"did you mean /temperature?" in read_until(person, b"> ")
            os.write(person, b"Show HN\n")
            read_until(person, b"Show HN", more=400)
            process.send_signal(signal.SIGINT)
            assert b"seed 1337: stopped]" in read_until(person, b"> ")
            # Once more where it came just before the terminal was read, which then waits for a key.
            read_until(person, b"> ", urge=lambda: process.send_signal(signal.SIGINT))
            os.write(person, b"\x04")
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            os.close(person)


def read_until(terminal: int, sign: bytes, *, more: int = 0, urge: Callable[[], None] = lambda: None) -> bytes:
    """What a terminal shows until `sign` has come, and `more` bytes behind it; `urge` at first, and when it is silent."""
    seen, deadline = b"", time.monotonic() + 60
    urge()
    while sign not in seen or len(seen.partition(sign)[2]) < more:
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 2)[0]:
            seen += os.read(terminal, 4096)
        else:
            urge()
    return seen
