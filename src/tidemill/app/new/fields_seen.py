"""The fields of a recording's first records, and what stands in them. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tidemill.app.new.sniffing import Head
from tidemill.errors import InputError

__all__ = ["FieldsSeen", "Place", "at_place", "fields_seen", "jq_place", "shown", "shown_place"]

Place = tuple[str, ...]
"""The names on the way to a field; one, when it is inside of no other."""
_FIELDS_SHOWN: Final = 12
_DEEPEST: Final = 4
"""Objects in objects that are looked into."""


@dataclass(frozen=True)
class FieldsSeen:
    """What the roles are told by."""

    head: Head
    columns: Mapping[Place, Sequence[Any]]
    """The items of every field, those inside of objects too, but not those in lists."""

    @property
    def nameable(self) -> list[str]:
        """Those that a source takes as its key or time: braces would be a template."""
        return [name for name in self.head.fields if name and not set("{}") & set(name) and name.isprintable()]

    @property
    def told(self) -> str:
        """A sentence for a person."""
        told = [f"{shown(name)} ({self.examples(name)})" for name in self.head.fields[:_FIELDS_SHOWN]]
        more = len(self.head.fields) - len(told)
        return f"The fields seen are: {', '.join(told)}{f' and {more} more' if more else ''}."

    def column(self, name: str) -> Sequence[Any]:
        """The items of a field that is inside of no other."""
        return self.columns[(name,)]

    def share(self, name: str) -> float:
        """The share of the records in which it is not empty."""
        return len(self.column(name)) / len(self.head.rows)

    def examples(self, name: str) -> str:
        """Its first items, for a person."""
        return ", ".join(shown(item, 24) for item in self.column(name)[:2]) or "empty"

    def require(self, name: str, option: str) -> None:
        """Raises `InputError` when there is no field of this name, which the option gives."""
        if name not in self.head.fields:
            there = ", ".join(map(shown, self.head.fields[:_FIELDS_SHOWN]))
            raise InputError(
                f"{self.head.named} has no field {name!r}, which {option} names; the fields seen are: {there}."
            )


def fields_seen(head: Head) -> FieldsSeen:
    """All of them, in the order in which they come.

    >>> from tidemill.app.new.sniffing import sniffed
    >>> fields_seen(sniffed("a.csv", ".csv", b"mote,temp\\n3,20.5\\n4,\\n", whole=True)).told
    "The fields seen are: 'mote' ('3', '4'), 'temp' ('20.5')."
    """
    columns: dict[Place, list[Any]] = {(name,): [] for name in head.fields}
    for row in head.rows:
        for path, item in _leaves(row, ()):
            columns.setdefault(path, []).append(item)
    return FieldsSeen(head, columns)


def _leaves(row: Mapping[str, Any], inside: Place) -> Iterable[tuple[Place, Any]]:
    for name, item in row.items():
        if isinstance(item, dict):
            if len(inside) < _DEEPEST:
                yield from _leaves(item, (*inside, name))
        elif item is not None:
            yield (*inside, name), item


def at_place(record: Any, path: Place) -> Any:
    """What stands there in a record; None when nothing does.

    >>> at_place({"data": {"temp": 20}}, ("data", "temp")), at_place({"data": 3}, ("data", "temp"))
    (20, None)
    """
    for name in path:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def jq_place(path: Sequence[object]) -> str:
    """As ``jq`` has it.

    >>> jq_place(("data", "odd-name"))
    '.data["odd-name"]'
    """
    names = map(str, path)
    inner = "".join(
        f".{name}" if re.fullmatch("[A-Za-z_][A-Za-z_0-9]*", name) else f"[{json.dumps(name)}]" for name in names
    )
    return inner if inner.startswith(".") else f".{inner}"


def shown_place(path: Place) -> str:
    """For a person: ``'object.temperature'``, escaped."""
    return shown(".".join(path))


def shown(item: Any, most: int = 60) -> str:
    """A name or an item for a person, escaped; of a long one the beginning."""
    text = repr(item)
    return text if len(text) <= most else f"{text[: most - 3]}..."
