"""What functions do beside returning: print, flood, log, use BLAS, interrupt themselves, close what is not theirs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import tidemill as tm
from tidemill.errors import CallError, LaneDied, OutsideError, RemoteError

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]


def square(x: int) -> int:
    return x * x


async def test_floods_of_output_harm_nobody(program) -> None:
    """Ten megabytes on each stream, from Python and from C: results are right, the application's stdout is its own."""
    app = program("""
        import asyncio, os, sys
        import tidemill as tm

        def floods(number):
            for _ in range(20):
                print("o" * 99_999)
                print("e" * 99_999, file=sys.stderr)
            for stream in (1, 2):
                data = b"c" * 999_999 + b"\\n"
                while data:
                    data = data[os.write(stream, data):]
            return number

        async def main():
            async with tm.Lanes(2) as lanes:
                calls = [asyncio.ensure_future(lanes.run(floods, number)) for number in range(4)]
                small = await asyncio.gather(*(lanes.run(abs, -number) for number in range(100)))
                print(await asyncio.gather(*calls), small == list(range(100)))

        asyncio.run(main())
    """)
    end = app.ended()
    assert (end.code, end.out) == (0, "[0, 1, 2, 3] True\n")
    assert len(end.err) >= 4 * 20 * 200_000


async def test_standard_streams_that_a_function_closes(one: tm.Lanes) -> None:
    """Its own affair: its result arrives, and the next function's does."""

    def closes() -> str:
        sys.stdout.close()
        sys.stderr.close()
        os.close(0)
        return "closed"

    assert await one.run(closes) == "closed"
    assert await one.run(square, 3) == 9


async def test_every_descriptor_that_a_function_closes(one: tm.Lanes) -> None:
    """It cut its own line: it is told as a death, or as its result; the lane serves the next."""
    (end,) = await asyncio.gather(one.run(os.closerange, 3, 1000), return_exceptions=True)
    assert end is None or isinstance(end, LaneDied)
    assert await one.run(square, 3) == 9


async def test_an_interrupt_within_the_function(one: tm.Lanes) -> None:
    """A KeyboardInterrupt there, raised or by a signal that it asked for, ends that call alone."""

    def interrupts_itself() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                pass
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    restarts = one.statistics().lanes[0].restarts
    ends = await asyncio.gather(
        one.run(square, 1), one.run(interrupts_itself), one.run(square, 2), return_exceptions=True
    )
    assert (ends[0], ends[2]) == (1, 4)
    assert isinstance(ends[1], RemoteError)
    assert ends[1].type_name == "KeyboardInterrupt"
    assert one.statistics().lanes[0].restarts == restarts


async def test_signals_that_the_application_has_blocked() -> None:
    """Also when a supervisor did it for it: deaths are noticed, and a lane's own signals are not held back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGALRM})
    try:
        async with tm.Lanes(1) as lanes:
            assert await lanes.run(signal.pthread_sigmask, signal.SIG_BLOCK, ()) == set()
            with pytest.raises(LaneDied):
                await lanes.run(os._exit, 1)
            assert await lanes.run(square, 3) == 9
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def test_a_logging_lock_that_is_held_at_the_start() -> None:
    """Lanes that are started, and replaced, while a thread here holds logging's and other locks: nothing is inherited."""
    handler = logging.StreamHandler()
    held, release = threading.Event(), threading.Event()

    def holds() -> None:
        with handler.lock, logging._lock:  # type: ignore[attr-defined,union-attr]
            held.set()
            release.wait(120)

    def logs(text: str) -> str:
        logging.getLogger("tidemill.test").warning(text)
        return text

    thread = threading.Thread(target=holds)
    thread.start()
    held.wait(120)
    try:
        async with tm.Lanes(1) as lanes:
            assert await lanes.run(logs, "first") == "first"
            await asyncio.gather(lanes.run(os._exit, 1), return_exceptions=True)
            assert await lanes.run(logs, "second") == "second"
    finally:
        release.set()
        thread.join()


async def test_linear_algebra_here_and_there() -> None:
    """BLAS with its threads warm in this process, then in the lanes, both at once: no deadlock, the same numbers."""
    matrix = np.arange(360_000, dtype=float).reshape(600, 600) / 360_000
    expected = matrix @ matrix
    async with tm.Lanes(2) as lanes:
        calls = [asyncio.create_task(lanes.run(np.dot, matrix, matrix)) for _ in range(4)]
        await asyncio.sleep(0)
        assert np.allclose(matrix @ matrix, expected)
        for product in await asyncio.gather(*calls):
            assert np.allclose(product, expected)
        await asyncio.gather(lanes.run(os._exit, 1), return_exceptions=True)
        assert np.allclose(await lanes.run(np.dot, matrix, matrix), expected)


async def test_threads_and_forks_of_a_function(one: tm.Lanes) -> None:
    """A function may use threads, and processes of its own, and leave them to their work."""

    def works() -> int:
        import concurrent.futures
        import subprocess

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            total = sum(threads.map(square, range(10)))
        return total + int(subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, check=True).stdout)

    assert await asyncio.gather(one.run(works), one.run(square, 3)) == [286, 9]


def small_run(stage: tm.Plan, sink: tm.sinks.Latest, lanes: int) -> tm.Report:
    source = tm.sources.Records([{"sensor": "a", "time": 1, "value": 2.0}])
    return tm.run(tm.Pipeline(source, stage, sink), lanes=lanes, dead_letters=os.devnull)


def nested(door: str, lanes: int = 1) -> int:
    async def opened() -> int:
        async with tm.Lanes(lanes) as within:
            return await within.run(square, 2)

    match door:
        case "Lanes":
            return asyncio.run(opened())
        case "LanesExecutor":
            with tm.LanesExecutor(lanes) as pool:
                return pool.submit(square, 2).result()
        case "run":
            return 4 * small_run(tm.Plan(), tm.sinks.Latest(), lanes).rows_out
    raise AssertionError(door)


@pytest.mark.parametrize("door", ["Lanes", "LanesExecutor", "run"])
async def test_nested_use_is_refused(two: tm.Lanes, door: str) -> None:
    """Lanes in a lane, by any way to have them: one clear sentence, also in a pipeline's lane; inline there is no need to."""
    with pytest.raises((CallError, OutsideError), match="no lanes within lanes"):
        await two.run(nested, door)
    assert await two.run(nested, door, lanes=0) == 4

    def refused(batch: tm.Batch) -> dict[str, Any]:
        try:
            nested(door)
        except (CallError, OutsideError) as error:
            return {"told": np.array([str(error)] * len(batch), object)}
        raise AssertionError("it was not refused")

    latest = tm.sinks.Latest()
    await asyncio.to_thread(small_run, tm.Plan(tm.Map(refused)), latest, 1)
    assert "no lanes within lanes" in latest["a"]["told"]


async def test_lanes_do_not_travel(two: tm.Lanes) -> None:
    """A function cannot take those of the application along."""
    with pytest.raises(CallError, match="stay in the process"):
        await two.run(lambda: two)
    assert await two.run(square, 3) == 9


async def test_changes_that_a_function_makes_to_its_process(one: tm.Lanes, tmp_path) -> None:
    """Folder, environment, recursion limit, warnings as errors, a closed default loop: calls after it run all the same."""

    def upsets(path: str) -> None:
        import warnings

        os.chdir(path)
        os.environ.clear()
        sys.setrecursionlimit(5000)
        warnings.simplefilter("error")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.path.clear()
        sys.modules.pop("json", None)
        import gc

        gc.disable()
        gc.freeze()

    await one.run(upsets, str(tmp_path))
    assert await asyncio.gather(*(one.run(square, number) for number in range(10))) == [
        number * number for number in range(10)
    ]
    with pytest.raises(ZeroDivisionError):
        await one.run(lambda: 1 / 0)


async def test_a_function_that_recurses_for_ever(one: tm.Lanes) -> None:
    """RecursionError for its caller, here with its traceback; deep results and arguments too."""

    def recurses() -> None:
        recurses()

    def deep() -> list:
        value: list = []
        for _ in range(100_000):
            value = [value]
        return value

    with pytest.raises(RecursionError) as caught:
        await one.run(recurses)
    assert "in recurses" in str(caught.value.__cause__)
    (end,) = await asyncio.gather(one.run(deep), return_exceptions=True)
    assert isinstance(end, (tm.BadResult, LaneDied, RecursionError))
    assert await one.run(square, 3) == 9


async def test_memory_that_a_function_cannot_have(one: tm.Lanes) -> None:
    """MemoryError is an error like any other."""

    def takes_too_much() -> int:
        return len(bytearray(1 << 60))

    with pytest.raises(MemoryError):
        await one.run(takes_too_much)
    assert await one.run(square, 3) == 9


async def test_a_limit_on_a_lanes_memory() -> None:
    """RLIMIT_AS: MemoryError for the call that wants more, alone; those beside it and after it run."""

    def limited() -> None:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (256 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    async with tm.Lanes(1, initializer=limited) as lanes:
        ends = await asyncio.gather(
            lanes.run(square, 2),
            lanes.run(bytearray, 1 << 30),
            lanes.run(lambda: len(bytearray(1 << 30))),
            lanes.run(len, bytes(10_000_000)),
            return_exceptions=True,
        )
        assert (ends[0], ends[3]) == (4, 10_000_000)
        assert isinstance(ends[1], MemoryError)
        assert isinstance(ends[2], MemoryError)
        assert lanes.statistics().lanes[0].restarts == 0
