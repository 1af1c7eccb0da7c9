"""Results in order over a source, with a bounded look-ahead."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, Final, Protocol

__all__ = ["Calling", "streamed"]


class Calling(Protocol):
    """How the calls of a stream reach the lanes."""

    def submit(self, value: Any) -> asyncio.Future[Any]:
        """Call the function with the value; the future is the call's own."""

    def abandon(self) -> None:
        """Nobody asks for what is left any more: stop it."""


_END: Final = object()


class _Source:
    """Reads a plain or asynchronous iterable; an asynchronous one in a task, so that results need not wait for it."""

    def __init__(self, source: Iterable[Any] | AsyncIterable[Any]) -> None:
        self._plain: Iterator[Any] | None = None
        self._asynchronous: AsyncIterator[Any] | None = None
        if isinstance(source, AsyncIterable):
            self._asynchronous = aiter(source)
        else:
            self._plain = iter(source)
        self.reading: asyncio.Task[Any] | None = None
        self.ended = False

    def next_nowait(self) -> Any:
        """The next value; _END when there is none yet (it is being read) or none any more."""
        value = self._next()
        if value is _END and self.reading is None:
            self.ended = True
        return value

    def _next(self) -> Any:
        if self._plain is not None:
            return next(self._plain, _END)
        if self.reading is None:
            self.reading = asyncio.ensure_future(self._read())
        if not self.reading.done():
            return _END
        task, self.reading = self.reading, None
        return task.result()

    async def _read(self) -> Any:
        assert self._asynchronous is not None
        return await anext(self._asynchronous, _END)

    async def aclose(self) -> None:
        """Stop reading."""
        if self.reading is not None:
            self.reading.cancel()
            await asyncio.wait([self.reading])
            if not self.reading.cancelled():
                self.reading.exception()


async def streamed(
    calling: Calling,
    values: Iterable[Any] | AsyncIterable[Any],
    window: int,
    *,
    return_exceptions: bool,
) -> AsyncGenerator[Any, None]:
    """See `tidemill.Lanes.stream`."""
    source = _Source(values)
    pending: deque[asyncio.Future[Any]] = deque()
    try:
        while True:
            while not source.ended and len(pending) < window and (value := source.next_nowait()) is not _END:
                pending.append(calling.submit(value))
            if pending and pending[0].done():
                future = pending.popleft()
                error = future.exception()
                if error is None:
                    yield future.result()
                elif return_exceptions:
                    yield error
                else:
                    raise error
            elif pending and source.reading is None:
                with contextlib.suppress(Exception):  # told above, at its place
                    await pending[0]
            elif pending or source.reading is not None:
                waiting = [pending[0]] if pending else []
                if source.reading is not None:
                    waiting.append(source.reading)
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            elif source.ended:
                return
    finally:
        calling.abandon()
        for future in pending:
            if future.done() and not future.cancelled():
                future.exception()  # seen: nobody will ask for it
        await source.aclose()
