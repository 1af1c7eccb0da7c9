"""Timeouts: each belongs to its own call, queued or running, and ends the work."""

from __future__ import annotations

import asyncio
import os
import sys

import cloudpickle
import pytest

import tidemill as tm

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]


def square(x: int) -> int:
    return x * x


def spins() -> None:
    while True:
        pass


async def test_of_queued_calls(one: tm.Lanes, telephone, home, time_passes) -> None:
    """They fire without having been dispatched, in the order of their deadlines; the running call is left alone."""
    running = asyncio.create_task(one.run(home, telephone.port, "running"))
    await telephone.hear("running")
    ended: list[int] = []

    async def waits(number: int) -> None:
        with pytest.raises(TimeoutError, match="no result within"):
            await one.run(home, telephone.port, f"never {number}", timeout=1000 * number)
        ended.append(number)

    waiting = asyncio.gather(*(waits(number) for number in (4, 1, 3, 2)))
    await asyncio.sleep(0)
    time_passes(one)
    await waiting
    assert ended == [1, 2, 3, 4]
    assert not running.done()
    await telephone.tell("running")
    assert await running == "done"
    assert telephone.calls == 1


async def test_of_running_calls_among_calls_without(two: tm.Lanes) -> None:
    """Only those that hang are ended; each of the others has its result."""

    def hangs_sometimes(number: int) -> int:
        while number % 10 == 3:
            pass
        return number

    calls = [two.run(hangs_sometimes, number, timeout=1.5 if number % 10 == 3 else None) for number in range(40)]
    for number, end in enumerate(await asyncio.gather(*calls, return_exceptions=True)):
        assert isinstance(end, TimeoutError) if number % 10 == 3 else end == number


async def test_far_and_near_together(two: tm.Lanes) -> None:
    """A thousand calls with deadlines far away leave none of them behind; a near one among them still fires."""
    calls = [asyncio.create_task(two.run(square, number, timeout=1000 + number)) for number in range(1000)]
    with pytest.raises(TimeoutError):
        await two.run(spins, timeout=0.05)
    assert await asyncio.gather(*calls) == [number * number for number in range(1000)]


async def test_that_is_long_past_when_the_loop_comes_to_it(one: tm.Lanes, time_passes) -> None:
    """The loop was held: the result that is there already, or the timeout; never both, never neither."""
    loop = asyncio.get_running_loop()

    def quick(port: int) -> str:
        import socket

        with socket.create_connection(("127.0.0.1", port)):
            return "there"

    import socket

    for number in range(6):
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(60)
            call = asyncio.create_task(one.run(quick, server.getsockname()[1], timeout=1000))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            line, _ = server.accept()  # holds the loop until it has run
            with line:
                line.settimeout(60)
                assert line.recv(1) == b""
            if number % 2:  # before the loop has looked what came, and behind
                loop.call_soon(time_passes, one)
            else:
                loop.call_later(0, time_passes, one)
            (end,) = await asyncio.gather(call, return_exceptions=True)
            assert end == "there" or isinstance(end, TimeoutError)
        assert await one.run(square, 3) == 9


async def test_with_a_cancel_and_a_death_at_once(one: tm.Lanes) -> None:
    """Whatever comes first is told, once; the lane serves the next."""
    for step in range(12):
        call = asyncio.create_task(one.run(os._exit, 3, timeout=0.002 * (step + 1)))
        for _ in range(step):
            await asyncio.sleep(0)
        if step % 3 == 0:
            call.cancel()
        (end,) = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(end, (TimeoutError, asyncio.CancelledError, tm.LaneDied))
        assert await one.run(square, step) == step * step


async def test_of_a_caller_around_the_call(one: tm.Lanes) -> None:
    """``asyncio.timeout`` and ``wait_for`` stop the work as a cancel does."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await one.run(spins)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(one.run(spins), 0.05)
    assert await one.run(square, 3) == 9
    assert one.statistics().waiting == 0


async def test_in_a_task_group(two: tm.Lanes) -> None:
    """An error in one of its calls stops the work of the others."""
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the group raises at its end
        async with asyncio.TaskGroup() as group:
            group.create_task(two.run(spins))
            group.create_task(two.run(int, "x"))
    assert [type(error) for error in caught.value.exceptions] == [ValueError]
    assert await asyncio.gather(*(two.run(square, number) for number in range(20))) == [n * n for n in range(20)]


async def test_that_never_come(one: tm.Lanes) -> None:
    """Infinity, and more seconds than any clock has."""
    assert await one.run(square, 3, timeout=float("inf")) == 9
    assert await one.run(square, 3, timeout=1e300) == 9
    predict = one.batched(lambda values: values, timeout=float("inf"))
    assert await asyncio.gather(predict(1), predict(2)) == [1, 2]
