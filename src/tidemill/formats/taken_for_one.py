"""Whether records that do not say whose they are come from more sensors than they are taken for. No I/O."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Final

from tidemill.batch import Batch
from tidemill.formats.field_names import NO_SENSORS, SENSORS, TIMES, WEAK_SENSORS, words_of
from tidemill.formats.rejects import shown_names
from tidemill.formats.roles import Roles
from tidemill.printable import quoted

__all__ = ["TakenForOne"]

_RECORDS: Final = 2_000
"""The first ones, which are looked at."""
_FIELDS: Final = 20
_LONGEST: Final = 200
"""Characters of a sensor's name."""
_FEW: Final = 8
"""Of fewer records, a field that may hold anything tells nothing."""
_SHOWN: Final = 3
_ONE: Final = {
    "peer": "of one connection",
    "peer_host": "from one host",
    "topic": "of one topic",
    "series": "of one series",
}
"""The records that are taken for one sensor's, by what the source knows that names it."""
_OF_THE_NETWORK: Final = ("peer", "peer_host")
"""Names that no sender gave, so that any text which comes again may be the sensor's."""

Value = int | str


class TakenForOne:
    """Looks at the first records that lack the field of the sensor's name, of a source that was given no ``key=``.

    A device that sends its own readings alone has one value in each of its fields that name things: nothing is said of it.
    """

    def __init__(self) -> None:
        self._left = _RECORDS
        self._seen: dict[str, dict[str, Counter[Value]]] = {}
        """The values of each field, by the sensor that their records are taken for."""

    def look(self, batch: Batch, roles: Roles) -> str:
        """The next records. Once a field of theirs tells sensors apart that are taken for one, a sentence; else nothing."""
        if not self._left or roles.fallback is None or roles.key in batch.columns or not len(batch):
            return ""
        head = batch.slice(0, self._left)
        self._left -= len(head)
        assert head.key_column is not None
        keys = head.key_column.to_list()
        for name in head.names:
            if name != roles.time and _may_name(name, roles.fallback) and len({*self._seen, name}) <= _FIELDS:
                self._note(name, keys, head.columns[name].to_list())
        for name in sorted(self._seen, key=_is_called_so, reverse=True):
            for values in self._seen[name].values():
                if _tells_apart(values, sure=_is_called_so(name)):
                    self._left = 0
                    return _told(name, list(values), roles, batch.names)
        return ""

    def _note(self, name: str, keys: list[str], items: list[object]) -> None:
        numbers = set(words_of(name)) <= set(SENSORS)  # a device has numbers of many things
        seen = self._seen.setdefault(name, defaultdict(Counter))
        for key, item in zip(keys, items, strict=True):
            if (type(item) is str and len(item) <= _LONGEST) or (numbers and type(item) is int):
                seen[key][item] += 1


def _is_called_so(name: str) -> bool:
    """As sensors are, and as rows are not."""
    return bool((set(SENSORS) - set(WEAK_SENSORS)) & set(words_of(name)))


def _may_name(name: str, fallback: str) -> bool:
    words = set(words_of(name))
    return not words & {*NO_SENSORS, *TIMES} and (fallback in _OF_THE_NETWORK or _is_called_so(name))


def _tells_apart(values: Counter[Value], *, sure: bool) -> bool:
    """Whether these, of one sensor as it is taken, are several; of a field that may hold anything, they come again too."""
    return len(values) > 1 and (sure or values.total() >= max(_FEW, 2 * len(values)))


def _told(name: str, values: list[Value], roles: Roles, names: tuple[str, ...]) -> str:
    assert roles.fallback is not None
    some = ", ".join(quoted(str(value)) for value in values[:_SHOWN]) + (", ..." if len(values) > _SHOWN else "")
    return (
        f"the records have no field {roles.key!r}, so all {_ONE.get(roles.fallback, 'alike')} are taken for one sensor's, though "
        f"there are several in their field {quoted(name)}: {some}. If that is the sensor, say key={quoted(name)}; if not, say "
        f"key='{{{roles.fallback}}}'. The fields seen are: {shown_names(names)}."
    )
