"""Which fields name the sensor. No I/O."""

from __future__ import annotations

import re
import shlex
from typing import Final

from tidemill.app.new.fields_seen import FieldsSeen
from tidemill.app.new.sniffing import number_of
from tidemill.app.new.times_seen import times_seen
from tidemill.app.new.vocabulary import METRICS
from tidemill.errors import InputError
from tidemill.formats.field_names import NO_SENSORS, SENSORS, WEAK_SENSORS, words_of
from tidemill.formats.key_template import KeyTemplate
from tidemill.printable import counted

__all__ = ["STEM", "key_of"]

STEM: Final = "stem"
"""What every file knows, and its fields do not say: its own name."""
_OTHERWISE: Final = {
    "{stem}": "the file is taken for one, and its name for the sensor's",
    "{topic}": "each topic is taken for one",
}
"""What is done then, by the key that does it."""
_LONGEST: Final = 200
"""Characters of a sensor's name."""
_NEARLY_ALL: Final = 0.9
"""The share of records in which a field stands that is taken for the sensor without a doubt, .."""
_MOST: Final = 0.5
""".. and of one that is called as sensors are."""


def key_of(fields: FieldsSeen, given: str | None, *, time: str, otherwise: str) -> tuple[str, str]:
    """A field or a template, and why it is a guess, if it is; ``otherwise`` where no field names a sensor.

    Raises `InputError`.
    """
    if given is not None:
        for name in KeyTemplate(given).names:
            if name != STEM:
                fields.require(name, "--key")
        return given, ""
    things = [name for name in fields.nameable if name != time and _names_things(fields, name)]
    able = [name for name in things if fields.share(name) >= _NEARLY_ALL]
    called = [name for name in things if _rank(name) < len(SENSORS) and not _numbers_rows(fields, name)]
    owns = [name for name in called if fields.share(name) >= (_NEARLY_ALL if _is_weak(name) else _MOST)]
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


def _names_things(fields: FieldsSeen, name: str) -> bool:
    """Whether these are texts or whole numbers, in whichever records have one.

    Texts of several lines, or long ones, are passed over where they are not the most: whoever may send may send one.
    """
    items = fields.column(name)
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
