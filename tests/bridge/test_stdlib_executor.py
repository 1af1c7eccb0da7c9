"""The standard library's own demands on an executor, in spirit, on ``lanes.executor()`` from threads and `LanesExecutor`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import LaneDied

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.timeout(200)


def square(x: int) -> int:
    return x * x


def divide_by(x: int) -> float:
    return 10 / x


def capture(*args: object, **kwargs: object) -> tuple:
    return args, kwargs


def spins() -> None:
    while True:
        pass


class Falsy(Exception):
    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


class _LoopThread:
    """A loop in a thread of its own, with open lanes: the executor is used from this one."""

    def __init__(self, lanes: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.lanes = self.ask(self._opened(lanes))

    async def _opened(self, lanes: int) -> tm.Lanes:
        return await tm.Lanes(lanes).__aenter__()

    def ask(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def close(self) -> None:
        self.ask(self.lanes.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def loop_thread() -> Iterator[_LoopThread]:
    made = _LoopThread(2)
    yield made
    made.close()


@pytest.fixture(params=["lanes", "LanesExecutor"])
def new(request: pytest.FixtureRequest) -> Iterator[Callable[[], concurrent.futures.Executor]]:
    """Makes executors of each kind; they are shut down after the test."""
    made: list[concurrent.futures.Executor] = []

    def make() -> concurrent.futures.Executor:
        if request.param == "lanes":
            made.append(request.getfixturevalue("loop_thread").lanes.executor())
        else:
            made.append(tm.LanesExecutor(2))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def own_pool() -> Iterator[concurrent.futures.Executor]:
    with tm.LanesExecutor(2) as pool:
        yield pool


@pytest.fixture(params=["lanes", "LanesExecutor"])
def pool(request: pytest.FixtureRequest) -> concurrent.futures.Executor:
    """One of each kind, shared by the tests of this file."""
    if request.param == "lanes":
        return request.getfixturevalue("loop_thread").lanes.executor()
    return request.getfixturevalue("own_pool")


# -- submit and map ------------------------------------------------------------------------------------------


def test_submit(pool) -> None:
    """Positional and keyword arguments, also those with the names of our own parameters."""
    assert pool.submit(pow, 2, 8).result(120) == 256
    assert pool.submit(capture, 1, self=2, fn=3, timeout=4, key=5).result(30) == (
        (1,),
        {"self": 2, "fn": 3, "timeout": 4, "key": 5},
    )
    with pytest.raises(TypeError):
        pool.submit()
    with pytest.raises(TypeError):
        pool.submit(arg=1)


def test_map(pool) -> None:
    """As the builtin: in order, of several iterables, as long as the shortest."""
    assert list(pool.map(pow, range(10), range(10))) == list(map(pow, range(10), range(10)))
    assert list(pool.map(pow, range(10), range(5))) == list(map(pow, range(5), range(5)))
    assert list(pool.map(square, range(40), chunksize=7)) == list(map(square, range(40)))
    assert list(pool.map(square, [])) == []


def test_map_exception(pool) -> None:
    """The results before it, then the error, then the end."""
    results = pool.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert [next(results), next(results)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize("buffersize", [None, 1])
def test_map_of_what_cannot_be_sent(pool, buffersize: int | None) -> None:
    """An error at its place: those before it have their results."""
    squares = pool.map(square, [1, 2, (x for x in ()), 4], buffersize=buffersize)
    assert [next(squares), next(squares)] == [1, 4]
    with pytest.raises(tm.CallError, match="generator"):
        next(squares)


def test_map_timeout(pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came in time, then TimeoutError; what was under way is stopped."""
    results = []
    now = 0.0
    monkeypatch.setattr("tidemill.engine.executor.time", SimpleNamespace(monotonic=lambda: now))

    def reads() -> None:
        nonlocal now
        for result in pool.map(lambda x: spins() if x else x, [0, 0, 1], timeout=50.0):
            results.append(result)
            now += 25.0

    with pytest.raises(concurrent.futures.TimeoutError):
        reads()
    assert results == [0, 0]
    assert pool.submit(square, 3).result(120) == 9


def test_map_is_left_early(pool) -> None:
    """Leaving it cancels what is left; the pool serves the next."""
    results = pool.map(lambda x: spins() if x > 1 else x, range(5))
    assert next(results) == 0
    results.close()
    assert list(pool.map(square, range(5))) == [0, 1, 4, 9, 16]


def test_submitting_from_a_callback_and_from_many_threads(pool) -> None:
    """Neither deadlocks; each has its own result."""
    second: concurrent.futures.Future[int] = concurrent.futures.Future()

    def again(done: concurrent.futures.Future[int]) -> None:
        pool.submit(square, done.result()).add_done_callback(lambda last: second.set_result(last.result()))

    pool.submit(square, 3).add_done_callback(again)
    assert second.result(120) == 81
    ends: dict[int, list[int]] = {}

    def thread(first: int) -> None:
        ends[first] = list(pool.map(square, range(first, first + 50)))

    threads = [threading.Thread(target=thread, args=(1000 * number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert ends == {first: [number**2 for number in range(first, first + 50)] for first in range(0, 8000, 1000)}


# -- errors --------------------------------------------------------------------------------------------------


def test_traceback(pool) -> None:
    """The remote traceback is the cause, and is shown with the error."""
    future = pool.submit(divide_by, 0)
    with pytest.raises(ZeroDivisionError) as caught:
        future.result(120)
    cause = caught.value.__cause__
    assert cause is not None
    assert "return 10 / x" in str(cause) or "in divide_by" in str(cause)
    assert "in divide_by" in "".join(traceback.format_exception(caught.value))
    assert future.exception(120) is caught.value


def test_a_falsy_exception(pool) -> None:
    """An error that is false, or of no length, is an error."""

    def raises() -> None:
        raise Falsy("of the test")

    with pytest.raises(Falsy, match="of the test"):
        pool.submit(raises).result(120)


def test_an_exception_group_and_notes(pool) -> None:
    """They travel as they are."""

    def raises() -> None:
        error = ExceptionGroup("two", [KeyError("a"), ValueError("b")])
        error.add_note("a note")
        raise error

    with pytest.raises(ExceptionGroup) as caught:
        pool.submit(raises).result(120)
    assert [type(error) for error in caught.value.exceptions] == [KeyError, ValueError]
    assert caught.value.__notes__ == ["a note"]


def test_a_killed_child(pool) -> None:
    """Where the standard library has a broken pool, this one tells the caller and goes on."""
    futures = [pool.submit(os._exit, 7) if number == 5 else pool.submit(square, number) for number in range(20)]
    for number, future in enumerate(futures):
        if number == 5:
            with pytest.raises(LaneDied, match="exit code 7"):
                future.result(120)
        else:
            assert future.result(120) == number * number


# -- wait, as_completed, callbacks, cancel -------------------------------------------------------------------


def test_wait(pool) -> None:
    """FIRST_COMPLETED, FIRST_EXCEPTION, ALL_COMPLETED, and a wait that times out."""
    quick, failing, held = pool.submit(square, 2), pool.submit(divide_by, 0), pool.submit(spins)
    finished, pending = concurrent.futures.wait([quick, held], return_when=concurrent.futures.FIRST_COMPLETED)
    assert (finished, pending) == ({quick}, {held})
    finished, pending = concurrent.futures.wait([failing, held], return_when=concurrent.futures.FIRST_EXCEPTION)
    assert (finished, pending) == ({failing}, {held})
    finished, pending = concurrent.futures.wait([quick, failing, held], timeout=0.01)
    assert pending == {held}
    assert held.cancel()
    finished, pending = concurrent.futures.wait([quick, failing, held], timeout=120)
    assert pending == set()


def test_as_completed(pool) -> None:
    """Each once, duplicates too, and a timeout for those that hang."""
    futures = [pool.submit(square, number) for number in range(20)]
    done = list(concurrent.futures.as_completed([*futures, *futures], timeout=120))
    assert len(done) == 20
    assert set(done) == set(futures)
    held = pool.submit(spins)
    completed = []
    with pytest.raises(concurrent.futures.TimeoutError):
        completed.extend(concurrent.futures.as_completed([futures[0], held], timeout=0.05))
    assert held.cancel()


def test_done_callbacks(pool) -> None:
    """In the order of adding, once each, at once when it is done; one that raises spoils none of the others."""
    seen: list[object] = []
    done = threading.Event()
    future = pool.submit(square, 4)
    future.result(120)
    future.add_done_callback(lambda done: seen.append(("after", done.result())))
    with contextlib.suppress(ZeroDivisionError):
        future.add_done_callback(lambda _: 1 / 0)
    assert seen == [("after", 16)]
    held = pool.submit(spins)
    for number in range(3):
        held.add_done_callback(lambda end, number=number: seen.append((number, end.cancelled())))
    held.add_done_callback(lambda _: done.set())
    assert held.cancel()
    assert done.wait(120)
    assert seen[1:] == [(0, True), (1, True), (2, True)]


def test_cancel(pool) -> None:
    """Waiting or running: cancelled, its result is a CancelledError, its work stops; done: too late."""
    held = [pool.submit(spins) for _ in range(6)]
    for future in reversed(held):
        assert future.cancel()
        assert future.cancelled()
        assert future.done()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(120)
    finished = pool.submit(square, 6)
    assert finished.result(120) == 36
    assert not finished.cancel()
    assert not finished.cancelled()


def test_result_in_time(pool) -> None:
    """TimeoutError from ``result`` and ``exception`` leaves the call as it is."""
    held = pool.submit(spins)
    for wait in (held.result, held.exception):
        with pytest.raises(concurrent.futures.TimeoutError):
            wait(0.01)
    assert not held.done()
    assert held.cancel()


def test_many_pending(pool) -> None:
    """Ten thousand at once, each its own."""
    futures = [pool.submit(square, number) for number in range(10_000)]
    assert [future.result(60) for future in futures] == [number * number for number in range(10_000)]


def test_no_stale_references(pool) -> None:
    """An argument is let go of when the call is over, though its future is kept."""

    class Token:
        pass

    token = Token()
    seen = weakref.ref(token)
    future = pool.submit(type, token)
    future.result(120)
    del token
    pool.submit(square, 1).result(120)
    gc.collect()
    assert seen() is None


# -- shutdown ------------------------------------------------------------------------------------------------


def test_after_the_shutdown(new) -> None:
    """RuntimeError, whether submitted or mapped; twice is once."""
    executor = new()
    assert executor.submit(square, 2).result(120) == 4
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError):
        executor.submit(square, 2)
    with pytest.raises(RuntimeError):
        executor.map(square, [2])


def test_shutdown_finishes_what_was_taken(new) -> None:
    """With ``wait``, without, and at the end of a ``with`` block."""
    executor = new()
    futures = [executor.submit(square, number) for number in range(100)]
    executor.shutdown(wait=True)
    assert all(future.done() for future in futures)
    executor = new()
    futures += [executor.submit(square, number) for number in range(100)]
    executor.shutdown(wait=False)
    with new() as executor:
        futures += [executor.submit(square, number) for number in range(100)]
        results = executor.map(abs, range(-5, 6))
    assert [future.result(120) for future in futures] == [number * number for number in range(100)] * 3
    assert list(results) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5]


def test_shutdown_cancels(new) -> None:
    """With ``cancel_futures`` those that hang end, as cancelled."""
    executor = new()
    done = executor.submit(square, 3)
    assert done.result(120) == 9
    held = [executor.submit(spins) for _ in range(10)]
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in held)
    assert done.result() == 9


def test_shutdown_while_others_submit(new) -> None:
    """Threads that submit meanwhile are refused or served; nothing hangs."""
    executor = new()
    taken: list[concurrent.futures.Future[int]] = []

    def submits() -> None:
        with contextlib.suppress(RuntimeError):
            for _ in range(2_000):
                taken.append(executor.submit(square, 5))  # noqa: PERF401 - those before the refusal count

    threads = [threading.Thread(target=submits) for _ in range(4)]
    for each in threads:
        each.start()
    concurrent.futures.wait([executor.submit(square, 1)], timeout=30)
    executor.shutdown(wait=False)
    for each in threads:
        each.join(120)
    ends = [future.exception(120) for future in taken]
    assert all(end is None or isinstance(end, tm.CallError) for end in ends)


# -- of LanesExecutor alone ----------------------------------------------------------------------------------


def test_an_executor_that_is_forgotten(processes) -> None:
    """Without a shutdown: its processes and its thread end when it is let go of."""
    before = set(threading.enumerate())
    executor = tm.LanesExecutor(1)
    server = executor.submit(os.getppid).result(120)
    (thread,) = set(threading.enumerate()) - before
    assert thread.name == "tidemill-lanes"
    del executor
    gc.collect()
    asyncio.run(processes.gone(server))
    thread.join(120)
    assert not thread.is_alive()


def test_within_an_asyncio_program(own_pool) -> None:
    """``run_in_executor`` with it, also while the loop's own thread may wait: its loop is another."""

    async def main() -> tuple:
        loop = asyncio.get_running_loop()
        awaited = await asyncio.gather(*(loop.run_in_executor(own_pool, square, number) for number in range(20)))
        return awaited, own_pool.submit(square, 5).result(120)

    assert asyncio.run(main()) == ([number * number for number in range(20)], 25)


@pytest.mark.parametrize("how", ["forgotten", "pending", "atexit", "exit", "error", "thread"])
def test_the_end_of_the_program(program, processes, how: str) -> None:
    """As with the standard library's: what was submitted is finished, then everything ends by itself."""
    ends = {
        "forgotten": "",
        "pending": "futures = [pool.submit(work, number) for number in range(5)]",
        "atexit": "import atexit; atexit.register(lambda: print('atexit'))",
        "exit": "futures = [pool.submit(work, number) for number in range(5)]; sys.exit(3)",
        "error": "raise RuntimeError('mine')",
        "thread": "import queue, threading; taken = queue.Queue(); "
        "threading.Thread(target=lambda: (taken.put(results := pool.map(work, range(3))), list(results))).start(); taken.get()",
    }
    app = program(f"""
import os, sys
import tidemill as tm

def work(number):
    print("ran", number, file=sys.stderr)
    return number

pool = tm.LanesExecutor(2)
print(pool.submit(os.getppid).result(), flush=True)
{ends[how]}
""")
    server = int(app.line())
    end = app.ended()
    assert end.code == {"exit": 3, "error": 1}.get(how, 0)
    assert "Exception" not in end.err
    assert end.err.count("ran") == {"pending": 5, "exit": 5, "thread": 3}.get(how, 0)
    asyncio.run(processes.gone(server))


def test_a_loop_that_was_closed_is_told_each_time() -> None:
    """Without its lanes: no call waits for it, neither one that was made before nor any after."""

    async def opened() -> tuple[tm.Lanes, concurrent.futures.Executor]:
        lanes = await tm.Lanes(1).__aenter__()
        return lanes, lanes.executor()

    def thread() -> None:
        for _ in range(3):
            with pytest.raises(tm.CallError, match="loop of these lanes is closed"):
                executor.submit(square, 1)

    loop = asyncio.new_event_loop()
    lanes, executor = loop.run_until_complete(opened())
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        late = threads.submit(executor.submit, square, 2).result()
        loop.close()
        threads.submit(thread).result()
    with pytest.raises(tm.CallError, match="closed"):
        late.result(120)
    asyncio.run(lanes.aclose())
