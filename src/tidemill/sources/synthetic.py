"""`Synthetic`: sensors that do not exist, the same ones every time."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column, object_array
from tidemill.errors import PlanError
from tidemill.formats.times import TimeReader
from tidemill.schema import Kind
from tidemill.sources.base import SourceContext
from tidemill.sources.edged import MOST_RECORDS, pause
from tidemill.sources.made import MadeSource

__all__ = ["Synthetic"]

_BLOCK: Final = 32_768
"""Records made in one go, in a thread; a part of the seed, so that the records do not depend on the pace."""


class Synthetic(MadeSource):
    """Seeded records of ``sensors`` sensors, interleaved in an order that changes.

    ``rate``        records per second, of event time and of the clock; None makes them as fast as they are taken,
                    one per sensor and second of event time
    ``seed``        the same seed gives the same records, whatever the timing
    ``count``       end after so many records; None goes on until stopped
    ``shape``       ``"sine"``, ``"walk"`` (random walk), or ``"mixed"``: each sensor one of them
    ``drift``       change of every value per hour of event time
    ``spikes``, ``gaps``, ``late``, ``duplicates``   the probability, per record, that its value leaps, that it is
                    missing, that it comes behind its successors, that it comes twice
    ``start``       event time of the first record, ISO 8601; read in ``tz`` when it has no zone

    Columns: sensor (text), time (datetime64[ns] UTC), value (float64, about 20 with an amplitude of 5), unit (text).
    Delivery: the same records in the same order each time. With state they go through the ingest log, as those of real
    sensors do, and a run that resumes begins them anew.

    >>> Synthetic(sensors=3, rate=None, count=10).peek().names
    ('sensor', 'time', 'value', 'unit')
    """

    def __init__(
        self,
        sensors: int = 1_000,
        rate: float | None = 1_000.0,
        *,
        seed: int = 0,
        count: int | None = None,
        shape: Literal["sine", "walk", "mixed"] = "mixed",
        drift: float = 0.0,
        spikes: float = 0.0,
        gaps: float = 0.0,
        late: float = 0.0,
        duplicates: float = 0.0,
        start: str = "2026-01-01T00:00:00Z",
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        name: str | None = None,
    ) -> None:
        super().__init__(key=key, time=time, columns=columns, tz=tz, name=name)
        if not isinstance(sensors, int) or not 1 <= sensors <= 10_000_000:
            raise PlanError(f"sensors={sensors!r} of Synthetic must be a number from 1 to 10,000,000.")
        if rate is not None and not 0 < rate < 1e12:
            raise PlanError(f"rate={rate!r} of Synthetic must be records per second, or None for no limit.")
        if count is not None and count < 0:
            raise PlanError(f"count={count!r} of Synthetic must be a number of records, or None.")
        if shape not in ("sine", "walk", "mixed"):
            raise PlanError(f'shape={shape!r} of Synthetic must be "sine", "walk" or "mixed".')
        for option, chance in (("spikes", spikes), ("gaps", gaps), ("late", late), ("duplicates", duplicates)):
            if not 0 <= chance < 1:
                raise PlanError(f"{option}={chance!r} of Synthetic must be a probability from 0 to below 1.")
        self.sensors = sensors
        self.rate = rate
        self.seed = seed
        self.count = count
        self.shape = shape
        self.drift = drift
        self.spikes, self.gaps, self.late, self.duplicates = spikes, gaps, late, duplicates
        self.start_ns = TimeReader(tz).one(_moment(start))
        self.finite = count is not None  # type: ignore[misc]  # of this one, not of the class

    # -- the run -----------------------------------------------------------------------------------

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        self._connected = True
        blocks = map(self.with_roles, self.blocks())
        began_ns = context.clock.monotonic_ns()
        sent = 0
        try:
            while (delivery := await asyncio.to_thread(next, blocks, None)) is not None:
                block, letters = delivery
                await self.accept(context, block.slice(0, 0), letters)
                start = 0
                while start < len(block):
                    if context.stopping.is_set():
                        return
                    end = min(start + MOST_RECORDS, len(block))
                    now_ns = context.clock.monotonic_ns()
                    if self.rate is not None:
                        due = int((now_ns - began_ns) * self.rate / 1e9) + 1 - sent
                        if due < 1:
                            await pause(context, max(1e-6, sent / self.rate - (now_ns - began_ns) / 1e9))
                            continue
                        end = min(end, start + due)
                    batch = block.slice(start, end)
                    batch = batch.with_columns({}) if batch is block else batch
                    batch.arrived_ns = now_ns
                    sent += len(batch)
                    self._records += len(batch)
                    start = end
                    yield batch
                    await asyncio.sleep(0)
        finally:
            self._connected = False

    def blocks(self) -> Iterator[Batch]:
        """The records, block by block, without a clock."""
        maker = _Maker(self)
        left = self.count
        number = 0
        while left is None or left > 0:
            block = maker.block(number)
            number += 1
            if left is not None:
                block = block.slice(0, left)
                left -= len(block)
            if len(block):
                yield block


def _moment(start: str) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(start)
    except (TypeError, ValueError):
        raise PlanError(
            f'start={start!r} of Synthetic must be a time in ISO 8601, such as "2026-01-01T00:00:00Z".'
        ) from None


class _Maker:
    """The state of the sensors: where each random walk is."""

    def __init__(self, source: Synthetic) -> None:
        self.source = source
        sensors = source.sensors
        generator = np.random.default_rng([source.seed, 0])
        width = len(str(sensors - 1))
        self.names = object_array([f"S{number:0{width}d}" for number in range(sensors)])
        self.units = object_array(["C"])
        self.rounds = max(1, _BLOCK // sensors)
        self.level = generator.uniform(15, 25, sensors)
        self.phase = generator.uniform(0, 2 * np.pi, sensors)
        self.turn = 2 * np.pi / generator.uniform(60, 3_600, sensors)  # radians per second
        self.walking = {"sine": 0.0, "walk": 1.0}.get(source.shape, 0.0) + np.zeros(sensors)
        if source.shape == "mixed":
            self.walking = generator.integers(0, 2, sensors).astype(np.float64)
        self.walked = np.zeros(sensors)
        self.spacing_ns = 1e9 / (source.rate if source.rate is not None else sensors)

    def block(self, number: int) -> Batch:
        source = self.source
        generator = np.random.default_rng([source.seed, 1, number])
        order = generator.permutation(source.sensors)
        codes = np.tile(order.astype(np.int32), self.rounds)
        index = np.arange(len(codes), dtype=np.int64) + number * len(codes)
        time_ns = source.start_ns + (index * self.spacing_ns).astype(np.int64)
        seconds = ((time_ns - source.start_ns) / 1e9).reshape(self.rounds, -1)
        value = self._values(generator, order, seconds).reshape(-1)
        if source.spikes:
            leaps = generator.random(len(value)) < source.spikes
            value[leaps] += generator.choice([-50.0, 50.0], int(leaps.sum()))
        rows = self._rows(generator, len(codes))
        if rows is not None:
            codes, time_ns, value = codes[rows], time_ns[rows], value[rows]
        sensor = Column(Kind.TEXT, codes, texts=self.names)
        columns = {
            "sensor": sensor,
            "time": Column(Kind.TIME, time_ns),
            "value": Column(Kind.FLOAT, value),
            "unit": Column(Kind.TEXT, np.zeros(len(codes), np.int32), texts=self.units),
        }
        return Batch(columns, key=sensor, time=time_ns)

    def _values(
        self, generator: np.random.Generator, order: NDArray[np.int64], seconds: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        walking = self.walking[order]
        steps = generator.standard_normal(seconds.shape)
        walk = np.cumsum(steps * (0.1 * walking), axis=0) + self.walked[order]
        self.walked[order] = walk[-1]
        wave = np.sin(seconds * self.turn[order] + self.phase[order]) * (5.0 * (1.0 - walking))
        value: NDArray[np.float64] = self.level[order] + wave + walk + 0.05 * steps[::-1]
        if self.source.drift:
            value += self.source.drift * seconds / 3_600
        return value

    def _rows(self, generator: np.random.Generator, rows: int) -> NDArray[np.int64] | None:
        """Which records come, in which order; None for all as they are."""
        source = self.source
        if not (source.gaps or source.late or source.duplicates):
            return None
        come = np.arange(rows)
        if source.late:
            behind = generator.integers(1, 4 * source.sensors + 1, rows)
            come = np.argsort(come + np.where(generator.random(rows) < source.late, behind, 0), kind="stable")
        times = np.where(generator.random(rows) < source.gaps, 0, 1)
        times += (generator.random(rows) < source.duplicates) & (times == 1)
        return np.repeat(come, times)
