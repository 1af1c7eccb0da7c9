"""One item among many that kills its lane: it fails, the others succeed, and nothing runs that ran already."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import LaneDied

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]

ITEMS = 64


def noted(path: str, number: int) -> None:
    """A side effect that a death cannot undo."""
    with Path(path).open("ab", buffering=0) as file:
        file.write(f"{number}\n".encode())


def counted(log: Path) -> Counter[int]:
    return Counter(map(int, log.read_text().split())) if log.exists() else Counter()


@pytest.mark.parametrize("poison", [{0}, {20}, {63}, {5, 40}, {10, 11}, {0, 1, 2, 63}], ids=str)
@pytest.mark.parametrize("pool", ["one", "two"])
async def test_of_64_calls_only_the_poison_fails(
    one: tm.Lanes, two: tm.Lanes, tmp_path: Path, poison: set[int], pool: str
) -> None:
    """However they were put together on their way: each has its own end, each side effect is there once."""
    lanes = {"one": one, "two": two}[pool]
    log = tmp_path / "log"
    path = str(log)

    def work(number: int) -> int:
        noted(path, number)
        if number in poison:
            os.kill(os.getpid(), signal.SIGKILL)
        return -number

    results = await asyncio.gather(*(lanes.run(work, number) for number in range(ITEMS)), return_exceptions=True)
    for number, result in enumerate(results):
        if number in poison:
            assert isinstance(result, LaneDied)
            assert result.signal == signal.SIGKILL
        else:
            assert result == -number
    assert counted(log) == Counter(range(ITEMS))


async def test_every_call_is_poison(two: tm.Lanes, tmp_path: Path) -> None:
    """Each has its own death, told exactly, each runs once; the lanes serve what comes after."""
    log = tmp_path / "log"
    path = str(log)

    def work(number: int) -> None:
        noted(path, number)
        os._exit(number)

    results = await asyncio.gather(*(two.run(work, number) for number in range(40)), return_exceptions=True)
    assert [result.code for result in results] == list(range(40))
    assert counted(log) == Counter(range(40))
    assert await two.run(abs, -4) == 4


async def test_poison_in_a_stream(two: tm.Lanes, tmp_path: Path) -> None:
    """The same, in order, each error in its place."""
    log = tmp_path / "log"
    path = str(log)

    def work(number: int) -> int:
        noted(path, number)
        if number % 20 == 7:
            os._exit(1)
        return -number

    results = [result async for result in two.stream(work, range(ITEMS), window=64, return_exceptions=True)]
    for number, result in enumerate(results):
        assert isinstance(result, LaneDied) if number % 20 == 7 else result == -number
    assert counted(log) == Counter(range(ITEMS))


@pytest.mark.parametrize("poison", [{20}, {0, 63}], ids=str)
async def test_poison_in_a_batch(one: tm.Lanes, telephone, home, poison: set[int]) -> None:
    """``batched`` takes the batch apart and calls again, as it says: 63 of 64 succeed, the culprit alone is told."""

    def work(numbers: list[int]) -> list[int]:
        if poison & set(numbers):
            os._exit(2)
        return [-number for number in numbers]

    running = asyncio.create_task(one.run(home, telephone.port, "running"))
    await telephone.hear("running")
    call = one.batched(work, max_batch=ITEMS)
    records = [asyncio.ensure_future(call(number)) for number in range(ITEMS)]
    await asyncio.sleep(0)
    await telephone.tell("running")
    await running
    for number, result in enumerate(await asyncio.gather(*records, return_exceptions=True)):
        assert isinstance(result, LaneDied) if number in poison else result == -number


async def test_poison_only_when_together(one: tm.Lanes, telephone, home) -> None:
    """A batch that kills though none of its records does alone: all of them have their values."""

    def work(numbers: list[int]) -> list[int]:
        if len(numbers) > 1:
            os._exit(2)
        return [-number for number in numbers]

    running = asyncio.create_task(one.run(home, telephone.port, "running"))
    await telephone.hear("running")
    call = one.batched(work)
    records = [asyncio.ensure_future(call(number)) for number in range(ITEMS)]
    await asyncio.sleep(0)
    await telephone.tell("running")
    await running
    assert await asyncio.gather(*records) == [-number for number in range(ITEMS)]


async def test_errors_and_cancels_and_a_death_in_one_crowd(one: tm.Lanes, telephone, home) -> None:
    """An error belongs to one, a cancel to one, a death to one; the rest have their results."""

    def work(number: int) -> int:
        if number == 11:
            raise KeyError(number)
        if number == 22:
            os._exit(3)
        return -number

    running = asyncio.create_task(one.run(home, telephone.port, "running"))
    await telephone.hear("running")
    calls = [asyncio.create_task(one.run(work, number)) for number in range(ITEMS)]
    await asyncio.sleep(0)
    calls[33].cancel()
    await telephone.tell("running")
    await running
    results = await asyncio.gather(*calls, return_exceptions=True)
    kinds = {11: KeyError, 22: LaneDied, 33: asyncio.CancelledError}
    for number, result in enumerate(results):
        assert isinstance(result, kinds[number]) if number in kinds else result == -number


async def test_a_result_written_just_before_the_death_is_delivered(one: tm.Lanes) -> None:
    """The lane dies before this side has read: the result counts, the call is not run again."""
    import socket

    def returns_then_dies(port: int) -> str:
        import threading
        import time

        def asleep() -> bool:
            stat = Path(f"/proc/self/task/{os.getpid()}/stat").read_text()
            return stat.rpartition(")")[2].split()[0] == "S"

        def later() -> None:
            with socket.create_connection(("127.0.0.1", port)):
                returned.wait()
                seen = 0
                while seen < 3:  # its result is written: it waits for the next call
                    time.sleep(0.001)
                    seen = seen + 1 if asleep() else 0
                os.kill(os.getpid(), signal.SIGKILL)

        returned = threading.Event()
        threading.Thread(target=later, daemon=True).start()
        try:
            return "delivered"
        finally:
            returned.set()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)
        call = asyncio.create_task(one.run(returns_then_dies, server.getsockname()[1]))
        for _ in range(3):
            await asyncio.sleep(0)
        line, _ = server.accept()  # holds the loop, so that nothing is read meanwhile
        with line:
            line.settimeout(120)
            assert line.recv(1) == b""
        behind = asyncio.create_task(one.run(abs, -5))
        assert await call == "delivered"
        assert await behind == 5
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()  # nobody called a second time
