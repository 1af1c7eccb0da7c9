"""`Aggregate`: one row per sensor and time window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import INTEGER_TAG, Column
from tidemill.durations import duration_ns
from tidemill.errors import BadResult, PlanError
from tidemill.letters import WRONG_TYPE, Reject
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.base import Emitted, OnError, Stage, Step
from tidemill.stages.event_buffer import EventBuffer, Waiting
from tidemill.stages.functions import check_function, own_name
from tidemill.stages.grid import NO_LIMIT
from tidemill.stages.latecomers import check_waiting, late, out_of_room, turned_away
from tidemill.stages.made_rows import KeyField, crossings
from tidemill.stages.narrowing import rejected
from tidemill.stages.numbers import NUMERIC, numbers_of
from tidemill.stages.options import whole_number
from tidemill.stages.places import Places
from tidemill.stages.state import StageState, StateField
from tidemill.stages.statistics.segments import SEGMENT_STATISTICS, Segments
from tidemill.stages.statistics.wanted import Quantile
from tidemill.stages.time_windows import Cut, Sliding, TimeWindow

__all__ = ["Aggregate"]

Late = Literal["drop", "dead_letter", "update"]
_EDGES: Final = ("window_start", "window_end")
_REVISION: Final = "revision"
_BEGIN: Final = -(1 << 63)


class Aggregate(Stage):
    """One row per sensor and time window, when the watermark has passed the window's end; the records go no further.

    ``window``            `tumbling`, `sliding` or `session`, in event time
    ``stats``             per column a statistic or several, as in pandas: ``{"temp": ["mean", "max"], "cond": "last"}``
                          makes ``temp_mean``, ``temp_max``, ``cond_last``; or per new column the two,
                          ``{"peak": ("temp", "max")}``. A statistic is ``"count"``, ``"sum"``, ``"mean"``, ``"var"``,
                          ``"std"``, ``"min"``, ``"max"``, ``"range"``, ``"median"``, ``"first"``, ``"last"``,
                          ``"delta"`` (last less first), ``"slope"`` and ``"rate"`` (per second), ``"rms"``,
                          ``quantile(q)`` (no ``"zscore"``, which is of one record), or a function that gets the window's values (1-D float64, by event time,
                          NaN left out) and returns a number
    ``allowed_lateness``  how long behind the watermark a window still takes records; it ends so much later
    ``late``              what becomes of a record that comes when its window has ended: ``"drop"`` (counted as ``late``),
                          ``"dead_letter"``, or ``"update"``: then a window's row comes out at its end, and again with each
                          record that comes within ``allowed_lateness`` behind it, the column ``revision`` counting from 0;
                          what comes later still is dropped and counted. Not for sessions, of which one late record can
                          make one of two
    ``ddof``              ``std`` and ``var`` divide by ``n - ddof``
    ``max_waiting``       records that may wait in one lane; what comes beyond is a dead letter (``too_many_open``)

    A row has the sensor's name, ``window_start`` and ``window_end`` (UTC), and the statistics; its event time is the last
    nanosecond of the window. Rows come out at the record with which the watermark reached their window's end, those of
    one place by window end and then by the sensor's name as bytes: whatever the lanes and batches. They do not depend on
    the order in which records arrived, as long as none was late: records are sorted by event time first, and those of
    one time by their values. Only windows that hold a record of the sensor have a row. Missing values are left out; a
    window with none has ``count`` and ``sum`` 0 and no other statistic.

    A session takes no record that is behind the watermark by more than ``allowed_lateness``; a sliding or tumbling window
    takes all until it ends. A function that raises costs its window's row, as ``on_error`` says. State: 20 bytes for
    each waiting record and 8 for each column. Time: 0.6 us a record, 1.3 where it is in six sliding windows: a sort of the
    records that wait, when a window ends. With ``late="update"`` each late record costs a pass over all that wait in its lane.

    Raises `PlanError` for an unknown statistic, a column that is not there or not a number, or a senseless window. An
    ``allowed_lateness`` beyond 73 years counts as that.

    >>> import tidemill as tm
    >>> rows = [{"sensor": "S1", "time": f"2024-03-01T00:00:{s:02}Z", "value": s} for s in (1, 5, 12)]
    >>> plan = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": ["mean", "count"]}))
    >>> [(row["value_mean"], row["value_count"]) for row in plan.apply(rows, time="time")]
    [(3.0, 2.0), (12.0, 1.0)]
    """

    follows_watermark: ClassVar[bool] = True
    absorbs: ClassVar[bool] = True

    def __init__(
        self,
        window: TimeWindow,
        stats: Mapping[str, Any],
        *,
        allowed_lateness: str | float | timedelta = 0,
        late: Late = "drop",
        ddof: int = 1,
        max_waiting: int = 4_000_000,
        name: str | None = None,
        on_error: OnError = "dead_letter",
        deadline_s: float | None = None,
    ) -> None:
        super().__init__(name=name, on_error=on_error, deadline_s=deadline_s)
        self.window = window
        if not isinstance(window, TimeWindow):
            raise PlanError(
                f'Aggregate: {window!r} is no window in time; write tumbling("10s"), sliding("60s", "10s") or '
                'session("5min"); for the last n records of each sensor there is Rolling.'
            )
        choices = ("drop", "dead_letter", "update")
        max_waiting = check_waiting(late, choices, max_waiting, stage=self.name, what="records")
        self.late: Late = late
        self.ddof = whole_number(ddof, name=f"{self.name}: ddof", must="be 0, 1 or more")
        lateness_ns = duration_ns(allowed_lateness, name=f"{self.name}: allowed_lateness", zero=True)
        self.lateness_ns = min(lateness_ns, NO_LIMIT)
        self.delay_ns = self.lateness_ns
        if late == "update" and not self.lateness_ns:
            raise PlanError(f'{self.name}: late="update" needs allowed_lateness=, which says for how long.')
        if late == "update" and not isinstance(window, Sliding):
            raise PlanError(
                f'{self.name}: late="update" needs windows that no record can join to another: no sessions.'
            )
        self._named = _EDGES if late != "update" else (*_EDGES, _REVISION)
        self.wanted = _wanted(stats, self.name, self._named)
        """Per new column, the column it is of and the statistic."""
        self.columns = tuple(dict.fromkeys(column for column, _ in self.wanted.values()))
        self.adds = tuple(self.wanted)
        # Where a record is in several windows it can be late for some; then it must be known when each record came.
        self._dated = late == "update" or (isinstance(window, Sliding) and window.size_ns > window.every_ns)
        marks = ["int64"] if self._dated else []
        self._buffer = EventBuffer(["float64"] * len(self.columns) + marks, max_waiting)
        self._key = KeyField(Schema())

    @property
    def runs_user_code(self) -> bool:  # type: ignore[override] # it depends on what statistics it has
        return any(callable(stat) for _, stat in self.wanted.values())

    def describe(self) -> str:
        return f"Aggregate({self.window!r})"

    def bind(self, schema: Schema) -> Schema:
        for column in self.columns:
            schema.require(column, stage=self.name, kinds=NUMERIC)
        key = KeyField(schema)
        if key.name in (*self.adds, *self._named):
            raise PlanError(f"{self.name}: two columns would be called {key.name!r}, that of the key and another.")
        fields = [Field(key.name, key.kind), *(Field(name, Kind.TIME) for name in _EDGES)]
        made = [Field(name, Kind.FLOAT) for name in self.adds]
        revision = [Field(_REVISION, Kind.FLOAT)] if self.late == "update" else []
        return Schema([*fields, *made, *revision], key=schema.key)

    def settled(self, schema: Schema) -> Self:
        made = super().opened()
        made._key = KeyField(schema)
        return made

    def reads(self) -> frozenset[str]:
        return frozenset(self.columns)

    def state_fields(self) -> Mapping[str, StateField]:
        return self._buffer.fields()

    def known_by(self) -> Mapping[str, object]:
        """The records that wait for its windows' ends; which statistics are taken of them is another matter."""
        return {"window": self.window, "columns": self.columns, "late": self.late, "lateness_ns": self.lateness_ns}

    def moved(self, old: Sequence[Mapping[str, NDArray[Any]]], places: Places) -> list[dict[str, NDArray[Any]]]:
        return self._buffer.moved(old, places)

    # -- in a lane ---------------------------------------------------------------------------------------

    def step(self, batch: Batch, state: StageState) -> Step:
        held, due = self._buffer.held(state)
        rows, rejects, gone = self._taken(batch, state, self._buffer.most - len(held))
        fresh = self._records(batch, state, rows)
        if len(fresh):
            due = min(due, int(self.window.first_end(fresh.times).min()) + self._wait_ns)
        updates = self._updates(held, fresh, state.places[rows]) if self.late == "update" else []
        if due > int(state.marks[-1]):
            self._buffer.add(state, fresh, due)
            return Step(self._none(), _NONE, rejects, gone, emitted=self._emitted(updates, state))
        waiting = held.and_then(fresh).in_event_order()
        ended = self._ended(waiting, state)
        needed = self.window.needed(waiting.slots, waiting.times, max(int(state.marks[-1]) - self.lateness_ns, _BEGIN))
        left = waiting.take(needed)
        mark = int(state.marks[-1]) - self._wait_ns
        self._buffer.replace(state, left, self.window.next_end(left.slots, left.times, mark) + self._wait_ns)
        return Step(self._none(), _NONE, rejects, gone, emitted=self._emitted([*ended, *updates], state))

    @property
    def _wait_ns(self) -> int:
        """From a window's end to its row."""
        return 0 if self.late == "update" else self.lateness_ns

    def _taken(
        self, batch: Batch, state: StageState, room: int
    ) -> tuple[NDArray[np.intp], list[Reject], dict[str, int]]:
        """Which records wait from now on; the others are late, or too many."""
        too_late = late(state, self.window.late_after(batch.time) + self.lateness_ns)
        rejects, gone = turned_away(batch, state, too_late, self.late, why="its window had ended: ")
        rows = np.flatnonzero(~too_late)
        rejects += out_of_room(rows[room:], self._buffer.most, "records")
        rows = rows[:room]
        return rows, sorted(rejects, key=lambda reject: reject.row), {**gone, "absorbed": len(rows)}

    def _records(self, batch: Batch, state: StageState, rows: NDArray[np.intp]) -> Waiting:
        # There is one zero: +0.0.
        values = [numbers_of(batch, column, self.name)[rows] + 0.0 for column in self.columns]
        marks = [state.marks[state.places[rows]]] if self._dated else []
        return Waiting(state.slots[rows], batch.time[rows], (*values, *marks))

    def _ended(self, waiting: Waiting, state: StageState) -> list[_Rows]:
        """The rows of the windows that the watermark has passed with this slab."""
        first, last = (int(mark) - self._wait_ns for mark in (state.marks[0], state.marks[-1]))
        cut = self.window.cut(waiting.slots, waiting.times, first, last)
        if not self._dated:
            return [_Rows.of(waiting, cut, crossings(state, cut.ends + self._wait_ns))]
        in_time = self.window.first_end(waiting.times) + self._wait_ns
        behind = np.concatenate(([0], np.cumsum(waiting.values[-1] >= in_time)))
        whole = behind[cut.stop] == behind[cut.first]
        made = [_Rows.of(waiting, cut.take(whole), crossings(state, cut.ends[whole] + self._wait_ns))]
        for row in np.flatnonzero(~whole).tolist():  # without what came after its end
            one = waiting.take(slice(cut.first[row], cut.stop[row]))
            one = one.take(one.values[-1] < cut.ends[row] + self._wait_ns)
            if len(one):
                alone = Cut(_ZERO, np.array([len(one)]), cut.starts[[row]], cut.ends[[row]])
                made.append(_Rows.of(one, alone, crossings(state, alone.ends + self._wait_ns)))
        return made

    def _updates(self, held: Waiting, fresh: Waiting, places: NDArray[np.int32]) -> list[_Rows]:
        """The rows of windows that had ended when one of these records came, each once more."""
        marks = fresh.values[-1]
        made = []
        for row in np.flatnonzero(marks >= self.window.first_end(fresh.times)).tolist():
            slot, time, mark = fresh.slots[row], int(fresh.times[row]), int(marks[row])
            pool = held.take(held.slots == slot).and_then(fresh.take(np.flatnonzero(fresh.slots[: row + 1] == slot)))
            pool = pool.in_event_order()
            cut = self.window.cut(pool.slots, pool.times, mark - self.lateness_ns, mark)
            cut = cut.take((cut.starts <= time) & (time < cut.ends))
            late_ones = pool.values[-1]
            revisions = [
                int(np.count_nonzero(late_ones[first:stop] >= end))
                for first, stop, end in zip(cut.first, cut.stop, cut.ends, strict=True)
            ]
            made.append(_Rows(pool, cut, np.full(len(cut.ends), places[row]), np.array(revisions, np.float64)))
        return made

    # -- the rows ------------------------------------------------------------------------------------------

    def _none(self) -> Batch:
        """No rows, of the columns that there would be."""
        return self._batch([], [], np.empty(0, object))

    def _emitted(self, made: Sequence[_Rows], state: StageState) -> Emitted | None:
        made = [rows for rows in made if len(rows.cut.ends)]
        if not made:
            return None
        segments = [rows.segments(self.ddof) for rows in made]
        ends = np.concatenate([rows.cut.ends for rows in made])
        batch = self._batch(made, segments, state.keys)
        rejects = self._call(segments, batch, state)
        return Emitted(
            batch,
            np.concatenate([rows.slots for rows in made]),
            np.concatenate([rows.places for rows in made]).astype(np.int32),
            ends,
            rejects,
        )

    def _batch(self, made: Sequence[_Rows], segments: Sequence[Sequence[Segments]], keys: NDArray[np.object_]) -> Batch:
        """The rows, with what functions make of them still missing."""
        slots, starts, ends, revisions = (
            np.concatenate([empty, *(part(rows) for rows in made)]) for empty, part in _PARTS
        )
        columns = {
            self._key.name: self._key.column(slots, keys),
            "window_start": Column(Kind.TIME, starts),
            "window_end": Column(Kind.TIME, ends),
        }
        for name, (column, stat) in self.wanted.items():
            place = self.columns.index(column)
            parts = [
                np.full(len(own[place].counts), np.nan) if callable(stat) else _value(own[place], stat)
                for own in segments
            ]
            columns[name] = Column(Kind.FLOAT, np.concatenate([np.empty(0), *parts]))
        if self.late == "update":
            columns[_REVISION] = Column(Kind.FLOAT, revisions, tags=np.full(len(revisions), INTEGER_TAG, np.uint8))
        return Batch(columns, rows=len(slots), time=ends - 1)

    def _call(self, segments: Sequence[Sequence[Segments]], batch: Batch, state: StageState) -> list[Reject]:
        """Let the user's functions fill in their columns, window by window."""
        functions = [
            (name, self.columns.index(column), fn) for name, (column, fn) in self.wanted.items() if callable(fn)
        ]
        rejects: list[Reject] = []
        if not functions:
            return rejects
        values = {name: batch.columns[name].values for name, _, _ in functions}
        row = 0
        for own in segments:
            for place in range(len(own[0].counts)):
                failed = self._call_one(functions, own, place, row, values, state)
                if failed is not None and self.on_error == "nan":
                    state.count("failed_as_nan")
                elif failed is not None:
                    rejects.append(failed)
                row += 1
        return rejects

    def _call_one(
        self,
        functions: Sequence[tuple[str, int, Any]],
        segments: Sequence[Segments],
        place: int,
        row: int,
        values: Mapping[str, NDArray[np.float64]],
        state: StageState,
    ) -> Reject | None:
        if row in state.quarantined:
            return Reject(row, *state.quarantined[row])
        for name, column, fn in functions:
            if not segments[column].counts[place]:
                continue  # as every statistic, of nothing it is NaN
            state.calling_row(row)
            try:
                values[name][row] = _number(segments[column].each(fn, place), name)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever the user's function raises costs its row
                return rejected(self, error, row)
        return None


@dataclass(frozen=True)
class _Rows:
    """Windows of records that are sorted by sensor and time, and where their rows come out."""

    records: Waiting
    cut: Cut
    places: NDArray[np.int32]
    revisions: NDArray[np.float64]

    @classmethod
    def of(cls, records: Waiting, cut: Cut, places: NDArray[np.int32]) -> _Rows:
        """The first rows of these windows."""
        return cls(records, cut, places, np.zeros(len(places)))

    @property
    def slots(self) -> NDArray[np.int32]:
        return self.records.slots[self.cut.first]

    def segments(self, ddof: int) -> list[Segments]:
        """Each column's values by window."""
        return [
            Segments(values, self.records.times, self.cut.first, self.cut.stop, ddof)
            for values in self.records.values
            if values.dtype == np.float64
        ]


_ZERO: Final = np.zeros(1, np.intp)
_NONE: Final = np.empty(0, np.intp)
_PARTS: Final[tuple[tuple[NDArray[Any], Callable[[_Rows], NDArray[Any]]], ...]] = (
    (np.empty(0, np.int32), lambda rows: rows.slots),
    (np.empty(0, np.int64), lambda rows: rows.cut.starts),
    (np.empty(0, np.int64), lambda rows: rows.cut.ends),
    (np.empty(0, np.float64), lambda rows: rows.revisions),
)


def _value(segments: Segments, stat: str | Quantile) -> NDArray[np.float64]:
    return segments.of(stat) if isinstance(stat, str) else segments.quantile(stat.q)


def _number(result: Any, name: str) -> float:
    try:
        return float(result)
    except (TypeError, ValueError):
        raise BadResult(
            WRONG_TYPE, f"the function of {name!r} returned {type(result).__name__}; a number is needed"
        ) from None


def _wanted(stats: Mapping[str, Any], stage: str, taken: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Per new column what it is of; ``taken`` are names of others."""
    if not isinstance(stats, Mapping) or not stats:
        raise PlanError(f'{stage} needs statistics by column, such as {{"value": ["mean", "max"]}}; this is {stats!r}.')
    wanted: dict[str, tuple[str, Any]] = {}
    for name, given in stats.items():
        if isinstance(given, tuple):
            if len(given) != 2 or not isinstance(given[0], str):
                raise PlanError(
                    f'{stage}: {name}={given!r} must be a column and a statistic, such as ("value", "mean").'
                )
            own = [(name, given)]
        else:
            each = given if isinstance(given, list) else [given]
            if not each:
                raise PlanError(f'{stage}: {name}=[] names no statistic; write such as {{"{name}": ["mean", "max"]}}.')
            if any(callable(stat) and own_name(stat) == "<lambda>" for stat in each):
                raise PlanError(
                    f'{stage}: a lambda has no name for its column; give it one, such as {{"{name}_spread": ("{name}", '
                    f'lambda ...)}}, or use def. (Before, it was called "{name}_<lambda>"; a kept state goes on under that name.)'
                )
            own = [(f"{name}_{_name_of(stat, stage)}", (name, stat)) for stat in each]
        for column, (source, stat) in own:
            _name_of(stat, stage)
            if column in wanted or column in taken:
                raise PlanError(f"{stage}: two columns would be called {column!r}.")
            wanted[column] = (source, stat)
    return wanted


def _name_of(stat: Any, stage: str) -> str:
    if isinstance(stat, str) and stat in SEGMENT_STATISTICS:
        return stat
    if isinstance(stat, Quantile):
        return stat.name
    if callable(stat):
        check_function(stat, stage)
        return own_name(stat)
    raise PlanError(
        f"{stage}: {stat!r} is not a statistic; there are {', '.join(SEGMENT_STATISTICS)}, quantile(q) and functions."
    )
