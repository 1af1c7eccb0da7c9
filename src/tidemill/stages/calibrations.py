"""A calibration table as it was read: every sensor's rows, in the order of the times from which on they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from tidemill.column import NULL_TAG, Column, object_array
from tidemill.errors import InputError
from tidemill.formats.times import TimeReader
from tidemill.schema import Kind
from tidemill.stages.base import Table
from tidemill.stages.lookup import default_row
from tidemill.stages.tables import KeyedRow, keyed_rows, missing, number

__all__ = ["HEADERS", "Calibrations", "Form", "read_calibrations"]

Form = Literal["scale", "range", "two_point"]
HEADERS: Final[Mapping[Form, tuple[str, ...]]] = {
    "scale": ("baseline", "scale"),
    "range": ("low", "high"),
    "two_point": ("measured_low", "true_low", "measured_high", "true_high"),
}
VALID_FROM: Final = "valid_from"
VERSION: Final = "version"
_COLUMN: Final = "column"
_ALWAYS: Final = np.iinfo(np.int64).min


@dataclass(frozen=True)
class _Row:
    """One row, checked."""

    sensor: str
    place: str
    """Where it stands, for messages."""
    start: int
    """Nanoseconds since 1970 from which on it is valid."""
    constants: tuple[float, float, float]
    """Offset, factor and base of the form's formula."""
    numbers: tuple[float, ...]
    """What stands in the table."""
    version: str
    """What the table itself calls it; empty where it does not."""


class Calibrations:
    """The rows of all sensors one behind another, each sensor's by the time from which on they hold.

    ``sensors``  the place of each sensor among the sensors; what `rows` takes
    ``dated``    whether a row is chosen by a record's time; else each sensor has one row, and their places are one
    """

    def __init__(self, rows: Sequence[_Row], *, dated: bool) -> None:
        self.dated = dated
        self.sensors: dict[str, int] = {}
        for row in rows:
            self.sensors.setdefault(row.sensor, len(self.sensors))
        rows = sorted(rows, key=lambda row: (self.sensors[row.sensor], row.start))
        groups = np.array([self.sensors[row.sensor] for row in rows], np.int64)
        starts = np.array([row.start for row in rows], np.int64)
        # The last place, position -1, is for records without a row.
        self.offset, self.factor, self.base = np.array([*(row.constants for row in rows), (np.nan,) * 3]).T.copy()
        self._texts, self._codes = _versions(rows)
        self._first = np.searchsorted(groups, np.arange(len(self.sensors) + 1))
        self._edges = np.unique(starts)
        # Sensor, then time, as one number that grows from row to row: one binary search finds both.
        self._places = groups * len(self._edges) + np.searchsorted(self._edges, starts)
        self._period: tuple[int, NDArray[np.intp]] | None = None

    def rows(self, sensors: NDArray[np.intp], time: NDArray[np.int64]) -> NDArray[np.intp]:
        """The row of each record by the place of its sensor (-1 for none) and its time: the last that holds; or -1.

        Cheap while no row of any sensor begins within the batch, else two binary searches a record.
        """
        if not len(time):
            return np.empty(0, np.intp)
        first, last = np.searchsorted(self._edges, [time.min(), time.max()], "right") - 1
        if first == last:
            return self._at(int(first)).take(sensors, mode="wrap")
        return self._search(sensors, np.searchsorted(self._edges, time, "right") - 1)

    def _at(self, period: int) -> NDArray[np.intp]:
        """The row of each sensor while no row of any begins, and -1 for those that have none, and behind them."""
        known = self._period
        if known is None or known[0] != period:
            sensors = np.arange(len(self.sensors) + 1)
            sensors[-1] = -1
            known = self._period = period, self._search(sensors, np.full(len(sensors), period))
        return known[1]

    def _search(self, sensors: NDArray[np.intp], periods: NDArray[np.intp]) -> NDArray[np.intp]:
        found = np.searchsorted(self._places, sensors * len(self._edges) + periods, "right") - 1
        found[found < self._first.take(sensors, mode="wrap")] = -1  # an earlier sensor's; none stands before the first
        return found

    def versions(self, rows: NDArray[np.intp]) -> Column:
        """The version of each record's row, null where it has none."""
        codes = self._codes.take(rows, mode="wrap")
        tags = np.where(codes < 0, np.uint8(NULL_TAG), np.uint8(0)) if (codes < 0).any() else None
        return Column(Kind.TEXT, codes, tags=tags, texts=self._texts)


def _versions(rows: Sequence[_Row]) -> tuple[NDArray[np.object_], NDArray[np.int32]]:
    """The distinct texts, and which of them each row has; behind them -1, for a record without a row."""
    lines = sorted(f"{row.sensor}\t{row.start}\t{row.numbers}" for row in rows)
    digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    texts = [row.version or digest + ("" if row.start == _ALWAYS else f"@{_shown(row.start)}") for row in rows]
    codes = {text: code for code, text in enumerate(dict.fromkeys(texts))}
    return object_array(list(codes)), np.array([*(codes[text] for text in texts), -1], np.int32)


def _shown(start: int) -> str:
    """A time as ISO 8601, with the digits of the second that it has."""
    text = str(np.datetime64(start, "ns"))
    return text.rstrip("0").rstrip(".") + "Z" if "." in text else text + "Z"


# -- reading -------------------------------------------------------------------------------------------------


def read_calibrations(
    table: Table, source: str, *, form: Form, column: str, key_column: str, default: Any, times: TimeReader, stage: str
) -> Calibrations:
    """The rows of a loaded table; raises `InputError` naming the row, or the header that was expected."""
    header = HEADERS[form]
    extra = [name for name in (_COLUMN, VALID_FROM, VERSION) if name in table]
    found = keyed_rows(table, stage=stage, source=source, key_column=key_column, columns=(*header, *extra))
    if _COLUMN in table:
        found = [row for row in found if str(row.cells[_COLUMN]).strip() == column]
        if not found:
            raise InputError(f"{stage}: {source} has no row for the column {column!r}.")
    if default is not None:
        found.append(default_row(default, header, stage))
    starts = _starts(found, times, stage)
    rows = [_checked(row, start, form, stage) for row, start in zip(found, starts, strict=True)]
    _require_distinct(rows, stage)
    return Calibrations(rows, dated=VALID_FROM in table)


def _checked(row: KeyedRow, start: int, form: Form, stage: str) -> _Row:
    numbers = tuple(number(row.cells[name], stage=stage, place=row.place, column=name) for name in HEADERS[form])
    version = row.cells.get(VERSION)
    return _Row(
        row.key,
        row.place,
        start,
        _constants(form, numbers, stage, row.place),
        numbers,
        "" if missing(version) else str(version).strip(),
    )


def _starts(rows: Sequence[KeyedRow], times: TimeReader, stage: str) -> list[int]:
    """When each row begins to hold; always where it does not say."""
    cells = [row.cells.get(VALID_FROM) for row in rows]
    said = [place for place, cell in enumerate(cells) if not missing(cell)]
    starts = [int(_ALWAYS)] * len(rows)
    if all(isinstance(cells[place], str) for place in said):
        read = times.texts([cells[place].strip() for place in said]).tolist()  # type: ignore[union-attr]
    else:
        read = [times.one(cells[place]) for place in said]
    for place, start in zip(said, read, strict=True):
        if start == _ALWAYS:  # what is no time
            raise InputError(
                f"{stage}: {rows[place].place}: {VALID_FROM} is {cells[place]!r}; a time is needed, as ISO 8601 or an "
                "epoch number, or nothing for a row that is valid from always."
            )
        starts[place] = start
    return starts


def _require_distinct(rows: Sequence[_Row], stage: str) -> None:
    first: dict[tuple[str, int], _Row] = {}
    for row in rows:
        other = first.setdefault((row.sensor, row.start), row)
        if other is not row:
            when = "" if row.start == _ALWAYS else f" for {VALID_FROM} {_shown(row.start)}"
            raise InputError(f"{stage}: {row.place} stands there twice{when}; the first is {other.place}.")


def _constants(form: Form, cells: Sequence[float], stage: str, place: str) -> tuple[float, float, float]:
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
