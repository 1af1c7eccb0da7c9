"""`Ewm`: exponentially weighted statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.durations import as_named, duration_ns
from tidemill.errors import PlanError
from tidemill.stages.options import is_number, names_of, whole_number
from tidemill.stages.recurrence import Recurrence
from tidemill.stages.saved import Saved
from tidemill.stages.state import StateField
from tidemill.stages.statistics.recurrences import EWM_STATISTICS, WEIGHED_CELLS

__all__ = ["Ewm"]

_NONE: Final = np.zeros(1, np.int64)  # in place of the times, where they do not count


class Ewm(Recurrence):
    """Exponentially weighted mean, variance and standard deviation of each sensor's readings, the newest weighing most.

    ``columns``      one column or several (float, int or bool)
    ``alpha``        0 < alpha <= 1: what a record leaves of the weights before it is ``1 - alpha``; or instead
    ``span``         in records, 1 or more: ``alpha = 2 / (span + 1)``; or instead
    ``halflife``     in event time (``"5s"``, a number of seconds, a timedelta), for irregular sampling: a reading weighs
                     half as much as one that is so much younger
    ``stats``        of ``"mean"``, ``"var"``, ``"std"``
    ``adjust``       True: divide by the sum of the weights, so that the first readings count no more than they should.
                     False: ``mean = (1 - alpha) * mean + alpha * value``, from the first reading on; with a half-life,
                     ``alpha`` is ``1 - 0.5 ** (time since the last reading / halflife)``
    ``bias``         False: ``var`` and ``std`` are corrected for the weights being few, and NaN until two readings weigh
    ``min_periods``  readings there must have been; NaN before
    ``names``        names of the new columns, in the order columns x stats; by default ``value_ewm_mean_span20``,
                     ``value_ewm_mean_alpha0.1``, ``value_ewm_mean_5s``

    The numbers are those of ``groupby(sensor)[column].ewm(...)`` in pandas, with its ``ignore_na=False``: a record without
    a value makes the readings before it weigh less, and has the statistics of those. pandas has no ``var`` with times;
    here it is the same formula with the weights of the half-life. A reading that arrives late, with a time before the
    newest, has the weight that its age gives it (with ``adjust=False`` none), and moves no other's. What is infinite or
    beyond 1e140 counts as missing, since its square would stay in the state for ever.

    Each value follows from the one before by a weighted mean of two numbers, which lets old errors decay as it does old
    readings: they do not build up. A value depends on its sensor's records alone, not on batches, lanes or restarts,
    bit for bit. State: 40 bytes per sensor and column, with a half-life 48.
    Time: 0.03 us a record whatever the span, with all three statistics 0.06, with a half-life 0.2.

    Raises `PlanError` unless exactly one of the three is given, or for one that makes no sense.

    Source: pandas, ``pandas/_libs/window/aggregations.pyx`` (``ewm``, ``ewmcov``); but for the correction of the variance
    the products of different readings' weights are summed, not the squares subtracted, which cancel after a silence.

    >>> from tidemill import Plan
    >>> rows = [{"sensor": "S1", "time": time, "value": value} for time, value in [(0, 0.0), (5, 3.0), (5, 6.0)]]
    >>> [row["value_ewm_mean_5s"] for row in Plan(Ewm("value", halflife="5s", stats=["mean"])).apply(rows)]
    [0.0, 2.0, 3.6]
    """

    def __init__(
        self,
        columns: str | Sequence[str],
        *,
        alpha: float | None = None,
        span: float | None = None,
        halflife: str | float | timedelta | None = None,
        stats: str | Sequence[str] = ("mean",),
        adjust: bool = True,
        bias: bool = False,
        min_periods: int = 1,
        names: str | Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        self.adjust = adjust
        self.bias = bias
        shown = name or f"Ewm({columns!r})"
        self.stats = names_of(stats, name=f"{shown}: stats", what="statistic")
        self.min_periods = whole_number(min_periods, name=f"{shown}: min_periods", must="be a number of readings")
        self._check(shown)
        ending, self._weights = _weights(shown, alpha, span, halflife, adjust=adjust)
        self.timed = halflife is not None
        super().__init__(columns, [f"ewm_{stat}_{ending}" for stat in self.stats], names, name)
        self._places = np.array([self.stats.index(stat) if stat in self.stats else -1 for stat in EWM_STATISTICS])

    def _check(self, shown: str) -> None:
        for stat in self.stats:
            if stat not in EWM_STATISTICS:
                raise PlanError(f"{shown}: {stat!r} is not one of its statistics, {', '.join(EWM_STATISTICS)}.")
        if not self.stats or len(set(self.stats)) < len(self.stats):
            raise PlanError(f"{shown} needs statistics, each once; it was given {list(self.stats)}.")

    @property
    def needs_times(self) -> bool:
        return self.timed

    def known_by(self) -> Mapping[str, object]:
        return {"columns": self.columns, "weights": self._weights, "adjust": self.adjust, "timed": self.timed}

    def _fields(self) -> Mapping[str, StateField]:
        fields = {"row": StateField("float64", (WEIGHED_CELLS,))}
        if self.timed:
            fields["time"] = StateField("int64")
        return fields

    def _follow(self, values: NDArray[np.float64], batch: Batch, own: Saved) -> Sequence[NDArray[Any]]:
        rows = own.rows("row")
        lasts, times = (own.rows("time"), np.ascontiguousarray(batch.time)) if self.timed else (_NONE, _NONE)
        out = np.empty((len(self.stats), len(values)))
        own.kernels["ewm"](
            len(values),
            own.slots,
            values,
            times,
            rows,
            lasts,
            self._weights,
            self.timed,
            self.adjust,
            self.bias,
            self.min_periods,
            self._places,
            out,
        )
        return list(out)


def _weights(
    shown: str,
    alpha: float | None,
    span: float | None,
    halflife: str | float | timedelta | None,
    *,
    adjust: bool,
) -> tuple[str, NDArray[np.float64]]:
    """The end of the columns' names; and what a record leaves of older weights, a value's own, and the decay per ns."""
    if sum(given is not None for given in (alpha, span, halflife)) != 1:
        raise PlanError(f"{shown} needs one of alpha=, span= (in records) and halflife= (in time).")
    if halflife is not None:
        label = f"{shown}: halflife"
        return as_named(halflife, name=label), np.array([1.0, 1.0, math.log(2) / duration_ns(halflife, name=label)])
    if span is not None:
        if not is_number(span) or not 1 <= span < math.inf:
            raise PlanError(f"{shown}: span={span!r} must be a number of records, 1 or more.")
        ending, own = f"span{span}", 2.0 / (span + 1.0)
    else:
        if not is_number(alpha) or not 0 < alpha <= 1:
            raise PlanError(f"{shown}: alpha={alpha!r} must be more than 0, and at most 1.")
        ending, own = f"alpha{alpha}", float(alpha)
    return ending, np.array([1.0 - own, 1.0 if adjust else own, 0.0])
