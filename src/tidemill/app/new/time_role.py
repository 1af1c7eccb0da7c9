"""Which field tells the time, and how. No I/O."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from tidemill.app.new.fields_seen import FieldsSeen, Place, shown_place
from tidemill.app.new.sniffing import number_of, numbers_in
from tidemill.app.new.times_seen import TimeSeen, day_and_hour, times_seen
from tidemill.app.new.vocabulary import ARRIVALS, MEASURED
from tidemill.column import FARTHEST
from tidemill.errors import InputError
from tidemill.formats.field_names import TIMES, words_of
from tidemill.formats.roles import DEFAULT_TIME
from tidemill.formats.times import TimeReader

__all__ = ["ARRIVAL", "is_time", "time_of"]

ARRIVAL: Final = TimeSeen("the arrival: no field tells it", zoned=True)
_LAST_S: Final = FARTHEST // 10**9
"""Seconds from 1970 that a time may be away."""
_OTHERS_SHOWN: Final = 3
_COMPARED: Final = 100
"""Records whose times are compared."""


def time_of(fields: FieldsSeen, given: str | None, *, arrival: bool) -> tuple[str, TimeSeen, str]:
    """The field, what kind of times it holds, and why it is a guess, if it is.

    With ``arrival``, the time is that of the arrival when no field tells any. Raises `InputError`.
    """
    if given is not None:
        told = _times_given(fields, given)
        return given, told, "" if told.format else told.doubt
    found = {name: seen for name in fields.nameable if (seen := _times_in(fields, name)) is not None}
    if not found and arrival:
        return DEFAULT_TIME, ARRIVAL, ""
    if not found:
        raise InputError(_no_time(fields))
    name = max(found, key=lambda name: (*_called_as_measured(name), not found[name].is_number))
    hour = next((other for other in fields.head.fields if day_and_hour(fields.column(other)) == "hour"), None)
    if hour is not None and day_and_hour(fields.column(name)) == "day":
        raise InputError(
            f"{fields.head.named} tells the time in two columns, {name!r} (the day) and {hour!r}; a record's time is one "
            f"field. Join them in the file, or give one of them with --time."
        )
    others = [other for other in found if other != name and _differ(fields, found, name, other)]
    shown = ", ".join(map(repr, others[:_OTHERS_SHOWN]))
    verb = "hold" if len(others) > 1 else "holds"
    return name, found[name], f"a guess: {shown} {verb} other times" if others else ""


def _called_as_measured(name: str) -> tuple[bool, ...]:
    """The greater, the more it is called as the time of a measurement is."""
    words = set(words_of(name))
    measured = bool(words & set(MEASURED))
    return measured or _is_called_time(name), not words & set(ARRIVALS), measured


def _differ(fields: FieldsSeen, found: Mapping[str, TimeSeen], *names: str) -> bool:
    """Whether two fields tell a record's time differently; a time and its epoch do not."""
    rows = [row for row in fields.head.rows if all(row.get(name) is not None for name in names)][:_COMPARED]
    one, other = ([TimeReader(time_format=found[name].format).one(row[name]) for row in rows] for name in names)
    return one != other


def is_time(path: Place, items: Sequence[Any]) -> bool:
    """Whether the field is called as times are, and holds some."""
    return _is_called_time(path[-1]) and times_seen(items) is not None


def _is_called_time(name: str) -> bool:
    return bool(set(TIMES) & set(words_of(name)))


def _times_given(fields: FieldsSeen, name: str) -> TimeSeen:
    fields.require(name, "--time")
    items = fields.column(name)
    seen = times_seen(items)
    if seen is None and not numbers_in(items):
        raise InputError(
            f"{fields.head.named}: field {name!r} holds no times that can be read: {fields.examples(name)}. "
            f"Give another with --time, or write the times as ISO 8601 or epochs. {fields.told}"
        )
    doubt = "no epoch: it is read as seconds since 1970"
    return seen or TimeSeen("a number", zoned=True, doubt=doubt, is_number=True)


def _times_in(fields: FieldsSeen, name: str) -> TimeSeen | None:
    """How a field tells the time, unless few records have it, or it is rather a reading of this size."""
    items = fields.column(name)
    seen = times_seen(items) if 2 * len(items) > len(fields.head.rows) else None
    sure = seen is None or not seen.is_number or _is_called_time(name) or _rises(items)
    return seen if sure else None


def _rises(items: Sequence[Any]) -> bool:
    numbers = numbers_in(items)
    return len(numbers) > 1 and all(before <= after for before, after in pairwise(numbers))


def _no_time(fields: FieldsSeen) -> str:
    inside = next((path for path, items in fields.columns.items() if len(path) > 1 and is_time(path, items)), None)
    if inside is not None:
        return (
            f"{fields.head.named}: the only time is inside of another field, at {shown_place(inside)}, where no source "
            f"looks for it; move it to the top of the record, or give a field with --time. {fields.told}"
        )
    rising = next((name for name in fields.nameable if _counts(fields.column(name))), None)
    counter = f" {rising!r} counts up: --time {shlex.quote(rising)} reads it as seconds since 1970." if rising else ""
    return (
        f"{fields.head.named}: no field looks like a time (ISO 8601, or an epoch between 1980 and 2100). "
        f"{fields.told} Say which one it is: --time FIELD.{counter}"
    )


def _counts(items: Sequence[Any]) -> bool:
    numbers = [number_of(item) for item in items[:200]]
    return (
        _rises(items[:200])
        and all(number is not None and number == int(number) and abs(number) < _LAST_S for number in numbers)
        and len(set(numbers)) > len(numbers) // 2
    )
