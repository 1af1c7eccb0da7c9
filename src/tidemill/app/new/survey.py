"""The sensors of a recording and their numbers, read as a run reads them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.app.new.fields_seen import Place, at_place
from tidemill.app.new.sniffing import number_of
from tidemill.app.new.templates import MOST_SENSORS, Calibrated
from tidemill.app.recording import Rejected
from tidemill.batch import Batch
from tidemill.clock import SystemClock
from tidemill.column import Column
from tidemill.errors import InputError
from tidemill.formats.json_lines import time_texts
from tidemill.printable import counted
from tidemill.schema import Kind
from tidemill.sources.base import Source, SourceContext

__all__ = ["LOOKED_AT", "Survey", "surveyed"]

LOOKED_AT: Final = 200_000
"""Records of a recording, at most."""


@dataclass
class _Moments:
    """Count, mean and sum of squared differences of one sensor's numbers."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, numbers: NDArray[np.float64]) -> None:
        if not len(numbers):
            return
        count, mean = len(numbers), float(numbers.mean())
        total, apart = self.count + count, mean - self.mean
        self.squares += float(((numbers - mean) ** 2).sum()) + apart**2 * self.count * count / total
        self.mean += apart * count / total
        self.count = total


@dataclass
class Survey:
    """What was read."""

    records: int = 0
    all: bool = True
    """Whether the recording ended within the records that are looked at."""
    rejected: Rejected = field(default_factory=Rejected)
    first_ns: int = 0
    last_ns: int = 0
    sensors: dict[str, _Moments] = field(default_factory=dict)

    def __str__(self) -> str:
        first, last = time_texts(Column(Kind.TIME, np.array([self.first_ns, self.last_ns])))
        count = ("" if self.all else "the first ") + counted(self.records, "record")
        return f"{count} of {counted(len(self.sensors), 'sensor')}, {first} to {last}"

    @property
    def calibrated(self) -> list[Calibrated]:
        """The first sensors, as many as a calibration gets lines."""
        return [
            Calibrated(
                name,
                one.mean if one.count else np.nan,
                float(np.sqrt(one.squares / one.count)) if one.count else np.nan,
            )
            for name, one in list(self.sensors.items())[:MOST_SENSORS]
        ]

    def add(self, batch: Batch, value: Place) -> None:
        """Take these records in."""
        numbers = _numbers(batch, value)
        names = batch.keys
        order = np.argsort(batch.key, kind="stable")
        codes, starts = np.unique(batch.key[order], return_index=True)
        first = {int(code): int(order[start]) for code, start in zip(codes, starts, strict=True)}
        ends = [*starts[1:].tolist(), len(order)]
        own = {
            int(code): numbers[order[start:end]] for code, start, end in zip(codes, starts.tolist(), ends, strict=True)
        }
        for code in sorted(first, key=lambda code: first[code]):  # in the order of the sensors' first records
            mine = own[code]
            self.sensors.setdefault(str(names[code]), _Moments()).add(mine[np.isfinite(mine)])
        low, high = int(batch.time.min()), int(batch.time.max())
        self.first_ns, self.last_ns = (
            (min(low, self.first_ns), max(high, self.last_ns)) if self.records else (low, high)
        )
        self.records += len(batch)


def surveyed(source: Source, value: Place) -> Survey:
    """The first records of a source. Raises `InputError` when none can be used, saying why."""
    return asyncio.run(_surveyed(source, value))


async def _surveyed(source: Source, value: Place) -> Survey:
    source.check()
    survey = Survey()
    context = SourceContext(SystemClock(), survey.rejected.add)
    stream = source.stream(context)
    async for batch in stream:
        if len(batch):
            survey.add(batch.slice(0, LOOKED_AT - survey.records), value)
        if survey.records >= LOOKED_AT:
            survey.all = False
            break
    context.stopping.set()
    await stream.aclose()  # type: ignore[attr-defined] # of an asynchronous generator, as every source's is
    if not survey.records:
        raise InputError(source.explain() if survey.rejected.count else f"{source.name} has no records.")
    return survey


def _numbers(batch: Batch, value: Place) -> NDArray[np.float64]:
    """The reading of each record; NaN where there is none."""
    column = batch.columns.get(value[0])
    if column is None:
        return np.full(len(batch), np.nan)
    if len(value) == 1 and column.kind in (Kind.FLOAT, Kind.INT):
        return batch[value[0]].astype(np.float64)
    items: list[Any] = [at_place(item, value[1:]) for item in column.to_list()]
    return np.array([np.nan if (number := number_of(item)) is None else number for item in items])
