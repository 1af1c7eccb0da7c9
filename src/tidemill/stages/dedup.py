"""`Dedup`: each record once, however often it arrives."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.durations import duration_ns
from tidemill.errors import PlanError
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.base import Stage, Step
from tidemill.stages.numbers import NUMERIC, numbers_of
from tidemill.stages.options import whole_number
from tidemill.stages.saved import Saved
from tidemill.stages.state import StageState, StateField
from tidemill.stages.statistics.compiled import Kernels, load_kernels
from tidemill.stages.statistics.recurrences import DUPLICATE, LATE, MOST_REORDER, SEEN_CELLS, UNCHECKED

__all__ = ["Dedup"]

_MOST_RECORDS: Final = 1_000_000
_MAX_RECORDS: Final = 256
_REORDER: Final = 32
_LARGEST: Final = 2**53  # up to which float64 has every whole number


class Dedup(Stage):
    """Lets each record go on once; a copy of one that went on is dropped, and counted as deduplicated.

    **By key and time** (``Dedup()``): a copy has the sensor and the event time of a record that went on before. It is for
    records with a time of their own: one that has the time of its arrival does not have that of its copy.

    ``within``       how late a copy may come: its time is at most this before the newest of its sensor; ``"10min"``
    ``max_records``  so many times are remembered of each sensor, 256: at least as many as it has in twice ``within``
    ``late``         what becomes of a record so old that a copy of it may have gone on and been forgotten: ``"keep"``
                     (default), it goes on unless it is remembered, and is counted as ``unchecked``; ``"drop"``, it is
                     dropped and counted as late, so that nothing goes on twice, ever

    What is remembered are the last ``max_records`` times that went on, without those that came when a later one had been
    forgotten: they may be copies, and push out none of those by which copies are known. So of a block that is delivered
    again everything is dropped that is remembered, however long the block is, and the rest is ``unchecked``. Which
    (sensor, time) go on, and that each does so once, does not depend on the order of arrival, as long as it is within
    ``within``; of copies that differ the first to arrive goes on.

    Times from the far future are no measure any more once ``max_records`` others have come; until then those are
    ``unchecked``. With more than ``max_records`` of them, or with ``late="drop"`` after the first, all others of the
    sensor are ``unchecked`` or late until that time: refuse such times before (`Filter`).

    **By a sequence counter** (``Dedup(counter="fCnt")``): a copy has the sensor and the counter of a record that went on.
    What is missing and where a sensor began anew shows too:

    ``counter``      a column of whole numbers, which each sensor increases by 1 from record to record
    ``modulo``       the counter's values are 0 to ``modulo - 1``, and then 0 again; None when it does not come round
    ``max_gap``      the most that the counter may run ahead of the newest; more is taken for a reset. By default a
                     quarter of ``modulo`` (of 65,536: 16,384, LoRaWAN's MAX_FCNT_GAP), or no limit without one
    ``reorder``      a counter so far behind the newest or less, 32, at most 62, is an old record: a copy if it was seen,
                     or else a record that comes late and goes on. Further behind it is a reset
    ``within``       so is a counter behind the newest in a record more than this after the newest by event time;
                     ``"1min"``. A sensor that starts again sooner, with counters that small, looks as if it repeated.
                     The newest counter itself, come again, is a copy however much later it comes: of a sensor that
                     starts anew before each record, and says 0 each time, the first record alone goes on
    ``names``        the columns that it adds: how many records the row shows to have been lost before it (int; -1 in the
                     row of a record that was counted as lost and came late), and whether the counter began anew there
                     (bool). By default ``("lost", "reset")``; None adds none

    The sum of ``lost`` is what is missing, whatever the order of arrival within ``reorder``; it is in the run's counters
    as ``lost``, the resets as ``resets``. Between resets, which counters go on does not depend on that order either.
    A record without a counter, or whose counter is not a whole number in the range (without ``modulo`` up to 2**53), goes on and is counted as
    ``unchecked``. Event times play no other part.

    What goes on depends on the sensor's own records, not on batches, lanes or restarts. State per sensor: by time 32 bytes
    and 8 for each of ``max_records``, by counter 32. Time: 0.08 us a record; by time, for records that are out of order,
    proportional to ``max_records``.

    Raises `PlanError` for an option that makes no sense or belongs to the other way, or a column that is not there.

    >>> from tidemill import Plan
    >>> rows = [{"sensor": "S1", "time": 100 * n, "n": counter} for n, counter in enumerate([7, 8, 8, 11, 0])]
    >>> [(row["n"], row["lost"], row["reset"]) for row in Plan(Dedup(counter="n")).apply(rows)]
    [(7, 0, False), (8, 0, False), (11, 2, False), (0, 0, True)]
    >>> rows = [{"sensor": "S1", "time": time} for time in [10, 20, 10, 30]]
    >>> [row["time"] for row in Plan(Dedup()).apply(rows)]
    [10, 20, 30]
    """

    uses_kernels: ClassVar[bool] = True

    drops: ClassVar[bool] = True

    def __init__(
        self,
        *,
        within: str | float | timedelta | None = None,
        max_records: int | None = None,
        late: Literal["keep", "drop"] | None = None,
        counter: str | None = None,
        modulo: int | None = None,
        max_gap: int | None = None,
        reorder: int | None = None,
        names: tuple[str, str] | None = ("lost", "reset"),
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.counter = counter
        default = "10min" if counter is None else "1min"
        self.within_ns = duration_ns(default if within is None else within, name=f"{self.name}: within")
        by_time = {"max_records": max_records, "late": late}
        by_counter = {"modulo": modulo, "max_gap": max_gap, "reorder": reorder}
        for option, value in (by_time if counter is not None else by_counter).items():
            if value is not None:
                other = "without a counter" if counter is not None else "by a counter"
                raise PlanError(f"{self.name}: {option}={value!r} is for Dedup {other}.")
        self.max_records = self._count("max_records", max_records, _MAX_RECORDS, 1, _MOST_RECORDS)
        if late not in (None, "keep", "drop"):
            raise PlanError(f'{self.name}: late={late!r} is not one of "keep", "drop".')
        self.late = late or "keep"
        self.modulo = self._count("modulo", modulo, 0, 2, _LARGEST)
        self.max_gap = self._count("max_gap", max_gap, *self._gaps())
        self.reorder = self._count("reorder", reorder, min(_REORDER, self._most_behind()), 0, self._most_behind())
        self.adds = () if counter is None or names is None else tuple(names)
        """Names of the columns it adds."""
        if self.adds and (isinstance(names, str) or len(set(self.adds)) != 2):
            raise PlanError(f"{self.name}: names={names!r} must be two, for the lost and for the reset.")
        self._kernels: Kernels | None = None

    def _count(self, option: str, given: int | None, default: int, least: int, most: int) -> int:
        if given is None:
            return default
        must = f"be a whole number from {least:,} to {most:,}"
        return whole_number(given, name=f"{self.name}: {option}", must=must, least=least, most=most)

    def _gaps(self) -> tuple[int, int, int]:
        """How far ahead a counter may be by default, at least and at most."""
        return (max(self.modulo // 4, 1), 1, self.modulo - 1) if self.modulo else (_LARGEST, 1, _LARGEST)

    def _most_behind(self) -> int:
        """A counter that comes round cannot be ahead and behind at once."""
        return min(MOST_REORDER, self.modulo - 1 - self.max_gap) if self.modulo else MOST_REORDER

    @property
    def needs_times(self) -> bool:
        return self.counter is None or self.reorder > 0  # a reset is told from an old record by its time

    def describe(self) -> str:
        counter = getattr(self, "counter", None)
        return "Dedup" if counter is None else f"Dedup({counter!r})"

    # -- in the chain ------------------------------------------------------------------------------------

    def bind(self, schema: Schema) -> Schema:
        if self.counter is not None:
            schema.require(self.counter, stage=self.name, kinds=NUMERIC)
        fields = [Field(name, kind) for name, kind in zip(self.adds, (Kind.INT, Kind.BOOL), strict=False)]
        return schema.adding_new(fields, stage=self.name)

    def reads(self) -> frozenset[str]:
        return frozenset() if self.counter is None else frozenset({self.counter})

    def state_fields(self) -> Mapping[str, StateField]:
        if self.counter is not None:
            return {"seen": StateField("int64", (SEEN_CELLS,))}
        return {"seen": StateField("int64", (4,)), "ring": StateField("int64", (self.max_records,), cellwise=True)}

    def opened(self) -> Self:
        lane = super().opened()
        lane._kernels = load_kernels()
        return lane

    def step(self, batch: Batch, state: StageState) -> Batch | Step:
        assert self._kernels is not None, "a stage is opened before it steps"
        saved = Saved(self._kernels, state)
        made: dict[str, Column] = {}
        if self.counter is None:
            verdicts = self._by_time(batch, saved)
        else:
            verdicts, lost, reset = self._by_counter(batch, self.counter, saved)
            state.count("lost", int(lost.sum()))
            state.count("resets", int(reset.sum()))
            made = dict(zip(self.adds, (Column(Kind.INT, lost), Column(Kind.BOOL, reset)), strict=False))
        state.count("unchecked", int((verdicts == UNCHECKED).sum()))
        gone = {"deduplicated": int((verdicts == DUPLICATE).sum()), "late": int((verdicts == LATE).sum())}
        if not any(gone.values()):
            return batch.with_columns(made)
        kept = np.flatnonzero((verdicts != DUPLICATE) & (verdicts != LATE))
        left = batch.take(kept)
        whole = left.with_columns({name: column.take(kept) for name, column in made.items()})
        return Step(whole, kept, gone=gone, before=left)

    def hint(self, what: str) -> str | None:
        if what != "unchecked":
            return None
        if self.counter is not None:
            return f"{self.name} finds no whole number in {self.counter!r} of some records, and they go on, copies too"
        return (
            f"{self.name} remembers {self.max_records:,} times of each sensor, and what is further back goes on, copies too; "
            "say how many may come again with max_records="
        )

    def _by_time(self, batch: Batch, saved: Saved) -> NDArray[np.int32]:
        rows = saved.rows("seen")
        ring = saved.ring("ring", "seen")
        verdicts = np.empty(len(batch), np.int32)
        saved.kernels["dedup_times"](
            len(batch),
            saved.slots,
            np.ascontiguousarray(batch.time),
            rows,
            ring,
            self.max_records,
            self.within_ns,
            self.late == "drop",
            verdicts,
        )
        return verdicts

    def _by_counter(
        self, batch: Batch, counter: str, saved: Saved
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_]]:
        """The verdicts, and per record how many were lost before it, and whether the counter began anew."""
        rows = saved.rows("seen")
        values = numbers_of(batch, counter, self.name)
        fit = (values >= 0) & (values < (self.modulo or _LARGEST)) & (values == np.floor(values))
        verdicts = np.empty(len(batch), np.int32)
        lost, resets = np.empty(len(batch), np.int64), np.empty(len(batch), np.int64)
        saved.kernels["dedup_counters"](
            len(batch),
            saved.slots,
            np.where(fit, values, -1).astype(np.int64),
            np.ascontiguousarray(batch.time),
            rows,
            self.modulo,
            self.max_gap,
            self.reorder,
            self.within_ns,
            verdicts,
            lost,
            resets,
        )
        return verdicts, lost, resets != 0
