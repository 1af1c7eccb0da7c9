"""The rules of the kernels, and those that move values and heads of rings.

Plain Python over flat arrays and scalars: Numba compiles these very functions to machine code (`compiled`), and without
it they run as they stand over memoryviews, slowly and with the same bits. To keep the two equal, and every value a
function of its window alone:

- strict IEEE arithmetic in a fixed order: eight accumulators, joined as a tree (`folds`). No fastmath, no fused
  multiply-add, no sum carried on by adding and subtracting, which would drift: what is kept of a block of cells follows
  from the cells in it.
- a window whose sum is finite holds neither NaN nor infinity, and takes the fast path; in any other, NaN is left out
  block by block. Which path a window takes follows from the window.
- a result that is not a number is the one constant NaN.

    folds        what is made of cells side by side: sums, squares, least and greatest
    kernels      heads and cells; rows of a slab
    rolling      count to rms of the last n records, by blocks
    ranks        quantiles of the last n records, from a sorted copy
    trends       first, last, delta, rate and slope of the last n records
    spans        windows of time: all of these

A key's ``head`` packs how many cells of its ring are filled (high 32 bits) and the cell of its next record (low 32). A
silence that empties a window sets it back to 0.

Kernels that take statistics see each record's window as it was at that record, so they write the values into the ring as
they go. `roll` and `write` leave them there; the others put back what stood there, for the next to find.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tidemill.stages.statistics.folds import before, prefetch

__all__ = [
    "COUNT",
    "DELTA",
    "FIRST",
    "HELPERS",
    "KERNELS",
    "LAST",
    "MAX",
    "MEAN",
    "MIN",
    "RATE",
    "RMS",
    "SLOPE",
    "STD",
    "SUM",
    "VAR",
]

COUNT: Final = 0
SUM: Final = 1
MEAN: Final = 2
STD: Final = 3
VAR: Final = 4
MIN: Final = 5
MAX: Final = 6
RMS: Final = 7
FIRST: Final = 8
LAST: Final = 9
DELTA: Final = 10
RATE: Final = 11
SLOPE: Final = 12
AHEAD: Final = 12
"""Records between asking for memory that is not at hand and using it."""
FURTHER_AHEAD: Final = 32
"""The same where a record takes a few nanoseconds."""


def keep(n: int, slots: Any, heads: Any, log_slots: Any, log_heads: Any) -> None:
    """Copy the heads of these slots into the undo log."""
    for i in range(n):
        s = slots[i]
        log_slots[i] = s
        log_heads[i] = heads[s]


def advance(
    n: int,
    slots: Any,
    heads: Any,
    ring: Any,
    window: int,
    far: int,
    filled: Any,
    log_slots: Any,
    log_cells: Any,
    log_old: Any,
) -> None:
    """Give each record its cell, and how many cells its window then has; moves the heads on.

    What stands in the cells goes into the undo log, whose list of cells is also the records'. ``far`` says that the rings are not at hand.
    """
    for i in range(n):
        if far and i + FURTHER_AHEAD < n:
            s = slots[i + FURTHER_AHEAD]
            prefetch(ring, s * window + (heads[s] & 0xFFFFFFFF))
        s = slots[i]
        head = heads[s]
        cell = head & 0xFFFFFFFF
        count = head >> 32
        log_slots[i] = s
        log_cells[i] = cell
        log_old[i] = ring[s * window + cell]
        if count < window:
            count += 1
        filled[i] = count
        cell += 1
        if cell == window:
            cell = 0
        heads[s] = (count << 32) | cell


def advance_gap(
    n: int,
    slots: Any,
    heads: Any,
    newest: Any,
    times: Any,
    gap: int,
    ring: Any,
    window: int,
    filled: Any,
    log_slots: Any,
    log_cells: Any,
    log_old: Any,
) -> None:
    """`advance`, where a record more than ``gap`` nanoseconds after its key's newest finds the window empty."""
    for i in range(n):
        s = slots[i]
        head = heads[s]
        cell = head & 0xFFFFFFFF
        count = head >> 32
        t = times[i]
        if count > 0 and newest[s] < before(t, gap):
            count = 0
            cell = 0
        if count == 0 or t > newest[s]:
            newest[s] = t
        log_slots[i] = s
        log_cells[i] = cell
        log_old[i] = ring[s * window + cell]
        if count < window:
            count += 1
        filled[i] = count
        cell += 1
        if cell == window:
            cell = 0
        heads[s] = (count << 32) | cell


def gather(
    n: int, slots: Any, cells: Any, ring: Any, window: int, log_slots: Any, log_cells: Any, log_old: Any
) -> None:
    """Copy what stands in these cells of a further ring into the undo log."""
    for i in range(n):
        s = slots[i]
        c = cells[i]
        log_slots[i] = s
        log_cells[i] = c
        log_old[i] = ring[s * window + c]


def write(n: int, slots: Any, cells: Any, values: Any, ring: Any, window: int) -> None:
    """Put the values into their cells."""
    for i in range(n):
        ring[slots[i] * window + cells[i]] = values[i]


# -- between a lane's rows and the columns of its slab ----------------------------------------------------------


def pick(n: int, rows: Any, column: Any, out: Any) -> None:
    """``out = column[rows]``."""
    for i in range(n):
        out[i] = column[rows[i]]


def put(n: int, rows: Any, values: Any, column: Any) -> None:
    """``column[rows] = values``."""
    for i in range(n):
        column[rows[i]] = values[i]


HELPERS: Final[tuple[Callable[..., Any], ...]] = ()
"""What the kernels call, each after those that it calls itself."""

# One letter an argument, for compiler and loader alike: n a count, i int32[], q int64[], d float64[],
# w any 8-byte values, moved as they are.
KERNELS: Final[dict[str, tuple[Callable[..., Any], str]]] = {
    "keep": (keep, "niqiq"),
    "advance": (advance, "niqdnniiid"),
    "advance_gap": (advance_gap, "niqqqndniiid"),
    "gather": (gather, "niiwniiw"),
    "write": (write, "niiwwn"),
    "pick": (pick, "niww"),
    "put": (put, "niww"),
}
