"""The inner loop of functions over windows: each record's window, copied out of its sensor's ring.

See `kernels` for how these are compiled, and what a ``head`` is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tidemill.stages.statistics.folds import NAN, before

__all__ = ["HELPERS", "KERNELS"]


def unroll(n: int, slots: Any, cells: Any, filled: Any, values: Any, ring: Any, window: int, out: Any) -> None:
    """Put each value into its ring, and copy the window that ends with it: ``out[i]`` has the oldest first, NaN before."""
    for i in range(n):
        base = slots[i] * window
        ring[base + cells[i]] = values[i]
        at = i * window
        missing = window - filled[i]
        for j in range(missing):
            out[at + j] = NAN
        # Asking each cell whether it is past the ring's end costs less than two loops of lengths that nobody can foresee.
        oldest = base + cells[i] + 1
        end = base + window
        for j in range(missing, window):
            cell = oldest + j
            if cell >= end:
                cell -= window
            out[at + j] = ring[cell]


def unroll_span(
    n: int,
    slots: Any,
    cells: Any,
    filled: Any,
    in_order: Any,
    values: Any,
    moments: Any,
    ring: Any,
    times: Any,
    room: int,
    span: int,
    found_times: Any,
    left: Any,
    left_times: Any,
    out: Any,
) -> None:
    """Copy each record's window of time: ``out[i]`` has its records at the right, in order of event time, NaN before.

    Those of one time stand in order of arrival. ``found_times`` is room for ``room`` times, ``left`` and ``left_times`` for
    what stood in the cells: ``ring`` and ``times`` end as they began. See `spans` for the rest.
    """
    for i in range(n):
        base = slots[i] * room
        at = base + cells[i]
        left[i] = ring[at]
        left_times[i] = times[at]
        ring[at] = values[i]
        times[at] = moments[i]
        t = moments[i]
        after = before(t, span)
        end = (i + 1) * room
        start = end
        for j in range(filled[i]):  # from the newest arrival back
            u = times[at]
            if after < u <= t:
                # It stands before all that are as late or later, which arrived after it.
                place = start
                while place < end and found_times[end - place - 1] < u:
                    out[place - 1] = out[place]
                    found_times[end - place] = found_times[end - place - 1]
                    place += 1
                out[place - 1] = ring[at]
                found_times[end - place] = u
                start -= 1
            elif j < in_order[i]:
                break  # it is too old, and so is all that came before it
            at -= 1
            if at < base:
                at = base + filled[i] - 1
        for j in range(end - room, start):
            out[j] = NAN
    for i in range(n - 1, -1, -1):
        at = slots[i] * room + cells[i]
        ring[at] = left[i]
        times[at] = left_times[i]


HELPERS: Final[tuple[Callable[..., Any], ...]] = ()
KERNELS: Final[dict[str, tuple[Callable[..., Any], str]]] = {
    "unroll": (unroll, "niiiddnd"),
    "unroll_span": (unroll_span, "niiiidqdqnnqdqd"),
}
