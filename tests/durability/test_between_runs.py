"""From one tidemill to another, which is killed while rows come: each is there once."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.ports import HeldPort

from tidemill import sinks
from tidemill.batch import Batch
from tidemill.schema import Schema
from tidemill.sinks.connecting import patiently

ROADS: dict[str, tuple[str, Callable[[int], sinks.ProcessSink]]] = {
    "tcp": ("tm.sources.TCP(port={port}, ack=True)", lambda port: sinks.TCP(f"tcp://127.0.0.1:{port}", ack=True)),
    "tcp, line protocol": (
        'tm.sources.TCP(port={port}, ack=True, format="influx")',
        lambda port: sinks.TCP(f"tcp://127.0.0.1:{port}", ack=True, format="influx", measurement="m"),
    ),
    "http": ("tm.sources.HTTP(port={port})", lambda port: sinks.HTTP(f"http://127.0.0.1:{port}/ingest", body=20_000)),
    "http, packed line protocol": (
        'tm.sources.HTTP(port={port}, format="influx")',
        lambda port: sinks.HTTP(
            f"http://127.0.0.1:{port}/ingest", gzip=True, format="influx", measurement="m", body=20_000
        ),
    ),
}
_PLANT = """
import tidemill as tm
pipeline = tm.Pipeline({source}, tm.Dedup(max_records=4_096), tm.sinks.SQLite("rows.db"), name="hub")
"""


@pytest.mark.parametrize(("source", "make"), ROADS.values(), ids=ROADS)
def test_each_row_is_there_once_though_the_receiver_is_killed(
    tmp_path: Path,
    source: str,
    make: Callable[[int], sinks.ProcessSink],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """What it had not said is safe is sent again, and `Dedup` drops what was safe after all."""
    monkeypatch.setattr("tidemill.sinks.connecting.PATIENCE_S", 60.0)  # a start takes its time on a busy machine
    held = HeldPort()
    request.addfinalizer(held.close)
    port = held.number
    (tmp_path / "hub.py").write_text(_PLANT.format(source=source.format(port=port)))
    call = [sys.executable, "-m", "tidemill", "run", "hub.py", "--lanes", "1", "--no-metrics"]

    def started() -> subprocess.Popen[bytes]:
        made = subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        request.addfinalizer(made.wait)
        request.addfinalizer(made.kill)  # the first of the two
        return made

    sink: Any = make(port)
    hub = started()
    with contextlib.closing(sink):
        patiently(lambda: sink.open(Schema(open=True)))  # once the other side listens
        for start in range(0, 12_000, 500):
            sink.write(
                Batch.from_rows(
                    [{"sensor": f"S{n % 7}", "time": 1_700_000_000 + n, "n": n} for n in range(start, start + 500)]
                )
            )
            if start in (2_000, 6_000):  # some of it safe, some on its way
                hub.kill()
                hub.wait()
                hub = started()
            if start % 3_000 == 0:
                sink.flush()
        sink.flush()
        assert sink.statistics().rows == 12_000
    hub.send_signal(signal.SIGTERM)
    assert hub.wait(120) == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as rows:
        found = rows.execute("SELECT n FROM features ORDER BY n").fetchall()
    assert found == [(n,) for n in range(12_000)]
