"""What it costs that nothing is lost.

``log``           the ingest log against a bare write and sync of the same groups
``exactly-once``  W1 into SQLite and Parquet with a checkpoint a second, against the same run without state
``checkpoints``   how long one takes, and how soon the next start is ready, by the number of sensors
``killed``        kill -9 of a run, until the next start has committed new rows
``postgres``      rows with their position against a bare binary COPY
``ack``           how soon a sender over TCP hears that its lines are safe, at half of the rate that the run can take
``lane``          SIGKILL of a lane with 100,000 sensors, until it commits again
``w4``            kill -9 of a whole run at half time, beside Bytewax: records lost and doubled, and when it is back
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench import _common, _durability_live, _durability_runs, _durability_w4
from bench._common import Table, median, spread, timed
from tidemill.engine.ingest_log import IngestLog

GROUPS = ((4_096, 1), (65_536, 16), (1 << 20, 64))
"""Bytes of a group, and in how many entries they are appended."""

ENTRY = 1 << 16
"""Bytes of the entries whose acknowledgement is timed."""
SECONDS = 2.0


def measure(options: argparse.Namespace, table: Table) -> None:
    for name in options.only or CASES:
        CASES[name](options, table)


# -- the ingest log ----------------------------------------------------------------------------------------


def _log(options: argparse.Namespace, table: Table) -> None:
    """Rates of groups on disk, in turn, so that both meet the same disk; and what one call of `append` takes."""
    for size, entries in GROUPS:
        ratios, ours, bares, appends = [], [], [], []
        for _ in range(options.runs):
            with tempfile.TemporaryDirectory(prefix="tidemill-bench-", dir=options.folder) as folder:
                bare, our, append_us = _groups(Path(folder), size, entries, options.groups)
            bares.append(median(bare))
            ours.append(median(our))
            ratios.append(bares[-1] / ours[-1])
            appends.append(append_us)
        shown = f"{size // 1024} kB in {entries}"
        note = f"{spread(ratios)}; a group takes {median(ours) * 1e3:.2f} ms, bare {median(bares) * 1e3:.2f} ms"
        table.at_least(f"ingest log / bare write + fdatasync, groups of {shown}", median(ratios), 0.6, note=note)
        table.note(f"ingest log: one append on the loop, groups of {shown}", f"{median(appends):.1f} us")
    rate = size / median(ours)  # of the largest groups
    p99s = []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory(prefix="tidemill-bench-", dir=options.folder) as folder:
            waits = sorted(_acknowledged(Path(folder), rate / 2))
        p99s.append(waits[len(waits) * 99 // 100] * 1e3)
    bare_p99 = sorted(bare)[len(bare) * 99 // 100] * 1e3
    note = f"{spread(p99s)}; {ENTRY // 1024} kB entries, {rate / 2e6:.0f} MB/s; p99 of a bare {size // 1024} kB group {bare_p99:.1f} ms"
    table.at_most("ingest log: acknowledged after, p99 at half load", median(p99s), 10, unit="ms", note=note)


def _groups(folder: Path, size: int, entries: int, count: int) -> tuple[list[float], list[float], float]:
    """Seconds of each group, bare and ours, and microseconds of one append."""
    data = os.urandom(size)
    parts = [data[start : start + size // entries] for start in range(0, size, size // entries)]
    log = IngestLog(folder / "log")
    handle = os.open(folder / "bare", os.O_RDWR | os.O_CREAT)
    bare, ours, appending = [], [], 0.0

    def written() -> None:
        os.write(handle, data)
        os.fdatasync(handle)

    def logged() -> None:
        nonlocal appending
        start = time.perf_counter()
        for part in parts:
            log.append(part)
        appending += time.perf_counter() - start
        log.sync()

    for number in range(count):
        turn: list[tuple[list[float], Callable[[], None]]] = [(bare, written), (ours, logged)]
        for times, work in turn if number % 2 else turn[::-1]:
            times.append(timed(work)[0])
    os.close(handle)
    if [entry for _, entry in log.read(0)] != parts * count:
        raise SystemExit("the log did not give back what it was given")
    log.close()
    return bare, ours, appending / count / entries * 1e6


def _acknowledged(folder: Path, rate: float) -> list[float]:
    """Seconds from the moment each entry was due to the end of the sync that it was in, at so many bytes a second."""
    log = IngestLog(folder / "log")
    count = int(SECONDS * rate / ENTRY)
    data = os.urandom(ENTRY)
    ends: list[tuple[int, float]] = []

    def syncing() -> None:
        while log.durable < count:
            if log.durable < log.end:
                ends.append((log.sync(), time.perf_counter()))
            else:
                time.sleep(0.0001)

    thread = threading.Thread(target=syncing)
    thread.start()
    start = time.perf_counter()
    due = [start + number * ENTRY / rate for number in range(count)]
    for moment in due:
        while (early := moment - time.perf_counter()) > 0:
            time.sleep(early)
        log.append(data)
    thread.join()
    log.close()
    waits, number = [], 0
    for durable, end in ends:
        waits += [end - moment for moment in due[number:durable]]
        number = durable
    return waits


def _postgres(options: argparse.Namespace, table: Table) -> None:
    from bench import _durability_postgres  # needs psycopg and a server

    _durability_postgres.measure(options, table)


CASES: dict[str, Callable[[argparse.Namespace, Table], None]] = {
    "log": _log,
    "exactly-once": _durability_runs.exactly_once,
    "checkpoints": _durability_runs.checkpoints,
    "killed": _durability_runs.killed,
    "postgres": _postgres,
    "ack": _durability_live.ack,
    "lane": _durability_live.lane,
    "w4": _durability_w4.w4,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), help="these cases (default: all)")
    parser.add_argument("--groups", type=int, default=100, help="groups of each size in a run (default 100)")
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: where temporary files go)")
    parser.add_argument("--records", type=int, default=1_000_000, help="of w4's recording (default 1,000,000)")
    parser.add_argument("--all-sizes", action="store_true", help="checkpoints of a million sensors too")
    _common.main(measure, parser, runs=5)
