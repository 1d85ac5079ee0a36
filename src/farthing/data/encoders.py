"""Tokenising on all cores: processes of our own that take texts through a pipe and give tokens back.

Not `multiprocessing`: it would run a user's script again in each process, and talk in pickles.
"""

from __future__ import annotations

import os
import queue
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from farthing.data.tokenizer import Tokenizer
from farthing.errors import ResourceError

_BYTES_PER_PROCESS = 16_000_000  # below this, starting a process takes longer than it saves
_MOST_PROCESSES = 16
_COUNT = struct.Struct("<Q")

Encode = Callable[[list[str]], list[np.ndarray]]


@dataclass(frozen=True)
class Encoders:
    """Where to send texts to be encoded, and how many lots to have under way."""

    pool: ThreadPoolExecutor
    encode: Encode
    under_way: int

    def submit(self, texts: list[str]) -> Future[list[np.ndarray]]:
        """Begin to encode texts; the future gives one array each."""
        return self.pool.submit(self.encode, texts)


@contextmanager
def encoders(tokenizer: Tokenizer, size: int, *, processes: int | None = None) -> Iterator[Encoders]:
    """As many processes as `size` bytes of text are worth on this machine's cores; for little text, a thread.

    Raises:
        ResourceError: a process died.
    """
    wanted = min(_cores(), _MOST_PROCESSES, size // _BYTES_PER_PROCESS) if processes is None else processes
    if wanted < 2:
        with ThreadPoolExecutor(1) as pool:
            yield Encoders(pool, tokenizer.encode_batch_arrays, 1)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farthing-")))
        (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for _ in range(wanted):
            idle.put(stack.enter_context(_process(folder / "tokenizer.json", np.dtype(tokenizer.dtype))))

        def encode(texts: list[str]) -> list[np.ndarray]:
            process = idle.get()
            try:
                return process.encode(texts)
            finally:
                idle.put(process)

        yield Encoders(stack.enter_context(ThreadPoolExecutor(wanted)), encode, wanted)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class _Process:
    child: subprocess.Popen[bytes]
    dtype: np.dtype

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        assert self.child.stdin is not None and self.child.stdout is not None
        try:
            _send(self.child.stdin, [text.encode("utf-8") for text in texts])
            return [np.frombuffer(raw, self.dtype) for raw in _receive(self.child.stdout)]
        except (EOFError, OSError) as error:
            raise ResourceError(
                f"a tokenising process ended (exit code {self.child.wait()}), most likely for want of memory; "
                "close other programs and start again"
            ) from error


@contextmanager
def _process(tokenizer: Path, dtype: np.dtype) -> Iterator[_Process]:
    here = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "farthing.data.encoders", str(tokenizer)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    try:
        yield _Process(child, dtype)
    finally:
        child.kill()
        for pipe in (child.stdin, child.stdout):
            with suppress(OSError):  # what a dead process never read cannot be flushed
                if pipe is not None:
                    pipe.close()
        child.wait()


def _send(stream: IO[bytes], items: list[bytes]) -> None:
    stream.write(_COUNT.pack(len(items)))
    stream.write(np.array([len(item) for item in items], "<u8").tobytes())
    stream.write(b"".join(items))
    stream.flush()


def _receive(stream: IO[bytes]) -> list[bytes]:
    (count,) = _COUNT.unpack(_exactly(stream, _COUNT.size))
    sizes = np.frombuffer(_exactly(stream, 8 * count), "<u8").tolist()
    content = memoryview(_exactly(stream, sum(sizes)))
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    return [bytes(content[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) != size:
        raise EOFError
    return content


def _serve(tokenizer: Tokenizer) -> None:
    while True:
        try:
            texts = [raw.decode("utf-8") for raw in _receive(sys.stdin.buffer)]
        except EOFError:  # the parent is done, or dead
            return
        _send(sys.stdout.buffer, [ids.tobytes() for ids in tokenizer.encode_batch_arrays(texts)])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core already
    _serve(Tokenizer.from_json(Path(sys.argv[1]).read_text("utf-8")))
