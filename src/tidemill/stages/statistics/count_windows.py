"""The last n records of each sensor: their state, and the kernels over them in order."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.stages.state import StageState, StateField
from tidemill.stages.statistics import kernels as places
from tidemill.stages.statistics.blocks import Blocks, Sorted
from tidemill.stages.statistics.compiled import Kernels, check_slots
from tidemill.stages.statistics.wanted import Statistic, Wanted
from tidemill.stages.windows import Places, Room, Span, spans

__all__ = ["CountWindows"]

_BY_BLOCKS: Final = ("count", "sum", "mean", "std", "var", "min", "max", "rms")
_OF_ENDS: Final = ("first", "last", "delta", "rate")


class CountWindows:
    """Windows of ``window`` records over ``columns`` columns.

    ``gap_ns``  a silence longer than this empties a sensor's window; 0 for never

    State per key: ``head`` (where its next record goes), ``ring0``, ``ring1``, ... (values, a column each), ``times`` (where
    a statistic needs event times), ``newest`` (where silences matter).
    """

    def __init__(self, columns: int, window: int, wanted: Wanted, *, ddof: int, min_periods: int, gap_ns: int) -> None:
        self._window = window
        self._wanted = wanted
        self._ddof, self._min_periods, self._gap_ns = ddof, min_periods, gap_ns
        self._rings = [f"ring{i}" for i in range(columns)]
        self._by_blocks = wanted.rows(_BY_BLOCKS, places.COUNT, places.RMS)
        self._of_ends = wanted.rows(_OF_ENDS, places.FIRST, places.RATE)
        self._slopes = "slope" in wanted.made
        self._keys = 0

    @property
    def needs_times(self) -> bool:
        return self._wanted.timed or self._gap_ns > 0

    def state_fields(self) -> Mapping[str, StateField]:
        fields = {"head": StateField("int64")}
        if self._gap_ns:
            fields["newest"] = StateField("int64")
        fields |= {ring: StateField("float64", (self._window,), cellwise=True) for ring in self._rings}
        if self._wanted.timed:
            fields["times"] = StateField("int64", (self._window,), cellwise=True)
        return fields

    def opened(self) -> Self:
        """The copy that runs in one lane."""
        lane = copy.copy(self)
        lane._room = Room(len(self._rings), self._window)
        lane._blocks = [Blocks(self._window) for _ in self._rings]
        lane._trends = [Blocks(self._window, 5) for _ in self._rings]
        lane._sorted = [Sorted(self._window) for _ in self._rings]
        return lane

    _room: Room
    _places: Places | None = None
    """Of the records of the last step, where its windows are wanted too."""
    _old: list[NDArray[np.float64]]
    """What stood in those places of each ring; it is the undo log that holds it."""
    _blocks: list[Blocks]
    _trends: list[Blocks]
    _sorted: list[Sorted]

    @property
    def kept_bytes_per_key(self) -> int:
        """Bytes that a lane keeps of each sensor's rings, beside the state."""
        lane = self.opened()
        kept = (
            (lane._blocks, bool(self._by_blocks[0])),
            (lane._trends, self._slopes),
            (lane._sorted, bool(self._wanted.quantiles)),
        )
        return sum(each.bytes_per_key for held, used in kept if used for each in held)

    def admit(self, first_slot: int, keys: int) -> None:
        """There are ``keys`` new ones from this slot on."""
        self._keys = max(self._keys, first_slot + keys)

    def forget(self) -> None:
        """The state has changed otherwise than by `step`: what follows from it is made anew."""
        for held in (*self._blocks, *self._trends, *self._sorted):
            held.forget()

    def step(
        self,
        kernels: Kernels,
        state: StageState,
        columns: Sequence[NDArray[np.float64]],
        moments: NDArray[np.int64] | None,
    ) -> list[list[NDArray[np.float64]]]:
        """Per column its statistics, in their order; ``moments`` are the event times, where they are needed."""
        slots, used = check_slots(state.slots, len(state["head"]))
        self._keys = max(self._keys, used)  # what kernels are given is for these keys too, whoever admitted them
        cells, filled = self._enter(kernels, slots, state, moments)
        entered = _Entered(slots, cells, filled, state, moments, timed=self._wanted.timed)
        made = [
            self._wanted.of(self._made(kernels, entered, number, values), values)
            for number, values in enumerate(columns)
        ]
        if self._wanted.timed:
            kernels["write"](len(slots), slots, cells, moments, state["times"], self._window)
        return made

    def spans(self, kernels: Kernels, state: StageState, columns: Sequence[NDArray[np.float64]]) -> Iterator[Span]:
        """The windows themselves of the step just made; to be gone through to the end before the next step."""
        places, self._places = self._places, None
        olds, self._old = self._old, []
        assert places is not None
        rings = [state[ring] for ring in self._rings]
        for ring, old in zip(rings, olds, strict=True):
            kernels["write"](len(old), places.slots, places.cells, old, ring, self._window)

        def fill(own: slice, arrays: Sequence[NDArray[np.float64]]) -> None:
            places.unroll(kernels, own, columns, rings, arrays)

        yield from spans(len(places.slots), self._room, fill)

    def _enter(
        self, kernels: Kernels, slots: NDArray[np.int32], state: StageState, moments: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Each record's cell and its window's rows; everything that will be overwritten is in the undo log then."""
        heads, records = state["head"], len(slots)
        far = self._blocks[0].are_far(self._keys)
        kernels.keep(slots, heads, state.reserve("head", records))
        if self._gap_ns:
            kernels.keep(slots, state["newest"], state.reserve("newest", records))
        state.seal()
        first, *further = self._rings
        log = state.reserve(first, records)
        if self._gap_ns:
            cells, filled = log[1], np.empty(records, np.int32)
            assert cells is not None
            kernels["advance_gap"](
                records,
                slots,
                heads,
                state["newest"],
                moments,
                self._gap_ns,
                state[first],
                self._window,
                filled,
                *log,
            )
        else:
            cells, filled = kernels.advance(slots, heads, state[first], log, far=far)
        logs = [log]
        for ring in [*further, *(["times"] if self._wanted.timed else [])]:
            logs.append(state.reserve(ring, records))
            kernels.gather(slots, cells, state[ring], logs[-1])
        state.seal()
        if self._wanted.windows:
            self._places = Places(slots, cells, filled)
            self._old = [old for _, _, old in logs[: len(self._rings)]]
        return cells, filled

    def _made(
        self, kernels: Kernels, entered: _Entered, number: int, values: NDArray[np.float64]
    ) -> dict[Statistic, NDArray[np.float64]]:
        """Each kernel sees the ring as it was at each record; the last one leaves the values in it."""
        made: dict[Statistic, NDArray[np.float64]] = {}
        ring = entered.state[self._rings[number]]
        if self._wanted.quantiles:
            out = self._ranked(kernels, entered, values, ring, self._sorted[number])
            made.update(zip(self._wanted.quantiles, out, strict=True))
        if self._of_ends[0]:
            made.update(zip(self._of_ends[0], self._ended(kernels, entered, values, ring), strict=True))
        if self._slopes:
            made["slope"] = self._sloped(kernels, entered, values, ring, self._trends[number])
        names, rows = self._by_blocks
        if names:
            out = np.empty((len(names), len(values)))
            kernels.roll(
                entered.slots,
                entered.cells,
                entered.filled,
                values,
                ring,
                rows,
                self._blocks[number],
                out,
                ddof=self._ddof,
                min_periods=self._min_periods,
                keys=self._keys,
            )
            made.update(zip(names, out, strict=True))
        else:
            kernels["write"](len(values), entered.slots, entered.cells, values, ring, self._window)
        return made

    def _ranked(
        self, kernels: Kernels, entered: _Entered, values: NDArray[np.float64], ring: NDArray[np.float64], held: Sorted
    ) -> NDArray[np.float64]:
        chunks, stamps, stamp = held.stamped(self._keys)
        out = np.empty((len(self._wanted.quantiles), len(values)))
        kernels["rank"](
            *entered.windows,
            values,
            ring,
            self._window,
            held.shift,
            self._min_periods,
            self._wanted.fractions,
            len(out),
            chunks,
            held.owned(self._keys),
            stamps,
            stamp,
            entered.room,
            out,
        )
        return out

    def _ended(
        self, kernels: Kernels, entered: _Entered, values: NDArray[np.float64], ring: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        names, rows = self._of_ends
        out = np.empty((len(names), len(values)))
        kernels["ends"](
            *entered.windows,
            values,
            entered.moments,
            ring,
            entered.times,
            self._window,
            int(self._wanted.timed),
            self._min_periods,
            rows,
            entered.room,
            entered.room_for_times,
            out,
        )
        return out

    def _sloped(
        self,
        kernels: Kernels,
        entered: _Entered,
        values: NDArray[np.float64],
        ring: NDArray[np.float64],
        blocks: Blocks,
    ) -> NDArray[np.float64]:
        held, stamps, stamp = blocks.stamped(self._keys)
        out = np.empty(len(values))
        kernels["slope"](
            *entered.windows,
            values,
            entered.moments,
            ring,
            entered.times,
            self._window,
            blocks.shift,
            self._min_periods,
            held,
            stamps,
            stamp,
            entered.room,
            entered.room_for_times,
            out,
        )
        return out


_NO_TIMES: Final = np.zeros(1, np.int64)
"""In place of times that a kernel is told not to look at."""


class _Entered:
    """Records of one step with their places in the rings, and room in which kernels keep what stood there."""

    def __init__(
        self,
        slots: NDArray[np.int32],
        cells: NDArray[np.int32],
        filled: NDArray[np.int32],
        state: StageState,
        moments: NDArray[np.int64] | None,
        *,
        timed: bool,
    ) -> None:
        self.slots, self.cells, self.filled, self.state = slots, cells, filled, state
        self.windows: tuple[Any, ...] = (len(slots), slots, cells, filled)
        self.moments = moments if moments is not None else _NO_TIMES
        self.times = state["times"] if timed else _NO_TIMES

    @cached_property
    def room(self) -> NDArray[np.float64]:
        return np.empty(len(self.slots))

    @cached_property
    def room_for_times(self) -> NDArray[np.int64]:
        return np.empty(len(self.slots), np.int64)
