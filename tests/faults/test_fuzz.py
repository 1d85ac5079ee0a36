"""No file of a stranger brings a reader down, makes it run code, fills memory, or leads it out of its folder.

The short form of `python tests/faults/fuzzing.py --megabytes 10`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from faults.foreign_files import Case, Read
from faults.fuzzing import campaign, fuzz, prepared, spoiled, table

READERS = 47


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Case]]:
    place = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("FARTHING_CACHE", str(place / "cache"))
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield prepared(place)


def test_every_reader_stands_what_is_put_before_it(cases: list[Case]) -> None:
    assert len(cases) >= READERS and len({case.reader.name for case in cases}) == len(cases)
    seed = 1 if os.environ.get("CI") else os.getpid()
    found = campaign(cases, seed=seed, megabytes=0.1, inputs=6, seconds=600)
    assert not [failure for tally in found.values() for failure in tally.failures], f"seed {seed}\n{table(found)}"
    assert all(tally.inputs for tally in found.values())
    assert sum(tally.accepted for tally in found.values()) and sum(tally.refused for tally in found.values())


def test_an_input_is_a_function_of_its_number(cases: list[Case]) -> None:
    for case in cases:
        made = [spoiled(case, 3, number) for number in range(4)]
        assert made == [spoiled(case, 3, number) for number in range(4)]
        assert set(made) - {case.sound}, case.reader.name


def _takes_long(at: Path) -> None:
    end = time.process_time() + 1.5
    while time.process_time() < end:
        pass


def _takes_memory(at: Path) -> None:
    bytearray(300_000_000)[::4096] = b"x" * len(range(0, 300_000_000, 4096))


def _writes_elsewhere(at: Path) -> None:
    Path("/var/tmp/farthing-fuzz-mark").write_text("x", "ascii")


def _fails(at: Path) -> None:
    raise RuntimeError("a traceback")


SEEDED: dict[str, tuple[str, Read]] = {
    "a fault of ours": ("RuntimeError", _fails),
    "code of the file": ("runs code of", lambda at: exec(compile("1", str(at / "body"), "exec"))),
    "a process": ("subprocess.Popen", lambda at: subprocess.run(["true"], check=True)),
    "a connection": ("socket.connect", lambda at: socket.socket().connect(("127.0.0.1", 9))),
    "a look-up of a name": ("socket.getaddrinfo", lambda at: socket.getaddrinfo("localhost", 9)),
    "a pickle's class": ("pickle.find_class", lambda at: __import__("pickle").loads(b"cos\ngetpid\n(tR.")),
    "a file elsewhere": ("open /var/tmp", _writes_elsewhere),
    "a file to read elsewhere": ("open /etc/passwd", lambda at: Path("/etc/passwd").read_bytes()),
    "a folder elsewhere": ("os.mkdir", lambda at: os.mkdir("/var/tmp/farthing-fuzz-folder")),
    "time": ("took", _takes_long),
    "memory": ("MB", _takes_memory),
    "addresses": ("MemoryError", lambda at: bytearray(50_000_000_000)),
    "a crash": ("SIGABRT", lambda at: os.abort()),
}


@pytest.mark.parametrize("name", SEEDED)
def test_the_harness_catches_a_reader_that_does_harm(cases: list[Case], name: str) -> None:
    told, harm = SEEDED[name]
    sound = next(case for case in cases if case.reader.file == "body")
    calls = iter([lambda at: None])

    def read(at: Path) -> object:
        # The first reading is that of the sound file.
        work: Callable[[Path], object] = next(calls, harm)
        return work(at)

    tally = fuzz(replace(sound, reader=replace(sound.reader, read=read)), seed=1, bytes_wanted=1, inputs=1, seconds=20)
    assert tally.failures and told in tally.failures[0], tally.failures
