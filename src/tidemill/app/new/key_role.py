"""Which fields name the sensor. No I/O."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any, Final

from tidemill.app.new.fields_seen import FieldsSeen, Place, jq_place, shown_place
from tidemill.app.new.sniffing import number_of
from tidemill.app.new.times_seen import times_seen
from tidemill.app.new.vocabulary import METRICS
from tidemill.errors import InputError
from tidemill.formats.field_names import NO_SENSORS, SENSORS, WEAK_SENSORS, words_of
from tidemill.formats.key_template import KeyTemplate
from tidemill.printable import counted

__all__ = ["STEM", "SensorsInside", "key_of"]

STEM: Final = "stem"
"""What every file knows, and its fields do not say: its own name."""
_OF_MESSAGES: Final = "{topic}"
_OTHERWISE: Final = {
    "{stem}": "the file is taken for one, and its name for the sensor's",
    _OF_MESSAGES: "each topic is taken for one",
}
"""What is done then, by the key that does it."""
_LONGEST: Final = 200
"""Characters of a sensor's name."""
_NEARLY_ALL: Final = 0.9
"""The share of records in which a field stands that is taken for the sensor without a doubt, .."""
_MOST: Final = 0.5
""".. and of one that is called as sensors are."""


class SensorsInside(InputError):
    """The sensors' names are inside of another field; a source of messages takes them from there."""

    def __init__(self, fields: FieldsSeen, place: Place) -> None:
        self.place = place
        """Where they are."""
        self.name = place[-1] if place[-1] not in fields.head.fields else "_".join(place)
        """A field's name that is free."""
        moved = f"{jq_place([self.name])} = {jq_place(place)}"
        super().__init__(
            f"{fields.head.named}: the sensors' names are inside of another field, at {shown_place(place)}, where no source "
            f"of files looks for them. Give --key '{{stem}}' when the whole file is of one sensor; else write them to the "
            f"top of each record first, for example with: jq -c {shlex.quote(moved)}"
        )


def key_of(fields: FieldsSeen, given: str | None, *, time: str, otherwise: str) -> tuple[str, str]:
    """A field or a template, and why it is a guess, if it is; ``otherwise`` where no field names a sensor.

    Raises `InputError`, which is a `SensorsInside` where what is given or found is inside of another field.
    """
    if given is not None:
        for name in KeyTemplate(given).names:
            place = tuple(name.split("."))
            if name not in fields.head.fields and len(place) > 1 and place in fields.columns:
                raise SensorsInside(fields, place)
            if name != STEM:
                fields.require(name, "--key")
        return given, ""
    of_messages = otherwise == _OF_MESSAGES
    known = KeyTemplate(otherwise).names if of_messages else ()
    names = [name for name in fields.nameable if name not in (time, *known)]
    things = [name for name in names if _are_names(fields, fields.column(name))]
    able = [name for name in things if fields.share(name) >= _NEARLY_ALL]
    called = [name for name in things if _rank(name) < len(SENSORS) and not _numbers_rows(fields, name)]
    owns = [name for name in called if fields.share(name) >= (_NEARLY_ALL if _is_weak(name) else _MOST)]
    inside = _inside(fields, least=1 if of_messages else 2)
    if inside is not None and all(_is_weak(name) and not _is_weak(inside[-1]) for name in owns):
        raise SensorsInside(fields, inside)
    if owns:
        own = min(owns, key=lambda name: (name not in able, _rank(name)))
        metric = next((name for name in able if name != own and set(METRICS) & set(words_of(name))), None)
        if (
            metric is not None
            and all(re.fullmatch(r"[\w -]+", name) for name in (own, metric))
            and len(set(map(str, fields.column(metric)))) > 1
        ):
            return f"{{{own}}}/{{{metric}}}", f"a guess: {own!r} and {metric!r} together name a sensor"
        return own, "" if own in able else f"a guess: {_told_empty(fields, own)}, and these are rejected"
    texts = [name for name in able if not set(NO_SENSORS) & set(words_of(name)) and _repeats(fields, name)]
    if len(texts) > 1:
        raise InputError(
            f"{fields.head.named}: no field is called as sensors are, and several might name them: "
            f"{', '.join(map(repr, texts[:8]))}. Say which one it is: --key {shlex.quote(texts[0])}; or --key '{{stem}}' "
            f"when the whole file is of one sensor. {fields.told}"
        )
    if texts:
        return texts[0], "a guess: the one field whose texts come again"
    empty = f" ({_told_empty(fields, min(called, key=_rank))})" if called else ""
    return otherwise, f"no field names a sensor{empty}: {_OTHERWISE[otherwise]}"


def _told_empty(fields: FieldsSeen, name: str) -> str:
    rows = len(fields.head.rows)
    return f"{name!r} is empty in {rows - len(fields.column(name)):,} of {counted(rows, 'record')}"


def _inside(fields: FieldsSeen, *, least: int) -> Place | None:
    """Where inside of other fields the names of sensors are, of which there are at least so many."""
    found: dict[Place, tuple[Any, ...]] = {}
    for path, items in fields.columns.items():
        name, many = path[-1], len(set(map(str, items)))
        texts = all(isinstance(item, str) for item in items)
        if (
            len(path) > 1
            and all(each and each.isprintable() and not set("{}.") & set(each) for each in path)
            and _rank(name) < len(SENSORS)
            and len(items) >= _MOST * len(fields.head.rows)
            and _are_names(fields, items)
            and (many >= least if texts and not _is_weak(name) else 1 < many <= len(items) // 2)
        ):
            found[path] = not _is_weak(name), -_rank(name), many, -len(path)
    return max(found, key=lambda path: found[path], default=None)


def _are_names(fields: FieldsSeen, items: Sequence[Any]) -> bool:
    """Whether these are texts or whole numbers.

    Texts of several lines, or long ones, are passed over where they are not the most: whoever may send may send one.
    """
    if not items:
        return False
    decimal = fields.head.layout.decimal
    looked_at = items[:200]
    named = [item for item in looked_at if not (isinstance(item, str) and ("\n" in item or len(item) > _LONGEST))]
    return 2 * len(named) >= len(looked_at) and all(
        not isinstance(item, bool)
        and (isinstance(item, int) or (isinstance(item, str) and not _fractional(item, decimal)))
        for item in named
    )


def _fractional(text: str, decimal: str) -> bool:
    number = number_of(text, decimal)
    return number is not None and number != int(number)


def _rank(name: str) -> int:
    return min((SENSORS.index(word) for word in words_of(name) if word in SENSORS), default=len(SENSORS))


def _is_weak(name: str) -> bool:
    """Whether it names a sensor by a word that may as well name the record."""
    return not (set(SENSORS) - set(WEAK_SENSORS)) & set(words_of(name))


def _numbers_rows(fields: FieldsSeen, name: str) -> bool:
    """Whether every record has one of its own, under a name that may mean the record."""
    items = fields.column(name)
    return _is_weak(name) and len(items) > 2 and len(set(map(str, items))) == len(items)


def _repeats(fields: FieldsSeen, name: str) -> bool:
    items = fields.column(name)
    decimal = fields.head.layout.decimal
    texts = [
        item
        for item in items
        if isinstance(item, str) and number_of(item, decimal) is None and times_seen([item]) is None
    ]
    return len(texts) == len(items) and 1 < len(set(texts)) <= len(texts) // 2
