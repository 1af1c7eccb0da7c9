"""Which field holds the reading. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from tidemill.app.new.fields_seen import FieldsSeen, Place
from tidemill.app.new.in_lists import EACH
from tidemill.app.new.lists_seen import advice_on_lists, only_in_list, place_in_lists
from tidemill.app.new.readings import worth
from tidemill.app.new.sniffing import numbers_in
from tidemill.app.new.time_role import is_time
from tidemill.errors import InputError

__all__ = ["value_of"]


def value_of(
    fields: FieldsSeen, given: str | None, *, taken: Collection[str], of_messages: bool
) -> tuple[Place, tuple[Place, ...], str]:
    """The field, further numbers that are readings of their own perhaps, and why it is a guess, if it is.

    ``taken`` has the key's and the time's. Raises `InputError`.
    """
    named, rows = fields.head.named, fields.head.rows
    numbers = _numbers(fields, taken)
    listed = place_in_lists(rows)
    if given is not None:
        if EACH in given and listed and not of_messages:
            raise InputError(only_in_list(named, listed, of_messages=False))
        wanted = (given,) if (given,) in fields.columns else tuple(given.split("."))
        if wanted not in numbers:
            what = "holds no numbers" if wanted in fields.columns else "is not there"
            raise InputError(f"{named}: field {given!r} {what}; give another with --value. {fields.told}")
        return wanted, tuple(path for path in numbers if path != wanted), ""
    if not numbers and listed:
        raise InputError(only_in_list(named, listed, of_messages=of_messages))
    if not numbers:
        raise InputError(
            f"{named}: no field holds numbers to work on besides the time and the sensor{_quoted(fields, taken)}. {fields.told}"
        )
    worths = {path: worth(path, found, len(rows)) for path, found in numbers.items()}
    best = max(worths, key=lambda path: worths[path])
    rivals = tuple(path for path in numbers if path != best and all(worths[path][:2]))
    if not worths[best][0]:
        advice = advice_on_lists(listed) if of_messages else ""
        return best, rivals, f"a guess: no number is called as readings are{advice}"
    return best, rivals, "a guess among the numbers" if rivals else ""


def _quoted(fields: FieldsSeen, taken: Collection[str]) -> str:
    """What makes numbers of those that JSON has in quotes, where there are such."""
    for path, items in fields.columns.items():
        if path[0] not in taken and items and all(isinstance(item, str) and _is_number(item) for item in items):
            name = path[-1]
            return f"; those of {name!r} are in quotes, and tm.MapRows(function, adds={{{name!r}: float}}) makes numbers of them"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(fields: FieldsSeen, taken: Collection[str]) -> dict[Place, list[float]]:
    """The numbers of every field that is not taken and may be a reading."""
    found = {
        path: _readings_in(fields, items)
        for path, items in fields.columns.items()
        if not (len(path) == 1 and path[0] in taken)
    }
    return {
        path: numbers
        for path, numbers in found.items()
        if len(numbers) >= 0.5 * len(fields.columns[path]) > 0 and _may_be_reading(path, fields.columns[path])
    }


def _readings_in(fields: FieldsSeen, items: Sequence[Any]) -> list[float]:
    """Numbers; in JSON, where a text is a text, those that are written as such."""
    if fields.head.layout.kind == "ndjson":
        items = [item for item in items if not isinstance(item, str)]
    return numbers_in(items, fields.head.layout.decimal)


def _may_be_reading(path: Place, items: Sequence[Any]) -> bool:
    """Whether it can be named, and is not a second way to tell the time."""
    return any(name and name.isprintable() for name in path) and not is_time(path, items)
