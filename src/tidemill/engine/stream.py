"""Results in order over a source, with a bounded look-ahead."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from time import monotonic
from typing import Any, Final, Protocol

__all__ = ["Calling", "streamed"]


class Calling(Protocol):
    """How the calls of a stream reach the lanes."""

    def submit(self, value: Any) -> asyncio.Future[Any]:
        """Call the function with the value; the future is the call's own."""

    def abandon(self) -> None:
        """Nobody asks for what is left any more: stop it."""


_END: Final = object()
_TURN_S: Final = 0.001
"""Of each turn of the loop, what is spent on reading: more waits for the next."""
_AHEAD: Final = 64
"""Values that are read, or as many as the window takes, before a result is given: lanes have work while its reader takes its time. A
wider window is filled later, and holds no result back."""


class _Plain:
    """Reads a plain iterable, in the task of who asks for results."""

    def __init__(self, source: Iterable[Any], calls: _Calls) -> None:
        self._source = iter(source)
        self._calls = calls

    def read(self) -> bool:
        """Submit as many values as the window takes; whether it takes more, but this turn of the loop no longer."""
        calls = self._calls
        try:
            while not calls.ended and not calls.full:
                if calls.is_turn_over():
                    return True
                value = next(self._source, _END)
                if value is _END:
                    calls.ended = True
                else:
                    calls.pending.append(calls.submit(value))
        except Exception as error:  # noqa: BLE001 - the source's own; told when the calls before it have ended
            calls.ended, calls.error = True, error
        return False

    async def some(self) -> None:
        """Return when a call is pending, or the source has ended."""

    async def aclose(self) -> None:
        """Read no more."""


class _Asynchronous:
    """Reads an asynchronous iterable in one task of its own: results need not wait for it, and whatever it keeps across a
    ``yield`` (a TaskGroup, a timeout, context variables) is in one task and one context.
    """

    def __init__(self, source: AsyncIterable[Any], calls: _Calls) -> None:
        self._source = aiter(source)
        self._calls = calls
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._some: asyncio.Future[None] | None = None
        self._closing = False

    def read(self) -> bool:
        """Go on reading if the window has room; its task sees to the turns of the loop."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._read())
            self._task.add_done_callback(self._ended)
        elif self._room is not None and not self._calls.full:
            _wake(self._room)
        return False

    async def some(self) -> None:
        """Return when a call is pending, or the source has ended."""
        self._some = self._loop.create_future()
        await self._some

    async def _read(self) -> None:
        value = await anext(self._source, _END)
        while value is not _END and not self._closing:
            self._calls.pending.append(self._calls.submit(value))
            _wake(self._some)
            value = await self._next()

    async def _next(self) -> Any:
        try:
            if self._calls.is_turn_over():  # values that are at hand keep the task going
                await asyncio.sleep(0)
            while self._calls.full:
                self._room = self._loop.create_future()
                await self._room
        except asyncio.CancelledError as error:
            calls = self._calls
            if self._closing or not hasattr(self._source, "athrow") or len(calls.pending) >= 2 * calls.window:
                raise  # the last: a source that answers each cancel with a value must not be read ahead without end
            try:  # by a TaskGroup or a timeout of the source's, which knows what it means
                return await self._source.athrow(error)
            except StopAsyncIteration:
                return _END
        return await anext(self._source, _END)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._calls.ended = True
        self._calls.error = asyncio.CancelledError() if task.cancelled() else task.exception()
        _wake(self._some)

    async def aclose(self) -> None:
        """Stop reading."""
        self._closing = True
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
        self._calls.error = None
        del self._source  # let go of here, whoever still holds the task, such as a TaskGroup of the source's own


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class _Calls:
    """What was read of a source and not yielded."""

    def __init__(self, submit: Callable[[Any], asyncio.Future[Any]], window: int) -> None:
        self.submit = submit
        self.window = window
        self.pending: deque[asyncio.Future[Any]] = deque()
        self.ended = False
        """Whether there are no more."""
        self.error: BaseException | None = None
        """Of the source; its place is after what is pending."""
        self._loop = asyncio.get_running_loop()
        self._until: float | None = None

    def is_turn_over(self) -> bool:
        """Whether reading has had its part of this turn of the loop, which begins with the first call of this in it."""
        if self._until is None:
            self._until = monotonic() + _TURN_S
            self._loop.call_soon(self._new_turn)
            return False
        return monotonic() >= self._until

    def _new_turn(self) -> None:
        self._until = None

    @property
    def full(self) -> bool:
        return len(self.pending) >= self.window


async def streamed(
    calling: Calling,
    values: Iterable[Any] | AsyncIterable[Any],
    window: int,
    *,
    return_exceptions: bool,
) -> AsyncGenerator[Any, None]:
    """See `tidemill.Lanes.stream`."""
    calls = _Calls(calling.submit, window)
    pending = calls.pending
    source = _Asynchronous(values, calls) if isinstance(values, AsyncIterable) else _Plain(values, calls)
    try:
        while True:
            if source.read():
                await asyncio.sleep(0)
                if len(pending) < _AHEAD or not pending[0].done():
                    continue
            if pending:
                if not pending[0].done():
                    with contextlib.suppress(Exception):  # told below, at its place
                        await pending[0]
                if return_exceptions and pending[0].exception() is not None:
                    yield pending.popleft().exception()
                else:
                    yield pending.popleft().result()  # without a name: its error has this frame
            elif not calls.ended:
                await source.some()
            elif calls.error is not None:
                error, calls.error = calls.error, None
                raise error
            else:
                return
    finally:
        calling.abandon()
        for future in pending:
            if future.done() and not future.cancelled():
                future.exception()  # seen: nobody will ask for it
        await source.aclose()
