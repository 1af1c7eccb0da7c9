"""Whether timestamps count in another unit than the one they are read in. No I/O."""

from __future__ import annotations

from typing import Final

import numpy as np

from tidemill.batch import Batch
from tidemill.formats.influx_lines import PRECISIONS, TIME
from tidemill.formats.roles import Roles
from tidemill.formats.times import of_this_century

__all__ = ["OtherUnit"]

_RECORDS: Final = 100
"""The first ones with a timestamp, which are looked at."""
_CALLED: Final = {"ns": "nanoseconds", "us": "microseconds", "ms": "milliseconds", "s": "seconds"}
_TOO_EARLY_NS: Final = 631_152_000 * 10**9
"""1990, before which nothing sent line protocol."""


class OtherUnit:
    """Looks at the first records with a timestamp, of a source whose format says nothing of the unit.

    ``unit_ns``  nanoseconds of the unit in which they are read
    """

    def __init__(self, unit_ns: int) -> None:
        self._unit_ns = unit_ns
        self._over = False

    def look(self, batch: Batch, roles: Roles) -> str:
        """The next records. A sentence when all are of long ago, and would not be in a larger unit; else nothing, and no more."""
        if self._over or roles.time != TIME or TIME not in batch.columns or not len(batch):
            return ""
        self._over = True
        assert batch.time_ns is not None
        times = batch.time_ns[:_RECORDS]
        if (times >= _TOO_EARLY_NS).any():
            return ""
        read_as = next(unit for precision, unit in _CALLED.items() if PRECISIONS[precision] == self._unit_ns)
        for precision, unit in _CALLED.items():
            larger = times.astype(np.float64) * (PRECISIONS[precision] / self._unit_ns)
            if of_this_century(larger).all():
                return (
                    f"the timestamps are read as {read_as}, which makes the first one {_shown(int(times[0]))}; as "
                    f'{unit} it would be {_shown(int(larger[0]))}. If they are {unit}, say precision="{precision}".'
                )
        return ""


def _shown(time_ns: int) -> str:
    return f"{np.datetime64(time_ns, 'ns').astype('datetime64[s]')}Z"
