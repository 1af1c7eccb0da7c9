"""`Rolling`: statistics of each sensor's last records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Self

import numpy as np

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.base import Stage
from tidemill.stages.numbers import NUMERIC, numbers_of
from tidemill.stages.state import StageState, StateField
from tidemill.stages.statistics import kernels as places
from tidemill.stages.statistics.blocks import Blocks
from tidemill.stages.statistics.compiled import Kernels, check_slots, load_kernels

__all__ = ["STATISTICS", "Rolling"]

STATISTICS: Final[Mapping[str, int]] = {
    "count": places.COUNT,
    "sum": places.SUM,
    "mean": places.MEAN,
    "std": places.STD,
    "var": places.VAR,
    "min": places.MIN,
    "max": places.MAX,
    "median": places.MEDIAN,
}
"""The statistics by name, and their place in the kernel."""
_LARGEST_WINDOW: Final = 1_000_000  # records


class Rolling(Stage):
    """Statistics over each sensor's last ``window`` records, the present one included; one row out per record in.

    ``columns``      one column or several (float, int or bool)
    ``window``       records, counted per sensor in order of arrival; event times play no part
    ``stats``        of ``"count"``, ``"sum"``, ``"mean"``, ``"std"``, ``"var"``, ``"min"``, ``"max"``, ``"median"``
    ``ddof``         ``std`` and ``var`` divide by ``n - ddof``; 1 as in pandas and SQL, and they are NaN while
                     ``n <= ddof``
    ``min_periods``  values a window must hold to have a result; NaN before
    ``names``        names of the new columns, in the order columns x stats; by default ``normalized_mean_50``

    The numbers are those of ``groupby(sensor)[column].rolling(window, min_periods=min_periods)`` in pandas: a missing
    value (NaN, null, absent field) takes its place in the window and is left out of the statistic; ``count`` counts
    values, and its ``min_periods`` counts records. Two differences: an infinity is a value here (its window's mean is
    infinite and its spread NaN, until it leaves the window), where pandas reads it as missing; and each window is
    summed afresh (two passes for the variance), so an error cannot build up over the stream, and a sensor that stands
    still has exactly its own value as mean and 0 as spread.

    A value depends on its sensor's records alone: not on batches, lanes, restarts or other sensors, bit for bit.
    State: 8 bytes per cell of the window and column, and 8 per sensor. Time: proportional to the window.

    Raises `PlanError` for an unknown statistic, a window that is not a number of records, or a column that is not there.

    >>> from tidemill.stages.rolling import Rolling
    >>> Rolling("value", window=3, stats=["mean", "max"]).adds
    ('value_mean_3', 'value_max_3')
    """

    uses_kernels: ClassVar[bool] = True

    def __init__(
        self,
        columns: str | Sequence[str],
        window: int = 50,
        stats: Sequence[str] = ("mean", "std", "min", "max"),
        *,
        ddof: int = 1,
        min_periods: int = 1,
        names: Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.columns = (columns,) if isinstance(columns, str) else tuple(columns)
        self.stats = (stats,) if isinstance(stats, str) else tuple(stats)
        self.window = window
        self.ddof = ddof
        self.min_periods = min_periods
        self._check()
        own = tuple(f"{column}_{stat}_{window}" for column in self.columns for stat in self.stats)
        self.adds = own if names is None else tuple(names)
        """Names of the columns it adds, in the order columns x stats."""
        if len(self.adds) != len(own) or len(set(self.adds)) != len(own):
            raise PlanError(f"{self.name} needs {len(own)} different names, one for each of {', '.join(own)}.")
        self._rings = [f"ring{i}" for i in range(len(self.columns))]
        self._kernels: Kernels | None = None
        self._blocks: list[Blocks] = []
        self._places = np.full(len(STATISTICS), -1, np.int64)
        for row, stat in enumerate(self.stats):
            self._places[STATISTICS[stat]] = row

    def _check(self) -> None:
        if not _is_count(self.window) or not 1 <= self.window <= _LARGEST_WINDOW:
            raise PlanError(
                f"{self.name}: window={self.window!r} must be a number of records from 1 to {_LARGEST_WINDOW:,}."
            )
        if not _is_count(self.min_periods) or not 0 <= self.min_periods <= self.window:
            raise PlanError(
                f"{self.name}: min_periods={self.min_periods!r} must be from 0 to the window, {self.window}."
            )
        if not _is_count(self.ddof) or self.ddof < 0:
            raise PlanError(f"{self.name}: ddof={self.ddof!r} must be 0, 1 or more.")
        if not self.columns or not self.stats:
            raise PlanError(f"{self.name} needs at least one column and one statistic.")
        for kind, given in (("column", self.columns), ("statistic", self.stats)):
            doubled = sorted({str(one) for one in given if given.count(one) > 1})
            if doubled:
                raise PlanError(f"{self.name}: {kind} {doubled[0]!r} is named twice.")
        for stat in self.stats:
            if stat not in STATISTICS:
                raise PlanError(f"{self.name}: {stat!r} is not a statistic; there are {', '.join(STATISTICS)}.")

    def describe(self) -> str:
        shown = self.columns[0] if len(self.columns) == 1 else list(self.columns)
        return f"Rolling({shown!r}, {self.window!r})"

    def bind(self, schema: Schema) -> Schema:
        for column in self.columns:
            schema.require(column, stage=self.name, kinds=NUMERIC)
        return schema.adding(Field(name, Kind.FLOAT) for name in self.adds)

    def reads(self) -> frozenset[str]:
        return frozenset(self.columns)

    def state_fields(self) -> Mapping[str, StateField]:
        rings = {ring: StateField("float64", (self.window,), cellwise=True) for ring in self._rings}
        return {"head": StateField("int64"), **rings}

    def opened(self) -> Self:
        lane = super().opened()
        lane._kernels = load_kernels()
        lane._blocks = [Blocks(self.window) for _ in self.columns]
        return lane

    def step(self, batch: Batch, state: StageState) -> Batch:
        kernels = self._kernels
        assert kernels is not None, "a stage is opened before it steps"
        heads = state["head"]
        slots = check_slots(state.slots, len(heads))
        # Each array is overwritten only after what stood there is sealed in the undo log.
        kernels.keep(slots, heads, state.reserve("head", len(slots)))
        state.seal()
        first, *further = self._rings
        cells, filled = kernels.advance(slots, heads, state[first], state.reserve(first, len(slots)))
        for ring in further:
            kernels.gather(slots, cells, state[ring], state.reserve(ring, len(slots)))
        state.seal()
        made: dict[str, Column] = {}
        names = iter(self.adds)
        for column, ring, blocks in zip(self.columns, self._rings, self._blocks, strict=True):
            values = numbers_of(batch, column, self.name)
            out = kernels.roll(
                slots,
                cells,
                filled,
                values,
                state[ring],
                self._places,
                blocks,
                ddof=self.ddof,
                min_periods=self.min_periods,
            )
            made.update((next(names), Column(Kind.FLOAT, row)) for row in out)
        return batch.with_columns(made)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
