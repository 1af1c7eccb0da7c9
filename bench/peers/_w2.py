"""W2: records that fall due at a given rate, and how late they are at the sink.

A record is created when it is due, whether or not the program came to make it then: one that could not keep up shows
it. Nothing here is of any engine; tidemill's side uses it as well.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np

SENSORS = 1_000
TICK_S = 0.0005
"""Records due within this of one another come together, as from a network: a source that never sleeps takes a core."""


class Pace:
    """``rate`` records a second for ``seconds``, from the first question on."""

    def __init__(self, rate: float, seconds: float) -> None:
        chance = np.random.default_rng(0)
        self.rate, self.count = rate, int(rate * seconds)
        self.sensors = chance.integers(0, SENSORS, self.count).tolist()
        self.values = chance.normal(50, 15, self.count).tolist()
        self.began = 0.0
        self.given = 0

    def due(self) -> range:
        """The numbers of the records that have fallen due since the last question."""
        now = time.perf_counter()
        self.began = self.began or now
        first, self.given = self.given, min(int((now - self.began) * self.rate) + 1, self.count)
        return range(first, self.given)

    def created(self, number: int) -> float:
        return self.began + number / self.rate

    @property
    def over(self) -> bool:
        return self.given >= self.count


def told(late_s: np.ndarray, lag_ms: list[float] | None = None) -> dict[str, Any]:
    """Latencies, and how late a timer of 1 ms ran beside them; both in ms."""
    p50, p99, p999 = np.percentile(late_s * 1e3, [50, 99, 99.9]).tolist()
    lag_p99 = float(np.percentile(lag_ms, 99)) if lag_ms else None
    return {
        "records": len(late_s),
        "p50": p50,
        "p99": p99,
        "p999": p999,
        "max": float(late_s.max()) * 1e3,
        "lag_p99": lag_p99,
    }


async def timer(lags_ms: list[float]) -> None:
    """How late 1 ms is over, again and again, until cancelled."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        lags_ms.append((time.perf_counter() - began - 0.001) * 1e3)
