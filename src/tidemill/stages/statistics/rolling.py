"""Count, sum, mean, spread and extremes of the last n records of each sensor, by blocks of cells (decision 14)."""


# ruff: noqa: PLR0124 - x == x is false for NaN alone

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any, Final

from tidemill.stages.statistics.folds import INF, NAN, apart_of, highest_of, lowest_of, prefetch, squares_of, total_of
from tidemill.stages.statistics.kernels import AHEAD

__all__ = ["HELPERS", "KERNELS"]


def fetch(s: int, cell: int, ring: Any, window: int, shift: int, blocks: Any, each: int, stamps: Any) -> None:
    """Ask for what the record in this cell of key ``s`` needs."""
    at = s * window + (cell >> shift << shift)
    for j in range(at, at + (1 << shift), 8):
        prefetch(ring, j)
    prefetch(ring, at + (1 << shift) - 1)
    for j in range(s * each, s * each + each, 8):
        prefetch(blocks, j)
    prefetch(stamps, s)


def without_missing(ring: Any, start: int, stop: int, gapped: Any, at: int) -> float:
    """Put the sum and the number of the values that are there into ``gapped``; their squared distances from their mean."""
    held = 0
    part = 0.0
    for j in range(start, stop):
        x = ring[j]
        if x == x:
            held += 1
            part += x
    gapped[at] = part
    gapped[at + 1] = held
    around = 0.0
    if held > 0:
        mean = part / held
        for j in range(start, stop):
            x = ring[j]
            if x == x:
                around += (x - mean) * (x - mean)
    return around


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
    far: int,
    gapped: Any,
    out: Any,
) -> None:
    """Put each value into its ring and take the statistics of the window that ends with it.

    ``places[STAT]`` is the row of ``out`` (rows of ``n``) for that statistic, -1 where it is not wanted. ``blocks`` holds
    of each block of ``2**shift`` cells of a ring its sum, its squared distances from its mean, its least and its
    greatest value; a record changes one block, and the others are not looked into again. What ``blocks`` holds of a key
    is good while ``stamps`` has ``stamp`` for it. Of a block in which values are missing ``gapped`` has the sum and the number
    of the others, and its squared distances are theirs. ``far`` says that all of it does not fit in the processor's caches.
    """
    p_count = places[0]
    p_sum = places[1]
    p_mean = places[2]
    p_std = places[3]
    p_var = places[4]
    p_min = places[5]
    p_max = places[6]
    p_rms = places[7]
    spread = p_std >= 0 or p_var >= 0 or p_rms >= 0
    extremes = spread or p_mean >= 0 or p_min >= 0 or p_max >= 0
    size = 1 << shift
    most = (window + size - 1) >> shift
    each = (4 * most + 7) >> 3 << 3
    share = 1.0 / size
    written = False
    for i in range(n):
        if far and i + AHEAD < n:
            fetch(slots[i + AHEAD], cells[i + AHEAD], ring, window, shift, blocks, each, stamps)
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
        sums = s * each
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
            if not -INF < part < INF:
                blocks[squares + b] = without_missing(ring, start, stop, gapped, 2 * (s * most + b))
        total = total_of(blocks, sums, sums + used)
        low = lowest_of(blocks, lows, lows + used) if extremes else INF
        high = highest_of(blocks, highs, highs + used) if extremes else -INF
        k = rows
        clean = -INF < total < INF
        if not clean:
            k = 0
            total = 0.0
            for b in range(used):
                part = blocks[sums + b]
                if -INF < part < INF:
                    k += min(size, rows - (b << shift))
                    total += part
                else:
                    k += int(gapped[2 * (s * most + b) + 1])
                    total += gapped[2 * (s * most + b)]
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
        if spread:
            variance = NAN
            power = NAN
            if enough and k > 0:
                around = 0.0
                if low == high and -INF < total < INF:
                    around = 0.0
                elif clean:
                    b = used - 1
                    if used > 8:
                        around = total_of(blocks, squares, squares + b)
                        around += size * apart_of(blocks, sums, sums + b, share, mean)
                    else:
                        for j in range(b):
                            d = blocks[sums + j] * share - mean
                            around += blocks[squares + j] + size * (d * d)
                    rest = rows - (b << shift)
                    d = blocks[sums + b] / rest - mean
                    around += blocks[squares + b] + rest * (d * d)
                else:
                    for b in range(used):
                        part = blocks[sums + b]
                        held = min(size, rows - (b << shift))
                        if not -INF < part < INF:
                            part = gapped[2 * (s * most + b)]
                            held = int(gapped[2 * (s * most + b) + 1])
                        if held > 0:
                            d = part / held - mean
                            around += blocks[squares + b] + held * (d * d)
                if k > ddof:
                    variance = around / (k - ddof)
                power = mean * mean + around / k
                if not -INF < total < INF:
                    power = INF  # as the square of an infinity is
            if p_var >= 0:
                out[p_var * n + i] = variance if variance == variance else NAN
            if p_std >= 0:
                out[p_std * n + i] = sqrt(variance) if variance >= 0.0 else NAN
            if p_rms >= 0:
                out[p_rms * n + i] = sqrt(power) if power >= 0.0 else NAN


HELPERS: Final[tuple[Callable[..., Any], ...]] = (fetch, without_missing)
"""What the kernels call, each after those that it calls itself."""

KERNELS: Final[dict[str, tuple[Callable[..., Any], str]]] = {
    "roll": (roll, "niiiddnnnnqdqnndd"),
}
