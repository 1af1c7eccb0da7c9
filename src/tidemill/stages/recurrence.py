"""What `Ewm`, `Lag`, `Diff`, `Rate` and `Stuck` share: a few numbers kept of each sensor, for each of several columns."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.base import Stage
from tidemill.stages.numbers import NUMERIC, numbers_of
from tidemill.stages.options import names_of
from tidemill.stages.saved import Saved
from tidemill.stages.state import StageState, StateField
from tidemill.stages.statistics.compiled import Kernels, load_kernels

__all__ = ["Recurrence"]


class Recurrence(Stage):
    """One row out per record in, with new columns that follow from each sensor's own readings so far, in their order.

    A subclass names its state per column (`_fields`) and makes the new columns of one (`_follow`).
    """

    uses_kernels: ClassVar[bool] = True
    makes: ClassVar[Kind] = Kind.FLOAT
    """The kind of the columns it adds."""

    def __init__(
        self, columns: str | Sequence[str], endings: Sequence[str], names: Sequence[str] | None, name: str | None
    ) -> None:
        super().__init__(name=name)
        self.columns = names_of(columns, name=f"{type(self).__name__}: columns")
        if not self.columns:
            raise PlanError(f"{self.name} needs at least one column.")
        self._refuse_doubled("column", self.columns)
        own = tuple(f"{column}_{ending}" for column in self.columns for ending in endings)
        self._renamed = names is not None
        self.adds = own if names is None else names_of(names, name=f"{self.name}: names")
        """Names of the columns it adds."""
        if len(self.adds) != len(own) or len(set(self.adds)) != len(own):
            raise PlanError(f"{self.name} needs {len(own)} different names, one for each of {', '.join(own)}.")
        self._kernels: Kernels | None = None

    def _refuse_doubled(self, what: str, given: Sequence[str]) -> None:
        doubled = sorted({str(one) for one in given if given.count(one) > 1})
        if doubled:
            raise PlanError(f"{self.name}: {what} {doubled[0]!r} is named twice.")

    def describe(self) -> str:
        columns: tuple[str, ...] = getattr(self, "columns", ())
        shown = columns[0] if len(columns) == 1 else list(columns)
        return f"{type(self).__name__}({shown!r})"

    def bind(self, schema: Schema) -> Schema:
        for column in self.columns:
            schema.require(column, stage=self.name, kinds=NUMERIC)
        fields = [Field(name, self.makes) for name in self.adds]
        return schema.adding(fields) if self._renamed else schema.adding_new(fields, stage=self.name)

    def reads(self) -> frozenset[str]:
        return frozenset(self.columns)

    def state_fields(self) -> Mapping[str, StateField]:
        numbers = range(len(self.columns))
        return {f"{name}{number}": field for number in numbers for name, field in self._fields().items()}

    def opened(self) -> Self:
        lane = super().opened()
        lane._kernels = load_kernels()
        return lane

    def step(self, batch: Batch, state: StageState) -> Batch:
        assert self._kernels is not None, "a stage is opened before it steps"
        made: list[NDArray[Any]] = []
        for number, column in enumerate(self.columns):
            own = Saved(self._kernels, state, str(number))
            made.extend(self._follow(numbers_of(batch, column, self.name), batch, own))
        columns = {name: Column(self.makes, values) for name, values in zip(self.adds, made, strict=True)}
        return batch.with_columns(columns)

    @abc.abstractmethod
    def _fields(self) -> Mapping[str, StateField]:
        """The state of one column."""

    @abc.abstractmethod
    def _follow(self, values: NDArray[np.float64], batch: Batch, own: Saved) -> Sequence[NDArray[Any]]:
        """The new columns of one column, from its ``values`` and its ``own`` state."""
