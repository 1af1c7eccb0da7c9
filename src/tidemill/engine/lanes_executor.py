"""`LanesExecutor`: lanes for programs without an event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import concurrent.futures.thread  # its own hook at the interpreter's end must be set before, to run after, ours
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NoReturn, TypeVar

from tidemill.engine.executor import LoopExecutor, WorkFuture
from tidemill.engine.lanes import Lanes
from tidemill.engine.lanes_statistics import LanesStatistics
from tidemill.errors import CallError

__all__ = ["LanesExecutor"]

T = TypeVar("T")


_OF_PROCESS_POOLS: Final = {
    "max_workers": "how many lanes there are is lanes=, the first argument",
    "max_tasks_per_child": "a process is replaced after recycle_after= calls",
    "mp_context": "all lanes are forked from a process that holds nothing of the application's",
}
"""What those who had one write, and what to write here."""


class LanesExecutor(concurrent.futures.Executor):
    """Lanes as a ``concurrent.futures.Executor``, for programs without an event loop.

    It takes the arguments of `tidemill.Lanes` and starts its processes at once. One thread, named "tidemill-lanes",
    runs a private event loop that sends calls and receives results; it runs no function of the caller's, except for
    the callbacks of futures. Use it with ``with``, or call `shutdown`. At the end of the program pending calls are
    finished first, as with the executors of the standard library; if it is forgotten, its processes end when its
    last call has.

    >>> with LanesExecutor(0) as pool:
    ...     list(pool.map(abs, [-1, 2, -3]))
    [1, 2, 3]
    """

    def __init__(self, lanes: int | None = None, **options: Any) -> None:
        """Return when all lanes are ready; raises what `tidemill.Lanes` does."""
        for name in _OF_PROCESS_POOLS.keys() & options:
            raise TypeError(f"LanesExecutor has no {name}=, as ProcessPoolExecutor has: {_OF_PROCESS_POOLS[name]}.")
        self._io = _Thread(Lanes(lanes, **options))
        self._executor = self._io.start()
        _running.add(self._io)
        weakref.finalize(self, self._io.finish).atexit = False

    def __reduce__(self) -> NoReturn:
        raise CallError("A LanesExecutor stays in the process that made it; a function in a lane cannot use it.")

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> WorkFuture[T]:
        """Run ``fn(*args, **kwargs)`` in a lane. Raises `CallError` (a RuntimeError) when it cannot be sent."""
        self._io.check()
        try:
            return self._executor.submit(fn, *args, **kwargs)
        except CallError as error:
            if self._io.has_ended:
                raise CallError(
                    "This LanesExecutor was shut down, or ended with the program: it takes no more calls."
                ) from error
            raise

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """``fn`` of each, results in order; at most ``buffersize`` of them are read ahead.

        ``timeout`` is for all of them, from this call on. ``chunksize`` is taken and has no effect: calls travel
        together by themselves. Leaving the iterator early stops what is under way.
        """
        self._io.check()
        return self._executor.map(fn, *iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize)

    def statistics(self) -> LanesStatistics:
        """How the lanes are, now; busy shares are since the last reading."""
        self._io.check()
        return self._io.ask(self._io.lanes.statistics)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; finish those that were taken, or cancel them; then end the processes and the thread."""
        if self._io.is_elsewhere:
            return
        self._executor.shutdown(wait=False, cancel_futures=cancel_futures)
        self._io.finish()
        if wait:
            self._io.join()


class _Thread:
    """The thread, its loop and its lanes. It knows nothing of the `LanesExecutor`, which may be forgotten."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self._pid = os.getpid()
        self._ready: concurrent.futures.Future[LoopExecutor] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked_to_finish = False
        self._thread = threading.Thread(target=self._main, name="tidemill-lanes", daemon=True)

    def start(self) -> LoopExecutor:
        """Return when the lanes are ready."""
        self._thread.start()
        try:
            return self._ready.result()
        except BaseException:  # Ctrl-C, perhaps
            self.finish()
            raise

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)
        else:
            self._ready.result().abandon()

    async def _serve(self) -> None:
        self._finish, self._loop = asyncio.Event(), asyncio.get_running_loop()
        async with self.lanes:
            executor = self.lanes.executor()
            self._ready.set_result(executor)
            if not self._asked_to_finish:
                await self._finish.wait()
            await executor.drained()

    @property
    def is_elsewhere(self) -> bool:
        """Whether this process was forked from the one that has the thread."""
        return os.getpid() != self._pid

    @property
    def has_ended(self) -> bool:
        """Whether its lanes are closed."""
        return not self._thread.is_alive()

    def check(self) -> None:
        """Raises `CallError` in a process that was forked: the thread is not there."""
        if self.is_elsewhere:
            raise CallError(
                "This LanesExecutor belongs to the process that this one was forked from; make a new one here."
            )

    def ask(self, question: Callable[[], T]) -> T:
        """Its answer, from the loop's thread."""
        assert self._loop is not None
        if threading.current_thread() is self._thread:
            return question()
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()

        def answered() -> None:
            try:
                answer.set_result(question())
            except Exception as error:  # noqa: BLE001 - told to who asked
                answer.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(answered)
        except RuntimeError as error:
            raise CallError("This LanesExecutor was shut down.") from error
        return answer.result()

    def finish(self) -> None:
        """Have it end once nothing is left to do."""
        self._asked_to_finish = True
        if self._loop is not None and not self.is_elsewhere:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._finish.set)

    def join(self) -> None:
        if threading.current_thread() is not self._thread:
            self._thread.join()
            _running.discard(self)


_running: weakref.WeakSet[_Thread] = weakref.WeakSet()


def _finish_all() -> None:
    """At the end of the interpreter, while threads can still be started: pending calls are finished."""
    for thread in list(_running):
        if not thread.is_elsewhere:
            thread.finish()
            thread.join()


# As concurrent.futures has it: `atexit` runs too late, when no thread can be started any more.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
