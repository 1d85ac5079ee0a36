"""Turns: who may use the processor. A few at a time, a few more in line, everyone else is turned away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, TypeVar

from farthing.serving.refusal import Refusal

T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Work = Callable[[Callable[[], bool]], Iterator[T]]
"""yields results; it is handed a function that says whether it should stop"""
_SOON = "1"
"""seconds after which a client that was turned away may ask again"""


class HungUp(Exception):
    """The client is gone; nobody reads what is still to come."""


class Turn(Generic[T]):
    """One request's work, done in a thread: an asynchronous iterator over what it yields, or the error it ends in."""

    def __init__(self, work: Work[T]) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = threading.Event()
        self._items: asyncio.Queue[tuple[T | None, BaseException | None]] = asyncio.Queue()
        self._work = work
        self.future: Future[None] | None = None

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        item, error = await self._items.get()
        if error is not None:
            raise error
        assert item is not None
        return item

    def run(self) -> None:
        """Do the work, in the thread that it is called from."""
        try:
            for item in self._work(self._left.is_set):
                if self._left.is_set():
                    return
                self._tell(item, None)
            self._tell(None, StopAsyncIteration())
        except Exception as error:
            self._tell(None, error)

    def leave(self) -> None:
        """Stop the work before its next token, or before it begins; whoever waits for it is told HungUp."""
        self._left.set()
        self._items.put_nowait((None, HungUp()))
        if self.future is not None:
            self.future.cancel()

    @asynccontextmanager
    async def attended(self, receive: Receive) -> AsyncIterator[None]:
        """While a client waits: leave when it hangs up, and in any case at the end."""
        listening = asyncio.create_task(self._listen(receive))
        try:
            yield
        finally:
            listening.cancel()
            self.leave()

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.leave()

    def _tell(self, item: T | None, error: BaseException | None) -> None:
        # The loop may have been closed under a thread that was still at work: then nobody waits any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._items.put_nowait, (item, error))


class Turns:
    """The threads that do the work, and the line before them.

    Args:
        concurrency: how many work at a time.
        waiting: how many more may stand in line.
    """

    def __init__(self, *, concurrency: int, waiting: int) -> None:
        self.concurrency, self._room = concurrency, concurrency + waiting
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="completion")
        self._there = 0
        self._lock = threading.Lock()

    @property
    def there(self) -> int:
        """How many are at work or in line."""
        return self._there

    def take(self, work: Work[T]) -> Turn[T]:
        """Get in line.

        Raises:
            Refusal: 429, the line is full; 503, the server is about to end.
        """
        with self._lock:
            if self._there >= self._room:
                raise Refusal(
                    429,
                    f"{self._there} requests are being worked on or wait; try again later",
                    code="rate_limit_exceeded",
                    headers={"retry-after": _SOON},
                )
            self._there += 1
        turn = Turn(work)
        try:
            turn.future = self._threads.submit(turn.run)
        except RuntimeError:
            self._gone()
            raise Refusal(503, "the server is about to end", code="shutting_down") from None
        turn.future.add_done_callback(self._gone)
        return turn

    def close(self) -> None:
        """Let nobody in any more, and send away who waits."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _gone(self, future: Future[None] | None = None) -> None:
        with self._lock:
            self._there -= 1
