"""Every way to end at every place: the call has the right error, all others their results, and the lanes serve the next.

The ways are an error, ``sys.exit``, ``os._exit``, a segfault and SIGKILL; the places are below. Cells that cannot exist:
where an argument is pickled and where a result is unpickled the application itself runs the user's code, so that
``os._exit``, a segfault and SIGKILL end the application there (`test_parent_ends`). An idle lane runs nothing of the
user's: only a signal from outside ends it. In the middle of a frame is in `test_crash_frames`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import BadResult, CallError, LaneDied, RemoteError

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]

CULPRIT = 2
WAYS = ["error", "exit", "os_exit", "segfault", "sigkill"]


def square(x: int) -> int:
    return x * x


# -- in a call -----------------------------------------------------------------------------------------------


class Read:
    """Acts where it is unpickled."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return self.act, ()


class Written:
    """Acts where it is pickled."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def __reduce__(self) -> tuple[type[int], tuple[()]]:
        self.act()
        return int, ()


class Deleted:
    """Acts where it ends, but in the application."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act
        self.home = os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.home:
            self.act()


ARGUMENTS: dict[str, Callable[[Callable[[], None]], Any]] = {
    "argument unpickle": Read,
    "function": lambda _: CULPRIT,
    "result pickle": lambda _: CULPRIT,
    "deletion": Deleted,
}


def work(value: Any, place: str, act: Callable[[], None]) -> Any:
    if value == CULPRIT and place == "function":
        act()
    if value == CULPRIT and place == "result pickle":
        return Written(act)
    return value if isinstance(value, int) else CULPRIT


def works(place: str, act: Callable[[], None]) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [work(value, place, act) for value in values]


CELLS = [
    pytest.param(place, door, way, id=f"{place}-{door}-{way}")
    for place in ARGUMENTS
    for door in ("run", "batched")
    for way in WAYS
]


@pytest.mark.parametrize(("place", "door", "way"), CELLS, indirect=["way"])
async def test_in_a_call(one: tm.Lanes, unharmed, place: str, door: str, way) -> None:
    """Told to its own caller, alone or beside others in one batch; what only ends an object is nobody's error."""
    culprit = ARGUMENTS[place](way.act)
    async with unharmed(one):
        if door == "run":
            calls = [one.run(work, value, place, way.act) for value in (1, culprit, 3)]
        else:
            calls = list(map(one.batched(works(place, way.act)), (1, culprit, 3)))
        before, end, after = await asyncio.gather(*calls, return_exceptions=True)
    assert (before, after) == (1, 3)
    if place == "deletion" and not isinstance(end, Exception):
        assert end == CULPRIT  # it had been sent when the object ended
    elif place == "result pickle" and not way.kills:
        assert isinstance(end, (BadResult, RemoteError))
    else:
        way.check(end)
        assert place != "deletion" or way.kills


# -- in the application --------------------------------------------------------------------------------------

IN_THE_APPLICATION = """
    import asyncio, os, sys
    import tidemill as tm

    place, way = sys.argv[1:]
    here = os.getpid()

    def error():
        raise ZeroDivisionError

    act = {"error": error, "exit": sys.exit}[way]

    class Written:
        def __reduce__(self):
            act()
            return int, ()

    def read():
        if os.getpid() == here:
            act()

    class Read:
        def __reduce__(self):
            return read, ()

    def work(value):
        return Read() if value == 2 else value

    values = [1, Written() if place == "argument" else 2, 3]

    def told(door, ends):
        print(door, *[end if isinstance(end, int) else type(end).__name__ for end in ends], flush=True)

    async def each(call):
        async def one(value):
            return await call(value)
        return await asyncio.gather(*map(one, values), return_exceptions=True)

    async def main():
        loop = asyncio.get_running_loop()
        async with tm.Lanes(1) as lanes:
            told("run", await each(lambda value: lanes.run(work, value)))
            told("batched", await each(lanes.batched(lambda values: list(map(work, values)))))
            told("stream", [end async for end in lanes.stream(work, values, return_exceptions=True)])
            told("executor", await each(lambda value: loop.run_in_executor(lanes.executor(), work, value)))
            keyed = lanes.keyed(lambda: work)
            told("keyed", await each(lambda value: keyed("S1", value)))
            print("next", await lanes.run(abs, -5))

    asyncio.run(main())
    with tm.LanesExecutor(1) as pool:
        ends = []
        for value in values:
            try:
                ends.append(pool.submit(work, value).result(120))
            except Exception as raised:
                ends.append(raised)
        told("thread", ends)
        print("next", pool.submit(abs, -5).result(120))
"""


@pytest.mark.parametrize("place", ["argument", "result"])
@pytest.mark.parametrize("way", ["error", "exit"])
async def test_in_the_application(program, place: str, way: str) -> None:
    """Where it pickles an argument or unpickles a result: that call's `CallError` or `BadResult`; its loop goes on."""
    end = program(IN_THE_APPLICATION, place, way).ended()
    error = {"argument": "CallError", "result": "BadResult"}[place]
    doors = [f"{door} 1 {error} 3" for door in ("run", "batched", "stream", "executor", "keyed")]
    assert end.out.splitlines() == [*doors, "next 5", f"thread 1 {error} 3", "next 5"]
    assert end.code == 0


# -- between calls -------------------------------------------------------------------------------------------


async def test_in_the_initializer(way, processes) -> None:
    """Tried a few times, then one clear error; nothing is left, and it does not take for ever."""
    files, family = processes.open_files(), processes.family(os.getpid())
    with pytest.raises((CallError, LaneDied), match=r"(?s)initializer.*in each of \d+ attempts") as caught:
        async with tm.Lanes(2, initializer=way.act):
            pass
    if way.kills:
        way.check(caught.value)
    assert processes.open_files() <= files  # what an earlier test has left may have gone meanwhile
    assert [pid for pid in processes.family(os.getpid()) - family if processes.lives(pid)] == []


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


# -- at the end ----------------------------------------------------------------------------------------------


async def test_as_a_process_that_was_recycled_leaves(telephone, home, processes, way) -> None:
    """Between the word to stop and its end, where its streams are flushed: no call is its own any more, none is lost."""
    act = way.act

    class Flushed:
        def __init__(self, port: int) -> None:
            self.port = port

        def write(self, text: str) -> int:
            return len(text)

        def flush(self) -> None:
            home(self.port, "leaving")
            act()

    def replaces_stdout(port: int) -> int:
        sys.stdout = Flushed(port)  # type: ignore[assignment]
        return os.getpid()

    async with tm.Lanes(1, recycle_after=1) as lanes:
        pid = await lanes.run(replaces_stdout, telephone.port)
        while "leaving" not in telephone.lines:  # it is worn, and leaves when the spare is ready
            await lanes.run(square, 1)
        calls = [asyncio.create_task(lanes.run(square, number)) for number in range(20)]
        await telephone.tell("leaving")
        await processes.gone(pid)
        assert await asyncio.gather(*calls) == [number * number for number in range(20)]
        assert await lanes.run(os.getpid) != pid
        assert lanes.statistics().lanes[0].restarts == 0


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
