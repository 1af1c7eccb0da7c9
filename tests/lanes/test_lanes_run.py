"""`Lanes.run`: any function, any argument, its own error, and a stop that stops."""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import signal
import sys
import threading
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
import numpy as np
import pytest

import tidemill as tm
from tidemill.errors import BadResult, CallError, LaneDied, RemoteError

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.asyncio(loop_scope="module")


def square(x: int) -> int:
    return x * x


class Accumulator:
    def __init__(self, total: int) -> None:
        self.total = total

    def plus(self, x: int) -> int:
        return self.total + x


async def settled(task: asyncio.Task) -> None:
    await asyncio.wait([task])


@pytest.mark.parametrize("count", [0, 2], ids=["inline", "processes"])
async def test_functions_of_every_kind(count: int) -> None:
    """Plain, lambda, closure, partial, builtin, bound method, class; positional and keyword arguments."""
    offset = 10
    accumulator = Accumulator(5)
    async with tm.Lanes(count) as lanes:
        assert await lanes.run(square, 3) == 9
        assert await lanes.run(lambda x: x + offset, 1) == 11
        assert await lanes.run(functools.partial(pow, 2), 5) == 32
        assert await lanes.run(divmod, 17, 5) == (3, 2)
        assert await lanes.run(accumulator.plus, 1) == 6
        accumulator.total = 6
        assert await lanes.run(accumulator.plus, 1) == 7  # a method's object travels each time
        assert (await lanes.run(Accumulator, total=4)).total == 4
        assert np.array_equal(await lanes.run(np.cumsum, np.arange(5)), [0, 1, 3, 6, 10])
        assert await lanes.run(dict, a=1, b=None) == {"a": 1, "b": None}


async def test_calls_run_in_other_processes(two: tm.Lanes) -> None:
    """Not here, and in more than one of them when they run at once."""
    pids = {await two.run(os.getpid) for _ in range(3)}
    assert os.getpid() not in pids


async def test_a_large_argument_and_a_large_result(two: tm.Lanes) -> None:
    """More than any socket's buffer, both ways at once."""
    arrays = [np.full(1_500_000, number, float) for number in range(4)]
    back = await asyncio.gather(*(two.run(np.negative, array) for array in arrays))
    assert [float(array.sum()) for array in back] == [-1_500_000.0 * number for number in range(4)]


async def test_a_class_sent_by_value_comes_back_as_the_same_class(two: tm.Lanes) -> None:
    """An instance of a class that no other process can import is still an instance of it on its return."""

    class Local:
        def __init__(self, x: int) -> None:
            self.x = x

    back = await two.run(lambda value: Local(value.x + 1), Local(1))
    assert type(back) is Local
    assert back.x == 2


async def test_an_exception_carries_the_lanes_traceback(two: tm.Lanes) -> None:
    """Type, arguments and notes are the user's; the cause shows where it happened."""

    def fails() -> None:
        error = KeyError("S12")
        error.add_note("sensor of line 3")
        raise error

    with pytest.raises(KeyError, match="S12") as caught:
        await two.run(fails)
    assert caught.value.__notes__ == ["sensor of line 3"]
    assert "in fails" in str(caught.value.__cause__)
    assert "call_worker" not in str(caught.value.__cause__)


async def test_a_module_that_lanes_do_not_find_is_told_with_what_to_do(
    one: tm.Lanes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One from a folder that this process looks into only since they were opened."""
    (tmp_path / "found_late.py").write_text("def f():\n    return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("found_late")
    with pytest.raises(ModuleNotFoundError) as caught:
        await one.run(module.f)
    assert "sys.path when they were opened" in caught.value.__notes__[0]
    assert await one.run(abs, -3) == 3


def fails_at_length(letters: int, numbers: int) -> NoReturn:
    raise ValueError("x" * letters, bytes(numbers))


async def test_a_very_large_exception_travels_as_the_ends_of_its_text(two: tm.Lanes) -> None:
    """It would be read on the loop's thread."""
    with pytest.raises(ValueError, match="x" * 20):
        await two.run(fails_at_length, 20, 1 << 20)
    with pytest.raises(RemoteError) as caught:
        await two.run(fails_at_length, 1 << 25, 0)
    assert caught.value.type_name == "ValueError"
    assert len(str(caught.value)) < 1.1 * (1 << 20)
    assert "ValueError: ('xxx" in str(caught.value)
    assert "characters left out" in str(caught.value)


async def test_an_exception_that_cannot_travel_is_told_in_words(two: tm.Lanes) -> None:
    """Unpicklable, and picklable but not readable: a RemoteError with the type, message and traceback."""

    class Unpicklable(Exception):
        def __init__(self) -> None:
            super().__init__("no way")
            self.lock = threading.Lock()

    class Unreadable(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__("no way back")

    def fails(kind: str) -> None:
        raise Unpicklable if kind == "unpicklable" else Unreadable(1, 2)

    for kind in ("unpicklable", "unreadable"):
        with pytest.raises(RemoteError, match="no way") as caught:
            await two.run(fails, kind)
        assert caught.value.type_name.endswith(kind.capitalize())
        assert "in fails" in str(caught.value.__cause__)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration(1), asyncio.CancelledError()])
async def test_what_would_break_the_application_arrives_as_an_error(two: tm.Lanes, error: BaseException) -> None:
    """sys.exit() in a function ends neither the lane nor the program."""

    def fails() -> None:
        raise error

    with pytest.raises(RemoteError) as caught:
        await two.run(fails)
    assert caught.value.type_name == type(error).__name__


async def test_a_result_that_cannot_travel_is_an_error_of_its_call(two: tm.Lanes) -> None:
    """It names the part, and the lane goes on."""
    before = two.statistics().lanes
    with pytest.raises(BadResult, match=r"the result\['lock'\], a lock, cannot be sent back"):
        await two.run(lambda: {"fine": 1, "lock": threading.Lock()})

    class Unreadable:
        def __reduce__(self) -> tuple:
            return (int, ("not a number",))

    with pytest.raises(BadResult, match="cannot be read here"):
        await two.run(Unreadable)
    assert [lane.restarts for lane in two.statistics().lanes] == [lane.restarts for lane in before]


async def test_an_argument_that_cannot_travel_is_refused_before_a_lane_has_it(two: tm.Lanes) -> None:
    """The message says which part of which argument."""
    done = sum(lane.done for lane in two.statistics().lanes)
    with pytest.raises(CallError, match=r"argument 1\['a'\]\[0\], a lock, cannot be sent to a lane"):
        await two.run(print, 1, {"a": [threading.Lock()]})
    with pytest.raises(CallError, match="argument where, a generator, cannot"):
        await two.run(print, where=(x for x in ()))
    lock = threading.Lock()
    with pytest.raises(CallError, match=r"the function .* cannot be sent"):
        await two.run(lambda: lock)
    with pytest.raises(CallError, match="Lanes stay in the process"):
        await two.run(print, two)
    assert sum(lane.done for lane in two.statistics().lanes) == done


async def test_prints_of_a_function_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """The application's output, which may be a pipe to another program, stays clean."""
    async with tm.Lanes(1) as lanes:
        await lanes.run(lambda: (sys.stdout.write("from Python\n"), os.write(1, b"from C\n")))
    out, err = capfd.readouterr()
    assert out == ""
    assert "from Python" in err
    assert "from C" in err


# -- stopping ------------------------------------------------------------------------------------------------


async def test_cancelling_a_running_call_kills_it_and_hurts_nobody(one: tm.Lanes, telephone, home) -> None:
    """The process is gone at once, the call that waited behind it runs in the next one."""
    restarts = one.statistics().lanes[0].restarts
    running = asyncio.create_task(one.run(home, telephone.port, "running"))
    await telephone.hear("running")
    behind = asyncio.create_task(one.run(square, 7))
    await asyncio.sleep(0)
    running.cancel()
    assert await behind == 49
    await settled(running)
    assert running.cancelled()
    assert one.statistics().lanes[0].restarts == restarts + 1
    assert telephone.calls == 1


async def test_cancelling_a_call_that_waits_means_it_never_runs(one: tm.Lanes, telephone, home) -> None:
    """Whether it waits in the lane's queue or before it; the running call is left alone."""
    restarts = one.statistics().lanes[0].restarts
    running = asyncio.create_task(one.run(home, telephone.port, "first"))
    await telephone.hear("first")
    others = [asyncio.create_task(one.run(home, telephone.port, f"never {number}")) for number in range(5)]
    await asyncio.sleep(0)
    for task in others:
        task.cancel()
    await asyncio.wait(others)
    await telephone.tell("first", "well")
    assert await running == "well"
    assert await one.run(square, 2) == 4
    assert telephone.calls == 1
    assert one.statistics().lanes[0].restarts == restarts


async def test_a_timeout_stops_a_function_in_a_tight_loop(one: tm.Lanes) -> None:
    """TimeoutError names the function; the lane is free again."""

    def spins() -> None:
        while True:
            pass

    with pytest.raises(TimeoutError, match=r"spins.*no result within 0\.05 s; the work was stopped"):
        await one.run(spins, timeout=0.05)
    assert await one.run(square, 3, timeout=60) == 9


async def test_a_timeout_counts_the_time_that_a_call_waits(one: tm.Lanes, telephone, home) -> None:
    """A call behind a long one times out without having run, and the long one goes on."""
    running = asyncio.create_task(one.run(home, telephone.port, "long"))
    await telephone.hear("long")
    with pytest.raises(TimeoutError):
        await one.run(home, telephone.port, "late", timeout=0.01)
    await telephone.tell("long")
    assert await running == "done"
    assert telephone.calls == 1


async def test_a_call_that_waits_moves_to_the_lane_that_falls_idle(two: tm.Lanes, telephone, home) -> None:
    """Nothing waits behind a long call while another lane has nothing to do."""
    tasks = {name: asyncio.create_task(two.run(home, telephone.port, name)) for name in "abcd"}
    await telephone.hear("a", "b")  # c waits behind a, d behind b
    await telephone.tell("b")
    await telephone.hear("d")
    await telephone.tell("d")
    await telephone.hear("c")
    await telephone.tell("c")
    assert await tasks["c"] == "done"
    assert not tasks["a"].done()
    await telephone.tell("a")
    assert await tasks["a"] == "done"


# -- refusals ------------------------------------------------------------------------------------------------


async def test_what_makes_no_sense_is_refused(two: tm.Lanes) -> None:
    """Each in one sentence, before anything runs."""
    with pytest.raises(CallError, match="without calling it"):
        await two.run(square(3))
    with pytest.raises(CallError, match="not open"):
        await tm.Lanes(1).run(square, 1)
    with pytest.raises(CallError, match="not open"):
        tm.Lanes(1).statistics()


async def test_closed_lanes_refuse_calls_and_end_those_in_flight(telephone, home) -> None:
    """Running and waiting calls raise CallError; closing again does nothing."""
    lanes = tm.Lanes(1)
    async with lanes:
        tasks = [asyncio.create_task(lanes.run(home, telephone.port, f"open {number}")) for number in range(4)]
        await telephone.hear_any(1)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [CallError] * 4
    assert "closed before this call had ended" in str(results[0])
    with pytest.raises(CallError, match="closed"):
        await lanes.run(square, 1)
    with pytest.raises(CallError, match="opened before"):
        await lanes.__aenter__()
    await lanes.aclose()


async def test_another_loop_is_refused(two: tm.Lanes) -> None:
    """With a hint at what works from other threads."""

    def elsewhere() -> None:
        with pytest.raises(CallError, match="another event loop"):
            asyncio.run(two.run(square, 1))

    await asyncio.to_thread(elsewhere)


async def test_closing_from_another_loop(two: tm.Lanes) -> None:
    """Refused while the lanes' own loop lives; once that is closed, it ends what was left open."""
    opened: list[tm.Lanes] = []

    async def leave_open() -> int:
        lanes = await tm.Lanes(1).__aenter__()
        opened.append(lanes)
        return await lanes.run(os.getppid)

    def elsewhere() -> int:
        with pytest.raises(CallError, match="another event loop"):
            asyncio.run(two.aclose())
        server = asyncio.run(leave_open())
        asyncio.run(opened[0].aclose())
        asyncio.run(opened[0].aclose())
        return server

    server = await asyncio.to_thread(elsewhere)
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
    assert await two.run(square, 3) == 9


async def test_two_loops_each_with_lanes(two: tm.Lanes) -> None:
    """Lanes of different loops know nothing of each other."""

    async def main() -> int:
        async with tm.Lanes(1) as lanes:
            return await lanes.run(square, 5)

    mine, other = await asyncio.gather(two.run(square, 4), asyncio.to_thread(lambda: asyncio.run(main())))
    assert (mine, other) == (16, 25)


async def test_lanes_within_lanes_are_refused(two: tm.Lanes) -> None:
    """With a hint at the direct call."""

    def nested() -> None:
        async def main() -> None:
            async with tm.Lanes(1):
                pass

        asyncio.run(main())

    with pytest.raises(CallError, match="no lanes within lanes"):
        await two.run(nested)


async def test_an_interrupt_is_for_the_parent_only(two: tm.Lanes) -> None:
    """SIGINT at a lane, as from Ctrl-C on the terminal's group, is ignored."""
    before = [lane.restarts for lane in two.statistics().lanes]
    assert await two.run(lambda: os.kill(os.getpid(), signal.SIGINT)) is None
    assert await two.run(square, 2) == 4
    assert [lane.restarts for lane in two.statistics().lanes] == before


async def test_statistics_are_frozen_and_add_up() -> None:
    """Calls that ended, in all lanes together; nothing in flight at rest."""
    async with tm.Lanes(2) as lanes:
        await asyncio.gather(*(lanes.run(square, number) for number in range(20)))
        read = lanes.statistics()
    assert sum(lane.done for lane in read.lanes) == 20
    assert [(lane.in_flight, lane.restarts) for lane in read.lanes] == [(0, 0), (0, 0)]
    assert all(0.0 <= lane.busy <= 1.0 and lane.pid for lane in read.lanes)
    assert read.waiting == 0
    with pytest.raises(AttributeError):
        read.waiting = 1  # type: ignore[misc]


async def test_died_error_survives_a_pickle() -> None:
    """Errors travel between processes as they are."""
    import pickle

    error = pickle.loads(pickle.dumps(LaneDied("gone", 9, None)))
    assert (str(error), error.signal, error.code) == ("gone", 9, None)


@pytest.mark.parametrize("lanes", [0, 2])
async def test_an_error_that_cannot_be_shown_is_an_error_all_the_same(lanes: int) -> None:
    """With half of a surrogate pair, as a file's name may have; with fields that the traceback's text stumbles over."""

    def named(name: str) -> None:
        raise OSError(f"no file {name}")

    def odd() -> None:
        error = SyntaxError("bad")
        error.filename, error.lineno, error.offset, error.text = "f", 1, "x", "abc"  # type: ignore[assignment]
        raise error

    async with tm.Lanes(lanes) as opened:
        with pytest.raises(OSError, match="no file"):
            await opened.run(named, "\udcff")
        with pytest.raises(SyntaxError, match="bad"):
            await opened.run(odd)
        assert await opened.run(square, 3) == 9


async def test_functions_that_are_new_each_time_push_no_other_out(one: tm.Lanes) -> None:
    """A process keeps a number of functions; one that is called again and again stays among them."""
    for number in range(200):
        calls = [one.run(square, number), one.run(lambda n=number: n), one.run(lambda n=number: -n)]
        assert await asyncio.gather(*calls) == [number * number, number, -number]


@pytest.mark.parametrize("timeout", [Decimal(50), Fraction(101, 2), np.float32(50)])
async def test_a_timeout_is_any_number(one: tm.Lanes, timeout: Any) -> None:  # noqa: ASYNC109
    """Of seconds."""
    predict = one.batched(lambda values: [-value for value in values], timeout=timeout)
    assert await one.run(square, 3, timeout=timeout) == 9
    assert [y async for y in one.stream(square, [3], timeout=timeout)] == [9]
    assert await predict(3) == -3
