"""Records that lack a field that they need, or bring one that is too many: found before they teach a column its kind. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from operator import contains
from typing import Any, Final

from tidemill.formats.roles import Known, Roles
from tidemill.kinds import Kinds
from tidemill.letters import BAD_TIME, MISSING_FIELD, NO_KEY, OVERSIZE, Reject
from tidemill.rows import Fields

__all__ = ["MOST_NAMES", "beyond_names", "lacking"]

MOST_NAMES: Final = 4_096
"""Names of fields that a source learns of its records: after that, a record with another one is refused."""


def lacking(
    rows: Sequence[Any],
    early: Mapping[int, Reject],
    roles: Roles,
    declared: Iterable[str],
    known: Known | None,
    fields: Fields | None,
) -> list[tuple[int, Reject]]:
    """Records without a key, a time or a ``declared`` field, those that are rejected ``early`` left out."""
    everywhere = fields[0] if fields is not None and fields[2] is None else ()
    needed = [(name, MISSING_FIELD, f"the record has no field {name!r}, which is declared") for name in declared]
    if not roles.arrival:
        needed.append((roles.time, BAD_TIME, f"the record has no field {roles.time!r}, which holds its time"))
    if roles.fallback is None:
        given = known if isinstance(known, Mapping) or known is None else known[0] if known else None
        needed += [
            (name, NO_KEY, f"the record has no field {name!r}, which names the sensor")
            for name in roles.key_fields
            if name not in (given or {})
        ]
    found = []
    for name, code, reason in needed:
        if name in everywhere or (not early and all(map(contains, rows, repeat(name)))):
            continue
        found += [
            (place, Reject(place, code, reason))
            for place, row in enumerate(rows)
            if place not in early and name not in row
        ]
    return found


def beyond_names(
    rows: Sequence[Any], early: Mapping[int, Reject], kinds: Kinds, fields: Fields | None
) -> Sequence[Reject]:
    """Records that bring a new field when `MOST_NAMES` are known: what a source remembers must not grow for ever."""
    names = fields[0] if fields is not None else {name for row in rows if type(row) is dict for name in row}
    if not (new := kinds.unknown(names)) or kinds.count + len(new) <= MOST_NAMES:
        return ()
    found = []
    learned: set[str] = set()
    for place, row in enumerate(rows):
        if place in early:
            continue
        new = kinds.unknown(name for name, item in row.items() if item is not None) - learned
        if new and kinds.count + len(learned) >= MOST_NAMES:
            other = next(name for name in row if name in new)
            reason = f"the field {other!r} is new, and the records of this source have had {MOST_NAMES:,} others"
            found.append(Reject(place, OVERSIZE, reason))
        else:
            learned |= new
    return found
