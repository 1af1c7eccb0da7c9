"""`Lanes.batched` under random cancels: a result is its own caller's, whoever else gives up."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm


@given(seed=st.integers(0, 2**32 - 1), max_batch=st.integers(1, 20), max_waiting=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_whoever_gives_up_moves_nobodys_result(seed: int, max_batch: int, max_waiting: int) -> None:
    """Random cancels and errors, at random turns of the loop: each of the others has its own value, and all is settled."""

    async def run() -> None:
        chance = random.Random(seed)
        async with tm.Lanes(0) as lanes:
            call = lanes.batched(picky, max_batch=max_batch, max_waiting=max_waiting, timeout=60)
            futures: list[asyncio.Future] = []
            for number in range(60):
                futures.append(call(number))
                if chance.random() < 0.3:
                    chance.choice(futures).cancel()
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
            results = await asyncio.gather(*futures, return_exceptions=True)
            for number, result in enumerate(results):
                if isinstance(result, asyncio.CancelledError):
                    continue
                if number % 7 == 0:
                    assert isinstance(result, ValueError)
                    assert str(result) == str(number)
                else:
                    assert result == 2 * number
            now = call.statistics()
            assert (now.waiting, now.waiting_bytes, now.blocked) == (0, 0, 0)

    asyncio.run(run())


def picky(records: list[int]) -> list[int]:
    for record in records:
        if record % 7 == 0:
            raise ValueError(record)
    return [2 * record for record in records]
