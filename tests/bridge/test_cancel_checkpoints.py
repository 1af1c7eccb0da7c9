"""A cancel at every instant of a call's life: that call ends, its work stops, every other has its own result."""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import sys
from collections.abc import Awaitable, Callable
from random import Random

import cloudpickle
import pytest

import tidemill as tm

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]


def square(x: int) -> int:
    return x * x


def squares(values: list[int]) -> list[int]:
    return [value * value for value in values]


async def turns(count: int) -> None:
    """Let the loop go round so often."""
    for _ in range(count):
        await asyncio.sleep(0)


async def outcome(future: Awaitable[object]) -> object:
    (result,) = await asyncio.gather(future, return_exceptions=True)
    return result


# -- each checkpoint by name ---------------------------------------------------------------------------------


async def test_before_it_is_queued(one: tm.Lanes, telephone, home) -> None:
    """A task that is cancelled before its first step: no lane hears of it."""
    task = asyncio.create_task(one.run(home, telephone.port, "never"))
    task.cancel()
    assert isinstance(await outcome(task), asyncio.CancelledError)
    assert await one.run(square, 3) == 9
    assert telephone.calls == 0


async def test_while_it_waits_for_a_lane(one: tm.Lanes, telephone, home) -> None:
    """Behind so many that no lane has it yet."""
    running = asyncio.create_task(one.run(home, telephone.port, "running"))
    await telephone.hear("running")
    tasks = [asyncio.create_task(one.run(square, number)) for number in range(300)]
    last = asyncio.create_task(one.run(home, telephone.port, "never"))
    await turns(2)
    assert one.statistics().waiting > 0
    last.cancel()
    assert isinstance(await outcome(last), asyncio.CancelledError)
    await telephone.tell("running")
    assert await running == "done"
    assert await asyncio.gather(*tasks) == [number * number for number in range(300)]
    assert telephone.calls == 1


async def test_in_a_batch_that_forms(one: tm.Lanes, telephone, home) -> None:
    """Records that gather while the lane is busy: each of the others gets its own value."""
    running = asyncio.create_task(one.run(home, telephone.port, "running"))
    await telephone.hear("running")
    predict = one.batched(squares, max_batch=64)
    records = [asyncio.ensure_future(predict(number)) for number in range(64)]
    await turns(2)
    for number in (0, 31, 63):
        records[number].cancel()
    await telephone.tell("running")
    await running
    for number, record in enumerate(records):
        if number in {0, 31, 63}:
            assert isinstance(await outcome(record), asyncio.CancelledError)
        else:
            assert await record == number * number


async def test_in_the_lane_and_not_started(one: tm.Lanes, telephone, home) -> None:
    """It was sent and waits there behind another: it is taken back, nothing is killed."""
    restarts = one.statistics().lanes[0].restarts
    running = asyncio.create_task(one.run(home, telephone.port, "running"))
    await telephone.hear("running")
    behind = asyncio.create_task(one.run(home, telephone.port, "never"))
    await turns(5)
    assert one.statistics().lanes[0].in_flight >= 2
    behind.cancel()
    assert isinstance(await outcome(behind), asyncio.CancelledError)
    after = asyncio.create_task(one.run(square, 7))
    await telephone.tell("running")
    assert await running == "done"
    assert await after == 49
    assert telephone.calls == 1
    assert one.statistics().lanes[0].restarts == restarts


async def test_while_it_runs(one: tm.Lanes, telephone, home) -> None:
    """Its process is replaced; what was sent behind it and what waits all run, in that process or the next."""
    running = asyncio.create_task(one.run(home, telephone.port, "running"))
    await telephone.hear("running")
    behind = [asyncio.create_task(one.run(square, number)) for number in range(40)]
    await turns(3)
    running.cancel()
    assert isinstance(await outcome(running), asyncio.CancelledError)
    assert await asyncio.gather(*behind) == [number * number for number in range(40)]
    assert telephone.calls == 1


async def test_while_its_result_is_on_the_way(one: tm.Lanes) -> None:
    """The lane has written it and the parent has not read it: nobody else's result moves."""

    def tells_when_written(port: int) -> str:
        import os
        import threading
        import time
        from pathlib import Path

        def later() -> None:
            with socket.create_connection(("127.0.0.1", port)):
                returned.wait()
                while Path(f"/proc/self/task/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[0] != "S":
                    time.sleep(0.001)

        returned = threading.Event()
        threading.Thread(target=later).start()
        try:
            return "late"
        finally:
            returned.set()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)
        task = asyncio.create_task(one.run(tells_when_written, server.getsockname()[1]))
        await turns(3)
        line, _ = server.accept()  # holds the loop, so that nothing is read meanwhile
        with line:
            line.settimeout(120)
            assert line.recv(1) == b""
    behind = [asyncio.create_task(one.run(square, number)) for number in range(5)]
    task.cancel()
    assert isinstance(await outcome(task), asyncio.CancelledError)
    assert await asyncio.gather(*behind) == [0, 1, 4, 9, 16]


async def test_after_it_is_done(one: tm.Lanes) -> None:
    """Too late: the result stays, for a task and for a future of the executor."""
    task = asyncio.create_task(one.run(square, 5))
    assert await task == 25
    assert not task.cancel()
    assert task.result() == 25
    future = one.executor().submit(square, 6)
    assert await asyncio.wrap_future(future) == 36
    assert not future.cancel()
    assert future.result() == 36


# -- every instant -------------------------------------------------------------------------------------------

Start = Callable[[tm.Lanes, int], "asyncio.Future[int]"]


def by_run(lanes: tm.Lanes, number: int) -> asyncio.Future[int]:
    return asyncio.ensure_future(lanes.run(square, number))


def by_run_in_time(lanes: tm.Lanes, number: int) -> asyncio.Future[int]:
    return asyncio.ensure_future(lanes.run(square, number, timeout=60))


def by_executor(lanes: tm.Lanes, number: int) -> asyncio.Future[int]:
    return asyncio.wrap_future(lanes.executor().submit(square, number))


@pytest.mark.parametrize("start", [by_run, by_run_in_time, by_executor])
async def test_after_every_number_of_turns(two: tm.Lanes, start: Start) -> None:
    """The middle one of some calls is cancelled after 0, 1, 2, ... turns of the loop, until that is too late."""
    count = finished = 0
    while finished < 3:
        calls = [start(two, number) for number in range(7)]
        await turns(count)
        calls[3].cancel()
        result = await outcome(calls[3])
        assert result == 9 or isinstance(result, asyncio.CancelledError)
        finished += result == 9
        assert [await call for number, call in enumerate(calls) if number != 3] == [0, 1, 4, 16, 25, 36]
        count += 1 if count < 100 else count // 4
    assert two.statistics().waiting == 0


async def test_records_after_every_number_of_turns(two: tm.Lanes) -> None:
    """The same for a record among others in its batch, and no process is killed while others wait for theirs."""
    predict = two.batched(squares, max_batch=8)
    restarts = [lane.restarts for lane in two.statistics().lanes]
    count = finished = 0
    while finished < 3:
        records = [asyncio.ensure_future(predict(number)) for number in range(7)]
        await turns(count)
        records[3].cancel()
        result = await outcome(records[3])
        finished += result == 9
        assert [await call for number, call in enumerate(records) if number != 3] == [0, 1, 4, 16, 25, 36]
        count += 1 if count < 100 else count // 4
    assert sum(lane.restarts for lane in two.statistics().lanes) - sum(restarts) <= count


async def test_streams_left_after_every_number_of_results(two: tm.Lanes) -> None:
    """A stream that is closed early stops what it had begun; those beside it do not notice."""
    for wanted in range(12):
        beside = [asyncio.create_task(two.run(square, number)) for number in range(5)]
        stream = two.stream(square, range(100, 200), window=5)
        got = [await anext(stream) for _ in range(wanted)]
        await stream.aclose()
        assert got == [number * number for number in range(100, 100 + wanted)]
        assert await asyncio.gather(*beside) == [0, 1, 4, 9, 16]
    assert await two.run(square, 3) == 9
    assert two.statistics().waiting == 0


@pytest.mark.parametrize("seed", range(3))
async def test_at_random_instants(two: tm.Lanes, seed: int) -> None:
    """Calls of every kind, a fifth of them cancelled at random: each ends once, with its own result or the cancel."""
    random = Random(seed)
    predict = two.batched(squares)
    executor = two.executor()
    starts: list[Callable[[int], asyncio.Future[int]]] = [
        lambda number: asyncio.ensure_future(two.run(square, number)),
        lambda number: asyncio.ensure_future(predict(number)),
        lambda number: asyncio.wrap_future(executor.submit(square, number)),
    ]
    cancelled = 0

    async def caller(first: int) -> None:
        nonlocal cancelled
        for number in range(first, first + 40):
            call = random.choice(starts)(number)
            await turns(random.randrange(30))
            wanted = random.random() < 0.8
            if not wanted:
                call.cancel()
            result = await outcome(call)
            cancelled += isinstance(result, asyncio.CancelledError)
            assert result == number * number or (not wanted and isinstance(result, asyncio.CancelledError))

    await asyncio.gather(*(caller(100 * number) for number in range(8)))
    assert 0 < cancelled < 120
    assert await two.run(square, 3) == 9
    assert two.statistics().waiting == 0


async def test_cancels_from_other_threads(two: tm.Lanes) -> None:
    """Futures of the executor cancelled in threads, at whatever instant: done or cancelled, never neither."""
    executor = two.executor()

    def thread(seed: int) -> None:
        random = Random(seed)
        futures = [executor.submit(square, number) for number in range(60)]
        for future in random.sample(futures, 20):
            future.cancel()
        done, pending = concurrent.futures.wait(futures, timeout=120)
        assert not pending
        assert len(done) == 60
        for number, future in enumerate(futures):
            assert future.cancelled() or future.result(0) == number * number

    await asyncio.gather(*(asyncio.to_thread(thread, seed) for seed in range(3)))
    assert await two.run(square, 3) == 9
