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
from tidemill.letters import MALFORMED, NO_KEY, TOO_MANY_KEYS, WRONG_TYPE, DeadLetter
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
    bytes: float
    """What the records hold in memory, roughly."""


@dataclass(frozen=True)
class _Piece:
    """Waiting records of one read."""

    batch: Batch
    codes: NDArray[np.int32]
    record_bytes: float

    @property
    def bytes(self) -> float:
        return self.record_bytes * len(self.batch)

    def part(self, start: int, stop: int) -> _Piece:
        return _Piece(self.batch.slice(start, stop), self.codes[start:stop], self.record_bytes)


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
        self._pieces: deque[_Piece] = deque()
        self._room = asyncio.Event()
        self._room.set()
        self._kinds: dict[str, Kind] = {}
        self._bytes = 0.0
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
        piece = _Piece(batch, codes, _record_bytes(batch))
        self._pieces.append(piece)
        self.waiting += len(batch)
        self._bytes += piece.bytes
        if self.waiting >= self.high_records or self._bytes >= self._high_bytes:
            self._room.clear()
        self._arrived()
        return len(batch)

    def _without_unknown(self, batch: Batch, codes: NDArray[np.int32], source: str) -> tuple[Batch, NDArray[np.int32]]:
        away = batch.take(np.flatnonzero(codes == UNKNOWN))
        assert away.key_column is not None
        for row, key in zip(away.to_rows(), away.key_column.to_list(), strict=True):
            self._reject(DeadLetter(*self._why_unknown(key), row, source))
        keep = np.flatnonzero(codes != UNKNOWN)
        return batch.take(keep), codes[keep]

    def _why_unknown(self, key: str | None) -> tuple[str, str]:
        if key is None:
            return NO_KEY, "the record does not say which sensor it is from"
        if not _is_unicode(key):
            return MALFORMED, "the sensor's name is no valid Unicode text"
        return TOO_MANY_KEYS, f"the run already has {len(self._keys)} sensors, its max_keys"

    def _of_one_kind(self, batch: Batch, source: str) -> Batch:
        """A column has one kind for the whole run, whichever source it came from; what does not fit is rejected."""
        recast: dict[str, Column] = {}
        wrong = np.zeros(len(batch), np.bool_)
        for name, column in batch.columns.items():
            kind = self._kinds.get(name)
            if kind is column.kind:
                continue
            if column.is_missing:
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
        for row in batch.take(np.flatnonzero(wrong)).to_rows():
            told = ", ".join(
                f"field {name!r} is {self._kinds[name].value} and this record has {batch.columns[name].kind.value}"
                for name in recast
                if row.get(name) is not None
            )
            self._reject(DeadLetter(WRONG_TYPE, told, row, source))
        return batch.with_columns(recast).take(np.flatnonzero(~wrong))

    def take(self, records: int) -> Taken:
        """The next records waiting: ``records`` of them, or at least half as many where a source's batch ends there,
        because joining batches means copying them. There must be as many."""
        pieces: list[_Piece] = []
        left = records
        while 2 * left > records:
            piece = self._pieces.popleft()
            if len(piece.batch) > left:
                self._pieces.appendleft(piece.part(left, len(piece.batch)))
                piece = piece.part(0, left)
            left -= len(piece.batch)
            pieces.append(piece)
        first = self.taken
        records -= left
        size = sum(piece.bytes for piece in pieces)
        self.taken += records
        self.waiting -= records
        self._bytes = self._bytes - size if self._pieces else 0.0
        if not self._room.is_set() and 2 * self.waiting < self.high_records and 2 * self._bytes < self._high_bytes:
            self._room.set()
        codes = pieces[0].codes if len(pieces) == 1 else np.concatenate([piece.codes for piece in pieces])
        arrivals = [(len(piece.batch), piece.batch.arrived_ns) for piece in pieces]
        return Taken(Batch.concat([piece.batch for piece in pieces]), codes, first, arrivals, size)

    def put_back(self, taken: Taken, records: int) -> Taken:
        """Return all but the first ``records`` of what was just taken; gives what is left of it."""
        record_bytes = taken.bytes / len(taken.batch)
        ends = np.cumsum([count for count, _ in taken.arrivals]).tolist()
        kept: list[tuple[int, int]] = []
        rest: list[_Piece] = []
        for end, (count, arrived_ns) in zip(ends, taken.arrivals, strict=True):
            start = max(end - count, records)
            if records > end - count:
                kept.append((min(end, records) - (end - count), arrived_ns))
            if start < end:
                batch = taken.batch.slice(start, end).with_columns({})
                batch.arrived_ns = arrived_ns
                rest.append(_Piece(batch, taken.codes[start:end], record_bytes))
        self._pieces.extendleft(reversed(rest))
        returned = len(taken.batch) - records
        self.waiting += returned
        self.taken -= returned
        self._bytes += record_bytes * returned
        return Taken(
            taken.batch.slice(0, records),
            taken.codes[:records],
            taken.first,
            kept,
            taken.bytes - record_bytes * returned,
        )


def _missing_like(column: Column, kind: Kind) -> Column:
    made = Column.missing(kind, len(column), 1)
    if column.tags is not None:
        made.tags = np.where(column.tags == 0, 1, column.tags).astype(np.uint8)
    return made


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_SAMPLE: Final = 64  # texts


def _record_bytes(batch: Batch) -> float:
    """What a record holds in memory, roughly: nested values are counted as 200 bytes each, texts by a sample."""
    total = 0.0
    for column in batch.columns.values():
        total += 200 if column.kind is Kind.OBJECT else column.values.itemsize
        if column.kind is Kind.TEXT and column.texts is not None and len(column.texts):
            sample = column.texts[:: max(len(column.texts) // _SAMPLE, 1)]
            each = sum(map(len, sample)) / len(sample)
            total += each * min(len(column.texts) / max(len(batch), 1), 1.0)  # a text of many records is held once
    return total
