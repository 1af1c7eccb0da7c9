"""`Lanes`: CPU work in processes, for any asyncio program."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, NoReturn, Self, TypeVar

from tidemill.core.calls import Bounds
from tidemill.core.keys import place
from tidemill.engine.batch_limits import BatchLimits
from tidemill.engine.batched import Batched
from tidemill.engine.bundles import Bundles, OneByOne
from tidemill.engine.call_process import Request
from tidemill.engine.crew import Crew
from tidemill.engine.endings import settler
from tidemill.engine.executor import LoopExecutor
from tidemill.engine.functions_sent import FunctionsSent, call_name, name_of
from tidemill.engine.keyed import Keyed
from tidemill.engine.keyed_limits import KeyedLimits
from tidemill.engine.lane import NICE
from tidemill.engine.lanes_count import no_processes, resolved_lanes
from tidemill.engine.lanes_statistics import LanesReader, LanesStatistics
from tidemill.engine.making import Making
from tidemill.engine.options import (
    WhenFull,
    check_callable,
    check_choice,
    check_count,
    check_plain,
    check_seconds,
    check_source,
    check_timeout,
)
from tidemill.engine.stream import Calling, streamed
from tidemill.errors import CallError
from tidemill.lanes.call_codec import Answer, dumps_arguments, dumps_call, named
from tidemill.lanes.keyed_objects import KeyedObjects

__all__ = ["Lanes"]

T = TypeVar("T")

_log = logging.getLogger("tidemill")

_running_loop: Final = asyncio._get_running_loop
"""None where no loop runs, in a tenth of the time that the public one takes to raise."""

_NOT_OPEN: Final = "These lanes are not open: use them inside `async with tm.Lanes(...) as lanes:`."

_OTHER_LOOP: Final = (
    "These lanes belong to another event loop. Open lanes in each loop, or use lanes.executor(), which takes calls from "
    "any thread."
)


class Lanes:
    """Worker processes that run functions for an asyncio program, and an event loop that stays free.

    ``lanes``              how many processes; by default what the machine or the container allows. 0 runs every call
                           inline, on the loop's thread: breakpoints and tracebacks work, nothing can stop a function
    ``nice``               added to the priority number of the processes, so that the loop comes first
    ``preload``            names of modules to import once, before any process is forked
    ``initializer``        called with ``initargs`` once in each process, replacements too, before it takes calls; one
                           that takes longer than ``initializer_timeout`` seconds has failed. What it stores in globals
                           of a script or a notebook is there for all functions of that, in place of what was sent
                           with them; what another function stores is not
    ``recycle_after``      replace a process that has returned so many values, between two calls; `recycle_rss`` one
                           that has grown to so many bytes of resident memory. Nothing is lost or run twice
    ``arena_bytes``        shared memory of each process, half for large arguments (from 128 kB) and half for large results,
                           which are copied once each way; what finds no room goes through a socket. Only what was used
                           is taken from the machine, and counts against a container's memory. 0 for none
    ``grace``              seconds that a cancelled or timed-out call has to notice `tidemill.cancelled` before its
                           process is killed
    ``max_waiting``        calls, and ``max_waiting_bytes`` bytes of arguments, that may wait while all lanes are busy.
                           Then, by ``when_full``, ``run`` waits in line ("block"), raises `LanesFull` ("reject"), or
                           the call that waited longest raises it ("drop_oldest"). This is for `run` and `executor`;
                           `stream`, `batched` and `keyed` have bounds of their own

    Any plain function goes: of ``__main__``, a lambda, a closure; an async one is refused. It is sent once to each lane;
    what it closes over is as it was then. Arguments and results are pickled; classes of ``__main__`` are copied to the lanes,
    and an object of one that comes back is of the class as it is here. A call that was started is never started again; if
    its process dies, it alone fails, with `LaneDied`, and the lane goes on in a new process. Raises `CallError` for options
    that make no sense.

    >>> async def main():
    ...     async with Lanes(0) as lanes:
    ...         return await lanes.run(divmod, 17, 5)
    >>> asyncio.run(main())
    (3, 2)
    """

    def __init__(
        self,
        lanes: int | None = None,
        *,
        nice: int = NICE,
        preload: Sequence[str] = (),
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        initializer_timeout: float | None = 60.0,
        recycle_after: int | None = None,
        recycle_rss: int | None = None,
        arena_bytes: int = 128 << 20,
        grace: float = 0.05,
        max_waiting: int | None = None,
        max_waiting_bytes: int | None = None,
        when_full: WhenFull = "block",
    ) -> None:
        self._count = resolved_lanes(lanes, CallError)
        check_seconds("grace", grace)
        check_choice("when_full", when_full)
        for name, bound in (("max_waiting", max_waiting), ("max_waiting_bytes", max_waiting_bytes)):
            if bound is not None:
                check_count(name, bound)
        self._making = Making(
            nice,
            preload,
            initializer,
            initargs,
            initializer_timeout,
            recycle_after=recycle_after,
            recycle_rss=recycle_rss,
            arena_bytes=arena_bytes,
        )
        self._bounds = Bounds(max_waiting, max_waiting_bytes)
        self._grace_s = grace
        self._when_full = when_full
        self._crew: Crew | None = None
        self._reader: LanesReader | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._pid = os.getpid()
        self._closed = False
        self._functions = FunctionsSent()
        self._first_call = self._making.first_call(self._functions)

    def __reduce__(self) -> NoReturn:
        raise CallError("Lanes stay in the process that made them: a function that runs in a lane cannot use them.")

    async def __aenter__(self) -> Self:
        """Return when every lane can take calls; raises `CallError` when no process can be started, and that or `LaneDied` when
        the initializer fails."""
        if self._loop is not None:
            raise CallError("These lanes were opened before; make new ones with tm.Lanes(...).")
        if self._count and (why := no_processes()):
            raise CallError(f"{why} tm.Lanes(0) runs the same calls inline.")
        self._loop = asyncio.get_running_loop()
        self._thread, self._pid = threading.get_ident(), os.getpid()
        crew = Crew(
            self._count,
            self._making,
            self._first_call,
            self._bounds,
            grace_s=self._grace_s,
            when_full=self._when_full,
        )
        await crew.start()
        if self._count:
            _log.info(
                "%d lanes and a spare, each with an arena of at most %d MB of shared memory (arena_bytes)",
                self._count,
                self._making.arena_bytes >> 20,
            )
        self._crew = crew
        self._reader = LanesReader(crew)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop all work and end the processes; calls that have not ended raise `CallError`. May be called twice.

        When the loop of these lanes was closed, this works from another one. In a process that was forked meanwhile it does
        nothing: they are the application's.
        """
        if os.getpid() != self._pid:
            return
        if self._crew is not None and self._loop is not None and _running_loop() is not self._loop:
            if not self._loop.is_closed():
                raise CallError(_OTHER_LOOP)
            self._closed = True
            await self._crew.abandon()
            return
        self._closed = True
        if self._reader is not None:
            self._reader.close()
        if self._crew is not None:
            await self._crew.aclose()

    # -- calls -----------------------------------------------------------------------------------------

    async def run(
        self,
        fn: Callable[..., T],
        /,
        *args: Any,
        timeout: float | None = None,  # noqa: ASYNC109
        key: str | bytes | None = None,
        **kwargs: Any,
    ) -> T:
        """Run ``fn(*args, **kwargs)`` in a lane and return what it returned, or raise what it raised.

        After ``timeout`` seconds, waiting included, TimeoutError is raised. A timeout, and a cancel of the task that
        waits here, really stop the work: a call that was not started never is; one that was can see it
        (`tidemill.cancelled`) and is killed with its process after the grace, and the other calls of that lane run as
        if nothing had happened. Calls with the same ``key`` run in the same lane, one after the other in the order of
        calling. A function that has arguments named ``timeout`` or ``key`` gets them by ``functools.partial(fn, key=...)``.
        The lane's traceback is the ``__cause__`` of an exception. Raises `CallError` when the call cannot be
        made, `LanesFull` when too many wait, `LaneDied` when the process ended in it, `RemoteError` and `BadResult`
        for what cannot be sent back.
        """
        crew = self._open()
        timeout = check_timeout(timeout)
        pin = None if key is None else self._pin(key)
        entered = False
        if crew.bounded and crew.door.must_wait:
            entered, timeout = await self._entered(crew, fn, timeout)
        try:
            future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            call = crew.submit(self._request(fn, args, kwargs, settler(future), timeout), pin)
        finally:
            if entered:
                crew.door.entered()
        try:
            return await future
        except asyncio.CancelledError:
            crew.cancel(call)
            raise
        finally:
            del future  # its error has this frame, and this frame the arguments

    async def _entered(self, crew: Crew, fn: Callable[..., Any], timeout: float | None) -> tuple[bool, float | None]:  # noqa: ASYNC109
        """By ``when_full``: whether the caller stood in line, and the time it has left."""
        name = call_name(fn)
        if timeout is None or crew.door.when_full != "block":
            return await crew.door.come_in(name, crew.make_room), timeout
        assert self._loop is not None
        until = self._loop.time() + timeout
        try:
            async with asyncio.timeout_at(until):
                await crew.door.enter()
        except TimeoutError:
            raise TimeoutError(f"{name}: no result within {timeout} s; it waited for its turn to wait.") from None
        return True, max(until - self._loop.time(), 1e-6)

    def _pin(self, key: str | bytes) -> int:
        if not isinstance(key, (str, bytes)):
            raise CallError(f"key={key!r} must be text or bytes.")
        if self._making.recycles:
            raise CallError(
                "key= keeps calls in one lane's process, and recycle_after or recycle_rss replaces processes: what a "
                "function kept there for the key would be gone. For state that survives use lanes.keyed(...)."
            )
        return place(key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key, max(self._count, 1))

    def stream(
        self,
        fn: Callable[[Any], T],
        source: Iterable[Any] | AsyncIterable[Any],
        *,
        window: int = 64,
        timeout: float | None = None,
        return_exceptions: bool = False,
    ) -> AsyncGenerator[T, None]:
        """``fn(x)`` for each ``x`` of the source, in order, with at most ``window`` of them read ahead.

        A result is yielded as soon as those before it are, also while the source takes its time. A call that fails
        ends the stream with its error, at its place; with ``return_exceptions`` the error is yielded in its place.
        Leaving the stream early stops what is under way. ``timeout`` is for each call, as in `run`. A source that is
        a plain iterable is read on the event loop, so it should not block.

        Short calls go to a lane together, as many as keep it busy for some milliseconds, and at most a quarter of the
        window with two lanes; their errors and deaths are their own all the same, none is run twice, and one that takes long
        holds the results of those before it for some 20 ms at most. With a ``timeout``, and for callables that are no plain
        functions or classes, each goes alone.
        """
        crew = self._open()
        check_callable(fn)
        check_source(source)
        timeout = check_timeout(timeout)
        check_count("window", window)

        name = f"lanes.stream({name_of(fn)})"
        sent = self._functions.of(fn) if self._count and timeout is None else None
        calling: Calling
        if sent is not None:
            sent = replace(sent, call_name=name)
            calling = Bundles(crew, self._check_here, sent, lambda value: dumps_call((value,), {}), window)
        else:
            calling = OneByOne(
                crew, self._check_here, lambda value, done: self._request(fn, (value,), {}, done, timeout, name)
            )
        return streamed(calling, source, window, return_exceptions=return_exceptions)

    def batched(
        self,
        fn: Callable[[list[Any]], Sequence[Any]],
        *,
        max_batch: int = 256,
        max_batch_bytes: int = 1 << 20,
        timeout: float | None = None,
        max_waiting: int = 65_536,
        max_waiting_bytes: int = 256 << 20,
        when_full: WhenFull = "block",
    ) -> Batched:
        """A callable for single records over a function of lists: ``predict = lanes.batched(fn)``, ``await predict(x)``.

        ``fn`` gets a list of at most ``max_batch`` records and returns as many values. If it raises for several, it is
        called again with each alone, so that an error belongs to its own record; the same after a death of the
        process. So it must be safe to call again. A wrong number of values is a `BadResult` for all of the batch. A
        caller may give up at any time; the work is stopped when nobody waits for any record of a batch. So a timeout or a
        cancel of one record does not stop a batch that others wait for: one that hangs holds them, until they time out too.

        ``timeout`` is in seconds, for each record from its call to its value; batches get shorter when little is left.
        ``max_batch_bytes`` are pickled bytes of a batch of several records. When ``max_waiting`` records, or
        ``max_waiting_bytes`` of them, wait for a lane, then ``when_full="block"`` has further callers wait for room,
        "reject" raises `LanesFull` at the call, and "drop_oldest" ends the oldest that waits with it.
        """
        crew = self._open()
        check_callable(fn)
        limits = BatchLimits(max_batch, max_batch_bytes, timeout, max_waiting, max_waiting_bytes, when_full)
        return Batched(crew, self._open, f"lanes.batched({name_of(fn)})", fn, self._functions.listed(fn), limits)

    def keyed(
        self,
        factory: Callable[[], Any],
        *,
        max_keys: int = 100_000,
        max_bytes: int = 1 << 28,
        max_waiting: int = 65_536,
        max_waiting_bytes: int = 256 << 20,
        when_full: Literal["block", "reject"] = "block",
    ) -> Keyed:
        """One object per key, kept through kills and recycling: ``counters = lanes.keyed(Counter)``.

        ``await counters("S12", x)`` calls the object of key "S12" (or its ``update``, if it cannot be called), and
        ``await counters.call("S12", "most_common", 3)`` a method of it. Objects are made by ``factory()`` at their
        first call, in the lane that their key always has. Calls of one key run one after the other, in the order of
        calling.

        The object's state travels back with each result: what its ``snapshot()`` returns, given to ``restore`` of a
        new object, or else its pickle. So an object has seen exactly the calls that returned: a call that raised, was
        cancelled, or whose process died leaves no trace in it. ``max_keys`` objects are kept, of ``max_bytes`` of state
        together; a call beyond them raises `CallError` or `BadResult`, and ``counters.drop(key)`` makes room.

        At most ``max_waiting`` calls, of ``max_waiting_bytes`` of arguments, wait or run. Beyond them, with
        ``when_full="block"``, callers wait for room, first come, first served; "reject" raises `LanesFull` at the call.
        """
        crew = self._open()
        if not callable(factory):
            raise CallError(f"{factory!r} is not a class or function that makes an object.")
        check_plain(factory)
        limits = KeyedLimits(max_keys, max_bytes, max_waiting, max_waiting_bytes, when_full)
        sent = self._functions.listed(KeyedObjects(factory))
        return Keyed(crew, self._check_here, f"lanes.keyed({name_of(factory)})", sent, max(self._count, 1), limits)

    def executor(self) -> LoopExecutor:
        """The lanes as a ``concurrent.futures.Executor``: ``await loop.run_in_executor(lanes.executor(), fn, x)``.

        ``submit``, ``map`` and ``shutdown`` work from any thread, and cancelling a future stops its work. To wait for
        a result on the event loop's own thread raises `CallError` at once.
        """
        self._check_open()
        if self._crew is None or self._loop is None:
            raise CallError(_NOT_OPEN)

        def prepare(
            fn: Callable[..., Any], args: Any, kwargs: Any, done: Callable[[Sequence[Answer] | Exception], None]
        ) -> Request:
            return self._request(fn, args, kwargs, done, None)

        return LoopExecutor(self._crew, self._check_open, prepare, self._loop, self._thread)

    def statistics(self) -> LanesStatistics:
        """How the lanes are, now; busy shares are since the last reading."""
        if self._reader is None:
            raise CallError(_NOT_OPEN)
        return self._reader.read()

    # -- within ----------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise CallError("These lanes are closed; make new ones with `async with tm.Lanes(...) as lanes:`.")
        if os.getpid() != self._pid:
            raise CallError("These lanes belong to the process that this one was forked from; make new ones here.")

    def _check_here(self) -> None:
        self._open()

    def _open(self) -> Crew:
        """The crew, if this is the loop and the time to use it."""
        if self._crew is not None and not self._closed and _running_loop() is self._loop:  # after a fork no loop runs
            return self._crew
        self._check_open()
        raise CallError(_NOT_OPEN if self._crew is None else _OTHER_LOOP)

    def _request(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        done: Callable[[Sequence[Answer] | Exception], None],
        timeout: float | None,
        name: str = "",
    ) -> Request:
        """Pickle first: what cannot be sent costs no lane. ``timeout`` was checked; ``name`` is for messages, where it is not `run`
        that was called.
        """
        sent = self._functions.of(fn)
        if sent is not None:
            return Request(name or sent.call_name, sent, [dumps_call(args, kwargs)], done, timeout_s=timeout)
        check_callable(fn)
        parcel = dumps_arguments((fn, args, kwargs), {"the function": fn, **named(args, kwargs)}, depth=3)
        return Request(name or call_name(fn), None, [parcel], done, timeout_s=timeout)
