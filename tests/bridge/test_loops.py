"""Lanes and event loops: uvloop, two loops in two threads, one after the other, debug mode, the wrong loop."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import cloudpickle
import numpy as np
import pytest

import tidemill as tm
from tidemill.errors import CallError, LaneDied

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.timeout(200)


def square(x: int) -> int:
    return x * x


def spins() -> None:
    while True:
        pass


def asyncio_run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(main)


def asyncio_debug(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(main, debug=True)


def uvloop_run(main: Coroutine[Any, Any, Any]) -> Any:
    uvloop = pytest.importorskip("uvloop", reason="it is in the dev extra")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


RUNNERS = [asyncio_run, asyncio_debug, uvloop_run]


@pytest.mark.parametrize("run", RUNNERS)
def test_all_of_it_on_each_kind_of_loop(run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
    """Calls, large data both ways, streams, records, futures, deaths, timeouts, cancels: the same on each loop."""

    async def main() -> None:
        async with tm.Lanes(2) as lanes:
            assert await asyncio.gather(*(lanes.run(square, number) for number in range(200))) == [
                number * number for number in range(200)
            ]
            array = np.arange(1_500_000, dtype=float)
            for back in await asyncio.gather(*(lanes.run(np.negative, array) for _ in range(3))):
                assert np.array_equal(back, -array)
            text = "ü" * 6_000_000
            assert await lanes.run(str.lower, text) == text
            assert [one async for one in lanes.stream(square, range(50), window=5)] == [n * n for n in range(50)]
            predict = lanes.batched(lambda values: [value + 1 for value in values])
            assert await asyncio.gather(*map(predict, range(300))) == list(range(1, 301))
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(lanes.executor(), square, 7) == 49
            with pytest.raises(LaneDied):
                await lanes.run(os._exit, 1)
            with pytest.raises(TimeoutError):
                await lanes.run(spins, timeout=0.05)
            task = asyncio.create_task(lanes.run(spins))
            for _ in range(10):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await lanes.run(square, 8) == 64

    run(main())


@pytest.mark.parametrize("run", RUNNERS)
def test_one_run_after_the_other(run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
    """New lanes in each; those of a loop that is closed refuse calls."""
    kept: list[tm.Lanes] = []

    async def main() -> int:
        async with tm.Lanes(1) as lanes:
            kept.append(lanes)
            return await lanes.run(square, 4)

    assert [run(main()), run(main())] == [16, 16]
    with pytest.raises(CallError, match="closed"):
        asyncio.run(kept[0].run(square, 1))


def test_two_loops_in_two_threads() -> None:
    """At once, with deaths and cancels in each: neither notices the other."""
    ends: dict[int, object] = {}
    started = threading.Barrier(3)

    def thread(number: int) -> None:
        async def main() -> list[int]:
            async with tm.Lanes(1) as lanes:
                await asyncio.to_thread(started.wait, 60)
                for _ in range(5):
                    await asyncio.gather(lanes.run(os._exit, 1), return_exceptions=True)
                    with pytest.raises(TimeoutError):
                        await lanes.run(spins, timeout=0.01)
                return await asyncio.gather(*(lanes.run(square, number + step) for step in range(50)))

        try:
            ends[number] = asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - shown below
            ends[number] = error

    threads = [threading.Thread(target=thread, args=(number,)) for number in (0, 100, 200)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert ends == {number: [(number + step) ** 2 for step in range(50)] for number in (0, 100, 200)}


async def test_two_pools_in_one_loop() -> None:
    """Side by side; closing one leaves the other alone."""
    async with tm.Lanes(1) as first:
        async with tm.Lanes(1) as second:
            pids = await asyncio.gather(first.run(os.getpid), second.run(os.getpid))
            assert len(set(pids)) == 2
        assert await first.run(square, 3) == 9
        with pytest.raises(CallError, match="closed"):
            await second.run(square, 3)


async def test_calls_from_the_wrong_loop() -> None:
    """Every door says so, and names the one that takes calls from any thread."""
    async with tm.Lanes(1) as lanes:
        predict = lanes.batched(lambda values: values)

        def elsewhere() -> None:
            async def main() -> None:
                with pytest.raises(CallError, match="another event loop"):
                    await lanes.run(square, 1)
                with pytest.raises(CallError, match="another event loop"):
                    lanes.stream(square, [1])
                with pytest.raises(CallError, match="another event loop"):
                    lanes.batched(square)  # type: ignore[arg-type]
                with pytest.raises(CallError, match="another event loop"):
                    await predict(1)
                loop = asyncio.get_running_loop()
                assert await loop.run_in_executor(lanes.executor(), square, 5) == 25

            asyncio.run(main())

        await asyncio.to_thread(elsewhere)
        assert await lanes.run(square, 3) == 9


async def test_an_error_in_the_block_closes_the_lanes(processes) -> None:
    """And goes on as it is."""
    seen: list[int] = []

    async def fails() -> None:
        async with tm.Lanes(1) as lanes:
            seen.append(await lanes.run(os.getppid))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fails()
    assert not any(map(processes.lives, seen))


async def test_a_cancel_while_the_lanes_open_or_close(processes) -> None:
    """After every number of turns of the loop: the caller is told, and no process stays."""

    async def used() -> None:
        async with tm.Lanes(1) as lanes:
            await lanes.run(square, 2)

    mine = set(processes.children(os.getpid()))
    for turns in (0, 1, 2, 3, 5, 8):
        task = asyncio.create_task(used())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert {pid for pid in processes.children(os.getpid()) if processes.lives(pid)} <= mine
