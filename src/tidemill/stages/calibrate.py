"""`Calibrate`: readings normalised against their own sensor's calibration."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.formats.times import TimeReader
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.base import Load, OnError, Stage, Step, Table
from tidemill.stages.calibrations import HEADERS, Calibrations, Form, read_calibrations
from tidemill.stages.lookup import SlotValues, hint_of_unknown, with_unknown
from tidemill.stages.numbers import NUMERIC, numbers_of
from tidemill.stages.state import StageState
from tidemill.stages.tables import ANY_SENSOR, as_columns, path_of

__all__ = ["Calibrate"]

_PIECE: Final = 8192
"""Records worked on at once, so that what lies between the steps of the formula stays in the cache."""


class Calibrate(Stage):
    """``into = (column - baseline) / scale``, with the baseline and scale of each record's own sensor.

    ``table``         path of a CSV file with the header ``sensor,baseline,scale``, a dict (``{"S1": (20.0, 60.0)}``),
                      a list of dicts, or a DataFrame. With a further column ``column`` (header
                      ``sensor,column,baseline,scale``) only the rows for this stage's column count, so that one file
                      can serve several. The sensor ``*`` stands for every sensor without a row
    ``column``        the readings, in any unit: float, int or bool
    ``into``          the new column, float; may be ``column`` itself
    ``key_column``    the table's column that holds the sensor; compared as text, so 7 and ``"7"`` are one sensor; 7.0, which
                      pandas makes of 7 in a column with gaps, is another (``astype("Int64")`` keeps it 7)
    ``default``       ``(baseline, scale)`` or a dict for sensors that the table does not have; like a ``*`` row
    ``version_into``  a new text column that names the calibration each record got; none by default
    ``tz``            the zone of times in the table that name none
    ``on_error``      what happens to a record that has no row: ``"nan"`` (default: it goes on with NaN),
                      ``"dead_letter"`` or ``"stop"``; in any case it is counted as ``unknown_key``

    With a further column ``valid_from`` (ISO 8601 or epochs, as records' times are read) a sensor may have several rows,
    and a record gets the last that is valid at its own event time, ``valid_from <= time``, whenever it arrives. Before
    its first row a sensor is unknown, also where there is a row ``*``; a row whose ``valid_from`` is empty is valid from
    always. The order of the rows in the table does not matter.

    The version is what stands in the table's column ``version``; where it has none, the first 8 hex digits of the
    SHA-256 of the stage's rows, and ``@`` with the row's ``valid_from`` in UTC: ``3f2a9c1b@2024-03-01T00:00:00Z``. It is
    null for a record without a row.

    A live run watches the file of ``table``: a new one is read when it has stood still for two looks, a second apart, and takes
    the place of the old behind one record; one that cannot serve is told of, and the old stays. Of stages with one file, all
    change behind the same record, or, where one of them cannot be made of the new one, none. A run over a recording
    keeps what it began with.

    A missing reading gives NaN. Raises `InputError` when the table lacks a column (the expected header is in the
    message), or a row is not a number, repeats a sensor and its time, or would divide by zero: the message names the
    row. Cost per record about 4 ns; with ``valid_from`` 7, and 110 to 250 in a batch in which some row begins.

    See `Calibrate.range` and `Calibrate.two_point` for the other two ways to say it.

    >>> import tidemill as tm
    >>> stage = tm.Calibrate([
    ...     {"sensor": "S1", "baseline": 20.0, "scale": 60.0},
    ...     {"sensor": "S1", "baseline": 21.5, "scale": 60.0, "valid_from": "2024-03-01"},
    ... ])
    >>> rows = [{"sensor": "S1", "time": day, "value": 51.5} for day in ("2024-02-29", "2024-03-01")]
    >>> [row["normalized"] for row in tm.Plan(stage).apply(rows)]
    [0.525, 0.5]
    """

    def __init__(
        self,
        table: Any,
        column: str = "value",
        into: str = "normalized",
        *,
        key_column: str = "sensor",
        default: Mapping[str, Any] | Sequence[Any] | None = None,
        version_into: str | None = None,
        tz: str = "UTC",
        on_error: OnError = "nan",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name, on_error=on_error)
        self.column = column
        self.into = into
        self.key_column = key_column
        self.default = default
        self.version_into = version_into
        self.tz = tz
        if version_into == into:
            raise PlanError(f"{self.name}: into and version_into are both {into!r}; they are two columns.")
        self._times = TimeReader(tz)
        self._form: Form = "scale"
        self._table: Calibrations | None = None
        self._slots = SlotValues({})
        self._given(table)

    @classmethod
    def range(cls, *limits: Any, low: float | None = None, high: float | None = None, **options: Any) -> Calibrate:
        """``into = (column - low) / (high - low)``: 0 at the low end of the range, 1 at the high end, not clipped.

        ``Calibrate.range(low, high)`` is one range for all sensors; ``Calibrate.range(table)`` one for each, with the
        header ``sensor,low,high`` (or ``sensor,column,low,high``). ``options`` are those of `Calibrate`, and so is the cost.

        Raises `PlanError` for neither two numbers nor a table; `InputError` as `Calibrate` does, also where low and high
        are the same.

        >>> Calibrate.range(-20, 60, column="celsius")
        Calibrate.range('celsius')
        """
        if limits and (low is not None or high is not None):
            raise PlanError("Calibrate.range needs low and high, or a table with the header sensor,low,high, not both.")
        if low is not None and high is not None:
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
        ``options`` are those of `Calibrate`, and so is the cost.

        Raises `PlanError` for neither two points nor a table; `InputError` as `Calibrate` does, also where both points
        were measured as the same.

        >>> Calibrate.two_point(low=(0.8, 0.0), high=(99.1, 100.0), into="celsius")
        Calibrate.two_point('value')
        """
        if table is None:
            if low is None or high is None:
                raise PlanError("Calibrate.two_point needs low=(measured, true) and high=(measured, true), or a table.")
            table = {ANY_SENSOR: (*_point("low", low), *_point("high", high))}
        elif low is not None or high is not None:
            raise PlanError("Calibrate.two_point needs low and high or a table, not both.")
        return cls._of_form("two_point", table, options)

    @classmethod
    def _of_form(cls, form: Form, table: Any, options: Mapping[str, Any]) -> Calibrate:
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
        self.path = path_of(table, option="table= of Calibrate")
        self._table = None
        if self.path is None:
            columns = HEADERS[self._form]
            self._read(as_columns(table, stage=self.name, key_column=self.key_column, columns=columns), "the table")

    def prepared(self, load: Load) -> Self:
        if self.path is None:
            return self
        source, table = load.table(self.path)
        return self.with_table(table, source)

    def with_table(self, table: Table, source: str) -> Self:
        """This stage with another table, read and checked whole; raises `InputError`, and this one stays as it is.

        ``source`` says in messages where the table came from.
        """
        made = copy.copy(self)
        made._read(table, source)
        return made

    def _read(self, table: Table, source: str) -> None:
        self._table = read_calibrations(
            table,
            source,
            form=self._form,
            column=self.column,
            key_column=self.key_column,
            default=self.default,
            times=self._times,
            stage=self.name,
        )

    # -- in the chain ------------------------------------------------------------------------------------

    @property
    def needs_times(self) -> bool:
        return self._table is not None and self._table.dated

    def bind(self, schema: Schema) -> Schema:
        schema.require(self.column, stage=self.name, kinds=NUMERIC)
        added = [Field(self.into, Kind.FLOAT)]
        if self.version_into is not None:
            added.append(Field(self.version_into, Kind.TEXT))
        return schema.adding(added)

    def reads(self) -> frozenset[str]:
        return frozenset({self.column})

    def opened(self) -> Self:
        lane = super().opened()
        lane._slots = SlotValues(self._loaded.sensors)
        return lane

    @property
    def _loaded(self) -> Calibrations:
        if self._table is None:
            raise PlanError(f"{self.name}: its table has not been loaded; prepare the plan first.")
        return self._table

    def admit(self, keys: Sequence[str], first_slot: int) -> None:
        self._slots.admit(keys, first_slot)

    def hint(self, what: str) -> str | None:
        return hint_of_unknown(what, self.on_error, self.name, self._loaded.sensors)

    def step(self, batch: Batch, state: StageState) -> Batch | Step:
        table = self._loaded
        values = numbers_of(batch, self.column, self.name)
        values_made = np.empty(len(batch))
        whole = np.empty(len(batch), np.intp) if table.dated or self.version_into is not None else None
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(batch), _PIECE):
                piece = slice(start, start + _PIECE)
                rows = self._slots.rows(state.slots[piece])
                if table.dated:
                    rows = table.rows(rows, batch.time[piece])
                if whole is not None:
                    whole[piece] = rows
                self._apply(table, rows, values[piece], values_made[piece])
        made = {self.into: Column(Kind.FLOAT, values_made)}
        if self.version_into is not None and whole is not None:
            made[self.version_into] = table.versions(whole)
        known = self._slots.known(state.slots)
        when = ""
        if table.dated and whole is not None:
            known, when = whole >= 0, " that is valid at its time"
        return with_unknown(batch, made, known, self.on_error, state, self.name, when)

    def _apply(
        self, table: Calibrations, rows: NDArray[np.intp], values: NDArray[np.float64], made: NDArray[np.float64]
    ) -> None:
        np.subtract(values, table.offset.take(rows, mode="wrap"), out=made)
        if self._form == "two_point":
            made *= table.factor.take(rows, mode="wrap")
            made += table.base.take(rows, mode="wrap")
        else:
            made /= table.factor.take(rows, mode="wrap")


def _point(name: str, given: Any) -> tuple[Any, Any]:
    if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str) or len(given) != 2:
        raise PlanError(f"Calibrate.two_point: {name}={given!r} must be (measured, true), two numbers.")
    return given[0], given[1]
