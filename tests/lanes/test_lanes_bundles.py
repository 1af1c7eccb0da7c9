"""Calls of a stream that go to a lane together are calls of their own all the same."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cloudpickle
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
    assert messages < 1_000


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

    def fn(x: int) -> int:
        note(effects, x)
        while x == 300 and not tm.cancelled():
            pass
        return x

    stream = one.stream(fn, range(1_000))
    assert [await anext(stream) for _ in range(300)] == list(range(300))
    await stream.aclose()
    assert await one.run(abs, -1) == 1
    assert noted(effects) in (Counter(range(300)), Counter(range(301)))  # it may not have been begun


async def test_arguments_that_cannot_be_read_fail_alone(two: tm.Lanes) -> None:
    """The others of the message do not see it."""

    class Unreadable:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    values = [Unreadable() if x % 40 == 39 else x for x in range(400)]
    results = [result async for result in two.stream(lambda x: x, values, return_exceptions=True)]
    assert all(isinstance(results[x], ValueError) if x % 40 == 39 else results[x] == x for x in range(400))
