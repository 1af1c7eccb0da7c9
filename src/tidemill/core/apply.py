"""``Plan.apply``: the chain of the lanes over data in memory, so that a notebook sees the numbers of the plant."""

from __future__ import annotations

import warnings
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill import interchange
from tidemill.as_came import like
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.core.chain import Chain
from tidemill.core.keys import UNKNOWN, KeyTable
from tidemill.core.order import input_order
from tidemill.core.outcome import Dead, Outcome
from tidemill.core.placement import devices_of, lacking
from tidemill.core.table_hints import table_hint
from tidemill.core.watermark import Watermark
from tidemill.errors import InputError, PlanError, StageError
from tidemill.formats.edge import Edge
from tidemill.formats.roles import DEFAULT_KEY, DEFAULT_TIME
from tidemill.formats.times import TimeReader
from tidemill.orders import Part, joined, placed
from tidemill.printable import shown
from tidemill.schema import Kind
from tidemill.stages.dedup import Dedup
from tidemill.stages.state import StateMemory

if TYPE_CHECKING:
    from tidemill.core.plan import Plan

__all__ = ["apply", "with_roles"]

_RECORDS_AT_ONCE: Final = 32_768
"""As many as a slab holds: it bounds the undo log, and functions see batches of the size they see live."""

_PROBES: Final = 1_000
"""Records taken one by one, at most, until one has shown what functions add: as a run learns it."""


def apply(
    prepared: Plan,
    data: Any,
    *,
    key: str,
    time: str | None,
    tz: str,
    lag_ns: int | None = None,
    place_by: str | None = None,
) -> Any:
    """See `tidemill.engine.plan.Plan.apply`; the plan's tables are loaded."""
    batch = with_roles(data, key, time, tz)
    if not batch.columns and not len(batch):
        return like(data, batch)  # no record has said what there is
    timed = next((stage.name for stage in prepared.stages if stage.needs_times), None)
    if timed is not None and batch.columns and time is None and DEFAULT_TIME not in batch.columns:
        there = ", ".join(batch.columns)
        hint = table_hint(data, key_fields=(), time=DEFAULT_TIME, needs_time=True)
        raise PlanError(
            f'{timed} works in event time: name its column with time="..."; the columns are: {there}.{hint}'
        )
    schema = batch.schema
    own = key if "{" not in key else None
    schema.key = own or DEFAULT_KEY
    prepared.bind(schema)
    place_by = prepared.placed_by(schema, own, asked=place_by)
    prepared = prepared.settled(schema)
    watermark = _Marks(batch, lag_ns) if prepared.follows_watermark else None
    keys = KeyTable(lanes=1, max_keys=max(2 * len(batch), 1))
    slots, devices = _slots(batch, keys, place_by)
    layout = prepared.layout(max(len(keys), 1), _RECORDS_AT_ONCE, undone=False)
    memory = StateMemory(layout, np.zeros(layout.total_bytes, np.uint8))
    chain = Chain(prepared.stages, memory, lambda: 0)
    chain.admit(keys.untold(0)[1], 0)
    batch.key_column = Column(Kind.TEXT, slots, texts=chain.key_texts)
    outcomes: list[tuple[int, Outcome]] = []
    start, learning = 0, prepared.learns
    while start < len(batch) or not outcomes:
        stop = start + (1 if learning else _RECORDS_AT_ONCE)
        memory.begin(len(outcomes) + 1)
        part = batch.slice(start, stop)
        if watermark is None:
            outcome = chain.run(part, slots[start:stop])
        else:
            places = np.arange(len(part), dtype=np.int32)
            own_devices = None if devices is None else devices[start:stop]
            marks = watermark.advance(part)
            outcome = chain.run(part, slots[start:stop], places=places, marks=marks, devices=own_devices)
        memory.commit(len(outcomes) + 1)
        for dead in outcome.dead:
            raise StageError(_told(dead, start, prepared.stages[dead.stage].name))
        outcomes.append((start, outcome))
        learning = learning and len(outcomes) < _PROBES and not _shows(outcome)
        start = stop
    if watermark is None:
        _warn_of_counts(prepared, outcomes)
        return _as_came(data, _joined(batch, outcomes), tz)
    nowhere = np.empty(0, np.int32)
    nobody = None if devices is None else nowhere
    for marks in watermark.end():
        memory.begin(len(outcomes) + 1)
        end = chain.run(batch.slice(start, stop), nowhere, places=nowhere, marks=marks, devices=nobody)
        memory.commit(len(outcomes) + 1)
        for dead in end.dead:
            raise StageError(_told(dead, start, prepared.stages[dead.stage].name))
        outcomes.append((start, end))
    _warn_of_counts(prepared, outcomes)
    return _as_came(data, _in_order([outcome for _, outcome in outcomes]), tz)


def _as_came(data: Any, batch: Batch, tz: str) -> Any:
    """The same kind of table, in which times are local ones of ``tz`` again where ``data`` has them without a zone."""
    times = TimeReader(tz)
    local = {
        name: Column(Kind.TIME, times.local(column.values), tags=column.tags)
        for name in interchange.naive_times(data)
        if (column := batch.columns.get(name)) is not None and column.kind is Kind.TIME
    }
    return like(data, batch.holding({**batch.columns, **local}, batch.orders) if local else batch)


def _warn_of_counts(prepared: Plan, outcomes: list[tuple[int, Outcome]]) -> None:
    """Nothing is silent: a notebook has no report to look at."""
    late = sum(outcome.gone.get("late", 0) for _, outcome in outcomes)
    if late:
        droppers = [stage for stage in prepared.stages if getattr(stage, "late", None) == "drop"]
        names = ", ".join(stage.name for stage in droppers)
        allows = " or ".join(dict.fromkeys("within=" if isinstance(stage, Dedup) else "lag=" for stage in droppers))
        told = f"late: {late:,} left out by {names}: further out of order than {allows} allows"
        warnings.warn(f"{told}.", RuntimeWarning, stacklevel=4)
    for index, stage in enumerate(prepared.stages):
        counts = Counter[str]()
        for _, outcome in outcomes:
            counts.update(outcome.counted.get(index, {}))
        for what, times in counts.items():
            hint = stage.hint(what)
            if hint is not None:
                warnings.warn(f"{what}: {times:,} times: {hint}.", RuntimeWarning, stacklevel=4)


def _slots(batch: Batch, keys: KeyTable, place_by: str | None) -> tuple[NDArray[np.int32], NDArray[np.int32] | None]:
    """The key slots of the records' sensors and, where these are placed by them, of their devices."""
    if batch.key_column is None:
        return np.empty(0, np.int32), None
    if place_by is None:
        return keys.slots(keys.encode(batch.key_column)), None
    codes, devices = keys.encode_placed(batch.key_column, devices_of(batch, place_by))
    lost = np.flatnonzero(codes == UNKNOWN)
    if len(lost):
        raw = batch.slice(int(lost[0]), int(lost[0]) + 1).to_rows()[0]
        raise InputError(f"{lacking(place_by)}, in the record {raw}; {len(lost)} such records in all.")
    return keys.slots(codes), keys.slots(devices)


class _Marks:
    """The watermark over data that is all there: by default it lags as much as the data's order is off."""

    def __init__(self, batch: Batch, lag_ns: int | None) -> None:
        if lag_ns is None:
            lag_ns = int((np.maximum.accumulate(batch.time) - batch.time).max()) if len(batch) else 0
        self._watermark = Watermark(lag_ns=lag_ns)

    def advance(self, part: Batch) -> NDArray[np.int64]:
        if not len(part):
            return np.array([self._watermark.mark] * 2)
        return self._watermark.advance(part.time, wall_ns=None)

    def end(self) -> list[NDArray[np.int64]]:
        """The last steps: to the newest time, and beyond all times."""
        marks = [self._watermark.mark]
        if self._watermark.catch_up():
            marks.append(self._watermark.mark)
        self._watermark.end()
        return [np.array(step) for step in pairwise([*marks, self._watermark.mark])]


def _in_order(outcomes: list[Outcome]) -> Batch:
    """The rows of all chunks, those that stages made among the others."""
    parts = []
    for outcome in [outcome for outcome in outcomes if len(outcome.batch)] or outcomes[-1:]:
        part = outcome.batch
        if outcome.ends is not None and len(part):  # without rows it has no keys
            assert outcome.places is not None
            assert part.key_column is not None
            order = input_order(outcome.places, outcome.ends, outcome.slots, part.keys)
            part = part.take(order)
        parts.append(part)
    return Batch.concat(parts)


def _told(dead: Dead, start: int, stage: str) -> str:
    """Which record failed in this chunk, or which row that a stage had made, where and why."""
    why = dead.reason if dead.reason.startswith(stage) else f"{stage}: {dead.reason}"
    return f"record {start + dead.row}: {why}" if dead.made is None else f"{why}, in the row {dead.made}"


def _shows(outcome: Outcome) -> bool:
    """Whether a record has passed every function, and left a value in every column that they make."""
    made = [column for name, column in outcome.batch.columns.items() if name not in outcome.carried]
    failed = outcome.counts.get("failed_as_nan")
    return bool(len(outcome.batch)) and not failed and not any(column.is_missing for column in made)


def with_roles(data: Any, key: str, time: str | None, tz: str) -> Batch:
    """A table as a batch whose records have their sensor and time; raises `InputError` for a record without them."""
    table = interchange.from_table(data)
    if not table.columns:
        return table
    arrival = time is None and DEFAULT_TIME not in table.columns
    edge = Edge(key=key, time=time, tz=tz, arrival=arrival, source="apply")
    batch, letters = edge.columns(table.columns, rows=len(table), naive=interchange.naive_times(data))
    if letters:
        hint = table_hint(data, key_fields=edge.roles.key_fields, time=time or DEFAULT_TIME, needs_time=not arrival)
        raise InputError(
            f"{letters[0].reason}, in the record {shown(letters[0].raw)}; {len(letters)} such records in all.{hint}"
        )
    batch.origin, batch.origin_names, batch.orders = table.origin, table.origin_names, table.orders
    return batch


def _joined(batch: Batch, outcomes: list[tuple[int, Outcome]]) -> Batch:
    """The chunks as one; what was carried is taken from the input, so that it stays what it was to the last bit."""
    base = batch
    if any(outcome.rows is not None for _, outcome in outcomes):
        sizes = [np.arange(len(o.batch)) if o.rows is None else o.rows for _, o in outcomes]
        rows = np.concatenate([own + start for own, (start, _) in zip(sizes, outcomes, strict=True)])
        base = batch.take(rows)
    # A chunk of which nothing came out has not seen the later stages, and knows nothing of their columns.
    outcomes = [(start, outcome) for start, outcome in outcomes if len(outcome.batch)] or outcomes[-1:]
    columns: dict[str, Column] = {}
    names = placed(base.columns, [outcome.batch.names for _, outcome in outcomes])
    orders = joined([Part(o.batch.names, o.batch.orders, len(o.batch)) for _, o in outcomes], names)
    for name in names:
        sources = {outcome.carried.get(name) for _, outcome in outcomes}
        source = next(iter(sources)) if len(sources) == 1 else None
        if source is not None:
            columns[name] = base.columns[source]
        else:
            parts = [
                Batch({name: o.batch.columns[name]}) if name in o.batch.columns else Batch({}, rows=len(o.batch))
                for _, o in outcomes
            ]
            columns[name] = Batch.concat(parts).columns[name]
    return base.holding(columns, orders)
