"""What has arrived of each sensor in the last seconds: its state, and the kernels over it in order."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from tidemill.stages.state import StageState, StateField
from tidemill.stages.statistics import kernels as places
from tidemill.stages.statistics.compiled import Kernels, check_slots
from tidemill.stages.statistics.wanted import Statistic, Wanted
from tidemill.stages.windows import Places, Room, Span, spans

__all__ = ["TimeWindows"]

_OF_KEYS: Final = ("head", "newest", "runs", "lost")
_BY_NAME: Final = (
    "count", "sum", "mean", "std", "var", "min", "max", "rms", "first", "last", "delta", "rate", "slope",
)  # fmt: skip


class TimeWindows:
    """Windows of ``span_ns`` of event time over ``columns`` columns, out of each sensor's last ``room`` records.

    ``gap_ns``  a silence longer than this empties a sensor's window; 0 for never

    State per key: ``head`` (where its next record goes), ``newest`` (its greatest time), ``runs`` (how many of its last
    records came in order), ``lost`` (the greatest time of a record that has lost its cell to another), ``times``, and
    ``ring0``, ``ring1``, ... (values, a column each).
    """

    needs_times: Final = True
    kept_bytes_per_key: Final = 0

    def __init__(
        self, columns: int, span_ns: int, room: int, wanted: Wanted, *, ddof: int, min_periods: int, gap_ns: int
    ) -> None:
        self._span_ns, self._room = span_ns, room
        self._wanted = wanted
        self._ddof, self._min_periods, self._gap_ns = ddof, min_periods, gap_ns
        self._rings = [f"ring{i}" for i in range(columns)]
        self._by_name = wanted.rows(_BY_NAME, places.COUNT, places.SLOPE)

    def state_fields(self) -> Mapping[str, StateField]:
        fields = {name: StateField("int64") for name in _OF_KEYS}
        fields |= {ring: StateField("float64", (self._room,), cellwise=True) for ring in self._rings}
        fields["times"] = StateField("int64", (self._room,), cellwise=True)
        return fields

    def opened(self) -> Self:
        """The copy that runs in one lane."""
        lane = copy.copy(self)
        lane._room_for_windows = Room(len(self._rings), self._room)
        lane._found, lane._found_times = np.empty(self._room), np.empty(self._room)
        return lane

    _room_for_windows: Room
    _entered: _Entered | None = None
    """The records of the last step, where its windows are wanted too."""
    _found: NDArray[np.float64]
    _found_times: NDArray[np.float64]

    def admit(self, first_slot: int, keys: int) -> None:
        """There are ``keys`` new ones from this slot on."""

    def forget(self) -> None:
        """The state has changed otherwise than by `step`; nothing but state is kept."""

    def step(
        self,
        kernels: Kernels,
        state: StageState,
        columns: Sequence[NDArray[np.float64]],
        moments: NDArray[np.int64] | None,
    ) -> list[list[NDArray[np.float64]]]:
        """Per column its statistics, in their order; ``moments`` are the event times."""
        assert moments is not None
        slots, _ = check_slots(state.slots, len(state["head"]))
        cells, filled, in_order, olds = self._enter(kernels, slots, state, moments)
        if self._wanted.windows:
            self._entered = _Entered(Places(slots, cells, filled), in_order, moments, olds)
        made = []
        for ring, values in zip(self._rings, columns, strict=True):
            made.append(
                self._wanted.of(
                    self._made(kernels, slots, cells, filled, in_order, values, moments, state, ring), values
                )
            )
            kernels["write"](len(slots), slots, cells, values, state[ring], self._room)
        kernels["write"](len(slots), slots, cells, moments, state["times"], self._room)
        return made

    def spans(self, kernels: Kernels, state: StageState, columns: Sequence[NDArray[np.float64]]) -> Iterator[Span]:
        """The windows themselves of the step just made, ``max_records`` wide; to be gone through to the end before the next
        step."""
        entered, self._entered = self._entered, None
        assert entered is not None
        places, moments = entered.places, entered.moments
        rings, times = [state[ring] for ring in self._rings], state["times"]
        found_times = np.empty(self._room, np.int64)

        def write(own: slice, values: NDArray[Any], ring: NDArray[Any]) -> None:
            slots, cells = places.slots[own], places.cells[own]
            kernels["write"](len(slots), slots, cells, values[own], ring, self._room)

        def fill(own: slice, arrays: Sequence[NDArray[np.float64]]) -> None:
            records = own.stop - own.start
            left, left_times = np.empty(records), np.empty(records, np.int64)
            window = (places.slots[own], places.cells[own], places.filled[own], entered.in_order[own])
            for values, ring, out in zip(columns, rings, arrays, strict=True):
                kernels["unroll_span"](
                    records,
                    *window,
                    values[own],
                    moments[own],
                    ring,
                    times,
                    self._room,
                    self._span_ns,
                    found_times,
                    left,
                    left_times,
                    out,
                )
            for column, ring in zip(columns, rings, strict=True):
                write(own, column, ring)
            write(own, moments, times)

        for old, kept in zip(entered.olds, [*rings, times], strict=True):
            write(slice(0, len(old)), old, kept)
        yield from spans(len(moments), self._room_for_windows, fill)

    def _enter(
        self, kernels: Kernels, slots: NDArray[np.int32], state: StageState, moments: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], list[NDArray[Any]]]:
        """Each record's cell, the filled ones, its place in the run of records that came in order, and what stood in the
        cells of each ring and of ``times``; everything that will be overwritten is in the undo log then."""
        records = len(slots)
        for name in _OF_KEYS:
            kernels.keep(slots, state[name], state.reserve(name, records))
        state.seal()
        first, *further = self._rings
        filled, in_order, over = (np.empty(records, np.int32) for _ in range(3))
        log = state.reserve(first, records)
        cells = log[1]
        assert cells is not None
        kernels["advance_span"](
            records,
            slots,
            *(state[name] for name in _OF_KEYS if name != "lost"),
            moments,
            self._gap_ns,
            state[first],
            self._room,
            filled,
            in_order,
            over,
            *log,
        )
        logs = [log]
        for ring in [*further, "times"]:
            logs.append(state.reserve(ring, records))
            kernels.gather(slots, cells, state[ring], logs[-1])
        state.seal()
        if over.any() or (filled == 1).any():
            self._count_lacking(kernels, slots, cells, over, filled, moments, state)
        return cells, filled, in_order, [old for _, _, old in logs]

    def _count_lacking(
        self,
        kernels: Kernels,
        slots: NDArray[np.int32],
        cells: NDArray[np.int32],
        over: NDArray[np.int32],
        filled: NDArray[np.int32],
        moments: NDArray[np.int64],
        state: StageState,
    ) -> None:
        lacking, left = np.zeros(1, np.int64), np.empty(len(slots), np.int64)
        kernels["lose"](
            len(slots),
            slots,
            cells,
            over,
            filled,
            moments,
            state["times"],
            self._room,
            self._span_ns,
            state["lost"],
            left,
            lacking,
        )
        state.count("window_overflow", int(lacking[0]))

    def _made(
        self,
        kernels: Kernels,
        slots: NDArray[np.int32],
        cells: NDArray[np.int32],
        filled: NDArray[np.int32],
        in_order: NDArray[np.int32],
        values: NDArray[np.float64],
        moments: NDArray[np.int64],
        state: StageState,
        ring: str,
    ) -> dict[Statistic, NDArray[np.float64]]:
        names, rows = self._by_name
        if not names and not self._wanted.quantiles:
            return {}
        out = np.empty((len(names) + len(self._wanted.quantiles), len(values)))
        kernels["roll_span"](
            len(slots),
            slots,
            cells,
            filled,
            in_order,
            values,
            moments,
            state[ring],
            state["times"],
            self._room,
            self._span_ns,
            self._ddof,
            self._min_periods,
            rows,
            self._wanted.fractions,
            len(self._wanted.quantiles),
            len(names),
            self._found,
            self._found_times,
            np.empty(len(values)),
            np.empty(len(values), np.int64),
            out,
        )
        return dict(zip((*names, *self._wanted.quantiles), out, strict=True))


@dataclass(frozen=True)
class _Entered:
    """Records of one step, by which their windows are found again."""

    places: Places
    in_order: NDArray[np.int32]
    moments: NDArray[np.int64]
    olds: list[NDArray[Any]]
    """What stood in their places of each ring and of ``times``; it is the undo log that holds it."""
