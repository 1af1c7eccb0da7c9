"""What kind of times a field holds: ISO 8601, an epoch and its unit, or a format of ``strptime``. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any, Final

from tidemill.app.new.sniffing import numbers_in
from tidemill.column import NAT
from tidemill.formats.times import TimeReader

__all__ = ["TimeSeen", "day_and_hour", "times_seen"]

_LOOKED_AT: Final = 300
"""Items by which a field is judged."""
_TRIED: Final = 20
"""Those by which a format is ruled out."""
_MOST: Final = 0.9
"""The share of them that must be times."""
_PLAUSIBLE_S: Final = (315_532_800, 4_102_444_800)
"""1980 and 2100: numbers that mean no time in between are no epochs of readings."""
_UNITS: Final = (("s", 1e11), ("ms", 1e14), ("us", 1e17), ("ns", float("inf")))
"""Epochs below a bound count in a unit; as `tidemill.formats.times` reads them."""
_ZONED: Final = re.compile(r"\d[Zz]$|:\d\d(?:[.,]\d+)?\s?[+-]\d\d(?::?\d\d)?$|T\d{4,6}[+-]\d\d(?::?\d\d)?$")
_DAYS: Final = (
    "%d.%m.%Y",
    "%d.%m.%y",
    "%Y/%m/%d",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%d-%b-%Y",
    "%d %b %Y",
)
_HOURS: Final = (" %H:%M:%S", " %H:%M", " %H:%M:%S.%f", " %I:%M:%S %p", " %I:%M %p", "T%H:%M:%S", "")
_MONTHS_FIRST: Final = tuple(sorted(_DAYS, key=lambda day: not day.startswith("%m")))
_FORMATS: Final = tuple(day + hour for hour in _HOURS for day in (_MONTHS_FIRST if "%p" in hour else _DAYS))
"""The likelier first: whoever writes AM and PM writes months before days."""

_COMPACT: Final = "%Y%m%d%H%M%S"


@dataclass(frozen=True)
class TimeSeen:
    """How a field tells the time."""

    words: str
    """For a person: ``"ISO 8601"``, ``"epoch in ms"``."""
    zoned: bool
    """Whether each time says its zone; an epoch needs none."""
    format: str | None = None
    """For ``strptime``, when nothing else reads it."""
    doubt: str = ""
    """What may be wrong about it."""
    is_number: bool = False


def times_seen(items: Sequence[Any]) -> TimeSeen | None:
    """How these items tell the time; None when most do not.

    >>> times_seen(["2024-03-01T12:00:00Z"]).words, times_seen([1700000000250]).words, times_seen([20.5])
    ('ISO 8601', 'epoch in ms', None)
    >>> times_seen(["31.03.2024 12:00"]).format, times_seen([20240331120000]).format
    ('%d.%m.%Y %H:%M', '%Y%m%d%H%M%S')
    """
    there = [item for item in items if item is not None]
    if not there:
        return None
    items = _spread(there, _LOOKED_AT)
    numbers = numbers_in(items)
    if len(numbers) >= _MOST * len(items):
        return _epoch(numbers) or _compact(items)
    texts = [item.strip() for item in items if isinstance(item, str)]
    if len(texts) < len(items):
        return None
    if _read(texts, None) >= _MOST * len(items):
        zoned = sum(_ZONED.search(text) is not None for text in texts)
        return TimeSeen("ISO 8601", zoned >= _MOST * len(texts))
    return _formatted([item.strip() for item in there if isinstance(item, str)])


def day_and_hour(items: Sequence[Any]) -> str:
    """``"day"`` for dates alone, ``"hour"`` for times of day alone, else nothing.

    >>> day_and_hour(["2024-03-01"]), day_and_hour(["12:30:05"]), day_and_hour(["2024-03-01 12:30"])
    ('day', 'hour', '')
    """
    texts = [item.strip() for item in items if isinstance(item, str)][:_LOOKED_AT]
    if texts and all(re.fullmatch(r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[AaPp][Mm])?", text) for text in texts):
        return "hour"
    day = r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/. ](\d{1,2}|[A-Za-z]{3})[-/. ](\d{4}|\d{2})"
    return "day" if texts and all(re.fullmatch(day, text) for text in texts) else ""


def _epoch(numbers: Sequence[float]) -> TimeSeen | None:
    middle = median_low(map(abs, numbers))
    unit = next(name for name, bound in _UNITS if middle < bound)
    ns = [TimeReader().one(number) for number in numbers]
    low, high = (second * 10**9 for second in _PLAUSIBLE_S)
    if sum(low <= moment <= high for moment in ns) < _MOST * len(ns):
        return None
    return TimeSeen(f"epoch in {unit}", zoned=True, is_number=True)


def _compact(items: Sequence[Any]) -> TimeSeen | None:
    """Digits of year, month, day, hour, minute and second: as an epoch they would lie centuries ahead."""
    texts = [text for item in items if re.fullmatch(r"(19|20)\d{12}", text := str(item).strip())]
    if _read(texts, _COMPACT) < _MOST * len(items):
        return None
    return TimeSeen(f"as {_COMPACT!r}", zoned=False, format=_COMPACT, is_number=True)


def _formatted(texts: Sequence[str]) -> TimeSeen | None:
    """By the format that reads most of them: days beyond the twelfth tell a day from a month, however few they are."""
    able = [form for form in _FORMATS if _read(_spread(texts, _TRIED), form)]
    counts = {form: _read(texts, form) for form in able}
    most = max(counts.values(), default=0)
    if most < _MOST * len(texts) or not most:
        return None
    first, *others = [form for form in able if counts[form] == most]
    doubt = f"a guess: {others[0]!r} reads these times too" if others else ""
    return TimeSeen(f"as {first!r}", zoned=False, format=first, doubt=doubt)


def _spread(items: Sequence[Any], most: int) -> Sequence[Any]:
    """At most so many of the items, from all over them."""
    return items[:: -(-len(items) // most) or 1]


def _read(texts: Sequence[str], form: str | None) -> int:
    """How many of the texts are times."""
    return int((TimeReader(time_format=form).texts(texts) != NAT).sum())
