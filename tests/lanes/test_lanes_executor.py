"""`Lanes.executor`: a `concurrent.futures.Executor` like any other, from any thread, with a cancel that stops."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import sys
import threading
from typing import Any

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import CallError, LaneDied

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.asyncio(loop_scope="module")


def square(x: int) -> int:
    if x < 0:
        raise ValueError("negative")
    return x * x


async def test_run_in_executor(two: tm.Lanes) -> None:
    """The way asyncio programs know; results, errors and keyword arguments by partial."""
    loop = asyncio.get_running_loop()
    executor = two.executor()
    assert await loop.run_in_executor(executor, square, 5) == 25
    with pytest.raises(ValueError, match="negative") as caught:
        await loop.run_in_executor(executor, square, -5)
    assert "in square" in str(caught.value.__cause__)
    values = [loop.run_in_executor(executor, square, number) for number in range(50)]
    assert await asyncio.gather(*values) == [number * number for number in range(50)]


async def test_the_stdlib_interface_from_a_thread(two: tm.Lanes) -> None:
    """submit, result, exception, map, as_completed, wait and the with block."""

    def thread() -> None:
        with two.executor() as executor:
            assert isinstance(executor, concurrent.futures.Executor)
            assert executor.submit(square, 3).result(120) == 9
            assert executor.submit(dict, a=1).result(120) == {"a": 1}
            assert isinstance(executor.submit(square, -1).exception(120), ValueError)
            assert list(executor.map(square, range(20))) == [number * number for number in range(20)]
            assert list(executor.map(divmod, [7, 9], [2, 4])) == [(3, 1), (2, 1)]
            futures = {executor.submit(square, number): number for number in range(10)}
            for future in concurrent.futures.as_completed(futures, timeout=120):
                assert future.result() == futures[future] ** 2
            called: list[int] = []
            future = executor.submit(square, 4)
            future.add_done_callback(lambda done: called.append(done.result()))
            concurrent.futures.wait([future], timeout=120)
        assert called == [16]
        with pytest.raises(RuntimeError, match="shut down"):
            executor.submit(square, 1)

    await asyncio.to_thread(thread)
    assert await two.run(square, 2) == 4  # the lanes are open still


async def test_many_threads_at_once(two: tm.Lanes) -> None:
    """Each gets its own results."""
    executor = two.executor()

    def thread(first: int) -> list[int]:
        return [future.result(120) for future in [executor.submit(square, first + number) for number in range(50)]]

    parts = await asyncio.gather(*(asyncio.to_thread(thread, first) for first in range(0, 400, 100)))
    assert parts == [[(first + number) ** 2 for number in range(50)] for first in range(0, 400, 100)]


async def test_waiting_on_the_loops_own_thread_is_refused(one: tm.Lanes, telephone, home) -> None:
    """At once, with what to write instead; once it is done, result() is as good as any."""
    executor = one.executor()
    future = executor.submit(home, telephone.port, "held")
    for wait in (future.result, future.exception, executor.shutdown):
        with pytest.raises(CallError, match="event loop's own thread would wait for ever"):
            wait()
    with pytest.raises(CallError, match="wrap_future"):
        list(one.executor().map(square, [1]))
    await telephone.hear("held")
    await telephone.tell("held")
    assert await asyncio.wrap_future(future) == "done"
    assert future.result() == "done"


async def test_cancelling_a_future_stops_its_work(one: tm.Lanes, telephone, home) -> None:
    """From a thread, from asyncio, running or waiting; the futures that are left are served."""
    executor = one.executor()
    restarts = one.statistics().lanes[0].restarts
    running = executor.submit(home, telephone.port, "running")
    waiting = executor.submit(home, telephone.port, "waiting")
    fine = executor.submit(square, 6)
    await telephone.hear("running")
    assert waiting.cancel()
    assert await asyncio.to_thread(running.cancel)
    assert await asyncio.wrap_future(fine) == 36
    assert (running.cancelled(), waiting.cancelled()) == (True, True)
    assert await asyncio.to_thread(concurrent.futures.wait, [running, waiting, fine], 30)
    wrapped = asyncio.get_running_loop().run_in_executor(executor, home, telephone.port, "wrapped")
    await telephone.hear("wrapped")
    wrapped.cancel()
    assert await one.run(square, 2) == 4
    assert one.statistics().lanes[0].restarts == restarts + 2
    assert telephone.calls == 2


async def test_a_dead_process_fails_its_own_future(two: tm.Lanes) -> None:
    """There is no broken pool."""
    executor = two.executor()
    futures = [executor.submit(os._exit, 4) if number == 3 else executor.submit(square, number) for number in range(8)]
    results = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
    assert isinstance(results.pop(3), LaneDied)
    assert results == [number * number for number in range(8) if number != 3]


async def test_what_cannot_be_sent_is_refused_in_the_callers_thread(two: tm.Lanes) -> None:
    """submit raises, as it does for a closed pool."""
    with pytest.raises(CallError, match="argument 0, a lock"):
        await asyncio.to_thread(two.executor().submit, print, threading.Lock())


async def test_shutdown_can_cancel(one: tm.Lanes, telephone, home) -> None:
    """With cancel_futures nothing is waited for."""
    executor = one.executor()
    future = executor.submit(home, telephone.port, "held")
    await telephone.hear("held")
    executor.shutdown(cancel_futures=True)
    assert future.cancelled()
    assert await one.run(square, 3) == 9


async def test_closing_the_lanes_ends_the_futures(telephone, home) -> None:
    """Also for a thread that waits; and later submits are refused."""
    async with tm.Lanes(1) as lanes:
        executor = lanes.executor()
        future = executor.submit(home, telephone.port, "held")
        await telephone.hear("held")
        waiter = asyncio.create_task(asyncio.to_thread(future.exception))
    assert isinstance(await waiter, CallError)
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(square, 1)


async def test_an_interrupt_before_the_loop_is_woken_stops_no_later_call(
    two: tm.Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the very submit that was to wake it."""
    executor = two.executor()
    loop = asyncio.get_running_loop()
    real, struck = loop.call_soon_threadsafe, []

    def interrupted(*args: Any, **options: Any) -> Any:
        if not struck:
            struck.append(True)
            raise KeyboardInterrupt
        return real(*args, **options)

    def elsewhere() -> int:
        monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            executor.submit(abs, -1)
        return executor.submit(abs, -2).result(120)

    assert await asyncio.to_thread(elsewhere) == 2
