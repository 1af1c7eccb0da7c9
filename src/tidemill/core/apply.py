"""``Plan.apply``: the chain of the lanes over data in memory, so that a notebook sees the numbers of the plant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tidemill import interchange
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.core.chain import Chain, Outcome
from tidemill.core.keys import KeyTable
from tidemill.errors import InputError, StageError
from tidemill.formats.edge import DEFAULT_TIME, Edge
from tidemill.orders import Part, joined, placed
from tidemill.stages.state import StateMemory

if TYPE_CHECKING:
    from tidemill.core.plan import Plan

__all__ = ["apply", "with_roles"]

_RECORDS_AT_ONCE: Final = 32_768
"""As many as a slab holds: it bounds the undo log, and functions see batches of the size they see live."""

_PROBES: Final = 1_000
"""Records taken one by one, at most, until one has shown what functions add: as a run learns it."""


def apply(prepared: Plan, data: Any, *, key: str, time: str | None, tz: str) -> Any:
    """See `tidemill.engine.plan.Plan.apply`; the plan's tables are loaded."""
    batch = with_roles(data, key, time, tz)
    prepared.bind(batch.schema)
    keys = KeyTable(lanes=1, max_keys=max(len(batch), 1))
    slots = keys.slots(keys.encode(batch.key_column)) if batch.key_column is not None else np.empty(0, np.int32)
    layout = prepared.layout(max(len(keys), 1), _RECORDS_AT_ONCE)
    memory = StateMemory(layout, np.zeros(layout.total_bytes, np.uint8))
    chain = Chain(prepared.stages, memory, lambda: 0)
    chain.admit(keys.untold(0)[1], 0)
    outcomes: list[tuple[int, Outcome]] = []
    start, learning = 0, prepared.learns
    while start < len(batch) or not outcomes:
        stop = start + (1 if learning else _RECORDS_AT_ONCE)
        memory.begin(len(outcomes) + 1)
        outcome = chain.run(batch.slice(start, stop), slots[start:stop])
        memory.commit(len(outcomes) + 1)
        for dead in outcome.dead:
            name = prepared.stages[dead.stage].name
            raise StageError(f"record {start + dead.row}: {name}: {dead.reason}")
        outcomes.append((start, outcome))
        learning = learning and len(outcomes) < _PROBES and not _shows(outcome)
        start = stop
    return interchange.like(data, _joined(batch, outcomes))


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
        raise InputError(f"{letters[0].reason}, in the record {letters[0].raw}; {len(letters)} such records in all.")
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
