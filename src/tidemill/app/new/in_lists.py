"""Messages whose readings are the items of a list → a record of each item. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tidemill.app.new.fields_seen import at_place
from tidemill.errors import InputError, PlanError
from tidemill.formats.field_names import NO_SENSORS, words_of
from tidemill.formats.payloads import steps_of

__all__ = ["EACH", "Opened", "Steps", "opened"]

EACH: Final = "[*]"
"""What goes into a list, in a path."""
Row = dict[str, Any]
Steps = tuple[str | None, ...]
"""A place, with None where it goes into every item of a list."""


@dataclass(frozen=True)
class Opened:
    """A record of each item, with what its message has beside the list."""

    rows: Sequence[Row]
    value: str
    """The reading's field in these."""
    places: Mapping[str, Steps]
    """Of the fields that an item has brought, where they are in a message."""
    labels: Sequence[str]
    """Fields whose texts tell the items of each message apart, the likeliest first."""

    def in_message(self, place: Sequence[str]) -> Steps:
        """Where in a message that is which these records have at ``place``."""
        return *self.places.get(place[0], place[:1]), *place[1:]


def opened(named: str, rows: Sequence[Row], path: str) -> Opened:
    """Raises `InputError` when there is no list of that path in any row.

    >>> row = {"device": "D1", "name": "hall", "metrics": [{"name": "temp", "value": 20}, {"name": "flow", "value": 3}]}
    >>> made = opened("plant", [row], "metrics[*].value")
    >>> made.rows[1], made.labels
    ({'device': 'D1', 'name': 'hall', 'metrics_name': 'flow', 'value': 3}, ['metrics_name'])
    >>> made.in_message(["metrics_name"]), made.in_message(["name"])
    (('metrics', None, 'name'), ('name',))
    """
    before, after = _parted(named, path)
    lists = [found if isinstance(found := at_place(row, before), list) else [] for row in rows]
    if not any(lists):
        raise InputError(f"{named}: no message has items in a list at {path!r}; give another path with --value.")
    outer = [{name: item for name, item in row.items() if (name,) != before} for row in rows]
    taken = {name for row in outer for name in row}
    names: dict[str | None, str] = {}
    made = []
    groups = []
    for row, items in zip(outer, lists, strict=True):
        fields = [_named(_fields(item, bare=not after), names, taken, before[-1]) for item in items]
        groups.append(fields)
        made += [{**row, **each} for each in fields]
    first = after[0] if after else None
    value = ".".join([names.get(first, str(first)), *map(str, after[1:])])
    places = {name: (*before, None, *(() if of is None else (of,))) for of, name in names.items()}
    labels = [name for name in places if _tells_apart(name, groups)]
    return Opened(made, value, places, sorted(labels, key=lambda name: bool(set(NO_SENSORS) & set(words_of(name)))))


def _parted(named: str, path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The way to the list, and the one in an item."""
    try:
        steps = steps_of(path)
    except PlanError as error:
        raise InputError(f"--value: {error}") from None
    if steps.count(None) != 1 or steps[0] is None or not all(step is None or type(step) is str for step in steps):
        raise InputError(f"{named}: --value {path!r} must go by names into one list, as 'metrics[*].value' does.")
    at = steps.index(None)
    return tuple(map(str, steps[:at])), tuple(map(str, steps[at + 1 :]))


def _fields(item: Any, *, bare: bool) -> Mapping[str | None, Any]:
    if bare:
        return {None: item}
    return {name: inner for name, inner in item.items() if _is_nameable(name)} if isinstance(item, dict) else {}


def _is_nameable(name: str) -> bool:
    return bool(name) and name.isprintable() and not set('{}"') & set(name)


def _named(fields: Mapping[str | None, Any], names: dict[str | None, str], taken: set[str], of: str) -> Row:
    """An item's fields, under names that its message does not have; ``of`` is the list's."""
    for field in fields.keys() - names.keys():
        name = of if field is None else field
        while name in taken:
            name = f"{of}_{name}"
        names[field] = name
        taken.add(name)
    return {names[field]: item for field, item in fields.items()}


def _tells_apart(name: str, groups: Sequence[Sequence[Row]]) -> bool:
    several = [[row.get(name) for row in group] for group in groups if len(group) > 1]
    return bool(several) and all(
        all(isinstance(item, str) for item in items) and len(set(items)) == len(items) for items in several
    )
