"""`Host`: this machine's own sensors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import numpy as np

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import MissingExtra, PlanError
from tidemill.schema import Kind
from tidemill.sources.base import SourceContext
from tidemill.sources.edged import pause
from tidemill.sources.made import MadeSource

__all__ = ["Host"]


class Host(MadeSource):
    """Load per core, memory, disk, network and temperatures of this machine, once every ``interval`` seconds.

    Records have ``sensor`` (``cpu0.load``, ``memory.used_percent``, ``disk.read``, ``net.sent``,
    ``temperature.<chip>.<label>``), ``time``, ``value`` and ``unit``; what the machine does not have is left out.
    Rates start with the second sweep. A sweep runs in a thread. Never ends by itself; a missed sweep is not made up for.
    Delivery: each reading once; with state, what is in the ingest log survives, and the time without a run has no readings.
    """

    push = True
    finite = False

    def __init__(
        self,
        interval: float = 1.0,
        *,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        name: str | None = None,
    ) -> None:
        super().__init__(key=key, time=time, columns=columns, tz=tz, name=name)
        if not isinstance(interval, (int, float)) or not 0 < interval < 1e6:
            raise PlanError(f"interval={interval!r} of Host must be a number of seconds above 0.")
        self.interval = interval
        self._before: dict[str, tuple[int, float]] = {}

    def check(self) -> None:
        _psutil()

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        self._connected = True
        first = True
        due_ns = context.clock.monotonic_ns()
        try:
            while not context.stopping.is_set():
                readings = await asyncio.to_thread(self._sweep, first, context.clock.monotonic_ns())
                first = False
                now_ns = context.clock.monotonic_ns()
                batch = await self.accept(context, *self.with_roles(_batch(readings, context.clock.wall_ns(), now_ns)))
                if len(batch):
                    yield batch
                due_ns = max(due_ns + int(self.interval * 1e9), now_ns)
                await pause(context, (due_ns - context.clock.monotonic_ns()) / 1e9)
        finally:
            self._connected = False

    def _sweep(self, first: bool, now_ns: int) -> list[tuple[str, float, str]]:
        psutil = _psutil()
        loads = psutil.cpu_percent(interval=0.1 if first else None, percpu=True)
        memory = psutil.virtual_memory()
        readings = [(f"cpu{core}.load", float(load), "%") for core, load in enumerate(loads)]
        readings += [
            ("memory.used_percent", float(memory.percent), "%"),
            ("memory.available", float(memory.available), "B"),
        ]
        for name, counter in _counters(psutil):
            before = self._before.get(name)
            self._before[name] = (now_ns, counter)
            if before is not None and now_ns > before[0]:
                readings.append((name, max(0.0, (counter - before[1]) / ((now_ns - before[0]) / 1e9)), "B/s"))
        readings += _temperatures(psutil)
        return readings


def _psutil() -> Any:
    try:
        import psutil
    except ImportError:
        raise MissingExtra("psutil", "all", "Host sensors") from None
    return psutil


def _counters(psutil: Any) -> Iterator[tuple[str, float]]:
    """Byte counters since boot; a container may hide either."""
    disk = network = None
    with contextlib.suppress(OSError, RuntimeError, NotImplementedError):
        disk = psutil.disk_io_counters()
    with contextlib.suppress(OSError, RuntimeError, NotImplementedError):
        network = psutil.net_io_counters()
    if disk is not None:
        yield "disk.read", float(disk.read_bytes)
        yield "disk.written", float(disk.write_bytes)
    if network is not None:
        yield "net.sent", float(network.bytes_sent)
        yield "net.received", float(network.bytes_recv)


def _temperatures(psutil: Any) -> Iterator[tuple[str, float, str]]:
    if not hasattr(psutil, "sensors_temperatures"):
        return
    for chip, sensors in psutil.sensors_temperatures().items():
        for place, sensor in enumerate(sensors):
            if sensor.current is not None:
                label = (sensor.label or str(place)).replace(" ", "_")
                yield f"temperature.{chip}.{label}", float(sensor.current), "C"


def _batch(readings: list[tuple[str, float, str]], wall_ns: int, arrived_ns: int) -> Batch:
    names, values, units = zip(*readings, strict=True)
    sensor = Column.of_texts(names)
    time_ns = np.full(len(names), wall_ns, np.int64)
    columns = {
        "sensor": sensor,
        "time": Column(Kind.TIME, time_ns),
        "value": Column(Kind.FLOAT, np.array(values, np.float64)),
        "unit": Column.of_texts(units),
    }
    return Batch(columns, key=sensor, time=time_ns, arrived_ns=arrived_ns)
