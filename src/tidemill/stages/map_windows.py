"""`MapWindows`: a user's function over each sensor's last records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final, Self

from tidemill.batch import Batch
from tidemill.errors import PlanError
from tidemill.schema import Schema
from tidemill.stages.base import Entered, OnError
from tidemill.stages.map import ColumnsFunction
from tidemill.stages.numbers import NUMERIC, numbers_of
from tidemill.stages.options import names_of, whole_number
from tidemill.stages.state import StageState, StateField
from tidemill.stages.statistics.compiled import Kernels, load_kernels
from tidemill.stages.window_functions import check_rows
from tidemill.stages.windows import Span, Windows, worked

__all__ = ["MapWindows"]

_LARGEST_WINDOW: Final = 1_000_000  # records


class MapWindows(ColumnsFunction):
    """A function of one's own over each sensor's last ``window`` records; one row out per record in.

    ``fn``       gets a dict, column -> float64 array of shape ``(rows, window)``: one row for each record, the oldest
                 reading left, the record itself rightmost, NaN before its sensor's first reading and where a value is
                 missing. It returns a dict of arrays (or lists) of shape ``(rows,)``, or, with ``into``, one array. Or a class: it is called once per lane, and its object is the function
    ``columns``  the columns (float, int or bool) whose windows it gets; for one given as text, as in
                 ``columns="temp"``, it gets the array itself
    ``window``   records, counted per sensor in order of arrival; event times play no part
    ``adds``     the columns it adds and their kinds, such as ``{"crest": float}``; learned from its first batch when
                 not given
    ``into``     name of the column, for a function that returns one array

    The arrays are read-only. What is returned is taken at once: it may be memory that the next call writes to. How many rows
    one call has is not said: at most as many as eight megabytes of windows hold.
    So each row must be worked out by itself, along ``axis=1``, and then no value depends on batches, lanes or restarts.
    (A matrix product, ``windows @ weights``, gives a row other last bits in other company; ``(windows *
    weights).sum(axis=1)`` does not.)

    A failure costs the records that it happens on, not the batch; ``on_error`` says what becomes of them, and
    ``deadline_s`` is that of one call. Such a record's readings are in its sensor's later windows all the same. Those of
    a record that kills its lane, or is stopped at its deadline, are not: it is taken out before this stage.

    State: 8 bytes per cell of the window and column, and 8 per sensor. Time: that of the function, and some 0.7 ns per
    cell (35 ns per record, for one column and a window of 50).

    Raises `PlanError` for a window that is not a number of records, or a column that is not there or not a number;
    `BadResult` as `Map` does.

    >>> import numpy as np
    >>> import tidemill as tm
    >>> def swing(windows):
    ...     return np.nanmax(windows, axis=1) - np.nanmin(windows, axis=1)
    >>> plan = tm.Plan(tm.MapWindows(swing, "temp", window=3, into="swing"))
    >>> rows = [{"sensor": "S1", "time": n, "temp": temp} for n, temp in enumerate([20.0, 21.0, 25.0, 21.0])]
    >>> [row["swing"] for row in plan.apply(rows)]
    [0.0, 1.0, 5.0, 4.0]
    """

    uses_kernels: ClassVar[bool] = True

    def __init__(
        self,
        fn: Callable[..., Any],
        columns: str | Sequence[str],
        window: int = 50,
        *,
        adds: Mapping[str, object] | None = None,
        into: str | None = None,
        name: str | None = None,
        on_error: OnError = "dead_letter",
        deadline_s: float | None = None,
    ) -> None:
        super().__init__(fn, adds=adds, into=into, name=name, on_error=on_error, deadline_s=deadline_s)
        self.columns = names_of(columns, name=f"{self.name}: columns")
        self._alone = isinstance(columns, str)
        must = f"be a number of records from 1 to {_LARGEST_WINDOW:,}"
        self.window = whole_number(window, name=f"{self.name}: window", must=must, least=1, most=_LARGEST_WINDOW)
        if not self.columns:
            raise PlanError(f"{self.name} needs at least one column.")
        doubled = sorted({str(column) for column in self.columns if self.columns.count(column) > 1})
        if doubled:
            raise PlanError(f"{self.name}: column {doubled[0]!r} is named twice.")
        self._windows = Windows(len(self.columns), self.window)
        self._kernels: Kernels | None = None

    def bind(self, schema: Schema) -> Schema:
        for column in self.columns:
            schema.require(column, stage=self.name, kinds=NUMERIC)
        return super().bind(schema)

    def reads(self) -> frozenset[str]:
        return frozenset(self.columns)

    def state_fields(self) -> Mapping[str, StateField]:
        return self._windows.state_fields()

    def opened(self) -> Self:
        lane = super().opened()
        lane._kernels = load_kernels()
        lane._windows = self._windows.opened()
        return lane

    def step(self, batch: Batch, state: StageState) -> Batch:
        return worked(batch, self.enter(batch, state))

    def enter(self, batch: Batch, state: StageState) -> Iterator[Entered]:
        assert self._kernels is not None, "a stage is opened before it steps"
        values = [numbers_of(batch, column, self.name) for column in self.columns]
        for span in self._windows.enter(self._kernels, values, state):
            yield Entered(span.start, span.stop, partial(self._work, span))
            del span

    def _work(self, span: Span, part: Batch, at: int) -> Batch:
        arrays = span.of(part, at)
        given = arrays[0] if self._alone else dict(zip(self.columns, arrays, strict=True))
        result = self._call(given)
        named = (
            result.items() if isinstance(result, Mapping) else [(self.into, result)] if self.into is not None else []
        )
        for name, column in named:
            check_rows(self.name, name, column)
        return part.with_columns(self._made(result, part))
