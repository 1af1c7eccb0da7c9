"""How much a field looks like one of readings. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.app.new.fields_seen import Place
from tidemill.app.new.vocabulary import NO_READINGS, PHYSICAL, READINGS
from tidemill.formats.field_names import words_of

__all__ = ["called_as_reading", "worth"]


def worth(path: Place, numbers: Sequence[float], rows: int) -> tuple[int, ...]:
    """The greater, the more it looks like a reading: it is not called as counters are, varies, is called so, has fractions, is
    there, is near the top."""
    called = called_as_reading(path)
    varies = len(set(numbers)) > 1
    fractions = any(number != int(number) for number in numbers)
    return called > 0, varies, called, fractions, 2 * len(numbers) > rows, -len(path)


def called_as_reading(path: Place) -> int:
    """The greater, the more it is called as readings are; 0 as counters are.

    >>> called_as_reading(("value",)), called_as_reading(("data", "temp")), called_as_reading(("x",)), called_as_reading(("fCnt",))
    (3, 2, 1, 0)
    """
    words = set(words_of(path[-1]))
    if words & set(READINGS):
        return 3
    if path[0].startswith("_"):
        return 0
    return 2 if words & set(PHYSICAL) else 0 if words & set(NO_READINGS) else 1
