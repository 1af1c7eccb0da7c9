"""`Lanes.keyed`: an object has seen exactly the calls whose callers have a value, whatever happens to its lane."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import BadResult, CallError, LaneDied
from tidemill.lanes import call_codec

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Sums:
    """Adds up what it is called with; on demand it misbehaves half-way."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, x: int, how: str = "") -> int:
        self.seen.append(x)
        if how == "raise":
            raise ValueError(x)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "unpicklable":
            self.oops = (x for x in ())
        return sum(self.seen)

    def all_seen(self) -> list[int]:
        return self.seen

    def pid(self) -> int:
        return os.getpid()

    def hold(self, home: Any, port: int, name: str) -> str:
        self.seen.append(-1)
        return home(port, name)


class Careful:
    """Says itself what it is made of."""

    def __init__(self) -> None:
        self.total = 0
        self.not_kept = (x for x in ())

    def update(self, x: int) -> int:
        self.total += x
        return self.total

    def snapshot(self) -> int:
        return self.total

    def restore(self, total: int) -> None:
        self.total = total


class Shown:
    """``snapshot`` is for a dashboard."""

    def __init__(self) -> None:
        self.total = 0

    def update(self, x: int) -> int:
        self.total += x
        return self.total

    def snapshot(self) -> dict[str, int]:
        return {"total": self.total}


class Undone:
    """``restore`` is the user's own affair."""

    def __init__(self) -> None:
        self.total = 0

    def update(self, x: int) -> int:
        self.total += x
        return self.total

    def restore(self, path: str) -> None:
        self.total = -1


@pytest.mark.parametrize("count", [0, 2], ids=["inline", "processes"])
async def test_each_key_has_its_own_object(count: int) -> None:
    """Calls of one key are in order without awaiting each; text and bytes are keys; classes of the library too."""
    async with tm.Lanes(count) as lanes:
        sums = lanes.keyed(Sums)
        values = await asyncio.gather(*(sums(f"S{x % 3}", x) for x in range(30)))
        assert values == [sum(range(x % 3, x + 1, 3)) for x in range(30)]
        assert await sums.call("S1", "all_seen") == list(range(1, 30, 3))
        assert await sums(b"S1", 5) == 5
        counts = lanes.keyed(collections.Counter)
        await counts("a", ["x", "y", "x"])
        assert await counts.call("a", "most_common", 1) == [("x", 2)]
        read = sums.statistics()
        assert (read.keys, read.waiting, read.restored) == (4, 0, 0)


async def test_an_object_outlives_its_process(two: tm.Lanes) -> None:
    """Killed while idle: the next call finds it as it was, in another process."""
    for factory in (Sums, Careful, Shown, Undone):
        objects = two.keyed(factory)
        for number in range(5):
            assert await objects("S1", 1) == 2 * number + 1
            pid = await two.run(os.getpid, key="S1")
            os.kill(pid, signal.SIGKILL)
            assert await objects("S1", 1) == 2 * number + 2
        assert objects.statistics().restored == 5


class Asynchronous:
    """Everything in it, and what it returns cannot be sent."""

    async def __call__(self) -> None: ...

    async def fetch(self) -> None: ...

    async def numbers(self) -> AsyncIterator[int]:
        yield 1

    def lock(self) -> object:
        return {"a": [1, threading.Lock()]}


async def test_methods_that_are_async(one: tm.Lanes) -> None:
    """Each is refused by its name, and no coroutine is left that nobody awaits."""
    keyed = one.keyed(Asynchronous)
    for method, name in (("", "__call__"), ("fetch", "fetch"), ("numbers", "numbers")):
        with pytest.raises(CallError, match=rf"{name} of a Asynchronous is async, and a lane runs plain methods"):
            await keyed.call("S1", method)
    with pytest.raises(BadResult, match=r"but the result\['a'\]\[1\], a lock, cannot be sent back"):
        await keyed.call("S1", "lock")


async def test_a_call_that_brought_no_value_leaves_no_trace(two: tm.Lanes, telephone, home) -> None:
    """It raised, killed its process, was cancelled while running or waiting, or left what cannot be kept."""
    sums = two.keyed(Sums)
    assert await sums("S1", 1) == 1
    with pytest.raises(ValueError, match="2"):
        await sums("S1", 2, "raise")
    assert await sums("S1", 3) == 4
    with pytest.raises(LaneDied, match=r"keyed\(Sums\) of key 'S1'"):
        await sums("S1", 4, "kill")
    assert await sums("S1", 5) == 9
    with pytest.raises(BadResult, match="cannot be kept"):
        await sums("S1", 6, "unpicklable")
    running = sums.call("S1", "hold", home, telephone.port, "held")
    waiting, after = sums("S1", 7), sums("S1", 8)
    await telephone.hear("held")
    waiting.cancel()
    running.cancel()
    assert await after == 17
    assert await sums.call("S1", "all_seen") == [1, 3, 5, 8]


async def test_a_key_whose_calls_all_failed_has_no_object(two: tm.Lanes) -> None:
    """Nothing is kept of it."""
    sums = two.keyed(Sums)
    with pytest.raises(ValueError, match="2"):
        await sums("S1", 2, "raise")
    assert sums.statistics().keys == 0


async def test_what_is_kept_is_bounded(two: tm.Lanes) -> None:
    """By keys and by bytes; dropping a key makes room, and it starts afresh."""
    sums = two.keyed(Sums, max_keys=2)
    assert [await sums("a", 1), await sums("b", 2)] == [1, 2]
    with pytest.raises(CallError, match="max_keys=2"):
        sums("c", 3)
    assert sums.drop("a")
    assert not sums.drop("a")
    assert await sums("c", 3) == 3
    assert sums.drop("c")
    assert await sums("a", 5) == 5
    under_way = sums("a", 1)
    with pytest.raises(CallError, match="under way"):
        sums.drop("a")
    assert await under_way == 6

    small = two.keyed(bytearray, max_bytes=1000)
    assert await small.call("a", "extend", b"x" * 500) is None
    with pytest.raises(BadResult, match="max_bytes=1,000"):
        await small.call("a", "extend", b"y" * 800)
    assert await small.call("a", "__len__") == 500
    assert small.statistics().state_bytes < 1000


async def test_what_makes_no_sense_is_refused(two: tm.Lanes) -> None:
    """In one sentence, where it is written."""
    with pytest.raises(CallError, match="not a class or function"):
        two.keyed(3)  # type: ignore[arg-type]
    with pytest.raises(CallError, match="must be text or bytes"):
        two.keyed(Sums)(3, 1)  # type: ignore[arg-type]
    with pytest.raises(CallError, match="max_keys=0"):
        two.keyed(Sums, max_keys=0)
    with pytest.raises(TypeError, match="neither __call__ nor update"):
        await two.keyed(object)("a", 1)
    with pytest.raises(CallError, match="argument 0, a generator"):
        two.keyed(Sums)("a", (x for x in ()))


@pytest.mark.parametrize("max_waiting", [1, 100], ids=["blocked", "in line"])
async def test_calls_behind_a_long_one_that_are_given_up_keep_nothing(telephone, home, max_waiting: int) -> None:
    """Whoever was cancelled does not count as waiting, and is not kept until the long call ends either."""
    async with tm.Lanes(1) as lanes:
        sums = lanes.keyed(Sums, max_waiting=max_waiting)
        held = sums.call("a", "hold", home, telephone.port, "held")
        await telephone.hear("held")
        tracemalloc.start()
        try:
            for number in range(50):
                sums("a", number, "x" * 200_000).cancel()
                await asyncio.sleep(0)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 2_000_000
        last = sums("a", 5)
        await telephone.tell("held")
        assert await held == "done"
        assert await last == 4


async def test_closing_the_lanes_ends_the_calls(telephone, home) -> None:
    """Those that wait for an earlier one too."""
    async with tm.Lanes(1) as lanes:
        sums = lanes.keyed(Sums)
        futures = [sums.call("a", "hold", home, telephone.port, "held"), sums("a", 1), sums("a", 2)]
        await telephone.hear("held")
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [CallError] * 3


async def test_the_state_is_exact_whatever_happens() -> None:
    """Kills from outside and inside, errors, cancels and recycling, seeded: every object saw what returned, in order."""
    random = Random(11)
    returned: dict[str, list[int]] = {f"S{number}": [] for number in range(6)}

    async def caller(lanes: tm.Lanes, sums: Any, key: str) -> None:
        for number in range(40):
            future = sums(key, number, random.choice(["", "", "", "raise", "kill" if number % 10 == 0 else ""]))
            if random.random() < 0.15:
                for _ in range(random.randrange(12)):
                    await asyncio.sleep(0)
                future.cancel()
            (result,) = await asyncio.gather(future, return_exceptions=True)
            if isinstance(result, int):
                returned[key].append(number)
                assert result == sum(returned[key])
            pid = lanes.statistics().lanes[number % 2].pid
            if random.random() < 0.05 and pid is not None:
                with contextlib.suppress(ProcessLookupError):  # it has ended, and the word of it is on the way
                    os.kill(pid, signal.SIGKILL)

    async with tm.Lanes(2, recycle_after=50, grace=0) as lanes:
        sums = lanes.keyed(Sums)
        await asyncio.gather(*(caller(lanes, sums, key) for key in returned))
        for key, numbers in returned.items():
            assert await sums.call(key, "all_seen") == numbers
        lanes._crew.calls.validate()  # type: ignore[union-attr]
    assert min(map(len, returned.values())) > 5


async def test_a_process_that_waits_for_its_end_is_replaced_though_callers_leave() -> None:
    """Recycling waits until the lane has nothing left; the last that it had may be a call that nobody wants any more."""
    async with tm.Lanes(1, recycle_after=1) as lanes:
        counters = lanes.keyed(collections.Counter)
        for _ in range(30):
            mine, other = counters.call("a", "total"), counters.call("b", "total")
            assert await mine == 0
            other.cancel()
            while lanes._crew.staff.spare is None:  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_a_call_that_is_too_large_with_its_state_costs_that_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state has to be sent along after a death, and then the arguments have no room; the key goes on."""
    async with tm.Lanes(1) as lanes:
        lists = lanes.keyed(list)
        await lists.call("a", "append", bytes(60_000))
        pid = lanes.statistics().lanes[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while lanes.statistics().lanes[0].pid in {pid, None}:  # noqa: ASYNC110
            await asyncio.sleep(0)
        monkeypatch.setattr(call_codec, "MAX_BYTES", 100_000)
        with pytest.raises(CallError, match="bytes"):
            await lists.call("a", "append", bytes(60_000))
        assert await lists.call("a", "__len__") == 1
