"""Deaths at the worst moments: lanes that kill each other, while data is fed, while they start, while they are idle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections import Counter
from random import Random

import cloudpickle
import numpy as np
import pytest

import tidemill as tm
from tidemill.core.calls import Calls
from tidemill.engine import lookout
from tidemill.errors import CallError, LaneDied

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]


def square(x: int) -> int:
    return x * x


def kill_each(pids: list[int]) -> int:
    """A massacre: whoever is met, at whatever it does."""
    import contextlib

    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


@pytest.mark.parametrize("count", [1, 2, 5, 13])
async def test_lanes_that_kill_each_other(count: int) -> None:
    """Each call has its result or is told of a death; then all of the lanes serve as before."""
    random = Random(count)
    async with tm.Lanes(count) as lanes:
        for _ in range(4):
            pids = [lane.pid for lane in lanes.statistics().lanes if lane.pid is not None]
            calls = []
            for number in range(4 * count):
                kills = random.random() < 0.3
                victims = random.sample(pids, random.randint(1, len(pids))) if pids else []
                calls.append(lanes.run(kill_each, victims) if kills else lanes.run(square, number))
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(result, (int, LaneDied)) for result in results)
        assert await asyncio.gather(*(lanes.run(square, number) for number in range(50))) == [
            number * number for number in range(50)
        ]
        assert lanes.statistics().waiting == 0


async def test_calls_made_from_callbacks_of_a_crash(two: tm.Lanes) -> None:
    """A caller that tries again at once, in the very callback that told it of the death, is served."""
    loop = asyncio.get_running_loop()
    again: asyncio.Future[int] = loop.create_future()
    executor = two.executor()

    def tried_again(done) -> None:
        assert isinstance(done.exception(), LaneDied)
        executor.submit(square, 9).add_done_callback(lambda second: again.set_result(second.result()))

    executor.submit(os._exit, 1).add_done_callback(tried_again)
    assert await again == 81
    task = asyncio.create_task(two.run(os._exit, 1))
    second: asyncio.Future[asyncio.Task[int]] = loop.create_future()
    task.add_done_callback(lambda _: second.set_result(asyncio.create_task(two.run(square, 8))))
    assert await (await second) == 64
    assert isinstance(task.exception(), LaneDied)


async def test_deaths_while_large_arguments_are_fed(two: tm.Lanes) -> None:
    """The lanes die with their sockets and memories full of what was sent ahead; all of that runs, once, elsewhere."""
    arrays = [np.full(300_000, number, float) for number in range(12)]

    def total(array: np.ndarray, poison: bool) -> float:
        if poison:
            os.kill(os.getpid(), signal.SIGKILL)
        return float(array.sum())

    calls = [two.run(total, array, number % 4 == 1) for number, array in enumerate(arrays)]
    for number, result in enumerate(await asyncio.gather(*calls, return_exceptions=True)):
        assert isinstance(result, LaneDied) if number % 4 == 1 else result == 300_000.0 * number


async def test_what_cannot_be_sent_among_what_can(two: tm.Lanes) -> None:
    """A hundred of each, in turn: each is refused, or served."""
    calls = [two.run(square, number) if number % 2 else two.run(square, threading.Lock()) for number in range(200)]
    for number, result in enumerate(await asyncio.gather(*calls, return_exceptions=True)):
        assert result == number * number if number % 2 else isinstance(result, CallError)


@pytest.mark.timeout(300)
async def test_a_hundred_thousand_calls_before_the_first_result(two: tm.Lanes) -> None:
    """Nothing fills up and nothing is lost, though the loop reads nothing while they are made."""
    executor = two.executor()
    futures = [executor.submit(abs, -number) for number in range(100_000)]
    await asyncio.gather(*map(asyncio.wrap_future, futures))
    assert [future.result() for future in futures] == list(range(100_000))


async def test_twenty_thousand_calls_from_a_thread(two: tm.Lanes) -> None:
    """The same through ``call_soon_threadsafe``, with the loop reading meanwhile."""
    executor = two.executor()

    def thread() -> list[int]:
        return [future.result(60) for future in [executor.submit(abs, -number) for number in range(20_000)]]

    assert await asyncio.to_thread(thread) == list(range(20_000))


async def test_lanes_that_are_killed_as_they_start(one: tm.Lanes, processes) -> None:
    """Its next process and the spare are killed as soon as they can be seen: calls are served in the end."""
    server = await one.run(os.getppid)
    for _ in range(4):
        for _ in range(2):
            for pid in processes.children(server):
                kill_each([pid])
            await asyncio.sleep(0)
        results = [await asyncio.gather(one.run(square, 6), return_exceptions=True) for _ in range(3)]
        assert all(result == [36] or isinstance(result[0], LaneDied) for result in results)
    while isinstance((await asyncio.gather(one.run(square, 6), return_exceptions=True))[0], LaneDied):
        pass
    assert await one.run(square, 7) == 49


async def test_idle_lanes_and_spares_that_are_killed_again_and_again(two: tm.Lanes, processes) -> None:
    """Nobody is told of what cost nobody anything."""
    server = await two.run(os.getppid)
    for number in range(10):
        victims = processes.children(server)
        kill_each(victims)
        await processes.gone(*victims)
        assert await asyncio.gather(two.run(square, number), two.run(square, 3)) == [number * number, 9]


@pytest.mark.parametrize("door", ["run", "timeout", "stream", "batched", "keyed", "large"])
@pytest.mark.parametrize("count", [1, 2])
async def test_a_lane_that_is_stopped_for_ever(
    monkeypatch: pytest.MonkeyPatch, one: tm.Lanes, two: tm.Lanes, door: str, count: int
) -> None:
    """One that takes none of its calls is replaced, and they run elsewhere, whichever way they came."""
    monkeypatch.setattr(lookout, "_LOOK_S", 0.02)
    lanes = one if count == 1 else two
    counters = lanes.keyed(Counter)
    await asyncio.gather(*(counters(key, "a") for key in "AB"))  # with two, a key in each
    stopped = lanes.statistics().lanes[0]
    os.kill(stopped.pid or 0, signal.SIGSTOP)
    if door == "run":
        assert await lanes.run(square, 1) == 1
    elif door == "timeout":
        for _ in range(3):
            with contextlib.suppress(TimeoutError):
                await lanes.run(square, 1, timeout=0.001)
    elif door == "stream":
        assert [y async for y in lanes.stream(square, range(100))] == [x * x for x in range(100)]
    elif door == "batched":
        each = lanes.batched(lambda values: values)
        assert await asyncio.gather(*map(each, range(100))) == list(range(100))
    elif door == "large":
        assert await lanes.run(len, "x" * 10_000_000) == 10_000_000  # through the socket
    for key in "AB":
        await counters(key, "a")
        assert await counters.call(key, "total") == 2
    assert lanes.statistics().lanes[0].restarts > stopped.restarts


async def test_a_lane_that_reads_what_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is replaced, also when it happens again and again, and the calls behind run in the next process."""
    monkeypatch.setattr(lookout, "_LOOK_S", 1000.0)
    large = "x" * 20_000_000  # more than a socket holds
    async with tm.Lanes(1) as lanes:
        for number in range(Calls.MAX_FRUITLESS + 1):
            before = lanes.statistics().lanes[0]
            os.kill(before.pid or 0, signal.SIGSTOP)  # it reads as slowly as can be
            unwanted = asyncio.create_task(lanes.run(len, large, timeout=0.001 if number % 2 else None))
            await asyncio.sleep(0)
            behind = asyncio.create_task(lanes.run(square, number))
            await asyncio.sleep(0)
            if number % 2 == 0:
                unwanted.cancel()
            assert await behind == number * number
            await asyncio.wait([unwanted])
            assert lanes.statistics().lanes[0].restarts == before.restarts + 1


async def test_a_lane_that_takes_long_is_no_lane_that_hangs(monkeypatch: pytest.MonkeyPatch, telephone, home) -> None:
    """To read a function and what it is called with, and to run it: each may take as long as it likes."""
    looked, signs, enough = Calls.looked, [], asyncio.Event()

    def counted(self: Calls, lane: int, sign: object, **how: bool) -> list[object]:
        signs.append(sign)
        if len(signs) >= 20:
            enough.set()
        return looked(self, lane, sign, **how)  # type: ignore[return-value]

    class Slow:
        def __init__(self, *says: object) -> None:
            self.says = says

        def __reduce__(self) -> object:
            return home, self.says

    port = telephone.port
    closed_over = Slow(port, "function")
    async with tm.Lanes(1) as lanes:
        monkeypatch.setattr(Calls, "looked", counted)
        call = asyncio.create_task(lanes.run(lambda _: (home(port, "call"), closed_over)[0], Slow(port, "argument")))
        for name in ("function", "argument", "call"):
            await telephone.hear(name)
            monkeypatch.setattr(lookout, "_LOOK_S", 0.001)
            signs.clear()
            enough.clear()
            await enough.wait()
            assert set(signs) == {None}
            await telephone.tell(name)
        await call
        assert lanes.statistics().lanes[0].restarts == 0


async def test_processes_that_all_hang_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An initializer that leaves each process unable to take calls: whoever waits is told, after some of them."""
    monkeypatch.setattr(lookout, "_LOOK_S", 0.005)

    def hangs_after_its_answer() -> None:
        from tidemill.lanes.control import Control

        Control.read = lambda _: signal.pause()  # type: ignore[assignment, method-assign]

    async with tm.Lanes(1, initializer=hangs_after_its_answer) as lanes:
        with pytest.raises(LaneDied, match="8 processes in a row began none of their calls"):
            await lanes.run(square, 1)


async def test_a_lane_that_is_stopped_and_goes_on(one: tm.Lanes) -> None:
    """SIGSTOP for a while, as a debugger or a freezer does: late, and right."""
    pid = await one.run(os.getpid)
    os.kill(pid, signal.SIGSTOP)
    calls = [asyncio.create_task(one.run(square, number)) for number in range(20)]
    with pytest.raises(TimeoutError):
        await one.run(square, 5, timeout=0.02)
    os.kill(pid, signal.SIGCONT)
    assert await asyncio.gather(*calls) == [number * number for number in range(20)]


async def test_a_lane_that_was_stopped_takes_what_had_gone_behind_a_long_call_meanwhile(telephone, home) -> None:
    """As soon as it goes on; the long call may go on for as long as it likes."""
    async with tm.Lanes(2) as lanes:
        for number in range(100):  # short ones, which are worth no message that moves them
            assert await lanes.run(square, number) == number * number
        calls = [asyncio.create_task(lanes.run(home, telephone.port, "long"))]
        await telephone.hear("long")
        (stopped,) = (lane for lane in lanes.statistics().lanes if not lane.in_flight)
        os.kill(stopped.pid or 0, signal.SIGSTOP)
        calls.append(asyncio.create_task(lanes.run(home, telephone.port, "behind")))
        while [lane.in_flight for lane in lanes.statistics().lanes if lane.pid != stopped.pid] != [2]:  # noqa: ASYNC110
            await asyncio.sleep(0)
        with contextlib.suppress(ProcessLookupError):  # where it was stopped for so long that it was replaced
            os.kill(stopped.pid or 0, signal.SIGCONT)
        await telephone.hear("long", "behind")
        for name in ("long", "behind"):
            await telephone.tell(name)
        assert await asyncio.gather(*calls) == ["done", "done"]
