"""Calls of a stream that go to a lane together are calls of their own all the same."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import tidemill as tm
from tidemill.errors import BadResult, LaneDied

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.asyncio(loop_scope="module")

DEATHS = {
    "exit": lambda: os._exit(9),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
}


def note(path: Path, number: int) -> None:
    """An effect outside: one line, at once."""
    with path.open("a", buffering=1) as file:
        file.write(f"{number}\n")


def noted(path: Path) -> Counter[int]:
    return Counter(map(int, path.read_text().split()))


async def all_of(lanes: tm.Lanes, fn: Any, count: int, window: int = 64) -> list[Any]:
    return [result async for result in lanes.stream(fn, range(count), window=window, return_exceptions=True)]


async def test_short_calls_go_together(two: tm.Lanes) -> None:
    """Many to a message."""
    before = [(lane.done, lane.items) for lane in two.statistics().lanes]
    assert await all_of(two, lambda x: x + 1, 2_000) == [x + 1 for x in range(2_000)]
    after = [(lane.done, lane.items) for lane in two.statistics().lanes]
    messages, calls = (sum(new[which] - old[which] for new, old in zip(after, before, strict=True)) for which in (0, 1))
    assert calls == 2_000
    assert messages < 2_000  # how many go together depends on what they cost, here and now


@pytest.mark.parametrize("death", DEATHS)
async def test_each_call_has_its_effect_once_through_deaths(two: tm.Lanes, tmp_path: Path, death: str) -> None:
    """What was finished before a death in the same message keeps its result; the call that died is told alone."""
    effects, deadly, die = tmp_path / "effects", {150, 151, 290, 399}, DEATHS[death]

    def fn(x: int) -> int:
        note(effects, x)
        if x in deadly:
            die()
        return -x

    results = await all_of(two, fn, 400)
    assert {x for x, result in enumerate(results) if isinstance(result, LaneDied)} == deadly
    assert [result for result in results if not isinstance(result, LaneDied)] == [
        -x for x in range(400) if x not in deadly
    ]
    assert noted(effects) == Counter(range(400))


async def test_one_that_dies_alone_takes_none_with_it(two: tm.Lanes) -> None:
    """The first of a stream goes alone, and those behind it wait."""

    def fn(x: int) -> int:
        if x in (0, 1):
            os._exit(3)
        return x

    results = await all_of(two, fn, 100)
    assert [type(result) for result in results[:2]] == [LaneDied, LaneDied]
    assert results[2:] == list(range(2, 100))


async def test_results_that_have_no_room_to_wait_are_sent_and_stay_in_their_places(
    two: tm.Lanes, tmp_path: Path
) -> None:
    """Small ones make large bundles; then come large ones, one too large for all of the room, and a death among them."""
    effects = tmp_path / "effects"

    def fn(x: int) -> bytes | int:
        note(effects, x)
        if x == 209:
            os._exit(4)
        if x == 205:
            return bytes([7]) * 100_000
        return x if x < 200 else bytes([x % 256]) * 10_000

    results = await all_of(two, fn, 400)
    assert isinstance(results[209], LaneDied)
    assert results[205] == bytes([7]) * 100_000
    assert results[:200] == list(range(200))
    assert all(results[x] == bytes([x % 256]) * 10_000 for x in range(200, 400) if x not in (205, 209))
    assert noted(effects) == Counter(range(400))


async def test_a_call_that_takes_its_time_holds_no_result_of_those_before_it(two: tm.Lanes, tmp_path: Path) -> None:
    """They were finished in the same message."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def fn(x: int) -> int:
        if x == 300:
            gate.read_bytes()  # until somebody has opened and closed the other end
        return x

    stream = two.stream(fn, range(400))
    assert [await anext(stream) for _ in range(300)] == list(range(300))
    await asyncio.to_thread(gate.write_bytes, b"")
    assert [result async for result in stream] == list(range(300, 400))


async def test_errors_belong_to_their_own_calls(two: tm.Lanes, tmp_path: Path) -> None:
    """What raises, what leaves the process, what cannot be sent back; and one that forks is run on by one of both."""
    effects = tmp_path / "effects"

    def fn(x: int) -> Any:
        note(effects, x)
        match x % 50:
            case 11:
                raise ValueError(x)
            case 22:
                sys.exit(x)
            case 33:
                return (number for number in ())
            case 44 if os.fork() == 0:
                return "the child, whose answer is nobody's"
        return x

    results = await all_of(two, fn, 500)
    for x, result in enumerate(results):
        match x % 50:
            case 11:
                assert isinstance(result, ValueError)
                assert result.args == (x,)
            case 22:
                assert isinstance(result, tm.RemoteError)
            case 33:
                assert isinstance(result, BadResult)
            case _:
                assert result == x
    assert noted(effects) == Counter(range(500))


async def test_who_leaves_early_stops_what_was_not_begun(one: tm.Lanes, tmp_path: Path) -> None:
    """Of a message, all behind the call that was running; that one can see it, and leave by itself."""
    effects = tmp_path / "effects"
    wanted = set(range(300))

    def fn(x: int) -> int:
        note(effects, x)
        while x >= 300 and wanted <= set(noted(effects)) and not tm.cancelled():  # those before it may come behind it
            pass
        return x

    stream = one.stream(fn, range(1_000))
    assert [await anext(stream) for _ in range(300)] == list(range(300))
    await stream.aclose()
    assert await one.run(abs, -1) == 1
    begun = list(noted(effects))
    late = [place for place, x in enumerate(begun) if x < 300][-1] + 1
    assert begun[late + 1 :] == []  # but the one that was running then, if it had begun
    assert len(begun) == noted(effects).total()


async def test_arrays_may_be_written_to_and_lie_where_they_should(two: tm.Lanes) -> None:
    """Whatever goes along with them, and however their results came."""

    def fn(x: Any) -> Any:
        if isinstance(x, dict):
            assert x["a"].flags.aligned
            assert x["a"].flags.writeable
            return {"a": x["a"] + 1}
        return x

    values = [{"a": np.arange(3.0)} if x % 3 else "y" * (x % 7) for x in range(400)]
    results = [result async for result in two.stream(fn, values)]
    for value, result in zip(values, results, strict=True):
        if isinstance(value, dict):
            assert result["a"].flags.aligned
            result["a"] += 1
            assert result["a"].tolist() == [2.0, 3.0, 4.0]
        else:
            assert result == value


async def test_a_stream_has_its_turn_beside_calls_that_never_end(two: tm.Lanes) -> None:
    """Others keep all lanes full, and more waits."""
    ended = asyncio.Event()

    async def loop() -> None:
        while not ended.is_set():
            await two.run(sum, range(10_000))

    others = [asyncio.create_task(loop()) for _ in range(16)]
    assert await all_of(two, lambda x: x + 1, 200) == [x + 1 for x in range(200)]
    assert await asyncio.gather(*(all_of(two, lambda x: x + 1, 200) for _ in range(3)))
    ended.set()
    await asyncio.gather(*others)


async def test_when_no_process_can_be_had_all_calls_of_a_stream_are_told() -> None:
    """Those that were sent, and those that waited to be."""
    with tempfile.TemporaryDirectory() as folder:
        gone = Path(folder) / "gone"

        def initialize() -> None:
            if gone.exists():
                raise RuntimeError("no licence")

        def fn(x: int) -> int:
            gone.touch()
            os._exit(1)

        async with tm.Lanes(2, initializer=initialize) as lanes:
            results = await asyncio.wait_for(all_of(lanes, fn, 200), 60)
    assert all(isinstance(result, (LaneDied, tm.CallError)) for result in results)
    assert any("no licence" in str(result) for result in results)


async def test_memory_that_a_dying_call_has_written_over_makes_no_call_run_twice(two: tm.Lanes, tmp_path: Path) -> None:
    """Nobody can say then which of them were run: all that are left of the message are told of the death."""
    effects = tmp_path / "effects"

    def fn(x: int) -> int:
        note(effects, x)
        if x == 300:
            import gc

            from tidemill.lanes.finished import Finished

            (finished,) = (found for found in gc.get_objects() if isinstance(found, Finished))
            finished._cells[0] = 10**9
            os._exit(2)
        return x

    results = await all_of(two, fn, 400)
    died = {x for x, result in enumerate(results) if isinstance(result, LaneDied)}
    assert 300 in died
    assert all(result == x for x, result in enumerate(results) if x not in died)
    assert set(noted(effects).values()) == {1}


async def test_arguments_are_let_go_when_they_are_sent(two: tm.Lanes) -> None:
    """A reader that takes its time holds results, and nothing else."""
    arrays: list[weakref.ref[np.ndarray]] = []

    def source() -> Iterator[np.ndarray]:
        for number in range(32):
            array = np.full(40_000, float(number))  # packed, it is still the array's own memory
            arrays.append(weakref.ref(array))
            yield array

    def done() -> int:
        return sum(lane.items for lane in two.statistics().lanes)

    before = done()
    stream = two.stream(lambda array: float(array.sum()), source(), window=32)
    assert await anext(stream) == 0.0
    while done() < before + 32:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)
    # All but the source's own; what was taken back from a busy lane goes when that one reads on.
    while sum(array() is not None for array in arrays) > 1:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)
    assert [result async for result in stream] == [40_000.0 * number for number in range(1, 32)]


async def test_arguments_that_cannot_be_read_fail_alone(two: tm.Lanes) -> None:
    """The others of the message do not see it."""

    class Unreadable:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    values = [Unreadable() if x % 40 == 39 else x for x in range(400)]
    results = [result async for result in two.stream(lambda x: x, values, return_exceptions=True)]
    assert all(isinstance(results[x], ValueError) if x % 40 == 39 else results[x] == x for x in range(400))
