"""Exit codes of what the operating system refuses; other tests show those of our own errors where they are raised."""

from __future__ import annotations

import errno
import os

import pytest

from cli.small import Command
from farthing import api
from farthing.errors import of_the_system


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, 2),
        (errno.EROFS, 2),
        (errno.ENAMETOOLONG, 2),
        (errno.EIO, 6),
        (errno.EMFILE, 6),
        (errno.ESTALE, 6),
    ],
)
def test_a_failing_disk_is_one_line_and_no_fault_of_ours(
    number: int, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*arguments: object, **more: object) -> None:
        raise OSError(number, os.strerror(number), "runs/a/events.jsonl")

    monkeypatch.setattr(api, "train", train)
    answer = Command(capsys)("train", "default")
    assert answer.code == code
    assert answer.err.count("\n") == 1
    assert "runs/a/events.jsonl" in answer.err and os.strerror(number) in answer.err


def test_what_should_not_have_happened_has_no_class() -> None:
    assert of_the_system(OSError(errno.EBADF, "Bad file descriptor")) is None
