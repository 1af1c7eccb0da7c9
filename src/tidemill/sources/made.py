"""What the sources have in common that make their records themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from tidemill.batch import Batch
from tidemill.errors import PlanError
from tidemill.letters import DeadLetter
from tidemill.schema import Field, Kind, Schema
from tidemill.sources.edged import EdgedSource

__all__ = ["READINGS", "MadeSource"]

READINGS: Final = Schema(
    [Field("sensor", Kind.TEXT), Field("time", Kind.TIME), Field("value", Kind.FLOAT), Field("unit", Kind.TEXT)]
)
"""The fields of their records."""


class MadeSource(EdgedSource):
    """A source of records of its own making. Their times have a zone, so that there is nothing for ``tz`` to say."""

    makes: ClassVar[bool] = True

    def __init__(
        self,
        *,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        name: str | None = None,
    ) -> None:
        super().__init__(key=key, time=time, columns=columns, tz=tz, name=name)
        for field in (*self.edge.roles.key_fields, self.edge.roles.time, *self.columns):
            if field not in READINGS:
                raise PlanError(
                    f"{type(self).__name__} makes records of {', '.join(READINGS.names)}; they have no field {field!r}."
                )
        self._as_made = key is None and time is None and not self.columns

    def peek(self) -> Schema:
        return READINGS.adding(Field(name, kind) for name, kind in self.columns.items())

    def with_roles(self, batch: Batch) -> tuple[Batch, Sequence[DeadLetter]]:
        """A batch that has the default roles, with those that were asked for."""
        if self._as_made:
            return batch, []
        return self.edge.columns(batch.columns, rows=len(batch), arrived_ns=batch.arrived_ns)
