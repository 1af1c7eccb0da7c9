"""Quantiles of the last n records of each sensor, from a copy of its window that is kept in order.

The copy lies in chunks of ``1 << shift`` values, each a ring with a place where it begins; all but the last are full. A
value that leaves makes a hole, a value that comes in moves it: within the two chunks value by value, and through each
chunk between them by turning its ring on by one (a tiered vector: Goodrich and Kloss 1999). With as many values in a chunk
as there are chunks, that is proportional to the root of the window.

What is kept is the values, not where they stand: of equal ones (0.0 and -0.0) any may be taken out, and results are
added to 0.0, so that the bits follow from the window alone.
"""

# ruff: noqa: PLR0124 - x == x is false for NaN alone

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tidemill.stages.statistics.folds import INF, NAN

__all__ = ["HELPERS", "KERNELS"]


def place_of(chunks: Any, begins: Any, base: int, first: int, shift: int, held: int, x: float) -> int:
    """How many of the ``held`` values of the chunks at ``base`` are less than ``x``; their begins are at ``first``."""
    mask = (1 << shift) - 1
    chunk = 0
    size = (held + mask) >> shift
    while size > 1:
        half = size >> 1
        k = chunk + half
        chunk = k if chunks[base + (k << shift) + begins[first + k]] < x else chunk
        size -= half
    start = base + (chunk << shift)
    begin = begins[first + chunk]
    rank = 0
    size = min(held - (chunk << shift), mask + 1)
    while size > 1:
        half = size >> 1
        rank = rank + half if chunks[start + ((begin + rank + half - 1) & mask)] < x else rank
        size -= half
    if size == 1 and chunks[start + ((begin + rank) & mask)] < x:
        rank += 1
    return (chunk << shift) + rank


def move_hole(chunks: Any, begins: Any, base: int, first: int, shift: int, hole: int, to: int, x: float) -> None:
    """Move the values between ranks ``hole`` and ``to`` by one, over what is at ``hole``, and put ``x`` at ``to``."""
    mask = (1 << shift) - 1
    from_chunk = hole >> shift
    to_chunk = to >> shift
    i = hole & mask
    j = to & mask
    start = base + (from_chunk << shift)
    begin = begins[first + from_chunk]
    if from_chunk < to_chunk:
        for r in range(i, mask):
            chunks[start + ((begin + r) & mask)] = chunks[start + ((begin + r + 1) & mask)]
        free = start + ((begin + mask) & mask)
        for k in range(from_chunk + 1, to_chunk):
            front = base + (k << shift) + begins[first + k]
            chunks[free] = chunks[front]
            free = front
            begins[first + k] = (begins[first + k] + 1) & mask
        start = base + (to_chunk << shift)
        begin = begins[first + to_chunk]
        chunks[free] = chunks[start + begin]
        i = 0
    elif from_chunk > to_chunk:
        for r in range(i, 0, -1):
            chunks[start + ((begin + r) & mask)] = chunks[start + ((begin + r - 1) & mask)]
        free = start + begin
        for k in range(from_chunk - 1, to_chunk, -1):
            back = (begins[first + k] - 1) & mask
            chunks[free] = chunks[base + (k << shift) + back]
            free = base + (k << shift) + back
            begins[first + k] = back
        start = base + (to_chunk << shift)
        begin = begins[first + to_chunk]
        chunks[free] = chunks[start + ((begin + mask) & mask)]
        i = mask
    for r in range(i, j):
        chunks[start + ((begin + r) & mask)] = chunks[start + ((begin + r + 1) & mask)]
    for r in range(i, j, -1):
        chunks[start + ((begin + r) & mask)] = chunks[start + ((begin + r - 1) & mask)]
    chunks[start + ((begin + j) & mask)] = x


def sift_down(values: Any, base: int, at: int, held: int) -> None:
    """Let the value at ``at`` sink to its place in the heap of ``held`` values at ``base``, the greatest on top."""
    x = values[base + at]
    child = 2 * at + 1
    while child < held:
        if child + 1 < held and values[base + child] < values[base + child + 1]:
            child += 1
        if values[base + child] <= x:
            break
        values[base + at] = values[base + child]
        at = child
        child = 2 * at + 1
    values[base + at] = x


def sort_values(values: Any, base: int, held: int) -> None:
    """Put ``held`` values at ``base`` in order (heapsort: Williams 1964)."""
    for at in range((held >> 1) - 1, -1, -1):
        sift_down(values, base, at, held)
    for end in range(held - 1, 0, -1):
        x = values[base + end]
        values[base + end] = values[base]
        values[base] = x
        sift_down(values, base, 0, end)


def between(low: float, high: float, share: float) -> Any:
    """The value a ``share`` of the way from ``low`` to ``high``, which is not less."""
    if low == high:
        return low + 0.0
    if share == 0.5:
        x = (low + high) / 2.0
    else:
        apart = high - low
        if apart < INF:
            x = low + apart * share if share < 0.5 else high - apart * (1.0 - share)
        else:
            x = low * (1.0 - share) + high * share
    return x + 0.0 if x == x else NAN


def rank(
    n: int,
    slots: Any,
    cells: Any,
    filled: Any,
    values: Any,
    ring: Any,
    window: int,
    shift: int,
    min_periods: int,
    fractions: Any,
    quantiles: int,
    chunks: Any,
    own: Any,
    stamps: Any,
    stamp: int,
    left: Any,
    out: Any,
) -> None:
    """The quantiles of each record's window, by linear interpolation: row ``q`` of ``out`` is ``fractions[q]``'s.

    ``chunks`` has each key's values in order; ``own`` says how many of them there are, of how many cells, and where each
    chunk begins; both are good for a key whose ``stamps`` has ``stamp``. ``ring`` ends as it began; ``left`` is room.
    """
    parts = (window + (1 << shift) - 1) >> shift
    for i in range(n):
        s = slots[i]
        base = s * (parts << shift)
        facts = s * (parts + 2)
        begins = facts + 2
        cell = s * window + cells[i]
        old = ring[cell]
        x = values[i]
        left[i] = old
        ring[cell] = x
        rows = filled[i]
        held = own[facts]
        known = own[facts + 1]
        if rows == 1:
            held = 0
            known = 0
            for k in range(parts):
                own[begins + k] = 0
        elif stamps[s] != stamp:
            held = 0
            for j in range(s * window, s * window + rows):
                y = ring[j]
                if y == y:
                    chunks[base + held] = y
                    held += 1
            for k in range(parts):
                own[begins + k] = 0
            sort_values(chunks, base, held)
            known = rows + 1  # the new value is in, and none has to go
        stamps[s] = stamp
        if known <= rows:
            leaves = known == window and old == old
            if leaves:
                hole = place_of(chunks, own, base, begins, shift, held, old)
            else:
                hole = held
            if x == x:
                to = place_of(chunks, own, base, begins, shift, held, x)
                if leaves and hole < to:
                    to -= 1
                if not leaves:
                    if hole & ((1 << shift) - 1) == 0:
                        own[begins + (hole >> shift)] = 0
                    held += 1
                move_hole(chunks, own, base, begins, shift, hole, to, x)
            elif leaves:
                move_hole(chunks, own, base, begins, shift, hole, held - 1, x)
                held -= 1
        own[facts] = held
        own[facts + 1] = rows
        mask = (1 << shift) - 1
        for q in range(quantiles):
            if held >= min_periods and held > 0:
                place = (held - 1) * fractions[q]
                r = int(place)
                k = r >> shift
                low = chunks[base + (k << shift) + ((own[begins + k] + r) & mask)]
                share = place - r
                high = low
                if share > 0.0:
                    r += 1
                    k = r >> shift
                    high = chunks[base + (k << shift) + ((own[begins + k] + r) & mask)]
                out[q * n + i] = between(low, high, share)
            else:
                out[q * n + i] = NAN
    for i in range(n - 1, -1, -1):
        ring[slots[i] * window + cells[i]] = left[i]


HELPERS: Final[tuple[Callable[..., Any], ...]] = (place_of, move_hole, sift_down, sort_values, between)
"""What the kernels call, each after those that it calls itself."""

KERNELS: Final[dict[str, tuple[Callable[..., Any], str]]] = {
    "rank": (rank, "niiiddnnndndqqndd"),
}
