"""`Resample`: each sensor's readings on a regular grid in event time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import FARTHEST, Column
from tidemill.durations import duration_ns, shown
from tidemill.errors import PlanError
from tidemill.letters import Reject
from tidemill.orders import first_repeated
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.base import Emitted, Stage, Step
from tidemill.stages.event_buffer import NEVER, EventBuffer, Waiting
from tidemill.stages.grid import METHODS, NO_LIMIT, Grid, Points, Readings, merged
from tidemill.stages.latecomers import check_waiting, late, out_of_room, turned_away
from tidemill.stages.made_rows import KeyField, crossings
from tidemill.stages.newest import Newest
from tidemill.stages.numbers import NUMERIC, numbers_of
from tidemill.stages.options import names_of
from tidemill.stages.places import Places
from tidemill.stages.state import StageState, StateField

__all__ = ["Resample"]

_MOST_POINTS: Final = 1_000_000
"""Between two readings."""
_USUAL_POINTS: Final = 100
_LEFT_LYING: Final = 4_096
"""Readings of no more use, beside as many as those that wait."""
_NONE: Final = np.empty(0, np.intp)


class Resample(Stage):
    """One row per sensor and point of a regular grid in event time; the records go no further.

    ``columns``           one column or several (float, int or bool); each is a float column of the same name
    ``every``             the distance of the points: ``"10s"``, seconds, or a timedelta
    ``method``            what a column holds at a point: ``"last"``, the newest reading at or before it; ``"linear"``, what
                          lies on the line between the readings around it; ``"mean"``, the mean of the readings from it up
                          to the next point, which it is labelled by, as in pandas
    ``offset``            moves the grid, whose points else are the multiples of ``every`` since 1970-01-01 UTC
    ``max_gap``           how long a reading is carried on (``"last"``), how far apart the two may be (``"linear"``), over
                          how long a pause there are rows without values (``"mean"``); by default 100 times ``every``
    ``time``              the name of the column with the point, UTC, which is the row's event time too
    ``allowed_lateness``  how long behind the watermark readings are still taken; rows come out so much later
    ``late``              what becomes of a record that comes later: ``"drop"`` (counted as ``late``) or ``"dead_letter"``
    ``max_waiting``       readings that may wait in one lane; a record beyond is a dead letter (``too_many_open``)

    A row has the sensor's name, the point, and the columns. There is none before a sensor's first reading, none behind its
    last, and none that ``max_gap`` forbids: a pause of 86 days does not make millions. A missing value is no reading of its
    column: the row has what the readings before and behind it say, or NaN. Of several of one sensor at one time the
    greatest counts, except in a mean.

    A row comes out when the watermark has passed what it waits for: the reading at or behind the point; with ``"linear"``
    the next one of every column, or ``max_gap``; with ``"mean"`` the end of its interval, or of that which ends the pause.
    Rows come out in the order of what they waited for, then by the sensor's name as bytes. They do not depend on the order
    in which records arrived, as long as none was late: that is, behind the watermark by more than ``allowed_lateness``, or,
    for a mean, in an interval that it has passed by as much. To a stage behind this one that works in event time, rows are
    not late if they lie in a pause of ``max_gap`` at most.

    State: 24 bytes for each waiting reading and 16 for each column; 48 for each sensor and 32 for each column. Time: some
    0.5 us a record: a sort of the readings that the watermark passes, and a few passes over them and over the rows for each
    column. The values are those of ``reindex(method="ffill")``, ``interpolate("time")`` and ``resample().mean()`` of pandas
    for each sensor.

    Raises `PlanError` for a column that is not there or is not a number, and for senseless options.

    >>> import tidemill as tm
    >>> rows = [{"sensor": "S1", "time": t, "value": v} for t, v in [(0, 1.0), (12, 2.0), (21, 5.0), (40, 7.0)]]
    >>> for method in ("last", "linear", "mean"):
    ...     print([row["value"] for row in tm.Plan(tm.Resample("value", every="10s", method=method)).apply(rows)])
    [1.0, 1.0, 2.0, 5.0, 7.0]
    [1.0, 1.8333333333333335, 4.666666666666666, 5.947368421052632, 7.0]
    [1.0, 2.0, 5.0, nan, 7.0]
    """

    follows_watermark: ClassVar[bool] = True
    absorbs: ClassVar[bool] = True

    def __init__(
        self,
        columns: str | Sequence[str],
        every: str | float | timedelta = "10s",
        method: Literal["last", "linear", "mean"] = "last",
        *,
        offset: str | float | timedelta = 0,
        max_gap: str | float | timedelta | None = None,
        time: str = "time",
        allowed_lateness: str | float | timedelta = 0,
        late: Literal["drop", "dead_letter"] = "drop",
        max_waiting: int = 4_000_000,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.columns = names_of(columns, name="Resample: columns")
        self.every_ns = duration_ns(every, name="Resample: every")
        self.method, self.time, self.late = method, time, late
        max_waiting = self._checked(max_waiting)
        offset_ns = duration_ns(offset, name=f"{self.name}: offset", zero=True)
        self._grid = Grid(min(self.every_ns, NO_LIMIT), offset_ns % self.every_ns)
        self.max_gap_ns = self.every_ns * _USUAL_POINTS
        if max_gap is not None:
            self.max_gap_ns = duration_ns(max_gap, name=f"{self.name}: max_gap")
        if self.max_gap_ns // self.every_ns > _MOST_POINTS:
            raise PlanError(
                f"{self.name}: max_gap={max_gap!r} is {self.max_gap_ns // self.every_ns:,} rows between two readings, of "
                f"at most {_MOST_POINTS:,}."
            )
        self.max_gap_ns = min(self.max_gap_ns, NO_LIMIT)
        lateness_ns = duration_ns(allowed_lateness, name=f"{self.name}: allowed_lateness", zero=True)
        self.lateness_ns = min(lateness_ns, NO_LIMIT)
        self.delay_ns = self.lateness_ns + self.max_gap_ns + (self._grid.every_ns if method == "mean" else 0)
        self._buffer = EventBuffer(["float64"] * len(self.columns), max_waiting)
        self._newest = Newest(1 if method == "mean" else len(self.columns) + 1)
        self._rewritten = -1
        self._key = KeyField(Schema())

    def _checked(self, max_waiting: int) -> int:
        """``max_waiting`` as a Python int."""
        if not self.columns or not all(isinstance(column, str) and column for column in self.columns):
            raise PlanError(f"Resample: columns={list(self.columns)!r} must be names of columns, one at least.")
        if self.method not in METHODS:
            raise PlanError(f'{self.name}: method={self.method!r} is not one of "last", "linear", "mean".')
        choices = ("drop", "dead_letter")
        max_waiting = check_waiting(self.late, choices, max_waiting, stage=self.name, what="readings")
        if not isinstance(self.time, str) or not self.time:
            raise PlanError(f"{self.name}: time={self.time!r} must be the name of a column.")
        twice = first_repeated((*self.columns, self.time))
        if twice is not None:
            raise PlanError(f"{self.name}: two columns would be called {twice!r}; time= names that of the time.")
        return max_waiting

    def describe(self) -> str:
        columns = self.columns[0] if len(self.columns) == 1 else list(self.columns)
        return f"Resample({columns!r}, {shown(self.every_ns)!r}, {self.method!r})"

    def bind(self, schema: Schema) -> Schema:
        for column in self.columns:
            schema.require(column, stage=self.name, kinds=NUMERIC)
        key = KeyField(schema)
        if key.name in (*self.columns, self.time):
            raise PlanError(f"{self.name}: two columns would be called {key.name!r}, that of the key and another.")
        made = [Field(column, Kind.FLOAT) for column in self.columns]
        return Schema([Field(key.name, key.kind), Field(self.time, Kind.TIME), *made], key=schema.key)

    def settled(self, schema: Schema) -> Self:
        made = super().opened()
        made._key = KeyField(schema)
        return made

    def reads(self) -> frozenset[str]:
        return frozenset(self.columns)

    def state_fields(self) -> Mapping[str, StateField]:
        return {**self._buffer.fields(), **self._newest.fields()}

    def known_by(self) -> Mapping[str, object]:
        return {
            "columns": self.columns,
            "grid": self._grid,
            "method": self.method,
            "max_gap_ns": self.max_gap_ns,
            "lateness_ns": self.lateness_ns,
        }

    def moved(self, old: Sequence[Mapping[str, NDArray[Any]]], places: Places) -> list[dict[str, NDArray[Any]]]:
        return self._buffer.moved(old, places)

    # -- in a lane ---------------------------------------------------------------------------------------

    def step(self, batch: Batch, state: StageState) -> Step:
        if state.rewritten != self._rewritten:  # a slab was rolled back, perhaps in the process before this one
            self._newest.forget(state, int(state.marks[0]))
            self._rewritten = state.rewritten
        held, due = self._buffer.held(state)
        crowded = self._drops_known and len(held) + len(batch) > self._buffer.most
        if crowded:
            held = held.take(self._end_of_wait(self._known_by(held.times)) > state.marks[0])
            self._buffer.replace(state, held, due)
        fresh, rejects, gone = self._taken(batch, state, self._buffer.most - len(held))
        if len(fresh):
            due = min(due, int(self._end_of_wait(self._known_by(fresh.times)).min()))
        self._buffer.add(state, fresh, due)
        emitted = self._passed(state, may_copy=not crowded) if due <= int(state.marks[-1]) else None
        return Step(self._none(), _NONE, rejects, gone, emitted=emitted)

    def _passed(self, state: StageState, *, may_copy: bool) -> Emitted | None:
        """The rows that wait for nothing more, of readings that the watermark has passed with this slab."""
        waiting, _ = self._buffer.held(state)
        mark = int(state.marks[-1])
        known = self._end_of_wait(self._known_by(waiting.times))
        ahead = known > mark
        due = int(known[ahead].min(initial=NEVER))
        if not self._drops_known:
            emitted, left = self._emitted(waiting.take(~ahead), state)
            due = min(due, mark + 1) if len(left) else due  # the next reading may be what they wait for
            self._buffer.replace(state, left.and_then(waiting.take(ahead)), due)
            return emitted
        emitted, _ = self._emitted(waiting.take(~ahead & (known > state.marks[0])), state)
        if may_copy and len(waiting) > 2 * int(np.count_nonzero(ahead)) + _LEFT_LYING:
            self._buffer.replace(state, waiting.take(ahead), due)
        else:
            self._buffer.add(state, waiting.take(slice(0)), due)
        return emitted

    @property
    def _drops_known(self) -> bool:
        """Whether a reading is of no more use once the watermark has passed it, so that it may be left lying until it is
        worth it to copy the others: else it waits for the next one of another column."""
        return self.method != "linear" or len(self.columns) == 1

    def _known_by(self, times: NDArray[np.int64]) -> NDArray[np.int64]:
        """The time up to which all must have come for readings of these times to be used."""
        return self._grid.time(self._grid.at_or_before(times) + 1) - 1 if self.method == "mean" else times

    def _end_of_wait(self, known_by: NDArray[np.int64]) -> NDArray[np.int64]:
        """The watermark from which on no reading is taken any more that is needed by then."""
        return known_by + (self.lateness_ns + 1)

    def _taken(self, batch: Batch, state: StageState, room: int) -> tuple[Waiting, list[Reject], dict[str, int]]:
        """The readings that wait from now on; the other records are late, too many, or hold no reading."""
        times = np.clip(batch.time, -FARTHEST, FARTHEST)
        too_late = late(state, self._end_of_wait(self._known_by(times)))
        rejects, gone = turned_away(batch, state, too_late, self.late)
        values = [numbers_of(batch, column, self.name) + 0.0 for column in self.columns]  # there is one zero: +0.0
        empty = np.logical_and.reduce([np.isnan(column) for column in values])
        rows = np.flatnonzero(~too_late & ~empty)
        rejects += out_of_room(rows[room:], self._buffer.most, "readings")
        rows = rows[:room]
        absorbed = len(rows) + int(np.count_nonzero(empty & ~too_late))
        fresh = Waiting(state.slots[rows], times[rows], tuple(column[rows] for column in values))
        return fresh, sorted(rejects, key=lambda reject: reject.row), {**gone, "absorbed": absorbed}

    # -- rows --------------------------------------------------------------------------------------------

    def _emitted(self, known: Waiting, state: StageState) -> tuple[Emitted | None, Waiting]:
        """The rows that wait for nothing more, and the readings that are needed again for those after them."""
        before, after = int(state.marks[0]), int(state.marks[-1])
        known = known.in_event_order()
        readings = Readings(known if self.method == "mean" else merged(known))
        readings.earlier = self._newest.read(state, readings.sensors, before)
        points = METHODS[self.method](readings, self._grid, self.max_gap_ns)
        ends = self._end_of_wait(points.reach)
        done = readings.up_to(points.tellers[ends > after])
        touched, times, values = readings.newest(done)
        self._newest.write(state, readings.sensors[touched], times, values, before=before, after=after)
        left = readings.waiting.take(~done)
        points = points.take((ends > before) & (ends <= after))
        if not len(points.times):
            return None, left
        slots = readings.slots[points.tellers]
        places = crossings(state, self._end_of_wait(points.reach))
        return Emitted(self._rows(slots, points, state.keys), slots, places, points.reach), left

    def _none(self) -> Batch:
        """No rows, of the columns that there would be."""
        nowhere = np.empty(0, np.int64)
        nothing = Points(nowhere, _NONE, nowhere, [np.empty(0)] * len(self.columns))
        return self._rows(np.empty(0, np.int32), nothing, np.empty(0, object))

    def _rows(self, slots: NDArray[np.int32], points: Points, keys: NDArray[np.object_]) -> Batch:
        columns = {self._key.name: self._key.column(slots, keys), self.time: Column(Kind.TIME, points.times)}
        for name, values in zip(self.columns, points.values, strict=True):
            columns[name] = Column(Kind.FLOAT, values)
        return Batch(columns, rows=len(slots), time=points.times)
