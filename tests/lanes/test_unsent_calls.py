"""Calls that cannot be sent after a lane was chosen for them: each ends with its error, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import cloudpickle
import numpy as np
import pytest

import tidemill as tm
from tidemill.engine import large_buffers
from tidemill.errors import CallError, LaneDied
from tidemill.lanes import call_codec
from tidemill.lanes.channel import ProcessChannel
from tidemill.lanes.wire import Call, Function, Message

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.asyncio(loop_scope="module")

TABLE = bytes(range(256)) * 40
FEW = [1, 2]


def listed(values: list[int]) -> list[int]:
    return [len(TABLE) + value + len(FEW) for value in values]


def looked_up(value: int) -> int:
    return len(TABLE) + value + len(FEW)


class Table:
    def __call__(self, value: int) -> int:
        return len(TABLE) + value


async def streamed(lanes: tm.Lanes, function: Callable[[int], int]) -> list[int]:
    return [value async for value in lanes.stream(function, [1, 2])]


async def executed(lanes: tm.Lanes, function: Callable[[int], int]) -> int:
    return await asyncio.get_running_loop().run_in_executor(lanes.executor(), function, 1)


def batched(lanes: tm.Lanes, function: Callable[[list[int]], list[int]]) -> Awaitable[int]:
    return lanes.batched(function)(1)


DOORS: dict[str, tuple[Callable[..., Awaitable[Any]], Any]] = {
    "run": (lambda lanes, function: lanes.run(function, 1), looked_up),
    "executor": (executed, looked_up),
    "stream": (streamed, looked_up),
    "batched": (batched, listed),
    "keyed": (lambda lanes, function: lanes.keyed(function)("a", 1), Table),
}


def in_flight(lanes: tm.Lanes) -> list[int]:
    return [lane.in_flight for lane in lanes.statistics().lanes]


@pytest.mark.parametrize("door", DOORS)
async def test_a_function_that_is_too_large(one: tm.Lanes, door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before a lane is reserved, by every door and each time; what makes it large is named, and the lane is free."""
    monkeypatch.setattr(call_codec, "MAX_BYTES", 10_000)
    call, function = DOORS[door]
    for _ in range(3):
        with pytest.raises(
            CallError, match=r"bytes when packed, more than 10,000: it closes over TABLE, a bytes of 10,2"
        ):
            await call(one, function)
    assert in_flight(one) == [0]
    assert await one.run(abs, -1) == 1


async def test_a_large_function_that_closes_over_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is its own code that is large, or what an object holds: there is no part to name."""
    monkeypatch.setattr(call_codec, "MAX_BYTES", 10)
    with pytest.raises(CallError, match=r"bytes when packed, more than 10\. Load"):
        call_codec.dumps_function(lambda: None)


def first_fails(monkeypatch: pytest.MonkeyPatch, kind: type[Message]) -> None:
    """The next message of that kind finds no memory."""
    send, left = ProcessChannel.send, [True]

    def failing(self: ProcessChannel, message: Message, *payload: Any) -> None:
        if isinstance(message, kind) and left and left.pop():
            raise MemoryError("none for this one")
        send(self, message, *payload)

    monkeypatch.setattr(ProcessChannel, "send", failing)


@pytest.mark.parametrize("kind", [Call, Function])
@pytest.mark.parametrize("door", DOORS)
async def test_a_call_for_which_there_is_no_memory(
    one: tm.Lanes, door: str, kind: type[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone ends with that; the same call runs when there is some, and so does every other."""
    call, function = DOORS[door]
    original = cloudpickle.loads(cloudpickle.dumps(function))  # one that the lane does not know
    with monkeypatch.context() as patch:
        first_fails(patch, kind)
        with pytest.raises(MemoryError, match="none for this one"):
            await call(one, original)
    assert await call(one, original) in (len(TABLE) + 3, len(TABLE) + 1, [len(TABLE) + 3, len(TABLE) + 4])
    assert await asyncio.gather(*(one.run(abs, -number) for number in range(10))) == list(range(10))
    assert in_flight(one) == [0]


async def test_calls_behind_one_that_fails(one: tm.Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one key go on in order, those of a lane too; one that was cancelled in the same turn is not told."""
    first_fails(monkeypatch, Call)
    keyed = one.keyed(list)
    calls = [keyed.call("a", "append", number) for number in range(5)]
    with pytest.raises(MemoryError):
        await calls[0]
    await asyncio.gather(*calls[1:])
    assert await keyed.call("a", "copy") == [1, 2, 3, 4]
    first_fails(monkeypatch, Call)
    given_up, last = keyed.call("a", "append", 5), keyed.call("a", "append", 6)
    given_up.cancel()
    await last
    assert await keyed.call("a", "copy") == [1, 2, 3, 4, 6]
    assert in_flight(one) == [0]


async def test_a_call_of_a_stream_for_which_there_is_no_memory(one: tm.Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has that error at its place, and those that wait behind it their results."""
    first_fails(monkeypatch, Call)
    first, *others = [end async for end in one.stream(looked_up, range(200), return_exceptions=True)]
    assert repr(first) == "MemoryError('none for this one')"
    assert others == [looked_up(number) for number in range(1, 200)]
    assert in_flight(one) == [0]


@pytest.mark.parametrize("behind", [False, True])
async def test_a_large_call_for_which_there_is_no_memory(behind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its array is copied, or behind another whose array is: it alone ends with that, and its room is free again."""
    array = np.zeros(1 << 20)
    copied, failing = large_buffers.copied, [True]

    def fails(source: Any, target: memoryview) -> Any:
        yield from copied(source, target)
        if not behind and failing and failing.pop():
            raise MemoryError("none for this one")

    monkeypatch.setattr(large_buffers, "copied", fails)
    async with tm.Lanes(1, arena_bytes=32 << 20) as lanes:
        await lanes.run(abs, -1)
        calls: list[Any] = [lanes.run(len, array)]
        if behind:
            calls.append(lanes.run(abs, -2))
        ends = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)  # its array is being copied
        if behind:
            sent, unsent = ProcessChannel.send, [True]

            def none_for_the_second(self: ProcessChannel, message: Message, *payload: Any) -> None:
                if isinstance(message, Call) and message.at < 0 and unsent and unsent.pop():
                    raise MemoryError("none for this one")
                sent(self, message, *payload)

            monkeypatch.setattr(ProcessChannel, "send", none_for_the_second)
        told = await asyncio.gather(*ends, return_exceptions=True)
        assert [repr(end) for end in told] == [*(["1048576"] if behind else []), "MemoryError('none for this one')"]
        assert await asyncio.gather(*(lanes.run(len, array) for _ in range(4))) == [1 << 20] * 4
        assert in_flight(lanes) == [0]
        assert lanes.statistics().lanes[0].restarts == 0


async def test_a_large_call_that_finds_no_memory_once_its_array_is_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with that, and its room is free again."""
    async with tm.Lanes(1, arena_bytes=32 << 20) as lanes:
        await lanes.run(len, [])
        assert lanes._crew is not None
        process = lanes._crew.staff.seats[0]
        assert process is not None
        assert process.large is not None
        with monkeypatch.context() as patch:
            first_fails(patch, Call)
            with pytest.raises(MemoryError, match="none for this one"):
                await lanes.run(len, np.zeros(1 << 20))
        assert process.large._out._free == [(64, 16 << 20)]
        assert await lanes.run(len, np.zeros(1 << 20)) == 1 << 20
        assert process is lanes._crew.staff.seats[0]


def noted(_: np.ndarray, number: int) -> list[int]:
    import builtins

    notes = builtins.__dict__.setdefault("_noted", [])
    notes.append(number)
    return list(notes)


@pytest.mark.parametrize("then", ["", "cancel", "timeout", "death"])
async def test_calls_that_go_together_behind_one_that_fails(then: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one key keep their order, whatever becomes of the one that found no memory before its caller is told."""
    copied, failing = large_buffers.copied, [True]

    def fails(source: Any, target: memoryview) -> Any:
        if failing and failing.pop():
            raise MemoryError("none for this one")
        yield from copied(source, target)

    array = np.zeros(100_000)
    async with tm.Lanes(1, arena_bytes=32 << 20) as lanes:
        crew = lanes._crew
        assert crew is not None
        crew.calls.killed(0)  # the lane gets nothing before it is said to be there again
        limits_s = [60.0, *[None] * 7]
        calls = [
            asyncio.ensure_future(lanes.run(noted, array, number, key="a", timeout=limit_s))
            for number, limit_s in enumerate(limits_s)
        ]
        await asyncio.sleep(0)
        first = min(crew._requests)
        monkeypatch.setattr(large_buffers, "copied", fails)
        crew._perform(crew.calls.attached(0))
        process = crew.staff.seats[0]
        assert process is not None
        assert not failing
        if then == "cancel":
            crew.cancel(first)
            calls[0].cancel()
        elif then == "timeout":
            crew._perform(crew.calls.expired(1 << 62))
        elif then == "death":
            process.kill()
            process.channel.exited(signal.SIGKILL)  # whose word was on its way in this very turn
        told = await asyncio.gather(*calls, return_exceptions=True)
        end = {"": MemoryError, "cancel": asyncio.CancelledError, "timeout": TimeoutError, "death": list}[then]
        assert type(told[0]) is end
        assert told[-1] == list(range(then != "death", 8))
        crew.calls.validate()
        assert in_flight(lanes) == [0]
    assert process.memory.buffer.closed  # though `told` holds the error, and with it what its traceback holds


async def test_who_keeps_the_error_of_a_large_call_keeps_nothing_of_its_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process can end, and another takes its place."""
    copied, failing = large_buffers.copied, [True]

    def fails(source: Any, target: memoryview) -> Any:
        if failing and failing.pop():
            raise MemoryError("none for this one")
        yield from copied(source, target)

    monkeypatch.setattr(large_buffers, "copied", fails)
    array = np.zeros(100_000)
    async with tm.Lanes(1, arena_bytes=32 << 20) as lanes:
        (kept,) = await asyncio.gather(lanes.run(len, array), return_exceptions=True)
        assert isinstance(kept, MemoryError)
        with pytest.raises(LaneDied):
            await lanes.run(os._exit, 1)
        assert await lanes.run(len, array) == 100_000
