"""How processes are made and wear out: initializer, preload, recycling, priority; and every way that these can fail."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import CallError, LaneDied

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]


def square(x: int) -> int:
    return x * x


def remember(value: object) -> None:
    os.environ["TIDEMILL_TEST"] = str(value)


def remembered() -> str | None:
    return os.environ.get("TIDEMILL_TEST")


def append(path: str, line: object) -> None:
    with Path(path).open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


# -- the initializer -----------------------------------------------------------------------------------------


async def test_each_process_is_initialized_before_it_takes_calls() -> None:
    """The first processes, and the one that replaces a dead one."""
    async with tm.Lanes(2, initializer=remember, initargs=("S12",)) as lanes:
        assert set(await asyncio.gather(*(lanes.run(remembered) for _ in range(20)))) == {"S12"}
        for _ in range(3):
            with pytest.raises(LaneDied):
                await lanes.run(os._exit, 1)
        assert set(await asyncio.gather(*(lanes.run(remembered) for _ in range(20)))) == {"S12"}


async def test_an_initializer_that_fails_at_first(tmp_path: Path, way) -> None:
    """Processes that fail before they are ready are tried again; once one succeeds all is well."""
    act, path = way.act, str(tmp_path / "tries")

    def fails_at_first() -> None:
        append(path, "try")
        if Path(path).read_text().count("try") < 3:
            act()

    async with tm.Lanes(1, initializer=fails_at_first) as lanes:
        assert await lanes.run(square, 3) == 9


@pytest.mark.parametrize("way", ["error", "sigkill"], indirect=True)
async def test_an_initializer_that_begins_to_fail(tmp_path: Path, way) -> None:
    """While the lanes are open: calls that wait get one clear error each, none hangs; then it is mended, calls run."""
    act, broken = way.act, tmp_path / "broken"
    path = str(broken)

    def fails_when_broken() -> None:
        if Path(path).exists():
            act()

    async with tm.Lanes(1, initializer=fails_when_broken) as lanes:
        assert await lanes.run(square, 3) == 9
        await asyncio.to_thread(broken.touch)
        told = 0
        while told < 3:  # the spare was made before it broke
            ends = await asyncio.gather(lanes.run(os._exit, 1), lanes.run(square, 2), return_exceptions=True)
            told += "attempts" in str(ends[0])
            assert all(end == 4 or isinstance(end, (CallError, LaneDied)) for end in ends)
        await asyncio.to_thread(broken.unlink)
        while await asyncio.gather(lanes.run(square, 4), return_exceptions=True) != [16]:
            pass
        assert await asyncio.gather(*(lanes.run(square, number) for number in range(10))) == [
            number * number for number in range(10)
        ]


async def test_an_initializer_that_hangs_can_be_left(telephone, home) -> None:
    """The caller gives up; every process is gone."""

    async def opened() -> None:
        async with tm.Lanes(1, initializer=home, initargs=(telephone.port, "initializer")):
            pass

    task = asyncio.create_task(opened())
    await telephone.hear("initializer")
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_an_initializer_that_cannot_be_sent() -> None:
    """Refused where the lanes are made or opened, and it is named."""
    import threading

    lock = threading.Lock()

    with pytest.raises(CallError, match="initializer"):
        async with tm.Lanes(1, initializer=lambda: lock):
            pass


# -- preload -------------------------------------------------------------------------------------------------


async def test_preloaded_modules_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imported once for all processes, replacements too."""
    source = f"open({str(tmp_path / 'imports')!r}, 'a').write('once\\n')\nVALUE = 42\n"
    (tmp_path / "costly_module.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))

    def value() -> tuple[bool, int]:
        there = "costly_module" in sys.modules
        import costly_module

        return there, costly_module.VALUE

    async with tm.Lanes(2, preload=["costly_module"]) as lanes:
        assert set(await asyncio.gather(*(lanes.run(value) for _ in range(10)))) == {(True, 42)}
        await asyncio.gather(lanes.run(os._exit, 1), return_exceptions=True)
        assert set(await asyncio.gather(*(lanes.run(value) for _ in range(10)))) == {(True, 42)}
    assert await asyncio.to_thread((tmp_path / "imports").read_text) == "once\n"


async def test_processes_draw_numbers_of_their_own() -> None:
    """Though the generator was there before they were forked."""

    def draw() -> tuple[float, float]:
        import random

        import numpy as np

        return np.random.rand(), random.random()  # noqa: NPY002 - the generator in question

    async with tm.Lanes(1, preload=["numpy.random", "random"]) as lanes:
        before = await lanes.run(draw)
        await asyncio.gather(lanes.run(os._exit, 1), return_exceptions=True)
        after = await lanes.run(draw)
    assert not set(before) & set(after)


async def test_a_module_that_is_missing() -> None:
    """Named, at the opening."""
    with pytest.raises((CallError, LaneDied), match="no_such_module"):
        async with tm.Lanes(1, preload=["no_such_module"]):
            pass


# -- recycling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes_count", [1, 2])
async def test_recycling_under_load_loses_nothing(tmp_path: Path, lanes_count: int) -> None:
    """A process a few calls: each call ran once and has its result, in ever new processes."""
    path = str(tmp_path / "log")

    def work(number: int) -> tuple[int, int]:
        append(path, number)
        return number, os.getpid()

    async with tm.Lanes(lanes_count, recycle_after=7) as lanes:
        results = await asyncio.gather(*(lanes.run(work, number) for number in range(200)))
    assert [number for number, _ in results] == list(range(200))
    log = await asyncio.to_thread(Path(path).read_text)
    assert Counter(log.split()) == Counter(map(str, range(200)))
    served = Counter(pid for _, pid in results)
    assert len(served) > lanes_count  # as soon as the next one is ready


async def test_recycling_streams_records_and_executors() -> None:
    """The other doors, all at once, in order where promised."""
    async with tm.Lanes(2, recycle_after=5) as lanes:
        predict = lanes.batched(lambda values: [value + 1 for value in values], max_batch=4)
        executor = lanes.executor()

        async def streamed() -> list[int]:
            return [value async for value in lanes.stream(square, range(60), window=8)]

        async def asked() -> list[int]:
            return list(await asyncio.gather(*map(predict, range(60))))

        async def submitted() -> list[int]:
            return list(await asyncio.gather(*(asyncio.wrap_future(executor.submit(square, n)) for n in range(60))))

        ends = await asyncio.gather(streamed(), asked(), submitted())
    squares = [number * number for number in range(60)]
    assert ends == [squares, list(range(1, 61)), squares]


async def test_recycling_by_memory() -> None:
    """A process that has grown beyond the bound is replaced between two calls, and the memory is given back."""
    hoard: list[bytes] = []

    def grows() -> int:
        hoard.append(b"x" * 30_000_000)
        return len(hoard)

    async with tm.Lanes(1, recycle_rss=200_000_000) as lanes:
        sizes = [await lanes.run(grows) for _ in range(60)]
    assert sizes.count(1) > 1
    assert max(sizes) < 60


async def test_deaths_of_processes_that_are_being_recycled(way: object, tmp_path: Path) -> None:
    """Each process dies, or not, in the last call it may take: every call has its end, every good one its result."""
    act: Callable[[], None] = way.act  # type: ignore[attr-defined]

    def work(number: int) -> int:
        if number % 3 == 2:
            act()
        return number

    async with tm.Lanes(2, recycle_after=3) as lanes:
        ends = await asyncio.gather(*(lanes.run(work, number) for number in range(45)), return_exceptions=True)
        for number, end in enumerate(ends):
            if number % 3 == 2:
                way.check(end)  # type: ignore[attr-defined]
            else:
                assert end == number
        assert await lanes.run(square, 3) == 9


async def test_a_recycled_process_that_will_not_leave(processes) -> None:
    """A thread that a function left keeps the old process from its end: calls go on in the next, the close ends it."""

    def leaves_a_thread() -> int:
        import threading

        threading.Thread(target=threading.Event().wait).start()
        return os.getpid()

    async with tm.Lanes(1, recycle_after=1) as lanes:
        pid = await lanes.run(leaves_a_thread)
        while await lanes.run(os.getpid) == pid:
            pass
    assert not processes.lives(pid)


async def test_priority() -> None:
    """As asked for, on top of the application's own."""
    async with tm.Lanes(1, nice=3) as lanes:
        assert await lanes.run(os.nice, 0) == os.nice(0) + 3


async def test_an_operator_can_tell_the_processes_apart() -> None:
    """By the names that ps and top show."""

    def names() -> tuple[str, str]:
        from pathlib import Path

        return tuple(Path(f"/proc/{pid}/comm").read_text().strip() for pid in (os.getppid(), os.getpid()))  # type: ignore[return-value]

    async with tm.Lanes(1) as lanes:
        assert await lanes.run(names) == ("tidemill-server", "tidemill-calls")
