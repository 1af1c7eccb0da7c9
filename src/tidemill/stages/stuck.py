"""`Stuck`: sensors that say the same thing again and again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.errors import PlanError
from tidemill.schema import Kind
from tidemill.stages.options import is_number, whole_number
from tidemill.stages.recurrence import Recurrence
from tidemill.stages.saved import Saved
from tidemill.stages.state import StateField

__all__ = ["Stuck"]

_LARGEST: Final = 1_000_000  # readings


class Stuck(Recurrence):
    """Whether the last ``n`` readings of the sensor, the present one included, are the same: a bool column.

    ``columns``    one column or several (float, int or bool). Integers beyond 2**53 are read as the nearest float64, so that
                   neighbours among them are the same
    ``n``          readings, 2 or more
    ``tolerance``  the same means: the greatest of them less the least is at most this, in the column's unit
    ``names``      names of the new columns; by default ``value_stuck``

    False before there are ``n`` readings. A record without a value is no reading: its row says what the readings so far
    say. A value depends on its sensor's records alone, not on batches, lanes or restarts. State: 32 bytes per sensor and
    column, and with a tolerance 8 more for each of the readings. Time: 0.03 us a record whatever ``n``, but for a
    reading that ends a run within the tolerance: then the last ``n`` are looked through.

    Raises `PlanError` for an ``n`` or ``tolerance`` that makes no sense, or a column that is not there or no number.

    >>> from tidemill import Plan
    >>> rows = [{"sensor": "S1", "time": n, "value": value} for n, value in enumerate([7.0, 7.0, 7.0, 8.0])]
    >>> [row["value_stuck"] for row in Plan(Stuck("value", 3)).apply(rows)]
    [False, False, True, False]
    """

    makes: ClassVar[Kind] = Kind.BOOL

    def __init__(
        self,
        columns: str | Sequence[str],
        n: int = 10,
        tolerance: float = 0.0,
        *,
        names: str | Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(columns, ["stuck"], names, name)
        must = f"be a number of readings from 2 to {_LARGEST:,}"
        self.n = whole_number(n, name=f"{self.name}: n", must=must, least=2, most=_LARGEST)
        if not is_number(tolerance) or not 0 <= tolerance < math.inf:
            raise PlanError(f"{self.name}: tolerance={tolerance!r} must be 0 or more, in the column's unit.")
        self.tolerance = float(tolerance)
        self._limits = np.array([self.tolerance])
        # Where only equal values count, the run that ends with another value is that value alone: nothing to look up.
        self._window = self.n - 1 if tolerance else 0

    def _fields(self) -> Mapping[str, StateField]:
        fields = {"head": StateField("int64"), "run": StateField("float64", (3,))}
        if self._window:
            fields["ring"] = StateField("float64", (self._window,), cellwise=True)
        return fields

    def _follow(self, values: NDArray[np.float64], batch: Batch, own: Saved) -> Sequence[NDArray[Any]]:
        heads, rows = own.rows("head"), own.rows("run")
        ring = own.ring("ring", "head") if self._window else rows
        out = np.empty(len(values), np.int64)
        own.kernels["stuck"](len(values), own.slots, values, heads, rows, ring, self._window, self.n, self._limits, out)
        return [out != 0]
