"""The lanes as a ``concurrent.futures.Executor``: for ``run_in_executor``, for threads, for code that expects one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

from tidemill.engine.call_process import Request
from tidemill.engine.crew import Crew
from tidemill.engine.endings import settle, unsendable
from tidemill.errors import CallError
from tidemill.lanes.call_codec import Answer

__all__ = ["LoopExecutor", "WorkFuture"]

T = TypeVar("T")

_TURN_S: Final = 0.001

Prepare = Callable[..., Request]


class WorkFuture(concurrent.futures.Future[T]):
    """A future whose ``cancel`` stops the work, running or not; to wait for it on the loop's own thread is an error."""

    def __init__(self, loop: asyncio.AbstractEventLoop, loop_thread: int) -> None:
        super().__init__()
        self._loop = loop
        self._loop_thread = loop_thread

    def result(self, timeout: float | None = None) -> T:
        """As in the base class; raises `CallError` where waiting would block the loop that brings the result."""
        self._refuse_on_loop("result")
        value = super().result(timeout)
        error = super().exception(0)
        if error is not None:  # the base class of Python 3.11 takes an error that is false for none
            raise error
        return value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As in the base class; raises `CallError` where waiting would block the loop that brings the result."""
        self._refuse_on_loop("exception")
        return super().exception(timeout)

    def _refuse_on_loop(self, method: str) -> None:
        if threading.get_ident() == self._loop_thread and not self.done():
            raise CallError(
                f".{method}() on the event loop's own thread would wait for ever: the result comes through that loop. "
                "Use: await asyncio.wrap_future(future), or await loop.run_in_executor(lanes.executor(), fn, x)."
            )


class LoopExecutor(concurrent.futures.Executor):
    """``submit``, ``map`` and ``shutdown``, from any thread. Shutting it down leaves the lanes open.

    Calls from other threads are handed to the loop together, as many as have come since its last turn. When as many
    wait as may (`tidemill.Lanes`), ``submit`` waits in line, raises `LanesFull`, or drops the oldest; on the loop's own
    thread it cannot wait, and raises.
    """

    def __init__(
        self,
        crew: Crew,
        check: Callable[[], None],
        prepare: Prepare,
        loop: asyncio.AbstractEventLoop,
        loop_thread: int,
    ) -> None:
        self._crew = crew
        self._check = check
        self._prepare = prepare
        self._loop = loop
        self._thread = loop_thread
        self._open: set[WorkFuture[Any]] = set()
        self._handed: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._waking = False
        self._drained: asyncio.Future[None] | None = None
        self._shut = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> WorkFuture[T]:
        """Run ``fn(*args, **kwargs)`` in a lane. Raises `CallError` (a RuntimeError) when it cannot be sent."""
        self._check_open()
        future: WorkFuture[T] = WorkFuture(self._loop, self._thread)
        request = self._prepare(fn, args, kwargs, lambda outcome: self._settle(future, outcome))
        self._open.add(future)
        if not self._crew.bounded:
            self._on_loop(self._begin, future, request)
            return future
        try:
            self._enter(future, request)
        except BaseException:  # Ctrl-C, perhaps, though the loop is just taking the call
            future.cancel()
            self._on_loop(self._over, future)
            raise
        return future

    def _check_open(self) -> None:
        if self._shut:
            raise CallError("This executor was shut down, and takes no more calls.")
        self._check()
        if self._loop.is_closed():
            raise self._ended()

    def _ended(self) -> CallError:
        """The loop was closed without the lanes: nothing that it was to bring will come."""
        self.abandon()
        return CallError("The event loop of these lanes is closed.")

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """``fn`` of each, results in order, as in the base class; at most ``buffersize`` of them are read ahead.

        ``timeout`` is for all of them, from this call on. ``chunksize`` is taken and has no effect: calls travel
        together by themselves. Leaving the iterator early stops what is under way.
        """
        if chunksize < 1:
            raise ValueError(f"chunksize={chunksize!r} must be 1 or more.")
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize={buffersize!r} must be 1 or more.")
        until = None if timeout is None else time.monotonic() + timeout
        self._check_open()
        arguments = zip(*iterables, strict=False)
        pending = deque(self._submitted(fn, values) for values in islice(arguments, buffersize))
        return self._mapped(fn, arguments, pending, until)

    def _submitted(self, fn: Callable[..., T], values: tuple[Any, ...]) -> WorkFuture[T]:
        """One that cannot be sent fails at its place in the order."""
        try:
            return self.submit(fn, *values)
        except CallError as error:
            failed: WorkFuture[T] = WorkFuture(self._loop, self._thread)
            unsendable(failed, error)
            return failed

    def _mapped(
        self, fn: Callable[..., T], arguments: Iterator[Any], pending: deque[WorkFuture[T]], until: float | None
    ) -> Iterator[T]:
        try:
            while pending:
                left = None if until is None else max(0.0, until - time.monotonic())
                value = pending[0].result(left)
                pending.popleft()
                pending.extend(self._submitted(fn, values) for values in islice(arguments, 1))
                yield value
        finally:
            for future in pending:
                future.cancel()

    # -- to the loop -----------------------------------------------------------------------------------

    def _enter(self, future: WorkFuture[Any], request: Request) -> None:
        """Where too much may wait, each call asks the loop, by ``when_full``."""
        door = self._crew.door
        if threading.get_ident() != self._thread:
            entering = asyncio.run_coroutine_threadsafe(self._entered(future, request), self._loop)
            try:
                entering.result()
            finally:
                entering.cancel()
        elif door.must_wait and door.when_full != "drop_oldest":
            raise door.refuse(request.name)
        else:
            self._crew.make_room()
            self._begin(future, request)

    async def _entered(self, future: WorkFuture[Any], request: Request) -> None:
        entered = await self._crew.door.come_in(request.name, self._crew.make_room)
        self._begin(future, request)
        if entered:
            self._crew.door.entered()

    def _on_loop(self, act: Callable[..., None], *args: Any) -> None:
        if threading.get_ident() == self._thread:
            act(*args)
            return
        self._handed.append((act, args))
        if self._waking:
            return
        try:
            self._waking = True
            self._loop.call_soon_threadsafe(self._take)
        except BaseException as error:  # Ctrl-C too, before the loop was woken: the next one wakes it
            self._waking = False
            if isinstance(error, RuntimeError):
                raise self._ended() from error
            raise

    def _take(self) -> None:
        """Do what was handed over, for a millisecond at most."""
        self._waking = False  # first: what is handed over from now on wakes the loop again
        until = time.monotonic() + _TURN_S
        while self._handed:
            act, args = self._handed.popleft()
            act(*args)
            if time.monotonic() >= until:
                self._waking = True
                self._loop.call_soon(self._take)
                return

    def _begin(self, future: WorkFuture[Any], request: Request) -> None:
        if future.cancelled():  # on its way here
            self._given_up(future)
            return
        try:
            self._check()
        except CallError as error:  # closed while the call was on its way from its thread
            self._settle(future, error)
            return
        call = self._crew.submit(request)

        def ended(done: concurrent.futures.Future[Any]) -> None:
            if done.cancelled():
                self._on_loop(self._cancelled, done, call)  # not `future`: it would know itself

        future.add_done_callback(ended)

    def _cancelled(self, future: WorkFuture[Any], call: int) -> None:
        if future not in self._open:  # its result came while the cancel was on its way from another thread
            return
        self._crew.cancel(call)
        self._given_up(future)

    def _given_up(self, future: WorkFuture[Any]) -> None:
        self._over(future)
        future.set_running_or_notify_cancel()  # those in concurrent.futures.wait learn of it here

    def _settle(self, future: WorkFuture[Any], outcome: Sequence[Answer] | Exception) -> None:
        if future not in self._open:  # it was cancelled while its result was being copied, and that was told
            return
        try:
            is_open = not future.done() or future.cancelled()  # else somebody has set its result
            if is_open and future.set_running_or_notify_cancel():
                settle(future, outcome if isinstance(outcome, Exception) else outcome[0])
        except (concurrent.futures.InvalidStateError, RuntimeError):  # just now, in another thread
            pass
        finally:
            self._over(future)

    async def drained(self) -> None:
        """Wait until every call that was taken has ended."""
        while self._open:
            self._drained = self._loop.create_future()
            await self._drained

    def abandon(self) -> None:
        """The loop has ended: what was handed to it too late is told so."""
        for future in list(self._open):
            self._settle(future, CallError("The lanes were closed before this call was made."))

    def _over(self, future: WorkFuture[Any]) -> None:
        self._open.discard(future)
        if self._drained is not None and not self._open and not self._drained.done():
            self._drained.set_result(None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; ``wait`` for those that were taken, or cancel them.

        Raises `CallError` when it would have to wait on the event loop's own thread.
        """
        self._shut = True
        pending = list(self._open)
        if cancel_futures:
            for future in pending:
                future.cancel()
            pending = [future for future in pending if not future.done()]
        if wait and pending:
            if threading.get_ident() == self._thread:
                raise CallError(
                    "shutdown(wait=True) on the event loop's own thread would wait for ever: the results come through "
                    "that loop. Await the calls first, or use shutdown(wait=False)."
                )
            concurrent.futures.wait(pending)
