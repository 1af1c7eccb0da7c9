"""`Lag`: the reading some records ago. `Diff`: what has changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.stages.options import whole_number
from tidemill.stages.recurrence import Recurrence
from tidemill.stages.saved import Saved
from tidemill.stages.state import StateField

__all__ = ["Diff", "Lag"]

_LARGEST: Final = 1_000_000  # records


class Lag(Recurrence):
    """The value of each sensor ``n`` records ago, as pandas' ``groupby(sensor)[column].shift(n)``; NaN before there is one.

    ``columns``  one column or several (float, int or bool); what is added is float, of integers beyond 2**53 the nearest
    ``n``        records, counted per sensor in order of arrival; event times play no part
    ``names``    names of the new columns; by default ``value_lag_1``

    A record whose value is missing is a record too: ``n`` records later its NaN comes back. A value depends on its
    sensor's records alone, not on batches, lanes or restarts. State: 8 bytes per record looked back and column, and 8.
    Time: 0.04 us a record and column, whatever ``n``.

    Raises `PlanError` for an ``n`` that is no number of records, or a column that is not there or no number.

    >>> from tidemill import Plan
    >>> rows = [{"sensor": "S1", "time": n, "value": float(n * n)} for n in range(3)]
    >>> Plan(Lag("value")).apply(rows)[2]
    {'sensor': 'S1', 'time': 2, 'value': 4.0, 'value_lag_1': 1.0}
    """

    def __init__(
        self,
        columns: str | Sequence[str],
        n: int = 1,
        *,
        names: str | Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(columns, [f"{type(self).__name__.lower()}_{n}"], names, name)
        must = f"be a number of records from 1 to {_LARGEST:,}"
        self.n = whole_number(n, name=f"{self.name}: n", must=must, least=1, most=_LARGEST)

    def _fields(self) -> Mapping[str, StateField]:
        return {"head": StateField("int64"), "ring": StateField("float64", (self.n,), cellwise=True)}

    def _follow(self, values: NDArray[np.float64], batch: Batch, own: Saved) -> Sequence[NDArray[Any]]:
        heads = own.rows("head")
        ring = own.ring("ring", "head")
        out = np.empty(len(values))
        own.kernels["lag"](len(values), own.slots, values, heads, ring, self.n, out)
        return [out]


class Diff(Lag):
    """The value less that of ``n`` records ago of the same sensor, as pandas' ``groupby(sensor)[column].diff(n)``.

    NaN where either is missing, and before there are ``n`` records. ``names`` are by default ``value_diff_1``; all else
    is as with `Lag`: what is added (float), the state, the time, and what it raises (`PlanError`).

    >>> from tidemill import Plan
    >>> rows = [{"sensor": "S1", "time": n, "value": float(n * n)} for n in range(3)]
    >>> [row["value_diff_1"] for row in Plan(Diff("value")).apply(rows)]
    [nan, 1.0, 3.0]
    """

    def _follow(self, values: NDArray[np.float64], batch: Batch, own: Saved) -> Sequence[NDArray[Any]]:
        (before,) = super()._follow(values, batch, own)
        with np.errstate(invalid="ignore", over="ignore"):
            return [values - before]
