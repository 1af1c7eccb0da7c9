"""W1 in streamz: one process, one thread; it has no keyed state, so that a dict of windows goes through ``accumulate``."""

from __future__ import annotations

from typing import Any

import numpy as np
from streamz import Stream

from bench.peers._w1 import WINDOWS, Made, OfAllSensors, Program, Reading, answer, now


def rows(program: Program) -> None:
    mu, sd = (column.tolist() for column in program.calibration())
    window = WINDOWS[program.idiom]
    readings = program.readings()

    def step(state: dict[int, Any], reading: Reading) -> tuple[dict[int, Any], Made]:
        sensor, ts, value = reading
        x = (value - mu[sensor]) / sd[sensor]
        if sensor not in state:
            state[sensor] = window()
        return state, (sensor, ts, x, *state[sensor].add(x))

    seconds = []
    for _ in range(program.runs):
        out: list[Made] = []
        source = Stream()
        source.accumulate(step, start={}, returns_state=True).sink(out.append)
        emit = source.emit
        began = now()
        emit(readings[0])
        first = now()
        for reading in readings[1:]:
            emit(reading)
        seconds.append(now() - began)
    program.keep(out)
    answer(seconds, len(out), first_at=first)


def micro_batches(program: Program) -> None:
    """A micro-batch is a tuple of columns; all that W1 is happens in NumPy within one call."""
    mu, sd = program.calibration()
    columns = [program.column(name) for name in ("sensor", "ts", "value")]
    batches = [
        tuple(column[start : start + program.batch] for column in columns)
        for start in range(0, program.records, program.batch)
    ]

    def step(state: OfAllSensors, batch: tuple[np.ndarray, ...]) -> tuple[OfAllSensors, tuple[np.ndarray, ...]]:
        sensor, ts, value = batch
        x = (value - mu[sensor]) / sd[sensor]
        return state, (sensor, ts, x, *state.add(sensor, x))

    seconds = []
    for _ in range(program.runs):
        out: list[tuple[np.ndarray, ...]] = []
        source = Stream()
        source.accumulate(step, start=OfAllSensors(len(mu)), returns_state=True).sink(out.append)
        began = now()
        for batch in batches:
            source.emit(batch)
        seconds.append(now() - began)
    program.keep_columns(out)
    answer(seconds, sum(len(part[0]) for part in out), first_at=now())


if __name__ == "__main__":
    asked = Program(("afresh", "running", "micro-batches"))
    micro_batches(asked) if asked.idiom == "micro-batches" else rows(asked)
