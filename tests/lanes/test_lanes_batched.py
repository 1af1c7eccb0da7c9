"""`Lanes.batched`: one call a record, and every answer is the caller's own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable

import cloudpickle
import numpy as np
import pytest

import tidemill as tm
from tidemill.errors import BadResult, CallError, LaneDied, LanesFull

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
        assert (
            sum(lane.done for lane in lanes.statistics().lanes) < 3000
        )  # calls, not records; how many depends on the speed


async def test_batches_grow_with_the_load(one: tm.Lanes, telephone, home) -> None:
    """Alone when all is quiet; together what gathered while the lane was busy; never more than max_batch."""

    def sizes(records: list[int]) -> list[int]:
        return [len(records)] * len(records)

    size = one.batched(sizes, max_batch=10)
    assert await size(0) == 1
    seen = [1]
    while (
        max(seen) < 10
    ):  # a first record that took long, on a machine that does much else, keeps the next batches small
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


@pytest.mark.parametrize("size", [None, 3, 200_000], ids=["number", "array", "large_array"])
async def test_records_are_the_functions_own_also_when_it_is_called_again(one: tm.Lanes, size: int | None) -> None:
    """It changes them and takes them out of the list; each of those that follow an error is as it was sent."""

    def celsius(records: list[dict]) -> list[float]:
        values = []
        while records:
            record = records.pop(0)
            record["value"] -= 32
            values.append(float(np.max(record["value"])))
        if min(values) < 0:
            raise ValueError("too cold")
        return values

    def record(value: float) -> dict:
        return {"value": value if size is None else np.full(size, value)}

    results = await asyncio.gather(*map(one.batched(celsius), map(record, [40.0, 0.0, 50.0])), return_exceptions=True)
    assert isinstance(results.pop(1), ValueError)
    assert results == [8.0, 18.0]


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


WRONG: dict[str, Callable[[list[int]], object]] = {
    "<lambda> got 1 and returned 3": lambda _: [1, 2, 3],
    "a NoneType": lambda _: None,
    "a str": lambda _: "x",
    "a bytearray": lambda _: bytearray(1),
    "a dict": dict.fromkeys,
    "a dict_keys": lambda records: dict.fromkeys(records).keys(),
    "a mappingproxy": lambda _: types.MappingProxyType({1: 2}),
    "in their order; <lambda> returned a set": lambda records: {-record for record in records},
    "a frozenset": frozenset,
}


@pytest.mark.parametrize("told", WRONG)
async def test_a_wrong_answer_is_told_clearly(two: tm.Lanes, told: str) -> None:
    """Too many values, none, or something else than a list: what has no value for each record in its place."""
    with pytest.raises(BadResult, match=told):
        await two.batched(WRONG[told])(1)


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


async def test_what_is_called_in_the_turn_of_closing_ends() -> None:
    """It never comes to a batch, and its caller is told so."""
    async with tm.Lanes(1) as lanes:
        predict = lanes.batched(doubled)
        before = predict(1)
        closing = asyncio.ensure_future(lanes.aclose())
    await closing
    with pytest.raises(CallError, match="closed"):
        await asyncio.wait_for(before, 120)
    with pytest.raises(CallError, match="closed"):
        predict(2)


async def test_a_call_from_another_thread_is_refused(two: tm.Lanes) -> None:
    """Also while a call of this turn is on its way."""
    predict = two.batched(doubled)
    fine = predict(1)
    with pytest.raises(CallError, match="another event loop"):
        await asyncio.to_thread(predict, 2)
    assert await fine == 2


async def test_large_records_make_small_batches(one: tm.Lanes) -> None:
    """A batch is bounded in bytes too; nothing is lost."""
    sizes = one.batched(lambda records: [len(records)] * len(records))
    seen = await asyncio.gather(*(sizes(bytes(6 << 20)) for _ in range(10)))
    assert 1 <= max(seen) <= 3


@contextlib.asynccontextmanager
async def busy(lanes: tm.Lanes, telephone, home, depth: int = 4) -> AsyncIterator[None]:
    """The only lane has as many calls as it takes, until the end of the block."""
    names = [f"busy {number}" for number in range(depth)]
    running = [asyncio.create_task(lanes.run(home, telephone.port, name)) for name in names]
    await telephone.hear(names[0])
    try:
        yield
    finally:
        for name in names:
            await telephone.hear(name)
            await telephone.tell(name)
        await asyncio.gather(*running)


async def test_a_record_that_waits_too_long_times_out_alone(one: tm.Lanes, telephone, home) -> None:
    """It never gets to a lane; what is called after it has its value."""
    predict = one.batched(doubled, timeout=0.05)
    async with busy(one, telephone, home):
        with pytest.raises(TimeoutError, match=r"batched.*0\.05 s"):
            await predict(1)
        assert predict.statistics().timed_out == 1
        assert predict.statistics().waiting == 0
        assert predict.statistics().waiting_bytes == 0
    assert await one.batched(doubled, timeout=60)(2) == 4


async def test_a_batch_that_takes_too_long_is_stopped(one: tm.Lanes, telephone, home) -> None:
    """All of its callers are told, its process is replaced, and the next record has a lane."""
    port = telephone.port
    held = one.batched(lambda records: [home(port, f"timed {len(records)}")] * len(records), timeout=1000)
    restarts = one.statistics().lanes[0].restarts
    records = [held(number) for number in range(5)]
    await telephone.hear_any(1)
    for record in records:
        record.deadline_s = 0.0  # type: ignore[attr-defined]
    held._expire()
    results = await asyncio.gather(*records, return_exceptions=True)
    assert [type(result) for result in results] == [TimeoutError] * 5
    assert held.statistics().timed_out == 5
    assert await one.run(divmod, 7, 2) == (3, 1)
    assert one.statistics().lanes[0].restarts == restarts + 1


async def test_records_that_time_out_together_are_told_so_a_thousand_a_turn(one: tm.Lanes, telephone, home) -> None:
    """However many there are: the loop has its other work to do."""
    predict = one.batched(doubled, timeout=1000, max_waiting=10_000)
    async with busy(one, telephone, home):
        records = [predict(number) for number in range(2_500)]
        for record in records:
            record.deadline_s = 0.0  # type: ignore[attr-defined]
        predict._expire()
        assert sum(record.done() for record in records) == 1_000
        results = await asyncio.gather(*records, return_exceptions=True)
        assert {type(result) for result in results} == {TimeoutError}
        now = predict.statistics()
        assert (now.timed_out, now.waiting, now.waiting_bytes) == (2_500, 0, 0)


async def test_poison_among_64_fails_alone(two: tm.Lanes, tmp_path) -> None:
    """The others have their values; none was tried more than twice, in the batch that died and alone."""
    log = tmp_path / "log"

    def deadly(records: list[int]) -> list[int]:
        with log.open("a") as lines:
            for record in records:
                lines.write(f"{record}\n")
                lines.flush()
                if record == 40:
                    os.kill(os.getpid(), 9)
        return [-record for record in records]

    results = await asyncio.gather(*map(two.batched(deadly), range(64)), return_exceptions=True)
    died = results.pop(40)
    assert isinstance(died, LaneDied)
    assert died.signal == 9
    assert results == [-number for number in range(64) if number != 40]
    tried = [int(line) for line in log.read_text().split()]
    assert all(tried.count(number) <= 2 for number in range(64))


async def test_callers_wait_for_room_by_default(one: tm.Lanes, telephone, home) -> None:
    """First come, first served; a caller that waits for room may give up; a record that cannot be sent fails alone."""
    predict = one.batched(doubled, max_waiting=3)
    async with busy(one, telephone, home):
        futures = [predict(number) for number in range(8)]
        futures.append(predict(threading.Lock()))
        await asyncio.sleep(0)
        assert (predict.statistics().waiting, predict.statistics().blocked) == (3, 6)
        futures[5].cancel()
        assert predict.statistics().blocked == 5
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert isinstance(results.pop(), CallError)
    assert isinstance(results.pop(5), asyncio.CancelledError)
    assert results == [0, 2, 4, 6, 8, 12, 14]


async def test_a_caller_that_gives_up_makes_room(one: tm.Lanes, telephone, home) -> None:
    """For the one that waits longest, and by bytes too."""
    predict = one.batched(doubled, max_waiting_bytes=100)
    async with busy(one, telephone, home):
        futures = [predict(bytes(200)), predict(b"x"), predict(b"y")]
        await asyncio.sleep(0)
        assert predict.statistics().blocked == 2
        futures[0].cancel()
        await turns()
        assert predict.statistics().blocked == 0
    assert await asyncio.gather(*futures[1:]) == [b"xx", b"yy"]


async def turns() -> None:
    """Let the loop do what was scheduled."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_is_too_much_is_rejected(one: tm.Lanes, telephone, home) -> None:
    """At the call, and counted."""
    predict = one.batched(doubled, max_waiting=2, when_full="reject")
    async with busy(one, telephone, home):
        futures = [predict(1), predict(2)]
        with pytest.raises(LanesFull, match="2 records"):
            predict(3)
        assert predict.statistics().rejected == 1
    assert await asyncio.gather(*futures) == [2, 4]


async def test_the_oldest_is_dropped(one: tm.Lanes, telephone, home) -> None:
    """Its caller is told, and it is counted."""
    predict = one.batched(doubled, max_waiting=2, when_full="drop_oldest")
    async with busy(one, telephone, home):
        futures = [predict(number) for number in range(4)]
        futures[2].cancel()
        futures.append(predict(4))
        assert predict.statistics().dropped == 2
        assert predict.statistics().waiting == 2
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results[:3]] == [LanesFull, LanesFull, asyncio.CancelledError]
    assert results[3:] == [6, 8]


async def test_records_have_their_turn_beside_calls_that_never_end(two: tm.Lanes) -> None:
    """Others keep all lanes full, and more waits, or streams do."""
    ended = asyncio.Event()

    async def loop() -> None:
        while not ended.is_set():
            await two.run(sum, range(10_000))

    async def stream() -> None:
        async for _ in two.stream(sum, itertools.repeat(range(10_000))):
            if ended.is_set():
                return

    others = [asyncio.create_task(loop()) for _ in range(16)] + [asyncio.create_task(stream())]
    double = two.batched(doubled)
    for number in range(20):
        assert await double(number) == 2 * number
    assert await asyncio.gather(*map(double, range(500))) == [2 * number for number in range(500)]
    ended.set()
    await asyncio.gather(*others)
