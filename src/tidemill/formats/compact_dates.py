"""Whether times are days written as one number, such as 20240101, which is read as an epoch. No I/O."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from tidemill.batch import Batch
from tidemill.formats.roles import Roles
from tidemill.printable import quoted

__all__ = ["CompactDates"]

_RECORDS: Final = 100
"""The first ones, which are looked at."""


class CompactDates:
    """Looks at the first records with a time, of a source that was given no ``time_format=``."""

    def __init__(self) -> None:
        self._over = False

    def look(self, batch: Batch, roles: Roles) -> str:
        """The next records. A sentence when the times of the first ones are all days of this century; else nothing, and no more."""
        if self._over or roles.times.time_format is not None or roles.time not in batch.columns or not len(batch):
            return ""
        self._over = True
        items = batch.columns[roles.time].slice(0, _RECORDS).to_list()
        if not all(map(_is_day, items)):
            return ""
        assert batch.time_ns is not None
        read = dt.datetime.fromtimestamp(int(batch.time_ns[0]) // 10**9, dt.UTC)
        return (
            f"the times in field {quoted(roles.time)}, {items[0]} the first of them, look like days and are read as seconds since 1970, "
            f"which makes the first one {read:%Y-%m-%dT%H:%M:%SZ}. If they are days, say time_format='%Y%m%d'."
        )


def _is_day(item: Any) -> bool:
    text = str(item)
    if isinstance(item, bool) or not isinstance(item, int | str) or len(text) != 8 or not text.startswith("20"):
        return False
    try:
        dt.datetime.strptime(text, "%Y%m%d")  # noqa: DTZ007 - it is not kept
    except ValueError:
        return False
    return True
