"""The intake: batches of all sources, one after another, in the order that becomes the input order.

Bounded by records and bytes, with a high and a low mark. The marks are soft by one slice: a source learns that the
intake is full only after it put one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.core.keys import UNKNOWN, KeyTable
from tidemill.errors import EngineError
from tidemill.letters import TOO_MANY_KEYS, WRONG_TYPE, DeadLetter
from tidemill.schema import Kind

__all__ = ["SLICE_RECORDS", "Intake", "Taken"]

SLICE_RECORDS: Final = 32_768
"""The most records handled in one turn of the loop: about a millisecond of the parent's work."""


@dataclass(frozen=True)
class Taken:
    """Consecutive records, ready to become a slab."""

    batch: Batch
    codes: NDArray[np.int32]
    """Run-wide key code of each record."""
    first: int
    """Input index of the first."""
    arrivals: list[tuple[int, int]]
    """(records, monotonic ns of the read that brought them), in order."""


class Intake:
    """Waiting records, with their keys coded. ``arrived`` is called after each put, in the same turn of the loop."""

    def __init__(
        self,
        keys: KeyTable,
        *,
        reject: Callable[[DeadLetter], None],
        arrived: Callable[[], None],
        high_records: int = 4 * SLICE_RECORDS,
        high_bytes: int = 64 << 20,
    ) -> None:
        self._keys = keys
        self._reject = reject
        self._arrived = arrived
        self.high_records = high_records
        self._high_bytes = high_bytes
        self._pieces: deque[tuple[Batch, NDArray[np.int32]]] = deque()
        self._room = asyncio.Event()
        self._room.set()
        self._kinds: dict[str, Kind] = {}
        self._bytes = 0
        self.waiting = 0
        """Records put and not taken."""
        self.taken = 0
        """Records taken so far: the input index of the next."""

    async def put(self, batch: Batch, source: str) -> int:
        """Add a source's batch; waits while the intake is full. Returns the records that entered."""
        entered = 0
        for start in range(0, len(batch), SLICE_RECORDS):
            await self._room.wait()
            entered += self._put_slice(batch.slice(start, start + SLICE_RECORDS), source)
            if len(batch) > SLICE_RECORDS:
                await asyncio.sleep(0)
        return entered

    def _put_slice(self, batch: Batch, source: str) -> int:
        if batch.key_column is None:
            raise EngineError(f"source {source} made a batch without keys")
        batch = self._of_one_kind(batch, source)
        assert batch.key_column is not None
        codes = self._keys.encode(batch.key_column)
        if len(codes) and int(codes.min()) == UNKNOWN:
            batch, codes = self._without_unknown(batch, codes, source)
        if not len(batch):
            return 0
        self._pieces.append((batch, codes))
        self.waiting += len(batch)
        self._bytes += _bytes(batch)
        if self.waiting >= self.high_records or self._bytes >= self._high_bytes:
            self._room.clear()
        self._arrived()
        return len(batch)

    def _without_unknown(self, batch: Batch, codes: NDArray[np.int32], source: str) -> tuple[Batch, NDArray[np.int32]]:
        rows = np.flatnonzero(codes == UNKNOWN)
        for row in batch.take(rows).to_rows():
            reason = f"the run already has {len(self._keys)} sensors, its max_keys"
            self._reject(DeadLetter(TOO_MANY_KEYS, reason, row, source))
        keep = np.flatnonzero(codes != UNKNOWN)
        return batch.take(keep), codes[keep]

    def _of_one_kind(self, batch: Batch, source: str) -> Batch:
        """A column has one kind for the whole run, whichever source it came from; what does not fit is rejected."""
        recast: dict[str, Column] = {}
        wrong = np.zeros(len(batch), np.bool_)
        for name, column in batch.columns.items():
            kind = self._kinds.get(name)
            if kind is column.kind:
                continue
            if column.kind is Kind.OBJECT and column.tags is not None and column.tags.all():
                if kind is not None:
                    recast[name] = _missing_like(column, kind)
                continue
            if kind is None:
                self._kinds[name] = column.kind
                continue
            missing = np.zeros(len(batch), np.bool_) if column.tags is None else (column.tags != 0) & (column.tags != 3)
            wrong |= ~missing
            recast[name] = _missing_like(column, kind)
        if not recast:
            return batch
        if wrong.any():
            return self._without_wrong(batch, recast, wrong, source)
        return batch.with_columns(recast)

    def _without_wrong(self, batch: Batch, recast: dict[str, Column], wrong: NDArray[np.bool_], source: str) -> Batch:
        told = ", ".join(
            f"{name!r} is {self._kinds[name].value} and this record has {batch.columns[name].kind.value}"
            for name in recast
        )
        for row in batch.take(np.flatnonzero(wrong)).to_rows():
            self._reject(DeadLetter(WRONG_TYPE, f"field {told}", row, source))
        return batch.with_columns(recast).take(np.flatnonzero(~wrong))

    def take(self, records: int) -> Taken:
        """The next ``records`` waiting records."""
        batches, codes, arrivals = [], [], []
        left = records
        while left:
            batch, coded = self._pieces.popleft()
            if len(batch) > left:
                self._pieces.appendleft((batch.slice(left, len(batch)), coded[left:]))
                batch, coded = batch.slice(0, left), coded[:left]
            left -= len(batch)
            batches.append(batch)
            codes.append(coded)
            arrivals.append((len(batch), batch.arrived_ns))
            self._bytes -= _bytes(batch)
        first = self.taken
        self.taken += records
        self.waiting -= records
        if not self._room.is_set() and 2 * self.waiting < self.high_records and 2 * self._bytes < self._high_bytes:
            self._room.set()
        joined = codes[0] if len(codes) == 1 else np.concatenate(codes)
        return Taken(Batch.concat(batches), joined, first, arrivals)

    def put_back(self, taken: Taken, records: int) -> Taken:
        """Return all but the first ``records`` of what was just taken."""
        rest = taken.batch.slice(records, len(taken.batch))
        rest.arrived_ns = taken.arrivals[-1][1]
        self._pieces.appendleft((rest, taken.codes[records:]))
        self.waiting += len(rest)
        self.taken -= len(rest)
        self._bytes += _bytes(rest)
        return Taken(
            taken.batch.slice(0, records), taken.codes[:records], taken.first, [(records, taken.arrivals[0][1])]
        )


def _missing_like(column: Column, kind: Kind) -> Column:
    made = Column.missing(kind, len(column), 1)
    if column.tags is not None:
        made.tags = np.where(column.tags == 0, 1, column.tags).astype(np.uint8)
    return made


def _bytes(batch: Batch) -> int:
    """What a batch holds in memory, roughly: nested values are counted as 200 bytes each."""
    return sum(
        200 * len(column) if column.kind is Kind.OBJECT else column.values.nbytes for column in batch.columns.values()
    )
