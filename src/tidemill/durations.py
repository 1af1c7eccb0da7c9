"""Durations as people write them, and as int64 nanoseconds."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from fractions import Fraction
from numbers import Real
from typing import Any, Final

from tidemill.errors import PlanError

__all__ = ["as_named", "duration_ns", "shown"]

_UNITS: Final = {
    "d": 86_400 * 10**9,
    "h": 3_600 * 10**9,
    "min": 60 * 10**9,
    "s": 10**9,
    "ms": 10**6,
    "us": 10**3,
    "ns": 1,
}
"""Nanoseconds of each unit, the largest first."""
_PART: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zµμ]+)\s*")
_LONGEST: Final = 2**63 - 1  # ns, 292 years: what an int64 holds


def duration_ns(value: str | float | timedelta, *, name: str, zero: bool = False, number: str | None = None) -> int:
    """``value`` in nanoseconds: a text such as ``"30s"``, ``"500ms"``, ``"1h30min"``; a number of seconds; a timedelta.

    The units are ``d``, ``h``, ``min``, ``s``, ``ms``, ``us`` (or ``µs``), ``ns``. What is between two nanoseconds is
    rounded to the nearest. ``name`` stands before the value in messages (``"Rolling('v'): window"``); ``zero`` says
    whether no time at all is a duration here, and ``number`` what a number is, if not seconds. Raises `PlanError` for everything else.

    >>> duration_ns("30s", name="window")
    30000000000
    >>> duration_ns(0.5, name="window")
    500000000
    """
    exact = _exact(value)
    if exact is None:
        number = number or (
            "" if isinstance(value, str) else "a number of seconds"
        )  # who writes a text has "60s" to write
        raise PlanError(
            f'{name}={value!r} is not a duration; write a number and a unit, such as "500ms", "30s", "5min", "1h" or "1d"'
            f"{number and f', or {number}'}.{_hint(value)}"
        )
    ns = round(exact)
    if ns > _LONGEST:
        raise PlanError(f"{name}={value!r} is too long; at most 292 years can be told.")
    if ns < 0 or (ns == 0 and not (zero and exact == 0)):
        raise PlanError(f"{name}={value!r} must be {'0 or ' if zero else ''}at least a nanosecond.")
    return ns


def shown(ns: int) -> str:
    """The shortest text that `duration_ns` reads as ``ns``, in the largest unit that it is a whole number of.

    >>> shown(30 * 10**9), shown(90 * 10**9), shown(86_400 * 10**9), shown(1_500_000)
    ('30s', '90s', '1d', '1500us')
    """
    unit, size = next((unit, size) for unit, size in _UNITS.items() if ns % size == 0 and (ns or unit == "s"))
    return f"{ns // size}{unit}"


def as_named(value: str | float | timedelta, *, name: str) -> str:
    """A duration as it stands in the name of a column: a text as it was written, without spaces; else `shown`.

    >>> as_named("60 s", name="window"), as_named(60, name="window")
    ('60s', '1min')
    """
    ns = duration_ns(value, name=name)
    return re.sub(r"\s", "", value) if isinstance(value, str) else shown(ns)


def _exact(value: object) -> Fraction | None:
    """Nanoseconds, exactly as written; None when it is no duration."""
    if type(value).__name__ == "timedelta64":
        return _of_numpy(value)
    if isinstance(value, timedelta):
        whole = (value.days * 86_400 + value.seconds) * 10**9 + value.microseconds * 1_000
        return Fraction(whole + getattr(value, "nanoseconds", 0))  # those of a pandas.Timedelta
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return None
    return Fraction(str(value)) * 10**9  # 0.1 is a tenth, not the binary fraction next to it


def _of_numpy(value: Any) -> Fraction | None:
    """Of a timedelta64, by what it is as a Python object: for a duration NumPy is not imported."""
    item = value.item()
    if isinstance(item, timedelta):
        return _exact(item)
    return Fraction(item) if item is not None and value.dtype.str.endswith("[ns]") else None  # months have no length


def _of_text(text: str) -> Fraction | None:
    at, total = 0, Fraction(0)
    while at < len(text) or not at:
        part = _PART.match(text, at)
        unit = part and _UNITS.get(part[2].replace("µ", "u").replace("μ", "u"))
        if not part or not unit:
            return None
        total += Fraction(part[1]) * unit
        at = part.end()
    return total


def _hint(value: object) -> str:
    """For what other libraries write otherwise."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d+(\.\d+)?\s*[mM]\s*", value):
        return ' Minutes are "min".'
    if isinstance(value, str) and value != value.lower() and _of_text(value.lower()) is not None:
        return " Units are written small."
    return ""
