"""Processes that die: the running call is blamed, exactly; everything else goes on; nothing is left behind."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from random import Random

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import LaneDied

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.asyncio(loop_scope="module")


def square(x: int) -> int:
    return x * x


def segfault() -> None:
    ctypes.string_at(0)


def suicide() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def nameless() -> None:
    os.kill(os.getpid(), 40)


def leave() -> None:
    os._exit(3)


def children_of(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    ("function", "number", "code", "told"),
    [
        (segfault, 11, None, "SIGSEGV"),
        (suicide, 9, None, "SIGKILL"),
        (nameless, 40, None, "signal 40"),
        (leave, None, 3, "exit code 3"),
    ],
)
async def test_a_dead_process_is_told_and_replaced(two: tm.Lanes, function, number, code, told) -> None:
    """With the signal or the exit code; the other calls of both lanes have their results."""
    others = [asyncio.create_task(two.run(square, x)) for x in range(20)]
    with pytest.raises(LaneDied, match=told) as caught:
        await two.run(function)
    assert (caught.value.signal, caught.value.code) == (number, code)
    assert function.__name__ in str(caught.value)
    assert await asyncio.gather(*others) == [x * x for x in range(20)]


class Hostile:
    """Does something when it is unpickled."""

    def __init__(self, function, *arguments) -> None:
        self.what = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.what


async def test_an_argument_that_fails_or_kills_where_it_is_read(two: tm.Lanes) -> None:
    """Its own call has the error; calls before and after it have their results."""
    calls = [two.run(square, 1), two.run(square, Hostile(int, "x")), two.run(square, Hostile(os._exit, 6))]
    results = await asyncio.gather(*calls, two.run(square, 2), return_exceptions=True)
    assert (results[0], results[3]) == (1, 4)
    assert isinstance(results[1], ValueError)
    assert isinstance(results[2], LaneDied)
    assert results[2].code == 6


async def test_a_result_that_kills_where_it_is_made(two: tm.Lanes) -> None:
    """A process that dies while it pickles what the function returned died in that call."""

    class Deadly:
        def __reduce__(self) -> tuple:
            os._exit(8)

    with pytest.raises(LaneDied, match="exit code 8"):
        await two.run(Deadly)


async def test_a_lane_killed_from_outside_fails_only_what_ran(one: tm.Lanes, telephone, home) -> None:
    """What waited behind it runs once, in the next process."""
    running = asyncio.create_task(one.run(home, telephone.port, "running"))
    await telephone.hear("running")
    behind = [asyncio.create_task(one.run(square, number)) for number in range(5)]
    pid = one.statistics().lanes[0].pid
    assert pid is not None  # something ran in it
    os.kill(pid, signal.SIGKILL)
    assert await asyncio.gather(*behind) == [number * number for number in range(5)]
    with pytest.raises(LaneDied, match="SIGKILL"):
        await running
    assert telephone.calls == 1


async def test_an_idle_lane_that_is_killed_is_nobodys_error(one: tm.Lanes) -> None:
    """The next call runs, whichever instant the kill comes at."""
    for number in range(6):
        pid = await one.run(os.getpid)
        os.kill(pid, signal.SIGKILL)
        assert await one.run(square, number) == number * number  # SIGKILL to an idle process is immediate
        assert await one.run(os.getpid) != pid


async def test_the_spare_and_the_fork_server_may_die_too() -> None:
    """Whatever is killed, calls go on; those that ran are told."""
    async with tm.Lanes(2) as lanes:
        parent = await lanes.run(os.getppid)
        os.kill(parent, signal.SIGKILL)
        results = [await asyncio.gather(lanes.run(square, 5), return_exceptions=True) for _ in range(3)]
        assert all(result == [25] or isinstance(result[0], LaneDied) for result in results)
        while await asyncio.gather(lanes.run(os.getppid), return_exceptions=True) == [parent]:
            pass
        assert await lanes.run(square, 6) == 36


async def test_a_process_that_a_function_left_behind_hides_no_death(one: tm.Lanes) -> None:
    """A child of the lane's process holds its socket open; the death is seen all the same."""

    def leaves_a_child() -> int:
        reader, _ = os.pipe()
        child = os.fork()
        if child == 0:
            os.setsid()  # else it would end with the lane
            os.read(reader, 1)  # waits for ever: it holds the other end itself
        return child

    child = await one.run(leaves_a_child)
    try:
        with pytest.raises(LaneDied, match="exit code 3"):
            await one.run(leave)
        assert await one.run(square, 3) == 9
    finally:
        os.kill(child, signal.SIGKILL)


async def test_a_function_that_forks_answers_once(one: tm.Lanes) -> None:
    """The copy that returned as well leaves."""

    def forks() -> str:
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        return "parent" if child else "child"

    assert await one.run(forks) == "parent"
    assert await one.run(square, 2) == 4


async def test_after_twenty_kills_nothing_is_left_behind() -> None:
    """Descriptors and threads are at their baseline; every process is reaped."""

    async with tm.Lanes(2) as lanes:
        while lanes._crew is None or lanes._crew.staff.spare is None:
            await lanes.run(square, 1)
        gc.collect()  # what earlier tests left must not be closed in between
        files, threads = open_files(), threading.active_count()
        for _ in range(20):
            with pytest.raises(LaneDied):
                await lanes.run(suicide)
            assert await lanes.run(square, 3) == 9
        while any(lane.pid is None for lane in lanes.statistics().lanes) or open_files() > files:
            await lanes.run(square, 1)  # until the new spare is there, too; a leak is a timeout
        assert threading.active_count() <= threads
        assert sum(lane.restarts for lane in lanes.statistics().lanes) == 20
        server = await lanes.run(os.getppid)
        assert len(children_of(server)) <= 3 + 1  # two lanes and the spare; one more while a dead one is reaped


async def test_no_process_outlives_the_block() -> None:
    """Lanes, the spare and the server are gone when the block is left, with a function in a tight loop too."""
    async with tm.Lanes(2) as lanes:
        server = await lanes.run(os.getppid)
        while len(children_of(server)) < 3:  # two lanes and the spare, which may come after the first call's result
            await lanes.run(square, 1)
        pids = [server, *children_of(server)]
        task = asyncio.create_task(lanes.run(lambda: exec("while True: pass")))
        await asyncio.sleep(0)
    await asyncio.wait([task])
    task.exception()
    assert not any(map(lives, pids))


async def test_a_script_without_a_main_guard(tmp_path: Path) -> None:
    """Functions and classes of the script itself, a module beside it, and open lanes at the end of the interpreter."""
    (tmp_path / "beside.py").write_text("def triple(x):\n    return 3 * x\n")
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
            import asyncio
            import tidemill as tm
            from beside import triple

            print("once")

            class Reading:
                def __init__(self, value):
                    self.value = value

            class NoSensor(Exception):
                pass

            def feature(reading):
                print("not on stdout")
                if reading.value < 0:
                    raise NoSensor(reading.value)
                return Reading(triple(reading.value))

            async def main():
                lanes = await tm.Lanes(2).__aenter__()  # never closed
                made = await lanes.run(feature, Reading(14))
                print(isinstance(made, Reading), made.value)
                try:
                    await lanes.run(feature, Reading(-1))
                except NoSensor as error:
                    print("NoSensor", error)

            asyncio.run(main())
        """)
    )
    script = await asyncio.create_subprocess_exec(
        sys.executable, "script.py", cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await script.communicate()
    assert script.returncode == 0, err.decode()
    assert out.decode().splitlines() == ["once", "True 42", "NoSensor -1"]
    assert b"not on stdout" in err


async def test_no_call_is_started_twice_whatever_happens(tmp_path: Path) -> None:
    """Cancels, timeouts and kills at random instants: each call ends once, is started at most once, and is its own."""
    log = tmp_path / "started"
    log.touch()
    path = str(log)

    def starts(number: int) -> int:
        with open(path, "ab", buffering=0) as file:  # noqa: PTH123
            file.write(f"{number}\n".encode())
        return number

    random = Random(7)
    died = ended = 0

    async def call(lanes: tm.Lanes, number: int) -> None:
        nonlocal died, ended
        task = asyncio.create_task(lanes.run(starts, number, timeout=random.choice([None, None, 0.002, 60])))
        for _ in range(random.randrange(20)):
            await asyncio.sleep(0)
        if random.random() < 0.2:
            task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        ended += 1
        if isinstance(result, LaneDied):
            died += 1
        else:
            assert result == number or isinstance(result, (TimeoutError, asyncio.CancelledError))
        pid = lanes.statistics().lanes[number % 3].pid
        if number % 8 == 0 and pid is not None and lives(pid):
            os.kill(pid, signal.SIGKILL)

    async def caller(lanes: tm.Lanes, first: int) -> None:
        for number in range(first, first + 30):
            await call(lanes, number)

    async with tm.Lanes(3) as lanes:
        await asyncio.gather(*(caller(lanes, 100 * number) for number in range(10)))
        assert await lanes.run(square, 3) == 9
        assert lanes.statistics().waiting == 0
        lanes._crew.calls.validate()  # type: ignore[union-attr]
    assert ended == 300
    assert died < 60
    started = log.read_text().split()
    assert len(started) == len(set(started))


ADOPTED = """
import os
from tidemill.lanes.platform import die_with_parent

reader, writer = os.pipe()
server = os.fork()
if server == 0:
    server = os.getpid()
    if os.fork() == 0:
        while os.getppid() == server:
            os.sched_yield()
        die_with_parent(server)
        os.write(writer, b"it lives on")
    os._exit(0)
os.waitpid(server, 0)
os.close(writer)
print(os.read(reader, 100).decode())
"""


async def test_a_process_whose_fork_server_was_killed_before_it_could_ask_for_its_own_death_ends() -> None:
    """Else nobody would ever hear of it again."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", ADOPTED, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        told, _ = await process.communicate()
    assert (process.returncode, told) == (0, b"\n")


async def test_a_close_that_is_cancelled_leaves_no_file_open() -> None:
    """The processes are gone, and so is what was shared with them."""

    async def closed() -> None:
        lanes = tm.Lanes(2)
        await lanes.__aenter__()
        assert await lanes.run(square, 3) == 9
        closing = asyncio.ensure_future(lanes.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await lanes.aclose()

    await closed()
    gc.collect()
    files = open_files()
    await closed()
    gc.collect()
    assert open_files() <= files


async def test_what_is_told_of_closed_lanes() -> None:
    """Nothing waits, nothing is in a lane, and no process is named that is gone."""
    async with tm.Lanes(1) as lanes:
        calls = [asyncio.ensure_future(lanes.run(square, number)) for number in range(100)]
        await asyncio.sleep(0)
        pid = lanes.statistics().lanes[0].pid
        assert pid is not None
    await asyncio.gather(*calls, return_exceptions=True)
    statistics = lanes.statistics()
    (use,) = statistics.lanes
    assert (statistics.waiting, statistics.waiting_bytes, use.in_flight, use.arena_bytes, use.pid) == (0, 0, 0, 0, None)
