"""The classic bridge: a plain ``list[dict]`` function, and what asyncio programs do with it."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tidemill.clock import SystemClock
from tidemill.engine.loop_lag import LagMonitor
from tidemill.engine.metrics import Quantiles

SENSORS = 8
IN_FLIGHT = 8
"""Batches under way at once in the bridge: enough for two workers, whatever the batch size."""


def features(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The user's function: about 1.3 us a record."""
    out = []
    for record in records:
        normalized = (record["value"] - 20) / 60
        feature = math.sqrt(abs(normalized)) * math.log(abs(record["value"]) + 1)
        out.append({**record, "normalized": round(normalized, 4), "feature": round(feature, 4)})
    return out


def records_of(count: int, seed: int = 0) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [
        {
            "sensorId": f"S{chance.randrange(SENSORS)}",
            "timestamp": 1_700_000_000.25 + number * 0.001,
            "value": round(chance.gauss(50, 15), 3),
            "unit": "C",
        }
        for number in range(count)
    ]


async def bridge(
    pool: ProcessPoolExecutor, records: list[dict[str, Any]], size: int
) -> tuple[float, list[dict[str, Any]], Quantiles]:
    """Records per second of ``run_in_executor``, batches of ``size``, results in order; the results; the loop's lag."""
    loop = asyncio.get_running_loop()
    lag = LagMonitor(SystemClock(), period_s=0.001)
    lag.start()
    await asyncio.gather(*(loop.run_in_executor(pool, features, records[:20]) for _ in range(8)))  # workers are there
    out: list[dict[str, Any]] = []
    under_way: deque[asyncio.Future[list[dict[str, Any]]]] = deque()
    began = time.perf_counter()
    for start in range(0, len(records), size):
        if len(under_way) == IN_FLIGHT:
            out.extend(await under_way.popleft())
        under_way.append(loop.run_in_executor(pool, features, records[start : start + size]))
    for batch in under_way:
        out.extend(await batch)
    seconds = time.perf_counter() - began
    lag.stop()
    return len(records) / seconds, out, lag.histogram.quantiles()
