"""Numbers that are in lists of the first records: where, and what to do about them. No I/O."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tidemill.app.new.fields_seen import jq_place, shown
from tidemill.app.new.in_lists import Steps
from tidemill.app.new.readings import called_as_reading, worth
from tidemill.app.new.sniffing import numbers_in
from tidemill.formats.payloads import leaves, path_of

__all__ = ["advice_on_lists", "only_in_list", "place_in_lists"]

_RECORDS: Final = 100
"""That are looked into."""


def place_in_lists(rows: Sequence[Mapping[str, Any]]) -> Steps:
    """Where in lists the numbers are that are most like readings; empty when none are.

    >>> place_in_lists([{"device": "D1", "metrics": [{"temp": 20, "fCnt": 3}]}])
    ('metrics', None, 'temp')
    """
    found: dict[Steps, list[float]] = {}
    for row in rows[:_RECORDS]:
        for path, item in leaves(row):
            bare = isinstance(item, list) and None not in path
            steps = (*path, None) if bare else path
            numbers = numbers_in(each for each in (item if bare else [item]) if not isinstance(each, str))
            if numbers and None in steps and all(name is None or name.isprintable() for name in steps):
                found.setdefault(steps, []).extend(numbers)
    return max(found, key=lambda steps: worth((_last(steps),), found[steps], len(rows)), default=())


def _last(steps: Steps) -> str:
    return next(name for name in reversed(steps) if name is not None)


def only_in_list(named: str, steps: Steps, *, of_messages: bool) -> str:
    """What to do, where a source of messages makes a record of each item, and those of files do not."""
    path = path_of(steps)
    if of_messages:
        return f"{named}: the only numbers are in a list; --value {shlex.quote(path)} makes a record of each item."
    place = jq_place(steps[: steps.index(None)])
    items = f"{{{json.dumps(_last(steps))}: {place}[]}}" if steps[-1] is None else f"{place}[]"
    return (
        f"{named}: the numbers at {path!r} are in a list, which no source of files opens. Write a record of each item "
        f"first, for example with: jq -c {shlex.quote(f'del({place}) + {items}')}"
    )


def advice_on_lists(steps: Steps) -> str:
    """A few words on the numbers in lists of messages, which a source makes a record each; none on those called as counters."""
    if not steps or not called_as_reading((_last(steps),)):
        return ""
    return f', and value={{"{_last(steps)}": {shown(path_of(steps))}}} at the source takes those of a list'
