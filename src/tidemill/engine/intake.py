"""The intake: batches of all sources, one after another, in the order that becomes the input order.

Bounded by records and bytes, with a high and a low mark. The marks are soft by one slice: a source learns that the
intake is full only after it put one.
"""

from __future__ import annotations

import asyncio
import pickle
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.core.keys import UNKNOWN, KeyTable
from tidemill.core.placement import devices_of, lacking
from tidemill.errors import EngineError
from tidemill.formats.packed import compact_texts
from tidemill.formats.unfit import is_unicode
from tidemill.letters import MALFORMED, MISSING_FIELD, NO_KEY, TOO_MANY_KEYS, WRONG_TYPE, DeadLetter
from tidemill.schema import Kind

__all__ = ["SLICE_BYTES", "SLICE_RECORDS", "Intake", "IntakeStatistics", "Taken"]

SLICE_RECORDS: Final = 32_768
"""The most records handled in one turn of the loop: about a millisecond of the parent's work."""
SLICE_BYTES: Final = 4 << 20
"""The most bytes of different texts, or what takes as long: copying numbers is quick, encoding texts and objects not."""


@dataclass(frozen=True)
class Taken:
    """Consecutive records, ready to become a slab."""

    batch: Batch
    codes: NDArray[np.int32]
    """Run-wide key code of each record."""
    devices: NDArray[np.int32] | None
    """That of its device, where the plan places sensors by it."""
    first: int
    """Input index of the first."""
    arrivals: list[tuple[int, int]]
    """(records, monotonic ns of the read that brought them), in order."""
    bytes: float
    """What the records hold in memory, roughly."""
    text_bytes: float
    """What there is to encode, as bytes of text that would take as long."""

    @property
    def turns(self) -> float:
        """How much of what may be handled in one turn of the loop this is."""
        return max(len(self.batch) / SLICE_RECORDS, self.text_bytes / SLICE_BYTES)


@dataclass(frozen=True)
class _Piece:
    """Waiting records of one read."""

    batch: Batch
    codes: NDArray[np.int32]
    devices: NDArray[np.int32] | None
    record_bytes: float
    record_text_bytes: float

    @property
    def bytes(self) -> float:
        return self.record_bytes * len(self.batch)

    def part(self, start: int, stop: int) -> _Piece:
        devices = None if self.devices is None else self.devices[start:stop]
        codes = self.codes[start:stop]
        return _Piece(self.batch.slice(start, stop), codes, devices, self.record_bytes, self.record_text_bytes)


@dataclass(frozen=True)
class IntakeStatistics:
    """How an intake is."""

    waiting: int
    """Records put and not taken."""
    high_records: int
    """Records from which sources wait."""
    waiting_bytes: int
    """What these records hold in memory, roughly."""
    taken: int
    """Records taken since the beginning."""
    full: bool
    """Whether sources wait."""


class Intake:
    """Waiting records, with their keys coded. ``arrived`` is called after each put, in the same turn of the loop.

    ``place_by`` is the column that names the device, where sensors are placed by it.
    """

    def __init__(
        self,
        keys: KeyTable,
        *,
        reject: Callable[[DeadLetter], None],
        arrived: Callable[[], None],
        place_by: str | None = None,
        high_records: int = 4 * SLICE_RECORDS,
        high_bytes: int = 64 << 20,
    ) -> None:
        self._keys = keys
        self._reject = reject
        self._arrived = arrived
        self._place_by = place_by
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

    def statistics(self) -> IntakeStatistics:
        """How it is, now."""
        return IntakeStatistics(self.waiting, self.high_records, int(self._bytes), self.taken, not self._room.is_set())

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
        devices = None
        if self._place_by is None:
            codes = self._keys.encode(batch.key_column)
        else:
            codes, devices = self._keys.encode_placed(batch.key_column, devices_of(batch, self._place_by))
        if len(codes) and np.minimum.reduce(codes) == UNKNOWN:
            batch, keep = self._without_unknown(batch, codes, source)
            codes, devices = codes[keep], None if devices is None else devices[keep]
        if not len(batch):
            return 0
        piece = _Piece(batch, codes, devices, *_record_bytes(batch))
        self._pieces.append(piece)
        self.waiting += len(batch)
        self._bytes += piece.bytes
        if self.waiting >= self.high_records or self._bytes >= self._high_bytes:
            self._room.clear()
        self._arrived()
        return len(batch)

    def _without_unknown(self, batch: Batch, codes: NDArray[np.int32], source: str) -> tuple[Batch, NDArray[np.intp]]:
        away = batch.take(np.flatnonzero(codes == UNKNOWN))
        assert away.key_column is not None
        keys = away.key_column.to_list()
        devices = keys if self._place_by is None else devices_of(away, self._place_by).to_list()
        for row, key, device, ns in zip(away.to_rows(), keys, devices, away.time.tolist(), strict=True):
            self._reject(DeadLetter(*self._why_unknown(key, device), row, source, key=key, time_ns=ns))
        keep = np.flatnonzero(codes != UNKNOWN)
        return batch.take(keep), keep

    def _why_unknown(self, key: str | None, device: str | None) -> tuple[str, str]:
        if key is None:
            return NO_KEY, "the record does not say which sensor it is from"
        if not is_unicode(key):
            return MALFORMED, "the sensor's name is no valid Unicode text"
        if self._place_by is None:
            return TOO_MANY_KEYS, f"the run already has {len(self._keys)} sensors, its max_keys"
        if not isinstance(device, str) or not device:
            return MISSING_FIELD, lacking(self._place_by)
        if not is_unicode(device):
            return MALFORMED, f"the device's name, in field {self._place_by!r}, is no valid Unicode text"
        return TOO_MANY_KEYS, f"the run already has {len(self._keys)} sensors and devices, its max_keys"

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
        lost = batch.take(np.flatnonzero(wrong))
        for row, code, ns in zip(lost.to_rows(), lost.key.tolist(), lost.time.tolist(), strict=True):
            told = ", ".join(
                f"field {name!r} is {self._kinds[name].value} and this record has {batch.columns[name].kind.value}"
                for name in recast
                if row.get(name) is not None
            )
            self._reject(DeadLetter(WRONG_TYPE, told, row, source, key=str(lost.keys[code]), time_ns=ns))
        return batch.with_columns(recast).take(np.flatnonzero(~wrong))

    def take(self, records: int, most_bytes: float = SLICE_BYTES) -> Taken:
        """The next records waiting: ``records`` of them, or fewer where a source's batch ends, because joining batches
        means copying them: when these are more than half as many, or when the batches behind fill slabs of their own,
        each of which would otherwise be joined of two. There must be as many.

        Fewer, and at least one, when they have more than ``most_bytes`` of different texts, or objects that take as
        long to encode.
        """
        pieces: list[_Piece] = []
        left, left_bytes = records, most_bytes
        while 2 * left >= records:
            piece = self._pieces[0]
            if pieces and self._slabs_follow(records):
                break
            fitting = len(piece.batch) if not piece.record_text_bytes else int(left_bytes / piece.record_text_bytes)
            count = min(len(piece.batch), left, max(fitting, 0 if pieces else 1))
            if not count:
                break
            self._pieces.popleft()
            if count < len(piece.batch):
                self._pieces.appendleft(piece.part(count, len(piece.batch)))
                piece = piece.part(0, count)
            left -= count
            left_bytes -= piece.record_text_bytes * count
            pieces.append(piece)
        first = self.taken
        records -= left
        size = sum(piece.bytes for piece in pieces)
        self.taken += records
        self.waiting -= records
        self._bytes = self._bytes - size if self._pieces else 0.0
        if not self._room.is_set() and 2 * self.waiting < self.high_records and 2 * self._bytes < self._high_bytes:
            self._room.set()
        codes = _joined([piece.codes for piece in pieces])
        devices = None
        if self._place_by is not None:
            devices = _joined([piece.devices for piece in pieces if piece.devices is not None])
        arrivals = [(len(piece.batch), piece.batch.arrived_ns) for piece in pieces]
        batch = Batch.concat(_compact([piece.batch for piece in pieces]))
        return Taken(batch, codes, devices, first, arrivals, size, most_bytes - left_bytes)

    def _slabs_follow(self, records: int) -> bool:
        """Whether the next two of the sources' batches fill a slab each."""
        return len(self._pieces) > 1 and all(len(self._pieces[place].batch) >= records for place in (0, 1))

    def put_back(self, taken: Taken, records: int) -> Taken:
        """Return all but the first ``records`` of what was just taken; gives what is left of it."""
        record_bytes, text_bytes = taken.bytes / len(taken.batch), taken.text_bytes / len(taken.batch)
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
                devices = None if taken.devices is None else taken.devices[start:end]
                rest.append(_Piece(batch, taken.codes[start:end], devices, record_bytes, text_bytes))
        self._pieces.extendleft(reversed(rest))
        returned = len(taken.batch) - records
        self.waiting += returned
        self.taken -= returned
        self._bytes += record_bytes * returned
        return Taken(
            taken.batch.slice(0, records),
            taken.codes[:records],
            None if taken.devices is None else taken.devices[:records],
            taken.first,
            kept,
            taken.bytes - record_bytes * returned,
            taken.text_bytes - text_bytes * returned,
        )


def _joined(codes: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return codes[0] if len(codes) == 1 else np.concatenate(codes)


def _missing_like(column: Column, kind: Kind) -> Column:
    made = Column.missing(kind, len(column), 1)
    if column.tags is not None:
        made.tags = np.where(column.tags == 0, 1, column.tags).astype(np.uint8)
    return made


def _compact(batches: list[Batch]) -> list[Batch]:
    """The batches to be joined, without the texts they do not use: joining tables takes time for each text in them."""
    if len(batches) == 1:
        return batches
    made = []
    for batch in batches:
        smaller = {
            name: compact_texts(column)
            for name, column in batch.columns.items()
            if column.kind is Kind.TEXT
            and any(name in other and other.columns[name].texts is not column.texts for other in batches)
        }
        made.append(batch.with_columns(smaller))
        made[-1].origin_names = batch.origin_names  # the same values
        made[-1].arrived_ns = batch.arrived_ns
    return made


_SAMPLE: Final = 64  # texts
_SAMPLE_OBJECTS: Final = 8
_TEXT_COST: Final = 40  # bytes of text that take as long to encode as there being a text at all
_OBJECT_COST: Final = 100  # the same of an object
_PICKLE_COST: Final = 25  # and of each byte of a pickle


def _record_bytes(batch: Batch) -> tuple[float, float]:
    """What a record holds in memory, roughly, and what of it must be encoded, as bytes of text that take as long.

    Nested values are counted as 200 bytes each in memory; texts, and the time that objects take, by a sample.
    """
    total = encoded = 0.0
    for column in batch.columns.values():
        if column.kind is Kind.OBJECT:
            total += 200
            encoded += _OBJECT_COST + _PICKLE_COST * _pickled_bytes(column)
            continue
        total += column.values.itemsize
        if column.kind is Kind.TEXT and column.texts is not None and len(column.texts):
            sample = column.texts[:: max(len(column.texts) // _SAMPLE, 1)]
            each = sum(map(len, sample)) / len(sample)
            share = min(len(column.texts) / max(len(batch), 1), 1.0)  # a text of many records is held once
            total += each * share
            encoded += (each + _TEXT_COST) * share
    return total, encoded


def _pickled_bytes(column: Column) -> float:
    """Bytes of an item's pickle, by a sample."""
    if column.is_missing:
        return 0.0
    sample = column.values[:: max(len(column.values) // _SAMPLE_OBJECTS, 1)].tolist()
    try:
        return len(pickle.dumps(sample, pickle.HIGHEST_PROTOCOL)) / len(sample)
    except Exception:  # noqa: BLE001 - whoever must pickle it will say so
        return 0.0
