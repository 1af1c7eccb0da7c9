"""The inner loops of `Rolling`, each written once.

Plain Python over flat arrays and scalars: Numba compiles these very functions to machine code (`compile`), and without
it they run as they stand over memoryviews, slowly and with the same bits. To keep the two equal, and every value a
function of its window alone:

- strict IEEE arithmetic in a fixed order: blocks of the ring's cells, eight accumulators in each, joined as a tree. No
  fastmath, no fused multiply-add, no sum carried on by adding and subtracting, which would drift: what is kept of a
  block follows from the cells in it.
- a window whose sum is finite holds neither NaN nor infinity, and takes the fast path; any other is gone through once
  more, NaN left out. Which path a window takes follows from the window.
- a result that is not a number is the one constant NaN.

A key's ``head`` packs how many cells of its ring are filled (high 32 bits) and the cell of its next record (low 32).
"""

# ruff: noqa: FURB136 - min() and max() are slower interpreted, and leave open what they do with NaN
# ruff: noqa: PLR0124 - x == x is false for NaN alone

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any, Final

__all__ = ["COUNT", "HELPERS", "KERNELS", "MAX", "MEAN", "MEDIAN", "MIN", "STD", "SUM", "VAR"]

COUNT: Final = 0
SUM: Final = 1
MEAN: Final = 2
STD: Final = 3
VAR: Final = 4
MIN: Final = 5
MAX: Final = 6
MEDIAN: Final = 7
NAN: Final = float("nan")
INF: Final = float("inf")


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
    filled: Any,
    log_slots: Any,
    log_cells: Any,
    log_old: Any,
) -> None:
    """Give each record its cell, and how many cells its window then has; moves the heads on.

    What stands in the cells goes into the undo log, whose list of cells is also the records'.
    """
    for i in range(n):
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


# -- between a lane's rows and the columns of its slab ----------------------------------------------------------


def pick(n: int, rows: Any, column: Any, out: Any) -> None:
    """``out = column[rows]``."""
    for i in range(n):
        out[i] = column[rows[i]]


def put(n: int, rows: Any, values: Any, column: Any) -> None:
    """``column[rows] = values``."""
    for i in range(n):
        column[rows[i]] = values[i]


# -- folds over a window: cells base to end of the ring. Apart, each becomes vector instructions. ---------------


def total_of(ring: Any, base: int, end: int) -> float:
    """The sum of the cells."""
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = 0.0
    end8 = base + ((end - base) >> 3 << 3)
    for j in range(base, end8, 8):
        a0 += ring[j]
        a1 += ring[j + 1]
        a2 += ring[j + 2]
        a3 += ring[j + 3]
        a4 += ring[j + 4]
        a5 += ring[j + 5]
        a6 += ring[j + 6]
        a7 += ring[j + 7]
    for j in range(end8, end):
        a0 += ring[j]
    return ((a0 + a4) + (a2 + a6)) + ((a1 + a5) + (a3 + a7))


def squares_of(ring: Any, base: int, end: int, mean: float) -> float:
    """The sum of squared distances from ``mean``."""
    q0 = q1 = q2 = q3 = q4 = q5 = q6 = q7 = 0.0
    end8 = base + ((end - base) >> 3 << 3)
    for j in range(base, end8, 8):
        d0 = ring[j] - mean
        d1 = ring[j + 1] - mean
        d2 = ring[j + 2] - mean
        d3 = ring[j + 3] - mean
        d4 = ring[j + 4] - mean
        d5 = ring[j + 5] - mean
        d6 = ring[j + 6] - mean
        d7 = ring[j + 7] - mean
        q0 += d0 * d0
        q1 += d1 * d1
        q2 += d2 * d2
        q3 += d3 * d3
        q4 += d4 * d4
        q5 += d5 * d5
        q6 += d6 * d6
        q7 += d7 * d7
    for j in range(end8, end):
        d0 = ring[j] - mean
        q0 += d0 * d0
    return ((q0 + q4) + (q2 + q6)) + ((q1 + q5) + (q3 + q7))


def lowest_of(ring: Any, base: int, end: int) -> float:
    """The least value; NaN is passed over."""
    l0 = l1 = l2 = l3 = l4 = l5 = l6 = l7 = INF
    end8 = base + ((end - base) >> 3 << 3)
    for j in range(base, end8, 8):
        x0 = ring[j]
        x1 = ring[j + 1]
        x2 = ring[j + 2]
        x3 = ring[j + 3]
        x4 = ring[j + 4]
        x5 = ring[j + 5]
        x6 = ring[j + 6]
        x7 = ring[j + 7]
        l0 = x0 if x0 < l0 else l0
        l1 = x1 if x1 < l1 else l1
        l2 = x2 if x2 < l2 else l2
        l3 = x3 if x3 < l3 else l3
        l4 = x4 if x4 < l4 else l4
        l5 = x5 if x5 < l5 else l5
        l6 = x6 if x6 < l6 else l6
        l7 = x7 if x7 < l7 else l7
    for j in range(end8, end):
        x = ring[j]
        l0 = x if x < l0 else l0
    l0 = l4 if l4 < l0 else l0
    l1 = l5 if l5 < l1 else l1
    l2 = l6 if l6 < l2 else l2
    l3 = l7 if l7 < l3 else l3
    l0 = l2 if l2 < l0 else l0
    l1 = l3 if l3 < l1 else l1
    return l1 if l1 < l0 else l0


def highest_of(ring: Any, base: int, end: int) -> float:
    """The greatest value; NaN is passed over."""
    h0 = h1 = h2 = h3 = h4 = h5 = h6 = h7 = -INF
    end8 = base + ((end - base) >> 3 << 3)
    for j in range(base, end8, 8):
        x0 = ring[j]
        x1 = ring[j + 1]
        x2 = ring[j + 2]
        x3 = ring[j + 3]
        x4 = ring[j + 4]
        x5 = ring[j + 5]
        x6 = ring[j + 6]
        x7 = ring[j + 7]
        h0 = x0 if x0 > h0 else h0
        h1 = x1 if x1 > h1 else h1
        h2 = x2 if x2 > h2 else h2
        h3 = x3 if x3 > h3 else h3
        h4 = x4 if x4 > h4 else h4
        h5 = x5 if x5 > h5 else h5
        h6 = x6 if x6 > h6 else h6
        h7 = x7 if x7 > h7 else h7
    for j in range(end8, end):
        x = ring[j]
        h0 = x if x > h0 else h0
    h0 = h4 if h4 > h0 else h0
    h1 = h5 if h5 > h1 else h1
    h2 = h6 if h6 > h2 else h2
    h3 = h7 if h7 > h3 else h3
    h0 = h2 if h2 > h0 else h0
    h1 = h3 if h3 > h1 else h1
    return h1 if h1 > h0 else h0


def median_of(ring: Any, base: int, end: int, scratch: Any) -> Any:
    """The middle value, or halfway between the two middle ones; there is at least one that is not NaN."""
    m = 0
    for j in range(base, end):
        x = ring[j]
        if x == x:
            scratch[m] = x
            m += 1
    high = select_of(scratch, m, m >> 1)
    if m & 1:
        return high
    low = scratch[0]  # the selection has left the lower half, in some order, before the middle
    for j in range(1, m >> 1):
        x = scratch[j]
        low = x if x > low else low
    middle = (low + high) / 2.0
    return middle if middle == middle else NAN


def select_of(scratch: Any, m: int, rank: int) -> Any:
    """The value with ``rank`` values before it in order, by Hoare's selection, which moves no greater ones before it."""
    left = 0
    right = m - 1
    while left < right:
        pivot = scratch[(left + right) >> 1]
        a = left
        b = right
        while a <= b:
            while scratch[a] < pivot:
                a += 1
            while pivot < scratch[b]:
                b -= 1
            if a <= b:
                x = scratch[a]
                scratch[a] = scratch[b]
                scratch[b] = x
                a += 1
                b -= 1
        if b < rank:
            left = a
        if rank < a:
            right = b
    return scratch[rank]


# -- the statistics ---------------------------------------------------------------------------------------------


def roll(
    n: int,
    slots: Any,
    cells: Any,
    filled: Any,
    values: Any,
    ring: Any,
    window: int,
    shift: int,
    ddof: int,
    min_periods: int,
    places: Any,
    blocks: Any,
    stamps: Any,
    stamp: int,
    scratch: Any,
    out: Any,
) -> None:
    """Put each value into its ring and take the statistics of the window that ends with it.

    ``places[STAT]`` is the row of ``out`` (rows of ``n``) for that statistic, -1 where it is not wanted. ``blocks`` holds
    of each block of ``2**shift`` cells of a ring its sum, its squared distances from its mean, its least and its
    greatest value; a record changes one block, and the others are not looked into again. What ``blocks`` holds of a key
    is good while ``stamps`` has this call's ``stamp`` for it.
    """
    p_count = places[0]
    p_sum = places[1]
    p_mean = places[2]
    p_std = places[3]
    p_var = places[4]
    p_min = places[5]
    p_max = places[6]
    p_median = places[7]
    spread = p_std >= 0 or p_var >= 0
    extremes = spread or p_mean >= 0 or p_min >= 0 or p_max >= 0
    size = 1 << shift
    most = (window + size - 1) >> shift
    share = 1.0 / size
    written = False
    for i in range(n):
        s = slots[i]
        base = s * window
        if not written:
            ring[base + cells[i]] = values[i]
        # The next record's value goes in early, if into another ring: it is on its way from memory, and past the
        # store buffer, when its window is read.
        written = False
        if i + 1 < n and slots[i + 1] != s:
            ring[slots[i + 1] * window + cells[i + 1]] = values[i + 1]
            written = True
        rows = filled[i]
        used = (rows + size - 1) >> shift
        sums = s * 4 * most
        squares = sums + most
        lows = squares + most
        highs = lows + most
        first = cells[i] >> shift
        last = first + 1
        if stamps[s] != stamp:
            stamps[s] = stamp
            first = 0
            last = used
        for b in range(first, last):
            start = base + (b << shift)
            stop = min(start + size, base + rows)
            part = total_of(ring, start, stop)
            blocks[sums + b] = part
            if extremes:
                blocks[lows + b] = lowest_of(ring, start, stop)
                blocks[highs + b] = highest_of(ring, start, stop)
            if spread:
                blocks[squares + b] = squares_of(ring, start, stop, part / (stop - start))
        total = total_of(blocks, sums, sums + used)
        low = lowest_of(blocks, lows, lows + used) if extremes else INF
        high = highest_of(blocks, highs, highs + used) if extremes else -INF
        k = rows
        clean = -INF < total < INF
        if not clean:
            k = 0
            total = 0.0
            for j in range(base, base + rows):
                x = ring[j]
                if x == x:
                    k += 1
                    total += x
        enough = k >= min_periods
        # A sensor that stands still has exactly its own value as mean and exactly 0 as spread.
        mean = NAN
        if k > 0:
            mean = low if low == high else total / k
        if p_count >= 0:
            out[p_count * n + i] = float(k) if rows >= min_periods else NAN
        if p_sum >= 0:
            out[p_sum * n + i] = total if enough and total == total else NAN
        if p_mean >= 0:
            out[p_mean * n + i] = mean if enough and mean == mean else NAN
        if p_min >= 0:
            out[p_min * n + i] = low if enough and k > 0 else NAN
        if p_max >= 0:
            out[p_max * n + i] = high if enough and k > 0 else NAN
        if p_median >= 0:
            out[p_median * n + i] = median_of(ring, base, base + rows, scratch) if enough and k > 0 else NAN
        if spread:
            variance = NAN
            if enough and k > ddof:
                around = 0.0
                if clean and low == high:
                    around = 0.0
                elif clean:
                    for b in range(used - 1):
                        d = blocks[sums + b] * share - mean
                        around += blocks[squares + b] + size * (d * d)
                    b = used - 1
                    rest = rows - (b << shift)
                    d = blocks[sums + b] / rest - mean
                    around += blocks[squares + b] + rest * (d * d)
                else:
                    for j in range(base, base + rows):
                        x = ring[j]
                        if x == x:
                            around += (x - mean) * (x - mean)
                variance = around / (k - ddof)
            if p_var >= 0:
                out[p_var * n + i] = variance if variance == variance else NAN
            if p_std >= 0:
                out[p_std * n + i] = sqrt(variance) if variance >= 0.0 else NAN


HELPERS: Final[tuple[Callable[..., Any], ...]] = (
    total_of,
    squares_of,
    lowest_of,
    highest_of,
    select_of,
    median_of,
)
"""What the kernels call, each after those that it calls itself."""

# One letter an argument, for compiler and loader alike: n a count, i int32[], q int64[], d float64[],
# w any 8-byte values, moved as they are.
KERNELS: Final[dict[str, tuple[Callable[..., Any], str]]] = {
    "keep": (keep, "niqiq"),
    "advance": (advance, "niqdniiid"),
    "gather": (gather, "niidniid"),
    "pick": (pick, "niww"),
    "put": (put, "niww"),
    "roll": (roll, "niiiddnnnnqdqndd"),
}
