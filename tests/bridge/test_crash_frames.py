"""Five ways to end between two messages, within one of ten megabytes, while idle, and at the close."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import cloudpickle
import numpy as np
import pytest

import tidemill as tm
from tidemill.errors import CallError, LaneDied, RemoteError

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(60)]


def square(x: int) -> int:
    return x * x


# -- between the frames, and within one ----------------------------------------------------------------------


async def test_between_two_calls(one: tm.Lanes, telephone, home, processes, way) -> None:
    """A thread that a function left in the lane ends it, or only itself, while nothing runs: nobody's error."""

    act = way.act

    def leaves_a_thread(port: int) -> int:
        import threading

        def later() -> None:
            home(port, "thread")
            act()

        threading.excepthook = lambda _: None
        threading.Thread(target=later, daemon=True).start()
        return os.getpid()

    pid = await one.run(leaves_a_thread, telephone.port)
    await telephone.hear("thread")
    await telephone.tell("thread")
    if way.kills:
        await processes.gone(pid)
        assert await one.run(os.getpid) != pid
    assert await one.run(square, 5) == 25


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT])
async def test_idle(one: tm.Lanes, processes, signal_number: int) -> None:
    """A signal to an idle lane, from anywhere, is nobody's error."""
    pid = await one.run(os.getpid)
    os.kill(pid, signal_number)
    await processes.gone(pid)
    assert await one.run(square, 6) == 36
    assert await one.run(os.getpid) != pid


LARGE = {"text": lambda: "x" * 10_000_000, "array": lambda: np.ones(1_250_000), "bytes": lambda: b"x" * 10_000_000}


@pytest.mark.parametrize("kind", LARGE)
async def test_while_ten_megabytes_are_on_their_way_to_it(one: tm.Lanes, telephone, home, way, kind: str) -> None:
    """The running call ends; the large one behind it, of which the lane had a part, runs all the same."""

    act = way.act

    def held(port: int) -> None:
        home(port, "held")
        act()

    running = asyncio.create_task(one.run(held, telephone.port))
    await telephone.hear("held")
    large = asyncio.create_task(one.run(len, LARGE[kind]()))
    small = asyncio.create_task(one.run(square, 4))
    for _ in range(3):
        await asyncio.sleep(0)
    await telephone.tell("held")
    (raised,) = await asyncio.gather(running, return_exceptions=True)
    way.check(raised)
    assert await large == len(LARGE[kind]())
    assert await small == 16


@pytest.mark.parametrize("kind", LARGE)
async def test_while_ten_megabytes_are_on_their_way_back(one: tm.Lanes, way, kind: str) -> None:
    """The lane ends while it waits for this side to read: its call is told, or has its result; never half of it."""
    import socket

    make, act = LARGE[kind], way.act

    def returns_much(port: int) -> object:
        import threading
        import time
        from pathlib import Path

        def asleep() -> bool:
            stat = Path(f"/proc/self/task/{os.getpid()}/stat").read_text()
            return stat.rpartition(")")[2].split()[0] == "S"

        def later() -> None:
            with socket.create_connection(("127.0.0.1", port)):
                returned.wait()
                while not asleep():  # it is sending the result, or has sent it
                    time.sleep(0.001)
                act()

        returned = threading.Event()
        threading.excepthook = lambda _: None
        threading.Thread(target=later, daemon=True).start()
        made = make()
        returned.set()
        return made

    assert await one.run(square, 1) == 1  # the lane has a process again
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        large = asyncio.create_task(one.run(returns_much, server.getsockname()[1]))
        behind = asyncio.create_task(one.run(square, 4))
        for _ in range(3):
            await asyncio.sleep(0)
        line, _ = server.accept()  # holds the loop, so that nothing is read meanwhile
        with line:
            line.settimeout(30)
            assert line.recv(1) == b""
        (result,) = await asyncio.gather(large, return_exceptions=True)
    if way.kills and isinstance(result, Exception):
        way.check(result)
    else:
        assert len(result) == len(make())
        assert result[0] == make()[0]
        assert result[-1] == make()[-1]
    assert await behind == 16


# -- at the end ----------------------------------------------------------------------------------------------


async def test_while_the_lanes_are_being_closed(telephone, home, processes, way) -> None:
    """Every call ends with an error of its own, the block is left, and no process stays."""

    act = way.act

    def held(port: int) -> None:
        home(port, f"held {os.getpid()}")
        act()

    async with tm.Lanes(2) as lanes:
        server = await lanes.run(os.getppid)
        calls = [asyncio.create_task(lanes.run(held, telephone.port)) for _ in range(6)]
        for name in await telephone.hear_any(2):
            await telephone.tell(name)
        family = processes.family(server)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, (CallError, LaneDied, ZeroDivisionError, RemoteError)) for result in results)
    assert not any(map(processes.lives, family))
