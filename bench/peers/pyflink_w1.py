"""W1 in PyFlink: ``OVER ... ROWS`` in SQL, every part of it an aggregate or a function of the JVM's own, no Python.

The input is a CSV file that Flink reads, the output CSV files that it writes, one per task; both cost it little beside
the windows. The clock runs for a whole job; what a job of 1,000 records takes in the same warm JVM is subtracted.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
from pyflink.common import Configuration
from pyflink.table import EnvironmentSettings, TableEnvironment

from bench.peers._w1 import SAMPLED, Program, answer, now

_ROWS = "ROWS BETWEEN 49 PRECEDING AND CURRENT ROW"
_ORDER = {"over-rows": "rt", "over-rows-arrival": "pt"}
"""By the record's own time, or by the order of arrival: without watermarks and timers."""


def _environment(parallelism: int) -> TableEnvironment:
    configuration = Configuration()
    for name, value in {
        "parallelism.default": str(parallelism),
        "state.backend.type": "hashmap",
        "pipeline.object-reuse": "true",
        "taskmanager.memory.network.max": "128mb",
        "rest.port": "0",
    }.items():
        configuration.set_string(name, value)
    settings = EnvironmentSettings.new_instance().in_streaming_mode().with_configuration(configuration).build()
    return TableEnvironment.create(settings)


def _tables(environment: TableEnvironment, path: Path, out: Path, order: str) -> str:
    """Make the tables anew; the statement to run."""
    for name in ("readings", "made"):
        environment.execute_sql(f"DROP TEMPORARY TABLE IF EXISTS {name}")
    environment.execute_sql(f"""
        CREATE TEMPORARY TABLE readings (
            sensor INT, ts BIGINT, `value` DOUBLE, mu DOUBLE, sd DOUBLE,
            rt AS TO_TIMESTAMP_LTZ(ts, 3), pt AS PROCTIME(), WATERMARK FOR rt AS rt
        ) WITH ('connector' = 'filesystem', 'path' = '{path}', 'format' = 'csv')""")
    environment.execute_sql(f"""
        CREATE TEMPORARY TABLE made (
            sensor INT, ts BIGINT, x DOUBLE, mean DOUBLE, std DOUBLE, low DOUBLE, high DOUBLE, feature DOUBLE
        ) WITH ('connector' = 'filesystem', 'path' = '{out}', 'format' = 'csv')""")
    return f"""
        INSERT INTO made SELECT sensor, ts, x, mean, std, low, high,
            TANH((x - mean) / (std + 1e-9)) * LN(1 + (high - low))
        FROM (
            SELECT sensor, ts, x, AVG(x) OVER w AS mean, STDDEV_POP(x) OVER w AS std,
                MIN(x) OVER w AS low, MAX(x) OVER w AS high
            FROM (SELECT sensor, ts, (`value` - mu) / sd AS x, rt, pt FROM readings)
            WINDOW w AS (PARTITION BY sensor ORDER BY {order} {_ROWS})
        )"""


def _job(environment: TableEnvironment, program: Program, path: Path) -> tuple[float, Path]:
    out = program.out / "rows"
    shutil.rmtree(out, ignore_errors=True)
    statement = _tables(environment, path, out, _ORDER[program.idiom])
    began = now()
    environment.execute_sql(statement).wait()
    return now() - began, out


def _input(program: Program, name: str, records: int) -> Path:
    """A folder of files, one for each task by sensor, each reading's calibration beside it: a join would cost more."""
    mu, sd = program.calibration()
    folder = program.out / name
    folder.mkdir()
    for part in range(program.workers):
        mine = program.column("sensor")[:records] % program.workers == part
        sensor, ts, value = (program.column(column)[:records][mine] for column in ("sensor", "ts", "value"))
        columns = (column.tolist() for column in (sensor, ts, value, mu[sensor], sd[sensor]))
        with (folder / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(zip(*columns, strict=True))
    return folder


def main() -> None:
    program = Program(tuple(_ORDER))
    whole = _input(program, "whole", program.records)
    head = _input(program, "head", min(program.records, 1_000))
    environment = _environment(program.workers)
    _job(environment, program, head)
    first = now()
    while now() - first < program.warm_s:
        _job(environment, program, whole)
    empty = sorted(_job(environment, program, head)[0] for _ in range(3))[1]
    seconds = []
    for _ in range(program.runs):
        took, out = _job(environment, program, whole)
        seconds.append(took - empty)
    parts = [np.loadtxt(file, delimiter=",", ndmin=2) for file in sorted(out.rglob("*")) if file.is_file()]
    rows = np.concatenate([part for part in parts if len(part)])
    np.save(program.out / "rows.npy", rows[rows[:, 0] % SAMPLED == 0])
    answer(seconds, len(rows), first_at=first, empty_job_s=empty)


if __name__ == "__main__":
    main()
