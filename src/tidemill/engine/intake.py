"""The intake: batches of all sources, one after another, in the order that becomes the input order.

Every input takes one position in that order: each record, each one that is rejected, each control record. Bounded by
records and bytes, with a high and a low mark. The marks are soft by one slice: a source learns that the intake is full
only after it put one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.core.controls import Decided
from tidemill.core.keys import UNKNOWN, KeyTable
from tidemill.core.placement import devices_of, lacking
from tidemill.engine.pieces import SLICE_BYTES, SLICE_PIECES, SLICE_RECORDS, Piece, Taken, put_together
from tidemill.engine.record_bytes import record_bytes
from tidemill.errors import EngineError
from tidemill.formats.unfit import is_unicode
from tidemill.kinds import Kinds
from tidemill.letters import AT_A_TIME, MALFORMED, MISSING_FIELD, NO_KEY, TOO_MANY_KEYS, WRONG_TYPE, DeadLetter
from tidemill.schema import Asked, Kind

__all__ = ["SLICE_BYTES", "SLICE_RECORDS", "Beginning", "Intake", "IntakeStatistics", "Taken"]

_MANY: Final = 5
"""Batches of a source that are joined to more than half a slab, which may as well be full then: slabs that end at a little more
than half would grow by one such batch each time, and not double."""
_MOST_NAMES: Final = 1_024
"""Columns that are put into batches without them, at most: as many as one record may have."""
_CELLS: Final = 1 << 20
"""Places without a value that are put into one slab: some milliseconds."""
_NUMBERS: Final = frozenset({Kind.FLOAT, Kind.INT})
_NO_ROWS: Final = np.empty(0, np.intp)
_NOTHING: Final[Mapping[str, Kind]] = {}


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
    fill: float = 0.0
    """What waits, in records or bytes, as a share of that from which sources wait; soft, so it may pass 1."""


@dataclass(frozen=True)
class Beginning:
    """Where in the input a run begins; by default with nothing."""

    entered: int = 0
    """Inputs before the first that will be put."""
    done: int = 0
    """Of those that will be put, the inputs up to this position are done already: they pass without a trace."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """The kinds of the columns that came so far."""
    empty: Mapping[str, str] = field(default_factory=dict)
    """Columns that came, and held no value; as what they were."""
    declared: Mapping[str, str] = field(default_factory=dict)
    """The kinds that sources declare by now, of columns that may not have come: what was logged before is of others."""
    cuts: Sequence[int] = ()
    """Positions at which a slab must end, ascending: a sink has committed up to there."""


@dataclass(frozen=True)
class _Placed:
    """A control record in its place."""

    control: Decided
    position: int


class _Looked(NamedTuple):
    """Records of one read, and which of them the run takes."""

    came: Batch
    batch: Batch
    """The same, each column of the kind that it has for the run."""
    codes: NDArray[np.int32]
    """Of the sensors; `UNKNOWN` of a record that is not taken."""
    devices: NDArray[np.int32] | None
    wrong: NDArray[np.intp]
    """The rows that are not taken because a column does not fit."""
    lost: NDArray[np.intp]
    """All rows that are not taken."""


class Intake:
    """Waiting records, with their keys coded. ``arrived`` is called after each put, in the same turn of the loop.

    ``place_by`` is the column that names the device, where sensors are placed by it; ``asked`` what columns have to be that did
    not come yet: a record of the log may have one that is otherwise. With ``fills``, every column that a read up to a record's
    own has brought is in the record's slab, absent where it did not come: which records share a slab must not decide what a
    function finds there.
    """

    def __init__(
        self,
        keys: KeyTable,
        *,
        reject: Callable[[Sequence[DeadLetter]], None],
        arrived: Callable[[], None],
        place_by: str | None = None,
        asked: Mapping[str, Asked] | None = None,
        fills: bool = False,
        high_records: int = 4 * SLICE_RECORDS,
        high_bytes: int = 64 << 20,
        beginning: Beginning | None = None,
    ) -> None:
        self._keys = keys
        self._reject = reject
        self._arrived = arrived
        self._place_by = place_by
        self._asked = asked or {}
        self.high_records = high_records
        self._high_bytes = high_bytes
        self._pieces: deque[Piece | _Placed] = deque()
        self._room = asyncio.Event()
        self._room.set()
        beginning = beginning or Beginning()
        self._declared = {name: Kind(kind) for name, kind in beginning.declared.items()}
        self._kinds = {name: self._declared.get(name, Kind(kind)) for name, kind in beginning.kinds.items()}
        self._fills = fills
        self._came = {**{name: Kind(kind) for name, kind in beginning.empty.items()}, **self._kinds}
        self._came_at = dict.fromkeys(self._came, 0)
        self._kind_at = dict.fromkeys(self._kinds, 0)
        self._done = beginning.done
        self._cuts = deque(beginning.cuts)
        self._bytes = 0.0
        self.begins_at = max(beginning.entered, beginning.done)
        """Up to where in the input all was done before."""
        self.entered = beginning.entered
        """Inputs so far: the position of the last."""
        self.waiting = 0
        """Records put and not taken."""
        self.taken = 0
        """Records taken so far."""

    def statistics(self) -> IntakeStatistics:
        """How it is, now."""
        fill = max(self.waiting / self.high_records, self._bytes / self._high_bytes)
        return IntakeStatistics(
            self.waiting, self.high_records, int(self._bytes), self.taken, not self._room.is_set(), fill
        )

    @property
    def empty(self) -> bool:
        """Whether nothing waits: no record, and nothing that was decided."""
        return not self._pieces

    def kinds_at(self, position: int) -> dict[str, str]:
        """The kinds of the columns that had come by then."""
        return {name: kind.value for name, kind in self._kinds.items() if self._kind_at[name] <= position}

    def empty_at(self, position: int) -> dict[str, str]:
        """The columns that had come by then, and held no value; as what they were."""
        known = self.kinds_at(position)
        names = (name for name, at in self._came_at.items() if at <= position and name not in known)
        return {name: (Kind.OBJECT if name in self._kinds else self._came[name]).value for name in names}

    # -- in --------------------------------------------------------------------------------------------------

    async def put(self, batch: Batch, source: str, wall_ns: int | None = None) -> int:
        """Add a source's batch; waits while the intake is full. Returns the records that entered.

        Where many are rejected, or from sensors that are new, it enters in parts, each with its own place in the input, and others
        have their turn in between.
        """
        entered = 0
        for start in range(0, len(batch), SLICE_RECORDS):
            await self._room.wait()
            part = batch.slice(start, start + SLICE_RECORDS)
            starts = (
                [0] if self._place_by is not None or part.key_column is None else self._keys.starts(part.key_column)
            )
            for first, stop in pairwise([*starts, len(part)]):
                if first:
                    await asyncio.sleep(0)
                some = part if stop - first == len(part) else part.slice(first, stop)
                entered += await self._put_slice(some, source, wall_ns)
            if len(batch) > SLICE_RECORDS:
                await asyncio.sleep(0)
        return entered

    def refuse(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        """A source could not make records of something; each takes its place all the same. Those that are new."""
        new = []
        for letter in letters:
            self.entered += 1
            if self.entered > self._done:
                new.append(replace(letter, position=self.entered - 1))
        if new:
            self._reject(new)
        return new

    def decide(self, control: Decided) -> int:
        """Put a control record behind what has come so far; its position."""
        self.entered += 1
        if self.entered > self._done:
            self._pieces.append(_Placed(control, self.entered))
            self._arrived()
        return self.entered

    async def _put_slice(self, batch: Batch, source: str, wall_ns: int | None) -> int:
        if batch.key_column is None:
            raise EngineError(f"source {source} made a batch without keys")
        looked = self._look(batch)
        if len(looked.lost) <= AT_A_TIME:
            return self._enter(looked, source, wall_ns)
        entered = 0
        for start, stop in pairwise([0, *looked.lost[AT_A_TIME::AT_A_TIME].tolist(), len(batch)]):
            if start:
                await asyncio.sleep(0)
            entered += self._enter(self._look(batch.slice(start, stop)), source, wall_ns)
        return entered

    def _look(self, batch: Batch) -> _Looked:
        """Learns of the records what is new in them; they have not entered yet."""
        fitting, wrong = self._of_one_kind(batch)
        if not len(wrong):
            codes, devices = self._coded(fitting)
        else:
            right = np.setdiff1d(np.arange(len(batch)), wrong)
            codes, devices = self._coded(fitting.take(right))
            codes = _spread(codes, right, len(batch))
            devices = None if devices is None else _spread(devices, right, len(batch))
        lost = np.flatnonzero(codes == UNKNOWN) if len(codes) and np.minimum.reduce(codes) == UNKNOWN else _NO_ROWS
        return _Looked(batch, fitting, codes, devices, wrong, lost)

    def _coded(self, batch: Batch) -> tuple[NDArray[np.int32], NDArray[np.int32] | None]:
        assert batch.key_column is not None
        if self._place_by is None:
            return self._keys.encode(batch.key_column), None
        return self._keys.encode_placed(batch.key_column, devices_of(batch, self._place_by))

    def _enter(self, looked: _Looked, source: str, wall_ns: int | None) -> int:
        batch, codes, devices, lost = looked.batch, looked.codes, looked.devices, looked.lost
        positions = all_positions = np.arange(self.entered + 1, self.entered + len(batch) + 1)
        self.entered += len(batch)
        if len(lost):
            keep = np.flatnonzero(codes != UNKNOWN)
            batch, codes, positions = batch.take(keep), codes[keep], positions[keep]
            devices = None if devices is None else devices[keep]
        came = self._came if self._fills else _NOTHING
        piece = Piece(batch, codes, devices, positions, wall_ns, *record_bytes(batch), came)
        if len(batch) and positions[0] <= self._done:
            piece = piece.part(piece.rows_until(self._done), len(batch))
        records = len(piece.batch)
        if records:
            self._pieces.append(piece)
            self.waiting += records
            self._bytes += piece.bytes
            if self.waiting >= self.high_records or self._bytes >= self._high_bytes:
                self._room.clear()
        if len(lost):  # when the records wait: else all up to the last of them would seem to be done
            self._tell_lost(looked, all_positions, source)
        if records:
            self._arrived()
        return records

    def _tell_lost(self, looked: _Looked, positions: NDArray[np.int64], source: str) -> None:
        wrong = looked.wrong[positions[looked.wrong] > self._done]
        unknown = np.setdiff1d(looked.lost, looked.wrong)
        unknown = unknown[positions[unknown] > self._done]
        letters = [
            *self._of_wrong(looked, wrong, positions, source),
            *self._of_unknown(looked, unknown, positions, source),
        ]
        if letters:
            self._reject(letters)

    def _of_unknown(
        self, looked: _Looked, lost: NDArray[np.intp], positions: NDArray[np.int64], source: str
    ) -> Iterator[DeadLetter]:
        away = looked.batch.take(lost)
        assert away.key_column is not None
        keys = away.key_column.to_list()
        devices = keys if self._place_by is None else devices_of(away, self._place_by).to_list()
        rows = zip(away.to_rows(), keys, devices, away.time.tolist(), positions[lost].tolist(), strict=True)
        for row, key, device, ns, position in rows:
            why = self._why_unknown(key, device)
            yield DeadLetter(*why, row, source, key=key, time_ns=ns, position=position - 1)

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

    def _of_one_kind(self, batch: Batch) -> tuple[Batch, NDArray[np.intp]]:
        """A column has one kind for the whole run, whichever source it came from; and the rows that do not fit."""
        recast: dict[str, Column] = {}
        wrong = None
        learned = not self._came.keys() >= batch.columns.keys()
        for name, column in batch.columns.items():
            kind = self._kinds.get(name)
            if kind is column.kind:
                continue
            if column.is_missing:
                if kind is not None:
                    recast[name] = _missing_like(column, kind)
                continue
            if kind is None:
                asked = self._asked.get(name)
                kind = self._declared.get(name, column.kind)
                if asked is None or kind in asked.kinds:
                    self._kinds[name], self._kind_at[name] = kind, self.entered + 1
                    learned = True
                    if kind is column.kind:
                        continue
                else:
                    kind = asked.kinds[0]
            if kind is Kind.OBJECT or {kind, column.kind} <= _NUMBERS:  # a float column knows which values came as ints
                recast[name], rejects = Kinds({name: kind}).column(name, column.to_list())
                if rejects:
                    unfit = np.zeros(len(batch), np.bool_)
                    unfit[[reject.row for reject in rejects]] = True
                    wrong = unfit if wrong is None else wrong | unfit
                continue
            there = ~column.missing_rows()
            wrong = there if wrong is None else wrong | there
            recast[name] = _missing_like(column, kind)
        fitting = batch.with_columns(recast) if recast else batch
        if learned:
            self._note(fitting)
        return fitting, _NO_ROWS if wrong is None else np.flatnonzero(wrong)

    def _note(self, batch: Batch) -> None:
        """Columns come, or show their first value. What is known to records that wait does not change."""
        self._came = {**self._came, **{name: column.kind for name, column in batch.columns.items()}}
        for name in batch.columns:
            self._came_at.setdefault(name, self.entered + 1)

    def _of_wrong(
        self, looked: _Looked, lost: NDArray[np.intp], positions: NDArray[np.int64], source: str
    ) -> Iterator[DeadLetter]:
        batch = looked.came
        became = {name: looked.batch.columns[name].kind for name in batch.columns}
        names = [name for name, column in batch.columns.items() if became[name] not in (column.kind, Kind.OBJECT)]
        unread = {name: looked.batch.columns[name].missing_rows()[lost].tolist() for name in names}
        away = batch.take(lost)
        rows = zip(away.to_rows(), away.key.tolist(), away.time.tolist(), positions[lost].tolist(), strict=True)
        for place, (row, code, ns, position) in enumerate(rows):
            told = ", ".join(
                f"field {name!r} {self._has_to_be(name)} and this record has {batch.columns[name].kind.value}"
                for name in names
                if unread[name][place] and row.get(name) is not None
            )
            key = str(away.keys[code])
            yield DeadLetter(WRONG_TYPE, told, row, source, key=key, time_ns=ns, position=position - 1)

    def _has_to_be(self, name: str) -> str:
        return f"is {self._kinds[name].value}" if name in self._kinds else f"has to be {self._asked[name]},"

    # -- out -------------------------------------------------------------------------------------------------

    @property
    def decided(self) -> Decided | None:
        """What comes next, if it is a control record."""
        first = self._pieces[0] if self._pieces else None
        return first.control if isinstance(first, _Placed) else None

    def take_decided(self) -> int:
        """The control record that comes next is done; its position."""
        placed = self._pieces.popleft()
        assert isinstance(placed, _Placed)
        return placed.position

    def take(self, records: int, most_bytes: float = SLICE_BYTES) -> Taken:
        """The next records waiting: ``records`` of them, or fewer where a source's batch ends, because joining batches
        means copying them: when a few of these are more than half as many, or when the batches behind fill slabs of their
        own, each of which would otherwise be joined of two. There must be as many, and no control record next.

        Fewer, and at least one, when they have more than ``most_bytes`` of different texts, or objects that take as
        long to encode, or of `SLICE_PIECES` batches; or where a control record, a cut or a new column comes.
        """
        pieces: list[Piece] = []
        left, left_bytes = records, most_bytes
        while self._pieces and len(pieces) < SLICE_PIECES and (2 * left >= records or len(pieces) >= _MANY):
            piece = self._pieces[0]
            if isinstance(piece, _Placed) or (pieces and self._slabs_follow(records)):
                break
            if pieces and piece.came is not pieces[0].came:
                break
            if not pieces:
                left = records = min(records, _most_records(piece))
            fitting = len(piece.batch) if not piece.record_text_bytes else int(left_bytes / piece.record_text_bytes)
            count = min(len(piece.batch), left, max(fitting, 0 if pieces else 1), self._until_cut(piece, bool(pieces)))
            if not count:
                break
            self._pieces.popleft()
            if count < len(piece.batch):
                self._pieces.appendleft(piece.part(count, len(piece.batch)))
                piece = piece.part(0, count)
            left -= count
            left_bytes -= piece.record_text_bytes * count
            pieces.append(piece)
        taken = put_together(pieces, most_bytes - left_bytes)
        if absent := _absent(taken.batch, taken.came):
            rows = len(taken.batch)
            batch = taken.batch.with_columns({name: Column.missing(kind, rows) for name, kind in absent.items()})
            taken = replace(taken, batch=batch)
        records -= left
        self.taken += records
        self.waiting -= records
        self._bytes = self._bytes - taken.bytes if self._pieces else 0.0
        if not self._room.is_set() and 2 * self.waiting < self.high_records and 2 * self._bytes < self._high_bytes:
            self._room.set()
        return taken

    def _until_cut(self, piece: Piece, begun: bool) -> int:
        """How many records of the next piece the slab may have, before the next cut."""
        while self._cuts and not (count := piece.rows_until(self._cuts[0])):
            if begun:
                return 0
            self._cuts.popleft()  # it lies before what comes next
        return count if self._cuts else len(piece.batch)

    def _slabs_follow(self, records: int) -> bool:
        """Whether the next two of the sources' batches fill a slab each."""
        following = [self._pieces[place] for place in range(min(2, len(self._pieces)))]
        return len(following) > 1 and all(
            isinstance(piece, Piece) and len(piece.batch) >= records for piece in following
        )

    def put_back(self, taken: Taken, records: int) -> Taken:
        """Return all but the first ``records`` of what was just taken; gives what is left of it."""
        kept, rest = taken.split(records)
        self._pieces.extendleft(reversed(rest))
        returned = len(taken.batch) - records
        self.waiting += returned
        self.taken -= returned
        self._bytes += taken.bytes - kept.bytes
        return kept


def _absent(batch: Batch, came: Mapping[str, Kind]) -> dict[str, Kind]:
    """Columns that came to the run, and not with these records."""
    if batch.columns.keys() >= came.keys():
        return {}
    return {name: kind for name, kind in islice(came.items(), _MOST_NAMES) if name not in batch.columns}


def _most_records(piece: Piece) -> int:
    """How many may be in a slab that begins with these."""
    absent = len(_absent(piece.batch, piece.came))
    return SLICE_RECORDS if not absent else max(_CELLS // absent, 1)


def _spread(codes: NDArray[np.int32], rows: NDArray[np.intp], count: int) -> NDArray[np.int32]:
    """Those of some rows among all ``count``; `UNKNOWN` at the others."""
    spread = np.full(count, UNKNOWN, np.int32)
    spread[rows] = codes
    return spread


def _missing_like(column: Column, kind: Kind) -> Column:
    made = Column.missing(kind, len(column), 1)
    if column.tags is not None:
        made.tags = np.where(column.tags == 0, 1, column.tags).astype(np.uint8)
    return made
