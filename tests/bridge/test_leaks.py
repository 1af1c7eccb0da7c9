"""After a thousand kills everything is as before the first: descriptors, threads, processes, maps, tasks, objects."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
import weakref
from pathlib import Path

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import CallError, LaneDied, TidemillError

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


def square(x: int) -> int:
    return x * x


def suicide() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def settled(lanes: tm.Lanes, processes, server: int) -> None:
    """Every lane has its process, the spare is ready, the dead are reaped, and nothing is under way."""
    assert lanes._crew is not None
    staff = lanes._crew.staff
    while None in staff.seats or staff.spare is None or len(processes.children(server)) > len(staff.seats) + 1:
        await lanes.run(square, 1)
    for _ in range(20):
        await asyncio.gather(*(lanes.run(square, 1) for _ in range(8)))


def shared_memory_names() -> list[str]:
    """Of everybody but the databases of other tests, which come and go meanwhile."""
    return [path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith("PostgreSQL.")]


@pytest.mark.parametrize("how", ["death", "cancel"])
async def test_a_thousand_kills(processes, telephone, home, how: str) -> None:
    """A thousand deaths and a thousand cancels; then each kind of thing is counted, and there is not one zombie."""
    async with tm.Lanes(2, grace=0) as lanes:
        server = await lanes.run(os.getppid)
        await settled(lanes, processes, server)
        gc.collect()  # what earlier tests left must not be closed in between, nor hide what this one leaves

        def counts() -> dict[str, int]:
            return {
                "open files": processes.open_files(),
                "maps": processes.maps(),
                "threads": threading.active_count(),
                "tasks": len(asyncio.all_tasks()),
                "shared memory names": len(shared_memory_names()),
                "open files of the server": len(list(Path(f"/proc/{server}/fd").iterdir())),
            }

        before = counts()
        for number in range(500):
            if how == "death":
                ends = await asyncio.gather(lanes.run(suicide), lanes.run(suicide), return_exceptions=True)
                assert all(isinstance(end, LaneDied) for end in ends)
                del ends
            else:
                names = [f"{number} {side}" for side in "ab"]
                calls = [asyncio.create_task(lanes.run(home, telephone.port, name)) for name in names]
                await telephone.hear(*names)
                for call in calls:
                    call.cancel()
                await asyncio.wait(calls)
                del call, calls
                for name in names:
                    telephone.lines.pop(name).close()
        await settled(lanes, processes, server)
        assert sum(lane.restarts for lane in lanes.statistics().lanes) == 1000
        for _ in range(100):
            await asyncio.sleep(0)  # the telephone hangs up
        now = counts()
        assert {name: now[name] - count for name, count in before.items() if now[name] > count} == {}
        family = processes.children(server)
        assert [pid for pid in [*family, *processes.children(os.getpid())] if processes.is_zombie(pid)] == []
        assert len(family) == 3  # two lanes and the spare
        crew = weakref.ref(lanes)
    assert not any(map(processes.lives, [server, *family]))
    del lanes
    gc.collect()
    assert crew() is None


async def test_arguments_and_results_are_let_go(processes) -> None:
    """Neither the lanes nor the parent keep what went through: objects here, memory there."""

    class Token:
        pass

    async with tm.Lanes(1) as lanes:
        token = Token()
        seen = weakref.ref(token)
        result = await lanes.run(lambda value: value, token)
        returned = weakref.ref(result)
        del token, result
        await lanes.run(square, 1)
        gc.collect()
        assert seen() is None
        assert returned() is None

        class Mine(Exception):
            pass

        def fails() -> None:
            raise Mine

        with pytest.raises(Mine) as caught:
            await lanes.run(fails)
        raised = weakref.ref(caught.value)
        del caught
        await lanes.run(square, 1)
        gc.collect()
        assert raised() is None


class Fails:
    """Fails as it is told to, with an object for each key and without."""

    def __init__(self) -> None:
        self.state = b""

    def __call__(self, how: str, _: object) -> object:
        if how == "raises":
            raise ZeroDivisionError
        if how == "dies":
            suicide()
        if how == "grows":
            self.state = bytes(2000)
        return Unreadable() if how == "returns what cannot be read" else None


class Unreadable:
    def __reduce__(self) -> tuple[object, ...]:
        return int, ("no number",)


def each_fails(records: list[tuple[str, object]]) -> list[object]:
    return [Fails()(*record) for record in records]


async def by_run(lanes: tm.Lanes, how: str, value: object) -> None:
    await lanes.run(Fails(), how, value)


async def by_stream(lanes: tm.Lanes, how: str, value: object) -> None:
    async for _ in lanes.stream(lambda both: Fails()(*both), [(how, value)]):
        pass


async def by_batched(lanes: tm.Lanes, how: str, value: object) -> None:
    await lanes.batched(each_fails)((how, value))


async def by_executor(lanes: tm.Lanes, how: str, value: object) -> None:
    await asyncio.get_running_loop().run_in_executor(lanes.executor(), Fails(), how, value)


async def by_keyed(lanes: tm.Lanes, how: str, value: object) -> None:
    await lanes.keyed(Fails, max_bytes=1000)("S1", how, value)


async def by_keyed_in_line(lanes: tm.Lanes, how: str, value: object) -> None:
    objects = lanes.keyed(Fails, max_waiting=1)
    objects("S1", "returns", None)
    await objects("S1", how, value)


@pytest.mark.parametrize("how", ["raises", "dies", "grows", "returns what cannot be read", "cannot be sent"])
async def test_an_error_that_is_dropped_keeps_no_argument(how: str) -> None:
    """What its caller had is let go with it, at whatever door, and needs no garbage collector."""

    class Token:
        pass

    async def fails(lanes: tm.Lanes, door) -> weakref.ref[Token]:
        token = Token()
        if how == "cannot be sent":
            token.never = (x for x in ())
        with contextlib.suppress(ZeroDivisionError, TidemillError):
            await door(lanes, how, token)
        return weakref.ref(token)

    async with tm.Lanes(1) as lanes:
        gc.collect()
        gc.disable()
        try:
            for door in (by_run, by_stream, by_batched, by_executor, by_keyed, by_keyed_in_line):
                token = await fails(lanes, door)
                await asyncio.sleep(0)  # the loop lets go of what woke this
                assert token() is None, door.__name__
        finally:
            gc.enable()


async def test_functions_are_let_go() -> None:
    """A thousand closures, each called once: neither side keeps those that the application let go of."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    async with tm.Lanes(1) as lanes:
        kept: weakref.WeakSet = weakref.WeakSet()
        memory = 0
        for number in range(600):
            block = b"x" * 200_000 + str(number).encode()

            def closure(block: bytes = block) -> int:
                return len(block)

            kept.add(closure)
            await lanes.run(closure)
            if number == 300:
                memory = await lanes.run(resident)
        del closure
        gc.collect()
        assert len(kept) <= 1
        assert await lanes.run(resident) - memory < 40_000_000


async def test_open_and_close_again_and_again(processes) -> None:
    """Ten times lanes, with calls under way when they are closed: nothing adds up."""

    async def once() -> int:
        async with tm.Lanes(2) as lanes:
            calls = [asyncio.ensure_future(lanes.run(square, number)) for number in range(10)]
            await calls[0]
        await asyncio.gather(*calls, return_exceptions=True)
        return processes.open_files() + processes.maps()

    gc.collect()  # what earlier tests left must not be closed in between
    first = await once()
    assert [await once() for _ in range(6)] == [first] * 6
    assert [pid for pid in processes.children(os.getpid()) if processes.lives(pid)] == []


async def test_lanes_that_cannot_start_leave_nothing(processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that is not there: a clear error, and no descriptor stays open."""
    gc.collect()  # what earlier tests left must not be closed in between
    before = processes.open_files()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    for _ in range(3):
        with pytest.raises(CallError, match=r"No such file or directory.*/nowhere/python"):
            async with tm.Lanes(2):
                pass
    gc.collect()
    assert processes.open_files() == before


async def test_lanes_for_which_there_are_too_few_descriptors_leave_none_open(program) -> None:
    """Wherever in the making of a process the last one is taken."""
    app = program("""
        import asyncio, os, resource
        import tidemill as tm

        async def main():
            async with tm.Lanes(1) as lanes:
                await lanes.run(abs, -1)
            before = len(os.listdir("/proc/self/fd"))
            for least in range(36, 42):
                resource.setrlimit(resource.RLIMIT_NOFILE, (least, 4096))
                try:
                    async with tm.Lanes(10):
                        pass
                except tm.CallError as error:
                    pass
                resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
                print(len(os.listdir("/proc/self/fd")) - before)

        asyncio.run(main())
    """)
    end = app.ended()
    assert (end.code, end.out.split()) == (0, ["0"] * 6), end.err


async def test_too_few_descriptors(program) -> None:
    """EMFILE while lanes open or replace a process: an error that says so, never a hang."""
    app = program("""
        import asyncio, os, resource
        import tidemill as tm

        async def main():
            async with tm.Lanes(1) as lanes:
                await lanes.run(abs, -1)
                taken = []
                resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
                try:
                    while True:
                        taken.append(os.dup(0))
                except OSError:
                    pass
                (end,) = await asyncio.gather(lanes.run(os._exit, 3), return_exceptions=True)
                print(type(end).__name__)
                for number in taken:
                    os.close(number)
                print(await lanes.run(abs, -5))

        asyncio.run(asyncio.wait_for(main(), 120))
    """)
    end = app.ended()
    assert end.out.splitlines()[:1] == ["LaneDied"]
    assert end.code == 0, end.err
    assert end.out.splitlines()[1:] == ["5"]
