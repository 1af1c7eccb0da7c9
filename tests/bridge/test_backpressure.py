"""Bounds on what waits: by calls and by bytes; block, reject or drop the oldest; every call ends, every drop counts."""

from __future__ import annotations

import asyncio
import sys
import tracemalloc
from random import Random

import cloudpickle
import pytest

import tidemill as tm
from tidemill.core.calls import Bounds, Calls
from tidemill.engine.backpressure import Door
from tidemill.errors import CallError, LaneDied, LanesFull

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]


def square(x: int) -> int:
    return x * x


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_block_lets_callers_in_by_turns(telephone, home) -> None:
    """First come, first served; callers in line can give up, and never run; nothing beyond the bound waits."""
    async with tm.Lanes(1, max_waiting=5) as lanes:
        running = asyncio.create_task(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")
        order: list[int] = []

        async def call(number: int) -> int:
            result = await lanes.run(square, number)
            order.append(number)
            return result

        tasks = [asyncio.create_task(call(number)) for number in range(50)]
        never = asyncio.create_task(lanes.run(home, telephone.port, "never"))
        await turns()
        assert lanes.statistics().waiting <= 5
        tasks[30].cancel()
        never.cancel()
        await telephone.tell("running")
        assert await running == "done"
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(ends.pop(30), asyncio.CancelledError)
        assert ends == [number * number for number in range(50) if number != 30]
        assert order == [number for number in range(50) if number != 30]
        assert telephone.calls == 1


async def test_reject_refuses_at_once(telephone, home) -> None:
    """Those that were taken run; those that were not are told; there is room again afterwards."""
    async with tm.Lanes(1, max_waiting=5, when_full="reject") as lanes:
        running = asyncio.create_task(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")
        ends = asyncio.gather(*(lanes.run(square, number) for number in range(50)), return_exceptions=True)
        await turns()
        await telephone.tell("running")
        told = [end for end in await ends if isinstance(end, LanesFull)]
        done = [end for end in ends.result() if not isinstance(end, Exception)]
        assert done == [number * number for number in range(len(done))]
        assert 5 <= len(done) < 50
        assert len(told) + len(done) == 50
        assert await running == "done"
        assert await lanes.run(square, 7) == 49


async def test_drop_oldest_keeps_the_newest(telephone, home) -> None:
    """The oldest that waited are told, the newest run; what runs is never dropped."""
    async with tm.Lanes(1, max_waiting=5, when_full="drop_oldest") as lanes:
        running = asyncio.create_task(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")
        tasks = [asyncio.create_task(lanes.run(square, number)) for number in range(50)]
        await turns()
        await telephone.tell("running")
        assert await running == "done"
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        dropped = [number for number, end in enumerate(ends) if isinstance(end, LanesFull)]
        assert all(end == number * number for number, end in enumerate(ends) if number not in dropped)
        assert set(range(45, 50)).isdisjoint(dropped)
        assert len(dropped) >= 40
        assert await lanes.run(square, 7) == 49


@pytest.mark.parametrize("when_full", ["block", "reject", "drop_oldest"])
async def test_bytes_are_bounded_too(telephone, home, when_full: str) -> None:
    """A few large arguments fill what many small ones would not; one that is larger than the bound still goes alone."""
    async with tm.Lanes(1, max_waiting_bytes=3_000_000, when_full=when_full) as lanes:  # type: ignore[arg-type]
        running = asyncio.create_task(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")
        tasks = [asyncio.create_task(lanes.run(len, bytes(1_000_000))) for _ in range(20)]
        await turns()
        assert lanes.statistics().waiting <= 4
        await telephone.tell("running")
        await running
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(end == 1_000_000 or isinstance(end, LanesFull) for end in ends)
        assert (ends.count(1_000_000) == 20) == (when_full == "block")
        assert await lanes.run(len, bytes(5_000_000)) == 5_000_000


@pytest.mark.parametrize("how", ["timeout", "cancel", "closure", "moved"])
async def test_what_nobody_wants_any_more_does_not_add_up(telephone, home, how: str) -> None:
    """While a lane is in one long call, the arguments of those that were sent to it and taken back are not kept."""
    async with tm.Lanes(2 if how == "moved" else 1, max_waiting_bytes=2_000_000) as lanes:
        running = asyncio.create_task(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")
        tracemalloc.start()
        try:
            for _ in range(60):
                text = "x" * 500_000
                if how == "moved":
                    assert await asyncio.gather(*(lanes.run(len, text) for _ in range(3))) == [500_000] * 3
                elif how == "cancel":
                    call = asyncio.create_task(lanes.run(len, text))
                    await turns(2)
                    call.cancel()
                    await asyncio.wait([call])
                else:
                    with pytest.raises(TimeoutError):
                        await lanes.run(
                            *(lambda text=text: len(text),) if how == "closure" else (len, text), timeout=1e-4
                        )
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 6_000_000
        await telephone.tell("running")
        assert await running == "done"
        assert await asyncio.gather(*(lanes.run(square, number) for number in range(20))) == [x * x for x in range(20)]
        assert [lane.restarts for lane in lanes.statistics().lanes] == [0] * len(lanes.statistics().lanes)


async def test_both_bounds_hold_at_once() -> None:
    """A bound on calls that is never reached does not lift the one on bytes, for callers that are let in one by one."""
    async with tm.Lanes(1, max_waiting=1000, max_waiting_bytes=3_000_000) as lanes:
        tasks = [asyncio.create_task(lanes.run(len, bytes(1_000_000))) for _ in range(40)]
        most = 0
        while not all(task.done() for task in tasks):
            most = max(most, lanes.statistics().waiting_bytes)
            await asyncio.sleep(0)
        assert [task.result() for task in tasks] == [1_000_000] * 40
        assert most < 4_000_000  # the call that passes the bound is still taken


async def test_timeouts_in_line(telephone, home) -> None:
    """Time in line counts; a caller whose time is up leaves it, and those behind it move up."""
    async with tm.Lanes(1, max_waiting=1) as lanes:
        running = asyncio.create_task(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")
        behind = [asyncio.create_task(lanes.run(square, number)) for number in range(6)]
        await turns()
        with pytest.raises(TimeoutError):
            await lanes.run(home, telephone.port, "never", timeout=0.02)
        last = asyncio.create_task(lanes.run(square, 9))
        await turns()
        await telephone.tell("running")
        await running
        assert await asyncio.gather(*behind, last) == [0, 1, 4, 9, 16, 25, 81]
        assert telephone.calls == 1


async def test_callers_in_line_when_the_lanes_close(telephone, home) -> None:
    """Each is told; none hangs."""
    async with tm.Lanes(1, max_waiting=2) as lanes:
        running = asyncio.create_task(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")
        tasks = [running, *(asyncio.create_task(lanes.run(square, number)) for number in range(20))]
        await turns()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, tm.CallError) for end in ends)


@pytest.mark.parametrize("when_full", ["block", "reject", "drop_oldest"])
async def test_a_storm_through_a_narrow_door(when_full: str) -> None:
    """Deaths, cancels and timeouts among bounded calls: each ends once, with its own; then the door is free."""
    random = Random(when_full)

    def work(number: int) -> int:
        import os

        if number % 17 == 3:
            os._exit(1)
        return number * number

    async with tm.Lanes(2, max_waiting=3, max_waiting_bytes=200_000, when_full=when_full) as lanes:  # type: ignore[arg-type]

        async def caller(first: int) -> None:
            for number in range(first, first + 40):
                call = asyncio.create_task(lanes.run(work, number, timeout=random.choice([None, 60, 0.003])))
                await turns(random.randrange(10))
                if random.random() < 0.2:
                    call.cancel()
                (end,) = await asyncio.gather(call, return_exceptions=True)
                allowed = (TimeoutError, asyncio.CancelledError, LaneDied, LanesFull)
                assert end == number * number or isinstance(end, allowed)

        await asyncio.gather(*(caller(100 * number) for number in range(10)))
        assert await asyncio.gather(*(lanes.run(square, number) for number in range(3))) == [0, 1, 4]
        assert lanes.statistics().waiting == 0


@pytest.mark.parametrize("when_full", ["block", "reject", "drop_oldest"])
async def test_records_through_a_narrow_door(telephone, home, when_full: str) -> None:
    """The same three ways for ``batched``."""
    async with tm.Lanes(1) as lanes:
        predict = lanes.batched(
            lambda values: [value + 1 for value in values],
            max_batch=4,
            max_waiting=8,
            when_full=when_full,  # type: ignore[arg-type]
        )
        running = asyncio.create_task(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")

        async def ask(number: int) -> int:
            return await predict(number)

        tasks = [asyncio.create_task(ask(number)) for number in range(60)]
        await turns()
        await telephone.tell("running")
        await running
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        full = [number for number, end in enumerate(ends) if isinstance(end, LanesFull)]
        assert all(end == number + 1 for number, end in enumerate(ends) if number not in full)
        assert bool(full) == (when_full != "block")
        if when_full == "drop_oldest":
            assert set(range(55, 60)).isdisjoint(full)
        if when_full == "reject":
            assert set(range(5)).isdisjoint(full)
        assert await predict(1) == 2


# -- doors with bounds of their own --------------------------------------------------------------------------


@pytest.mark.parametrize("when_full", ["block", "reject", "drop_oldest"])
async def test_a_stream_has_its_window_instead(telephone, home, when_full: str) -> None:
    """What it has read ahead is never dropped, and fills no place that a single call could have."""
    async with tm.Lanes(1, max_waiting=2, when_full=when_full) as lanes:  # type: ignore[arg-type]
        running = asyncio.create_task(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")

        async def streamed() -> list[int]:
            return [value async for value in lanes.stream(square, range(100), window=64)]

        stream = asyncio.create_task(streamed())
        await turns()
        assert lanes.statistics().waiting > 2
        calls = [asyncio.create_task(lanes.run(square, number)) for number in range(3)]
        await turns()
        read = lanes.statistics()
        assert (read.blocked, read.rejected, read.dropped) == tuple(
            int(when_full == way) for way in ("block", "reject", "drop_oldest")
        )
        await telephone.tell("running")
        assert await running == "done"
        assert await stream == [number * number for number in range(100)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        full = [number for number, end in enumerate(ends) if isinstance(end, LanesFull)]
        assert full == {"block": [], "reject": [2], "drop_oldest": [0]}[when_full]


@pytest.mark.parametrize("bound", [{"max_waiting": 5}, {"max_waiting_bytes": 5_000}])
async def test_callers_of_keys_wait_for_room(telephone, home, bound: dict[str, int]) -> None:
    """In order, of one key and of many; a caller who gives up is out of the line; what cannot be sent is told."""
    async with tm.Lanes(1) as lanes:
        lists = lanes.keyed(list, **bound)
        running = asyncio.create_task(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")
        text = "x" * 970
        calls = [lists.call("one", "append", (number, text)) for number in range(10)]
        others = [lists.call(f"S{number}", "append", number) for number in range(20)]
        wrong = lists.call("wrong", "append", (x for x in ()))
        with pytest.raises(tm.CallError, match=r"the key \['S1'\] must be text or bytes"):
            lists.call(["S1"], "append", 1)  # type: ignore[arg-type]
        read = lists.statistics()
        assert read.blocked >= 25
        assert 5 <= read.open <= 6
        calls[7].cancel()
        await turns()
        assert lists.statistics().blocked == read.blocked - 1
        await telephone.tell("running")
        await running
        ends = await asyncio.gather(*calls, *others, return_exceptions=True)
        assert isinstance(ends.pop(7), asyncio.CancelledError)
        assert ends == [None] * 29
        assert await lists.call("one", "__len__") == 9
        assert [number for number, _ in await lists.call("one", "copy")] == [0, 1, 2, 3, 4, 5, 6, 8, 9]
        with pytest.raises(tm.CallError, match="argument 0"):
            await wrong
        assert (lists.statistics().blocked, lists.statistics().waiting) == (0, 0)


async def test_calls_of_keys_are_refused(telephone, home) -> None:
    """At once, and counted; those that were taken run; the lanes' own bound is for single calls."""
    async with tm.Lanes(1, max_waiting=1, when_full="reject") as lanes:
        counts = lanes.keyed(list, max_waiting=5, when_full="reject")
        running = asyncio.create_task(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")
        calls = [counts.call(f"S{number}", "append", number) for number in range(5)]
        for _ in range(3):
            with pytest.raises(LanesFull, match=r"lanes\.keyed\(list\): the call was refused: 5 calls"):
                counts.call("S1", "append", 1)
        assert counts.statistics().rejected == 3
        single = asyncio.create_task(lanes.run(square, 3))
        await turns()
        await telephone.tell("running")
        assert await running == "done"
        assert await asyncio.gather(*calls) == [None] * 5
        assert await single == 9
        assert await counts.call("S1", "__len__") == 1
        with pytest.raises(tm.CallError, match="when_full='drop_oldest' must be one of 'block', 'reject'"):
            lanes.keyed(list, when_full="drop_oldest")  # type: ignore[arg-type]


async def test_callers_of_keys_in_line_when_the_lanes_close() -> None:
    """Each is told; none hangs."""
    async with tm.Lanes(1) as lanes:
        lists = lanes.keyed(list, max_waiting=2)
        calls = [lists.call(f"S{number % 3}", "append", number) for number in range(20)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(end, tm.CallError) for end in ends[2:])


async def test_who_leaves_the_line_in_the_turn_in_which_there_is_room_is_not_counted_as_let_in() -> None:
    """Or else more would be let in later than there is room for."""
    calls = Calls(1, Bounds(waiting=1))
    calls.add(1)
    door = Door(calls, "block")
    leaving = [asyncio.ensure_future(door.enter()) for _ in range(5)]
    await turns()
    for one in leaving:
        one.cancel()
    calls.cancel(1)
    door.admit()  # before they have noticed
    await asyncio.wait(leaving)

    calls.add(2)
    waiting = [asyncio.ensure_future(door.enter()) for _ in range(5)]
    await turns()
    calls.cancel(2)
    door.admit()
    await turns()
    assert sum(one.done() for one in waiting) == 1
    for one in waiting:
        one.cancel()
    await asyncio.wait(waiting)


async def test_who_is_let_in_while_the_lanes_close_is_told(telephone, home) -> None:
    """Its turn has come, and before it can use that the lanes are closed."""
    async with tm.Lanes(1, max_waiting=1) as lanes:
        running = asyncio.create_task(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")
        behind, waiting, at_the_door = (asyncio.create_task(lanes.run(square, number)) for number in range(3))
        await turns()
        assert lanes.statistics().blocked == 1
        waiting.cancel()
        closing = asyncio.create_task(lanes.aclose())
        ends = await asyncio.gather(running, behind, waiting, at_the_door, return_exceptions=True)
        assert [type(end) for end in ends] == [CallError, CallError, asyncio.CancelledError, CallError]
        await closing
