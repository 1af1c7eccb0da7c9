"""`Silence`: a sensor that stops talking is an event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.durations import duration_ns, shown
from tidemill.errors import PlanError
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.base import Emitted, Stage, Step
from tidemill.stages.hearing import NEVER, Heard, Silences
from tidemill.stages.made_rows import KeyField, crossings
from tidemill.stages.places import Places
from tidemill.stages.seen_columns import SeenColumns
from tidemill.stages.state import StageState, StateField

__all__ = ["Silence"]

_SILENT: Final = "silent"
_LAST_SEEN: Final = "last_seen"
_END: Final = (1 << 63) - 1
"""The watermark at the end of input, which no time reaches."""
_LONGEST: Final = 1 << 61  # ns, 73 years
_DUE: Final = np.zeros(1, np.int32)


class Silence(Stage):
    """A row for each sensor that has said nothing for ``after``, with no record needed to trigger it.

    ``after``  how long, in event time: ``"60s"``, seconds, or a timedelta

    The records go on, one row each, with ``silent`` False and ``last_seen`` their own event time. When the watermark
    passes the newest time of a sensor and ``after``, one row comes out for it: the sensor's name, ``silent`` True,
    ``last_seen`` that newest time (UTC), event time ``last_seen`` and ``after``; it has no other field. There is one row
    per silence, and the next record of the sensor ends it. So ``where="silent"`` of a sink takes the events alone.

    The watermark moves with the records of all sensors, and without any (`Pipeline(idle_after=)`) with the clock; what
    carries it over the time of an event may be the very record that ends the silence, whose row then comes first. A
    sensor that is back before the watermark has come so far was not silent: ``lag`` is allowed for. The end of input
    is no silence. A record does not end a silence that comes so late that its own time and ``after`` are behind the
    watermark, or that is more than thirty days ahead of it. A sensor that has never spoken is not known.

    Where rows come out depends on the order in which records arrive, not on batches, lanes or restarts. Put it last, or
    behind what counts readings: to a stage behind it the event is a record of the sensor.

    State: 8 bytes per sensor. Time: 0.14 us a record, and as much again in a batch that looks through 8,000 sensors; all of
    the lane are looked through when an event may be due, at most once in a batch.

    Raises `PlanError` for an ``after`` that is no duration, or when there is a column ``silent`` or ``last_seen`` already.

    >>> import tidemill as tm
    >>> rows = [{"sensor": "S1", "time": 0, "value": 7.0}, *({"sensor": "S2", "time": t, "value": 8.0} for t in (30, 90))]
    >>> for row in tm.Plan(tm.Silence(after="60s")).apply(rows):
    ...     print(row)
    {'sensor': 'S1', 'time': 0, 'value': 7.0, 'silent': False, 'last_seen': 0}
    {'sensor': 'S2', 'time': 30, 'value': 8.0, 'silent': False, 'last_seen': 30000000000}
    {'sensor': 'S2', 'time': 90, 'value': 8.0, 'silent': False, 'last_seen': 90000000000}
    {'sensor': 'S1', 'silent': True, 'last_seen': 0}
    """

    follows_watermark: ClassVar[bool] = True

    def __init__(self, after: str | float | timedelta, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.after_ns = duration_ns(after, name="Silence: after")
        self._after = min(self.after_ns, _LONGEST)
        self._schema = Schema(open=True)
        self._columns = SeenColumns(self._schema)

    def describe(self) -> str:
        return f"Silence({shown(self.after_ns)!r})"

    def bind(self, schema: Schema) -> Schema:
        for column in (_SILENT, _LAST_SEEN):
            if column in schema:
                raise PlanError(
                    f"{self.name} adds a column {column!r}, and there is one already; rename it with tm.Select, or filter "
                    f"the events of a Silence before it; the columns there are: {', '.join(schema.names)}."
                )
        key = [Field(schema.key, Kind.TEXT)] if schema.key not in schema and not schema.open else []
        return schema.adding([Field(_SILENT, Kind.BOOL), Field(_LAST_SEEN, Kind.TIME), *key])

    def settled(self, schema: Schema) -> Self:
        made = super().opened()
        made._schema = schema
        return made

    def state_fields(self) -> Mapping[str, StateField]:
        due = StateField("int64", (1, 2), per_lane=True)
        return {"last": StateField("int64"), "due": due, **self._columns.fields()}

    def moved(self, old: Sequence[Mapping[str, NDArray[Any]]], places: Places) -> list[dict[str, NDArray[Any]]]:
        dues = np.concatenate([arrays["due"] for arrays in old])
        known = dues[dues[:, 0] == 1, 1]
        due = np.array([[1, known.min()]]) if len(known) else np.zeros((1, 2), np.int64)
        return [{"due": due, **columns} for columns in self._columns.moved(old, places.lanes)]

    def opened(self) -> Self:
        lane = super().opened()
        lane._columns = SeenColumns(self._schema)
        return lane

    # -- in a lane ---------------------------------------------------------------------------------------

    def step(self, batch: Batch, state: StageState) -> Step:
        self._columns.note(batch, state)
        added = {
            _SILENT: Column(Kind.BOOL, np.zeros(len(batch), np.bool_)),
            _LAST_SEEN: Column(Kind.TIME, batch.time),
        }
        return Step(batch.with_columns(added), emitted=self._emitted(self._silences(batch.time, state), state))

    def _silences(self, times: NDArray[np.int64], state: StageState) -> Silences:
        """Those that the watermark comes to with this slab; the sensors' newest times are noted."""
        marks = state.marks
        if marks[-1] == _END:  # no time at all: nobody has been silent until then
            marks = np.where(marks == _END, marks[0], marks)
        until = int(marks[-1])
        heard = Heard.of(times, state.slots, state.places, marks)
        own = heard.slots[heard.last]
        before = heard.believed(state["last"][own] + NEVER)
        newest = heard.newest(before)
        found = heard.silences(newest, before, self._after, until)
        due = int(state["due"][0, 1]) if state["due"][0, 0] else _END
        look = due < until
        if look:
            found = self._begun(heard, marks, state).and_then(found)
        state.save("last", own)
        state.save("due", _DUE)
        state.seal()
        state["last"][own] = newest[heard.last] - NEVER
        ahead = self._next(state["last"][slice(len(state.keys)) if look else own], until)
        state["due"][0] = 1, ahead if look else min(due, ahead)
        return found

    def _begun(self, heard: Heard, marks: NDArray[np.int64], state: StageState) -> Silences:
        """Silences that begin before the slab, of all sensors of the lane."""
        until = int(marks[-1])
        slots = np.flatnonzero(state["last"][: len(state.keys)] < until - self._after - NEVER)
        last = state["last"][slots] + NEVER
        reached = np.full(len(state.keys), until)
        reached[heard.slots[heard.first]] = heard.marks[heard.first]
        deadlines = last + self._after
        found = (last > NEVER) & (deadlines >= marks[0]) & (deadlines < reached[slots])
        return Silences(slots[found].astype(np.int32), last[found], np.zeros(np.count_nonzero(found), np.int32))

    def _next(self, kept: NDArray[np.int64], until: int) -> int:
        """The least deadline, of times as they are kept, that is not behind the watermark."""
        least = until - self._after - NEVER
        none = np.iinfo(np.int64).max
        kept_next = int(np.where(kept >= max(least, 1), kept, none).min(initial=none))
        return _END if kept_next == none else kept_next + NEVER + self._after

    def _emitted(self, silences: Silences, state: StageState) -> Emitted | None:
        rows = len(silences.slots)
        if not rows:
            return None
        deadlines = silences.last + self._after
        columns = {
            **self._columns.missing(rows, state),
            _SILENT: Column(Kind.BOOL, np.ones(rows, np.bool_)),
            _LAST_SEEN: Column(Kind.TIME, silences.last),
        }
        columns[self._schema.key] = self._names(silences.slots, state)
        places = np.maximum(crossings(state, deadlines + 1), silences.earliest)
        return Emitted(Batch(columns, rows=rows, time=deadlines), silences.slots, places, deadlines)

    def _names(self, slots: NDArray[np.int32], state: StageState) -> Column:
        """The sensors' names, of the kind that they have in the records."""
        kind = self._columns.kinds(state).get(self._schema.key, Kind.TEXT)
        if kind is Kind.OBJECT:
            return Column(kind, state.keys[slots])
        return KeyField(Schema([Field(self._schema.key, kind)], key=self._schema.key)).column(slots, state.keys)
