"""A stop that stops, whatever the function does: a C loop with the GIL, ignored signals, children of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys

import cloudpickle
import pytest

import tidemill as tm

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]


def square(x: int) -> int:
    return x * x


def hangs_in_c(port: int) -> None:
    """Says that it begins, then never leaves a C loop that holds the GIL and looks at no signal."""
    import collections
    import itertools

    socket.create_connection(("127.0.0.1", port)).close()
    collections.deque(itertools.repeat(1), maxlen=0)


@pytest.mark.parametrize("how", ["cancel", "timeout", "executor", "stream", "batched"])
async def test_a_c_loop_that_holds_the_gil(one: tm.Lanes, doorbell, time_passes, how: str) -> None:
    """Each way to give up ends it; the calls behind it are served by the next process."""
    behind = []
    if how == "timeout":
        call = asyncio.create_task(one.run(hangs_in_c, doorbell.port, timeout=1000))
        await doorbell.rung.wait()
        time_passes(one)
        with pytest.raises(TimeoutError):
            await call
    elif how == "stream":
        stream = one.stream(hangs_in_c, [doorbell.port], window=1)
        first = asyncio.ensure_future(anext(stream))
        await doorbell.rung.wait()
        first.cancel()
        await asyncio.wait([first])
        await stream.aclose()
    else:
        starts = {
            "cancel": lambda: asyncio.create_task(one.run(hangs_in_c, doorbell.port)),
            "executor": lambda: asyncio.wrap_future(one.executor().submit(hangs_in_c, doorbell.port)),
            "batched": lambda: one.batched(lambda ports: hangs_in_c(ports[0]))(doorbell.port),
        }
        call = starts[how]()
        await doorbell.rung.wait()
        behind = [asyncio.create_task(one.run(square, number)) for number in range(5)]
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
    assert await asyncio.gather(*behind) == [number * number for number in range(len(behind))]
    assert await one.run(square, 7) == 49


async def test_a_lane_that_ignores_every_signal_it_can(one: tm.Lanes, telephone, home) -> None:
    """SIGTERM, SIGINT, SIGHUP, SIGALRM ignored: the cancel still ends it."""

    def stubborn(port: int) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        while True:
            home(port, f"stubborn {os.getpid()}")

    task = asyncio.create_task(one.run(stubborn, telephone.port))
    (name,) = await telephone.hear_any(1)
    pid = int(name.split()[1])
    task.cancel()
    await asyncio.wait([task])
    assert await one.run(os.getpid) != pid


async def test_a_function_that_catches_everything(one: tm.Lanes, telephone, home) -> None:
    """``except BaseException`` in a loop cannot hold a lane."""

    def catches(port: int) -> None:
        while True:
            try:
                home(port, "catches")
                while True:
                    pass
            except BaseException:  # noqa: BLE001 - the point of the test
                pass

    task = asyncio.create_task(one.run(catches, telephone.port))
    await telephone.hear("catches")
    await telephone.tell("catches")
    task.cancel()
    await asyncio.wait([task])
    assert await one.run(square, 4) == 16


PAUSES = "import signal; signal.pause()"
STARTS_A_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {PAUSES!r}])"


@pytest.mark.parametrize("how", ["cancel", "death", "close"])
async def test_the_processes_that_a_function_started_end_with_it(telephone, home, processes, how: str) -> None:
    """A function that waits for a program, which waits for another, leaves none of them behind, however it ends."""

    def runs_a_program(port: int) -> None:
        with subprocess.Popen([sys.executable, "-c", STARTS_A_CHILD]) as child:
            while len(processes.family(child.pid)) < 2:
                os.sched_yield()
            home(port, f"child {child.pid}")
            if how == "death":
                os._exit(3)
            child.wait()

    async with tm.Lanes(1) as lanes:
        task = asyncio.create_task(lanes.run(runs_a_program, telephone.port))
        (name,) = await telephone.hear_any(1)
        family = processes.family(int(name.split()[1]))
        if how == "death":
            await telephone.tell(name)
        elif how == "cancel":
            task.cancel()
        if how != "close":
            await asyncio.wait([task])
            assert await lanes.run(square, 4) == 16
    await asyncio.gather(task, return_exceptions=True)
    try:
        assert len(family) == 2
        async with asyncio.timeout(120):
            await processes.gone(*family)
    finally:
        for pid in filter(processes.lives, family):
            os.kill(pid, signal.SIGKILL)


async def test_a_hundred_stops_in_a_row(telephone, home) -> None:
    """The slot is served every time, and nothing is killed that need not be."""
    async with tm.Lanes(1, grace=0) as lanes:
        for number in range(100):
            task = asyncio.create_task(lanes.run(home, telephone.port, f"run {number}"))
            await telephone.hear(f"run {number}")
            task.cancel()
            assert await lanes.run(square, number) == number * number
            await asyncio.wait([task])
            assert task.cancelled()
        assert lanes.statistics().lanes[0].restarts == 100


async def test_a_function_that_looks_is_not_killed(telephone, home) -> None:
    """Within the grace it can see that nobody waits, and end: its process stays."""

    def looks(port: int) -> int:
        home(port, "looks")
        while not tm.cancelled():
            pass
        return 0

    async with tm.Lanes(1, grace=50) as lanes:
        pid = await lanes.run(os.getpid)
        for _ in range(3):
            task = asyncio.create_task(lanes.run(looks, telephone.port))
            await telephone.hear("looks")
            behind = asyncio.create_task(lanes.run(square, 3))
            await telephone.tell("looks")
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert await behind == 9
            assert await lanes.run(tm.cancelled) is False
        assert await lanes.run(os.getpid) == pid
        assert lanes.statistics().lanes[0].restarts == 0


async def test_a_call_that_ends_before_it_is_killed(telephone, home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next is held before it begins: it dies with nobody's process, and runs in another."""
    async with tm.Lanes(1, grace=0) as lanes:
        await lanes.run(abs, -1)
        assert lanes._crew is not None
        process = lanes._crew.staff.seats[0]
        assert process is not None
        task = asyncio.create_task(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")
        behind = asyncio.create_task(lanes.run(square, 3, key="a"))  # stays with its lane
        await asyncio.sleep(0)
        turn = max(process.turns.values())
        kill = process.channel.kill
        monkeypatch.setattr(process.channel, "kill", lambda: None)  # it takes a while to get there
        task.cancel()
        await asyncio.wait([task])
        await telephone.tell("running")
        while process.cursor.started != turn:  # noqa: ASYNC110 - a turn at a time
            await asyncio.sleep(0)
        kill()
        assert await behind == 9
