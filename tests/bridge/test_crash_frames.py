"""Five ways to end while ten megabytes are on their way, to the lane and back; and what is written after the end."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import socket
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

import tidemill as tm
from tidemill.lanes.channel import ProcessChannel
from tidemill.lanes.framing import frame
from tidemill.lanes.wire import Stop

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]


def square(x: int) -> int:
    return x * x


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
        server.settimeout(120)
        large = asyncio.create_task(one.run(returns_much, server.getsockname()[1]))
        behind = asyncio.create_task(one.run(square, 4))
        for _ in range(3):
            await asyncio.sleep(0)
        line, _ = server.accept()  # holds the loop, so that nothing is read meanwhile
        with line:
            line.settimeout(120)
            assert line.recv(1) == b""
        (result,) = await asyncio.gather(large, return_exceptions=True)
    if way.kills and isinstance(result, Exception):
        way.check(result)
    else:
        assert len(result) == len(make())
        assert result[0] == make()[0]
        assert result[-1] == make()[-1]
    assert await behind == 16


# -- a frame that breaks off here ----------------------------------------------------------------------------


class CutFile:
    """A file of 4 MB that is mapped here, and then cut: what lay beyond the cut can be read no more."""

    SIZE = 4_000_000
    LEFT = 1_000_000

    def __init__(self, path: Path) -> None:
        path.write_bytes(b"\1" * self.SIZE)
        self.path = path
        with path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), self.SIZE)
        os.truncate(path, self.LEFT)

    def mend(self) -> None:
        """What was cut off is there again, and 0."""
        os.truncate(self.path, self.SIZE)


async def test_a_frame_that_breaks_off_is_sent_again_to_the_next_process(tmp_path: Path) -> None:
    """Of an argument no more can be read than a part: that process ends, nothing was run, and all calls have their results."""
    cut = CutFile(tmp_path / "cut")
    async with tm.Lanes(1, arena_bytes=0) as lanes:
        pid = await lanes.run(os.getpid)
        large = asyncio.create_task(lanes.run(np.count_nonzero, np.frombuffer(cut.memory, np.uint8)))
        small = [asyncio.create_task(lanes.run(square, number)) for number in range(8)]
        while not lanes.statistics().lanes[0].restarts:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        cut.mend()
        assert CutFile.LEFT <= await large < CutFile.SIZE
        assert await asyncio.gather(*small) == [number * number for number in range(8)]
        assert await lanes.run(os.getpid) != pid


async def test_nothing_follows_a_frame_that_broke_off(tmp_path: Path) -> None:
    """Until the kill has reached the process it reads on, and would take the next frame for the rest of that one."""
    cut, kills = CutFile(tmp_path / "cut"), []
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    channel = ProcessChannel(ours, lambda: kills.append(1), lambda *_: None, lambda _: None)
    read = bytearray()
    channel.send(Stop(), memoryview(cut.memory))
    while not kills:
        with contextlib.suppress(BlockingIOError):
            read += theirs.recv(1 << 20)
        await asyncio.sleep(0)
    for _ in range(3):
        channel.send(Stop())
        await asyncio.sleep(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            read += theirs.recv(1 << 20)
    assert read == b"".join(frame(Stop(), b"\1" * CutFile.SIZE))[: len(read)]
    assert kills == [1]
    channel.close()
    theirs.close()


# -- after the end -------------------------------------------------------------------------------------------


async def test_what_a_dead_lane_still_says(one: tm.Lanes, telephone, home, processes) -> None:
    """A process that outlives its lane writes to every line that this had: no call of the next lane is touched."""

    def leaves_a_heir(port: int) -> int:
        import stat

        if os.fork():
            return os.getpid()
        os.setsid()  # else it would end with the lane
        home(port, "heir")
        for number in range(3, 64):
            try:
                if stat.S_ISSOCK(os.fstat(number).st_mode):
                    os.set_blocking(number, False)
                    os.write(number, bytes(range(256)) * 64)
            except OSError:  # closed here, or nobody listens any more
                continue
        home(port, "said")
        os._exit(0)

    pid = await one.run(leaves_a_heir, telephone.port)
    await telephone.hear("heir")
    os.kill(pid, signal.SIGKILL)
    await processes.gone(pid)
    assert await one.run(os.getpid) != pid
    calls = [asyncio.create_task(one.run(square, number)) for number in range(50)]
    await telephone.tell("heir")
    await telephone.hear("said")
    calls += [asyncio.create_task(one.run(square, number)) for number in range(50)]
    assert await asyncio.gather(*calls) == [number * number for number in range(50)] * 2
    await telephone.tell("said")
