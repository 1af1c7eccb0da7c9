"""`Lookup`: static columns of each record's sensor, from a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import INTEGER_TAG, NULL_TAG, Column, exact_at, object_array
from tidemill.errors import InputError, PlanError, StageError
from tidemill.formats.csv_cells import keep_their_digits
from tidemill.letters import UNKNOWN_KEY, Reject
from tidemill.printable import counted, quoted
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.base import Load, OnError, Stage, Step
from tidemill.stages.options import names_of
from tidemill.stages.state import StageState
from tidemill.stages.tables import ANY_SENSOR, KeyedRow, as_columns, keyed_rows, missing, path_of

__all__ = ["Lookup", "SlotValues", "hint_of_unknown", "with_unknown"]

_UNKNOWN: Final = -1


class SlotValues:
    """The table's row of each key slot, in this process's own memory, growing as sensors appear."""

    def __init__(self, rows: Mapping[str, int]) -> None:
        self._rows = rows
        self._fallback = rows.get(ANY_SENSOR, _UNKNOWN)
        self._of_slot = np.full(1024, _UNKNOWN, np.intp)
        self._complete = True

    def admit(self, keys: Sequence[str], first_slot: int) -> None:
        end = first_slot + len(keys)
        if end > len(self._of_slot):
            grown = np.full(max(end, 2 * len(self._of_slot)), _UNKNOWN, np.intp)
            grown[: len(self._of_slot)] = self._of_slot
            self._of_slot = grown
        own = [self._rows.get(str(key), self._fallback) for key in keys]
        self._of_slot[first_slot:end] = own
        self._complete = self._complete and _UNKNOWN not in own

    def rows(self, slots: NDArray[np.int32]) -> NDArray[np.intp]:
        """The table row of each record, -1 where its sensor is unknown."""
        return self._of_slot.take(slots, mode="wrap")  # none is outside

    def known(self, slots: NDArray[np.int32]) -> NDArray[np.bool_] | None:
        """Which records' sensors have a row; None when all have."""
        if self._complete:
            return None
        known: NDArray[np.bool_] = self.rows(slots) != _UNKNOWN
        return known


def with_unknown(
    batch: Batch,
    made: Mapping[str, Column],
    known: NDArray[np.bool_] | None,
    on_error: OnError,
    state: StageState,
    stage: str,
    when: str = "",
) -> Batch | Step:
    """The batch with its new columns; records of unknown sensors are counted, and rejected if so asked.

    ``when`` ends the sentence that the table has no row for a sensor.
    """
    whole = batch.with_columns(made)
    if known is None:
        return whole
    strangers = len(known) - int(known.sum())
    state.count("unknown_key", strangers)
    if not strangers or on_error == "nan":
        return whole
    if on_error == "stop":
        row = int(np.flatnonzero(~known)[0])
        raise StageError(f"{stage}: the table has no row for the sensor {quoted(batch.keys[batch.key[row]])}{when}.")
    reason = f"{stage}: the table has no row for this sensor{when}"
    rejects = [Reject(row, UNKNOWN_KEY, reason) for row in np.flatnonzero(~known).tolist()]
    kept = np.flatnonzero(known)
    left = batch.take(kept)
    return Step(
        left.with_columns({name: column.take(kept) for name, column in made.items()}), kept, rejects, before=left
    )


def hint_of_unknown(what: str, on_error: OnError, stage: str, sensors: Iterable[str]) -> str | None:
    """What to do where ``unknown_key`` is counted and the records go on (`Stage.hint`); ``sensors`` are those of the table."""
    if what != UNKNOWN_KEY or on_error != "nan":
        return None
    known = next(iter(sensors), None)
    has = "" if known is None else f" (it has one for {quoted(known)})"
    return (
        f'{stage} has no row for their sensor{has}, and leaves them without a value; on_error="dead_letter" names each'
    )


class Lookup(Stage):
    """Adds columns that say something fixed about each record's sensor: its line, its unit, its limits.

    ``table``       path of a CSV file, dict, list of dicts, or DataFrame (read when the stage is made); one row per
                    sensor, and ``*`` for every sensor without one
    ``columns``     the columns to add; all but the key by default
    ``key_column``  the table's column that holds the sensor; compared as text, so 7 and ``"7"`` are one sensor; 7.0, which
                    pandas makes of 7 in a column with gaps, is another (``astype("Int64")`` keeps it 7)
    ``default``     the row for sensors that the table does not have, as a dict or tuple; like a ``*`` row
    ``on_error``    what happens to a record whose sensor has no row: ``"nan"`` (default) leaves the columns empty,
                    ``"dead_letter"`` rejects it, ``"stop"`` ends the run; in any case it is counted as ``unknown_key``

    A column is float where every cell of it is a number, else text; an empty cell is NaN, or null in text. Text of a dict or a
    DataFrame stays text, also ``"80"``. Cells of CSV are numbers where all are and none has digits that would be lost: a column
    with ``007``, or with more digits than a float holds, is text, as identifiers are. State: none. Time: 0.01 us a record and column.
    Raises `InputError` for a missing column or sensor, or one that stands there twice, naming the row.

    >>> from tidemill.schema import Schema, Field, Kind
    >>> lookup = Lookup({"S1": {"line": "A", "limit": 80}, "S2": {"line": "B", "limit": 75}})
    >>> print(lookup.bind(Schema([Field("value", Kind.FLOAT)])))
    value: float, line: text, limit: float
    """

    def __init__(
        self,
        table: Any,
        columns: Sequence[str] | None = None,
        *,
        key_column: str = "sensor",
        default: Mapping[str, Any] | Sequence[Any] | None = None,
        on_error: OnError = "nan",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name, on_error=on_error)
        self.path = path_of(table, option=f"table= of {type(self).__name__}")
        self.columns = None if columns is None else names_of(columns, name=f"{self.name}: columns")
        self.key_column = key_column
        self.default = default
        self._values: dict[str, Column] | None = None
        self._rows: dict[str, int] = {}
        self._slots = SlotValues({})
        if self.path is None:
            self._read(
                as_columns(table, stage=self.name, key_column=key_column, columns=self.columns or ()), "the table"
            )

    def describe(self) -> str:
        shown = getattr(self, "path", None)
        return f"Lookup({shown!r})" if shown else "Lookup"

    def prepared(self, load: Load) -> Self:
        if self.path is None:
            return self
        loaded = super().opened()
        source, table = load.table(self.path)
        loaded._read(table, source)
        return loaded

    def _read(self, table: Mapping[str, Sequence[Any]], source: str) -> None:
        if self.columns is None:
            self.columns = tuple(name for name in table if name != self.key_column)
        rows = keyed_rows(table, stage=self.name, source=source, key_column=self.key_column, columns=self.columns)
        if self.default is not None:
            rows.append(default_row(self.default, self.columns, self.name))
        self._rows = numbered(rows, self.name)
        texts = self.path is None
        self._values = {column: _column([row.cells[column] for row in rows], texts=texts) for column in self.columns}

    def bind(self, schema: Schema) -> Schema:
        values = self._values or {}
        if self.columns is None:
            return schema.opened()
        return schema.adding(Field(name, values[name].kind if name in values else None) for name in self.columns or ())

    def reads(self) -> frozenset[str]:
        return frozenset()

    def opened(self) -> Self:
        if self._values is None:
            raise PlanError(f"{self.name}: its table has not been loaded; prepare the plan first.")
        lane = super().opened()
        lane._slots = SlotValues(self._rows)
        return lane

    def admit(self, keys: Sequence[str], first_slot: int) -> None:
        self._slots.admit(keys, first_slot)

    def hint(self, what: str) -> str | None:
        return hint_of_unknown(what, self.on_error, self.name, self._rows)

    def step(self, batch: Batch, state: StageState) -> Batch | Step:
        rows = self._slots.rows(state.slots)
        assert self._values is not None
        made = {name: _looked_up(column, rows) for name, column in self._values.items()}
        return with_unknown(batch, made, self._slots.known(state.slots), self.on_error, state, self.name)


def default_row(default: Mapping[str, Any] | Sequence[Any], columns: Sequence[str], stage: str) -> KeyedRow:
    """``default=`` as the row ``*``; raises `InputError` for what makes no row of these columns."""
    needed = ", ".join(columns)
    if isinstance(default, str) or not isinstance(default, Iterable):
        raise InputError(f"{stage}: default={default!r}: a tuple or dict of {needed} is needed.")
    default = default if isinstance(default, Mapping) else tuple(default)
    if not isinstance(default, Mapping) and len(default) != len(columns):
        raise InputError(f"{stage}: default= has {counted(len(default), 'value')}; it needs {needed}.")
    cells = default if isinstance(default, Mapping) else dict(zip(columns, default, strict=True))
    absent = [name for name in columns if name not in cells]
    if absent:
        raise InputError(f"{stage}: default= has no {absent[0]!r}; it needs {needed}.")
    return KeyedRow(ANY_SENSOR, "default=", cells)


def numbered(rows: Sequence[KeyedRow], stage: str) -> dict[str, int]:
    """Row number by key; raises `InputError` for a key that stands there twice."""
    numbers: dict[str, int] = {}
    for place, row in enumerate(rows):
        if row.key in numbers:
            first = rows[numbers[row.key]].place
            raise InputError(f"{stage}: {row.place} stands there twice; the first is {first}.")
        numbers[row.key] = place
    return numbers


def _column(cells: Sequence[Any], *, texts: bool) -> Column:
    """One column of the table, and in its last place what an unknown sensor gets: position -1. ``texts`` says that what is text
    is meant as that, as it is not in CSV, where all cells are."""
    filled = [cell for cell in cells if not missing(cell)]
    written = [cell for cell in filled if isinstance(cell, str)]
    if filled and not (written if texts else not keep_their_digits(written)):
        try:
            numbers = [np.nan if missing(cell) else float(cell) for cell in cells]
        except (TypeError, ValueError, OverflowError):
            pass
        else:
            exact = {at: cell for at, cell in enumerate(cells) if isinstance(cell, int) and numbers[at] != cell}
            return Column(Kind.FLOAT, np.array([*numbers, np.nan]), exact=exact or None)
    codes = {text: code for code, text in enumerate(dict.fromkeys(map(str, filled)))}
    values = [-1 if missing(cell) else codes[str(cell)] for cell in cells]
    return Column(Kind.TEXT, np.array([*values, -1], np.int32), texts=object_array(list(codes)))


def _looked_up(column: Column, rows: NDArray[np.intp]) -> Column:
    values = column.values[rows]
    if column.kind is Kind.FLOAT:
        exact = exact_at(column.exact, rows) if column.exact else None
        if exact is None:
            return Column(Kind.FLOAT, values)
        tagged = np.zeros(len(rows), np.uint8)
        tagged[list(exact)] = INTEGER_TAG
        return Column(Kind.FLOAT, values, tags=tagged, exact=exact)
    empty = values < 0
    tags = np.where(empty, np.uint8(NULL_TAG), np.uint8(0)) if empty.any() else None
    return Column(Kind.TEXT, values, tags=tags, texts=column.texts)
