"""`Rolling`: statistics of each sensor's last records, or last seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.durations import as_named, duration_ns
from tidemill.errors import PlanError
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.base import Entered, OnError, Stage
from tidemill.stages.numbers import NUMERIC, numbers_of
from tidemill.stages.options import names_of, whole_number
from tidemill.stages.state import StageState, StateField
from tidemill.stages.statistics.compiled import Kernels, load_kernels
from tidemill.stages.statistics.count_windows import CountWindows
from tidemill.stages.statistics.time_windows import TimeWindows
from tidemill.stages.statistics.wanted import STATISTICS, Statistic, Wanted, quantile
from tidemill.stages.window_functions import Function, WindowFunctions
from tidemill.stages.windows import Span, worked

__all__ = ["STATISTICS", "Rolling", "quantile"]

_MOST_RECORDS: Final = 1_000_000
_RECORDS_OF_A_SPAN: Final = 1_024
"""Records of a sensor that a window of time is taken from, unless the user says how many."""


class Rolling(Stage):
    """Statistics over each sensor's last ``window`` records or seconds, the present one included; one row out per record in.

    ``columns``      one column or several (float, int or bool); integers beyond 2**53 are read as the nearest float64
    ``window``       a number of records, counted per sensor in order of arrival; or a duration (``"30s"``, ``"500ms"``,
                     ``"5min"``, a timedelta): the sensor's records with an event time in ``(t - window, t]`` among those
                     that have arrived, where t is the record's own
    ``stats``        names of the table below, `quantile`, and functions of your own: each gets the windows of a column, a
                     read-only float64 array of shape ``(rows, window)``, or ``(rows, max_records)`` of a window of time:
                     the oldest reading left, the record itself rightmost, NaN before the window's first and where a value
                     is missing. It returns ``(rows,)`` numbers, each of its own row alone; see `MapWindows`, also for
                     what a failure costs. Its column has the function's name: ``normalized_peak_to_peak_50``
    ``ddof``         ``std``, ``var`` and ``zscore`` divide by ``n - ddof``; 1 as in pandas and SQL
    ``min_periods``  values a window must hold to have a result; NaN before
    ``max_records``  most records of a sensor that a window of time is taken from: its newest by arrival. A window that may
                     lack a record for it is counted as ``window_overflow``; the log says so once, and `Plan.apply` warns
    ``max_gap_s``    a silence longer than this (seconds, or a duration) empties the sensor's window before the record
                     that ends it goes in; a record that comes late ends no silence
    ``names``        names of the new columns, in the order columns x stats; by default ``normalized_mean_50``,
                     ``normalized_q95_30s``
    ``on_error``     what becomes of a record on which such a function fails: ``"dead_letter"`` (default), ``"nan"`` or ``"stop"``
    ``deadline_s``   seconds that one call of it may take; this and ``on_error`` as `Stage` has them
    ``name``         shown in errors and reports, in place of ``Rolling('value', 50)``

    With x the n values of the window that are not missing, in order of arrival (in a window of time: of event time,
    equal times by arrival), and t their event times:

    ==================  =============================================  ==============================================
    statistic           is                                             NaN when
    ==================  =============================================  ==============================================
    ``count``           n                                              fewer than ``min_periods`` *records*
    ``sum``, ``mean``   sum(x), sum(x) / n                             n = 0 (the sum: only by ``min_periods``)
    ``var``, ``std``    sum((x - mean)**2) / (n - ddof), its root      n <= ddof, or an infinity is among them
    ``min``, ``max``    least and greatest                             n = 0
    ``range``           max - min                                      n = 0
    ``median``          `quantile` (0.5)                               n = 0
    ``quantile(q)``     value at place (n - 1) * q, interpolated       n = 0
    ``rms``             sqrt(sum(x**2) / n)                            n = 0
    ``first``, ``last`` oldest and newest                              n = 0
    ``delta``           last - first                                   n = 0
    ``rate``            delta / (t_last - t_first), per second         the two times are the same
    ``slope``           sum((t - mean_t) * (x - mean)) /               there are not two different times, or an
                        sum((t - mean_t)**2), per second               infinity is among them
    ``zscore``          (the record's own value - mean) / std          it is missing, or std is 0 or NaN
    ==================  =============================================  ==============================================

    (slope: least squares, Draper and Smith, Applied Regression Analysis, 1.2.) All are NaN while n < ``min_periods``.

    The numbers are those of ``groupby(sensor)[column].rolling(window, min_periods=min_periods)`` in pandas where it has the
    statistic: a missing value (NaN, null, absent field) takes its place in the window and is left out. Two differences: an
    infinity is a value here (its window's mean is infinite and its spread NaN, until it leaves the window), where pandas
    reads it as missing (a stage before has made it: records that hold one are refused); and each window is summed afresh, so
    an error cannot build up over the stream, and a sensor that stands still has exactly its own value as mean and 0 as spread.
    The variance is made in two passes over a window of time; in one of records it is put together of blocks, each about
    its own mean, with a relative error of about 1e-16 mean / std: of 1e9 with a noise of 1e-3, one part in 10,000. Where
    that matters, take a constant away before. Of values beyond 1e154 their squares are too large for float64, and ``rms``, ``var``
    and what is made of them are infinite or NaN (below 1e-154: 0); so may a sum be, and a mean, of values near 1e308.

    A value depends on its sensor's records alone: not on batches, lanes, restarts or other sensors, bit for bit. A record
    that comes late has the window that ends at its own time; the windows of those before it are not made again.

    State for each sensor: 8 bytes per column and record of the window, and 8 more per record where event times are needed
    (a window of time, ``rate``, ``slope``). A lane also keeps what it knows of them: a tenth of that or 128 bytes, and for
    quantiles as much again. Time per record: the root of the window; in windows of time the window (see docs/statistics.md).

    Raises `PlanError` for an unknown statistic, a window that is neither a number of records nor a duration, or a column
    that is not there.

    >>> from tidemill.stages.rolling import Rolling, quantile
    >>> Rolling("value", window=3, stats=["mean", quantile(0.95)]).adds
    ('value_mean_3', 'value_q95_3')
    >>> Rolling("value", window="30s", stats=["mean"], max_gap_s=3600).adds
    ('value_mean_30s',)
    >>> def peak_to_peak(windows):
    ...     return windows.max(axis=1) - windows.min(axis=1)
    >>> Rolling("value", window=50, stats=["mean", peak_to_peak]).adds
    ('value_mean_50', 'value_peak_to_peak_50')
    """

    uses_kernels: ClassVar[bool] = True

    def __init__(
        self,
        columns: str | Sequence[str],
        window: int | str | timedelta = 50,
        stats: Sequence[Statistic | Function] | Statistic | Function = ("mean", "std", "min", "max"),
        *,
        ddof: int = 1,
        min_periods: int = 1,
        max_records: int = _RECORDS_OF_A_SPAN,
        max_gap_s: float | str | timedelta | None = None,
        names: Sequence[str] | None = None,
        name: str | None = None,
        on_error: OnError | None = None,
        deadline_s: float | None = None,
    ) -> None:
        super().__init__(name=name, on_error=on_error or "dead_letter", deadline_s=deadline_s)
        self.columns = names_of(columns, name="Rolling: columns")
        self.stats = tuple(stats) if isinstance(stats, Sequence) and not isinstance(stats, str) else (stats,)
        self.window = window
        self.ddof = ddof
        self.min_periods = min_periods
        self.max_records = max_records
        self.max_gap_s = max_gap_s
        self._check()
        self._functions = WindowFunctions(self.stats, self.name, min_periods=self.min_periods)
        if not self._functions and (on_error is not None or deadline_s is not None):
            raise PlanError(f"{self.name}: on_error and deadline_s are for functions of your own; stats names none.")
        wanted = Wanted([stat for stat in self.stats if not callable(stat)], self.name, windows=bool(self._functions))
        suffix = self.window if isinstance(self.window, int) else as_named(self.window, name=f"{self.name}: window")
        stats_named = self._functions.named(wanted.names, anyhow=names is not None)
        own = tuple(f"{column}_{stat}_{suffix}" for column in self.columns for stat in stats_named)
        self._renamed = names is not None
        self.adds = own if names is None else names_of(names, name=f"{self.name}: names")
        """Names of the columns it adds, in the order columns x stats."""
        if len(self.adds) != len(own) or len(set(self.adds)) != len(own):
            raise PlanError(f"{self.name} needs {len(own)} different names, one for each of {', '.join(own)}.")
        self._windows = self._windowed(wanted)
        self.runs_user_code = bool(self._functions)  # type: ignore[misc] # of a Rolling, its statistics decide
        self._kernels: Kernels | None = None
        self._rewritten = 0
        self._whole = True

    def _check(self) -> None:
        if not self.columns or not self.stats:
            raise PlanError(f"{self.name} needs at least one column and one statistic.")
        for kind, given in (("column", self.columns), ("statistic", self.stats)):
            doubled = sorted({str(one) for one in given if given.count(one) > 1})
            if doubled:
                raise PlanError(f"{self.name}: {kind} {doubled[0]!r} is named twice.")
        must = f"be a number of records from 1 to {_MOST_RECORDS:,}"
        name = f"{self.name}: max_records"
        self.max_records = whole_number(self.max_records, name=name, must=must, least=1, most=_MOST_RECORDS)
        name = f"{self.name}: window"
        if isinstance(self.window, str | timedelta):
            duration_ns(self.window, name=name, number="a whole number, such as 50, of records")
        else:
            must = f'{must}, or a duration such as "30s"'
            self.window = whole_number(self.window, name=name, must=must, least=1, most=_MOST_RECORDS)
        most, what = self._most_records()
        must, name = f"be from 0 to {what}, {most}", f"{self.name}: min_periods"
        self.min_periods = whole_number(self.min_periods, name=name, must=must, most=most)
        self.ddof = whole_number(self.ddof, name=f"{self.name}: ddof", must="be 0, 1 or more")

    def _most_records(self) -> tuple[int, str]:
        """How many a window can hold, and what says so."""
        window = self.window
        if not isinstance(window, int):
            return self.max_records, "max_records"
        if self.max_records != _RECORDS_OF_A_SPAN:
            raise PlanError(f"{self.name}: max_records bounds windows of time; this one is of {window} records.")
        return window, "the window"

    def _windowed(self, wanted: Wanted) -> CountWindows | TimeWindows:
        gap_ns = 0
        if self.max_gap_s is not None:
            gap_ns = duration_ns(self.max_gap_s, name=f"{self.name}: max_gap_s")
        columns, ddof, min_periods = len(self.columns), self.ddof, self.min_periods
        if isinstance(self.window, int):
            return CountWindows(columns, self.window, wanted, ddof=ddof, min_periods=min_periods, gap_ns=gap_ns)
        span_ns = duration_ns(self.window, name=f"{self.name}: window")
        room = self.max_records
        return TimeWindows(columns, span_ns, room, wanted, ddof=ddof, min_periods=min_periods, gap_ns=gap_ns)

    def describe(self) -> str:
        shown = self.columns[0] if len(self.columns) == 1 else list(self.columns)
        return f"Rolling({shown!r}, {self.window!r})"

    @property
    def needs_times(self) -> bool:
        return self._windows.needs_times

    def bind(self, schema: Schema) -> Schema:
        for column in self.columns:
            schema.require(column, stage=self.name, kinds=NUMERIC)
        fields = [Field(name, Kind.FLOAT) for name in self.adds]
        return schema.adding(fields) if self._renamed else schema.adding_new(fields, stage=self.name)

    def reads(self) -> frozenset[str]:
        return frozenset(self.columns)

    def state_fields(self) -> Mapping[str, StateField]:
        return self._windows.state_fields()

    def known_by(self) -> Mapping[str, object]:
        """Its windows; which statistics are taken of them is another matter."""
        if isinstance(self.window, int):
            return {"columns": self.columns, "window": self.window, "max_gap_s": self._gap}
        span = f"{duration_ns(self.window, name='window')}ns"
        return {"columns": self.columns, "window": span, "max_records": self.max_records, "max_gap_s": self._gap}

    @property
    def _gap(self) -> str | None:
        return None if self.max_gap_s is None else f"{duration_ns(self.max_gap_s, name='max_gap_s')}ns"

    def hint(self, what: str) -> str | None:
        if what != "window_overflow":
            return None
        return (
            f"{self.name} takes a window from its sensor's newest {self.max_records:,} records; where more come within it, say "
            "how many with max_records="
        )

    @property
    def kept_bytes_per_key(self) -> int:
        """Bytes that a lane keeps of each sensor beside its state, to be made anew in a new lane."""
        return self._windows.kept_bytes_per_key

    def opened(self) -> Self:
        lane = super().opened()
        lane._kernels = load_kernels()
        lane._windows = self._windows.opened()
        lane._functions = self._functions.opened()
        return lane

    def admit(self, keys: Sequence[str], first_slot: int) -> None:
        self._windows.admit(first_slot, len(keys))

    def step(self, batch: Batch, state: StageState) -> Batch:
        if self._functions:
            return worked(batch, self.enter(batch, state))
        columns = self._columns(batch)
        made = self._rolled(batch, state, columns)
        self._whole = True
        return batch.with_columns({
            name: Column(Kind.FLOAT, array) for name, array in zip(self.adds, chain(*made), strict=True)
        })  # fmt: skip

    def enter(self, batch: Batch, state: StageState) -> Iterator[Entered]:
        assert self._kernels is not None, "a stage is opened before it steps"
        columns = self._columns(batch)
        made = self._rolled(batch, state, columns)
        for span in self._windows.spans(self._kernels, state, columns):
            yield Entered(span.start, span.stop, partial(self._work, made, span))
            del span
        self._whole = True

    def _columns(self, batch: Batch) -> list[NDArray[np.float64]]:
        return [numbers_of(batch, column, self.name) for column in self.columns]

    def _rolled(
        self, batch: Batch, state: StageState, columns: list[NDArray[np.float64]]
    ) -> list[list[NDArray[np.float64]]]:
        """Per column its statistics by name, in their order. Until ``_whole`` is set again, the rings are in between."""
        kernels = self._kernels
        assert kernels is not None, "a stage is opened before it steps"
        # What is known of the rings is kept from batch to batch, as long as nothing else has changed them.
        if state.rewritten != self._rewritten or not self._whole:
            self._windows.forget()
            self._rewritten = state.rewritten
        self._whole = False
        moments = np.ascontiguousarray(batch.time) if self._windows.needs_times else None
        return self._windows.step(kernels, state, columns, moments)

    def _work(self, made: list[list[NDArray[np.float64]]], span: Span, part: Batch, at: int) -> Batch:
        columns: dict[str, Column] = {}
        names = [self.adds[n : n + len(self.stats)] for n in range(0, len(self.adds), len(self.stats))]
        for own, by_name, windows in zip(names, made, span.of(part, at), strict=True):
            arrays = [array[at : at + len(part)] for array in by_name]
            columns.update(zip(own, self._functions.among(arrays, own, windows, part), strict=True))
        return part.with_columns(columns)
