"""A stage under the laws: the records it is tried on, what it makes of them, and the sentence when a law is broken."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final, NoReturn

import numpy as np

from tidemill.batch import Batch
from tidemill.column import ABSENT_TAG, NULL_TAG, Column
from tidemill.core.apply import with_roles
from tidemill.core.plan import Plan
from tidemill.core.trial import MADE, Change, Made, Trial, change, keys_of, marks_of
from tidemill.engine.plan import FROM_DISK
from tidemill.errors import PlanError
from tidemill.schema import Kind, Schema
from tidemill.stages.base import Stage

__all__ = ["LawBroken", "Subject", "sample"]

_RECORDS: Final = 61  # no multiple of a block, and of nothing else


class LawBroken(AssertionError):
    """A stage, source or sink does not keep a law; the message names it, the law, the first difference, both values."""


class Subject:
    """A prepared stage, and records with their roles."""

    def __init__(self, stage: Stage, batch: Batch, schema: Schema) -> None:
        self.stage = stage
        self.batch = batch
        self.given = batch.take(np.arange(len(batch)))
        """A copy, which no stage has seen."""
        self.schema = schema
        """Of the records, with the name of the sensors' column."""
        self.keys = keys_of(batch)
        self.marks = marks_of(batch)
        self.law = ""
        """The one that it is tried on now."""

    @cached_property
    def whole(self) -> Made:
        """What a lane makes of the whole batch at once."""
        return self.trial().feed_all([self.batch])

    @classmethod
    def of(cls, stage: Stage, data: Any, *, key: str, time: str | None, tz: str) -> Subject:
        """The stage with its tables loaded, and ``data`` (a table, or None for records made up) as its records.

        Raises `PlanError` for a plan or a list of several stages, of which the first alone would be tried.
        """
        plan = Plan(stage)
        if len(plan) != 1:
            given = f"{len(plan)}: {', '.join(one.name for one in plan.stages)}" if len(plan) else "none"
            raise PlanError(
                f"check_stage tries one stage at a time, and was given {given}. Try each, on records as they reach it; `tidemill "
                "check --input` tries a whole plan on a recording."
            )
        plan = plan.prepared(FROM_DISK)
        batch = with_roles(sample(plan.stages[0]) if data is None else data, key, time, tz)
        schema = Schema(batch.schema, key=key)
        plan.bind(schema)
        if plan.placed_by(schema, key) is not None:
            raise PlanError(
                f"{stage.name} groups sensors by {stage.groups_by!r}, and is tried here on sensors of which each is its own: "
                f"give records whose key that is, with key={stage.groups_by!r}."
            )
        return cls(plan.settled(schema).stages[0], batch, schema)

    def on(self, batch: Batch) -> Subject:
        """The same stage with other records, under the same law."""
        other = Subject(self.stage, batch, self.schema)
        other.law = self.law
        return other

    def trial(self, stage: Stage | None = None, *, keys: Sequence[str] | None = None, **options: Any) -> Trial:
        """The stage, or a copy of it, over fresh state."""
        rows = len(self.batch)
        return Trial(
            stage or self.stage, self.keys if keys is None else keys, records=rows, marks=self.marks, **options
        )

    # -- judging -------------------------------------------------------------------------------------------

    def require_same(self, how: str, got: Made, expected: Made | None = None) -> None:
        """Raise `LawBroken` when something else came than of the whole batch (or than ``expected``)."""
        found = change(got, expected or self.whole)
        if found is not None:
            self.fail(f"{how}, {self.told(found)}")

    def fail(self, what: str) -> NoReturn:
        """Raise `LawBroken`."""
        raise LawBroken(f"{self.stage.name} breaks the law of {self.law}: {what}.")

    def told(self, found: Change) -> str:
        """The record by its place and sensor, and what differs."""
        if found.record == MADE:
            return str(found)
        return f"record {found.record} (sensor {self.sensor(found.record)!r}): {found.what}"

    def sensor(self, record: int) -> str:
        """The record's sensor."""
        return str(self.batch.keys[self.batch.key[record]])


# -- records ------------------------------------------------------------------------------------------------


def sample(stage: Stage) -> list[dict[str, Any]]:
    """Made-up records: five sensors at random, one of them heard once, with equal times and gaps, equal values and holes.

    They have ``sensor``, ``time`` (seconds), ``value``, and a float column for every other that the stage says it reads.
    """
    random = np.random.default_rng(20)
    names = ["value", *sorted((stage.reads() or frozenset()) - {"sensor", "time", "value"})]
    sensors = ["S9", *(f"S{number}" for number in random.integers(1, 5, _RECORDS - 1))]
    times = 1_700_000_000 + np.cumsum(random.choice([0.0, 0.25, 1.0, 1.5, 40.0], _RECORDS))
    values = {name: np.round(random.normal(50, 2, _RECORDS) * 2) / 2 for name in names}  # one often follows itself
    rows: list[dict[str, Any]] = []
    for at, (sensor, time) in enumerate(zip(sensors, times.tolist(), strict=True)):
        row: dict[str, Any] = {"sensor": sensor, "time": time}
        for name in names:
            holes = {11: float("nan"), 17: None, 23: 5, 29: 0.0, 31: -0.0}
            row[name] = holes.get(at, float(values[name][at]))
        rows.append(row)
    return rows


def emptied(batch: Batch, columns: Sequence[str], tag: int) -> Batch:
    """The same records without a value in these columns: NaN where there can be (``tag`` 0), null, or no field."""
    made = {}
    for name in columns:
        column = batch.columns[name]
        if tag:
            made[name] = Column.missing(column.kind, len(batch), tag)
        elif column.kind is Kind.FLOAT:
            made[name] = Column(Kind.FLOAT, np.full(len(batch), np.nan))
    return batch.with_columns(made)


HOLES: Final = {"NaN": 0, "null": NULL_TAG, "absent": ABSENT_TAG}
"""The ways in which a record can be without a value."""
