"""`Lanes.stream`: in order, bounded, each error at its place."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import count, pairwise

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.engine import stream
from tidemill.errors import CallError, LaneDied

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.asyncio(loop_scope="module")


def square(x: int) -> int:
    if x < 0:
        raise ValueError(f"{x} is negative")
    return x * x


async def later(values: list) -> AsyncIterator:
    for value in values:
        await asyncio.sleep(0)
        yield value


@pytest.mark.parametrize("count", [0, 2], ids=["inline", "processes"])
async def test_order_and_errors_are_those_of_a_plain_loop(count: int) -> None:
    """Over random values, windows, and sources of both kinds, errors in their places."""
    async with tm.Lanes(count) as lanes:

        async def results(values: list[int], window: int, asynchronous: bool) -> list:
            source = later(values) if asynchronous else values
            return [
                repr(result) async for result in lanes.stream(square, source, window=window, return_exceptions=True)
            ]

        for number in range(40):
            values = [(number * 7 + step * 5) % 11 - 3 for step in range(number)]
            expected = [repr(x * x) if x >= 0 else repr(ValueError(f"{x} is negative")) for x in values]
            assert await results(values, number % 7 + 1, number % 2 == 0) == expected


async def test_an_error_ends_the_stream_at_its_place(two: tm.Lanes) -> None:
    """What comes before it is yielded first, however the calls end."""
    stream = two.stream(square, [1, 2, -1, 4])
    assert [await anext(stream), await anext(stream)] == [1, 4]
    with pytest.raises(ValueError, match="-1 is negative"):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_value_that_cannot_be_sent_fails_at_its_place(two: tm.Lanes) -> None:
    """The results before it come first."""
    values = [2, (x for x in ()), 3]
    results = [result async for result in two.stream(square, values, return_exceptions=True)]
    assert results[0] == 4
    assert isinstance(results[1], CallError)
    assert results[2] == 9


@pytest.mark.parametrize("seconds", [None, 60.0])
async def test_a_call_that_kills_its_process_fails_alone(two: tm.Lanes, seconds: float | None) -> None:
    """The others of the stream have their results, in order; its own error names the stream."""

    def fn(x: int) -> int:
        if x == 5:
            os._exit(7)
        return -x

    results = [result async for result in two.stream(fn, range(12), return_exceptions=True, timeout=seconds)]
    died = results.pop(5)
    assert isinstance(died, LaneDied)
    assert died.code == 7
    assert re.match(r"lanes\.stream\(.*fn\): the lane's process ended", str(died))
    assert results == [-x for x in range(12) if x != 5]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_look_ahead_is_bounded(two: tm.Lanes, asynchronous: bool) -> None:
    """No more of the source is read than the window allows beyond what was yielded; a slow reader stops the source."""
    read = 0

    def plain() -> Iterator[int]:
        nonlocal read
        for number in range(200):
            read += 1
            yield number

    async def source() -> AsyncIterator[int]:
        for number in plain():
            yield number

    yielded = 0
    async for _ in two.stream(square, source() if asynchronous else plain(), window=8):
        yielded += 1
        assert read - yielded <= 8
    assert yielded == read == 200


async def test_results_do_not_wait_for_a_slow_source(two: tm.Lanes) -> None:
    """A result is yielded while the source has nothing more to give yet."""
    gate = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        yield 3
        await gate.wait()
        yield 4

    seen = []
    async for result in two.stream(square, source()):
        seen.append(result)
        gate.set()
    assert seen == [9, 16]


async def test_leaving_early_stops_the_work(one: tm.Lanes, telephone, home) -> None:
    """What runs is killed, what waits never runs, and the source is not read on."""
    read = []

    def names() -> Iterator[str]:
        for number in range(100):
            read.append(number)
            yield f"call {number}"

    port = telephone.port
    stream = one.stream(lambda name: home(port, name), names(), window=4)
    first = asyncio.ensure_future(anext(stream))
    await telephone.hear("call 0")
    await telephone.tell("call 0")
    assert await first == "done"
    await telephone.hear("call 1")
    await stream.aclose()
    assert await one.run(square, 2) == 4
    assert telephone.calls == 2
    assert len(read) <= 5


async def test_a_cancelled_reader_leaves_nothing_behind(one: tm.Lanes, telephone, home) -> None:
    """Cancelling the task that reads a stream stops its calls and its source."""
    closed = asyncio.Event()

    async def source() -> AsyncIterator[str]:
        try:
            yield "held"
            await asyncio.Event().wait()
        finally:
            closed.set()

    port = telephone.port

    async def read() -> None:
        async for _ in one.stream(lambda name: home(port, name), source()):
            pass

    task = asyncio.create_task(read())
    await telephone.hear("held")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await closed.wait()
    assert await one.run(square, 3) == 9
    assert one.statistics().waiting == 0


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_error_of_the_source_is_the_streams_at_its_place(two: tm.Lanes, asynchronous: bool) -> None:
    """It is raised as it is, behind the results of what was read before it."""

    def plain() -> Iterator[int]:
        yield from (1, 2, 3)
        raise OSError("the sensor is gone")

    async def source() -> AsyncIterator[int]:
        for number in plain():
            yield number

    stream = two.stream(square, source() if asynchronous else plain(), return_exceptions=True)
    assert [await anext(stream) for _ in range(3)] == [1, 4, 9]
    with pytest.raises(OSError, match="the sensor is gone"):
        await anext(stream)


async def test_a_source_keeps_its_context_from_value_to_value(two: tm.Lanes) -> None:
    """It is read in one task."""
    span = contextvars.ContextVar("span", default="")

    async def source() -> AsyncIterator[int]:
        token = span.set("mine")
        for number in range(3):
            yield number
            assert span.get() == "mine"
        span.reset(token)

    assert [result async for result in two.stream(square, source())] == [0, 1, 4]


@pytest.mark.parametrize(("window", "read"), [(1, [1]), (8, [1, 4])], ids=["while_it_is_not_read", "while_it_waits"])
async def test_a_task_of_the_source_that_fails_ends_the_stream(two: tm.Lanes, window: int, read: list[int]) -> None:
    """The TaskGroup around its values says so, whether the source waits for its next value or for room."""
    gate = asyncio.Event()

    async def feed() -> None:
        await gate.wait()
        raise OSError("the sensor is gone")

    async def source() -> AsyncIterator[int]:
        async with asyncio.TaskGroup() as group:
            group.create_task(feed())
            yield 1
            yield 2
            await asyncio.Event().wait()

    results: list[int] = []

    async def collect() -> None:
        async for result in two.stream(square, source(), window=window):
            results.append(result)
            await turns()
            gate.set()
            await turns()

    with pytest.raises(ExceptionGroup) as raised:
        await collect()
    assert isinstance(raised.value.exceptions[0], OSError)
    assert results == read


async def turns() -> None:
    """Let the loop go round some times."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_each_call_of_a_stream_can_time_out(one: tm.Lanes, telephone, home, time_passes) -> None:
    """The one that hangs fails, those after it run."""
    port = telephone.port

    def fn(x: int) -> int:
        if x == 1:
            home(port, "hangs")
        return x

    async def read() -> list[object]:
        return [r async for r in one.stream(fn, range(3), window=1, timeout=1000, return_exceptions=True)]

    reading = asyncio.ensure_future(read())
    await telephone.hear("hangs")
    time_passes(one)
    results = await reading
    assert isinstance(results.pop(1), TimeoutError)
    assert results == [0, 2]


async def test_senseless_options_are_refused_at_once(two: tm.Lanes) -> None:
    """Before the source is touched."""
    with pytest.raises(CallError, match="window=0"):
        two.stream(square, [1], window=0)
    with pytest.raises(CallError, match="timeout=0"):
        two.stream(square, [1], timeout=0)


@given(values=st.lists(st.integers(-3, 9), max_size=12), window=st.integers(1, 5), asynchronous=st.booleans())
@settings(max_examples=40, deadline=None)
async def test_inline_streams_equal_a_list(values: list[int], window: int, asynchronous: bool) -> None:
    """The same property with values that Hypothesis chooses."""
    async with tm.Lanes(0) as lanes:
        source = later(values) if asynchronous else values
        stream = lanes.stream(square, source, window=window, return_exceptions=True)
        results = [repr(result) async for result in stream]
    assert results == [repr(x * x) if x >= 0 else repr(ValueError(f"{x} is negative")) for x in values]


async def test_a_stream_that_nobody_reads_is_not_kept(one: tm.Lanes) -> None:
    """It was made and never begun."""
    for _ in range(10):
        one.stream(square, [1])
    assert not one._crew.lines  # type: ignore[union-attr]


async def test_a_source_that_is_left_is_let_go_of(one: tm.Lanes) -> None:
    """Its ``finally`` runs, and a TaskGroup of its own ends its tasks, without a search for garbage."""
    ended: list[str] = []

    async def source():
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.Event().wait())
                for number in range(1_000):
                    yield number
        finally:
            ended.append("finally")

    gc.disable()
    try:
        stream = one.stream(square, source(), window=3)
        assert await anext(stream) == 0
        await stream.aclose()
        for _ in range(50):
            await asyncio.sleep(0)
    finally:
        gc.enable()
    assert ended == ["finally"]


async def test_a_source_that_answers_each_timeout_with_a_value_is_not_read_ahead_for_ever(one: tm.Lanes) -> None:
    """While nobody asks for results."""
    made = 0

    async def source():
        nonlocal made
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0):
                    made += 1
                    yield made

    stream = one.stream(square, source(), window=2, return_exceptions=True)
    assert await anext(stream) == 1
    for _ in range(500):
        await asyncio.sleep(0)
    assert made <= 6
    await stream.aclose()


@pytest.mark.parametrize("seconds", [None, 60.0])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_wide_window_is_filled_in_turns(
    two: tm.Lanes, asynchronous: bool, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only packing moves, no turn of the loop packs more values than take a millisecond, though all are at hand;
    the same when many results are at hand and their reader takes one after the other.
    """
    now, read, turns = 0.0, 0, [0]
    monkeypatch.setattr(stream, "monotonic", lambda: now)

    def plain() -> Iterator[int]:
        nonlocal now, read
        for number in range(300):
            now += 0.0003
            read += 1
            yield number

    async def source() -> AsyncIterator[int]:
        for number in plain():
            yield number

    loop = asyncio.get_running_loop()

    def turn() -> None:
        turns.append(read)
        if read < 300:
            loop.call_soon(turn)

    loop.call_soon(turn)
    results = two.stream(square, source() if asynchronous else plain(), window=200, timeout=seconds)
    assert [result async for result in results] == [number * number for number in range(300)]
    assert max(after - before for before, after in pairwise(turns)) <= 5


async def test_a_window_that_is_not_full_yet_holds_no_result_back(
    two: tm.Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a wide window is being filled, a value in each turn, results come."""
    ticks = count()
    monkeypatch.setattr(stream, "monotonic", lambda: next(ticks))
    results = two.stream(square, count(), window=1_000_000)
    for number in range(10):
        assert await anext(results) == number * number
    await results.aclose()
