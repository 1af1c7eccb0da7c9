"""The lanes as a ``concurrent.futures.Executor``: for ``run_in_executor``, for threads, for code that expects one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tidemill.engine.call_process import Request
from tidemill.engine.crew import Crew
from tidemill.errors import CallError
from tidemill.lanes.call_codec import Answer

__all__ = ["LoopExecutor", "WorkFuture"]

T = TypeVar("T")

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
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As in the base class; raises `CallError` where waiting would block the loop that brings the result."""
        self._refuse_on_loop("exception")
        return super().exception(timeout)

    def _refuse_on_loop(self, method: str) -> None:
        if not self.done() and threading.get_ident() == self._loop_thread:
            raise CallError(
                f".{method}() on the event loop's own thread would wait for ever: the result comes through that loop. "
                "Use: await asyncio.wrap_future(future), or await loop.run_in_executor(lanes.executor(), fn, x)."
            )


class LoopExecutor(concurrent.futures.Executor):
    """``submit``, ``map`` and ``shutdown``, from any thread. Shutting it down leaves the lanes open."""

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
        self._shut = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> WorkFuture[T]:
        """Run ``fn(*args, **kwargs)`` in a lane. Raises `CallError` (a RuntimeError) when it cannot be sent."""
        if self._shut:
            raise CallError("This executor was shut down; lanes.executor() gives another one.")
        self._check()
        future: WorkFuture[T] = WorkFuture(self._loop, self._thread)
        request = self._prepare(fn, args, kwargs, lambda outcome: self._settle(future, outcome))
        self._open.add(future)
        self._on_loop(self._begin, future, request)
        return future

    def _on_loop(self, act: Callable[..., None], *args: Any) -> None:
        if threading.get_ident() == self._thread:
            act(*args)
            return
        try:
            self._loop.call_soon_threadsafe(act, *args)
        except RuntimeError as error:
            raise CallError("The event loop of these lanes is closed.") from error

    def _begin(self, future: WorkFuture[Any], request: Request) -> None:
        try:
            self._check()
        except CallError as error:  # closed while the call was on its way from its thread
            self._settle(future, error)
            return
        call = self._crew.submit(request)

        def ended(done: concurrent.futures.Future[Any]) -> None:
            if done.cancelled():
                self._on_loop(self._cancelled, future, call)

        future.add_done_callback(ended)

    def _cancelled(self, future: WorkFuture[Any], call: int) -> None:
        if future not in self._open:  # its result came while the cancel was on its way from another thread
            return
        self._crew.cancel(call)
        self._open.discard(future)
        future.set_running_or_notify_cancel()  # those in concurrent.futures.wait learn of it here

    def _settle(self, future: WorkFuture[Any], outcome: Sequence[Answer] | Exception) -> None:
        if not future.set_running_or_notify_cancel():
            self._open.discard(future)
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            try:
                value = outcome[0].value()
            except Exception as error:  # noqa: BLE001 - the call's own error, or a BadResult
                future.set_exception(error)
            else:
                future.set_result(value)
        self._open.discard(future)

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
