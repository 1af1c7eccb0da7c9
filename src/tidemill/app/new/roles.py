"""A recording's first records → which field is the sensor, which the time, which the reading. No I/O.

What cannot be told is an `InputError` that says what was seen and which option to give.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from tidemill.app.new.sniffing import Head, number_of
from tidemill.app.new.times_seen import TimeSeen, day_and_hour, times_seen
from tidemill.app.new.vocabulary import (
    METRICS,
    NO_READINGS,
    NO_SENSORS,
    PHYSICAL,
    READINGS,
    WEAK_SENSORS,
)
from tidemill.errors import InputError
from tidemill.formats.field_names import SENSORS, TIMES, words_of
from tidemill.formats.key_template import KeyTemplate
from tidemill.formats.payloads import leaves, path_of
from tidemill.formats.roles import DEFAULT_TIME

__all__ = ["ARRIVAL", "STEM", "Given", "Roles", "at_place", "roles_of", "shown_place"]

STEM: Final = "stem"
"""What every file knows, and its fields do not say: its own name."""
Place = tuple[str, ...]
Steps = tuple[str | None, ...]
ARRIVAL: Final = TimeSeen("the arrival: no field tells it", zoned=True)

_OTHERWISE: Final = {
    "{stem}": "the file is taken for one, and its name for the sensor's",
    "{topic}": "each topic is taken for one",
}
"""What is done then, by the key that does it."""
_FIELDS_SHOWN: Final = 12
_MESSAGES: Final = 100
"""That are looked into for lists."""
_DEEPEST: Final = 4
"""Objects in objects that are looked into for numbers."""


@dataclass(frozen=True)
class Given:
    """What the command line says; None where it is left to the guess."""

    key: str | None = None
    time: str | None = None
    tz: str | None = None
    value: str | None = None
    otherwise: str = "{stem}"
    """The key when no field names a sensor: of a recording the file's name, of messages the topic."""
    arrival: bool = False
    """Whether records without a time have that of their arrival."""


@dataclass(frozen=True)
class Roles:
    """What the fields mean."""

    key: str
    """A field or a template, as a source takes it."""
    time: str
    seen: TimeSeen
    tz: str
    value: Place
    """The field of the reading; several names when it is inside of others."""
    others: tuple[Place, ...] = ()
    """Further numbers, each a reading of its own perhaps."""
    doubts: Mapping[str, str] | None = None
    """What is a guess, and about what: ``key``, ``time``, ``tz``, ``value``."""

    @property
    def key_fields(self) -> tuple[str, ...]:
        """What makes the key: fields, or what a source knows besides."""
        return KeyTemplate(self.key).names

    def doubt(self, role: str) -> str:
        """Why a role is a guess; empty when it is none."""
        return (self.doubts or {}).get(role, "")


def roles_of(head: Head, given: Given) -> Roles:
    """Raises `InputError` when a role cannot be told, with the fields seen and the option to give.

    >>> from tidemill.app.new.sniffing import sniffed
    >>> head = sniffed("a.csv", ".csv", b"timestamp,mote_id,temp\\n1700000000,3,20.5\\n1700000005,3,21\\n", whole=True)
    >>> roles = roles_of(head, Given())
    >>> roles.key, roles.time, roles.seen.words, roles.value
    ('mote_id', 'timestamp', 'epoch in s', ('temp',))
    """
    columns = _columns(head)
    doubts: dict[str, str] = {}
    time, seen = _time(head, columns, given, doubts)
    key = _key(head, columns, given, time, doubts)
    fields = set(KeyTemplate(key).names)
    value, others = _value(head, columns, given, {time, *fields}, doubts)
    if not seen.zoned and given.tz is None:
        named_utc = bool({"utc", "gmt"} & set(words_of(time)))
        doubts["tz"] = "" if named_utc else "a guess: the times name no zone"
    return Roles(key, time, seen, given.tz or "UTC", value, others, {role: why for role, why in doubts.items() if why})


def at_place(record: Any, path: Place) -> Any:
    """What stands there in a record; None when nothing does.

    >>> at_place({"data": {"temp": 20}}, ("data", "temp")), at_place({"data": 3}, ("data", "temp"))
    (20, None)
    """
    for name in path:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def shown_place(path: Place) -> str:
    """For a person: ``'object.temperature'``, escaped."""
    return _short(repr(".".join(path)))


# -- columns -------------------------------------------------------------------------------------------------


def _columns(head: Head) -> dict[Place, list[Any]]:
    """The items of every field, those inside of objects too, but not those in lists."""
    found: dict[Place, list[Any]] = {(name,): [] for name in head.fields}
    for row in head.rows:
        for path, item in _leaves(row, ()):
            found.setdefault(path, []).append(item)
    return found


def _leaves(row: Mapping[str, Any], inside: Place) -> Iterable[tuple[Place, Any]]:
    for name, item in row.items():
        if isinstance(item, dict):
            if len(inside) < _DEEPEST:
                yield from _leaves(item, (*inside, name))
        elif item is not None:
            yield (*inside, name), item


def _numbers_in(items: Iterable[Any], decimal: str = ".") -> list[float]:
    return [number for item in items if (number := number_of(item, decimal)) is not None]


def _is_nameable(name: str) -> bool:
    """Whether a source takes the field's name as its key or time: braces would be a template."""
    return bool(name) and not set("{}") & set(name) and name.isprintable()


# -- time ----------------------------------------------------------------------------------------------------


def _time(head: Head, columns: Mapping[Place, list[Any]], given: Given, doubts: dict[str, str]) -> tuple[str, TimeSeen]:
    if given.time is not None:
        _require(head, given.time, "--time")
        seen = times_seen(columns[(given.time,)])
        if seen is not None:
            doubts["time"] = seen.doubt
            return given.time, seen
        numbers = [number_of(item) for item in columns[(given.time,)]]
        if not any(number is not None for number in numbers):
            raise InputError(
                f"{head.named}: field {given.time!r} holds no times that can be read: {_examples(columns[(given.time,)])}. "
                f"Give another with --time, or write the times as ISO 8601 or epochs. {_fields_seen(head, columns)}"
            )
        doubts["time"] = "no epoch: it is read as seconds since 1970"
        return given.time, TimeSeen("a number", zoned=True, is_number=True)
    best: tuple[float, int, str, TimeSeen] | None = None
    for place, name in enumerate(head.fields):
        items = columns[(name,)]
        seen = times_seen(items) if _is_nameable(name) and 2 * len(items) > len(head.rows) else None
        if seen is None:
            continue
        named = bool(set(TIMES) & set(words_of(name)))
        if not named and seen.is_number and not _rises(items):
            continue  # a reading of this size
        score = (not seen.is_number) + 2 * named
        if best is None or score > best[0]:
            best = score, place, name, seen
    if best is None and given.arrival:
        return DEFAULT_TIME, ARRIVAL
    if best is None:
        raise InputError(_no_time(head, columns))
    name, seen = best[2:]
    hour = next((other for other in head.fields if day_and_hour(columns[(other,)]) == "hour"), None)
    if hour is not None and day_and_hour(columns[(name,)]) == "day":
        raise InputError(
            f"{head.named} tells the time in two columns, {name!r} (the day) and {hour!r}; a record's time is one field. "
            f"Join them in the file, or give one of them with --time."
        )
    doubts["time"] = seen.doubt
    return name, seen


def _rises(items: Sequence[Any]) -> bool:
    numbers = _numbers_in(items)
    return len(numbers) > 1 and all(before <= after for before, after in pairwise(numbers))


def _no_time(head: Head, columns: Mapping[Place, list[Any]]) -> str:
    inside = next((path for path, items in columns.items() if len(path) > 1 and _is_time(path, items)), None)
    if inside is not None:
        return (
            f"{head.named}: the only time is inside of another field, at {shown_place(inside)}, where no source looks for it; "
            f"move it to the top of the record, or give a field with --time. {_fields_seen(head, columns)}"
        )
    rising = [name for name in head.fields if _is_nameable(name) and _counts(columns[(name,)])]
    counter = (
        f" {rising[0]!r} counts up: --time {shlex.quote(rising[0])} reads it as seconds since 1970." if rising else ""
    )
    return (
        f"{head.named}: no field looks like a time (ISO 8601, or an epoch between 1980 and 2100). "
        f"{_fields_seen(head, columns)} Say which one it is: --time FIELD.{counter}"
    )


def _is_time(path: Place, items: Sequence[Any]) -> bool:
    return bool(set(TIMES) & set(words_of(path[-1]))) and times_seen(items) is not None


def _counts(items: Sequence[Any]) -> bool:
    numbers = [number_of(item) for item in items[:200]]
    return (
        _rises(items[:200])
        and all(number is not None and number == int(number) for number in numbers)
        and len(set(numbers)) > len(numbers) // 2
    )


# -- key -----------------------------------------------------------------------------------------------------


def _key(head: Head, columns: Mapping[Place, list[Any]], given: Given, time: str, doubts: dict[str, str]) -> str:
    if given.key is not None:
        for name in KeyTemplate(given.key).names:
            if name != STEM:
                _require(head, name, "--key")
        return given.key
    able = [
        name for name in head.fields if name != time and _is_nameable(name) and _names_things(head, columns[(name,)])
    ]
    ranked = sorted((_rank(name), place) for place, name in enumerate(able) if _rank(name) < len(SENSORS))
    own = [able[place] for _, place in ranked if not _numbers_rows(able[place], columns[(able[place],)])]
    if own:
        metric = next((name for name in able if name != own[0] and set(METRICS) & set(words_of(name))), None)
        plain = metric is not None and all(re.fullmatch(r"[\w -]+", name) for name in (own[0], metric))
        if metric is not None and plain and len(set(map(str, columns[(metric,)]))) > 1:
            doubts["key"] = f"a guess: {own[0]!r} and {metric!r} together name a sensor"
            return f"{{{own[0]}}}/{{{metric}}}"
        return own[0]
    texts = [name for name in able if not set(NO_SENSORS) & set(words_of(name)) and _repeats(head, columns[(name,)])]
    if len(texts) > 1:
        raise InputError(
            f"{head.named}: no field is called as sensors are, and several might name them: {', '.join(map(repr, texts[:8]))}. "
            f"Say which one it is: --key {shlex.quote(texts[0])}; or --key '{{stem}}' when the whole file is of one sensor. "
            f"{_fields_seen(head, columns)}"
        )
    if texts:
        doubts["key"] = "a guess: the one field whose texts come again"
        return texts[0]
    doubts["key"] = f"no field names a sensor: {_OTHERWISE[given.otherwise]}"
    return given.otherwise


def _names_things(head: Head, items: Sequence[Any]) -> bool:
    """Whether nearly all records have one of these, and they are texts or whole numbers."""
    if len(items) < 0.9 * len(head.rows):
        return False
    decimal = head.layout.decimal
    return all(
        not isinstance(item, bool)
        and (
            isinstance(item, int)
            or (isinstance(item, str) and "\n" not in item and len(item) <= 200 and not _fractional(item, decimal))
        )
        for item in items[:200]
    )


def _fractional(text: str, decimal: str) -> bool:
    number = number_of(text, decimal)
    return number is not None and number != int(number)


def _rank(name: str) -> int:
    return min((SENSORS.index(word) for word in words_of(name) if word in SENSORS), default=len(SENSORS))


def _numbers_rows(name: str, items: Sequence[Any]) -> bool:
    """Whether every record has one of its own, under a name that may mean the record."""
    weak = not (set(SENSORS) - set(WEAK_SENSORS)) & set(words_of(name))
    return weak and len(items) > 2 and len(set(map(str, items))) == len(items)


def _repeats(head: Head, items: Sequence[Any]) -> bool:
    decimal = head.layout.decimal
    texts = [
        item
        for item in items
        if isinstance(item, str) and number_of(item, decimal) is None and times_seen([item]) is None
    ]
    return len(texts) == len(items) and 1 < len(set(texts)) <= len(texts) // 2


# -- value ---------------------------------------------------------------------------------------------------


def _value(
    head: Head, columns: Mapping[Place, list[Any]], given: Given, taken: set[str], doubts: dict[str, str]
) -> tuple[Place, tuple[Place, ...]]:
    numbers = {
        path: found
        for path, items in columns.items()
        if not (len(path) == 1 and path[0] in taken)
        for found in [_readings_in(head, items)]
        if len(found) >= 0.5 * len(items) > 0 and _readable(columns, path)
    }
    listed = _in_lists(head)
    if given.value is not None:
        if "[*]" in given.value and listed and not given.arrival:
            raise InputError(_only_in_a_list(head, listed, given))
        wanted: Place = (given.value,) if (given.value,) in columns else tuple(given.value.split("."))
        if wanted not in numbers:
            what = "holds no numbers" if wanted in columns else "is not there"
            raise InputError(
                f"{head.named}: field {given.value!r} {what}; give another with --value. {_fields_seen(head, columns)}"
            )
        return wanted, tuple(path for path in numbers if path != wanted)
    if not numbers and listed:
        raise InputError(_only_in_a_list(head, listed, given))
    if not numbers:
        raise InputError(
            f"{head.named}: no field holds numbers to work on besides the time and the sensor. {_fields_seen(head, columns)}"
        )
    worth = {path: _worth(path, found, len(head.rows)) for path, found in numbers.items()}
    best = max(numbers, key=lambda path: (*worth[path], -list(numbers).index(path)))
    rivals = tuple(path for path in numbers if path != best and all(worth[path][:2]))
    if not worth[best][0]:
        doubts["value"] = (
            f"a guess: no number is called as readings are{_of_lists(head, listed) if given.arrival else ''}"
        )
    elif rivals:
        doubts["value"] = "a guess among the numbers"
    return best, rivals


def _of_lists(head: Head, listed: Steps) -> str:
    """A few words on the numbers in lists of messages, which a source makes a record each."""
    if not listed or not _worth((_last(listed),), [0.0], len(head.rows))[0]:
        return ""
    return f', and value={{"{_last(listed)}": {_short(repr(path_of(listed)))}}} at the source takes those of a list'


def _in_lists(head: Head) -> Steps:
    """Where in lists the numbers are that are most like readings; empty when none are."""
    found: dict[Steps, list[float]] = {}
    for row in head.rows[:_MESSAGES]:
        for path, item in leaves(row):
            bare = isinstance(item, list) and None not in path
            steps = (*path, None) if bare else path
            numbers = [
                number
                for each in (item if bare else [item])
                if not isinstance(each, str) and (number := number_of(each)) is not None
            ]
            if numbers and None in steps and all(name is None or name.isprintable() for name in steps):
                found.setdefault(steps, []).extend(numbers)
    return max(found, key=lambda steps: _worth((_last(steps),), found[steps], len(head.rows)), default=())


def _last(steps: Steps) -> str:
    return next(name for name in reversed(steps) if name is not None)


def _only_in_a_list(head: Head, listed: Steps, given: Given) -> str:
    """What to do, where a source of messages makes a record of each item, and those of files do not."""
    path = path_of(listed)
    if given.arrival:
        return f"{head.named}: the only numbers are in a list; --value {shlex.quote(path)} makes a record of each item."
    names = listed[: listed.index(None)]
    inner = "".join(
        f".{name}" if re.fullmatch("[A-Za-z_][A-Za-z_0-9]*", str(name)) else f"[{json.dumps(name)}]" for name in names
    )
    place = inner if inner.startswith(".") else f".{inner}"
    items = f"{{{json.dumps(_last(listed))}: {place}[]}}" if listed[-1] is None else f"{place}[]"
    return (
        f"{head.named}: the numbers at {path!r} are in a list, which no source of files opens. Write a record of each item "
        f"first, for example with: jq -c {shlex.quote(f'del({place}) + {items}')}"
    )


def _readings_in(head: Head, items: Iterable[Any]) -> list[float]:
    """Numbers; in JSON, where a text is a text, those that are written as such."""
    if head.layout.kind == "ndjson":
        items = (item for item in items if not isinstance(item, str))
    return _numbers_in(items, head.layout.decimal)


def _readable(columns: Mapping[Place, list[Any]], path: Place) -> bool:
    """Whether it is a reading, and not a second way to tell the time."""
    if all(map(_is_odd, path)):
        return False
    return not (set(TIMES) & set(words_of(path[-1])) and times_seen(columns[path]) is not None)


def _is_odd(name: str) -> bool:
    return not name or not name.isprintable()


def _worth(path: Place, numbers: Sequence[float], rows: int) -> tuple[int, ...]:
    """The greater, the more it looks like a reading: it is not called as counters are, varies, is called so, has fractions, is
    there, is near the top."""
    words = set(words_of(path[-1]))
    called = 3 if words & set(READINGS) else 2 if words & set(PHYSICAL) else 0 if words & set(NO_READINGS) else 1
    if path[0].startswith("_") and not words & set(READINGS):
        called = 0
    varies = len(set(numbers)) > 1
    fractions = any(number != int(number) for number in numbers)
    return called > 0, varies, called, fractions, 2 * len(numbers) > rows, -len(path)


# -- words ---------------------------------------------------------------------------------------------------


def _require(head: Head, name: str, option: str) -> None:
    if name not in head.fields:
        seen = ", ".join(_short(repr(field)) for field in head.fields[:_FIELDS_SHOWN])
        raise InputError(f"{head.named} has no field {name!r}, which {option} names; the fields seen are: {seen}.")


def _fields_seen(head: Head, columns: Mapping[Place, list[Any]]) -> str:
    told = [f"{_short(repr(name))} ({_examples(columns[(name,)])})" for name in head.fields[:_FIELDS_SHOWN]]
    more = len(head.fields) - len(told)
    return f"The fields seen are: {', '.join(told)}{f' and {more} more' if more else ''}."


def _examples(items: Sequence[Any]) -> str:
    return ", ".join(_short(repr(item), 24) for item in items[:2]) or "empty"


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
