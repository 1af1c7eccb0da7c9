"""Everything at once, for a while, under a seed: every call resolves exactly once, with its own, in order where promised.

In the environment, ``TIDEMILL_SOAK_ROUNDS`` says how many rounds of about a second there are (1), and
``TIDEMILL_SOAK_SEED`` which random numbers they follow (11). For an hour of it:

    TIDEMILL_SOAK_ROUNDS=1800 python -m pytest tests/bridge/test_soak.py
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import cloudpickle
import numpy as np
import pytest

import tidemill as tm
from tidemill.errors import BadResult, LaneDied, RemoteError

cloudpickle.register_pickle_by_value(sys.modules[__name__])

SEED = int(os.environ.get("TIDEMILL_SOAK_SEED", "11"))
ROUNDS = int(os.environ.get("TIDEMILL_SOAK_ROUNDS", "1"))

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(100 + 10 * ROUNDS)]

KINDS = ["small"] * 8 + ["array", "text", "raise", "exit", "die", "unpicklable", "spin"]


def work(path: str, number: int, kind: str, load: object) -> object:
    """One side effect, then whatever its kind does."""
    with Path(path).open("ab", buffering=0) as file:
        file.write(f"{number}\n".encode())
    if kind == "raise":
        raise KeyError(number)
    if kind == "exit":
        sys.exit(number)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "unpicklable":
        return (x for x in ())
    while kind == "spin":
        pass
    return number if load is None else (number, load)


def of_stream(log: str) -> Callable[[tuple[int, str]], object]:
    return lambda item: work(log, item[0], item[1], None)


EXPECTED = {"raise": KeyError, "exit": RemoteError, "die": LaneDied, "unpicklable": BadResult}


class Soak:
    """Callers of every kind over the same lanes, and somebody who kills."""

    def __init__(self, lanes: tm.Lanes, random: Random, log: str) -> None:
        self.lanes = lanes
        self.random = random
        self.log = log
        self.resolved: Counter[int] = Counter()
        self.numbers = itertools.count()
        self.killed = 0
        self.predict = lanes.batched(lambda values: [-value for value in values], max_batch=16)

    async def pause(self) -> None:
        for _ in range(self.random.randrange(15)):
            await asyncio.sleep(0)

    def load(self, kind: str) -> object:
        if kind == "array":
            return np.arange(self.random.randrange(1, 400_000), dtype=float)
        return "ü" * self.random.randrange(1, 1_500_000) if kind == "text" else None

    def check(self, number: int, kind: str, load: object, end: object, allowed: tuple[type, ...]) -> None:
        """The end is the call's own, or one that was asked for, or a kill from outside."""
        self.resolved[number] += 1
        if isinstance(end, allowed):
            return
        if kind in EXPECTED:
            assert isinstance(end, EXPECTED[kind])
        elif isinstance(load, np.ndarray):
            assert isinstance(end, tuple)
            assert end[0] == number
            assert np.array_equal(end[1], load)
        else:
            assert end == (number if load is None else (number, load))

    async def calls(self, count: int) -> None:
        """Single calls; some with a timeout, some given up."""
        for _ in range(count):
            number, kind = next(self.numbers), self.random.choice(KINDS)
            load = self.load(kind)
            timeout = 0.05 if kind == "spin" else self.random.choice([None, None, 60, 0.004])
            call = asyncio.create_task(self.lanes.run(work, self.log, number, kind, load, timeout=timeout))
            call.add_done_callback(lambda _: None)
            await self.pause()
            given_up = self.random.random() < 0.15
            if given_up:
                call.cancel()
            (end,) = await asyncio.gather(call, return_exceptions=True)
            allowed: tuple[type, ...] = (LaneDied,)
            allowed += (TimeoutError,) if timeout is not None else ()
            allowed += (asyncio.CancelledError,) if given_up else ()
            self.check(number, kind, load, end, allowed)

    async def streams(self, count: int) -> None:
        """Ordered, with failures in their places; some left early."""
        for _ in range(count):
            items = [(next(self.numbers), self.random.choice(KINDS[:-1])) for _ in range(30)]
            leave = self.random.choice([5, 1000, 1000])
            stream = self.lanes.stream(of_stream(self.log), items, window=7, return_exceptions=True)
            place = 0
            async for end in stream:
                self.check(*items[place], None, end, (LaneDied,))
                place += 1
                if place == leave:
                    break
            await stream.aclose()
            for number, _ in items[place:]:
                self.resolved[number] += 1

    async def records(self, count: int) -> None:
        """One awaited call a record."""
        for _ in range(count):
            values = [self.random.randrange(1000) for _ in range(40)]
            futures = [self.predict(value) for value in values]
            await self.pause()
            gone = self.random.randrange(40)
            asyncio.ensure_future(futures[gone]).cancel()
            for value, future in zip(values, futures, strict=True):
                (end,) = await asyncio.gather(future, return_exceptions=True)
                assert end == -value or isinstance(end, (LaneDied, asyncio.CancelledError))

    async def kills(self, count: int) -> None:
        """From outside, whatever the lane does."""
        for _ in range(count):
            for _ in range(10):
                await self.lanes.run(abs, -1, timeout=60) if self.random.random() < 0.1 else await self.pause()
            pid = self.random.choice(self.lanes.statistics().lanes).pid
            if pid is not None:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                self.killed += 1


@pytest.mark.parametrize("recycle", [None, 20])
async def test_soak(tmp_path: Path, recycle: int | None, processes) -> None:
    """Small, large, slow, failing and deadly calls, streams, records, cancels, timeouts, kills, recycling."""
    log = tmp_path / "log"
    async with tm.Lanes(3, recycle_after=recycle, grace=0.01) as lanes:
        soak = Soak(lanes, Random(SEED), str(log))
        for _ in range(ROUNDS):
            results = await asyncio.gather(
                *(soak.calls(40) for _ in range(6)),
                *(soak.streams(3) for _ in range(2)),
                *(soak.records(6) for _ in range(2)),
                soak.kills(15),
                return_exceptions=True,
            )
            for error in results:
                if isinstance(error, LaneDied):  # the killer's own call was killed
                    continue
                if error is not None:
                    raise error
        assert await asyncio.gather(*(lanes.run(abs, -number) for number in range(100))) == list(range(100))
        assert lanes.statistics().waiting == 0
        while any(lane.in_flight for lane in lanes.statistics().lanes):  # given up, and in their grace
            assert await lanes.run(abs, -1) == 1
        assert soak.killed > 0
    assert set(soak.resolved.values()) == {1}
    assert len(soak.resolved) == next(soak.numbers)
    started = Counter((await asyncio.to_thread(log.read_text)).split())
    assert set(started.values()) == {1}  # nothing ran twice
    assert [pid for pid in processes.children(os.getpid()) if processes.lives(pid)] == []
