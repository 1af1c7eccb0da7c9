"""Large arguments and results that are still being copied when nobody wants them any more, or the lanes are closed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import sys
from collections.abc import Iterator
from itertools import count, pairwise
from typing import Any

import cloudpickle
import numpy as np
import pytest

import tidemill as tm
from tidemill.engine import large_buffers, slices
from tidemill.engine.call_process import Request
from tidemill.errors import CallError
from tidemill.lanes.call_codec import dumps_call

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]

LENGTH = 100_000


def large(value: float) -> np.ndarray:
    return np.full(LENGTH, value)


def refuses(_: np.ndarray) -> None:
    raise ValueError("of the test")


class Unreadable:
    """Cannot be unpickled."""

    def __reduce__(self) -> Any:
        return refuses, (large(1.0),)


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def large(self) -> np.ndarray:
        self.count += 1
        return large(1.0)

    def add(self) -> int:
        self.count += 1
        return self.count


class Copies:
    """Copies begin, and go no further before they are let: no turn of the loop has time for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._times = {name: getattr(slices, name) for name in ("_ALONE_S", "_AMONG_OTHERS_S")}
        for name in self._times:
            monkeypatch.setattr(slices, name, 0.0)

    async def begins(self, lanes: tm.Lanes) -> None:
        """Return when a result is there to be copied."""
        assert lanes._crew is not None
        while not any(seat.large._receiving.busy for seat in lanes._crew.staff.seats if seat and seat.large):  # noqa: ASYNC110 - a turn at a time
            await asyncio.sleep(0)

    def go_on(self) -> None:
        for name, seconds in self._times.items():
            self._patch.setattr(slices, name, seconds)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Copies:
    return Copies(monkeypatch)


@contextlib.contextmanager
def told_to_the_loop() -> Iterator[list[dict[str, Any]]]:
    """What its exception handler gets."""
    loop, told = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: told.append(context))
    try:
        yield told
    finally:
        loop.set_exception_handler(None)


async def goes_on(lanes: tm.Lanes) -> None:
    """Large results of the lane arrive, in the process that it had."""
    for value in (7.0, 8.0):
        np.testing.assert_array_equal(await lanes.run(large, value), large(value))
    assert lanes.statistics().lanes[0].restarts == 0


@pytest.mark.parametrize("limit_s", [None, 60.0], ids=["together", "one by one"])
async def test_a_stream_that_is_left(copies: Copies, limit_s: float | None) -> None:
    """Its result is thrown away in silence, and later ones of the lane arrive."""
    with told_to_the_loop() as told:
        async with tm.Lanes(1) as lanes:
            stream = lanes.stream(large, [1.0], timeout=limit_s)
            asked = asyncio.ensure_future(anext(stream))
            await copies.begins(lanes)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            copies.go_on()
            await goes_on(lanes)
        gc.collect()
    assert told == []


@pytest.mark.parametrize("limit_s", [None, 60.0], ids=["together", "one by one"])
async def test_a_stream_that_is_left_while_another_than_its_first_result_is_copied(
    copies: Copies, limit_s: float | None, telephone, home
) -> None:
    """It is thrown away in silence, too, also one that cannot be read."""

    def first_waits(port: int) -> Any:
        return home(port, "first") if port else Unreadable()

    with told_to_the_loop() as told:
        async with tm.Lanes(2) as lanes:
            stream = lanes.stream(first_waits, [telephone.port, 0], timeout=limit_s)
            asked = asyncio.ensure_future(anext(stream))
            await telephone.hear("first")
            await copies.begins(lanes)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            copies.go_on()
            np.testing.assert_array_equal(await lanes.run(large, 7.0), large(7.0))
            del stream, asked
        gc.collect()
    assert told == []


async def test_a_keyed_call_that_is_cancelled(copies: Copies) -> None:
    """It leaves no trace, and those behind it count one after the other."""
    async with tm.Lanes(1) as lanes:
        keyed = lanes.keyed(Counter)
        assert await keyed.call("a", "add") == 1
        cancelled = keyed.call("a", "large")
        later = [keyed.call("a", "add") for _ in range(3)]
        await copies.begins(lanes)
        cancelled.cancel()
        await asyncio.sleep(0)  # the next is sent
        copies.go_on()
        assert await asyncio.gather(*later) == [2, 3, 4]
        assert await keyed.call("a", "add") == 5
        await goes_on(lanes)


async def test_the_first_call_of_a_key_that_is_cancelled(copies: Copies) -> None:
    """There is no object of that key, and the next call makes one."""
    async with tm.Lanes(1) as lanes:
        keyed = lanes.keyed(Counter)
        cancelled = keyed.call("a", "large")
        await copies.begins(lanes)
        cancelled.cancel()
        await asyncio.sleep(0)
        assert keyed.statistics().keys == 0
        again = keyed.call("a", "add")
        copies.go_on()
        assert await again == 1
        assert await keyed.call("a", "add") == 2


async def test_a_call_of_the_executor_that_is_cancelled(copies: Copies, caplog: pytest.LogCaptureFixture) -> None:
    """It is cancelled for whoever waits for it, and nothing is told of it a second time."""
    async with tm.Lanes(1) as lanes:
        future = lanes.executor().submit(large, 1.0)
        await copies.begins(lanes)
        assert future.cancel()
        copies.go_on()
        await goes_on(lanes)
    assert concurrent.futures.wait([future], timeout=0).done == {future}
    assert caplog.records == []


async def test_a_call_that_is_cancelled(copies: Copies) -> None:
    """Its result is thrown away, and later ones of the lane arrive."""
    async with tm.Lanes(1) as lanes:
        call = asyncio.ensure_future(lanes.run(large, 1.0))
        await copies.begins(lanes)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        copies.go_on()
        await goes_on(lanes)


@pytest.mark.parametrize("cancels", [0, 1, 2])
async def test_lanes_that_are_closed(copies: Copies, cancels: int) -> None:
    """The caller has the result, also when the closing is cancelled, once and again; nothing of the lanes is left."""
    lanes = tm.Lanes(1)
    await lanes.__aenter__()
    assert lanes._crew is not None
    call = asyncio.ensure_future(lanes.run(large, 1.0))
    await copies.begins(lanes)
    closing = asyncio.ensure_future(lanes.aclose())
    await asyncio.sleep(0)
    for _ in range(cancels):
        closing.cancel()
        await asyncio.sleep(0)
    (end,) = await asyncio.gather(closing, return_exceptions=True)
    assert isinstance(end, asyncio.CancelledError) is bool(cancels)
    np.testing.assert_array_equal(await call, large(1.0))
    await lanes.aclose()
    assert all(process.memory.buffer.closed for process in lanes._crew.staff.processes)


@pytest.mark.parametrize("end", ["closed", "closing cancelled", "death"])
async def test_what_is_left_to_copy_at_the_end(copies: Copies, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process or of the lanes: it is copied a few slices in a turn of the loop, and the caller has it before they are closed."""
    slices_done, copied, ticks = [0], large_buffers.copied, count()

    def counted(source: Any, target: memoryview) -> Iterator[None]:
        for _ in copied(source, target):
            slices_done[0] += 1
            yield

    lanes = tm.Lanes(1)
    await lanes.__aenter__()
    assert lanes._crew is not None
    process = lanes._crew.staff.seats[0]
    assert process is not None
    monkeypatch.setattr(large_buffers, "copied", counted)
    monkeypatch.setattr(slices, "monotonic", lambda: next(ticks) * 0.0002)  # a slice takes as long
    call = asyncio.ensure_future(lanes.run(np.ones, 1 << 20))
    await copies.begins(lanes)
    closing, after_each_turn = None, [slices_done[0]]
    if end == "death":
        process.kill()
        while process in lanes._crew.staff.processes:
            await asyncio.sleep(0)
            after_each_turn.append(slices_done[0])
        copies.go_on()
    else:
        closing = asyncio.ensure_future(lanes.aclose())
        await asyncio.sleep(0)
        if end == "closing cancelled":
            closing.cancel()
    while not call.done():
        await asyncio.sleep(0)
        after_each_turn.append(slices_done[0])
    assert after_each_turn[-1] == 32
    assert max(after - before for before, after in pairwise(after_each_turn)) <= 10
    np.testing.assert_array_equal(await call, np.ones(1 << 20))
    if closing is None:
        await lanes.aclose()
    else:
        (told,) = await asyncio.gather(closing, return_exceptions=True)
        assert isinstance(told, asyncio.CancelledError) is (end == "closing cancelled")
    assert process.large is not None
    assert process.large._shared.buffer.closed


def first_and_last(values: np.ndarray) -> tuple[float, float]:
    return float(values[0]), float(values[-1])


@pytest.mark.parametrize("fails", [False, True], ids=["", "old copy fails"])
async def test_a_call_that_is_sent_to_a_lane_again_while_its_arguments_are_copied(
    copies: Copies, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old copy, whose place is another call's by now, is given up, and what it raises too; each call has its own arguments."""
    copied, left = large_buffers.copied, [fails]

    def first_fails(source: Any, target: memoryview) -> Iterator[None]:
        if left.pop() if left else False:
            raise MemoryError("none for a copy that nobody wants")
        yield from copied(source, target)

    async with tm.Lanes(1, arena_bytes=32 << 20) as lanes:
        await lanes.run(abs, -1)
        crew = lanes._crew
        assert crew is not None
        process = crew.staff.seats[0]
        assert process is not None
        assert process.large is not None
        monkeypatch.setattr(large_buffers, "copied", first_fails)
        calls = [asyncio.ensure_future(lanes.run(first_and_last, large(1.0)))]
        await asyncio.sleep(0)  # it is being copied
        crew._perform(crew.calls.held(0))  # as while a call that was cancelled leaves
        calls.append(asyncio.ensure_future(lanes.run(first_and_last, large(2.0), key="a")))  # which goes first
        await asyncio.sleep(0)
        crew._perform(crew.calls.attached(0))
        copies.go_on()
        assert await asyncio.gather(*calls) == [(1.0, 1.0), (2.0, 2.0)]
        await lanes.run(first_and_last, large(3.0))  # the lane tells what it looks at no more
        await lanes.run(abs, -1)
        await goes_on(lanes)
        assert process.large._out._free == [(64, 16 << 20)]


def raises(_: object) -> None:
    raise ZeroDivisionError("of the test")


def request(lanes: tm.Lanes, function: Any) -> Request:
    """A call that has an end at which something of ours breaks."""
    sent = lanes._functions.of(function)
    return Request("broken", sent, [dumps_call((1.0,), {})], raises)


@pytest.mark.parametrize("function", [large, float])
async def test_who_breaks_when_it_is_told_a_result(function: Any) -> None:
    """Is reported by the loop, and keeps no other result of the lane from arriving."""
    with told_to_the_loop() as told:
        async with tm.Lanes(1) as lanes:
            assert lanes._crew is not None
            lanes._crew.submit(request(lanes, function))
            await goes_on(lanes)
    assert [type(context["exception"]) for context in told] == [ZeroDivisionError]


async def test_who_breaks_when_it_is_told_that_the_lanes_are_closed(telephone, home) -> None:
    """Is reported by the loop, and keeps no other caller from being told."""
    with told_to_the_loop() as told:
        async with tm.Lanes(1) as lanes:
            assert lanes._crew is not None
            running = asyncio.ensure_future(lanes.run(home, telephone.port, "running"))
            await telephone.hear("running")
            lanes._crew.submit(request(lanes, float))
            behind = asyncio.ensure_future(lanes.run(abs, -1))
            await asyncio.sleep(0)
        for call in (running, behind):
            with pytest.raises(CallError, match="were closed before"):
                await call
    assert [type(context["exception"]) for context in told] == [ZeroDivisionError]
