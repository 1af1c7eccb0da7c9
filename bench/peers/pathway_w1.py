"""W1 in Pathway: a reducer in Python that gets the readings of one sensor of one minibatch, over two threads.

The table is in memory, in minibatches with times of their own. Rows of a minibatch come in no order, so the reducer
sorts them. Its state carries its output: one tuple of rows per sensor and minibatch, which replaces the one before.
The clock runs from the call that runs the graph to the last output; what that call takes for 1,000 records is subtracted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pathway as pw
from pathway.internals import parse_graph

from bench.peers._w1 import WINDOWS, OfOneSensor, Program, answer, now

_FIRST_TIME = 2
"""Times of minibatches are even."""


class Reading(pw.Schema):
    sensor: int
    ts: int
    value: float
    mu: float
    sd: float


def _frame(program: Program, records: int) -> pd.DataFrame:
    mu, sd = program.calibration()
    sensor = program.column("sensor")[:records]
    return pd.DataFrame(
        {
            "sensor": sensor,
            "ts": program.column("ts")[:records],
            "value": program.column("value")[:records],
            "mu": mu[sensor],
            "sd": sd[sensor],
            "__time__": _FIRST_TIME + 2 * (np.arange(records) // program.batch),
        }
    )


def _rolled(idiom: str) -> Any:
    """The reducer: from its state and a minibatch's readings of one sensor to the state and what they made."""
    if idiom == "numpy":

        @pw.reducers.stateful_many
        def roll(state: pw.PyObjectWrapper | None, rows: list[Any]) -> pw.PyObjectWrapper:
            window = state.value[0] if state is not None else OfOneSensor()
            ts, x = np.array(sorted(row for row, _ in rows)).T
            return pw.wrap_py_object((window, np.column_stack([ts, x, *window.add(x)])))

    else:
        new = WINDOWS[idiom]

        @pw.reducers.stateful_many
        def roll(state: pw.PyObjectWrapper | None, rows: list[Any]) -> pw.PyObjectWrapper:
            window = state.value[0] if state is not None else new()
            add = window.add
            return pw.wrap_py_object((window, [(ts, x, *add(x)) for ts, x in sorted(row for row, _ in rows)]))

    return roll


def _run(program: Program, records: int) -> tuple[float, list[tuple[int, Any]]]:
    """Seconds, and each sensor's rows as they came."""
    parse_graph.G.clear()
    made: list[tuple[int, Any]] = []
    table = pw.debug.table_from_pandas(_frame(program, records), schema=Reading)
    table = table.select(table.sensor, table.ts, x=(table.value - table.mu) / table.sd)
    rolled = table.groupby(table.sensor).reduce(table.sensor, made=_rolled(program.idiom)(table.ts, table.x))

    def keep(key: pw.Pointer, row: dict[str, Any], time: int, is_addition: bool) -> None:  # noqa: ARG001 - Pathway calls it by name
        if is_addition:
            made.append((row["sensor"], row["made"].value[1]))

    pw.io.subscribe(rolled, keep)
    began = now()
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    return now() - began, made


def main() -> None:
    program = Program(("afresh", "running", "numpy"))
    _run(program, min(program.records, 1_000))
    first = now()
    empty = sorted(_run(program, min(program.records, 1_000))[0] for _ in range(3))[1]
    seconds = []
    for _ in range(program.runs):
        took, made = _run(program, program.records)
        seconds.append(took - empty)
    parts = [np.column_stack([np.full(len(rows), sensor), np.asarray(rows)]) for sensor, rows in made]
    program.keep_columns([tuple(np.concatenate(parts).T)])
    answer(seconds, sum(len(rows) for _, rows in made), first_at=first, empty_run_s=empty)


if __name__ == "__main__":
    main()
