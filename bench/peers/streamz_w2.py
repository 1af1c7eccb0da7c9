"""W2 in streamz: ``python -m bench.peers.streamz_w2 RATE SECONDS``; each record is emitted, and computed, on the loop."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import numpy as np
from streamz import Stream

from bench.peers import _w2
from bench.peers._w1 import Afresh


async def main(rate: float, seconds: float) -> dict[str, Any]:
    pace = _w2.Pace(rate, seconds)
    windows = [Afresh() for _ in range(_w2.SENSORS)]
    late: list[float] = []
    lags: list[float] = []
    clock = time.perf_counter

    def step(state: list[Afresh], record: tuple[int, float, float]) -> tuple[list[Afresh], Any]:
        sensor, created, value = record
        x = (value - 20.0) / 60.0
        return state, (sensor, created, x, *state[sensor].add(x))

    source = Stream()
    source.accumulate(step, start=windows, returns_state=True).sink(lambda made: late.append(clock() - made[1]))
    beside = asyncio.ensure_future(_w2.timer(lags))
    while not pace.over:
        for number in pace.due():
            source.emit((pace.sensors[number], pace.created(number), pace.values[number]))
        await asyncio.sleep(_w2.TICK_S)
    beside.cancel()
    return _w2.told(np.array(late), lags)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(float(sys.argv[1]), float(sys.argv[2])))))
