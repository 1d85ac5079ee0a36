"""Spoiled files by the megabyte, put before every reader of foreign bytes, and a table of what came of them.

    python tests/faults/fuzzing.py                            half a megabyte (a minute)
    python tests/faults/fuzzing.py --megabytes 10 --write     the long form, its table into benchmarks/results/fuzzing.md
    python tests/faults/fuzzing.py --only recipe --replay 17  one input again, with its traceback

Each reader works in a fork of its own: with its memory limited, its clock watched, and under an audit hook that ends
any input that runs code, starts a process, opens a connection, or reads or writes a file outside its folder. An input is
well answered if the reader returns or raises a FarthingError of one short line, within a second of processor time and
200 MB. Everything else is a failure, with the number that gives the input back.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from farthing.errors import FarthingError  # noqa: E402
from farthing.serving.refusal import Refusal  # noqa: E402
from farthing.sinks.legible import legible  # noqa: E402
from faults.foreign_files import Case, furnish  # noqa: E402
from faults.mutations import mutated  # noqa: E402

MOST_SECONDS = 1.0
"""of processor time, for one input"""
MOST_WALL_SECONDS = 20
"""on a machine that has other things to do; then it hangs"""
MOST_BYTES = 200_000_000
"""of memory, on top of what the program takes before the first input"""
MOST_ADDRESSES = 10_000_000_000
"""the same in addresses, which libraries reserve generously: eight megabytes for each thread that a plan may ask for"""
LONGEST_MESSAGE = 2_000
"""characters that a person is shown of one fault"""
_FORBIDDEN = frozenset(
    ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn",
     "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "webbrowser.open", "shutil.rmtree")
)  # fmt: skip
_CHANGES = frozenset(
    ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
)
_HARMLESS = (
    "/proc/",
    "/sys/",
    "/dev/null",
    "/dev/urandom",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    sys.prefix,
    sys.base_prefix,
)


class Forbidden(BaseException):
    """A reader did what no input may make it do; no handler for Exception swallows it."""


@dataclass
class Tally:
    """What came of the inputs of one reader."""

    inputs: int = 0
    bytes: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    memory: int = 0
    failures: list[str] = field(default_factory=list)


def spoiled(case: Case, seed: int, number: int) -> bytes:
    """Input `number` of a reader."""
    draw = random.Random(f"{seed} {case.reader.name} {number}")
    sound = draw.choice((case.sound, case.sound, *case.reader.more))
    return mutated(draw, sound, (case.sound, *case.reader.more), case.reader.structure)


def fuzz(case: Case, *, seed: int, bytes_wanted: int, inputs: int, seconds: float) -> Tally:
    """Put spoiled files before one reader, in forks of this process, until there were enough of them.

    Args:
        case: the reader and its sound folder.
        seed: other seeds give other inputs.
        bytes_wanted: at least so many bytes.
        inputs: and at least so many inputs.
        seconds: but no longer than this, by the clock.
    """
    tally, number, until = Tally(), 0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="farthing-fuzz-") as name:
        place = Path(name).resolve()
        shutil.copytree(case.folder, place / "read")
        report = place / "report"
        while (tally.bytes < bytes_wanted or tally.inputs < inputs) and time.monotonic() < until:
            report.write_bytes(b"")
            child = os.fork()
            if not child:
                _work(case, place, report, seed, number, (bytes_wanted - tally.bytes, inputs - tally.inputs), until)
            _, status = os.waitpid(child, 0)
            begun = _collect(report, tally)
            number = begun + 1
            if code := os.waitstatus_to_exitcode(status):
                how = f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
                tally.failures.append(f"input {begun}: the process {how}")
                if len(tally.failures) > 10:
                    break
    return tally


def _collect(report: Path, tally: Tally) -> int:
    """Add what a fork has told; returns the number of its last input."""
    last = -1
    for line in report.read_text("utf-8").splitlines():
        told = json.loads(line)
        last = told["number"]
        if "bytes" in told:
            tally.inputs, tally.bytes = tally.inputs + 1, tally.bytes + told["bytes"]
        else:
            tally.accepted += told["accepted"]
            tally.refused += told["refused"]
            tally.slowest = max(tally.slowest, told["seconds"])
            tally.memory = max(tally.memory, told["memory"])
            if told["failure"]:
                tally.failures.append(f"input {last}: {told['failure']}")
    return last


def _work(case: Case, place: Path, report: Path, seed: int, number: int, wanted: tuple[int, int], until: float) -> None:
    """The fork: never returns."""
    code, told = 1, os.open(report, os.O_WRONLY | os.O_APPEND)
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        sys.stdout = sys.stderr = io.StringIO()
        os.chdir(place)
        folder = place / "read"
        case.reader.read(folder)  # whatever is loaded late is loaded now, and by no input
        watch = _Watch(place, points=case.reader.points)
        peak, done, size = _peak(), 0, 0
        _limit_memory()
        while (size < wanted[0] or done < wanted[1]) and time.monotonic() < until:
            content = spoiled(case, seed, number)
            _tell(told, number=number, bytes=len(content))
            if case.reader.anew and number:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(case.folder, folder)
            (folder / case.reader.file).write_bytes(content)
            case.reader.settle(folder)
            signal.alarm(MOST_WALL_SECONDS)
            began = time.process_time()
            failure, refused = watch.over(lambda: case.reader.read(folder))
            seconds, memory = time.process_time() - began, _peak() - peak
            signal.alarm(0)
            if not failure and seconds > MOST_SECONDS:
                failure = f"took {seconds:.1f} s"
            if not failure and memory > MOST_BYTES:
                failure = f"took {memory / 1e6:.0f} MB"
            _tell(told, number=number, accepted=not (failure or refused), refused=refused, seconds=seconds, memory=memory,
                  failure=failure)  # fmt: skip
            number, done, size = number + 1, done + 1, size + len(content)
            if memory > MOST_BYTES // 2:
                break  # what a process once had it hardly gives back: a fresh one measures the next input
        code = 0
    except BaseException:
        _tell(told, number=number, accepted=0, refused=0, seconds=0, memory=0, failure=traceback.format_exc()[-600:])
    finally:
        os._exit(code)


def _tell(descriptor: int, **facts: Any) -> None:
    os.write(descriptor, json.dumps(facts).encode() + b"\n")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    limit = pages * resource.getpagesize() + MOST_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class _Watch:
    """Ends what an input must not make a reader do, and judges how it ended."""

    def __init__(self, place: Path, *, points: bool) -> None:
        self._points = points
        self._inside = f"{place}{os.sep}"
        self._sound = str(Path(os.environ["FARTHING_CACHE"]).parent)
        self._watching = False
        self._seen = ""
        sys.addaudithook(self._heard)

    def over(self, work: Any) -> tuple[str, bool]:
        """Let a reader read: what was wrong with how it did, and whether it refused."""
        self._seen, self._watching = "", True
        failure, refused = "", False
        try:
            work()
        except (FarthingError, Refusal) as error:
            refused = True
            said = str(error)
            if "\n" in said or not said.strip():
                failure = f"not one line: {said[:200]!r}"
            elif len(said) > LONGEST_MESSAGE:
                failure = f"a message of {len(said):,} characters: {said[:200]!r}"
            elif legible(said) != legible(legible(said)):
                failure = f"not legible: {said[:200]!r}"
        except BaseException as error:
            failure = f"{type(error).__name__}: {str(error)[:200]!r} at {_where(error)}"
        finally:
            self._watching = False
        return self._seen or failure, refused

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        self._watching = False
        try:
            wrong = self._wrong(event, arguments)
        finally:
            self._watching = True
        if wrong:
            self._seen = wrong
            raise Forbidden(wrong)

    def _wrong(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event in _FORBIDDEN:
            return f"{event}{arguments!r:.200}"
        if event == "exec":
            file = str(getattr(arguments[0], "co_filename", arguments[0]))
            who = "".join(traceback.format_stack(sys._getframe(2), limit=3))[-300:] if file == "<string>" else ""
            return (
                ""
                if file.startswith((str(ROOT), sys.prefix, sys.base_prefix, "<frozen"))
                else f"runs code of {file}{who}"
            )
        if event in ("import", "ctypes.dlopen"):
            file = str(arguments[-1 if event == "ctypes.dlopen" else 1] or "")
            return f"imports {file}" if file.startswith(self._inside) else ""
        if event == "open" or event in _CHANGES:
            path = arguments[0]
            if isinstance(path, int) or path is None:
                return ""
            real = os.path.realpath(os.fsdecode(path))
            own = (self._inside, str(ROOT), tempfile.gettempdir()) if event != "open" else (self._inside, str(ROOT))
            reads = event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
            fine = (reads and self._points) or real.startswith((*own, self._sound, *_HARMLESS))
            return "" if fine or real + os.sep == self._inside else f"{event} {real}"
        return ""


def _where(error: BaseException) -> str:
    """The last place of ours that an error came by."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}src{os.sep}farthing{os.sep}" in frame.filename]
    return " <- ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed((ours or frames)[-3:]))


def campaign(
    cases: Iterable[Case], *, seed: int, megabytes: float, inputs: int, seconds: float, show: bool = False
) -> dict[str, Tally]:
    """Every reader with its share of the bytes, and no fewer than so many inputs."""
    cases = list(cases)
    share, found = int(megabytes * 1e6 / len(cases)), {}
    for case in cases:
        found[case.reader.name] = tally = fuzz(
            case, seed=seed, bytes_wanted=share, inputs=inputs, seconds=seconds / len(cases)
        )
        if show:
            print(_row(case.reader.name, tally), file=sys.stderr, flush=True)
            for failure in tally.failures[:5]:
                print(f"    {failure}", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, Tally]) -> str:
    """Markdown."""
    rows = [
        "| file | inputs | bytes | read | refused in a line | failures | slowest | memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    total = Tally()
    for name, tally in found.items():
        rows.append(_row(name, tally))
        for part in ("inputs", "bytes", "accepted", "refused", "failures"):
            setattr(total, part, getattr(total, part) + getattr(tally, part))
        total.slowest, total.memory = max(total.slowest, tally.slowest), max(total.memory, tally.memory)
    rows.append(_row("**all**", total))
    # The rule of three: no failure in n independent trials bounds the rate by 3/n (95 %).
    bound = f"{3 / total.inputs:.4%}" if total.inputs and not total.failures else "none"
    rows += ["", f"Upper bound of the rate of failure among inputs so drawn, at 95 %: {bound}."]
    rows += [f"FAILED: {name}: {failure}" for name, tally in found.items() for failure in tally.failures[:3]]
    return "\n".join(rows)


def _row(name: str, tally: Tally) -> str:
    return (
        f"| {name} | {tally.inputs:,} | {tally.bytes:,} | {tally.accepted:,} | {tally.refused:,} | {len(tally.failures)} | "
        f"{tally.slowest * 1000:.0f} ms | {tally.memory / 1e6:.0f} MB |"
    )


def prepared(place: Path) -> list[Case]:
    """Sound files of every kind in `place`, which becomes the working folder."""
    os.chdir(place)
    os.environ["FARTHING_CACHE"] = str(place / "cache")
    return furnish(place)


def main(words: Sequence[str] | None = None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=0.5, help="of spoiled input, over all readers")
    parser.add_argument("--inputs", type=int, default=20, help="at least so many for each reader")
    parser.add_argument("--seconds", type=float, default=36_000, help="and no longer than this in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="the reader of this name")
    parser.add_argument("--replay", type=int, help="with --only: read this input here, and let its error through")
    parser.add_argument("--write", action="store_true", help="the table into benchmarks/results/fuzzing.md too")
    asked = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="farthing-sound-") as name:
        place = Path(name).resolve()
        cases = [one for one in prepared(place) if asked.only in (None, one.reader.name)]
        if asked.replay is not None:
            content = spoiled(cases[0], asked.seed, asked.replay)
            print(content[:2000])
            (cases[0].folder / cases[0].reader.file).write_bytes(content)
            cases[0].reader.settle(cases[0].folder)
            cases[0].reader.read(cases[0].folder)
            return
        found = campaign(
            cases, seed=asked.seed, megabytes=asked.megabytes, inputs=asked.inputs, seconds=asked.seconds, show=True
        )
        os.chdir(ROOT)
    text = table(found)
    print(text)
    if asked.write:
        (ROOT / "benchmarks" / "results" / "fuzzing.md").write_text(text + "\n", "utf-8")
    sys.exit(1 if any(tally.failures for tally in found.values()) else 0)


if __name__ == "__main__":
    main()
