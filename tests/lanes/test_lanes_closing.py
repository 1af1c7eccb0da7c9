"""Lanes that are closed with many calls: every caller is told, a few in each turn of the loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from typing import Any

import cloudpickle
import pytest

import tidemill as tm
from tidemill.engine import slices
from tidemill.engine.bundles import Bundles
from tidemill.errors import CallError
from tidemill.lanes.call_codec import dumps_call

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(200)]

Future = asyncio.Future[Any] | concurrent.futures.Future[Any]

FEW = 5
MANY = 100


def same(value: Any) -> Any:
    return value


async def executed(lanes: tm.Lanes) -> list[Future]:
    executor = lanes.executor()
    return [executor.submit(same, number) for number in range(MANY)]


async def batched(lanes: tm.Lanes) -> list[Future]:
    predict = lanes.batched(same, max_batch=1)
    return [predict(number) for number in range(MANY)]


async def blocked(lanes: tm.Lanes) -> list[Future]:
    predict = lanes.batched(same, max_batch=1, max_waiting=1)
    return [predict(number) for number in range(MANY)]


async def one_key(lanes: tm.Lanes) -> list[Future]:
    keyed = lanes.keyed(list)
    return [keyed.call("a", "append", number) for number in range(MANY)]


async def many_keys(lanes: tm.Lanes) -> list[Future]:
    keyed = lanes.keyed(list, max_waiting=MANY // 2)
    return [keyed.call(str(number), "append", number) for number in range(MANY)]


async def streamed(lanes: tm.Lanes) -> list[Future]:
    sent = lanes._functions.of(same)
    assert lanes._crew is not None
    assert sent is not None
    bundles = Bundles(lanes._crew, lanes._check_here, sent, lambda value: dumps_call((value,), {}), MANY)
    return [bundles.submit(number) for number in range(MANY)]


DOORS = [executed, batched, blocked, one_key, many_keys, streamed]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By the clock of closing, to tell three callers takes a millisecond."""
    ticks = count()
    with monkeypatch.context() as patch:
        patch.setattr(slices, "monotonic", lambda: next(ticks) * 0.0004)
        yield


@pytest.mark.parametrize("door", DOORS)
async def test_callers_are_told_in_turns(door: Callable[..., Any], telephone, home, slow: None) -> None:
    """Whatever they wait for: a lane, a batch, another call of their key, room."""
    async with tm.Lanes(1, arena_bytes=0) as lanes:
        running = asyncio.ensure_future(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")
        futures = await door(lanes)
        for _ in range(FEW):
            await asyncio.sleep(0)
        done, closing = [0], asyncio.ensure_future(lanes.aclose())
        while not closing.done():
            await asyncio.sleep(0)
            done.append(sum(future.done() for future in futures))
        await closing
    assert done[-1] == len(futures)
    assert max(after - before for before, after in pairwise(done)) <= FEW
    ends = [future.exception() for future in futures]
    assert {type(end) for end in ends} == {CallError}
    assert {str(end) for end in ends} == {
        "The lanes were closed before this call had ended; await what you need inside the block."
    }
    with pytest.raises(CallError, match="were closed before"):
        await running


@pytest.mark.parametrize("door", DOORS)
async def test_callers_are_told_though_the_closing_is_cancelled(
    door: Callable[..., Any], telephone, home, slow: None
) -> None:
    """While some have been told: the others at once."""
    async with tm.Lanes(1) as lanes:
        running = asyncio.ensure_future(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")
        futures = await door(lanes)
        closing = asyncio.ensure_future(lanes.aclose())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert any(future.done() for future in futures)
        assert not all(future.done() for future in futures)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert all(future.done() for future in futures)
        assert {type(future.exception()) for future in futures} == {CallError}
        with pytest.raises(CallError, match="were closed before"):
            await running


async def test_nobody_comes_in_while_the_lanes_close(telephone, home, slow: None) -> None:
    """In the very turn in which others came in before, too; a record is refused at once."""
    async with tm.Lanes(1) as lanes:
        running = asyncio.ensure_future(lanes.run(home, telephone.port, "running"))
        await telephone.hear("running")
        predict = lanes.batched(same)
        records = [predict(number) for number in range(MANY)]
        closing = asyncio.ensure_future(lanes.aclose())
        await asyncio.sleep(0)
        with pytest.raises(CallError, match="lanes are closed"):
            predict(0)
        await closing
        assert all(record.done() and isinstance(record.exception(), CallError) for record in records)
        with pytest.raises(CallError, match="were closed before"):
            await running
