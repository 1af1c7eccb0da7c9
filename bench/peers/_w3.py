"""W3: a function of pure Python that takes 200 us or 2 ms for a record; a fixed amount of work, not of time."""

from __future__ import annotations

import math
import time
from typing import Any

ROUNDS = {"200 us": 2_400, "2 ms": 24_000}
"""Rounds of the loop; how long they take is measured where it is used."""


def heavy(value: float, rounds: int) -> float:
    distance, smoothed = abs(value - 20.0) / 60.0, 0.0
    for turn in range(rounds):
        smoothed = smoothed * 0.9 + math.sqrt(distance + turn)
    return smoothed


def records_of(count: int) -> list[dict[str, Any]]:
    return [
        {"sensor": f"S{number % 64}", "time": 1.7e9 + number * 1e-3, "value": number % 97 + 0.5}
        for number in range(count)
    ]


def inline(records: list[dict[str, Any]], rounds: int) -> float:
    """Records per second of CPU time, in this process."""
    began = time.process_time()
    for record in records:
        {**record, "smoothed": heavy(record["value"], rounds)}
    return len(records) / (time.process_time() - began)
