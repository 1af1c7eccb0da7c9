"""Folds over the cells of a window: what the kernels of statistics are made of.

Eight accumulators side by side become vector instructions; their order is fixed, and so is each bit (`settled`).
"""

# ruff: noqa: FURB136 - min() and max() are slower interpreted, and leave open what they do with NaN

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

__all__ = ["EARLIEST", "HELPERS", "INF", "KERNELS", "NAN"]

NAN: Final = float("nan")
INF: Final = float("inf")
EARLIEST: Final = -(2**63)
"""Before every time; int64 nanoseconds count from the one after it."""


def prefetch(array: Any, at: int) -> None:
    """Ask for a cell's memory ahead of its use: an instruction where compiled (`compiled`), nothing where interpreted."""


def settled(x: float) -> float:
    """``x``; for the compiler, the end of what it may put together in vectors (`compiling`).

    Left to itself it pairs accumulators in the loop as they are joined after it, from cells that do not lie side by side.
    """
    return x


def before(t: int, span: int) -> int:
    """``span`` nanoseconds before ``t``, or `EARLIEST` where that is beyond what can be counted."""
    return t - span if t >= EARLIEST + span else EARLIEST


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
    return ((settled(q0) + settled(q4)) + (settled(q2) + settled(q6))) + (
        (settled(q1) + settled(q5)) + (settled(q3) + settled(q7))
    )


def apart_of(ring: Any, base: int, end: int, share: float, mean: float) -> float:
    """The sum of squared distances of the ``share`` of each cell from ``mean``."""
    q0 = q1 = q2 = q3 = q4 = q5 = q6 = q7 = 0.0
    end8 = base + ((end - base) >> 3 << 3)
    for j in range(base, end8, 8):
        d0 = ring[j] * share - mean
        d1 = ring[j + 1] * share - mean
        d2 = ring[j + 2] * share - mean
        d3 = ring[j + 3] * share - mean
        d4 = ring[j + 4] * share - mean
        d5 = ring[j + 5] * share - mean
        d6 = ring[j + 6] * share - mean
        d7 = ring[j + 7] * share - mean
        q0 += d0 * d0
        q1 += d1 * d1
        q2 += d2 * d2
        q3 += d3 * d3
        q4 += d4 * d4
        q5 += d5 * d5
        q6 += d6 * d6
        q7 += d7 * d7
    for j in range(end8, end):
        d0 = ring[j] * share - mean
        q0 += d0 * d0
    return ((settled(q0) + settled(q4)) + (settled(q2) + settled(q6))) + (
        (settled(q1) + settled(q5)) + (settled(q3) + settled(q7))
    )


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
    l0 = settled(l0)
    l2 = settled(l2)
    l4 = settled(l4)
    l6 = settled(l6)
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
    h0 = settled(h0)
    h2 = settled(h2)
    h4 = settled(h4)
    h6 = settled(h6)
    h0 = h4 if h4 > h0 else h0
    h1 = h5 if h5 > h1 else h1
    h2 = h6 if h6 > h2 else h2
    h3 = h7 if h7 > h3 else h3
    h0 = h2 if h2 > h0 else h0
    h1 = h3 if h3 > h1 else h1
    return h1 if h1 > h0 else h0


HELPERS: Final[tuple[Callable[..., Any], ...]] = (before, total_of, squares_of, apart_of, lowest_of, highest_of)
"""What the kernels call, each after those that it calls itself."""

KERNELS: Final[dict[str, tuple[Callable[..., Any], str]]] = {}
