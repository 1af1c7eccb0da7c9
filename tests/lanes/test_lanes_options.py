"""The options of `tidemill.Lanes`: how processes begin, when they are replaced, what may wait, how a call is stopped."""

from __future__ import annotations

import asyncio
import collections
import functools
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import tidemill as tm
from tidemill.errors import CallError, LaneDied, LanesFull

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]


def square(x: int) -> int:
    return x * x


def noted(path: str, what: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{what} {os.getpid()}\n")


def notes(path: str) -> list[list[str]]:
    return [line.split() for line in Path(path).read_text().splitlines()]


# -- how processes begin -----------------------------------------------------------------------------------


async def test_the_initializer_runs_once_in_each_process_before_its_calls(tmp_path: Path) -> None:
    """In replacements too; the block is entered when all lanes are ready."""
    log = str(tmp_path / "log")

    def setup(path: str, value: int) -> None:
        import builtins

        noted(path, "setup")
        builtins.prepared = value  # type: ignore[attr-defined]

    def prepared() -> tuple[int, int]:
        import builtins

        return os.getpid(), builtins.prepared  # type: ignore[attr-defined]

    async with tm.Lanes(2, initializer=setup, initargs=(log, 42)) as lanes:
        assert len(notes(log)) >= 2
        seen = set()
        for _ in range(4):
            pid, value = await lanes.run(prepared)
            assert value == 42
            seen.add(pid)
            os.kill(pid, signal.SIGKILL)
            assert (await lanes.run(prepared))[1] == 42
    pids = [pid for _, pid in notes(log)]
    assert len(pids) == len(set(pids))
    assert seen <= set(map(int, pids))


MODEL: Any = None
SCALES: dict[str, float] = {}


def load(model: Any) -> None:
    global MODEL  # noqa: PLW0603 - as initializers do
    MODEL = model
    SCALES["S1"] = 2.0


def loaded(x: int) -> tuple[int, Any, dict[str, float]]:
    return x, MODEL, SCALES


class Loaded:
    def __call__(self, x: int) -> tuple[int, Any, dict[str, float]]:
        return loaded(x)


@pytest.mark.parametrize("count", [0, 1], ids=["inline", "process"])
async def test_what_the_initializer_stores_in_globals_is_there_for_all_functions(count: int) -> None:
    """By each door, though every function comes with its module's globals as they are here; also in the next process."""
    there = (1, "model", {"S1": 2.0})
    async with tm.Lanes(count, initializer=load, initargs=("model",), recycle_after=20) as lanes:
        for process in range(1 + count):
            assert await lanes.run(loaded, 1) == there
            assert await lanes.run(functools.partial(lambda x, y: loaded(x * y), 1, 1)) == there
            assert await lanes.run(lambda: (1, MODEL, SCALES)) == there
            assert [value async for value in lanes.stream(loaded, [1])] == [there]
            assert await lanes.batched(lambda xs: list(map(loaded, xs)))(1) == there
            if count:  # inline, a class is the one that is here
                assert await lanes.keyed(Loaded)("S1", 1) == there
            assert await asyncio.wrap_future(lanes.executor().submit(loaded, 1)) == there
            if count and not process:
                with pytest.raises(LaneDied):
                    await lanes.run(os._exit, 1)
    assert (MODEL, SCALES) == (None, {})


async def test_what_the_initializer_stores_need_not_travel() -> None:
    """An object whose class uses it comes back without it."""

    def opens() -> None:
        load(threading.Lock())

    async with tm.Lanes(1, initializer=opens) as lanes:
        there, back = await lanes.run(lambda: (MODEL is not None, Loaded()))
    assert there
    assert type(back) is Loaded
    assert back(1) == (1, None, {})


async def test_globals_that_the_initializer_leaves_alone_are_as_they_were_sent() -> None:
    """Also those that it reads; and what another function stores is its own."""

    def reads() -> int:
        return len(SCALES)

    async with tm.Lanes(1, initializer=reads) as lanes:
        await lanes.run(load, "model")
        assert await lanes.run(loaded, 1) == (1, None, {})
        SCALES["S2"] = 3.0
        try:
            assert await lanes.run(lambda: SCALES) == {"S2": 3.0}
        finally:
            SCALES.clear()


@pytest.mark.parametrize("count", [0, 1], ids=["inline", "process"])
async def test_an_initializer_that_raises_is_one_clear_failure(count: int) -> None:
    """With its own traceback as the cause; there are no lanes then, and no processes."""

    def setup() -> None:
        raise OSError("no model")

    with pytest.raises(CallError, match=r"initializer .*setup raised OSError: no model") as caught:
        async with tm.Lanes(count, initializer=setup):
            pass
    assert isinstance(caught.value.__cause__, OSError)
    assert "in setup" in str(caught.value.__cause__.__cause__)


async def test_an_initializer_that_dies_is_one_clear_failure() -> None:
    """With the exit code."""
    with pytest.raises(LaneDied, match=r"initializer _exit ended its process \(exit code 9\)") as caught:
        async with tm.Lanes(1, initializer=os._exit, initargs=(9,)):
            pass
    assert caught.value.code == 9


async def test_an_initializer_that_fails_later_is_told_to_the_calls_that_wait(tmp_path: Path) -> None:
    """All of them; when it works again, so do the lanes."""
    broken = tmp_path / "broken"

    def setup(path: str) -> None:
        if Path(path).exists():
            raise RuntimeError("the licence server is down")

    async with tm.Lanes(1, initializer=setup, initargs=(str(broken),)) as lanes:
        broken.touch()
        spare_too = [asyncio.create_task(lanes.run(os._exit, 3)) for _ in range(2)]
        waiting = [asyncio.create_task(lanes.run(square, x)) for x in range(3)]
        died = await asyncio.gather(*spare_too, return_exceptions=True)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(died[0], LaneDied)
        assert isinstance(died[1], (LaneDied, CallError))  # the spare may have been caught by it already
        assert all(isinstance(error, CallError) and "licence server" in str(error) for error in results)
        broken.unlink()
        result: object = None
        while result != 4:
            (result,) = await asyncio.gather(lanes.run(square, 2), return_exceptions=True)


async def test_modules_are_loaded_before_the_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all processes; one that cannot be imported is named."""
    (tmp_path / "heavy.py").write_text(f"import os\nopen({str(tmp_path / 'log')!r}, 'a').write('x')\npid = os.getpid()")
    monkeypatch.syspath_prepend(str(tmp_path))

    def loaded() -> tuple[bool, int, int]:
        module = sys.modules.get("heavy")
        return module is not None, getattr(module, "pid", 0), os.getppid()

    async with tm.Lanes(2, preload=["heavy"]) as lanes:
        is_loaded, by, server = await lanes.run(loaded)
    assert is_loaded
    assert by == server
    assert (tmp_path / "log").read_text() == "x"
    with pytest.raises(CallError, match=r"preload: the module 'nothing_here' could not be imported \(ModuleNotFound"):
        async with tm.Lanes(1, preload=["nothing_here"]):
            pass


# -- recycling ---------------------------------------------------------------------------------------------


async def test_recycling_loses_and_repeats_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Under load, by count: every call has its own value and ran once; processes are new every so often."""
    log = tmp_path / "log"

    def noting(path: str, x: int) -> int:
        noted(path, str(x))
        return x

    caplog.set_level("INFO", "tidemill")
    async with tm.Lanes(2, recycle_after=20) as lanes:
        values = await asyncio.gather(*(lanes.run(noting, str(log), x) for x in range(400)))
        while sum(lane.recycled for lane in lanes.statistics().lanes) < 2:  # the next process comes when it comes
            values.append(await lanes.run(noting, str(log), len(values)))
        read = lanes.statistics()
    assert values == list(range(len(values)))
    runs = collections.Counter(line.split()[0] for line in log.read_text().splitlines())
    assert (len(runs), set(runs.values())) == (len(values), {1})
    recycled = sum(lane.recycled for lane in read.lanes)
    assert [lane.restarts for lane in read.lanes] == [0, 0]
    assert sum("was replaced after" in record.message for record in caplog.records) == recycled


async def test_a_process_that_has_grown_is_replaced() -> None:
    """By resident memory, and the memory is given back."""

    def grow() -> int:
        sys.grown = bytearray(os.urandom(1 << 20) * 400)  # type: ignore[attr-defined]
        return os.getpid()

    async with tm.Lanes(1, recycle_rss=350 << 20) as lanes:
        grown = await lanes.run(grow)
        while await lanes.run(os.getpid) == grown:
            pass
        assert lanes.statistics().lanes[0].recycled == 1
        assert lanes.statistics().lanes[0].restarts == 0


# -- a key stays in its lane -------------------------------------------------------------------------------


async def test_calls_of_one_key_run_in_one_lane_in_order() -> None:
    """Also through deaths and cancels, and whatever else runs."""

    def append(key: str, x: int) -> tuple[int, list[int]]:
        import builtins

        kept = builtins.__dict__.setdefault("kept", {})
        kept.setdefault(key, []).append(x)
        return os.getpid(), list(kept[key])

    async with tm.Lanes(3, grace=0) as lanes:
        others = [asyncio.create_task(lanes.run(square, x)) for x in range(100)]
        tasks = {key: [asyncio.create_task(lanes.run(append, key, x, key=key)) for x in range(20)] for key in "abcdef"}
        await asyncio.sleep(0)
        for key in "abc":
            tasks[key][13].cancel()
        killer = asyncio.create_task(lanes.run(os._exit, 5, key="a"))
        for key in "abcdef":
            results = await asyncio.gather(*tasks[key], return_exceptions=True)
            made = [result for result in results if isinstance(result, tuple)]
            assert len(made) >= 19
            by_process: dict[int, list[int]] = {}
            for pid, seen in made:
                by_process[pid] = seen
                assert seen == sorted(seen)
        with pytest.raises(LaneDied):
            await killer
        assert await asyncio.gather(*others) == [x * x for x in range(100)]
        lanes._crew.calls.validate()  # type: ignore[union-attr]


async def test_a_key_and_recycling_are_refused_together() -> None:
    """With a hint at what keeps state."""
    async with tm.Lanes(1, recycle_after=5) as lanes:
        with pytest.raises(CallError, match=r"lanes\.keyed"):
            await lanes.run(square, 1, key="S12")
        with pytest.raises(CallError, match="text or bytes"):
            await lanes.run(square, 1, key=3)  # type: ignore[arg-type]


# -- how much may wait -------------------------------------------------------------------------------------


async def test_callers_wait_in_line_when_enough_waits(telephone, home) -> None:
    """First come, first served; one that gives up lets the next one in; a timeout counts from the call."""
    async with tm.Lanes(1, max_waiting=2) as lanes:
        held = [asyncio.create_task(lanes.run(home, telephone.port, f"held {number}")) for number in range(2)]
        (name,) = await telephone.hear_any(1)
        order: list[int] = []

        async def called(x: int, timeout: float | None = None) -> None:  # noqa: ASYNC109
            order.append(await lanes.run(square, x, timeout=timeout))

        tasks = [asyncio.create_task(called(x)) for x in range(8)]
        await asyncio.sleep(0)
        read = lanes.statistics()
        assert (read.waiting, read.blocked) == (2, 6)
        tasks[3].cancel()
        with pytest.raises(TimeoutError, match="no result within"):
            await called(99, 0.01)
        await asyncio.wait([tasks[3]])
        await telephone.tell(name)
        await telephone.hear_any(1)
        await telephone.tell(next(iter(telephone.lines)))
        await asyncio.wait(tasks + held)
        assert order == [x * x for x in range(8) if x != 3]
        assert lanes.statistics().blocked == 0


async def test_calls_are_refused_when_enough_waits(telephone, home) -> None:
    """By count and by bytes; each refusal is counted."""
    for options in ({"max_waiting": 3}, {"max_waiting_bytes": 2500}):
        async with tm.Lanes(1, when_full="reject", **options) as lanes:
            held = asyncio.create_task(lanes.run(home, telephone.port, "held"))
            await telephone.hear("held")
            tasks = [asyncio.create_task(lanes.run(len, b"x" * 1000)) for _ in range(6)]
            await asyncio.sleep(0)
            assert lanes.statistics().waiting == 3
            await telephone.tell("held")
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert results[:4] == [1000] * 4  # one was in the lane already
            assert all(isinstance(error, LanesFull) and "was refused" in str(error) for error in results[4:])
            assert lanes.statistics().rejected == 2
            await held


async def test_the_oldest_makes_room_for_the_newest(telephone, home) -> None:
    """Its caller is told, and it is counted."""
    async with tm.Lanes(1, max_waiting=2, when_full="drop_oldest") as lanes:
        held = asyncio.create_task(lanes.run(home, telephone.port, "held"))
        await telephone.hear("held")
        tasks = [asyncio.create_task(lanes.run(square, x)) for x in range(6)]
        await asyncio.sleep(0)
        await telephone.tell("held")
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [results[0], *results[4:]] == [0, 16, 25]
        assert all(isinstance(error, LanesFull) and "dropped" in str(error) for error in results[1:4])
        assert lanes.statistics().dropped == 3
        await held


# -- stopping ----------------------------------------------------------------------------------------------


async def test_a_function_can_see_that_nobody_waits_for_it(tmp_path: Path, telephone, home, time_passes) -> None:
    """It leaves by itself within the grace: its process lives on, and the lane takes the next call."""
    told = str(tmp_path / "told")

    def looks(path: str, port: int) -> None:
        noted(path, home(port, "began"))
        while not tm.cancelled():
            pass
        noted(path, "left")

    async with tm.Lanes(1, grace=60) as lanes:
        pid = await lanes.run(os.getpid)
        call = asyncio.ensure_future(lanes.run(looks, told, telephone.port, timeout=1000))
        await telephone.hear("began")
        time_passes(lanes)
        with pytest.raises(TimeoutError):
            await call
        await telephone.tell("began", "began")
        assert await lanes.run(os.getpid) == pid
        assert await lanes.run(tm.cancelled) is False
        assert lanes.statistics().lanes[0].restarts == 0
    assert [what for what, _ in notes(told)] == ["began", "left"]
    assert tm.cancelled() is False


async def test_what_waits_behind_a_call_that_is_being_stopped_runs_elsewhere(telephone, home) -> None:
    """At once, not after the grace."""
    async with tm.Lanes(2, grace=600) as lanes:
        tasks = [asyncio.create_task(lanes.run(home, telephone.port, name)) for name in ("a", "b")]
        await telephone.hear("a", "b")
        behind = [asyncio.create_task(lanes.run(square, x)) for x in range(4)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await telephone.tell("b")
        assert await asyncio.gather(*behind) == [0, 1, 4, 9]
        await telephone.tell("a")
        while await lanes.run(square, 3) != 9 or len(lanes._crew.calls.in_flight()) < 2:  # type: ignore[union-attr]
            pass
