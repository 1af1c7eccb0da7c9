"""`Align`: what the sensors of one device say, side by side, in event time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.durations import duration_ns
from tidemill.errors import PlanError
from tidemill.letters import MISSING_FIELD, Reject
from tidemill.orders import first_repeated
from tidemill.schema import NAMING, Field, Kind, Schema
from tidemill.stages.alignment import NO_LIMIT, Table
from tidemill.stages.base import Emitted, Stage, Step
from tidemill.stages.event_buffer import NEVER, EventBuffer, Waiting
from tidemill.stages.latecomers import check_waiting, late, out_of_room, turned_away
from tidemill.stages.made_rows import KeyField, crossings
from tidemill.stages.newest import Newest
from tidemill.stages.numbers import NUMERIC, numbers_of
from tidemill.stages.places import Places
from tidemill.stages.state import StageState, StateField

__all__ = ["Align"]

_END: Final = (1 << 63) - 1
_NONE: Final = np.empty(0, np.intp)
_NAMELESS, _OTHER = -2, -1
"""In place of a channel's number: the record names none, or one that is not wanted."""


class Align(Stage):
    """One row per device and time with a column for each channel, from readings that come one by one, at rates of their own.

    ``channels``          the channels to put side by side; each becomes a float column of that name
    ``by``                the column that names the device, text or a number; None where a record's key names it already
    ``channel``           the column that names the channel of a record (``"channel"``); None where records are wide, each
                          channel a column of its own, of which a record may hold some or all
    ``value``             the column with the reading; not looked at in wide records
    ``method``            what a channel's column holds at a row's time: ``"last"``, the newest reading at or before it;
                          ``"linear"``, what lies on the line between the readings before and after it
    ``tolerance``         a reading further away than this does not count, and the column is NaN; ``"last"`` alone can do
                          without
    ``on``                the channel whose readings make the rows, such as the fastest; by default those of all do, and
                          there is one row for each distinct time
    ``time``              the name of the column with the row's time, UTC
    ``allowed_lateness``  how long behind the watermark readings are still taken; rows come out so much later
    ``late``              what becomes of a record that comes later: ``"drop"`` (counted as ``late``) or ``"dead_letter"``
    ``max_waiting``       readings that may wait in one lane; a record beyond is a dead letter (``too_many_open``)

    A row has the device's name (in column ``by``, of its kind, which is the key from here on: a `Rolling` behind it is one
    per device), its time, and the channels. It comes out when the watermark has passed what it waits for: its own time
    and, with ``"linear"``, the next reading of every channel, or the tolerance if that is less. Rows come out in the order
    of what they waited for, then by the device's name as bytes. They do not depend on the order in which records arrived,
    as long as none was late. A missing value is no reading; of several of one channel at one time the greatest counts.
    The log of a run says at its end of which channels no reading came at all.
    Records of other channels are filtered; a record that names none, or no device, is a dead letter (``missing_field``).

    All sensors of a device are in one lane (see ``place_by`` of `Pipeline`). Stages before this one see a sensor as one of
    its device: one that moves to another device begins anew there.

    State: 24 bytes for each waiting reading, 32 for each channel of a device. Time: 0.8 us a record with four channels: a
    sort of the readings that the watermark passes, and a few passes over the rows for each channel. The rows are those of
    ``pandas.merge_asof(..., by=..., tolerance=..., direction="backward")``, and ``numpy.interp`` for each device.

    Raises `PlanError` for a column that is not there or of the wrong kind, and for senseless options.

    >>> import tidemill as tm
    >>> rows = [
    ...     {"device": "pump-1", "channel": channel, "time": f"2024-03-01T00:00:{second:02}Z", "value": value}
    ...     for second, channel, value in [(0, "flow", 7.0), (1, "temp", 50.0), (2, "temp", 51.0), (9, "temp", 52.0)]
    ... ]
    >>> plan = tm.Plan(tm.Align(by="device", channels=["temp", "flow"], on="temp", tolerance="5s"))
    >>> for row in plan.apply(rows, key="{device}/{channel}"):
    ...     print(row["device"], row["temp"], row["flow"])
    pump-1 50.0 7.0
    pump-1 51.0 7.0
    pump-1 52.0 nan
    """

    follows_watermark: ClassVar[bool] = True
    absorbs: ClassVar[bool] = True

    def __init__(
        self,
        channels: Sequence[str],
        *,
        by: str | None,
        channel: str | None = "channel",
        value: str = "value",
        method: Literal["last", "linear"] = "last",
        tolerance: str | float | timedelta | None = None,
        on: str | None = None,
        time: str = "time",
        allowed_lateness: str | float | timedelta = 0,
        late: Literal["drop", "dead_letter"] = "drop",
        max_waiting: int = 4_000_000,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.channels = _names(channels)
        self.groups_by = by
        self.channel, self.value, self.method, self.on, self.time, self.late = channel, value, method, on, time, late
        self._check_names()
        if method not in ("last", "linear"):
            raise PlanError(f'{self.name}: method={method!r} is not one of "last", "linear".')
        max_waiting = check_waiting(late, ("drop", "dead_letter"), max_waiting, stage=self.name, what="readings")
        if tolerance is None and method == "linear":
            raise PlanError(
                f'{self.name}: method="linear" needs tolerance=, such as "5s": for so long a row waits for the next '
                "reading of a channel that says nothing."
            )
        limit = NO_LIMIT if tolerance is None else duration_ns(tolerance, name=f"{self.name}: tolerance")
        self.tolerance_ns = min(limit, NO_LIMIT)
        lateness_ns = duration_ns(allowed_lateness, name=f"{self.name}: allowed_lateness", zero=True)
        self.lateness_ns = min(lateness_ns, NO_LIMIT)
        self.delay_ns = self.lateness_ns + (self.tolerance_ns if method == "linear" else 0)
        self._places = {channel: place for place, channel in enumerate(self.channels)}
        self._buffer = EventBuffer(["int32", "float64"], max_waiting)
        self._newest = Newest(len(self.channels))
        self._rewritten = -1
        self._key = KeyField(Schema(key=by or Schema().key))

    def _check_names(self) -> None:
        for option, given, needed in (
            ("by", self.groups_by, False),
            ("channel", self.channel, False),
            ("value", self.value, True),
            ("time", self.time, True),
        ):
            if not (given is None and not needed) and (not isinstance(given, str) or not given):
                raise PlanError(f"{self.name}: {option}={given!r} must be the name of a column.")
        if self.on is not None and self.on not in self.channels:
            raise PlanError(f"{self.name}: on={self.on!r} is none of its channels, {', '.join(self.channels)}.")
        for column in (self.time, self.groups_by):
            if column in self.channels or self.time == self.groups_by:
                raise PlanError(f"{self.name}: two columns would be called {column!r}; time= names that of the time.")

    def describe(self) -> str:
        return f"Align({', '.join(self.channels[:3])}{', ...' if len(self.channels) > 3 else ''})"

    def bind(self, schema: Schema) -> Schema:
        if self.groups_by is not None:
            schema.require(self.groups_by, stage=self.name, kinds=NAMING)
        if self.channel is not None:
            schema.require(self.channel, stage=self.name, kinds=(Kind.TEXT,))
        for column in self.channels if self.channel is None else (self.value,):
            schema.require(column, stage=self.name, kinds=NUMERIC)
        key = self._key_of(schema)
        made = [Field(channel, Kind.FLOAT) for channel in self.channels]
        return Schema([Field(key.name, key.kind), Field(self.time, Kind.TIME), *made], key=key.name)

    def settled(self, schema: Schema) -> Self:
        made = super().opened()
        made._key = self._key_of(schema)
        return made

    def _key_of(self, schema: Schema) -> KeyField:
        """The column that names the device of a row."""
        key = KeyField(Schema(schema, key=self.groups_by or schema.key))
        if key.name in self.channels or key.name == self.time:
            raise PlanError(f"{self.name}: two columns would be called {key.name!r}, that of the key and another.")
        return key

    def reads(self) -> frozenset[str]:
        return frozenset(self.channels) if self.channel is None else frozenset((self.channel, self.value))

    def state_fields(self) -> Mapping[str, StateField]:
        return {**self._buffer.fields(), **self._newest.fields()}

    def known_by(self) -> Mapping[str, object]:
        return {
            "channels": self.channels,
            "by": self.groups_by,
            "channel": self.channel,
            "value": self.value,
            "method": self.method,
            "tolerance_ns": self.tolerance_ns,
            "lateness_ns": self.lateness_ns,
        }

    def moved(self, old: Sequence[Mapping[str, NDArray[Any]]], places: Places) -> list[dict[str, NDArray[Any]]]:
        return self._buffer.moved(old, places)

    def doubt(self, states: Sequence[StageState], slots: Sequence[int]) -> str | None:
        came = np.full(len(self.channels), self.channel is None)  # a column that is misspelled is found otherwise
        for state, count in zip(states, slots, strict=True):
            came |= self._newest.came(state, count)
            came[self._buffer.held(state)[0].values[0]] = True
        if came.all():
            return None
        absent = ", ".join(repr(channel) for channel, there in zip(self.channels, came, strict=True) if not there)
        return (
            f"{self.name}: no reading of {absent} was taken; channels are named letter by letter as the column "
            f"{self.channel!r} has them"
        )

    # -- in a lane ---------------------------------------------------------------------------------------

    def step(self, batch: Batch, state: StageState) -> Step:
        if state.rewritten != self._rewritten:  # a slab was rolled back, perhaps in the process before this one
            self._newest.forget(state, int(state.marks[0]))
            self._rewritten = state.rewritten
        held, due = self._buffer.held(state)
        fresh, rejects, gone = self._taken(batch, state, self._buffer.most - len(held))
        if len(fresh):
            due = min(due, int(self._end_of_wait(fresh.times).min()))
        mark = int(state.marks[-1])
        if due > mark:
            self._buffer.add(state, fresh, due)
            return Step(self._none(), _NONE, rejects, gone)
        waiting = held.and_then(fresh)
        moved = self._moved(waiting, state)
        emitted, left = self._emitted(Table(waiting.take(moved), len(self.channels)), state)
        left = left.and_then(waiting.take(~moved))
        # Of those that the watermark has passed, any that it passes next may be what they wait for.
        due = max(mark + 1, int(self._end_of_wait(left.times).min())) if len(left) else NEVER
        self._buffer.replace(state, left, due)
        return Step(self._none(), _NONE, rejects, gone, emitted=emitted)

    def _end_of_wait(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        """The watermark from which on no reading of these times, or before, is taken any more."""
        return times + (self.lateness_ns + 1)

    def _moved(self, waiting: Waiting, state: StageState) -> NDArray[np.bool_]:
        """The readings that the watermark has passed, of devices for which something has changed with this slab: it has
        passed one of their readings, or the tolerance behind one."""
        ends = self._end_of_wait(waiting.times)
        before, after = int(state.marks[0]), int(state.marks[-1])
        passed = ends <= after
        if self.method == "last":
            return passed
        changed = np.zeros(len(state.keys), np.bool_)
        changed[waiting.slots[passed & ((ends > before) | (ends + self.tolerance_ns <= after))]] = True
        return passed & changed[waiting.slots]

    # -- readings ----------------------------------------------------------------------------------------

    def _taken(self, batch: Batch, state: StageState, room: int) -> tuple[Waiting, list[Reject], dict[str, int]]:
        """The readings that wait from now on; what becomes of the records that have none."""
        channels = None if self.channel is None else self._channels_of(batch)
        wanted = np.ones(len(batch), np.bool_) if channels is None else channels >= 0
        rejects = [] if channels is None else self._nameless(np.flatnonzero(channels == _NAMELESS))
        too_late = wanted & late(state, self._end_of_wait(batch.time))
        away, gone = turned_away(batch, state, too_late, self.late)
        rejects += away
        rows = np.flatnonzero(wanted & ~too_late)
        places, columns, values = self._long(batch, rows, channels) if channels is not None else self._wide(batch, rows)
        if len(places) > room:
            first = places[room]  # the first record with a reading too many
            rejects += out_of_room(rows[rows >= first], self._buffer.most, "readings")
            rows, kept = rows[rows < first], places < first
            places, columns, values = places[kept], columns[kept], values[kept]
        fresh = Waiting(state.devices[places], batch.time[places], (columns, values))
        return fresh, sorted(rejects, key=lambda reject: reject.row), {**gone, "absorbed": len(rows)}

    def _long(
        self, batch: Batch, rows: NDArray[np.intp], channels: NDArray[np.int32]
    ) -> tuple[NDArray[np.intp], NDArray[np.int32], NDArray[np.float64]]:
        """Of records with one reading each: their places, channels and values."""
        values = numbers_of(batch, self.value, self.name)[rows]
        there = ~np.isnan(values)
        rows = rows[there]
        return rows, channels[rows], values[there]

    def _wide(
        self, batch: Batch, rows: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.int32], NDArray[np.float64]]:
        """The same of records with a column for each channel."""
        values = np.stack([numbers_of(batch, channel, self.name)[rows] for channel in self.channels], axis=1)
        places, columns = np.nonzero(~np.isnan(values))
        return rows[places], columns.astype(np.int32), values[places, columns]

    def _channels_of(self, batch: Batch) -> NDArray[np.int32]:
        """The number of each record's channel."""
        assert self.channel is not None
        column = batch.columns.get(self.channel)
        if column is None or not column.has_values:
            return np.full(len(batch), _NAMELESS, np.int32)
        if column.kind is not Kind.TEXT:
            raise PlanError(f"{self.name} needs column {self.channel!r} to be text; it is {column.kind.value}.")
        assert column.texts is not None
        numbers = [self._places.get(text, _OTHER) for text in column.texts.tolist()]
        return np.array([*numbers, _NAMELESS], np.int32).take(column.values, mode="wrap")  # no text is -1, the last

    def _nameless(self, rows: NDArray[np.intp]) -> list[Reject]:
        told = f"the record has nothing in field {self.channel!r}, which names its channel"
        return [Reject(row, MISSING_FIELD, told) for row in rows.tolist()]

    # -- rows --------------------------------------------------------------------------------------------

    def _none(self) -> Batch:
        """No rows, of the columns that there would be."""
        return self._rows(np.empty(0, np.int32), np.empty(0, np.int64), [np.empty(0)] * len(self.channels), _NO_KEYS)

    def _emitted(self, table: Table, state: StageState) -> tuple[Emitted | None, Waiting]:
        """The rows that wait for nothing more, and the readings that still wait for those after them."""
        before, after = int(state.marks[0]), int(state.marks[-1])
        reach = table.times if self.method == "last" else table.reach(self.tolerance_ns)
        ready = self._end_of_wait(reach) <= after
        earlier = self._newest.read(state, table.devices, before)
        chosen = ready if self.on is None else ready & table.with_reading(self.channels.index(self.on))
        fill = table.last if self.method == "last" else table.linear
        values = [fill(place, earlier, self.tolerance_ns)[chosen] for place in range(len(self.channels))]
        touched, times, newest = table.newest(ready, earlier)
        self._newest.write(state, table.devices[touched], times, newest, before=before, after=after)
        slots, reach = table.slots[chosen], reach[chosen]
        made = self._rows(slots, table.times[chosen], values, state.keys)
        emitted = Emitted(made, slots, crossings(state, self._end_of_wait(reach)), reach)
        return emitted, table.readings_of(~ready)

    def _rows(
        self,
        slots: NDArray[np.int32],
        times: NDArray[np.int64],
        values: Sequence[NDArray[np.float64]],
        keys: NDArray[np.object_],
    ) -> Batch:
        columns = {self._key.name: self._key.column(slots, keys), self.time: Column(Kind.TIME, times)}
        columns.update({channel: Column(Kind.FLOAT, own) for channel, own in zip(self.channels, values, strict=True)})
        return Batch(columns, rows=len(slots), time=times)


_NO_KEYS: Final = np.empty(0, object)


def _names(channels: Sequence[str]) -> tuple[str, ...]:
    if (
        isinstance(channels, str)
        or not isinstance(channels, Sequence)
        or not all(isinstance(channel, str) and channel for channel in channels)
    ):
        raise PlanError(f'Align: channels={channels!r} must be a list of names, such as ["temp", "flow"].')
    if not channels:
        raise PlanError("Align: channels=[] is empty; name the channels to put side by side.")
    twice = first_repeated(channels)
    if twice is not None:
        raise PlanError(f"Align: the channel {twice!r} stands twice in channels=.")
    return tuple(channels)
