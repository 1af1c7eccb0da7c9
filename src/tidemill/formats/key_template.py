"""What names a record's sensor: a field, or a template over fields and what the source knows."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tidemill.column import is_null
from tidemill.errors import PlanError

__all__ = ["KeyTemplate", "is_nested", "names_nothing", "why_unnamed"]


class KeyTemplate:
    """``"{line}/{machine}"``; a key without braces is the name of a field.

    >>> KeyTemplate("{line}/{machine}").told({"machine": 7}, {"line": "L1"})
    'L1/7'
    """

    def __init__(self, key: str) -> None:
        self._parts = _parsed(key)
        self.names = tuple(name for _, name in self._parts if name is not None)
        """What makes the key: fields of the record, or things that the source knows."""
        self.field = self.names[0] if len(self._parts) == 1 and self.names and not self._parts[0][0] else None
        """The one field whose text is the key as it is; None when there is more to it."""

    def join(self, values: Sequence[str]) -> str:
        """The key of these values of `names`."""
        ends = iter(values)
        return "".join(literal + (next(ends) if name is not None else "") for literal, name in self._parts)

    def told(self, record: Mapping[Any, Any], known: Mapping[str, str]) -> str | None:
        """The key of a record; None when there is none to be made."""
        try:
            values = [known.get(name) if names_nothing(record.get(name)) else record[name] for name in self.names]
            if any(value is None or why_unnamed(value) for value in values):
                return None
            return self.join(list(map(str, values))) or None
        except Exception:  # noqa: BLE001 - a record, or a value in it, may be of a class that raises anything
            return None


def names_nothing(item: Any) -> bool:
    """Nothing is there; in the column of a DataFrame, NaN says that, or pandas' NA and NaT, or NumPy's."""
    if is_null(item):
        return True
    if isinstance(item, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(item))
    return isinstance(item, float) and math.isnan(item)


def why_unnamed(item: Any) -> str:
    """What a field is in place of a name; nothing, if it is one, or its text will be.

    >>> why_unnamed(7), why_unnamed(float("nan")), why_unnamed([7])
    ('', 'is missing or null', 'is nested')
    """
    if isinstance(item, (str, int)):
        return ""
    if names_nothing(item):
        return "is missing or null"
    return "is nested" if is_nested(item) or isinstance(item, (np.ndarray, Mapping, frozenset)) else ""


def is_nested(item: Any) -> bool:
    return isinstance(item, (dict, list, tuple, set))


def _parsed(key: str) -> tuple[tuple[str, str | None], ...]:
    """(text before, name) pairs."""
    if "{" not in key and "}" not in key:
        return (("", key),)
    try:
        parsed = list(string.Formatter().parse(key))
    except ValueError as error:
        raise PlanError(f"key={key!r} is not a template such as '{{line}}/{{machine}}': {error}.") from None
    if any(spec or conversion or name == "" for _, name, spec, conversion in parsed):
        raise PlanError(f"key={key!r} may hold names in braces and nothing else in them: '{{line}}/{{machine}}'.")
    return tuple((literal, name) for literal, name, _, _ in parsed)
