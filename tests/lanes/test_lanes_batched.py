"""`Lanes.batched`: one call a record, and every answer is the caller's own."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

import cloudpickle
import numpy as np
import pytest

import tidemill as tm
from tidemill.errors import BadResult, CallError, LaneDied

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.asyncio(loop_scope="module")


def doubled(records: list[int]) -> list[int]:
    return [2 * record for record in records]


@pytest.mark.parametrize("count", [0, 1, 2], ids=["inline", "one", "two"])
async def test_every_record_gets_its_own_value(count: int) -> None:
    """Thousands at once, in both orders of arrival."""
    async with tm.Lanes(count) as lanes:
        predict = lanes.batched(doubled, max_batch=100)
        assert await predict(21) == 42
        assert await asyncio.gather(*map(predict, range(3000))) == [2 * number for number in range(3000)]
        assert sum(lane.done for lane in lanes.statistics().lanes) < 500  # calls, not records


async def test_batches_grow_with_the_load(one: tm.Lanes, telephone, home) -> None:
    """Alone when all is quiet; together what gathered while the lane was busy; never more than max_batch."""

    def sizes(records: list[int]) -> list[int]:
        return [len(records)] * len(records)

    size = one.batched(sizes, max_batch=10)
    assert await size(0) == 1
    running = asyncio.create_task(one.run(home, telephone.port, "busy"))
    await telephone.hear("busy")
    futures = [size(number) for number in range(25)]
    await asyncio.sleep(0)
    await telephone.tell("busy")
    await running
    seen = await asyncio.gather(*futures)
    assert max(seen) == 10


async def test_an_error_belongs_to_its_record(two: tm.Lanes) -> None:
    """A list that raises is tried one by one; only the culprit's caller hears of it."""

    def inverted(records: list[int]) -> list[float]:
        return [1 / record for record in records]

    invert = two.batched(inverted)
    results = await asyncio.gather(*map(invert, [1, 2, 0, 4]), return_exceptions=True)
    assert isinstance(results.pop(2), ZeroDivisionError)
    assert results == [1.0, 0.5, 0.25]


async def test_a_record_that_kills_the_process_fails_alone(two: tm.Lanes) -> None:
    """The batch is taken apart after the death: the others have their values."""

    def deadly(records: list[int]) -> list[int]:
        if 5 in records:
            os._exit(9)
        return records

    call = two.batched(deadly)
    results = await asyncio.gather(*map(call, range(10)), return_exceptions=True)
    died = results.pop(5)
    assert isinstance(died, LaneDied)
    assert died.code == 9
    assert results == [0, 1, 2, 3, 4, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("returned", "told"), [([1, 2, 3], "got 1 and returned 3"), (None, "NoneType"), ("x", "str"), ({1: 2}, "dict")]
)
async def test_a_wrong_answer_is_told_clearly(two: tm.Lanes, returned: object, told: str) -> None:
    """Too many values, none, or something else than a list."""
    with pytest.raises(BadResult, match=told):
        await two.batched(lambda _: returned)("record")


async def test_a_value_that_cannot_travel_fails_alone(two: tm.Lanes) -> None:
    """The other values of the batch arrive."""

    def locks(records: list[int]) -> list:
        return [threading.Lock() if record == 1 else record for record in records]

    results = await asyncio.gather(*map(two.batched(locks), range(3)), return_exceptions=True)
    assert isinstance(results.pop(1), BadResult)
    assert results == [0, 2]


async def test_an_array_of_values_will_do(two: tm.Lanes) -> None:
    """Vectorised functions return arrays."""
    square = two.batched(np.square)
    assert await asyncio.gather(*map(square, range(5))) == [0, 1, 4, 9, 16]


async def test_a_record_that_cannot_be_sent_is_refused_at_its_call(two: tm.Lanes) -> None:
    """The others are not held up."""
    predict = two.batched(doubled)
    fine = predict(1)
    with pytest.raises(CallError, match="the record"):
        predict(threading.Lock())
    assert await fine == 2


async def test_callers_that_give_up_move_nobodys_result(one: tm.Lanes, telephone, home) -> None:
    """Cancelled before the batch is formed, and while it runs: each of the others gets its own value."""
    predict = one.batched(doubled)
    running = asyncio.create_task(one.run(home, telephone.port, "busy"))
    await telephone.hear("busy")
    waiting = [predict(number) for number in range(100)]
    await asyncio.sleep(0)
    for future in waiting[::3]:
        future.cancel()
    await telephone.tell("busy")
    await running
    results = await asyncio.gather(*waiting, return_exceptions=True)
    for number, result in enumerate(results):
        assert isinstance(result, asyncio.CancelledError) if number % 3 == 0 else result == 2 * number


async def test_a_batch_is_stopped_when_nobody_waits_for_it(one: tm.Lanes, telephone, home) -> None:
    """Not before: one caller who still waits keeps it running."""
    port = telephone.port
    held = one.batched(lambda records: [home(port, f"held {len(records)}")] * len(records))
    first, second = held(1), held(2)
    await telephone.hear("held 2")
    first.cancel()
    await telephone.tell("held 2")
    assert await second == "done"
    third = held(3)
    await telephone.hear("held 1")
    restarts = one.statistics().lanes[0].restarts
    third.cancel()
    assert await one.run(divmod, 7, 2) == (3, 1)
    assert one.statistics().lanes[0].restarts == restarts + 1


async def test_closing_ends_what_waits(telephone, home) -> None:
    """Records in a batch and records that wait for one."""
    async with tm.Lanes(1) as lanes:
        running = asyncio.create_task(lanes.run(home, telephone.port, "busy"))
        await telephone.hear("busy")
        futures = [lanes.batched(doubled)(number) for number in range(3)]
        await asyncio.sleep(0)
    results = await asyncio.gather(running, *futures, return_exceptions=True)
    assert [type(result) for result in results] == [CallError] * 4


async def test_large_records_make_small_batches(one: tm.Lanes) -> None:
    """A batch is bounded in bytes too; nothing is lost."""
    sizes = one.batched(lambda records: [len(records)] * len(records))
    seen = await asyncio.gather(*(sizes(bytes(6 << 20)) for _ in range(10)))
    assert 1 <= max(seen) <= 3


async def test_senseless_options_are_refused(two: tm.Lanes) -> None:
    """A batch has at least one record."""
    with pytest.raises(CallError, match="max_batch=0"):
        two.batched(doubled, max_batch=0)
