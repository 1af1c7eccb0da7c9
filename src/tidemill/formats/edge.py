"""Decoded records → batches with their roles: which sensor, what time, and columns of one kind for the whole run.

A record that cannot be one is set aside singly, with a reason; its neighbours flow.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT_TAG, Column
from tidemill.formats.compact_dates import CompactDates
from tidemill.formats.decoded import BadLine
from tidemill.formats.json_lines import time_texts
from tidemill.formats.needed_fields import MOST_NAMES, beyond_names, lacking
from tidemill.formats.other_unit import OtherUnit
from tidemill.formats.rejects import Rejects
from tidemill.formats.roles import DEFAULT_KEY, DEFAULT_TIME, Known, Roles
from tidemill.formats.taken_for_one import TakenForOne
from tidemill.formats.timed_by_arrival import TimedByArrival
from tidemill.formats.times import TimeReader
from tidemill.formats.unfit import find_infinite, find_surrogates, find_unsendable, is_unicode
from tidemill.kinds import Kinds, conform
from tidemill.letters import (
    BAD_TIME,
    MALFORMED,
    MISSING_FIELD,
    NO_KEY,
    DeadLetter,
    Letters,
    Reject,
)
from tidemill.rows import Fields, RowsByField, batch_of_rows, fields_of_rows
from tidemill.schema import Kind

__all__ = ["Edge"]

RawOf = Callable[[int], Any]
_CODE_AND_REASON: Final = attrgetter("reason_code", "reason")


class NoRecord(Protocol):
    """What a decoder has read that is no record."""

    @property
    def reason_code(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def raw(self) -> Any: ...


class Doubt(Protocol):
    """Of how records are read."""

    def look(self, batch: Batch, roles: Roles) -> str: ...


class Edge:
    """Gives records their key and time, and their columns their kinds.

    ``key``          a field, or a template over fields and what the source knows (``"{line}/{machine}"``)
    ``time``         a field; see `tidemill.formats.times` for what is read
    ``columns``      declared kinds; a record that lacks a declared field is rejected
    ``arrival``      records without the default time field get the time of their arrival
    ``fallback``     what the source knows (``"peer"``) that names the sensor of a record without the default key field
    ``time_format``  a ``strptime`` format for every time

    >>> edge = Edge(time="t")
    >>> batch, letters = edge.rows([{"sensor": "S1", "t": 1.5, "value": 20}, {"sensor": "S1"}])
    >>> batch.keys.tolist(), batch.time.tolist(), letters[0].reason
    (['S1'], [1500000000], "the record has no field 't', which holds its time")
    """

    def __init__(
        self,
        *,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, Kind] | None = None,
        tz: str = "UTC",
        time_format: str | None = None,
        arrival: bool = False,
        fallback: str | None = None,
        source: str = "",
    ) -> None:
        self.declared = dict(columns or {})
        self.times = TimeReader(tz, time_format)
        self.roles = Roles(
            key if key is not None else DEFAULT_KEY,
            time if time is not None else DEFAULT_TIME,
            self.times,
            arrival=arrival and time is None,
            fallback=fallback if key is None else None,
        )
        self._key_given = key is not None
        self.kinds = Kinds(self.declared, self.times.column)
        self.source = source
        self.format = ""
        """Of lines, once that is known: what nobody need be told to type."""
        self._fields: dict[str, None] = {}
        self._rejects = Rejects()
        self._doubts: tuple[Doubt, ...] = (TakenForOne(), TimedByArrival(), CompactDates())
        self._accepted = 0
        self.refuses = False
        """Whether some of the last records that it was given were refused."""

    def named_by(self, fallback: str) -> None:
        """Without a ``key`` of its own: ``fallback``, which is known of each record, names the sensor of one that lacks
        the default key field."""
        if not self._key_given:
            self.roles = self.roles.falling_back_on(fallback)

    def stamped_in(self, unit_ns: int) -> None:
        """The records' timestamps are read in this unit, which nothing in them says."""
        self._doubts = (*self._doubts, OtherUnit(unit_ns))

    def twin(self) -> Edge:
        """An edge that learns the same kinds and counts for itself: for a look ahead that is no reading."""
        made = copy.copy(self)
        made._fields, made._rejects, made._accepted = {}, Rejects(), 0
        return made

    def reading(self, key: str, time: str, *, arrival: bool) -> Edge:
        """An edge that reads the roles from elsewhere, and shares with this one what it learns of fields and kinds."""
        made = copy.copy(self)
        made.roles, made._key_given = Roles(key, time, self.times, arrival=arrival, fallback=None), True
        return made

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields seen so far (of rejected records, those of the first fifty)."""
        return tuple(self._fields)

    # -- in ----------------------------------------------------------------------------------------

    def rows(
        self,
        rows: Sequence[Any],
        *,
        arrived_ns: int = 0,
        wall_ns: int | NDArray[np.int64] = 0,
        known: Known | None = None,
        raw_of: RawOf | None = None,
        parsed: bool = False,
        fields: Fields | None = None,
    ) -> tuple[Batch, Sequence[DeadLetter]]:
        """Records given as dicts; ``raw_of`` a place is what its dead letter holds instead of the dict.

        ``parsed`` says that they were read from text, so that nothing in them can be what a lane cannot be sent.
        ``fields`` is what `fields_of_rows` gave for them, if it is known already: of dicts, and no other mappings.
        """
        plain = isinstance(rows, RowsByField) or set(map(type, rows)) <= {dict}
        learned = self.kinds.learned
        made = self._rows(rows, plain, arrived_ns, wall_ns, known, raw_of, parsed, fields)
        if made is None:
            self.kinds.relearn(learned)  # what a record teaches must not depend on those that come along with it
            made = self._rows(rows, False, arrived_ns, wall_ns, known, raw_of, parsed)
            assert made is not None
        return made

    def _rows(
        self,
        rows: Sequence[Any],
        plain: bool,
        arrived_ns: int,
        wall_ns: int | NDArray[np.int64],
        known: Known | None,
        raw_of: RawOf | None,
        parsed: bool,
        fields: Fields | None = None,
    ) -> tuple[Batch, Sequence[DeadLetter]] | None:
        """None when the records turn out not to be as ``plain`` as they seemed: a field's name is no proper text."""
        early: dict[int, Reject] = {}
        kept: Sequence[dict[str, Any]] = rows
        if not plain:
            kept = list(map(_as_dict, rows))
            for place, row in enumerate(kept):
                if isinstance(row, _Unreadable):
                    early[place] = Reject(place, MALFORMED, f"the record cannot be read: {row.why}")
                elif type(row) is not dict:
                    early[place] = Reject(place, MALFORMED, f"the record is a {type(row).__name__}, not an object")
                elif not all(type(name) is str for name in row):
                    early[place] = Reject(place, MALFORMED, "a field's name is not text")
                elif not is_unicode("".join(row)):
                    bad = next(name for name in row if not is_unicode(name))
                    early[place] = Reject(place, MALFORMED, f"the field name {bad!a} is not valid Unicode text")
        if plain and fields is None:
            fields = fields_of_rows(kept)
        for place, reject in lacking(kept, early, self.roles, self.declared, known, fields):
            early.setdefault(place, reject)
        for reject in beyond_names(kept, early, self.kinds, fields):
            early[reject.row] = reject
        places: NDArray[np.intp] | None = None
        if early:
            self._note_fields(row for row in kept if type(row) is dict)
            places = np.array([place for place in range(len(kept)) if place not in early], np.intp)
            listed = list(kept)
            kept = [listed[place] for place in places.tolist()]
            fields = None
        batch, misfits = batch_of_rows(kept, self.kinds, fields)
        if plain and (set(map(type, batch.names)) - {str} or not is_unicode("".join(batch.names))):
            return None
        rejects = {reject.row: reject for reject in misfits}
        find_surrogates(batch, rejects)
        if not parsed:
            find_unsendable(batch, rejects)
        chosen, late = self._with_roles(batch, rejects, wall_ns, known, places)
        for reject in late.values():
            place = int(places[reject.row]) if places is not None else reject.row
            early[place] = reject
        chosen.arrived_ns = arrived_ns
        return chosen, self._letters(early, rows.__getitem__, known, wall_ns, raw_of)

    def columns(
        self,
        columns: Mapping[str, Column],
        *,
        rows: int | None = None,
        arrived_ns: int = 0,
        wall_ns: int | NDArray[np.int64] = 0,
        known: Known | None = None,
        rejects: Mapping[int, Reject] | None = None,
        raw_of: RawOf | None = None,
        naive: frozenset[str] = frozenset(),
        parsed: bool = True,
    ) -> tuple[Batch, Sequence[DeadLetter]]:
        """Records given as columns; ``rejects`` are rows that the format has refused already.

        ``naive`` names the TIME columns whose times had no zone: they are read in ``tz``, and carried as the moments that they are.
        ``parsed`` False says that the columns may hold any Python objects.
        """
        found = dict(rejects or {})
        made = {}
        local = {name: column for name, column in columns.items() if name in naive and column.kind is Kind.TIME}
        moments = {
            name: Column(Kind.TIME, self.times.localised(column.values), tags=column.tags)
            for name, column in local.items()
        }
        for name, column in {**columns, **moments}.items():
            names_sensors = column.kind is Kind.OBJECT and name in self.roles.key_fields
            own = _as_texts(name, column, found) if names_sensors else column
            made[name], misfits = conform(name, own, self.kinds)
            for reject in misfits:
                found.setdefault(reject.row, reject)
        batch = Batch(made, rows=rows)
        for name in self.declared:
            for row in self._absent(batch, name):
                found.setdefault(
                    row, Reject(row, MISSING_FIELD, f"the record has no field {name!r}, which is declared")
                )
        if not parsed:
            find_unsendable(batch, found)
        came = Batch({**made, **local}, rows=rows) if local else batch
        show = raw_of or (lambda row: _shown(came, row, naive))
        chosen, found = self._with_roles(batch, found, wall_ns, known, None)
        chosen.arrived_ns = arrived_ns
        return chosen, self._letters(found, show, known, wall_ns)

    def refused(
        self, bad: Sequence[NoRecord], *, known: Mapping[str, str] | None = None, header: tuple[str, ...] = ()
    ) -> Sequence[DeadLetter]:
        """The letters for lines that are no records, with the key and the time that can be told of them."""
        for line in bad:
            self._rejects.add(line.reason_code, line.reason)
            if (
                line.reason_code == MALFORMED and not header
            ):  # a line of CSV shows nothing of what might be read instead
                self._rejects.show(line.raw)

        def make(start: int, end: int) -> list[DeadLetter]:
            lines = bad[start:end]
            times = self.roles.times_told(
                [None if line.reason_code == BAD_TIME else line.raw for line in lines], [0] * len(lines)
            )
            return [
                self._letter(line.reason_code, line.reason, line.raw, time_ns, known, header, line.raw)
                for line, time_ns in zip(lines, times, strict=True)
            ]

        return Letters(len(bad), make) if bad else []

    def refuse(self, reason_code: str, reason: str, raw: Any, *, known: Mapping[str, str] | None = None) -> DeadLetter:
        """The letter for one."""
        return self.refused([BadLine(reason_code, reason, raw)], known=known)[0]

    def _letter(
        self,
        reason_code: str,
        reason: str,
        raw: Any,
        time_ns: int | None,
        known: Mapping[str, str] | None,
        header: tuple[str, ...] = (),
        record: Any = None,
    ) -> DeadLetter:
        key = self.roles.key_told(record if isinstance(record, Mapping) else {}, known or {})
        return DeadLetter(
            reason_code,
            reason,
            raw,
            source=self.source,
            key=key,
            time_ns=time_ns,
            arrival=self.roles.arrival,
            header=header,
        )

    def explain(self, *, formats: Sequence[str] = (), paths: str = "") -> str:
        """Why nothing came through: what was seen, and the option to try. The source reads these ``formats`` where it is told
        to; ``paths`` is what it has seen in messages, where it takes its columns out of them."""
        named = f"source {self.source}: " if self.source else ""
        advice = self._rejects.advice(self.fields, self.roles, formats, self.format, paths)
        return f"{named}{self._rejects.told}.{advice}"

    def doubt(self, batch: Batch) -> str:
        """Of the next records that it has made, once each: that they seem to be of more sensors than they are taken for, to have
        a time of their own in place of that of their arrival, days that are read as seconds, and timestamps in another unit."""
        return " ".join(filter(None, (doubts.look(batch, self.roles) for doubts in self._doubts)))

    @property
    def accepted(self) -> int:
        """Records that came through so far."""
        return self._accepted

    # -- roles -------------------------------------------------------------------------------------

    def _absent(self, batch: Batch, name: str) -> list[int]:
        column = batch.columns.get(name)
        if column is None:
            return list(range(len(batch)))
        if column.tags is None:
            return []
        return np.flatnonzero(column.tags == ABSENT_TAG).tolist()

    def _with_roles(
        self,
        batch: Batch,
        rejects: dict[int, Reject],
        wall_ns: int | NDArray[np.int64],
        known: Known | None,
        places: NDArray[np.intp] | None,
    ) -> tuple[Batch, dict[int, Reject]]:
        if not len(batch):
            batch.key_column, batch.time_ns = Column.of_texts([]), np.empty(0, np.int64)
            return batch, rejects
        if places is not None:
            wall_ns = wall_ns if isinstance(wall_ns, int) else wall_ns[places]
            known = (
                known if known is None or isinstance(known, Mapping) else [known[place] for place in places.tolist()]
            )
        if (rejects or not self._fields) and len(self._fields) < MOST_NAMES:
            self._fields.update(dict.fromkeys(batch.names))
        find_infinite(batch, rejects)
        batch.time_ns = self.roles.time_of(batch, rejects, wall_ns)
        batch.key_column = self.roles.key_of(batch, rejects, known)
        self._accepted += len(batch) - len(rejects)
        if rejects:
            batch = batch.take(np.array([row for row in range(len(batch)) if row not in rejects], np.intp))
        return batch, rejects

    # -- out ---------------------------------------------------------------------------------------

    def _letters(
        self,
        rejects: Mapping[int, Reject],
        record_of: RawOf,
        known: Known | None,
        wall_ns: int | NDArray[np.int64],
        raw_of: RawOf | None = None,
    ) -> Sequence[DeadLetter]:
        """The letters of these; ``record_of`` a place tells its key and time, and without ``raw_of`` is what they hold."""
        self.refuses = bool(rejects)
        if not rejects:
            return []
        all_places = sorted(rejects)
        for (code, reason), times in Counter(_CODE_AND_REASON(rejects[place]) for place in all_places).items():
            self._rejects.add(code, reason, times=times)
        malformed = next((place for place in all_places if rejects[place].reason_code == MALFORMED), None)
        if malformed is not None:
            self._rejects.show(record_of(malformed))

        def make(start: int, end: int) -> list[DeadLetter]:
            places = all_places[start:end]
            records = [record_of(place) for place in places]
            walls = [wall_ns if isinstance(wall_ns, int) else int(wall_ns[place]) for place in places]
            timed = [
                None if rejects[place].reason_code == BAD_TIME else record
                for place, record in zip(places, records, strict=True)
            ]
            return [
                self._letter(
                    rejects[place].reason_code,
                    rejects[place].reason,
                    record if raw_of is None else raw_of(place),
                    time_ns,
                    known if known is None or isinstance(known, Mapping) else known[place],
                    record=record,
                )
                for place, record, time_ns in zip(places, records, self.roles.times_told(timed, walls), strict=True)
            ]

        return Letters(len(all_places), make)

    def _note_fields(self, rows: Any) -> None:
        for row in rows:
            if len(self._fields) > 50:
                return
            self._fields.update(dict.fromkeys(map(str, row)))


class _Unreadable:
    """In place of a record that is a mapping and gives no fields."""

    def __init__(self, why: str) -> None:
        self.why = why


def _as_dict(row: Any) -> Any:
    if not isinstance(row, Mapping):
        return row
    try:
        return dict(row)
    except Exception as error:  # noqa: BLE001 - a class of the user's may raise anything
        return _Unreadable(f"its {type(row).__name__} raised {type(error).__name__}")


def _shown(batch: Batch, row: int, naive: frozenset[str]) -> dict[str, Any]:
    """A record for a letter, with times as texts: as numbers they would be read by their size."""
    part = batch.slice(row, row + 1)
    record = part.to_rows()[0]
    for name, column in part.columns.items():
        if column.kind is Kind.TIME and record.get(name) is not None:
            told = time_texts(column)[0]
            record[name] = told.removesuffix("Z") if told is not None and name in naive else told
    return record


def _as_texts(name: str, column: Column, rejects: dict[int, Reject]) -> Column:
    """Bytes that name a sensor, which is how some writers of Parquet keep text, as the text that they are."""
    items = column.to_list()
    if not any(type(item) is bytes for item in items):
        return column
    for row, item in enumerate(items):
        if type(item) is bytes:
            try:
                items[row] = item.decode()
            except UnicodeDecodeError:
                items[row] = None
                rejects.setdefault(
                    row, Reject(row, NO_KEY, f"field {name!r}, which names the sensor, is not UTF-8 text")
                )
    return Kinds().column(name, items)[0]
