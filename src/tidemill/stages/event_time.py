"""`EventTime`: the time that a record counts at, as a column."""

from __future__ import annotations

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.base import Stage
from tidemill.stages.state import StageState

__all__ = ["EventTime"]


class EventTime(Stage):
    """The event time of each record as a column of times: its own, or, where it brought none, that of its arrival.

    ``into``  the name of the column; one of this name is replaced, so that times which came as texts or epoch numbers, or
              not at all, are alike in all rows

    Of a row that a stage has made, such as a window's, it is the time that the stage gave it. The times are int64 nanoseconds
    since 1970-01-01 UTC, shape ``(n,)``, which sinks write as their own type of time. No state; it costs nothing that grows
    with the batch. Raises `PlanError` for a name that is none.

    >>> from tidemill import Plan
    >>> Plan(EventTime("at")).apply([{"sensor": "S1", "time": 1_700_000_000.5, "value": 4.0}])[0]["at"]
    1700000000500000000
    """

    def __init__(self, into: str = "time", *, name: str | None = None) -> None:
        super().__init__(name=name)
        if not isinstance(into, str) or not into:
            raise PlanError(f"{self.name}: into={into!r} must be the name of a column.")
        self.into = into

    def describe(self) -> str:
        return f"EventTime({getattr(self, 'into', '')!r})"

    @property
    def needs_times(self) -> bool:
        return True

    def bind(self, schema: Schema) -> Schema:
        return schema.adding([Field(self.into, Kind.TIME)])

    def reads(self) -> frozenset[str]:
        return frozenset()

    def step(self, batch: Batch, state: StageState) -> Batch:
        return batch.with_columns({self.into: Column(Kind.TIME, batch.time)})
