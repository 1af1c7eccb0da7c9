"""Streams under trouble: slow heads, failing items, early leaving, sources that raise, hang or never end."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from random import Random

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import LaneDied

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]


def square(x: int) -> int:
    return x * x


async def later(values: object) -> AsyncIterator:
    for value in values:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        yield value


async def test_a_slow_head_holds_the_others_back_and_no_more_than_the_window(two: tm.Lanes, telephone, home) -> None:
    """Results wait for the first one; the source is read no further than the window; then all come in order."""
    read = []

    def source() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    def work(number: int) -> int:
        if number == 0:
            home(port, "head")
        return -number

    port = telephone.port
    stream = two.stream(work, source(), window=10)
    first = asyncio.ensure_future(anext(stream))
    await telephone.hear("head")
    assert await two.run(square, 3) == 9  # the other lane is free, and went on
    for _ in range(20):
        await two.run(square, 1)
    assert not first.done()
    assert read == list(range(10))
    await telephone.tell("head")
    assert await first == 0
    assert [number async for number in stream] == [-number for number in range(1, 100)]


async def test_every_kind_of_failure_at_its_place(two: tm.Lanes) -> None:
    """Errors, deaths, exits, what cannot be sent or read: each in its place, the stream goes on."""

    def work(item: object) -> object:
        if item == 1:
            raise KeyError(item)
        if item == 3:
            os._exit(5)
        if item == 5:
            sys.exit(6)
        if item == 7:
            return (x for x in ())
        return item

    items = [0, 1, 2, 3, 4, 5, 6, 7, 8, (x for x in ()), 10]
    ends = [end async for end in two.stream(work, items, window=4, return_exceptions=True)]
    kinds = {1: KeyError, 3: LaneDied, 5: tm.RemoteError, 7: tm.BadResult, 9: tm.CallError}
    for number, end in enumerate(ends):
        assert isinstance(end, kinds[number]) if number in kinds else end == number
    assert len(ends) == 11


@pytest.mark.parametrize("seed", range(3))
async def test_random_streams_beside_each_other(two: tm.Lanes, seed: int) -> None:
    """Several at once, of random lengths, windows, sources and failures: each is what a plain loop gives."""
    random = Random(seed)

    def work(item: int) -> int:
        if item % 13 == 5:
            raise ValueError(item)
        if item % 41 == 7:
            os._exit(1)
        return item * item

    async def check() -> None:
        items = [random.randrange(1000) for _ in range(random.randrange(60))]
        source = later(items) if random.random() < 0.5 else items
        stream = two.stream(work, source, window=random.randint(1, 20), return_exceptions=True)
        for item in items:
            end = await anext(stream)
            if item % 13 == 5:
                assert isinstance(end, ValueError)
            elif item % 41 == 7:
                assert isinstance(end, LaneDied)
            else:
                assert end == item * item
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    await asyncio.gather(*(check() for _ in range(6)))


@pytest.mark.parametrize("how", ["break", "aclose", "raise", "cancel", "error"])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_stream_that_is_left(one: tm.Lanes, telephone, home, how: str, asynchronous: bool) -> None:
    """However it is left: its work stops, its source is closed, nothing of it waits in the lanes."""
    closed = []

    def endless() -> Iterator[int]:
        number = 0
        try:
            while True:
                yield number
                number += 1
        finally:
            closed.append("plain")

    async def endless_later() -> AsyncIterator[int]:
        try:
            for number in endless():
                await asyncio.sleep(0)
                yield number
        finally:
            closed.append("asynchronous")

    def work(number: int) -> int:
        if number == 2:
            home(port, "held")
        if number == 1 and how == "error":
            raise KeyError
        return number

    port = telephone.port
    stream = one.stream(work, endless_later() if asynchronous else endless(), window=4)

    async def reads() -> None:
        async for number in stream:
            if number == 1 and how == "break":
                break
            if number == 1 and how == "raise":
                raise RuntimeError

    if how == "cancel":
        task = asyncio.create_task(reads())
        await telephone.hear("held")
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    elif how == "aclose":
        assert [await anext(stream), await anext(stream)] == [0, 1]
    else:
        await asyncio.gather(reads(), return_exceptions=True)
    await stream.aclose()
    assert await one.run(square, 3) == 9
    assert one.statistics().waiting == 0


async def test_sources_that_raise(two: tm.Lanes) -> None:
    """Their error is the stream's, as it is; results of what was read before may come first, in order."""

    def plain() -> Iterator[int]:
        yield from range(5)
        raise OSError("the sensor is gone")

    for source in (plain(), later(plain())):
        got = []

        async def reads(source=source, got=got) -> None:
            async for number in two.stream(square, source, window=2):
                got.append(number)

        with pytest.raises(OSError, match="the sensor is gone"):
            await reads()
        assert got == [0, 1, 4, 9, 16][: len(got)]
    assert await two.run(square, 3) == 9


async def test_a_source_that_pauses(two: tm.Lanes) -> None:
    """It gives one at a time, only when asked for the result of the one before: no deadlock with a wide window."""
    gate: asyncio.Queue[int] = asyncio.Queue()

    async def source() -> AsyncIterator[int]:
        while (number := await gate.get()) >= 0:
            yield number

    stream = two.stream(square, source(), window=64)
    for number in range(30):
        gate.put_nowait(number)
        assert await anext(stream) == number * number
    gate.put_nowait(-1)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_reader_slower_than_the_lanes(two: tm.Lanes) -> None:
    """Large results and a reader that takes its time: never more than the window of them exists."""
    read = 0

    def source() -> Iterator[int]:
        nonlocal read
        for number in range(60):
            read += 1
            yield number

    taken = 0
    async for block in two.stream(lambda number: bytes([number]) * 500_000, source(), window=4):
        assert block[:1] == bytes([taken])
        taken += 1
        assert read - taken <= 4
        await two.run(square, 2)
    assert taken == read == 60


async def test_streams_that_nobody_reads(two: tm.Lanes) -> None:
    """Made and forgotten, or left after one result without being closed: the lanes are free for others."""
    streams = [two.stream(square, range(1000), window=3) for _ in range(5)]
    for stream in streams[:3]:
        assert await anext(stream) == 0
    assert await asyncio.gather(*(two.run(square, number) for number in range(50))) == [n * n for n in range(50)]
    for stream in streams:
        await stream.aclose()


async def test_every_window_and_length(one: tm.Lanes) -> None:
    """The edges: no item, one, as many as the window, one more, one less."""
    for window in (1, 2, 5):
        for length in (0, 1, window - 1, window, window + 1, 3 * window):
            for source in (range(length), later(range(length))):
                stream = one.stream(square, source, window=window)
                assert [number async for number in stream] == [number * number for number in range(length)]
