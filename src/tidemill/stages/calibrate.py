"""`Calibrate`: readings normalised against their own sensor's calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import InputError, PlanError
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.base import Load, OnError, Stage, Step
from tidemill.stages.lookup import SlotValues, default_row, numbered, with_unknown
from tidemill.stages.numbers import NUMERIC, numbers_of
from tidemill.stages.state import StageState
from tidemill.stages.tables import ANY_SENSOR, as_columns, keyed_rows, number, path_of

__all__ = ["Calibrate"]

_Form = Literal["scale", "range", "two_point"]
_HEADERS: Final[Mapping[_Form, tuple[str, ...]]] = {
    "scale": ("baseline", "scale"),
    "range": ("low", "high"),
    "two_point": ("measured_low", "true_low", "measured_high", "true_high"),
}
_COLUMN: Final = "column"
_PIECE: Final = 8192
"""Records worked on at once, so that what lies between the steps of the formula stays in the cache."""


class Calibrate(Stage):
    """``into = (column - baseline) / scale``, with the baseline and scale of each record's own sensor.

    ``table``       path of a CSV file with the header ``sensor,baseline,scale``, a dict (``{"S1": (20.0, 60.0)}``), a
                    list of dicts, or a DataFrame. With a further column ``column`` (header
                    ``sensor,column,baseline,scale``) only the rows for this stage's column count, so that one file
                    can serve several. The sensor ``*`` stands for every sensor without a row
    ``column``      the readings, in any unit: float, int or bool
    ``into``        the new column, float; may be ``column`` itself
    ``key_column``  the table's column that holds the sensor; compared as text, so 7 and ``"7"`` are one sensor
    ``default``     ``(baseline, scale)`` or a dict for sensors that the table does not have; like a ``*`` row
    ``on_error``    what happens to a record whose sensor has no row: ``"nan"`` (default: it goes on with NaN),
                    ``"dead_letter"`` or ``"stop"``; in any case it is counted as ``unknown_key``

    A missing reading gives NaN. Raises `InputError` when the table lacks a column (the expected header is in the
    message), or a row is not a number, repeats a sensor, or would divide by zero: the message names the row.

    See `Calibrate.range` and `Calibrate.two_point` for the other two ways to say it.

    >>> from tidemill.schema import Schema, Field, Kind
    >>> stage = Calibrate({"S1": (20.0, 60.0), "*": (0.0, 1.0)})
    >>> print(stage.bind(Schema([Field("value", Kind.FLOAT)])))
    value: float, normalized: float
    """

    def __init__(
        self,
        table: Any,
        column: str = "value",
        into: str = "normalized",
        *,
        key_column: str = "sensor",
        default: Mapping[str, Any] | Sequence[Any] | None = None,
        on_error: OnError = "nan",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name, on_error=on_error)
        self.column = column
        self.into = into
        self.key_column = key_column
        self.default = default
        self._form: _Form = "scale"
        self._rows: dict[str, int] | None = None
        self._constants: list[tuple[float, float, float]] = []
        self._offset = self._factor = self._base = np.empty(0)
        self._slots = SlotValues({})
        self.path: str | None = None
        self._given(table)

    @classmethod
    def range(cls, *limits: Any, low: float | None = None, high: float | None = None, **options: Any) -> Calibrate:
        """``into = (column - low) / (high - low)``: 0 at the low end of the range, 1 at the high end, not clipped.

        ``Calibrate.range(low, high)`` is one range for all sensors; ``Calibrate.range(table)`` one for each, with the
        header ``sensor,low,high`` (or ``sensor,column,low,high``). ``options`` are those of `Calibrate`.

        >>> Calibrate.range(-20, 60, column="celsius")
        Calibrate.range('celsius')
        """
        if low is not None and high is not None and not limits:
            limits = (low, high)
        if len(limits) == 1:
            return cls._of_form("range", limits[0], options)
        if len(limits) != 2:
            raise PlanError("Calibrate.range needs low and high, or a table with the header sensor,low,high.")
        return cls._of_form("range", {ANY_SENSOR: limits}, options)

    @classmethod
    def two_point(
        cls,
        table: Any = None,
        *,
        low: tuple[float, float] | None = None,
        high: tuple[float, float] | None = None,
        **options: Any,
    ) -> Calibrate:
        """The straight line through two reference points, in the reference's own unit:

        ``into = true_low + (column - measured_low) * (true_high - true_low) / (measured_high - measured_low)``

        with ``low`` and ``high`` as ``(measured, true)`` for all sensors, or a table with the header
        ``sensor,measured_low,true_low,measured_high,true_high``. The slope is computed first, once per sensor.
        ``options`` are those of `Calibrate`.

        >>> Calibrate.two_point(low=(0.8, 0.0), high=(99.1, 100.0), into="celsius")
        Calibrate.two_point('value')
        """
        if table is None:
            if low is None or high is None:
                raise PlanError("Calibrate.two_point needs low=(measured, true) and high=(measured, true), or a table.")
            table = {ANY_SENSOR: (*low, *high)}
        return cls._of_form("two_point", table, options)

    @classmethod
    def _of_form(cls, form: _Form, table: Any, options: Mapping[str, Any]) -> Calibrate:
        made = cls({ANY_SENSOR: (0.0, 1.0)}, **{**options, "default": None})
        made._form = form
        made.default = options.get("default")
        made._given(table)
        return made

    def describe(self) -> str:
        form = getattr(self, "_form", "scale")
        return f"Calibrate{'' if form == 'scale' else '.' + form}({getattr(self, 'column', '')!r})"

    # -- its table -------------------------------------------------------------------------------------

    def _given(self, table: Any) -> None:
        self.path = path_of(table)
        self._rows = None
        if self.path is None:
            columns = _HEADERS[self._form]
            self._read(as_columns(table, stage=self.name, key_column=self.key_column, columns=columns), "the table")

    def prepared(self, load: Load) -> Self:
        if self.path is None:
            return self
        loaded = super().opened()
        source, table = load.table(self.path)
        loaded._read(table, source)
        return loaded

    def _read(self, table: Mapping[str, Sequence[Any]], source: str) -> None:
        header = _HEADERS[self._form]
        columns = (_COLUMN, *header) if _COLUMN in table else header
        rows = keyed_rows(table, stage=self.name, source=source, key_column=self.key_column, columns=columns)
        if _COLUMN in table:
            rows = [row for row in rows if str(row.cells[_COLUMN]).strip() == self.column]
            if not rows:
                raise InputError(f"{self.name}: {source} has no row for the column {self.column!r}.")
        if self.default is not None:
            rows.append(default_row(self.default, header, self.name))
        self._rows = numbered(rows, self.name)
        numbers = [
            [number(row.cells[name], stage=self.name, place=row.place, column=name) for name in header] for row in rows
        ]
        self._constants = [
            _constants(self._form, cells, self.name, row.place) for cells, row in zip(numbers, rows, strict=True)
        ]

    # -- in the chain ------------------------------------------------------------------------------------

    def bind(self, schema: Schema) -> Schema:
        schema.require(self.column, stage=self.name, kinds=NUMERIC)
        return schema.adding([Field(self.into, Kind.FLOAT)])

    def reads(self) -> frozenset[str]:
        return frozenset({self.column})

    def opened(self) -> Self:
        if self._rows is None:
            raise PlanError(f"{self.name}: its table has not been loaded; prepare the plan first.")
        lane = super().opened()
        lane._slots = SlotValues(self._rows)
        # The last place, position -1, is for unknown sensors.
        lane._offset, lane._factor, lane._base = np.array([*self._constants, (np.nan,) * 3], np.float64).T.copy()
        return lane

    def admit(self, keys: Sequence[str], first_slot: int) -> None:
        self._slots.admit(keys, first_slot)

    def step(self, batch: Batch, state: StageState) -> Batch | Step:
        values = numbers_of(batch, self.column, self.name)
        made = np.empty(len(batch))
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(batch), _PIECE):
                piece = slice(start, start + _PIECE)
                self._apply(self._slots.rows(state.slots[piece]), values[piece], made[piece])
        known = self._slots.known(state.slots)
        return with_unknown(batch, {self.into: Column(Kind.FLOAT, made)}, known, self.on_error, state, self.name)

    def _apply(self, rows: NDArray[np.intp], values: NDArray[np.float64], made: NDArray[np.float64]) -> None:
        np.subtract(values, self._offset.take(rows, mode="wrap"), out=made)
        if self._form == "two_point":
            made *= self._factor.take(rows, mode="wrap")
            made += self._base.take(rows, mode="wrap")
        else:
            made /= self._factor.take(rows, mode="wrap")


def _constants(form: _Form, cells: Sequence[float], stage: str, place: str) -> tuple[float, float, float]:
    """(offset, factor, base) of the form's formula; raises `InputError` where it would divide by zero."""
    if form == "scale":
        baseline, scale = cells
        if scale == 0:
            raise InputError(f"{stage}: {place}: scale is 0; a reading cannot be divided by it.")
        return baseline, scale, 0.0
    if form == "range":
        low, high = cells
        if low == high:
            raise InputError(f"{stage}: {place}: low and high are both {low:g}; they must differ.")
        return low, high - low, 0.0
    measured_low, true_low, measured_high, true_high = cells
    if measured_low == measured_high:
        raise InputError(f"{stage}: {place}: both points were measured as {measured_low:g}; they must differ.")
    return measured_low, (true_high - true_low) / (measured_high - measured_low), true_low
